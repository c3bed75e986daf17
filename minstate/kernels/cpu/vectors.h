// Vectors of floats, as wide as this CPU's registers, and what all kernels do with them.
//
// The vector extensions of GCC and Clang (https://gcc.gnu.org/onlinedocs/gcc/Vector-Extensions.html) give arithmetic on
// whole vectors to ordinary operators. The compiler then chooses the instructions: AVX2, AVX-512 or NEON.
//
// Numbers are stored in float32 or in bfloat16, the upper half of a float32; keys and values also in 8 bits
// (minstate/kv_int8.py). All sums are in float32.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

using vec = float __attribute__((vector_size(4 * LANES)));
using bits = uint32_t __attribute__((vector_size(4 * LANES)));
using halves = uint16_t __attribute__((vector_size(2 * LANES)));
struct bfloat16 { uint16_t upper; };

// How many S a vector of `dim` numbers takes in the pool.
template <class S>
inline long row_width(int dim) { return sizeof(S) == 1 ? dim + sizeof(float) : dim; }

// Numbers of which no vector lies in two lines of the cache: reading it would take twice as long.
template <class N>
struct Aligned {
    std::vector<vec> vectors;
    Aligned(size_t count) : vectors((count * sizeof(N) + sizeof(vec) - 1) / sizeof(vec)) {}
    N* data() { return (N*)vectors.data(); }
    const N* data() const { return (const N*)vectors.data(); }
};
using Floats = Aligned<float>;

inline vec all(float x) { return x - vec{}; }

inline vec load(const float* at) { vec x; memcpy(&x, at, sizeof x); return x; }

inline vec load(const bfloat16* at) {
    halves upper;
    memcpy(&upper, at, sizeof upper);
    return (vec)(__builtin_convertvector(upper, bits) << 16);
}

// The factors of products that are added up: S numbers for each lane. S is 2 where the CPU has an instruction that
// multiplies pairs of bfloat16 and adds both products to a float32.
template <int S>
struct Factors { using type = vec; };
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
template <>
struct Factors<2> { using type = __m512bh; };
inline vec add_products(vec total, __m512bh w, const bfloat16* x) {
    int pair;
    memcpy(&pair, x, sizeof pair);
    return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_epi32(pair), w);
}
#else
constexpr bool PAIRS = false;
#endif
inline vec add_products(vec total, vec w, const float* x) { return total + w * *x; }

template <int S, class W>
inline auto load_factors(const W* at) {
    if constexpr (S == 1) return load(at);
    else {
        typename Factors<S>::type w;
        memcpy(&w, at, sizeof w);
        return w;
    }
}

inline void store(float* at, vec x) { memcpy(at, &x, sizeof x); }

// To the nearest bfloat16, of two equally near ones to the even one. A NaN stays a NaN.
inline void store(bfloat16* at, vec x) {
    bits rounded = ((bits)x + 0x7fff + (((bits)x >> 16) & 1)) >> 16;
    halves upper = __builtin_convertvector(x == x ? rounded : bits{} + 0x7fc0, halves);
    memcpy(at, &upper, sizeof upper);
}

inline float one(const float* at) { return *at; }
inline float one(const bfloat16* at) { uint32_t x = uint32_t(at->upper) << 16; float y; memcpy(&y, &x, 4); return y; }

inline void put(float* at, float x) { *at = x; }
inline void put(bfloat16* at, float x) {
    uint32_t y;
    memcpy(&y, &x, 4);
    at->upper = x == x ? (y + 0x7fff + (y >> 16 & 1)) >> 16 : 0x7fc0;
}

// Lane number j of the result is lane I[j] of a and b, one after the other.
template <int... I>
inline vec shuffle(vec a, vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    using lanes = int32_t __attribute__((vector_size(4 * LANES)));
    return __builtin_shuffle(a, b, lanes{I...});
#endif
}

// Lane i of the result: a[i] + a[i + S] where bit S of i is 0, b[i - S] + b[i] where it is 1.
template <int S, int... I>
inline vec fold(vec a, vec b, std::integer_sequence<int, I...>) {
    return shuffle<(I & S ? LANES + I - S : I)...>(a, b) + shuffle<(I & S ? LANES + I : I + S)...>(a, b);
}

// Vectors are added in pairs, as in a tournament: a round with step S halves their number, and afterwards lane i holds
// a part of the sum of vector number i mod 2 S. These are the rounds from step S on, before step TO: lane i of
// sums<1, LANES> is the whole sum of x[i].
template <int S, int TO>
inline vec sums(vec* x) {
    if constexpr (S == TO) return x[0];
    else {
        for (int i = 0; i < TO / S / 2; i++)
            x[i] = fold<S>(x[2 * i], x[2 * i + 1], std::make_integer_sequence<int, LANES>());
        return sums<2 * S, TO>(x);
    }
}

template <int S, int... I>
inline vec exchange(vec x, std::integer_sequence<int, I...>) { return shuffle<(I ^ S)...>(x, x); }

// All lanes combined, in pairs: with step S, each lane with the one whose number differs by S.
template <int S = 1, class Combine>
inline float across(vec x, const Combine& combine) {
    if constexpr (S == LANES) return x[0];
    else return across<2 * S>(combine(x, exchange<S>(x, std::make_integer_sequence<int, LANES>())), combine);
}

inline vec larger(vec a, vec b) { return a > b ? a : b; }
inline float largest(vec x) { return across(x, larger); }
inline float sum(vec x) { return across(x, [](vec a, vec b) { return a + b; }); }

// 2^x, for x from -inf to 127, with a relative error below 3e-7; 2^0 is 1. With x = n + f and |f| <= 1/2, 2^n is made by
// writing n into the exponent, and 2^f is the polynomial of degree 5 that is nearest to it. A NaN stays a NaN.
inline vec exp2(vec x) {
    x = x < -126 ? all(-127) : x;  // what would be smaller than any normal float32 becomes 0, as 2^-127 does below
    vec shifted = x + 12582912.0f;  // 1.5 * 2^23: the sum has no fraction digits left, so it is rounded to an integer
    vec f = x - (shifted - 12582912.0f);
    vec y = all(0.00132647273f);
    for (float c : {0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1.0f}) y = y * f + c;
    bits power = ((bits)shifted << 23) + (127u << 23);  // the last bits of `shifted` are n
    return y * (vec)power;
}
