// RMS norm, fused with the addition to the residual that comes before it: see kernels/rms_norm.py for what it computes.
//
//     y_i = w_i * x_i / sqrt(mean(x^2) + eps)
//
// A row of a small model is a few kilobytes and stays in the first cache, so it is read twice: once for the sum of its
// squares, once to be scaled. The sum has one part for each lane, so its order never depends on the batch.
#include "vectors.h"
#include <cmath>

constexpr int ENOUGH = 16 * 1024;  // numbers: fewer are normalised sooner than a second core wakes up

template <class T>
static void rms_norm(const T* x, long token_stride, T* residual, const T* weight, T* out, int tokens, int heads,
                     int size, float eps) {
#pragma omp parallel for if ((long)tokens * heads * size > ENOUGH)
    for (int row = 0; row < tokens * heads; row++) {
        const int head = row % heads;
        const T* from = x + row / heads * token_stride + (long)head * size;
        const T* scale = weight + (long)head * size;
        T* stored = residual ? residual + (long)row * size : nullptr;
        T* to = out + (long)row * size;
        vec squares{};
        for (int i = 0; i < size; i += LANES) {
            vec v = load(from + i);
            if (stored) {  // rounded to the residual's dtype before the norm is taken
                store(stored + i, v + load(stored + i));
                v = load(stored + i);
            }
            squares += v * v;
        }
        const float factor = 1 / std::sqrt(sum(squares) / size + eps);
        const T* summed = stored ? stored : from;
        for (int i = 0; i < size; i += LANES) store(to + i, load(summed + i) * factor * load(scale + i));
    }
}

extern "C" {
void rms_norm_float32(const float* x, long stride, float* residual, const float* weight, float* out, int tokens,
                      int heads, int size, float eps) {
    rms_norm(x, stride, residual, weight, out, tokens, heads, size, eps);
}
void rms_norm_bfloat16(const bfloat16* x, long stride, bfloat16* residual, const bfloat16* weight, bfloat16* out,
                       int tokens, int heads, int size, float eps) {
    rms_norm(x, stride, residual, weight, out, tokens, heads, size, eps);
}
}
