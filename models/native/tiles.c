/* Attention over the paged cache by a CPU's matrix unit (AMX), for bf16: see tiles.h.
 *
 * Keys are the first operand as they lie in the cache, and queries, 16 at a time, the second: scores of a block are a
 * row for each key and a column for each query, so that softmax is one vector operation for 16 queries. It is kept up as
 * blocks come.
 */
#define _GNU_SOURCE
#include "tiles.h"
#include "unit.h"

#ifdef HAS_UNIT

#include <math.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    REQUEST_PERMISSION = 0x1023, /* of arch_prctl: the system saves the unit's registers for who asked for it */
    TILE_DATA = 18,
    LANES = 16,             /* queries whose scores are computed at once */
    TILE = LANES * LANES,   /* numbers of 32 bits, or pairs of bf16, in a whole register of the unit */
    PART_TILES = PART_ROWS / LANES,
    VALUE_TILES = TILE_BLOCK / 32 * (TILE_WIDTH / 16)
};

/* What is kept of 16 queries: their highest score so far, and the sum of weights beside it. */
typedef struct {
    float highest[LANES], total[LANES];
} ALIGNED Softmax;

int tiles_usable(void) {
    return __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512bf16") &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

int tiles_fit(int64_t group, int64_t width, int64_t size) {
    return group <= LANES && width % 32 == 0 && width <= TILE_WIDTH && size == TILE_BLOCK;
}

/* 16 rows of 16 numbers of 32 bits, `stride` numbers apart, with rows and columns changed. */
INLINE void transposed(const uint32_t *from, int stride, uint32_t *to) {
    __m512i r[16], s[16];
    for (int n = 0; n < 4; n++)
        for (int q = 0; q < 4; q++) { /* rows n, n + 4, n + 8, n + 12: four numbers of each */
            __m512i four = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(from + n * stride + 4 * q)));
            four = _mm512_inserti32x4(four, _mm_loadu_si128((const __m128i *)(from + (n + 4) * stride + 4 * q)), 1);
            four = _mm512_inserti32x4(four, _mm_loadu_si128((const __m128i *)(from + (n + 8) * stride + 4 * q)), 2);
            four = _mm512_inserti32x4(four, _mm_loadu_si128((const __m128i *)(from + (n + 12) * stride + 4 * q)), 3);
            r[4 * q + n] = four;
        }
    for (int q = 0; q < 4; q++) {
        s[4 * q] = _mm512_unpacklo_epi32(r[4 * q], r[4 * q + 1]);
        s[4 * q + 1] = _mm512_unpackhi_epi32(r[4 * q], r[4 * q + 1]);
        s[4 * q + 2] = _mm512_unpacklo_epi32(r[4 * q + 2], r[4 * q + 3]);
        s[4 * q + 3] = _mm512_unpackhi_epi32(r[4 * q + 2], r[4 * q + 3]);
        _mm512_store_si512(to + 64 * q, _mm512_unpacklo_epi64(s[4 * q], s[4 * q + 2]));
        _mm512_store_si512(to + 64 * q + 16, _mm512_unpackhi_epi64(s[4 * q], s[4 * q + 2]));
        _mm512_store_si512(to + 64 * q + 32, _mm512_unpacklo_epi64(s[4 * q + 1], s[4 * q + 3]));
        _mm512_store_si512(to + 64 * q + 48, _mm512_unpackhi_epi64(s[4 * q + 1], s[4 * q + 3]));
    }
}

/* The first `count` values `[TILE_BLOCK, width]` in pairs of tokens, `[TILE_BLOCK / 32][width / 16]` tiles of 16 pairs by
 * 16 numbers; zeros after them: what stands there is of other rows, and no weight makes nothing of what is no number.
 * Of each 32 numbers the first tile has those at 0 to 3, 8 to 11, ..., the second the others; see `put`. */
INLINE void bring_values(const uint16_t *from, int width, int64_t count, uint32_t *to) {
    for (int pair = 0; pair < TILE_BLOCK / 2; pair++) {
        uint32_t *row = to + pair / 16 * (width / 16) * TILE + pair % 16 * LANES;
        const __mmask32 even = 2 * pair < count ? ~0u : 0, odd = 2 * pair + 1 < count ? ~0u : 0;
        for (int at = 0; at < width; at += 32) {
            const uint16_t *own = from + 2 * pair * width + at;
            const __m512i first = _mm512_maskz_loadu_epi16(even, own), second = _mm512_maskz_loadu_epi16(odd, own + width);
            _mm512_store_si512(row + at / 16 * TILE, _mm512_unpacklo_epi16(first, second));
            _mm512_store_si512(row + (at / 16 + 1) * TILE, _mm512_unpackhi_epi16(first, second));
        }
    }
}

