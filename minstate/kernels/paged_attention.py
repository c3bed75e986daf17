"""Attention of a ragged batch over paged keys and values: one kernel for prefill, decode and verification.

A row is one query token of one head. Row r with scores s_j (over the keys j that it may read) has the output

    o = Σ_j 2^{s_j} v_j / Σ_j 2^{s_j},      s_j = log2(e) / √D · q · k_j

which is a softmax to base 2, since exp2 is what the hardware computes. Keys come in tiles. Of the tiles so far we keep
m = max s_j, w = Σ 2^{s_j − m} and a = Σ 2^{s_j − m} v_j; a new tile, with maximum m' of all so far, gives

    w ← 2^{m − m'} w + Σ 2^{s_j − m'},    a ← 2^{m − m'} a + Σ 2^{s_j − m'} v_j,    m ← m'

and o = a / w in the end: the scores are never stored (FlashAttention, arXiv 2205.14135).

Which rows.  The G query heads that share a KV head (GQA) read the same keys. So the rows of one program are the query
tokens of a sequence times those G heads: a decode step has G rows, checking 7 drafts 8 G, a prompt's chunk thousands,
cut into tiles of ROWS. A tile's sequence is found by bisection in `query_start`: sequence b has at most the tiles from
⌊query_start[b] G / ROWS⌋ + b to that of b + 1, so the grid's size follows from the number of tokens alone.

Which keys.  KEYS is independent of the page size: each key's page is looked up by itself, and a tile may span pages.

Which part of the keys.  Keys can be split among programs; `merge_splits.py` says why, and merges what they give.
"""

import math

import torch
import triton
import triton.language as tl

from minstate.kernels.merge_splits import merge_splits
from minstate.kernels.tiles import tile_sizes, width_of

LOWEST = tl.constexpr(-3.0e38)  # below any score, and finite: −∞ − (−∞) would be NaN


