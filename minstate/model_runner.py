"""Forward passes of one model over one pool of pages, on a CPU or a GPU, of which no turn should harm another."""

import warnings
from traceback import clear_frames
from typing import NamedTuple

import torch

from minstate.attention import TorchAttention
from minstate.errors import BadValue, UnsupportedModel
from minstate.kernel_layers import missing_in_kernels
from minstate.memory import default_pages
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch


class Scores(NamedTuple):
    """What a forward pass computed for one sequence."""

    logits: torch.Tensor  # [rows, vocab], on the model's device: the sampler fetches the rows that it needs
    best: list[int]  # the arg-max of each row; −1 if its logits are NaN or +inf anywhere, or −inf everywhere


class ModelRunner:
    """Owns the pool, and runs the model over it. Raises `UnsupportedModel` where a GPU lacks triton."""

    def __init__(self, model: Model, *, num_pages: int | None, page_size: int, kv_dtype: str | None = None):
        config = model.config
        if kv_dtype not in (None, "int8"):
            raise BadValue(f"kv_dtype must be None, for the model's, or 'int8', not {kv_dtype!r}")
        self.kv_dtype = torch.int8 if kv_dtype else model.dtype
        if num_pages is None:
            num_pages = default_pages(config, self.kv_dtype, model.device, page_size)
        self.model = model
        self.pool = KVPool(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_pages=num_pages,
            page_size=page_size,
            dtype=self.kv_dtype,
            device=model.device,
        )
        self._kernels = self._by_kernels()

    def _by_kernels(self):
        """What runs the model by kernels, if it was built for them and a GPU's kernels compute all that it has."""
        if self.model.kernels == "torch":
            return None
        if self.model.kernels == "cpu":
            from minstate.cpu import CpuRunner

            return CpuRunner(self.model, self.pool)
        try:
            from minstate.gpu import GpuRunner
        except ImportError as error:
            raise UnsupportedModel(f"a GPU needs triton: pip install triton ({error})") from error
        if missing := missing_in_kernels(self.model.config):
            what = f"torch computes this model, more slowly: no kernel for {', '.join(missing)}"
            warnings.warn(what, stacklevel=4)
            return None
        return GpuRunner(self.model, self.pool)

    def logits(self, batch: RaggedBatch) -> torch.Tensor:
        """One forward pass: logits `[R, vocab]` of the batch's `logit_rows`, on the model's device."""
        if self._kernels:
            return self._kernels.logits(batch)
        config = self.model.config
        return self.model.forward(batch, TorchAttention(self.pool, batch, config.windows, config.attention_scale))

    def run(self, batch: RaggedBatch) -> list[Scores | Exception]:
        """For each sequence of the batch: its scores, or the exception that it met.

        The host waits for a GPU in one place only: where it reads the arg-maxes. If the forward pass fails, each
        sequence is tried alone, since nothing else tells which of them is at fault. Slots are then written twice, with
        the same keys and values.
        """
        try:
            logits = self.logits(batch)
            # NaN counts as the highest. Of many bfloat16 numbers torch finds the largest sooner in float32.
            highest, best = logits.to(torch.promote_types(logits.dtype, torch.float32)).max(-1)
            best = best.where(highest.isfinite(), -1).cpu()
            rows = batch.rows_by_sequence()
            return [Scores(own, ids.tolist()) for own, ids in zip(logits.split(rows), best.split(rows), strict=True)]
        except Exception as error:  # noqa: BLE001  it becomes the error of the sequences that meet it again
            clear_frames(error.__traceback__)  # frees what the forward pass still holds: memory may be what it lacked
            if len(batch.context_len) == 1:
                return [error]
            return [self.run(batch.alone(place))[0] for place in range(len(batch.context_len))]
