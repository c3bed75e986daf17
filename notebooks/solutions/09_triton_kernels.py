"""Solutions to the exercises of 09 · Triton kernels. Each section runs behind the cell it names."""


# %% triton-kernels-10: a masked copy
# One mask for both directions. Without the mask on rows the last program would go on behind the tensor; without the one
# on columns each row would be followed by numbers of the next one, and the last row by what is nobody's.
@triton.jit
def copy_rows_kernel(x_at, out_at, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    at = row * columns + column
    tl.store(out_at + at, tl.load(x_at + at, mask=inside), mask=inside)


# %% triton-kernels-20: an online log-sum-exp
# The softmax step without a: Σ 2^s = 2^m w, so its logarithm is m + log2 w. A masked load may say itself what stands in
# for a score that is not there, and −∞ weighs nothing.
@triton.jit
def log_sum_kernel(s_at, out_at, count, KEYS: tl.constexpr):
    m = tl.full([1], LOWEST, tl.float32)
    w = tl.zeros([1], tl.float32)
    for first in range(0, count, KEYS):
        key = first + tl.arange(0, KEYS)
        s = tl.load(s_at + key, mask=key < count, other=float("-inf"))
        highest = tl.maximum(m, tl.max(s, 0))
        w = w * tl.exp2(m - highest) + tl.sum(tl.exp2(s - highest), 0)
        m = highest
    tl.store(out_at + tl.arange(0, 1), m + tl.log2(w))


# %% triton-kernels-24: page look-up
# Each token looks up its own page, so it does not matter how many pages a block reaches into. The mask keeps both the
# wild id and what lies behind the table from being read.
@triton.jit
def slots_kernel(pages, out_at, count, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    page = tl.load(pages + token // PAGE_SIZE, mask=token < count, other=0)
    tl.store(out_at + token, page * PAGE_SIZE + token % PAGE_SIZE, mask=token < count)


# %% triton-kernels-42: ⊕ as a kernel
# Both weights relative to the higher lse, so that none overflows: the higher one weighs 1, an empty part 2^−∞ = 0. A
# weight of 0 does not make up for NaN, hence the mask on the loads.
@triton.jit
def merge_two_kernel(o_at, lse_at, out_at, HEAD_DIM: tl.constexpr):
    row = tl.program_id(0)
    lse = tl.load(lse_at + row * 2 + tl.arange(0, 2))
    weight = tl.exp2(lse - tl.max(lse, 0))
    at = (row * 2 + tl.arange(0, 2))[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    o = tl.load(o_at + at, mask=(lse > float("-inf"))[:, None], other=0.0)
    merged_o = tl.sum(o * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out_at + row * HEAD_DIM + tl.arange(0, HEAD_DIM), merged_o)
