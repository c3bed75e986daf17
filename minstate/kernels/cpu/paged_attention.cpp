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
// In a chunk, LANES keys at a time are multiplied with all rows of the tile: these keys stay in the first cache. Where
// the CPU multiplies pairs of bfloat16, keys and values become panels, and both steps are products of matrices (pairs.h).
#include "floats.h"
#include "pairs.h"
#include <cmath>
#include <vector>

constexpr int VALUES = 32;                   // how many are added at a time
constexpr int AHEAD = 64;                    // keys
constexpr int TILE = LANES == 16 ? 96 : 32;  // rows of a tile, unless one token has more
constexpr int FEW_TILES = 32;                // fewer are cut into chunks, so that every core has work

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

// use(i, where the D numbers of key or value `first` + i lie), for COUNT of them. From `end` on the last one is
// repeated: slots that were never written may hold NaN, and 0 * NaN is NaN. What lies AHEAD is requested from memory:
// the hardware does not foresee which page follows.
template <int COUNT, class T, class S, class Use>
static void locate(const Call<T, S>& call, const S* pool, const Tile& tile, int first, int end, const Use& use) {
    const int* pages = call.page_table + tile.sequence * call.table_stride;
    const long row = row_width<S>(call.dim);
    pool += tile.kv_head * call.slots * row;
    const auto number = [&](int key) {
        const long slot = (long)pages[key / call.page_size] * call.page_size + key % call.page_size;
        return pool + slot * row;
    };
    for (int i = 0; i < COUNT; i++) {
        use(i, number(std::min(first + i, end - 1)));
        const char* later = (const char*)number(std::min(first + i + AHEAD, tile.readable - 1));
        for (int byte = 0; byte < row * (int)sizeof(S); byte += 64) __builtin_prefetch(later + byte, 0, 0);
    }
}

// The highest of `width` scores, a multiple of PANEL. Two maxima are kept: each waits for the one before it.
static float highest(const float* scores, int width) {
    vec even = load(scores), odd = load(scores + LANES);
    for (int i = PANEL; i < width; i += PANEL) {
        even = larger(load(scores + i), even);
        odd = larger(load(scores + i + LANES), odd);
    }
    return largest(larger(even, odd));
}

// Scores become weights 2^(scale s - m). Returns their sum.
static float weigh(float* scores, int width, float scale, float m) {
    vec total{};
    for (int i = 0; i < width; i += LANES) {
        const vec p = exp2(load(scores + i) * scale - m);
        store(scores + i, p);
        total += p;
    }
    return sum(total);
}

// The weights of all rows of a tile, from their scores in a chunk, of which each row may read the first ones. First all
// maxima, then all weights: so a CPU begins with the next row while it adds up the lanes of one.
template <class T, class S>
static void weigh_rows(const Call<T, S>& call, const Tile& tile, int first, int end, float* scores, Partial& partial) {
    const int group = tile.rows / tile.tokens, width = (end - first + PANEL - 1) / PANEL * PANEL;
    const auto readable = [&](int row) { return std::min(tile.history + row / group + 1, end) - first; };
    for (int row = 0; row < tile.rows; row++) {
        float* own = scores + (size_t)row * CHUNK;
        std::fill(own + std::max(readable(row), 0), own + width, -INFINITY);
        partial.m[row] = highest(own, width) * call.scale;
    }
    for (int row = 0; row < tile.rows; row++) {
        float* own = scores + (size_t)row * CHUNK;
        partial.w[row] = 0;
        if (readable(row) > 0) partial.w[row] = weigh(own, width, call.scale, partial.m[row]);
        else std::fill(own, own + width, 0.0f);
    }
}

template <class T, class S>
__attribute__((noinline)) static void attend(const Call<T, S>& call, const Tile& tile, const float* q, int chunk,
                                             Partial& partial) {
    const int dim = call.dim, first = chunk * CHUNK, end = std::min(first + CHUNK, tile.readable);
    const int width = (end - first + LANES - 1) / LANES * LANES;
    Floats score_rows((size_t)tile.rows * CHUNK), wide((size_t)VALUES * dim);
    float* const scores = score_rows.data();
    const float* at[VALUES];
    const auto widen = [&](int i, const S* number) { at[i] = in_float32(number, wide.data() + i * dim, dim); };
    for (int i = 0; i < width; i += LANES) {
        locate<LANES>(call, call.keys, tile, first + i, end, widen);
        int row = 0;
        for (; row + ROWS <= tile.rows; row += ROWS) dot<ROWS>(q + row * dim, at, dim, scores + row * CHUNK + i);
        for (; row < tile.rows; row++) dot<1>(q + row * dim, at, dim, scores + row * CHUNK + i);
    }
    weigh_rows(call, tile, first, end, scores, partial);
    std::fill_n(partial.a.data(), (size_t)tile.rows * dim, 0.0f);
    for (int i = 0; first + i < end; i += VALUES) {
        const int count = std::min(VALUES, end - first - i);
        locate<VALUES>(call, call.values, tile, first + i, end, widen);
        const float* p = scores + i;
        float* a = partial.a.data();
        int row = 0;
        for (; row + ROWS <= tile.rows; row += ROWS) add_values<ROWS>(p + row * CHUNK, at, count, a + row * dim, dim);
        for (; row < tile.rows; row++) add_values<1>(p + row * CHUNK, at, count, a + row * dim, dim);
    }
}

