// Attention of a ragged batch over paged keys and values: prefill, decode and verification in one kernel.
//
// kernels/paged_attention.py derives the formulas: a running maximum m, weight w and accumulator a for each row, where
// a row is one query token of one head, and the heads of a group read the same keys. Here keys are read in chunks:
//
//     chunk     CHUNK keys, counted from the beginning of the sequence
//     partial   m, w and a of a row over one chunk
//     merge     the partials of a row are merged in the order of their chunks
//
// So each row's sums are taken in an order that depends on its own position alone. Its output has the same bits alone
// or in a batch, in a prefill or in a decode. Where there are few tiles of rows, the cores share the chunks of a tile,
// and the partials are merged afterwards; the order, and so the result, is the same. (`attend` and `merge` are not
// inlined, because two copies of them need not be compiled to the same instructions.)
//
// In a chunk, LANES keys at a time are multiplied with all rows of the tile: these keys stay in the first cache.
#include "vectors.h"
#include <algorithm>
#include <cmath>
#include <vector>

constexpr int CHUNK = 512, VALUES = 32;  // keys; how many values are added at a time
constexpr int AHEAD = 32;                // keys
constexpr bool WIDE = LANES == 16;       // AVX-512
constexpr int TILE = WIDE ? 64 : 32;     // rows of a tile, unless one token has more
constexpr int ROWS = WIDE ? 3 : 1;       // rows whose sums are in registers at a time, with KEYS keys
constexpr int KEYS = WIDE ? 8 : LANES;
constexpr int FEW_TILES = 32;            // fewer are cut into chunks, so that every core has work

template <class T, class S>
struct Call {
    const T* q;
    long q_stride;
    const S *keys, *values;  // of one KV head after the other
    T* out;
    const int *query_start, *context_len, *page_table;
    long table_stride;
    int sequences, heads, kv_heads, dim, page_size;
    long slots;
    float scale;  // log2(e) / sqrt(D)
};

struct Tile {
    int sequence, kv_head, token, tokens;  // its first query token, and how many
    int history;                           // keys that a query token before `token` may read
    int rows, readable;                    // readable: keys that its last row may read
};

struct Partial {
    std::vector<float> m, w;  // [rows]
    Floats a;                 // [rows, D]
    Partial(int rows, int dim) : m(rows, -INFINITY), w(rows), a((size_t)rows * dim) {}
};

// Where the D numbers of each key (or value) from `first` to `end` lie in float32; others are widened into `wide`.
// Beyond `end` the last one is repeated: slots that were never written may hold NaN, and 0 * NaN is NaN. Keys that lie
// AHEAD are requested from memory: the hardware does not foresee which page follows.
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

