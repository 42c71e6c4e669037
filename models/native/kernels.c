/* The operations of models/kernels.py on a CPU: attention of rows that add one token over the blocks of the paged cache,
 * rotary embedding with the cache's write, RMS norm, gated SiLU; and products of few rows, and sums of states by weights.
 * Each is one pass over its data, computed in fp32, for bf16 and fp32 tensors.
 *
 * Pointers come from torch tensors, which the caller keeps alive and of the right shape and strides (`__init__.py`).
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "products.h"
#include "tiles.h"

/* One binary for every x86-64: the loader picks the widest vectors that the CPU has. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define WIDEST __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define WIDEST
#endif
#define INLINE static inline __attribute__((always_inline))

enum { MOST_GROUP = 128, MOST_WIDTH = 512, MOST_BLOCK = 128 };

INLINE float of_bf16(uint16_t stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To nearest, ties to even. What is no number stays none: of what is computed of bf16, it has no bits that are rounded. */
INLINE uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* Ask for a token's numbers before they are needed: blocks lie anywhere, which the CPU's own guesses do not foresee. */
INLINE void expect(const void *from, int64_t at, int count, int wide) {
    const char *begin = (const char *)from + at * (wide ? 4 : 2);
    for (int byte = 0; byte < count * (wide ? 4 : 2); byte += 64)
        __builtin_prefetch(begin + byte);
}

INLINE float load(const void *from, int64_t at, int wide) {
    return wide ? ((const float *)from)[at] : of_bf16(((const uint16_t *)from)[at]);
}

INLINE void store(void *to, int64_t at, float value, int wide) {
    if (wide)
        ((float *)to)[at] = value;
    else
        ((uint16_t *)to)[at] = to_bf16(value);
}

/* e^x for x <= 0, to the last bits; what is no number stays none. Simple enough to become vector instructions. */
INLINE float exponential(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float whole = floorf(clamped * 1.44269504f + 0.5f);
    /* 2^rest by its Taylor series; the logarithm is in two parts, or large arguments would lose bits. */
    const float rest = fmaf(clamped, 1.44269502162933f, -whole) + clamped * 1.92596303e-8f;
    float power = 1.52527338e-5f;
    power = power * rest + 1.54035304e-4f;
    power = power * rest + 1.33335581e-3f;
    power = power * rest + 9.61812911e-3f;
    power = power * rest + 5.55041087e-2f;
    power = power * rest + 2.40226507e-1f;
    power = power * rest + 6.93147181e-1f;
    power = power * rest + 1.0f;
    const int32_t exponent = whole == whole ? (int32_t)whole : 0;
    const uint32_t bits = (uint32_t)(exponent + 127) << 23;
    float factor;
    memcpy(&factor, &bits, sizeof factor);
    return power * factor;
}

/* Rows of the cache, and who asks them. */
typedef struct {
    const void *query, *keys, *values; /* [B, H, D] with a row's stride, [blocks, KV, S, D] twice */
    const int32_t *tables, *ends;      /* [B, most], [B]: tokens that a row has */
    void *output;                      /* [B, H, D] */
    int64_t rows, stride, heads, kv_heads, size, width, most, window;
    float scale;
} Attention;

