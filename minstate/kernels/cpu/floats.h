// Keys and values in float32, for a few rows of queries: scores from sums across vectors, and sums of weighted values.
#pragma once
#include "vectors.h"

constexpr int CHUNK = 512;  // keys; scores of a row are so far from those of the next one
constexpr int ROWS = LANES == 16 ? 3 : 1;  // whose sums are in registers at a time, with KEYS keys: AVX-512 has room
constexpr int KEYS = LANES == 16 ? 8 : LANES;

// Where D numbers lie in float32; others are widened into `wide`.
static const float* in_float32(const float* at, float*, int) { return at; }
static const float* in_float32(const bfloat16* at, float* wide, int dim) {
    for (int d = 0; d < dim; d += LANES) store(wide + d, load(at + d));
    return wide;
}
static const float* in_float32(const int8_t* at, float* __restrict wide, int dim) {
    float scale;
    memcpy(&scale, at + dim, sizeof scale);
    for (int d = 0; d < dim; d++) wide[d] = at[d] * scale;  // a plain loop, of which compilers make vectors
    return wide;
}

// scores[r][i] = q[r] . k[i], for R rows and LANES keys
template <int R>
__attribute__((noinline)) static void dot(const float* q, const float* const* k, int dim, float* scores) {
    vec parts[R][LANES / KEYS];
    for (int part = 0; part < LANES / KEYS; part++, k += KEYS) {
        vec dots[R][KEYS] = {};
        for (int d = 0; d < dim; d += LANES)
            for (int i = 0; i < KEYS; i++) {
                const vec key = load(k[i] + d);
                for (int r = 0; r < R; r++) dots[r][i] += load(q + r * dim + d) * key;
            }
        for (int r = 0; r < R; r++) parts[r][part] = sums<1, KEYS>(dots[r]);
    }
    for (int r = 0; r < R; r++) store(scores + r * CHUNK, sums<KEYS, LANES>(parts[r]));
}

// a[r][d] += sum over i of p[r][i] * v[i][d], for V vectors of R rows
template <int R, int V>
static void add_values(const float* p, const float* const* v, int count, float* a, int dim, int d) {
    vec total[R][V];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) total[r][j] = load(a + r * dim + d + j * LANES);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < V; j++) {
            const vec value = load(v[i] + d + j * LANES);
            for (int r = 0; r < R; r++) total[r][j] += p[r * CHUNK + i] * value;
        }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) store(a + r * dim + d + j * LANES, total[r][j]);
}

template <int R>
__attribute__((noinline)) static void add_values(const float* p, const float* const* v, int count, float* a, int dim) {
    int d = 0;
    for (; R == 1 && d + 8 * LANES <= dim; d += 8 * LANES) add_values<R, 8>(p, v, count, a, dim, d);
    for (; d + 4 * LANES <= dim; d += 4 * LANES) add_values<R, 4>(p, v, count, a, dim, d);
    for (; d < dim; d += LANES) add_values<R, 1>(p, v, count, a, dim, d);
}
