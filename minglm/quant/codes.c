/* Codes of four and eight bits to the numbers that they stand for, and numbers rounded to them: what int4.py, int8.py and
   fp8.py of this folder say in torch, to the last bit, in one pass over memory. */

#include "kernels.h"
#include "rounding.h"

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

/* `to_fp8` and `to_int8` of rounding.h */
void round_fp8(const float *x, long rows, long width, long tile, float *out) { to_fp8(x, rows, width, tile, out); }

void round_int8(const float *x, long rows, long width, float *whole, float *scales) { to_int8(x, rows, width, whole, scales); }
