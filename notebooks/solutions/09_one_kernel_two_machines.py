"""Solutions to the exercises of 09 · One kernel, two machines. Each section runs behind the cell it names."""

# %% two-machines-16: an online log-sum-exp, in C++
# The softmax step without a: Σ 2^s = 2^m w, so its logarithm is m + log2 w. With m = −∞ at the beginning, the first
# score shrinks a sum of nothing by 2^−∞ = 0. The NaN behind the scores is never read, because the loop ends before it.
LOG_SUM = r"""
#include <cmath>

extern "C" float log_sum(const float* s, int count) {
    float m = -INFINITY, w = 0;
    for (int i = 0; i < count; i++) {
        const float highest = std::fmax(m, s[i]);
        w = w * std::exp2(m - highest) + std::exp2(s[i] - highest);
        m = highest;
    }
    return m + std::log2(w);
}
"""


# %% two-machines-30: an online log-sum-exp, in Triton
# The softmax step without a: Σ 2^s = 2^m w, so its logarithm is m + log2 w. A masked load says itself what stands in
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


# %% two-machines-48: ⊕ as a kernel
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
