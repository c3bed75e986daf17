// y = x W^T + b, for few rows of x: as fast as W can be read from memory.
//
//     y[m][n] = b[n] + sum over k of x[m][k] * W[n][k]
//
// A step of decoding uses each weight once. So W is read once, in the order in which it lies in memory, and everything
// else has to fit beside it. W is packed, once, into panels (products.h). Up to three rows read two panels at once: an
// addition takes several cycles, and more sums are then under way.
//
// Each sum is taken in the order of k, whatever the block. So a row has the same bits, whichever rows stand beside it.
#include "products.h"

// From so many rows on, AVX2 widens a panel of bfloat16 once; before, at each block of rows. With AVX-512 blocks have
// more rows, and a widened panel would not fit into the first cache.
constexpr int MANY_ROWS = LANES == 16 ? 1 << 30 : 12;

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
                multiply<2>(x, M, K, panels + (long)n * K, bias ? bias + n : nullptr, out + n, N, width);
                continue;
            }
            for (int i = n; i < n + width; i += PANEL) {
                const W* panel = panels + (long)i * K;
                const float* own_bias = bias ? bias + i : nullptr;
                const int own_width = std::min(PANEL, N - i);
                if constexpr (!std::is_same_v<X, W>)
                    if (widens) {
                        for (int k = 0; k < K * PANEL; k += LANES) store(widened.data() + k, load(panel + k));
                        multiply<1>(x, M, K, widened.data(), own_bias, out + i, N, own_width);
                        continue;
                    }
                multiply<1>(x, M, K, panel, own_bias, out + i, N, own_width);
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