template <int COUNT, class T, class S>
static void locate(const Call<T, S>& call, const S* pool, const Tile& tile, int first, int end, float* wide,
                   const float** at) {
    const int* pages = call.page_table + tile.sequence * call.table_stride;
    const long row = row_width<S>(call.dim);
    pool += tile.kv_head * call.slots * row;
    const auto number = [&](int key) {
        const long slot = (long)pages[key / call.page_size] * call.page_size + key % call.page_size;
        return pool + slot * row;
    };
    for (int i = 0; i < COUNT; i++) {
        at[i] = in_float32(number(std::min(first + i, end - 1)), wide + i * call.dim, call.dim);
        const char* later = (const char*)number(std::min(first + i + AHEAD, tile.readable - 1));
        for (int byte = 0; byte < row * (int)sizeof(S); byte += 64) __builtin_prefetch(later + byte);
    }
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

// Scores become weights 2^(s - m), of which the first `keys` count. Returns their sum.
static float weigh(float* scores, int keys, int width, float& m) {
    std::fill(scores + keys, scores + width, -INFINITY);
    vec highest = load(scores), total{};
    for (int i = LANES; i < width; i += LANES) {
        const vec s = load(scores + i);
        highest = s > highest ? s : highest;
    }
    m = highest[0];
    for (int i = 1; i < LANES; i++) m = highest[i] > m ? highest[i] : m;
    for (int i = 0; i < width; i += LANES) {
        const vec p = exp2(load(scores + i) - m);
        store(scores + i, p);
        total += p;
    }
    return sum(total);
}

template <class T, class S>
__attribute__((noinline)) static void attend(const Call<T, S>& call, const Tile& tile, const float* q, int chunk,
                                             Partial& partial) {
    const int dim = call.dim, first = chunk * CHUNK, end = std::min(first + CHUNK, tile.readable);
    const int width = (end - first + LANES - 1) / LANES * LANES, group = tile.rows / tile.tokens;
    Floats score_rows((size_t)tile.rows * CHUNK), wide((size_t)VALUES * dim);
    float* const scores = score_rows.data();
    const float* at[VALUES];
    for (int i = 0; i < width; i += LANES) {
        locate<LANES>(call, call.keys, tile, first + i, end, wide.data(), at);
        int row = 0;
        for (; row + ROWS <= tile.rows; row += ROWS) dot<ROWS>(q + row * dim, at, dim, scores + row * CHUNK + i);
        for (; row < tile.rows; row++) dot<1>(q + row * dim, at, dim, scores + row * CHUNK + i);
    }
    std::fill_n(partial.a.data(), (size_t)tile.rows * dim, 0.0f);
    for (int row = 0; row < tile.rows; row++) {
        float* own = scores + (size_t)row * CHUNK;
        const int keys = std::min(tile.history + row / group + 1, end) - first;
        partial.m[row] = -INFINITY;
        partial.w[row] = 0;
        if (keys > 0) partial.w[row] = weigh(own, keys, width, partial.m[row]);
        else std::fill(own, own + width, 0.0f);
    }
    for (int i = 0; first + i < end; i += VALUES) {
        const int count = std::min(VALUES, end - first - i);
        locate<VALUES>(call, call.values, tile, first + i, end, wide.data(), at);
        const float* p = scores + i;
        float* a = partial.a.data();
        int row = 0;
        for (; row + ROWS <= tile.rows; row += ROWS) add_values<ROWS>(p + row * CHUNK, at, count, a + row * dim, dim);
        for (; row < tile.rows; row++) add_values<1>(p + row * CHUNK, at, count, a + row * dim, dim);
    }
}

// A further chunk may raise the maximum; 2^(m - m') then rescales what was summed before.
__attribute__((noinline)) static void merge(Partial& all_so_far, const Partial& next, int dim) {
    for (size_t row = 0; row < all_so_far.m.size(); row++) {
        float &m = all_so_far.m[row], &w = all_so_far.w[row];
        const float higher = next.m[row] > m ? next.m[row] : m;
        const float kept = exp2(all(m - higher))[0], added = exp2(all(next.m[row] - higher))[0];
        w = w * kept + next.w[row] * added;
        m = higher;
        float* a = all_so_far.a.data() + row * dim;
        for (int d = 0; d < dim; d += LANES)
            store(a + d, load(a + d) * kept + load(next.a.data() + row * dim + d) * added);
    }
}

template <class T, class S>
static Floats scaled_queries(const Call<T, S>& call, const Tile& tile) {
    const int group = call.heads / call.kv_heads;
    Floats q((size_t)tile.rows * call.dim);
    for (int row = 0; row < tile.rows; row++) {
        const int head = tile.kv_head * group + row % group;
        const T* from = call.q + (tile.token + row / group) * call.q_stride + head * call.dim;
        float* to = q.data() + (size_t)row * call.dim;
        for (int d = 0; d < call.dim; d += LANES) store(to + d, load(from + d) * call.scale);
    }
    return q;
}

template <class T, class S>
static void write(const Call<T, S>& call, const Tile& tile, const Partial& total) {
    const int group = call.heads / call.kv_heads;
    for (int row = 0; row < tile.rows; row++) {
        const long token = tile.token + row / group, head = tile.kv_head * group + row % group;
        T* to = call.out + (token * call.heads + head) * call.dim;
        for (int d = 0; d < call.dim; d += LANES)
            store(to + d, load(total.a.data() + (size_t)row * call.dim + d) / total.w[row]);
    }
}

template <class T, class S>
static std::vector<Tile> tiles_of(const Call<T, S>& call) {
    const int group = call.heads / call.kv_heads, most = std::max(1, TILE / group);
    std::vector<Tile> tiles;
    for (int b = 0; b < call.sequences; b++) {
        const int start = call.query_start[b], end = call.query_start[b + 1];
        const int before = call.context_len[b] - (end - start);
        for (int token = start; token < end; token += most) {
            const int tokens = std::min(most, end - token), history = before + token - start;
            for (int head = 0; head < call.kv_heads; head++)
                tiles.push_back({b, head, token, tokens, history, tokens * group, history + tokens});
        }
    }
    return tiles;
}

template <class T, class S>
static void paged_attention(const Call<T, S>& call) {
    const std::vector<Tile> tiles = tiles_of(call);
    const int count = tiles.size();
    if (count >= FEW_TILES) {
#pragma omp parallel for schedule(dynamic)
        for (int i = count - 1; i >= 0; i--) {  // the last rows of a prompt read most keys, so they start first
            const Floats q = scaled_queries(call, tiles[i]);
            Partial total(tiles[i].rows, call.dim), next(tiles[i].rows, call.dim);
            for (int chunk = 0; chunk * CHUNK < tiles[i].readable; chunk++) {
                attend(call, tiles[i], q.data(), chunk, next);
                merge(total, next, call.dim);
            }
            write(call, tiles[i], total);
        }
        return;
    }
    std::vector<std::pair<int, int>> work;  // tile and chunk
    std::vector<Partial> partials;
    for (int i = 0; i < count; i++)
        for (int chunk = 0; chunk * CHUNK < tiles[i].readable; chunk++) {
            work.push_back({i, chunk});
            partials.push_back(Partial(tiles[i].rows, call.dim));
        }
#pragma omp parallel for schedule(dynamic)
    for (int j = 0; j < (int)work.size(); j++) {
        const Tile& tile = tiles[work[j].first];
        attend(call, tile, scaled_queries(call, tile).data(), work[j].second, partials[j]);
    }
    for (int j = 0; j < (int)work.size();) {
        const int i = work[j].first;
        Partial total(tiles[i].rows, call.dim);
        for (; j < (int)work.size() && work[j].first == i; j++) merge(total, partials[j], call.dim);
        write(call, tiles[i], total);
    }
}

#define DEFINE(T, S)                                                                                                 \
    void paged_attention_##T##_##S(const T* q, long q_stride, const S* kv, T* out, const int* query_start,           \
                                   const int* context_len, const int* page_table, long table_stride, int sequences,  \
                                   int heads, int kv_heads, int dim, int page_size, long slots, float scale) {        \
        const S* values = kv + kv_heads * slots * row_width<S>(dim);                                                  \
        paged_attention(Call<T, S>{q, q_stride, kv, values, out, query_start, context_len, page_table, table_stride,  \
                                   sequences, heads, kv_heads, dim, page_size, slots, scale});                        \
    }
using float32 = float;
using int8 = int8_t;
extern "C" {
DEFINE(float32, float32)
DEFINE(float32, int8)
DEFINE(bfloat16, bfloat16)
DEFINE(bfloat16, int8)
}
