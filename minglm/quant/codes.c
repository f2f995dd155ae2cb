/* Codes of four and eight bits to the numbers that they stand for, and numbers rounded to them: what int4.py, int8.py and
   fp8.py of this folder say in torch, to the last bit, in one pass over memory. */

#include "kernels.h"

typedef union { uint32_t bits; float number; } Word;

/* packed (rows, width / 2), the even input in the low half of a byte; scale (rows, width / group) bf16 → out (rows, width) */
void from_int4(const uint8_t *restrict packed, const uint16_t *restrict scale, long rows, long width, long group,
               float *restrict out) {
    const long half = group / 2;
    for (long g = 0; g < rows * (width / group); g++, packed += half, out += group) {
        const Word one = {.bits = (uint32_t)scale[g] << 16};
        for (long i = 0; i < half; i++) {
            out[2 * i] = (float)((int)(packed[i] & 15) - 8) * one.number;
            out[2 * i + 1] = (float)((int)(packed[i] >> 4) - 8) * one.number;
        }
    }
}

/* What a code of e4m3 stands for: a sign, four bits of exponent (bias 7), three of mantissa; all ones is no number. */
INLINE float of_e4m3(uint32_t code) {
    const uint32_t rest = code & 127, sign = (code & 128) << 24;
    const Word normal = {.bits = (rest << 20) + (120u << 23)}, none = {.bits = 0x7fc00000u};
    const float small = (float)(int)rest * 0x1p-9f;
    Word out = {.number = rest < 8 ? small : rest == 127 ? none.number : normal.number};
    out.bits |= sign;
    return out.number;
}

/* values (rows, width) of e4m3, one scale for each block of block × block → out (rows, width) */
void from_fp8(const uint8_t *restrict values, const float *restrict scale, long rows, long width, long block,
              float *restrict out) {
    const long blocks = (width + block - 1) / block;
    for (long row = 0; row < rows; row++, values += width, out += width)
        for (long first = 0; first < width; first += block) {
            const long end = first + block < width ? first + block : width;
            const float one = scale[row / block * blocks + first / block];
            for (long i = first; i < end; i++) out[i] = of_e4m3(values[i]) * one;
        }
}

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
void round_fp8(const float *restrict x, long rows, long width, long tile, float *restrict out) {
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
void round_int8(const float *restrict x, long rows, long width, float *restrict whole, float *restrict scales) {
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