/* 2^x for x <= 0; what is no number stays none. */
INLINE __m512 power_of_two(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 power = _mm512_set1_ps(1.54035304e-4f);
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.33335581e-3f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(9.61812911e-3f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(5.55041087e-2f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(2.40226507e-1f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(6.93147181e-1f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(power, whole);
}

/* Puts weights in the place of scores `[TILE_BLOCK][LANES]`: what the queries' sums so far are to be multiplied by. A
 * query sees the places from its `first` to its `last` in the block. */
INLINE __m512 weigh(Softmax *softmax, float *scores, __m512i first, __m512i last, float scale) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __m512 now = nothing, other = nothing;
    for (int at = 0; at < TILE_BLOCK; at += 2) {
        const __m512i place = _mm512_set1_epi32(at), next = _mm512_set1_epi32(at + 1);
        const __mmask16 seen = _mm512_cmple_epi32_mask(first, place) & _mm512_cmpge_epi32_mask(last, place);
        const __mmask16 too = _mm512_cmple_epi32_mask(first, next) & _mm512_cmpge_epi32_mask(last, next);
        const __m512 score = _mm512_mask_loadu_ps(nothing, seen, scores + at * LANES);
        const __m512 second = _mm512_mask_loadu_ps(nothing, too, scores + (at + 1) * LANES);
        _mm512_store_ps(scores + at * LANES, score);
        _mm512_store_ps(scores + (at + 1) * LANES, second);
        now = _mm512_max_ps(score, now);
        other = _mm512_max_ps(second, other);
    }
    const __m512 factor = _mm512_set1_ps(scale), before = _mm512_load_ps(softmax->highest);
    now = _mm512_max_ps(_mm512_mul_ps(_mm512_max_ps(now, other), factor), before);
    const __mmask16 none = _mm512_cmp_ps_mask(now, nothing, _CMP_EQ_OQ);
    const __m512 base = _mm512_mask_mov_ps(now, none, _mm512_setzero_ps());
    const __m512 kept = power_of_two(_mm512_sub_ps(before, base));
    __m512 total = _mm512_mul_ps(_mm512_load_ps(softmax->total), kept);
    for (int at = 0; at < TILE_BLOCK; at++) {
        const __m512 weight = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(scores + at * LANES), factor, base));
        total = _mm512_add_ps(total, weight);
        _mm512_store_ps(scores + at * LANES, weight);
    }
    _mm512_store_ps(softmax->total, total);
    _mm512_store_ps(softmax->highest, now);
    return kept;
}

/* A query's sums over their weights, as its head's output. */
INLINE void put(const Tiled *a, int64_t token, int64_t head, const float *sums, float total) {
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high = _mm512_or_epi32(low, _mm512_set1_epi32(8));
    uint16_t *to = (uint16_t *)a->output + (token * a->heads + head) * a->width;
    for (int64_t d = 0; d < a->width; d += 32) {
        const __m512 first = _mm512_div_ps(_mm512_load_ps(sums + d), _mm512_set1_ps(total));
        const __m512 second = _mm512_div_ps(_mm512_load_ps(sums + d + 16), _mm512_set1_ps(total));
        _mm512_storeu_si512(to + d, (__m512i)_mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(first, high, second),
                                                                 _mm512_permutex2var_ps(first, low, second)));
    }
}

/* Where a head's numbers of a block begin in the cache. */
INLINE int64_t stored(const Tiled *a, const Part *part, int64_t block, int64_t kv) {
    return (a->tables[part->row * a->most + block] * a->kv_heads + kv) * TILE_BLOCK * a->width;
}

/* One token of a row, for `count` key-value heads from `kv` on: the queries of all of them at once. Each weight goes into
 * the second product as two bf16 numbers, the rounded one and what rounding took, which costs nothing here. */
