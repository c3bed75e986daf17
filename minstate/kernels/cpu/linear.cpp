// y = x W^T + b, for few rows of x: as fast as W can be read from memory.
//
//     y[m][n] = b[n] + sum over k of x[m][k] * W[n][k]
//
// A step of decoding uses each weight once. So W is read once, in the order in which it lies in memory, and everything
// else has to fit beside it. W is packed, once, into panels of PANEL = 2 vectors of outputs:
//
//     panels[n / PANEL][k][n % PANEL]
//
// For each k, the two vectors of a panel are multiplied by x[m][k] and added to the sums of row m, which stay in
// registers. A block of 6 rows has 12 vectors of sums, and AVX2 has 16 registers; AVX-512 has 32, for blocks of 12. Up
// to three rows read two panels at once instead: an addition takes several cycles, and more sums are then under way.
//
// Each sum is taken in the order of k, whatever the block. So a row has the same bits, whichever rows stand beside it.
#include "vectors.h"
#include <algorithm>
#include <limits>
#include <vector>

constexpr int PANEL = 2 * LANES;
constexpr int AHEAD = 2048;  // bytes
constexpr bool WIDE = LANES == 16;  // AVX-512
constexpr int BLOCK_ROWS = WIDE ? 12 : 6;
// From so many rows on, widening a panel of bfloat16 once is cheaper than at each block of rows. With AVX-512 a vector
// is widened for 12 rows, and a widened panel would not fit into the first cache.
constexpr int MANY_ROWS = WIDE ? std::numeric_limits<int>::max() : 12;

// R rows times P panels: out[r][p * PANEL ...]. Not inlined: in a larger function the compiler runs out of registers.
template <int R, int P, class W, class T>
__attribute__((noinline)) static void block(const float* x, int K, const W* panel, const float* bias, T* out,
                                            long out_stride, int width) {
    vec total[R][2 * P];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2 * P; i++) total[r][i] = bias ? load(bias + i * LANES) : vec{};
    for (int k = 0; k < K; k++) {
        // One line of cache that will be needed soon: the hardware does not foresee that the next panel follows.
        for (int p = 0; p < P; p++) __builtin_prefetch((const char*)(panel + (p * (long)K + k) * PANEL) + AHEAD);
        vec w[2 * P];
        for (int i = 0; i < 2 * P; i++) w[i] = load(panel + (i / 2 * (long)K + k) * PANEL + i % 2 * LANES);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2 * P; i++) total[r][i] += w[i] * x[r * (long)K + k];
    }
    for (int r = 0; r < R; r++) {
        T row[2 * P * LANES];
        for (int i = 0; i < 2 * P; i++) store(row + i * LANES, total[r][i]);
        std::copy_n(row, width, out + r * out_stride);
    }
}

// A block of `wanted` rows, at most R.
template <int R, int P, class W, class T>
static void block_of(int wanted, const float* x, int K, const W* panel, const float* bias, T* out, long N, int width) {
    if (wanted == R) block<R, P>(x, K, panel, bias, out, N, width);
    else if constexpr (R > 1) block_of<R - 1, P>(wanted, x, K, panel, bias, out, N, width);
}

template <int P, class W, class T>
static void rows(const float* x, int M, int K, const W* panel, const float* bias, T* out, long N, int width) {
    constexpr int MOST = P == 1 ? BLOCK_ROWS : 3;
    const int blocks = std::max(1, (M + MOST - 1) / MOST), equal = std::max(1, (M + blocks - 1) / blocks);
    for (int m = 0; m < M; m += equal)
        block_of<MOST, P>(std::min(equal, M - m), x + (long)m * K, K, panel, bias, out + m * N, N, width);
}

// x [M, K], panels as above, bias [N rounded up to whole panels] or null, out [M, N].
template <class W>
static void linear(const W* x, const W* panels, const float* bias, W* out, int M, int K, int N) {
    std::vector<float> wide((size_t)M * K);
    for (size_t i = 0; i < wide.size(); i++) wide[i] = one(x + i);
    const int pairs = (N + 2 * PANEL - 1) / (2 * PANEL);
#pragma omp parallel
    {
        const size_t widens = sizeof(W) == 2 && M >= MANY_ROWS ? (size_t)K * PANEL : 0;
        Floats widened(widens);
#pragma omp for schedule(dynamic)
        for (int pair = 0; pair < pairs; pair++) {
            const int n = pair * 2 * PANEL, width = std::min(2 * PANEL, N - n);
            if (M <= 3 && width > PANEL) {
                rows<2>(wide.data(), M, K, panels + (long)n * K, bias ? bias + n : nullptr, out + n, N, width);
                continue;
            }
            for (int i = n; i < n + width; i += PANEL) {
                const W* panel = panels + (long)i * K;
                const float* own_bias = bias ? bias + i : nullptr;
                const int own_width = std::min(PANEL, N - i);
                for (size_t k = 0; k < widens; k += LANES) store(widened.data() + k, load(panel + k));
                if (!widens) rows<1>(wide.data(), M, K, panel, own_bias, out + i, N, own_width);
                else rows<1>(wide.data(), M, K, widened.data(), own_bias, out + i, N, own_width);
            }
        }
    }
}

extern "C" {
int panel_width() { return PANEL; }
void linear_float32(const float* x, const float* w, const float* b, float* out, int M, int K, int N) {
    linear(x, w, b, out, M, K, N);
}
void linear_bfloat16(const bfloat16* x, const bfloat16* w, const float* b, bfloat16* out, int M, int K, int N) {
    linear(x, w, b, out, M, K, N);
}
}
