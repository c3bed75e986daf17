// The gate of the MLP: silu(g) * u, with silu(g) = g / (1 + e^-g); g and u lie side by side in the rows of one product.
//
// It is computed in float32 and rounded once. Where e^-g would overflow, 2^x is cut off at x = 127: g is then below
// -88, and both g / 2^127 and the true value are below 1e-36.
#include "vectors.h"

constexpr int ENOUGH = 16 * 1024;  // numbers: fewer are computed sooner than a second core wakes up

template <class T>
static void silu_mul(const T* gate_up, T* out, int tokens, int size) {
#pragma omp parallel for if ((long)tokens * size > ENOUGH)
    for (int token = 0; token < tokens; token++) {
        const T* gate = gate_up + 2L * token * size;
        for (int i = 0; i < size; i += LANES) {
            vec g = load(gate + i), x = g * -1.44269504f;  // log2(e)
            vec y = g / (1 + exp2(x > 127 ? all(127) : x));
            store(out + (long)token * size + i, y * load(gate + size + i));
        }
    }
}

extern "C" {
void silu_mul_float32(const float* gate_up, float* out, int tokens, int size) { silu_mul(gate_up, out, tokens, size); }
void silu_mul_bfloat16(const bfloat16* gate_up, bfloat16* out, int tokens, int size) {
    silu_mul(gate_up, out, tokens, size);
}
}