/* The queries that share a key-value head, over one row's blocks: softmax is kept up as blocks come. */
INLINE void attend_group(const Attention *a, int64_t row, int64_t kv, int group, int width, int wide) {
    float query[MOST_GROUP * MOST_WIDTH], sums[MOST_GROUP * MOST_WIDTH];
    float scores[MOST_GROUP][MOST_BLOCK], highest[MOST_GROUP], total[MOST_GROUP];
    float token[MOST_WIDTH];
    const int64_t size = a->size, end = a->ends[row], first = end > a->window ? end - a->window : 0;
    const int64_t asked = row * a->stride + kv * group * width, told = (row * a->heads + kv * group) * width;
    for (int at = 0; at < group * width; at++) {
        query[at] = load(a->query, asked + at, wide) * a->scale;
        sums[at] = 0.0f;
    }
    for (int g = 0; g < group; g++) {
        highest[g] = -INFINITY;
        total[g] = 0.0f;
    }
    for (int64_t block = first / size; block * size < end; block++) {
        const int64_t base = (a->tables[row * a->most + block] * a->kv_heads + kv) * size * width;
        const int begin = (int)(first > block * size ? first - block * size : 0);
        const int stop = (int)(end - block * size < size ? end - block * size : size);
        const int64_t next = (block + 1) * size < end ? a->tables[row * a->most + block + 1] : a->tables[row * a->most];
        const int64_t then = (next * a->kv_heads + kv) * size * width;
        for (int t = begin; t < stop; t++) {
            expect(a->values, base + (int64_t)t * width, width, wide);
            for (int d = 0; d < width; d++)
                token[d] = load(a->keys, base + (int64_t)t * width + d, wide);
            for (int g = 0; g < group; g++) {
                float product = 0.0f;
#pragma omp simd reduction(+ : product)
                for (int d = 0; d < width; d++)
                    product += query[g * width + d] * token[d];
                scores[g][t] = product;
            }
        }
        for (int g = 0; g < group; g++) {
            float now = highest[g];
            for (int t = begin; t < stop; t++)
                now = scores[g][t] > now ? scores[g][t] : now;
            const float kept = total[g] == 0.0f ? 0.0f : exponential(highest[g] - now);
            float added = 0.0f;
#pragma omp simd reduction(+ : added)
            for (int t = begin; t < stop; t++) {
                scores[g][t] = exponential(scores[g][t] - now);
                added += scores[g][t];
            }
            total[g] = total[g] * kept + added;
            highest[g] = now;
            for (int d = 0; d < width; d++)
                sums[g * width + d] *= kept;
        }
        for (int t = begin; t < stop; t++) {
            expect(a->keys, then + (int64_t)t * width, width, wide);
            for (int d = 0; d < width; d++)
                token[d] = load(a->values, base + (int64_t)t * width + d, wide);
            for (int g = 0; g < group; g++)
                for (int d = 0; d < width; d++)
                    sums[g * width + d] += scores[g][t] * token[d];
        }
    }
    for (int g = 0; g < group; g++)
        for (int d = 0; d < width; d++)
            store(a->output, told + g * width + d, sums[g * width + d] / total[g], wide);
}

/* Sizes that are known when this is compiled become registers instead of loops. */
INLINE void attend_sized(const Attention *a, int64_t row, int64_t kv, int wide) {
    const int group = (int)(a->heads / a->kv_heads), width = (int)a->width;
    if (width == 64 && group == 1)
        attend_group(a, row, kv, 1, 64, wide);
    else if (width == 64 && group == 2)
        attend_group(a, row, kv, 2, 64, wide);
    else if (width == 64)
        attend_group(a, row, kv, group, 64, wide);
    else if (width == 128)
        attend_group(a, row, kv, group, 128, wide);
    else
        attend_group(a, row, kv, group, width, wide);
}

WIDEST static void attend_bf16(const Attention *a, int64_t item) {
    attend_sized(a, item / a->kv_heads, item % a->kv_heads, 0);
}

WIDEST static void attend_fp32(const Attention *a, int64_t item) {
    attend_sized(a, item / a->kv_heads, item % a->kv_heads, 1);
}

INLINE void normalise(const void *from, const void *weight, void *to, int64_t row, int64_t width, float eps, int wide) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < width; d++) {
        const float value = load(from, row * width + d, wide);
        squares += value * value;
    }
    const float factor = 1.0f / sqrtf(squares / (float)width + eps);
    for (int64_t d = 0; d < width; d++)
        store(to, row * width + d, load(from, row * width + d, wide) * factor * load(weight, d, wide), wide);
}

WIDEST static void normalise_bf16(const void *from, const void *weight, void *to, int64_t row, int64_t width, float eps) {
    normalise(from, weight, to, row, width, eps, 0);
}

WIDEST static void normalise_fp32(const void *from, const void *weight, void *to, int64_t row, int64_t width, float eps) {
    normalise(from, weight, to, row, width, eps, 1);
}

/* Turns a token's queries and keys in place, and stores its keys and values. `sine` has the sign of half a turn. */
INLINE void turn(void *states, const void *cosine, const void *sine, const int64_t *slots, void *keys, void *values,
                 int64_t token, int64_t heads, int64_t kv_heads, int64_t width, int wide) {
    const int64_t half = width / 2, all = heads + 2 * kv_heads;
    for (int64_t head = 0; head < heads + kv_heads; head++) {
        const int64_t at = (token * all + head) * width, angle = token * width;
        float turned[MOST_WIDTH];
        for (int64_t d = 0; d < half; d++) {
            const float low = load(states, at + d, wide), high = load(states, at + half + d, wide);
            turned[d] = low * load(cosine, angle + d, wide) + high * load(sine, angle + d, wide);
            turned[half + d] =
                high * load(cosine, angle + half + d, wide) + low * load(sine, angle + half + d, wide);
        }
        for (int64_t d = 0; d < width; d++)
            store(states, at + d, turned[d], wide);
        if (head >= heads)
            for (int64_t d = 0; d < width; d++)
                store(keys, slots[token * kv_heads + head - heads] * width + d, turned[d], wide);
    }
    const int64_t bytes = width * (wide ? 4 : 2);
    for (int64_t kv = 0; kv < kv_heads; kv++)
        memcpy((char *)values + slots[token * kv_heads + kv] * bytes,
               (const char *)states + (token * all + heads + kv_heads + kv) * bytes, (size_t)bytes);
}

