"""Attention by the Triton kernels in `minstate/kernels/`, with the same interface as `attention.TorchAttention`.

Tests run it without a GPU, slowly, in Triton's interpreter: set `TRITON_INTERPRET=1` before triton is imported.
"""

import torch

from minstate.kernels.paged_attention import paged_attention
from minstate.kernels.tiles import busy_programs, split_count
from minstate.kv_int8 import store
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch


class TritonAttention:
    """Attention of one ragged batch over the pool's pages, on the pool's device.

    The number of splits is chosen here, once per forward pass, from the batch as it lies on the host, so the host never
    waits for the device. The kernels read the exact lengths on the device.
    """

    def __init__(self, pool: KVPool, batch: RaggedBatch):
        device = pool.kv.device
        self.pool = pool
        self.sequences = len(batch.context_len)
        self.max_queries = int(batch.query_start.diff().max())
        self.max_context = int(batch.context_len.max())
        names = ("slots", "query_start", "context_len", "page_table")
        self.slots, *self.where = (getattr(batch, name).to(device, non_blocking=True) for name in names)
        cuda = device.type == "cuda"
        self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store k, v `[T, H_kv, D]` in the batch's slots; return softmax(q kᵀ / √D) v `[T, H, D]` of q `[T, H, D]`."""
        kv = self.pool.kv[layer]  # [2, H_kv, slots, width]
        store(kv[0], self.slots, k)
        store(kv[1], self.slots, v)
        programs = busy_programs(
            tuple(q.shape), q.dtype, k.shape[1], sequences=self.sequences, max_queries=self.max_queries
        )
        return paged_attention(
            q,
            kv,
            *self.where,
            page_size=self.pool.page_size,
            max_queries=self.max_queries,
            splits=split_count(programs, self.max_context, self.multiprocessors),
        )