INLINE void attend_token(const Tiled *a, const Part *part, int64_t kv, int count, int width) {
    float scores[TILE_BLOCK * LANES] ALIGNED, kept[LANES] ALIGNED, sums[LANES * TILE_WIDTH] ALIGNED;
    uint16_t rounded[LANES][TILE_BLOCK] ALIGNED, lost[LANES][TILE_BLOCK] ALIGNED;
    uint32_t asked[TILE_WIDTH / 2 * LANES], values[VALUE_TILES * TILE] ALIGNED, turned[4][TILE] ALIGNED;
    Softmax softmax;
    const int group = (int)(a->heads / a->kv_heads), lanes = count * group;
    const int64_t end = a->ends[part->row], first = end > a->window ? end - a->window : 0;
    for (int lane = 0; lane < LANES; lane++) {
        softmax.highest[lane] = -INFINITY;
        softmax.total[lane] = 0.0f;
    }
    for (int lane = 0; lane < lanes; lane++) {
        const uint16_t *query = (const uint16_t *)a->query + part->first * a->stride + (kv * group + lane) * width;
        for (int pair = 0; pair < width / 2; pair++)
            memcpy(asked + (lane / group * (width / 2) + pair) * group + lane % group, query + 2 * pair, sizeof *asked);
    }
    memset(scores, 0, sizeof scores);
    memset(sums, 0, sizeof(float) * (size_t)(lanes * width));
    shape((const int[8]){16, 16, 16, group, group, group, 16, 16},
          (const int[8]){4 * group, 4 * group, 4 * group, 64, 64, 64, 64, 64});
    for (int64_t block = first / TILE_BLOCK; block * TILE_BLOCK < end; block++) {
        const int64_t begin = block * TILE_BLOCK;
        WRITTEN;
        for (int own = 0; own < count; own++) {
            const uint16_t *keys = (const uint16_t *)a->keys + stored(a, part, block, kv + own);
            for (int at = 0; at < TILE_BLOCK; at += 32) {
                _tile_zero(0);
                _tile_zero(1);
                for (int d = 0; d < width; d += 32) {
                    _tile_loadd(2, asked + (own * width + d) / 2 * group, 4 * group);
                    _tile_loadd(6, keys + at * width + d, width * 2);
                    _tile_dpbf16ps(0, 6, 2);
                    _tile_loadd(7, keys + (at + 16) * width + d, width * 2);
                    _tile_dpbf16ps(1, 7, 2);
                }
                _tile_stored(0, scores + at * LANES + own * group, 4 * LANES);
                _tile_stored(1, scores + (at + 16) * LANES + own * group, 4 * LANES);
            }
        }
        _mm512_store_ps(kept, weigh(&softmax, scores, _mm512_set1_epi32((int)(first - begin)),
                                    _mm512_set1_epi32((int)(end - begin - 1)), a->scale));
        for (int at = 0; at < 4; at++)
            transposed((const uint32_t *)scores + at * TILE, LANES, turned[at]);
        for (int lane = 0; lane < lanes; lane++) {
            for (int half = 0; half < 2; half++) {
                const __m512 low = _mm512_load_ps((const float *)turned[2 * half] + lane * LANES);
                const __m512 high = _mm512_load_ps((const float *)turned[2 * half + 1] + lane * LANES);
                const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
                const __m512i of_low = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), 16);
                const __m512i of_high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1)), 16);
                _mm512_store_si512(rounded[lane] + 32 * half, both);
                _mm512_store_si512(lost[lane] + 32 * half,
                                   (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(high, _mm512_castsi512_ps(of_high)),
                                                                _mm512_sub_ps(low, _mm512_castsi512_ps(of_low))));
            }
            for (int d = 0; d < width; d += 16)
                _mm512_store_ps(sums + lane * width + d,
                                _mm512_mul_ps(_mm512_load_ps(sums + lane * width + d), _mm512_set1_ps(kept[lane])));
        }
        for (int own = 0; own < count; own++) {
            bring_values((const uint16_t *)a->values + stored(a, part, block, kv + own), width, end - begin, values);
            WRITTEN;
            for (int d = 0; d < width; d += 32) {
                float *sum = sums + own * group * width + d;
                _tile_loadd(3, sum, width * 4);
                _tile_loadd(4, sum + 16, width * 4);
                for (int half = 0; half < TILE_BLOCK / 32; half++) {
                    _tile_loadd(6, values + (half * (width / 16) + d / 16) * TILE, 64);
                    _tile_loadd(7, values + (half * (width / 16) + d / 16 + 1) * TILE, 64);
                    _tile_loadd(5, rounded[own * group] + half * 32, TILE_BLOCK * 2);
                    _tile_dpbf16ps(3, 5, 6);
                    _tile_dpbf16ps(4, 5, 7);
                    _tile_loadd(5, lost[own * group] + half * 32, TILE_BLOCK * 2);
                    _tile_dpbf16ps(3, 5, 6);
                    _tile_dpbf16ps(4, 5, 7);
                }
                _tile_stored(3, sum, width * 4);
                _tile_stored(4, sum + 16, width * 4);
            }
        }
    }
    for (int lane = 0; lane < lanes; lane++)
        put(a, part->first, kv * group + lane, sums + lane * width, softmax.total[lane]);
}