WIDEST static void turn_bf16(void *states, const void *cosine, const void *sine, const int64_t *slots, void *keys,
                             void *values, int64_t token, int64_t heads, int64_t kv_heads, int64_t width) {
    turn(states, cosine, sine, slots, keys, values, token, heads, kv_heads, width, 0);
}

WIDEST static void turn_fp32(void *states, const void *cosine, const void *sine, const int64_t *slots, void *keys,
                             void *values, int64_t token, int64_t heads, int64_t kv_heads, int64_t width) {
    turn(states, cosine, sine, slots, keys, values, token, heads, kv_heads, width, 1);
}

/* silu(gate) * up of `[gate and up]`. */
INLINE void gate(const void *joined, void *to, int64_t row, int64_t width, int wide) {
    for (int64_t d = 0; d < width; d++) {
        const float value = load(joined, row * 2 * width + d, wide), up = load(joined, (row * 2 + 1) * width + d, wide);
        const float power = exponential(value < 0.0f ? value : -value);
        store(to, row * width + d, value * (value < 0.0f ? power : 1.0f) / (1.0f + power) * up, wide);
    }
}

WIDEST static void gate_bf16(const void *joined, void *to, int64_t row, int64_t width) {
    gate(joined, to, row, width, 0);
}

WIDEST static void gate_fp32(const void *joined, void *to, int64_t row, int64_t width) {
    gate(joined, to, row, width, 1);
}

/* The sum of a row's numbers, each times its weight. */
INLINE float weighted(const void *from, const float *weight, int64_t row, int64_t width, int wide) {
    float sum = 0.0f;
    for (int64_t d = 0; d < width; d++)
        sum += load(from, row * width + d, wide) * weight[d];
    return sum;
}

WIDEST static float weighted_bf16(const void *from, const float *weight, int64_t row, int64_t width) {
    return weighted(from, weight, row, width, 0);
}

WIDEST static float weighted_fp32(const void *from, const float *weight, int64_t row, int64_t width) {
    return weighted(from, weight, row, width, 1);
}

/* What Python calls: addresses of tensors, sizes, whether they are fp32 (else bf16), and how many threads may work. */
#define ADDRESS(number) ((void *)(uintptr_t)(number))
typedef unsigned long long Number;

