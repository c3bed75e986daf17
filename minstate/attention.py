"""The one seam between model and pages: store a batch's keys and values in their slots, then attend over pages.

A backend is built once a forward pass, and called once a layer. `TorchAttention` is the backend for a CPU, and the
reference for every other.

Attention is a weighted sum, so a query may read its keys in parts and in any order. Each part gives an output and the
log-sum-exp of its scores, which is the part's weight when the outputs are merged, as in
[FlashAttention](https://arxiv.org/abs/2205.14135). So the keys of a sequence are read where they lie:

    runs of adjacent pages      are slices of the pool, `kv[layer, 0, :, start:end]`: one part each, not copied
    short runs, if several      are gathered into one buffer first, because every part costs a call of its own
    the batch's own tokens      are read from k and v with a causal mask; so no other part needs a mask
    a sliding window            is gathered whole, and read with a mask that moves from query to query
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from minstate.kv_int8 import store, vectors
from minstate.paged_kv import KVPool, page_runs
from minstate.ragged_batch import RaggedBatch

SHORT_RUN = 400  # tokens: a shorter run is cheaper to copy than to attend to by itself
LONG_RUN = 1024  # tokens: few queries read a run of this length or more in two halves, so that every core has work
FEW_QUERIES = 16

# Returns softmax(q kᵀ / √D) v `[B, H, queries, D]`, and the log-sum-exp of the scores `[B, H, queries]`. The public
# F.scaled_dot_product_attention computes the log-sum-exp too, but does not return it.
flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    is_causal: bool = False,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by its definition, on any device: for models whose attention the GPU's kernels do not compute."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).mT * (scale or q.shape[-1] ** -0.5)
    if is_causal:
        attn_mask = torch.full(scores.shape[-2:], -torch.inf, device=q.device).triu(1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return (scores.softmax(-1) @ v.to(dtype)).to(q.dtype), scores.logsumexp(-1)


class Run(NamedTuple):
    """Keys side by side in the pool: slots `start` to `end` (exclusive), read in `cuts` parts of equal length."""

    start: int
    end: int
    cuts: int

    @property
    def tokens(self) -> int:
        """How many keys the run holds."""
        return self.end - self.start


class Partial(NamedTuple):
    """Attention of each query row over a part of its keys."""

    out: torch.Tensor  # [H_kv, cuts, rows, D]
    lse: torch.Tensor  # [H_kv, cuts, rows]: the log of the sum of exp(score); float32 also for bfloat16


@dataclass(frozen=True)
class KeyPlan:
    """How one sequence of the batch reads its keys."""

    queries: slice  # the sequence's rows among the batch's query tokens
    runs: list[Run]
    gathered_pages: torch.Tensor  # [P] int32: the pages of short runs, or of a window
    gathered_tokens: int
    causal: bool  # the query tokens also read each other; a single one finds its own key in the pool
    lead: int = 0  # tokens of the first gathered page that lie before the window
    mask: torch.Tensor | None = None  # [queries, gathered tokens] in a window: −inf where a query may not read a key


class TorchAttention:
    """Attention of one ragged batch over the pages of a pool.

    The query heads of a group share one KV head ([GQA](https://arxiv.org/abs/2305.13245)).

    windows  how many keys a query reads at most, in each layer; None: all; no windows at all if not given
    scale    of the scores q · k; None: 1 / √D
    """

    def __init__(
        self, pool: KVPool, batch: RaggedBatch, windows: Sequence[int | None] = (), scale: float | None = None
    ):
        self.pool, self.slots = pool, batch.slots.to(pool.kv.device)
        self.windows, self.scale = windows, scale
        self.attention = flash_attention if pool.kv.is_cpu else plain_attention
        sequences = [
            (slice(*rows), context, pages)
            for rows, context, pages in zip(
                pairwise(batch.query_start.tolist()), batch.context_len.tolist(), batch.page_table, strict=True
            )
        ]
        self.plans = [_plan_keys(*sequence, pool.page_size) for sequence in sequences]  # of layers without a window
        self.windowed = {
            window: [_plan_window(*sequence, pool.page_size, window) for sequence in sequences]
            for window in set(windows)
            if window is not None
        }
        _, _, kv_heads, _, width = pool.kv.shape
        most_pages = max(len(plan.gathered_pages) for plan in sum(self.windowed.values(), self.plans))
        self.gather_buffer = pool.kv.new_empty(2, kv_heads, most_pages, pool.page_size, width)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store k, v `[T, H_kv, D]` in their slots; return softmax(q kᵀ · scale) v `[T, H, D]` of q `[T, H, D]`."""
        kv = self.pool.kv[layer]  # [2, H_kv, slots, width]
        k, v = store(kv[0], self.slots, k), store(kv[1], self.slots, v)
        out = torch.empty_like(q)
        window = self.windows[layer] if self.windows else None
        for plan in self.plans if window is None else self.windowed[window]:
            # A KV head serves a group of query heads: [queries, H, D] → [H_kv, group, queries, D].
            queries = q[plan.queries].unflatten(1, (k.shape[1], -1)).permute(1, 2, 0, 3)
            rows = queries.flatten(1, 2)
            parts = [self._attend(rows, vectors(kv[:, :, start:end], q.dtype), cuts) for start, end, cuts in plan.runs]
            if plan.mask is not None:
                parts.append(self._attend_masked(queries, *vectors(self._gather(kv, plan), q.dtype), plan.mask.to(q)))
            elif plan.gathered_tokens:
                parts.append(self._attend(rows, vectors(self._gather(kv, plan), q.dtype)))
            if plan.causal:
                new_k, new_v = k[plan.queries].transpose(0, 1), v[plan.queries].transpose(0, 1)
                parts.append(self._attend_masked(queries, new_k, new_v))
            out[plan.queries] = merge(parts).view(queries.shape).permute(2, 0, 1, 3).flatten(1, 2)
        return out

    def _gather(self, kv: torch.Tensor, plan: KeyPlan) -> torch.Tensor:
        """Copy pages together, `[2, H_kv, tokens, width]`, into a buffer that all layers use in turn."""
        buffer = self.gather_buffer[:, :, : len(plan.gathered_pages)]
        pages = plan.gathered_pages.to(kv.device)
        torch.index_select(kv.unflatten(2, (-1, self.pool.page_size)), 2, pages, out=buffer)
        return buffer.flatten(2, 3)[:, :, plan.lead : plan.lead + plan.gathered_tokens]

    def _attend(self, rows: torch.Tensor, kv: torch.Tensor, cuts: int = 1) -> Partial:
        """Every row of rows `[H_kv, rows, D]` reads every key of kv `[2, H_kv, tokens, D]`."""
        k, v = kv.unflatten(2, (cuts, -1))  # [H_kv, cuts, tokens / cuts, D] each
        return Partial(*self.attention(rows[:, None].expand(-1, cuts, -1, -1), k, v, scale=self.scale))

    def _attend_masked(
        self, queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
    ) -> Partial:
        """Queries `[H_kv, group, queries, D]` read k, v `[H_kv, keys, D]`: by a mask, or up to their own positions."""
        k, v = (x[:, None].expand(-1, queries.shape[1], -1, -1) for x in (k, v))  # a group's heads read the same memory
        out, lse = self.attention(queries, k, v, is_causal=mask is None, attn_mask=mask, scale=self.scale)
        return Partial(out.flatten(1, 2)[:, None], lse.flatten(1, 2)[:, None])


def merge(parts: list[Partial]) -> torch.Tensor:
    """Attention over all keys `[H_kv, rows, D]`, from attention over parts of them.

    Each part weighs exp(lse), the sum of its exponentiated scores: out = Σ exp(lse_i) · out_i / Σ exp(lse_i).
    """
    if len(parts) == 1 and parts[0].out.shape[1] == 1:
        return parts[0].out[:, 0]
    weight = torch.cat([part.lse for part in parts], dim=1).softmax(dim=1)
    out = torch.cat([part.out for part in parts], dim=1)
    return (weight[..., None] * out).sum(dim=1).to(out.dtype)


def _plan_window(queries: slice, context: int, pages: torch.Tensor, page_size: int, window: int) -> KeyPlan:
    """Gather all keys that some query may read, from the first query's window to the last query itself."""
    if window >= context:
        return _plan_keys(queries, context, pages, page_size)
    positions = torch.arange(context - (queries.stop - queries.start), context)[:, None]
    first = max(0, int(positions[0]) - window + 1)
    keys = torch.arange(first, context)
    is_read = (keys <= positions) & (keys > positions - window)
    return KeyPlan(
        queries,
        runs=[],
        gathered_pages=pages[first // page_size : -(-context // page_size)],
        gathered_tokens=len(keys),
        causal=False,
        lead=first % page_size,
        mask=torch.zeros(is_read.shape).masked_fill(~is_read, -torch.inf),
    )


def _plan_keys(queries: slice, context: int, pages: torch.Tensor, page_size: int) -> KeyPlan:
    """Choose which runs of `pages`, a row of the page table, are read in place, in halves, or gathered."""
    count = queries.stop - queries.start
    assert count > 0, "a sequence takes part in a batch with at least one query token"
    runs = _runs(pages, context - count if count > 1 else context, page_size)
    short = [run for run in runs if run.tokens < SHORT_RUN]
    if len(short) > 1:
        runs = [run for run in runs if run.tokens >= SHORT_RUN]
    else:
        short = []  # a single short run is read in place
    if count <= FEW_QUERIES:
        runs = [piece for run in runs for piece in _halved(run)]
    return KeyPlan(
        queries,
        runs,
        gathered_pages=torch.tensor(
            [page for run in short for page in range(run.start // page_size, -(-run.end // page_size))],
            dtype=torch.int32,
        ),
        gathered_tokens=sum(run.tokens for run in short),
        causal=count > 1,
    )


def _runs(pages: torch.Tensor, tokens: int, page_size: int) -> list[Run]:
    """Where the first `tokens` tokens of a page table's row lie."""
    runs = []
    for first, end in page_runs(pages[: -(-tokens // page_size)].numpy()):
        length = min(tokens, (end - first) * page_size)
        runs.append(Run(first * page_size, first * page_size + length, cuts=1))
        tokens -= length
    return runs


def _halved(run: Run) -> list[Run]:
    """A long run in two equal cuts; if its length is odd, the last token is a run of its own."""
    if run.tokens < LONG_RUN:
        return [run]
    if run.tokens % 2:
        return [Run(run.start, run.end - 1, cuts=2), Run(run.end - 1, run.end, cuts=1)]
    return [Run(run.start, run.end, cuts=2)]
