"""Attention of a ragged batch over paged keys and values: one kernel for prefill, decode and verification.

The formula. A *row* is one query token of one head. Let s_j be the score of key j, for the keys that the row may read:

    s_j = log2(e) / √D · (q · k_j)
    o   = Σ_j 2^{s_j} · v_j / Σ_j 2^{s_j}

That is a softmax, written to base 2 because exp2 is what the hardware computes. A program reads the keys in tiles. Over
the tiles so far it keeps the maximum m = max_j s_j, the weight w = Σ_j 2^{s_j − m}, and the accumulator
a = Σ_j 2^{s_j − m} · v_j. A further tile may raise the maximum, to m'. Then 2^{m − m'} rescales the old sums:

    w ← 2^{m − m'} · w + Σ_j 2^{s_j − m'}              with j over the keys of the new tile
    a ← 2^{m − m'} · a + Σ_j 2^{s_j − m'} · v_j
    m ← m'

After the last tile o = a / w. So the scores are never stored ([FlashAttention](https://arxiv.org/abs/2205.14135)).

Which rows. The G query heads that share a KV head ([GQA](https://arxiv.org/abs/2305.13245)) read the same keys. So the
rows of a sequence, for one KV head, are its query tokens times those G heads: a decode has G rows, the verification of
7 drafted tokens has 8 · G, a prefill chunk has thousands. Rows are cut into tiles of ROWS, and a program works on one
tile. It finds the sequence of its tile by bisection in `query_start`: the tiles of sequence b begin at
number ⌊query_start[b] · G / ROWS⌋ + b, which leaves room for at least as many tiles as the sequence needs. So the host
computes the size of the grid from the numbers of tokens and sequences alone.

Which keys. A program looks up the page of each key by itself. So KEYS, the keys of a tile, need not equal the page
size, and a tile may span pages. This is how [PagedAttention](https://arxiv.org/abs/2309.06180) reads K/V.

In 8 bits each D numbers are followed by their scale, which multiplies them when they are read (`minstate/kv_int8.py`).

Which split. Several programs can share the keys of one row; `merge_splits.py` says why, and merges their outputs.
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
    """The last sequence whose tiles begin at `tile` or before."""
    low = 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins_later = tl.load(query_start + middle) * GROUP // ROWS + middle > tile
        low = tl.where(begins_later, low, middle)
        high = tl.where(begins_later, middle, high)
    return low


@triton.jit
def _vectors(rows_at, read, dtype: tl.constexpr, HEAD_DIM: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr):
    """Keys or values at `rows_at`, zeros where they are not to be read."""
    dim = tl.arange(0, WIDTH)
    x = tl.load(rows_at[:, None] + dim[None, :], mask=read[:, None] & (dim < HEAD_DIM)[None, :], other=0)
    if ROW > HEAD_DIM:
        scale = tl.load((rows_at + HEAD_DIM).to(tl.pointer_type(tl.float32)), mask=read, other=0.0)
        x = (x.to(tl.float32) * scale[:, None]).to(dtype)
    return x


@triton.jit
def _read_keys(
    q, m, w, a, keys, values, pages, first, end, position, scale,
    HEAD_DIM: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """m, w and a after one more tile of keys, which begins at `first`."""
    key = first + tl.arange(0, KEYS)
    page = tl.load(pages + key // PAGE_SIZE, mask=key < end, other=0).to(tl.int64)
    at = (page * PAGE_SIZE + key % PAGE_SIZE) * ROW
    # Slots beyond `end` were never written and may hold NaN. A weight of 0 would not help, because 0 · NaN is NaN.
    k = _vectors(keys + at, key < end, q.dtype, HEAD_DIM, ROW, WIDTH)
    v = _vectors(values + at, key < end, q.dtype, HEAD_DIM, ROW, WIDTH)
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        s = tl.where((key < end)[None, :] & (key[None, :] <= position[:, None]), s, float("-inf"))
    new_m = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - new_m[:, None])
    rescale = tl.exp2(m - new_m)
    a = tl.dot(p.to(v.dtype), v, a * rescale[:, None], input_precision="ieee")
    return new_m, w * rescale + tl.sum(p, 1), a


@triton.jit
def _read_split(
    q, keys, values, pages, first, end, position, read_by_all, scale,
    HEAD_DIM: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """m, w and a over the keys from `first` to `end`. Every row of the tile may read the keys below `read_by_all`."""
    m = tl.full([ROWS], LOWEST, tl.float32)
    w = tl.zeros([ROWS], tl.float32)
    a = tl.zeros([ROWS, WIDTH], tl.float32)
    if ROWS >= 64:  # so many rows are bound by arithmetic, so they skip the mask where every row reads the whole tile
        unmasked = tl.maximum(first, tl.minimum(end, read_by_all) // KEYS * KEYS)
        for at in range(first, unmasked, KEYS):
            m, w, a = _read_keys(
                q, m, w, a, keys, values, pages, at, end, position, scale, HEAD_DIM, ROW, WIDTH, PAGE_SIZE, KEYS, False
            )  # fmt: skip
        first = unmasked
    for at in range(first, end, KEYS):
        m, w, a = _read_keys(
            q, m, w, a, keys, values, pages, at, end, position, scale, HEAD_DIM, ROW, WIDTH, PAGE_SIZE, KEYS, True
        )  # fmt: skip
    return m, w, a


# query_start, context_len and page_table are parts of a flat tensor (`minstate.gpu.input_views`), so they begin at any
# address. The kernel reads them number by number: specialised on what divides their addresses, it would be compiled
# several times over, and would not be faster.
@triton.jit(do_not_specialize=["query_start", "context_len", "page_table", "sequences"])
def attention_kernel(
    q_at, q_stride, kv, slots, out_at, lse_at, query_start, context_len, page_table, table_stride, sequences, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, KV head, split): the output of its rows over its split of the keys."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last rows of a prompt read most keys, so they start first
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = _find_sequence(query_start, tile, sequences, GROUP, ROWS)
    first_token = tl.load(query_start + sequence)
    rows = (tl.load(query_start + sequence + 1) - first_token) * GROUP
    first_row = (tile - (first_token * GROUP // ROWS + sequence)) * ROWS
    if first_row >= rows:  # the grid is an upper bound, so some tiles have no rows
        return
    row = first_row + tl.arange(0, ROWS)
    dim = tl.arange(0, WIDTH)
    token = (first_token + row // GROUP).to(tl.int64)
    head = kv_head * GROUP + row % GROUP
    in_bounds = (row < rows)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(q_at + (token * q_stride + head * HEAD_DIM)[:, None] + dim[None, :], mask=in_bounds, other=0.0)

    context = tl.load(context_len + sequence)
    history = context - rows // GROUP  # tokens that have K/V from earlier batches
    position = history + row // GROUP
    readable = tl.minimum(context, history + (first_row + ROWS - 1) // GROUP + 1)  # keys that the last row may read
    split_keys = tl.cdiv(tl.cdiv(readable, KEYS), SPLITS) * KEYS
    first = split * split_keys
    end = tl.minimum(readable, first + split_keys)
    keys = kv + kv_head.to(tl.int64) * slots * ROW
    values = keys + tl.cast(slots, tl.int64) * KV_HEADS * ROW
    pages = page_table + sequence.to(tl.int64) * table_stride
    m, w, a = _read_split(
        q, keys, values, pages, first, end, position, history + first_row // GROUP + 1, scale,
        HEAD_DIM, ROW, WIDTH, PAGE_SIZE, ROWS, KEYS,
    )  # fmt: skip

    index = (token * HEADS + head) * SPLITS + split
    saw_no_key = w == 0  # its lse becomes −∞, and `merge_splits` then ignores its output
    w = tl.where(saw_no_key, 1, w)
    tl.store(out_at + index[:, None] * HEAD_DIM + dim[None, :], a / w[:, None], mask=in_bounds & ~saw_no_key[:, None])
    if SPLITS > 1:
        tl.store(lse_at + index, tl.where(saw_no_key, float("-inf"), m + tl.log2(w)), mask=row < rows)


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
    """softmax(q kᵀ / √D) v `[T, H, D]` of q `[T, H, D]`, causal among a sequence's own query tokens.

    kv           `[2, H_kv, slots, D]`, or D + 4 in 8 bits, contiguous: a layer of the pool, with the batch's own K/V
    query_start  `[B + 1]` int32, context_len `[B]` int32, page_table `[B, P]` int32: as in `RaggedBatch`
    max_queries  query tokens of the sequence that has most; to read it off the device, the host would have to wait
    splits       how many programs share the keys of a row, a power of 2: see `split_count`
    """
    tokens, heads, head_dim = q.shape
    _, kv_heads, slots, row = kv.shape
    group = heads // kv_heads
    assert kv.is_contiguous() and q.stride()[1:] == (head_dim, 1), "the heads of a token lie side by side"
    rows, keys, warps, stages = tile_sizes(head_dim, q.dtype, max_queries * group)
    out_dtype = q.dtype if splits == 1 else torch.float32
    out = q.new_empty(tokens, heads, splits, head_dim, dtype=out_dtype)
    lse = q.new_empty(tokens, heads, splits, dtype=torch.float32)
    sequences = len(context_len)
    attention_kernel[tokens * group // rows + sequences, kv_heads, splits](
        q, q.stride(0), kv, slots, out, lse, query_start, context_len, page_table, page_table.stride(0), sequences,
        math.log2(math.e) / math.sqrt(head_dim), heads, kv_heads, head_dim, row, width_of(head_dim), page_size, splits,
        rows, keys, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out[:, :, 0] if splits == 1 else merge_splits(out, lse, q.dtype)
