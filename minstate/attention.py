"""The one seam between model and pages: write a batch's keys and values into their slots, then attend over pages.

A backend is prepared once a forward pass, and then called once a layer. This is the torch backend, for a CPU; it is the
reference for every other.

Sequences usually own long runs of adjacent pages, and a run is a slice of the pool: `kv[layer, 0, :, start:end]`. Where
a sequence's tokens lie in one run, nothing is copied. Where they lie in several, a few query tokens (decode) are
multiplied with each run in turn and only the *scores* are joined, which are small; many query tokens (prefill) are
worth one copy of the layer's keys and values.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from minstate.batch import RaggedBatch
from minstate.paged_kv import KVPool, page_runs

FEW_QUERIES = 8  # query tokens up to which scores are joined instead of keys
MANY_RUNS = 32  # runs from which one copy costs less than a matrix product for each


@dataclass(frozen=True)
class _Span:
    """What one sequence contributes to the batch: its query rows, and the slots that they may read."""

    rows: slice
    runs: list[tuple[int, int]]  # slots, start and end, of each run of adjacent pages
    mask: torch.Tensor | None  # [queries, context] True where a query may read; None where all may


class TorchAttention:
    """Attention of one ragged batch over the pool's pages. Grouped heads (GQA, arXiv 2305.13245) share their keys."""

    def __init__(self, pool: KVPool, batch: RaggedBatch):
        self.pool, self.slots = pool, batch.slots
        self.spans = [
            _span(slice(*rows), context, pages, pool.page_size)
            for rows, context, pages in zip(
                pairwise(batch.query_start.tolist()), batch.context_len.tolist(), batch.page_table.tolist(), strict=True
            )
        ]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store k, v `[T, H_kv, D]` in the batch's slots; return attention `[T, H, D]` of q `[T, H, D]`."""
        keys, values = self.pool.kv[layer]  # [H_kv, slots, D] each
        keys.index_copy_(1, self.slots, k.transpose(0, 1))
        values.index_copy_(1, self.slots, v.transpose(0, 1))
        out = torch.empty_like(q)
        for span in self.spans:
            out[span.rows] = _attend(q[span.rows], keys, values, span)
        return out


def _span(rows: slice, context: int, pages: list[int], page_size: int) -> _Span:
    used = pages[: -(-context // page_size)]
    runs = [(start * page_size, end * page_size) for start, end in page_runs(used)]
    unused = len(used) * page_size - context  # slots of the last page that hold nothing yet
    runs[-1] = (runs[-1][0], runs[-1][1] - unused)
    queries = rows.stop - rows.start
    if queries == 1:
        return _Span(rows, runs, None)
    last_readable = torch.arange(context - queries, context)
    return _Span(rows, runs, torch.arange(context) <= last_readable[:, None])


def _attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: _Span) -> torch.Tensor:
    """softmax(q kᵀ / √D) v of one sequence: q `[Q, H, D]`, keys and values `[H_kv, slots, D]` → `[Q, H, D]`."""
    if 1 < len(span.runs) < MANY_RUNS and q.shape[0] <= FEW_QUERIES:
        return _attend_by_runs(q, keys, values, span)
    k, v = (
        torch.cat([cache[:, start:end] for start, end in span.runs], dim=1)
        if len(span.runs) > 1
        else cache[:, span.runs[0][0] : span.runs[0][1]]
        for cache in (keys, values)
    )
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], attn_mask=span.mask, enable_gqa=q.shape[1] != k.shape[0]
    )
    return out[0].transpose(0, 1)


def _attend_by_runs(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: _Span) -> torch.Tensor:
    """The same, run by run. A key head's query heads become rows of one matrix, so that its keys are read once."""
    queries, heads, head_dim = q.shape
    kv_heads = keys.shape[0]
    grouped = (q / math.sqrt(head_dim)).transpose(0, 1).reshape(kv_heads, -1, head_dim)  # [H_kv, H/H_kv · Q, D]
    scores = torch.cat([grouped @ keys[:, start:end].transpose(1, 2) for start, end in span.runs], dim=-1)
    if span.mask is not None:
        scores = scores.unflatten(1, (-1, queries)).masked_fill(~span.mask, -math.inf).flatten(1, 2)
    shares = torch.softmax(scores, dim=-1).split([end - start for start, end in span.runs], dim=-1)
    parts = [share @ values[:, start:end] for share, (start, end) in zip(shares, span.runs, strict=True)]
    return torch.stack(parts).sum(0).reshape(heads, queries, head_dim).transpose(0, 1)
