"""The one seam between model and pages: write a batch's keys and values into their slots, then attend over pages.

A backend is prepared once a forward pass, and then called once a layer. This is the torch backend, for a CPU; it is the
reference for every other.

Sequences usually own long runs of adjacent pages, and a run is a slice of the pool: `kv[layer, 0, :, start:end]`. Where
a sequence's tokens lie in one run, attention reads that slice and nothing is copied. Where they lie in several, their
pages are first gathered into one stretch of memory, one layer at a time: all layers use the same stretch.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from minstate.batch import RaggedBatch
from minstate.paged_kv import KVPool, page_runs


@dataclass(frozen=True)
class _Span:
    """What one sequence contributes to the batch: its query rows, and the pages that they read."""

    rows: slice
    context: int  # tokens to read
    first_slot: int | None  # where they begin, if the pages are one run; None if they have to be gathered
    pages: torch.Tensor  # [P] int32
    mask: torch.Tensor | None  # [queries, context] True where a query may read; None where all may


class TorchAttention:
    """Attention of one ragged batch over the pool's pages. Grouped heads (GQA, arXiv 2305.13245) share their keys."""

    def __init__(self, pool: KVPool, batch: RaggedBatch):
        self.pool, self.slots = pool, batch.slots
        self.spans = [
            _span(slice(*rows), context, pages, pool.page_size)
            for rows, context, pages in zip(
                pairwise(batch.query_start.tolist()), batch.context_len.tolist(), batch.page_table, strict=True
            )
        ]
        _, _, kv_heads, _, head_dim = pool.kv.shape
        most = max((len(span.pages) for span in self.spans if span.first_slot is None), default=0)
        self.gathered = pool.kv.new_empty(2, kv_heads, most, pool.page_size, head_dim)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store k, v `[T, H_kv, D]` in the batch's slots; return softmax(q kᵀ / √D) v `[T, H, D]` of q `[T, H, D]`."""
        keys, values = self.pool.kv[layer]  # [H_kv, slots, D] each
        keys.index_copy_(1, self.slots, k.transpose(0, 1))
        values.index_copy_(1, self.slots, v.transpose(0, 1))
        out = torch.empty_like(q)
        for span in self.spans:
            attended = F.scaled_dot_product_attention(
                q[span.rows].transpose(0, 1)[None],  # [1, H, queries, D]
                self._read(keys, span, self.gathered[0])[None],  # [1, H_kv, context, D]
                self._read(values, span, self.gathered[1])[None],
                attn_mask=span.mask,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            out[span.rows] = attended[0].transpose(0, 1)
        return out

    def _read(self, cache: torch.Tensor, span: _Span, gathered: torch.Tensor) -> torch.Tensor:
        """One sequence's keys or values `[H_kv, context, D]`."""
        if span.first_slot is not None:
            return cache[:, span.first_slot : span.first_slot + span.context]
        pages = cache.unflatten(1, (-1, self.pool.page_size))
        torch.index_select(pages, 1, span.pages, out=gathered[:, : len(span.pages)])
        return gathered.flatten(1, 2)[:, : span.context]


def _span(rows: slice, context: int, pages: torch.Tensor, page_size: int) -> _Span:
    pages = pages[: -(-context // page_size)]
    adjacent = len(page_runs(pages.tolist())) == 1
    queries = rows.stop - rows.start
    last_readable = torch.arange(context - queries, context)
    mask = torch.arange(context) <= last_readable[:, None] if queries > 1 else None
    return _Span(rows, context, int(pages[0]) * page_size if adjacent else None, pages, mask)
