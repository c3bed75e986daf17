// Keys and values of a chunk as panels of bfloat16 pairs, so that attention is two products (products.h):
//
//     scores [rows, keys] = q [rows, D] K^T         K as panels[key / PANEL][d / 2][key % PANEL][d % 2]
//     output [rows, D]    = p [rows, keys] V        V as panels[d / PANEL][key / 2][d % PANEL][key % 2]
//
// In the pool a key lies as D numbers in a row, so K is turned, 16 keys times 16 pairs at a time, and two values that
// follow each other are interleaved. A number of 8 bits is a bfloat16 too, exactly. Its scale is that of the whole key
// or value, so it leaves both products: q (s k) = s (q k), and p (s v) = (p s) v.
#pragma once
#include "products.h"
#if defined(__AVX512BF16__)

// Each thread's own memory, one for each NUMBER, which it keeps.
template <int NUMBER, class N>
static N* scratch(size_t count) {
    static thread_local std::vector<vec> memory;
    if (memory.size() * sizeof(vec) < count * sizeof(N)) memory.resize(count * sizeof(N) / sizeof(vec) + 1);
    return (N*)memory.data();
}

// Lane i of x[j] becomes lane j of x[i]: with step S, lanes and vectors whose numbers differ by S change places.
template <int S = 1>
static void turn(__m512i* x) {
    if constexpr (S < 16) {
        alignas(64) int low[16], high[16];
        for (int i = 0; i < 16; i++) low[i] = i & S ? 16 + i - S : i, high[i] = i & S ? 16 + i : i + S;
        const __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
        for (int j = 0; j < 16; j++)
            if (!(j & S)) {
                const __m512i a = x[j], b = x[j | S];
                x[j] = _mm512_permutex2var_epi32(a, first, b);
                x[j | S] = _mm512_permutex2var_epi32(a, second, b);
            }
        turn<2 * S>(x);
    }
}

// Where D numbers lie in bfloat16; those of 8 bits are widened into `wide`.
static const bfloat16* in_bfloat16(const bfloat16* at, bfloat16*, int) { return at; }
static const bfloat16* in_bfloat16(const int8_t* at, bfloat16* wide, int dim) {
    const auto in_float32 = [](const int8_t* from) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
    };
    for (int d = 0; d < dim; d += PANEL) {
        const __m512bh both = _mm512_cvtne2ps_pbh(in_float32(at + d + LANES), in_float32(at + d));
        memcpy(wide + d, &both, sizeof both);
    }
    return wide;
}

// at: 16 keys of `dim` numbers; i: the number of the first of them in the chunk
static void turn_keys(const bfloat16* const* at, int dim, int i, bfloat16* panels) {
    bfloat16* to = panels + (long)(i / PANEL) * dim * PANEL + i % PANEL * 2;
    for (int d = 0; d < dim; d += 32) {
        __m512i x[16];
        for (int j = 0; j < 16; j++) x[j] = _mm512_loadu_si512(at[j] + d);
        turn(x);
        for (int p = 0; p < 16; p++) _mm512_storeu_si512(to + (d / 2 + p) * PANEL * 2, x[p]);
    }
}

// a, b: the values number i and i + 1 of `keys`
static void interleave_values(const bfloat16* a, const bfloat16* b, int dim, int keys, int i, bfloat16* panels) {
    alignas(64) short low[32], high[32];
    for (int j = 0; j < 32; j++) low[j] = j / 2 + j % 2 * 32, high[j] = low[j] + 16;
    const __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
    for (int d = 0; d < dim; d += PANEL) {
        const __m512i x = _mm512_loadu_si512(a + d), y = _mm512_loadu_si512(b + d);
        bfloat16* to = panels + ((long)d * keys + i * PANEL);
        _mm512_storeu_si512(to, _mm512_permutex2var_epi16(x, first, y));
        _mm512_storeu_si512(to + PANEL, _mm512_permutex2var_epi16(x, second, y));
    }
}

// Each number of a row times the scale of its key or value.
static void multiply_by(float* row, const float* scales, int count) {
    for (int i = 0; i < count; i += LANES) store(row + i, load(row + i) * load(scales + i));
}

// To the nearest bfloat16. Numbers below 2^-126 become 0, which weights may.
static inline void round_weights(const float* from, bfloat16* to) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
    memcpy(to, &rounded, sizeof rounded);
}
#endif
