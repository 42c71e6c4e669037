/* Attention over the paged cache by a CPU's matrix unit (AMX), for bf16. */
#ifndef AUTOSTEER_TILES_H
#define AUTOSTEER_TILES_H

#include <stdint.h>

enum { PART_ROWS = 256, TILE_BLOCK = 64, TILE_WIDTH = 128 };

/* Tokens of one row that are computed together: `tokens` of the pass from `first` on, of which the row has `left` until
 * its last one. */
typedef struct {
    int32_t row, first, tokens, left;
} Part;

typedef struct {
    const void *query, *keys, *values; /* [N, H, D] with a token's stride, [blocks, KV, TILE_BLOCK, D] twice */
    const int32_t *tables, *ends;      /* [R, most], [R]: tokens that a row has, the new ones with them */
    const Part *parts;                 /* NULL: each row has one new token */
    void *output;                      /* [N, H, D] */
    int64_t stride, heads, kv_heads, width, most, window;
    float scale;
} Tiled;

/* Whether this process may use the matrix unit. */
int tiles_usable(void);

/* Whether there is room for heads of that width, so many of which share keys and values. */
int tiles_fit(int64_t group, int64_t width, int64_t size);

/* One part's attention, of the heads that share a key-value head. */
void tiles_attend(const Tiled *a, int64_t part, int64_t kv);

#endif