/* What one thread works on, for chunks. Sums have a row for each number of a head and a column for each query. */
typedef struct {
    uint32_t query[PART_TILES][TILE_WIDTH / 32][TILE];
    float sums[PART_TILES][TILE_WIDTH * LANES], scores[TILE_BLOCK * LANES];
    uint32_t pairs[VALUE_TILES * TILE], values[VALUE_TILES * TILE], weights[TILE_BLOCK / 2 * LANES];
    Softmax softmax[PART_TILES];
} ALIGNED Work;

INLINE void begin_chunk(Work *work, const Tiled *a, const Part *part, int64_t kv, int width) {
    const int group = (int)(a->heads / a->kv_heads), count = part->tokens * group;
    for (int tile = 0; tile * LANES < count; tile++) {
        uint16_t rows[LANES][TILE_WIDTH] ALIGNED;
        for (int lane = 0; lane < LANES; lane++) { /* columns of the last tile that have no query get the last one's */
            const int at = tile * LANES + lane < count ? tile * LANES + lane : count - 1;
            const int64_t token = part->first + at / group;
            memcpy(rows[lane], (const uint16_t *)a->query + token * a->stride + (kv * group + at % group) * width,
                   (size_t)width * 2);
            work->softmax[tile].highest[lane] = -INFINITY;
            work->softmax[tile].total[lane] = 0.0f;
        }
        for (int d = 0; d < width; d += 32)
            transposed((const uint32_t *)(rows[0] + d), TILE_WIDTH / 2, work->query[tile][d / 32]);
        memset(work->sums[tile], 0, sizeof(float) * LANES * (size_t)width);
    }
}

/* Scores of one tile's queries against a block's keys. */
INLINE void score(Work *work, int tile, const uint16_t *keys, int width) {
    WRITTEN;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int d = 0; d < width; d += 32) {
        _tile_loadd(4, work->query[tile][d / 32], 64);
        _tile_loadd(5, keys + d, width * 2);
        _tile_dpbf16ps(0, 5, 4);
        _tile_loadd(6, keys + 16 * width + d, width * 2);
        _tile_dpbf16ps(1, 6, 4);
        _tile_loadd(5, keys + 32 * width + d, width * 2);
        _tile_dpbf16ps(2, 5, 4);
        _tile_loadd(6, keys + 48 * width + d, width * 2);
        _tile_dpbf16ps(3, 6, 4);
    }
    _tile_stored(0, work->scores, 64);
    _tile_stored(1, work->scores + TILE, 64);
    _tile_stored(2, work->scores + 2 * TILE, 64);
    _tile_stored(3, work->scores + 3 * TILE, 64);
}

/* Adds a block's values by one tile's weights, which are rounded; what there was is multiplied by `kept`. */
INLINE void add(Work *work, int tile, __m512 kept, int width) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int pair = 0; pair < TILE_BLOCK / 2; pair++) {
        const float *weights = work->scores + 2 * pair * LANES;
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(weights + LANES), _mm512_load_ps(weights));
        _mm512_store_si512(work->weights + pair * LANES, _mm512_permutexvar_epi16(pairs, both));
    }
    if (_mm512_cmp_ps_mask(kept, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ))
        for (int at = 0; at < width * LANES; at += LANES)
            _mm512_store_ps(work->sums[tile] + at, _mm512_mul_ps(_mm512_load_ps(work->sums[tile] + at), kept));
    WRITTEN;
    _tile_loadd(4, work->weights, 64);
    _tile_loadd(5, work->weights + TILE, 64);
    for (int d = 0; d < width; d += 32) {
        float *sums = work->sums[tile] + d * LANES;
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE, 64);
        _tile_loadd(6, work->values + d / 16 * TILE, 64);
        _tile_dpbf16ps(0, 6, 4);
        _tile_loadd(7, work->values + (d / 16 + 1) * TILE, 64);
        _tile_dpbf16ps(1, 7, 4);
        _tile_loadd(6, work->values + (width + d) / 16 * TILE, 64);
        _tile_dpbf16ps(0, 6, 5);
        _tile_loadd(7, work->values + ((width + d) / 16 + 1) * TILE, 64);
        _tile_dpbf16ps(1, 7, 5);
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + TILE, 64);
    }
}

