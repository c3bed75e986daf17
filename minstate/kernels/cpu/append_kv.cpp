// Rotary embedding of q and k, fused with storing k and v in their slots: see kernels/append_kv.py for the formula.
//
//     y[d] = x[d] * cos[d] + x[(d + D/2) mod D] * sin[d]
//
// A row of the projection is [H heads of q | H_kv of k | H_kv of v]. A layer of the pool is [H_kv of K | H_kv of V],
// and each of its heads has `slots` times D numbers. So head h >= H of a row goes to head h - H of the pool. In 8 bits
// each D numbers are followed by their scale: minstate/kv_int8.py has the formula.
#include "vectors.h"
#include <algorithm>
#include <cmath>
#include <vector>

constexpr int ENOUGH = 8;  // tokens: fewer are stored sooner than a second core wakes up

template <class S>
static void write(const std::vector<float>& x, S* at) {
    for (size_t d = 0; d < x.size(); d++) put(at + d, x[d]);
}

static void write(const std::vector<float>& x, int8_t* at) {
    float largest = 0;
    for (float each : x) largest = std::fabs(each) <= largest ? largest : std::fabs(each);  // NaN and infinity stay
    const float scale = std::isfinite(largest) ? largest / 127 : NAN;
    for (size_t d = 0; d < x.size(); d++) at[d] = scale > 0 ? (int8_t)std::nearbyint(x[d] / scale) : 0;
    memcpy(at + x.size(), &scale, sizeof scale);
}

template <class T, class S>
static void append_kv(const T* qkv, const T* cos, const T* sin, const int* positions, const int* token_slots, T* q,
                      S* kv, int tokens, int heads, int kv_heads, int dim, long slots) {
    const int half = dim / 2, rotated = heads + kv_heads, width = heads + 2 * kv_heads;
    const long row = row_width<S>(dim);
#pragma omp parallel for if (tokens > ENOUGH)
    for (int token = 0; token < tokens; token++) {
        std::vector<float> y(dim);
        const T* c = cos + (long)positions[token] * dim;
        const T* s = sin + (long)positions[token] * dim;
        for (int head = 0; head < width; head++) {
            const T* x = qkv + ((long)token * width + head) * dim;
            for (int d = 0; d < half; d++) {
                const float first = one(x + d), second = one(x + half + d);
                const bool value = head >= rotated;  // values are not rotated
                y[d] = value ? first : first * one(c + d) + second * one(s + d);
                y[half + d] = value ? second : second * one(c + half + d) + first * one(s + half + d);
            }
            if (head < heads) write(y, q + ((long)token * heads + head) * dim);
            else if (token_slots[token] >= 0)  // otherwise it is padding
                write(y, kv + ((head - heads) * slots + token_slots[token]) * row);
        }
    }
}

#define DEFINE(T, S)                                                                                                  \
    void append_kv_##T##_##S(const T* qkv, const T* cos, const T* sin, const int* positions, const int* token_slots,  \
                             T* q, S* kv, int tokens, int heads, int kv_heads, int dim, long slots) {                 \
        append_kv(qkv, cos, sin, positions, token_slots, q, kv, tokens, heads, kv_heads, dim, slots);                 \
    }
using float32 = float;
using int8 = int8_t;
extern "C" {
DEFINE(float32, float32)
DEFINE(float32, int8)
DEFINE(bfloat16, bfloat16)
DEFINE(bfloat16, int8)
}
