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


# %% two-machines-tiles: the tiles of a launch
# A sequence with r = queries · G rows needs ⌈r / ROWS⌉ tiles. The grid's bound needs only the sum of all lengths.
def tiles(queries: list[int], group: int, rows: int) -> tuple[int, int]:
    launched = sum(queries) * group // rows + len(queries)
    busy = sum(-(-count * group // rows) for count in queries)
    return launched, launched - busy


def cases(random):
    yield [1, 8, 40], 2, 32
    yield [1], 4, 16
    yield [16], 1, 16
    yield [17], 1, 16
    yield [], 4, 16
    yield [1] * 64, 4, 16
    for _ in range(8):
        queries = [random.choice([1, 1, 8, 40, 512]) for _ in range(random.randint(1, 9))]
        yield queries, random.choice([1, 2, 3, 4, 8]), random.choice([16, 32, 64, 128])


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
