// Rotary embedding of q and k, fused with storing k and v in their slots: see kernels/append_kv.py for the formula.
//
//     y[d] = x[d] * cos[d] + x[(d + D/2) mod D] * sin[d]
//
// A row of the projection is [H heads of q | H_kv of k | H_kv of v]. A layer of the pool is [H_kv of K | H_kv of V],
// and each of its heads has `slots` times D numbers. So head h >= H of a row goes to head h - H of the pool.
#include "vectors.h"

constexpr int ENOUGH = 8;  // tokens: fewer are stored sooner than a second core wakes up

template <class T>
static void append_kv(const T* qkv, const T* cos, const T* sin, const int* positions, const int* token_slots, T* q,
                      T* kv, int tokens, int heads, int kv_heads, int dim, long slots) {
    const int half = dim / 2, rotated = heads + kv_heads, width = heads + 2 * kv_heads;
#pragma omp parallel for if (tokens > ENOUGH)
    for (int token = 0; token < tokens; token++) {
        const T* c = cos + (long)positions[token] * dim;
        const T* s = sin + (long)positions[token] * dim;
        for (int head = 0; head < width; head++) {
            const T* x = qkv + ((long)token * width + head) * dim;
            T* y = q + ((long)token * heads + head) * dim;
            if (head >= heads) {
                if (token_slots[token] < 0) continue;  // padding
                y = kv + ((head - heads) * slots + token_slots[token]) * dim;
            }
            if (head >= rotated) {  // values are not rotated
                memcpy(y, x, dim * sizeof(T));
                continue;
            }
            for (int d = 0; d < half; d++) {
                const float first = one(x + d), second = one(x + half + d);
                put(y + d, first * one(c + d) + second * one(s + d));
                put(y + half + d, second * one(c + half + d) + first * one(s + half + d));
            }
        }
    }
}

extern "C" {
void append_kv_float32(const float* qkv, const float* cos, const float* sin, const int* positions, const int* slot,
                       float* q, float* kv, int tokens, int heads, int kv_heads, int dim, long slots) {
    append_kv(qkv, cos, sin, positions, slot, q, kv, tokens, heads, kv_heads, dim, slots);
}
void append_kv_bfloat16(const bfloat16* qkv, const bfloat16* cos, const bfloat16* sin, const int* positions,
                        const int* slot, bfloat16* q, bfloat16* kv, int tokens, int heads, int kv_heads, int dim,
                        long slots) {
    append_kv(qkv, cos, sin, positions, slot, q, kv, tokens, heads, kv_heads, dim, slots);
}
}