@triton.jit
def _find_sequence(query_start, tile, sequences, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """The last sequence that begins no later than at `tile`."""
    low = 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins_later = tl.load(query_start + middle) * GROUP // ROWS + middle > tile
        low = tl.where(begins_later, low, middle)
        high = tl.where(begins_later, middle, high)
    return low


@triton.jit
def _read_keys(
    q, m, w, a, keys, values, pages, first, end, position, scale,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys, from `first` on: what m, w and a are after it."""
    key = first + tl.arange(0, KEYS)
    dim = tl.arange(0, WIDTH)
    page = tl.load(pages + key // PAGE_SIZE, mask=key < end, other=0).to(tl.int64)
    slot = page * PAGE_SIZE + key % PAGE_SIZE
    at = slot[:, None] * HEAD_DIM + dim[None, :]
    # Beyond `end` nothing was written: what lies there may be NaN, and NaN times a weight of 0 is NaN.
    written = (key < end)[:, None] & (dim < HEAD_DIM)[None, :]
    k = tl.load(keys + at, mask=written, other=0.0)
    v = tl.load(values + at, mask=written, other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        s = tl.where((key < end)[None, :] & (key[None, :] <= position[:, None]), s, float("-inf"))
    highest = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - highest[:, None])
    shrink = tl.exp2(m - highest)
    a = tl.dot(p.to(v.dtype), v, a * shrink[:, None], input_precision="ieee")
    return highest, w * shrink + tl.sum(p, 1), a


# The parts of a flat tensor (`minstate.gpu.Inputs`) begin anywhere, and are read by single numbers: specialised on what
# divides their addresses, one kernel would be compiled several times over, and be none the faster.
@triton.jit(do_not_specialize=["query_start", "context_len", "page_table", "sequences"])
def attention_kernel(
    q_at, q_stride, kv, slots, out_at, lse_at, query_start, context_len, page_table, table_stride, sequences, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, KV head, split): the output of its rows over its part of the keys."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # a prompt's last rows read most keys, and begin first
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = _find_sequence(query_start, tile, sequences, GROUP, ROWS)
    first_token = tl.load(query_start + sequence)
    rows = (tl.load(query_start + sequence + 1) - first_token) * GROUP
    first_row = (tile - (first_token * GROUP // ROWS + sequence)) * ROWS
    if first_row >= rows:  # the grid is an upper bound
        return
    row = first_row + tl.arange(0, ROWS)
    dim = tl.arange(0, WIDTH)
    token = (first_token + row // GROUP).to(tl.int64)
    head = kv_head * GROUP + row % GROUP
    real = (row < rows)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(q_at + (token * q_stride + head * HEAD_DIM)[:, None] + dim[None, :], mask=real, other=0.0)

    context = tl.load(context_len + sequence)
    oldest = context - rows // GROUP  # tokens that were there before this batch
    position = oldest + row // GROUP
    readable = tl.minimum(context, oldest + (first_row + ROWS - 1) // GROUP + 1)  # by the last row: the rest is later
    part = tl.cdiv(tl.cdiv(readable, KEYS), SPLITS) * KEYS
    first = split * part
    end = tl.minimum(readable, first + part)
    keys = kv + kv_head.to(tl.int64) * slots * HEAD_DIM
    values = keys + tl.cast(slots, tl.int64) * KV_HEADS * HEAD_DIM
    pages = page_table + sequence.to(tl.int64) * table_stride
    m = tl.full([ROWS], LOWEST, tl.float32)
    w = tl.zeros([ROWS], tl.float32)
    a = tl.zeros([ROWS, WIDTH], tl.float32)
    if ROWS >= 64:  # arithmetic counts: tiles that every row may read as a whole need no mask on their scores
        unmasked = tl.maximum(first, tl.minimum(end, oldest + first_row // GROUP + 1) // KEYS * KEYS)
        for at in range(first, unmasked, KEYS):
            m, w, a = _read_keys(
                q, m, w, a, keys, values, pages, at, end, position, scale, HEAD_DIM, WIDTH, PAGE_SIZE, KEYS, False
            )  # fmt: skip
        first = unmasked
    for at in range(first, end, KEYS):
        m, w, a = _read_keys(
            q, m, w, a, keys, values, pages, at, end, position, scale, HEAD_DIM, WIDTH, PAGE_SIZE, KEYS, True
        )  # fmt: skip

    place = (token * HEADS + head) * SPLITS + split
    nothing = w == 0  # was there for this row to read; so says an lse of −∞, and its o is not looked at
    w = tl.where(nothing, 1, w)
    tl.store(out_at + place[:, None] * HEAD_DIM + dim[None, :], a / w[:, None], mask=real & ~nothing[:, None])
    if SPLITS > 1:
        tl.store(lse_at + place, tl.where(nothing, float("-inf"), m + tl.log2(w)), mask=row < rows)


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    page_table: torch.Tensor,
    *,
    page_size: int,
    max_queries: int,
    splits: int,
) -> torch.Tensor:
    """softmax(q kᵀ / √D) v of q `[T, H, D]`, causal among a sequence's own query tokens: `[T, H, D]`.

    kv           `[2, H_kv, slots, D]`, contiguous: one layer of the pool; the batch's own K/V are in it already
    query_start  `[B + 1]` int32, context_len `[B]` int32, page_table `[B, P]` int32: as in `RaggedBatch`
    max_queries  query tokens of the sequence that has most; reading it off the device would make the host wait
    splits       parts that the keys are cut into, a power of 2: see `split_count`
    """
    tokens, heads, head_dim = q.shape
    _, kv_heads, slots, _ = kv.shape
    group = heads // kv_heads
    assert kv.is_contiguous() and q.stride()[1:] == (head_dim, 1), "heads lie side by side"
    rows, keys, warps, stages = tile_sizes(head_dim, q.dtype, max_queries * group)
    out_dtype = q.dtype if splits == 1 else torch.float32
    out = q.new_empty(tokens, heads, splits, head_dim, dtype=out_dtype)
    lse = q.new_empty(tokens, heads, splits, dtype=torch.float32)
    sequences = len(context_len)
    attention_kernel[tokens * group // rows + sequences, kv_heads, splits](
        q, q.stride(0), kv, slots, out, lse, query_start, context_len, page_table, page_table.stride(0), sequences,
        math.log2(math.e) / math.sqrt(head_dim), heads, kv_heads, head_dim, width_of(head_dim), page_size, splits,
        rows, keys, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out[:, :, 0] if splits == 1 else merge_splits(out, lse, q.dtype)
