"""The one seam between model and pages: store a batch's keys and values in their slots, then attend over pages.

A backend is built once a forward pass, and called once a layer. `TorchAttention` is the backend for a CPU, and the
reference for every other.

Attention is a weighted sum, so a query may read its keys in parts and in any order. Each part gives an output and the
log-sum-exp of its scores, which is the part's weight when the outputs are merged, as in
[FlashAttention](https://arxiv.org/abs/2205.14135). So the keys of a sequence are read where they lie:

    runs of adjacent pages      are slices of the pool, `kv[layer, 0, :, start:end]`: one part each, nothing is copied
    short runs, if several      are gathered into one buffer first, because every part costs a call of its own
    the batch's own tokens      are read from k and v with a causal mask; so no other part needs a mask
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from minstate.paged_kv import KVPool, page_runs
from minstate.ragged_batch import RaggedBatch

SHORT_RUN = 400  # tokens: a shorter run is cheaper to copy than to attend to by itself
LONG_RUN = 1024  # tokens: from here on, few queries read a run in two halves, so that all cores are busy to the end
FEW_QUERIES = 16

# softmax(q kᵀ / √D) v of [B, H, queries, D], and the log-sum-exp [B, H, queries] of the scores, which
# F.scaled_dot_product_attention computes too and keeps to itself.
flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Run(NamedTuple):
    """Keys that lie side by side in the pool: slots `start` to `end`, exclusive, to be read in equal `cuts`."""

    start: int
    end: int
    cuts: int

    @property
    def tokens(self) -> int:
        return self.end - self.start


class Partial(NamedTuple):
    """What some of the keys say to each query row."""

    out: torch.Tensor  # [H_kv, cuts, rows, D]
    lse: torch.Tensor  # [H_kv, cuts, rows] log of the sum of exp(score), in float32 also for bfloat16


@dataclass(frozen=True)
class Span:
    """One sequence of the batch: its query tokens, and where the keys lie that they read."""

    rows: slice
    runs: list[Run]
    gathered: torch.Tensor  # [P] int32, the pages of short runs
    gathered_tokens: int
    causal: bool  # the queries read each other; a single one is read from the pool, where it has just been written


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
        most = max(len(span.gathered) for span in self.spans)
        self.stretch = pool.kv.new_empty(2, kv_heads, most, pool.page_size, head_dim)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store k, v `[T, H_kv, D]` in the batch's slots; return softmax(q kᵀ / √D) v `[T, H, D]` of q `[T, H, D]`."""
        kv = self.pool.kv[layer]  # [2, H_kv, slots, D]
        kv[0].index_copy_(1, self.slots, k.transpose(0, 1))
        kv[1].index_copy_(1, self.slots, v.transpose(0, 1))
        out = torch.empty_like(q)
        for span in self.spans:
            # A KV head serves a group of query heads: [queries, H, D] → [H_kv, group, queries, D].
            queries = q[span.rows].unflatten(1, (k.shape[1], -1)).permute(1, 2, 0, 3)
            rows = queries.flatten(1, 2)
            parts = [_attend(rows, kv[:, :, start:end], cuts) for start, end, cuts in span.runs]
            if span.gathered_tokens:
                parts.append(_attend(rows, self._gather(kv, span)))
            if span.causal:
                parts.append(_attend_causally(queries, k[span.rows].transpose(0, 1), v[span.rows].transpose(0, 1)))
            out[span.rows] = merge(parts).view(queries.shape).permute(2, 0, 1, 3).flatten(1, 2)
        return out

    def _gather(self, kv: torch.Tensor, span: Span) -> torch.Tensor:
        """Copy short runs together `[2, H_kv, tokens, D]`, into memory that all layers use."""
        stretch = self.stretch[:, :, : len(span.gathered)]
        torch.index_select(kv.unflatten(2, (-1, self.pool.page_size)), 2, span.gathered, out=stretch)
        return stretch.flatten(2, 3)[:, :, : span.gathered_tokens]


def merge(parts: list[Partial]) -> torch.Tensor:
    """What all keys say `[H_kv, rows, D]`, from what parts of them say: Σ exp(lse) out / Σ exp(lse)."""
    if len(parts) == 1 and parts[0].out.shape[1] == 1:
        return parts[0].out[:, 0]
    weight = torch.cat([part.lse for part in parts], dim=1).softmax(dim=1)
    out = torch.cat([part.out for part in parts], dim=1)
    return (weight[..., None] * out).sum(dim=1).to(out.dtype)


def _attend(rows: torch.Tensor, kv: torch.Tensor, cuts: int = 1) -> Partial:
    """All of rows `[H_kv, rows, D]` read all of kv `[2, H_kv, tokens, D]`."""
    k, v = kv.unflatten(2, (cuts, -1))  # [H_kv, cuts, tokens / cuts, D] each
    return Partial(*flash_attention(rows[:, None].expand(-1, cuts, -1, -1), k, v))


def _attend_causally(queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Partial:
    """Queries `[H_kv, group, queries, D]` read k, v `[H_kv, queries, D]`, each up to itself."""
    shape = queries.shape  # k and v are expanded, not copied: the heads of a group read the same memory
    out, lse = flash_attention(queries, k[:, None].expand(shape), v[:, None].expand(shape), is_causal=True)
    return Partial(out.flatten(1, 2)[:, None], lse.flatten(1, 2)[:, None])


def _span(rows: slice, context: int, pages: torch.Tensor, page_size: int) -> Span:
    queries = rows.stop - rows.start
    assert queries > 0, "a sequence takes part in a batch with at least one query token"
    to_read = context - queries if queries > 1 else context
    runs = _runs(pages, to_read, page_size)
    short = [run for run in runs if run.tokens < SHORT_RUN]
    if len(short) > 1:
        runs = [run for run in runs if run.tokens >= SHORT_RUN]
    else:
        short = []
    if queries <= FEW_QUERIES:
        runs = [piece for run in runs for piece in _halved(run)]
    gathered = [page for run in short for page in range(run.start // page_size, -(-run.end // page_size))]
    tokens = sum(run.tokens for run in short)
    return Span(rows, runs, torch.tensor(gathered, dtype=torch.int32), tokens, causal=queries > 1)


def _runs(pages: torch.Tensor, tokens: int, page_size: int) -> list[Run]:
    """Where the first `tokens` tokens of a page table's row lie."""
    runs = []
    for first, end in page_runs(pages[: -(-tokens // page_size)]):
        here = min(tokens, (end - first) * page_size)
        runs.append(Run(first * page_size, first * page_size + here, cuts=1))
        tokens -= here
    return runs


def _halved(run: Run) -> list[Run]:
    """A long run in two equal cuts, and the token that an odd one leaves over."""
    if run.tokens < LONG_RUN:
        return [run]
    if run.tokens % 2:
        return [Run(run.start, run.end - 1, cuts=2), Run(run.end - 1, run.end, cuts=1)]
    return [Run(run.start, run.end, cuts=2)]