#if defined(__AVX512BF16__)
// As above, by products of pairs: p is rounded to bfloat16, as K and V are.
template <class T, class S>
__attribute__((noinline)) static void attend(const Call<T, S>& call, const Tile& tile, const bfloat16* q, int chunk,
                                             Partial& partial) {
    constexpr bool SCALED = sizeof(S) == 1;
    const int dim = call.dim, first = chunk * CHUNK, end = std::min(first + CHUNK, tile.readable);
    const int width = (end - first + PANEL - 1) / PANEL * PANEL;
    float* const scores = scratch<0, float>((size_t)tile.rows * CHUNK);
    bfloat16* const panels = scratch<1, bfloat16>((size_t)width * dim);
    bfloat16* const weights = scratch<2, bfloat16>((size_t)tile.rows * width);
    bfloat16* const wide = scratch<3, bfloat16>((size_t)LANES * dim);
    float* const scales = scratch<4, float>(CHUNK);
    const bfloat16* at[LANES];
    const auto read = [&](const S* pool, int i) {
        locate<LANES>(call, pool, tile, first + i, end, [&](int j, const S* number) {
            at[j] = in_bfloat16(number, wide + j * dim, dim);
            if (SCALED) memcpy(scales + i + j, number + dim, sizeof(float));
        });
    };
    for (int i = 0; i < width; i += LANES) {
        read(call.keys, i);
        turn_keys(at, dim, i, panels);
    }
    for (int i = 0; i < width; i += PANEL)
        multiply<1>(q, tile.rows, dim, panels + (long)i * dim, nullptr, scores + i, CHUNK, PANEL);
    for (int row = 0; SCALED && row < tile.rows; row++) multiply_by(scores + row * CHUNK, scales, width);
    weigh_rows(call, tile, first, end, scores, partial);
    for (int i = 0; i < width; i += LANES) {
        read(call.values, i);
        for (int j = 0; j < LANES; j += 2) interleave_values(at[j], at[j + 1], dim, width, i + j, panels);
    }
    for (int row = 0; row < tile.rows; row++) {
        if (SCALED) multiply_by(scores + row * CHUNK, scales, width);
        for (int i = 0; i < width; i += LANES) round_weights(scores + row * CHUNK + i, weights + row * width + i);
    }
    for (int d = 0; d < dim; d += PANEL)
        multiply<1>((const bfloat16*)weights, tile.rows, width, panels + (long)d * width, nullptr, partial.a.data() + d,
                    dim, PANEL);
}
#endif

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

// The rows of a tile, one after the other, in float32 or as they are.
template <class Q, class T, class S>
static Aligned<Q> queries(const Call<T, S>& call, const Tile& tile) {
    const int group = call.heads / call.kv_heads;
    Aligned<Q> q((size_t)tile.rows * call.dim);
    for (int row = 0; row < tile.rows; row++) {
        const int head = tile.kv_head * group + row % group;
        const T* from = call.q + (tile.token + row / group) * call.q_stride + head * call.dim;
        for (int d = 0; d < call.dim; d += LANES) store(q.data() + (size_t)row * call.dim + d, load(from + d));
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

template <class Q, class T, class S>
static void paged_attention(const Call<T, S>& call) {
    const std::vector<Tile> tiles = tiles_of(call);
    const int count = tiles.size();
    if (count >= FEW_TILES) {
#pragma omp parallel for schedule(dynamic)
        for (int i = count - 1; i >= 0; i--) {  // the last rows of a prompt read most keys, so they start first
            const Aligned<Q> q = queries<Q>(call, tiles[i]);
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
        attend(call, tile, queries<Q>(call, tile).data(), work[j].second, partials[j]);
    }
    for (int j = 0; j < (int)work.size();) {
        const int i = work[j].first;
        Partial total(tiles[i].rows, call.dim);
        for (; j < (int)work.size() && work[j].first == i; j++) merge(total, partials[j], call.dim);
        write(call, tiles[i], total);
    }
}

template <class T, class S>
static void choose(const Call<T, S>& call) {
    if constexpr (PAIRS && std::is_same_v<T, bfloat16>)
        if (call.dim % PANEL == 0) return paged_attention<bfloat16>(call);
    paged_attention<float>(call);
}

#define DEFINE(T, S)                                                                                                 \
    void paged_attention_##T##_##S(const T* q, long q_stride, const S* kv, T* out, const int* query_start,           \
                                   const int* context_len, const int* page_table, long table_stride, int sequences,  \
                                   int heads, int kv_heads, int dim, int page_size, long slots, float scale) {        \
        const S* values = kv + kv_heads * slots * row_width<S>(dim);                                                  \
        choose(Call<T, S>{q, q_stride, kv, values, out, query_start, context_len, page_table, table_stride, sequences,\
                          heads, kv_heads, dim, page_size, slots, scale});                                            \
    }
using float32 = float;
using int8 = int8_t;
extern "C" {
DEFINE(float32, float32)
DEFINE(float32, int8)
DEFINE(bfloat16, bfloat16)
DEFINE(bfloat16, int8)
}
