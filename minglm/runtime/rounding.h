/* Rows rounded to eight bits with a scale, as minglm/quant/fp8.py and int8.py say in torch, to the last bit. Include kernels.h
   before it. */

typedef union { uint32_t bits; float number; } Word;

/* The largest |x| of n numbers; not a number where one of them is not. */
INLINE float reach(const float *x, long n) {
    uint32_t most = 0; /* without a sign, floats are in the order of their bits, and what is no number comes last */
    for (long i = 0; i < n; i++) {
        Word w = {.number = x[i]};
        const uint32_t size = w.bits & 0x7fffffffu;
        most = size > most ? size : most;
    }
    const Word out = {.bits = most};
    return out.number;
}

/* x (rows, width) rounded to e4m3 with one scale, largest / 448, for each `tile` neighbours of a row → out (rows, width).
   To round to a multiple of a power of two, add 1.5 · 2^23 of them and take that off again. */
static void to_fp8(const float *restrict x, long rows, long width, long tile, float *restrict out) {
    for (long row = 0; row < rows; row++, x += width, out += width)
        for (long first = 0; first < width; first += tile) {
            const long end = first + tile < width ? first + tile : width;
            const float most = reach(x + first, end - first) / 448, scale = most > 0 ? most : 1;
            for (long i = first; i < end; i++) {
                float v = x[i] / scale;
                v = v > 448 ? 448 : v < -448 ? -448 : v;
                Word step = {.number = v};
                step.bits &= 0x7f800000u;
                step.number = (step.number < 0x1p-6f ? 0x1p-6f : step.number) * 0x1.8p20f;
                out[i] = (v + step.number - step.number) * scale;
            }
        }
}

/* x (rows, width) → whole numbers (rows, width) of at most 127, and a scale for each row, largest / 127 */
static void to_int8(const float *restrict x, long rows, long width, float *restrict whole, float *restrict scales) {
    for (long row = 0; row < rows; row++, x += width, whole += width) {
        const float most = reach(x, width) / 127, scale = most > 0 ? most : 1;
        for (long i = 0; i < width; i++) {
            float v = x[i] / scale;
            v = (v + 0x1.8p23f) - 0x1.8p23f;
            whole[i] = v > 127 ? 127 : v < -127 ? -127 : v;
        }
        scales[row] = scale;
    }
}
