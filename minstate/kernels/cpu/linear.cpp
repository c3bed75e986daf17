// y = x W^T + b, for few rows of x: as fast as W can be read from memory.
//
//     y[m][n] = b[n] + sum over k of x[m][k] * W[n][k]
//
// A step of decoding uses each weight once. So W is read once, in the order in which it lies in memory, and everything
// else has to fit beside it. W is packed, once, into panels of PANEL = 2 vectors of outputs:
//
//     panels[n / PANEL][k / STEP][n % PANEL][k % STEP]
//
// STEP is 2 where the CPU has an instruction that multiplies pairs of bfloat16 and adds both products to a float32. It
// is 1 otherwise. For each step, the two vectors of a panel are multiplied by x[m][k] and added to the sums of row m,
// which stay in registers. A block of 6 rows has 12 vectors of sums, and AVX2 has 16 registers; AVX-512 has 32, for
// blocks of 12. Up to three rows read two panels at once instead, because an addition takes several cycles, and more
// sums are then under way.
//
// Each sum is taken in the order of k, whatever the block. So a row has the same bits, whichever rows stand beside it.
#include "vectors.h"
#include <algorithm>
#include <type_traits>

constexpr int PANEL = 2 * LANES;
constexpr int AHEAD = 2048;  // bytes
constexpr int BLOCK_ROWS = LANES == 16 ? 12 : 6;
// From so many rows on, AVX2 widens a panel of bfloat16 once; before, at each block of rows. With AVX-512 blocks have
// more rows, and a widened panel would not fit into the first cache.
constexpr int MANY_ROWS = LANES == 16 ? 1 << 30 : 12;

template <class W>
constexpr int STEP = std::is_same_v<W, bfloat16> && PAIRS ? 2 : 1;

// R rows times P panels: out[r][p * PANEL ...]. Not inlined: in a larger function the compiler runs out of registers.
template <int R, int P, class X, class W, class T>
__attribute__((noinline)) static void block(const X* x, int K, const W* panel, const float* bias, T* out,
                                            long out_stride, int width) {
    constexpr int S = STEP<X>;
    vec total[R][2 * P];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2 * P; i++) total[r][i] = bias ? load(bias + i * LANES) : vec{};
    for (int k = 0; k < K; k += S) {
        // Lines of cache that will be needed soon: the hardware does not foresee that the next panel follows.
        for (int i = 0; i < S * P; i++)
            __builtin_prefetch((const char*)(panel + (i / S * (long)K + k) * PANEL) + AHEAD + i % S * 64);
        typename Factors<S>::type w[2 * P];
        for (int i = 0; i < 2 * P; i++)
            w[i] = load_factors<S>(panel + (i / 2 * (long)K + k) * PANEL + i % 2 * LANES * S);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2 * P; i++) total[r][i] = add_products(total[r][i], w[i], x + r * (long)K + k);
    }
    for (int r = 0; r < R; r++) {
        T row[2 * P * LANES];
        for (int i = 0; i < 2 * P; i++) store(row + i * LANES, total[r][i]);
        std::copy_n(row, width, out + r * out_stride);
    }
}

// A block of `wanted` rows, at most R.
template <int R, int P, class X, class W, class T>
static void block_of(int wanted, const X* x, int K, const W* panel, const float* bias, T* out, long N, int width) {
    if (wanted == R) block<R, P>(x, K, panel, bias, out, N, width);
    else if constexpr (R > 1) block_of<R - 1, P>(wanted, x, K, panel, bias, out, N, width);
}

template <int P, class X, class W, class T>
static void rows(const X* x, int M, int K, const W* panel, const float* bias, T* out, long N, int width) {
    constexpr int MOST = P == 1 ? BLOCK_ROWS : 3;
    const int blocks = std::max(1, (M + MOST - 1) / MOST), equal = std::max(1, (M + blocks - 1) / blocks);
    for (int m = 0; m < M; m += equal)
        block_of<MOST, P>(std::min(equal, M - m), x + (long)m * K, K, panel, bias, out + m * N, N, width);
}

// x [M, K], panels as above, bias [N rounded up to whole panels] or null, out [M, N].
template <class X, class W>
static void linear(const X* x, const W* panels, const float* bias, W* out, int M, int K, int N) {
    const int pairs = (N + 2 * PANEL - 1) / (2 * PANEL);
    const bool widens = !std::is_same_v<X, W> && M >= MANY_ROWS;
#pragma omp parallel
    {
        Floats widened(widens ? (size_t)K * PANEL : 0);
#pragma omp for schedule(dynamic)
        for (int pair = 0; pair < pairs; pair++) {
            const int n = pair * 2 * PANEL, width = std::min(2 * PANEL, N - n);
            if (M <= 3 && width > PANEL) {
                rows<2>(x, M, K, panels + (long)n * K, bias ? bias + n : nullptr, out + n, N, width);
                continue;
            }
            for (int i = n; i < n + width; i += PANEL) {
                const W* panel = panels + (long)i * K;
                const float* own_bias = bias ? bias + i : nullptr;
                const int own_width = std::min(PANEL, N - i);
                if constexpr (!std::is_same_v<X, W>)
                    if (widens) {
                        for (int k = 0; k < K * PANEL; k += LANES) store(widened.data() + k, load(panel + k));
                        rows<1>(x, M, K, widened.data(), own_bias, out + i, N, own_width);
                        continue;
                    }
                rows<1>(x, M, K, panel, own_bias, out + i, N, own_width);
            }
        }
    }
}

extern "C" {
int panel_width() { return PANEL; }
int bfloat16_step() { return STEP<bfloat16>; }
void linear_float32(const float* x, const float* w, const float* b, float* out, int M, int K, int N) {
    linear(x, w, b, out, M, K, N);
}
void linear_bfloat16(const bfloat16* x, const bfloat16* w, const float* b, bfloat16* out, int M, int K, int N) {
    if constexpr (PAIRS) return linear(x, w, b, out, M, K, N);
    Floats wide((size_t)M * K);
    for (int i = 0; i < M * K; i++) wide.data()[i] = one(x + i);
    linear((const float*)wide.data(), w, b, out, M, K, N);
}
}
