/* Products of few rows with a weight that lies in pairs: see products.h.
 *
 * Of few rows a product can be as fast as its weight is read. It is read once, from its first byte to its last, each
 * part ahead of its use: the unit's instructions fetch rows of a register one by one, which the CPU does not foresee.
 */
#include "products.h"
#include "unit.h"

#ifdef HAS_UNIT

#include <string.h>

enum {
    LANES = 16, /* rows of a register of the unit, and numbers of 32 bits in a row */
    LINE = 64,
    AHEAD = 4096 /* bytes that are asked for before they are needed */
};

/* Registers: 0 and 1 hold inputs of 16 rows each, 2 and 3 weights of 16 outputs each, 4 to 7 sums of a pair of both. */
INLINE void configure(int64_t rows) {
    const int low = rows < LANES ? (int)rows : LANES, high = rows > LANES ? (int)rows - LANES : LANES;
    shape((int[8]){low, high, LANES, LANES, low, low, high, high}, (int[8]){LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE});
}

/* Sums of 16 outputs, rounded; the rows from `row` on. */
INLINE void put(const Product *a, const float *sums, int64_t row, int64_t rows, int64_t output) {
    __m512 bias = _mm512_setzero_ps();
    if (a->bias) {
        const __m512i stored = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(a->bias + output)));
        bias = _mm512_castsi512_ps(_mm512_slli_epi32(stored, 16));
    }
    for (int64_t n = 0; n < rows; n++) {
        const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_add_ps(_mm512_load_ps(sums + n * LANES), bias));
        memcpy(a->output + (row + n) * a->outputs + output, &rounded, sizeof rounded);
    }
}

/* 32 outputs. `two`: there are more than 16 rows. */
INLINE void multiply(const Product *a, int64_t block, int two) {
    const uint16_t *weight = a->weight + block * PRODUCT_STEP * a->inputs;
    const int64_t stride = a->inputs * (int64_t)sizeof *a->input;
    _tile_zero(4);
    _tile_zero(5);
    if (two) {
        _tile_zero(6);
        _tile_zero(7);
    }
    for (int64_t input = 0; input < a->inputs; input += PRODUCT_STEP, weight += PRODUCT_STEP * PRODUCT_STEP) {
        for (int line = 0; line < 2 * PRODUCT_STEP * PRODUCT_STEP / LINE; line++)
            _mm_prefetch((const char *)weight + AHEAD + line * LINE, _MM_HINT_T0);
        _tile_loadd(2, weight, 2 * LINE);
        _tile_loadd(3, weight + PRODUCT_STEP, 2 * LINE);
        _tile_loadd(0, a->input + input, stride);
        _tile_dpbf16ps(4, 0, 2);
        _tile_dpbf16ps(5, 0, 3);
        if (two) {
            _tile_loadd(1, a->input + LANES * a->inputs + input, stride);
            _tile_dpbf16ps(6, 1, 2);
            _tile_dpbf16ps(7, 1, 3);
        }
    }
    float sums[4][LANES * LANES] ALIGNED;
    _tile_stored(4, sums[0], LINE);
    _tile_stored(5, sums[1], LINE);
    if (two) {
        _tile_stored(6, sums[2], LINE);
        _tile_stored(7, sums[3], LINE);
    }
    WRITTEN;
    const int64_t low = two ? LANES : a->rows, output = block * PRODUCT_STEP;
    put(a, sums[0], 0, low, output);
    put(a, sums[1], 0, low, output + LANES);
    if (two) {
        put(a, sums[2], LANES, a->rows - LANES, output);
        put(a, sums[3], LANES, a->rows - LANES, output + LANES);
    }
}

TILED void product_multiply(const Product *a, int64_t part, int64_t parts) {
    const int64_t blocks = a->outputs / PRODUCT_STEP, end = blocks * (part + 1) / parts;
    configure(a->rows);
    for (int64_t block = blocks * part / parts; block < end; block++)
        if (a->rows > LANES)
            multiply(a, block, 1);
        else
            multiply(a, block, 0);
    _tile_release();
}

#else

void product_multiply(const Product *a, int64_t part, int64_t parts) { (void)a, (void)part, (void)parts; }

#endif