static PyObject *attend(PyObject *self, PyObject *arguments) {
    (void)self;
    Number query, keys, values, tables, ends, output;
    long long rows, stride, heads, kv_heads, size, width, most, window;
    float scale;
    int wide, threads;
    if (!PyArg_ParseTuple(arguments, "KKKKKKLLLLLLLLfpi", &query, &keys, &values, &tables, &ends, &output, &rows,
                          &stride, &heads, &kv_heads, &size, &width, &most, &window, &scale, &wide, &threads))
        return NULL;
    if (heads / kv_heads > MOST_GROUP || width > MOST_WIDTH || size > MOST_BLOCK) {
        PyErr_SetString(PyExc_ValueError, "heads, their width or blocks are larger than there is room for");
        return NULL;
    }
    const Attention a = {ADDRESS(query), ADDRESS(keys), ADDRESS(values), ADDRESS(tables), ADDRESS(ends), ADDRESS(output),
                         rows, stride, heads, kv_heads, size, width, most, window, scale};
    const int64_t items = rows * kv_heads;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t item = 0; item < items; item++) {
        if (wide)
            attend_fp32(&a, item);
        else
            attend_bf16(&a, item);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *attend_tiles(PyObject *self, PyObject *arguments) {
    (void)self;
    Number query, keys, values, tables, ends, parts, output;
    long long count, stride, heads, kv_heads, size, width, most, window;
    float scale;
    int threads;
    if (!PyArg_ParseTuple(arguments, "KKKKKKKLLLLLLLLfi", &query, &keys, &values, &tables, &ends, &parts, &output, &count,
                          &stride, &heads, &kv_heads, &size, &width, &most, &window, &scale, &threads))
        return NULL;
    if (!tiles_fit(heads / kv_heads, width, size)) {
        PyErr_SetString(PyExc_ValueError, "heads, their width or blocks do not fit into tiles");
        return NULL;
    }
    const Tiled a = {ADDRESS(query), ADDRESS(keys), ADDRESS(values), ADDRESS(tables), ADDRESS(ends), ADDRESS(parts),
                     ADDRESS(output), stride, heads, kv_heads, width, most, window, scale};
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (int64_t item = 0; item < count * kv_heads; item++)
        tiles_attend(&a, item / kv_heads, item % kv_heads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *has_tiles(PyObject *self, PyObject *arguments) {
    (void)self, (void)arguments;
    return PyBool_FromLong(tiles_usable());
}

static PyObject *rotate(PyObject *self, PyObject *arguments) {
    (void)self;
    Number states, cosine, sine, slots, keys, values;
    long long tokens, heads, kv_heads, width;
    int wide, threads;
    if (!PyArg_ParseTuple(arguments, "KKKKKKLLLLpi", &states, &cosine, &sine, &slots, &keys, &values, &tokens, &heads,
                          &kv_heads, &width, &wide, &threads))
        return NULL;
    if (width > MOST_WIDTH || width % 2) {
        PyErr_SetString(PyExc_ValueError, "heads are wider than there is room for, or have no half");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t token = 0; token < tokens; token++)
        (wide ? turn_fp32 : turn_bf16)(ADDRESS(states), ADDRESS(cosine), ADDRESS(sine), ADDRESS(slots), ADDRESS(keys),
                                       ADDRESS(values), token, heads, kv_heads, width);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *rms_norm(PyObject *self, PyObject *arguments) {
    (void)self;
    Number from, weight, to;
    long long rows, width;
    float eps;
    int wide, threads;
    if (!PyArg_ParseTuple(arguments, "KKKLLfpi", &from, &weight, &to, &rows, &width, &eps, &wide, &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        (wide ? normalise_fp32 : normalise_bf16)(ADDRESS(from), ADDRESS(weight), ADDRESS(to), row, width, eps);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *gated_silu(PyObject *self, PyObject *arguments) {
    (void)self;
    Number joined, to;
    long long rows, width;
    int wide, threads;
    if (!PyArg_ParseTuple(arguments, "KKLLpi", &joined, &to, &rows, &width, &wide, &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        (wide ? gate_fp32 : gate_bf16)(ADDRESS(joined), ADDRESS(to), row, width);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *multiply_tiles(PyObject *self, PyObject *arguments) {
    (void)self;
    Number input, weight, bias, output;
    long long rows, inputs, outputs;
    int threads;
    if (!PyArg_ParseTuple(arguments, "KKKKLLLi", &input, &weight, &bias, &output, &rows, &inputs, &outputs, &threads))
        return NULL;
    if (rows < 1 || rows > PRODUCT_ROWS || inputs % PRODUCT_STEP || outputs % PRODUCT_STEP) {
        PyErr_SetString(PyExc_ValueError, "more rows than there is room for, or a weight that does not lie in pairs");
        return NULL;
    }
    const Product product = {ADDRESS(input), ADDRESS(weight), ADDRESS(bias), ADDRESS(output), rows, inputs, outputs};
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int part = 0; part < threads; part++)
        product_multiply(&product, part, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *weigh_rows(PyObject *self, PyObject *arguments) {
    (void)self;
    Number from, weight, bias, to;
    long long rows, width;
    int wide;
    if (!PyArg_ParseTuple(arguments, "KKKKLLp", &from, &weight, &bias, &to, &rows, &width, &wide))
        return NULL;
    for (int64_t row = 0; row < rows; row++)
        ((float *)ADDRESS(to))[row] = *(const float *)ADDRESS(bias) +
                                      (wide ? weighted_fp32 : weighted_bf16)(ADDRESS(from), ADDRESS(weight), row, width);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"attend", attend, METH_VARARGS, NULL},
    {"attend_tiles", attend_tiles, METH_VARARGS, NULL},
    {"has_tiles", has_tiles, METH_NOARGS, NULL},
    {"rotate", rotate, METH_VARARGS, NULL},
    {"rms_norm", rms_norm, METH_VARARGS, NULL},
    {"gated_silu", gated_silu, METH_VARARGS, NULL},
    {"multiply_tiles", multiply_tiles, METH_VARARGS, NULL},
    {"weigh_rows", weigh_rows, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
