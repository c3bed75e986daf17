"""A forward pass on a CPU by the C++ kernels of `kernels/cpu/`, for models whose weights `Linear` packed for them."""

import torch

from minstate.kernel_layers import Inputs, Kernels, hidden_states
from minstate.kernels.cpu.functions import append_kv, paged_attention, rms_norm, silu_mul
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch

KERNELS = Kernels(rms_norm, append_kv, paged_attention, silu_mul)


class CpuRunner:
    """Forward passes of one model over one pool."""

    def __init__(self, model: Model, pool: KVPool):
        self.model, self.pool = model, pool

    @torch.inference_mode()
    def logits(self, batch: RaggedBatch) -> torch.Tensor:
        """Logits `[R, vocab]` of the batch's `logit_rows`."""
        inputs = Inputs(*(getattr(batch, name).int().contiguous() for name in Inputs._fields))
        return self.model.lm_head(hidden_states(self.model, self.pool, inputs, KERNELS)[batch.logit_rows])
