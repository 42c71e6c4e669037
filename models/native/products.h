/* Products of few rows with a weight that lies in pairs, by a CPU's matrix unit (AMX), for bf16. */
#ifndef AUTOSTEER_PRODUCTS_H
#define AUTOSTEER_PRODUCTS_H

#include <stdint.h>

enum { PRODUCT_ROWS = 32, PRODUCT_STEP = 32 };

/* `output = input . weight + bias`, of 1 to PRODUCT_ROWS rows; inputs and outputs are multiples of PRODUCT_STEP. */
typedef struct {
    const uint16_t *input;  /* [rows, inputs] */
    const uint16_t *weight; /* [outputs / 32, inputs / 2, 32, 2] */
    const uint16_t *bias;   /* [outputs], or NULL */
    uint16_t *output;       /* [rows, outputs] */
    int64_t rows, inputs, outputs;
} Product;

/* One of `parts` parts of the outputs; where tiles_usable() says so. */
void product_multiply(const Product *a, int64_t part, int64_t parts);

#endif