/* Several tokens of a row, for the heads that share a key-value head. */
INLINE void attend_chunk(const Tiled *a, const Part *part, int64_t kv, int width) {
    Work work;
    const int group = (int)(a->heads / a->kv_heads), count = part->tokens * group;
    const int64_t start = a->ends[part->row] - part->left, end = start + part->tokens; /* places of its tokens */
    const int64_t first = start + 1 > a->window ? start + 1 - a->window : 0;
    begin_chunk(&work, a, part, kv, width);
    shape((const int[8]){16, 16, 16, 16, 16, 16, 16, 16}, (const int[8]){64, 64, 64, 64, 64, 64, 64, 64});
    for (int64_t block = first / TILE_BLOCK; block * TILE_BLOCK < end; block++) {
        const int64_t begin = block * TILE_BLOCK, base = stored(a, part, block, kv);
        bring_values((const uint16_t *)a->values + base, width, end - begin, work.pairs);
        for (int tile = 0; tile < TILE_BLOCK / 32 * (width / 16); tile++)
            transposed(work.pairs + tile * TILE, LANES, work.values + tile * TILE);
        for (int tile = 0; tile * LANES < count; tile++) {
            int32_t places[LANES] ALIGNED;
            for (int lane = 0; lane < LANES; lane++)
                places[lane] = (int32_t)(start + (tile * LANES + lane) / group - begin);
            if (places[LANES - 1] < 0 || places[0] - a->window >= TILE_BLOCK - 1)
                continue; /* its tokens see none of this block */
            score(&work, tile, (const uint16_t *)a->keys + base, width);
            const __m512i last = _mm512_load_si512(places), window = _mm512_set1_epi32((int)a->window - 1);
            add(&work, tile, weigh(&work.softmax[tile], work.scores, _mm512_sub_epi32(last, window), last, a->scale), width);
        }
    }
    for (int tile = 0; tile * LANES < count; tile++) {
        float sums[TILE_WIDTH / 16][TILE] ALIGNED, own[TILE_WIDTH] ALIGNED;
        for (int d = 0; d < width; d += 16)
            transposed((const uint32_t *)work.sums[tile] + d * LANES, LANES, (uint32_t *)sums[d / 16]);
        for (int lane = 0; lane < LANES && tile * LANES + lane < count; lane++) {
            for (int d = 0; d < width; d += 16)
                memcpy(own + d, sums[d / 16] + lane * LANES, sizeof(float) * LANES);
            const int at = tile * LANES + lane;
            put(a, part->first + at / group, kv * group + at % group, own, work.softmax[tile].total[lane]);
        }
    }
}

INLINE void attend_sized(const Tiled *a, const Part *part, int64_t kv, int width) {
    const int64_t group = a->heads / a->kv_heads, most = LANES / group, left = a->kv_heads - kv;
    if (part->tokens > 1)
        attend_chunk(a, part, kv, width);
    else if (kv % most == 0)
        attend_token(a, part, kv, (int)(left < most ? left : most), width);
}

/* Sizes that are known when this is compiled become registers instead of loops. */
TILED static void attend_of_64(const Tiled *a, const Part *part, int64_t kv) { attend_sized(a, part, kv, 64); }

TILED static void attend_of_128(const Tiled *a, const Part *part, int64_t kv) { attend_sized(a, part, kv, 128); }

TILED static void attend_of_any(const Tiled *a, const Part *part, int64_t kv) { attend_sized(a, part, kv, (int)a->width); }

TILED void tiles_attend(const Tiled *a, int64_t index, int64_t kv) {
    Tiled scaled = *a;
    scaled.scale *= 1.44269504f; /* weights are powers of 2 */
    const Part alone = {(int32_t)index, (int32_t)index, 1, 1}, *part = a->parts ? a->parts + index : &alone;
    (a->width == 64 ? attend_of_64 : a->width == 128 ? attend_of_128 : attend_of_any)(&scaled, part, kv);
    _tile_release();
}

#else

int tiles_usable(void) { return 0; }

int tiles_fit(int64_t group, int64_t width, int64_t size) {
    (void)group, (void)width, (void)size;
    return 0;
}

void tiles_attend(const Tiled *a, int64_t part, int64_t kv) { (void)a, (void)part, (void)kv; }

#endif
