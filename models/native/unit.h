/* What there is to a CPU's matrix unit (AMX): whether it may be used, and the shapes of its registers. */
#ifndef AUTOSTEER_UNIT_H
#define AUTOSTEER_UNIT_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12

#include <immintrin.h>

#define HAS_UNIT 1
#define TILED __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#define INLINE static inline __attribute__((always_inline)) TILED
#define ALIGNED __attribute__((aligned(64)))

/* The compiler does not know that the unit's instructions read memory. */
#define WRITTEN __asm__ volatile("" ::: "memory")

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((packed, aligned(64))) Shapes;

INLINE void shape(const int rows[8], const int bytes[8]) {
    Shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.bytes[tile] = (uint16_t)bytes[tile];
        shapes.rows[tile] = (uint8_t)rows[tile];
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

#endif

#endif
