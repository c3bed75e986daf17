// out = x W^T + b in registers, for W in panels: what `linear` does with weights, and attention with keys and values.
//
//     panels[n / PANEL][k / STEP][n % PANEL][k % STEP]        PANEL = 2 vectors of outputs
//
// STEP is 2 where the CPU has an instruction that multiplies pairs of bfloat16 and adds both products to a float32. It
// is 1 otherwise. For each step, the two vectors of a panel are multiplied by x[m][k] and added to the sums of row m,
// which stay in registers. A block of 6 rows has 12 vectors of sums, and AVX2 has 16 registers; AVX-512 has 32, for
// blocks of 12. Each sum is taken in the order of k, whatever the block.
#pragma once
#include "vectors.h"
#include <algorithm>
#include <type_traits>

constexpr int PANEL = 2 * LANES;
constexpr int BLOCK_ROWS = LANES == 16 ? 12 : 6;
constexpr int LINES_AHEAD = 2048;  // bytes

template <class W>
constexpr int STEP = std::is_same_v<W, bfloat16> && PAIRS ? 2 : 1;

// R rows times P panels: out[r][p * PANEL ...], of which `width` exist. Not inlined: in a larger function the compiler
// runs out of registers.
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
            __builtin_prefetch((const char*)(panel + (i / S * (long)K + k) * PANEL) + LINES_AHEAD + i % S * 64);
        typename Factors<S>::type w[2 * P];
        for (int i = 0; i < 2 * P; i++)
            w[i] = load_factors<S>(panel + (i / 2 * (long)K + k) * PANEL + i % 2 * LANES * S);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2 * P; i++) total[r][i] = add_products(total[r][i], w[i], x + r * (long)K + k);
    }
    for (int r = 0; r < R; r++) {
        T part[2 * P * LANES], *row = width < P * PANEL ? part : out + r * out_stride;
        for (int i = 0; i < 2 * P; i++) store(row + i * LANES, total[r][i]);
        if (row == part) std::copy_n(part, width, out + r * out_stride);
    }
}

// A block of `wanted` rows, at most R.
template <int R, int P, class X, class W, class T>
static void block_of(int wanted, const X* x, int K, const W* panel, const float* bias, T* out, long N, int width) {
    if (wanted == R) block<R, P>(x, K, panel, bias, out, N, width);
    else if constexpr (R > 1) block_of<R - 1, P>(wanted, x, K, panel, bias, out, N, width);
}

// M rows times P panels.
template <int P, class X, class W, class T>
static void multiply(const X* x, int M, int K, const W* panel, const float* bias, T* out, long N, int width) {
    constexpr int MOST = P == 1 ? BLOCK_ROWS : 3;
    const int blocks = std::max(1, (M + MOST - 1) / MOST), equal = std::max(1, (M + blocks - 1) / blocks);
    for (int m = 0; m < M; m += equal)
        block_of<MOST, P>(std::min(equal, M - m), x + (long)m * K, K, panel, bias, out + m * N, N, width);
}
