/* What the compiled paths share: products and sums of rows, exponentials, the k largest scores of a query. A sum is taken in an order that
   hangs on nothing but the width, so that training, prefill and decoding find the same bits for the same numbers. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif
#define WIDE (32 / (long)sizeof(real)) /* numbers in a vector */
typedef real vec __attribute__((vector_size(32), aligned(sizeof(real)), may_alias));
#define INLINE static inline __attribute__((always_inline))

/* rows of w against rows of x: each sum in vectors along the input, then their lanes, then what is left over */
INLINE void tile(const real *w, long ldw, const real *x, long ldx, real *out, long ldo, long cols, const int nw,
                 const int nx, int add) {
    vec sum[4][3];
    long at = 0;
#pragma GCC unroll 4
    for (int j = 0; j < nw; j++)
#pragma GCC unroll 3
        for (int i = 0; i < nx; i++) sum[j][i] = (vec){0};
    for (; at + WIDE <= cols; at += WIDE) {
        vec row[3];
#pragma GCC unroll 3
        for (int i = 0; i < nx; i++) row[i] = *(const vec *)(x + i * ldx + at);
#pragma GCC unroll 4
        for (int j = 0; j < nw; j++) {
            vec weight = *(const vec *)(w + j * ldw + at);
#pragma GCC unroll 3
            for (int i = 0; i < nx; i++) sum[j][i] += weight * row[i];
        }
    }
#pragma GCC unroll 3
    for (int i = 0; i < nx; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nw; j++) {
            real total = 0;
            for (int lane = 0; lane < WIDE; lane++) total += sum[j][i][lane];
            for (long c = at; c < cols; c++) total += w[j * ldw + c] * x[i * ldx + c];
            out[i * ldo + j] = add ? out[i * ldo + j] + total : total;
        }
}

static __attribute__((noinline)) real dot(const real *a, const real *b, long n) {
    real out;
    tile(a, n, b, n, &out, 1, n, 1, 1, 0);
    return out;
}

/* x (n, cols) by w (rows, cols), rows of each ldx and ldw apart → out (n, rows), or added to it. A row of w is read once for
   all of x; the rows of w that no four are left of take one way for any n, so that their bits do not hang on it. */
static inline void product_of(const real *w, long ldw, const real *x, long ldx, real *out, long ldo, long rows, long cols,
                              long n, int add) {
    long j = 0;
    for (; j + 4 <= rows; j += 4, w += 4 * ldw) {
        long i = 0;
        for (; n - i >= 3 && n - i != 4; i += 3) tile(w, ldw, x + i * ldx, ldx, out + i * ldo + j, ldo, cols, 4, 3, add);
        for (; n - i >= 2; i += 2) tile(w, ldw, x + i * ldx, ldx, out + i * ldo + j, ldo, cols, 4, 2, add);
        if (i < n) tile(w, ldw, x + i * ldx, ldx, out + i * ldo + j, ldo, cols, 4, 1, add);
    }
    for (; j < rows; j++, w += ldw)
        for (long i = 0; i < n; i++) {
            const real total = dot(w, x + i * ldx, cols);
            out[i * ldo + j] = add ? out[i * ldo + j] + total : total;
        }
}

/* the same, the rows of w one after the other */
static inline void product(const real *w, const real *x, long ldx, real *out, long ldo, long rows, long cols, long n, int add) {
    product_of(w, cols, x, ldx, out, ldo, rows, cols, n, add);
}

/* What each of nh heads makes of rows of store (S, ld): sums over S in rising order of the row times the head's weight for
   it, weights[h * wh + s * ws] → out (nh, some columns), or added to it */
INLINE void mix_part(const real *weights, long wh, long ws, long S, const real *store, long ld, real *out, long ldo,
                     const int nh, const int nv, int add) {
    vec sum[4][2];
#pragma GCC unroll 4
    for (int h = 0; h < nh; h++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) sum[h][v] = add ? *(const vec *)(out + h * ldo + v * WIDE) : (vec){0};
    for (long s = 0; s < S; s++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            vec row = *(const vec *)(store + s * ld + v * WIDE);
#pragma GCC unroll 4
            for (int h = 0; h < nh; h++) sum[h][v] += weights[h * wh + s * ws] * row;
        }
#pragma GCC unroll 4
    for (int h = 0; h < nh; h++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) *(vec *)(out + h * ldo + v * WIDE) = sum[h][v];
}

INLINE void mix_heads(const real *weights, long wh, long ws, long S, const real *store, long ld, real *out, long ldo,
                      long width, const int nh, int add) {
    long c = 0;
    for (; c + 2 * WIDE <= width; c += 2 * WIDE) mix_part(weights, wh, ws, S, store + c, ld, out + c, ldo, nh, 2, add);
    for (; c + WIDE <= width; c += WIDE) mix_part(weights, wh, ws, S, store + c, ld, out + c, ldo, nh, 1, add);
    for (; c < width; c++)
        for (int h = 0; h < nh; h++) {
            real sum = add ? out[h * ldo + c] : 0;
            for (long s = 0; s < S; s++) sum += weights[h * wh + s * ws] * store[s * ld + c];
            out[h * ldo + c] = sum;
        }
}

/* H heads over the first `width` columns of store (S, ld) → out (H, ldo), or added to it */
static inline void mix_of(const real *weights, long wh, long ws, long S, const real *store, long ld, real *out, long ldo,
                          long width, long H, int add) {
    long h = 0;
    for (; h + 4 <= H; h += 4) mix_heads(weights + h * wh, wh, ws, S, store, ld, out + h * ldo, ldo, width, 4, add);
    for (; h < H; h++) mix_heads(weights + h * wh, wh, ws, S, store, ld, out + h * ldo, ldo, width, 1, add);
}

/* H heads' weights (H, S) over the first `width` columns of store (S, ld) → out (H, width) */
static inline void mix(const real *weights, long S, const real *store, long ld, real *out, long width, long H) {
    mix_of(weights, S, 1, S, store, ld, out, width, width, H, 0);
}

/* exp(sign · x - shift) of n numbers, in place. In fp32: x = m ln 2 + y with |y| <= ln 2 / 2, 2^m from the exponent's bits,
   exp(y) by its series up to y^7 (the rest is below 1e-8). */
static inline void exponentials(real *x, long n, real sign, real shift) {
#ifdef DOUBLE
    for (long i = 0; i < n; i++) x[i] = exp(sign * x[i] - shift);
#else
    for (long i = 0; i < n; i++) {
        float v = sign * x[i] - shift;
        v = v < -87.0f ? -87.0f : v > 88.0f ? 88.0f : v;
        const float m = (v * 1.44269504f + 12582912.0f) - 12582912.0f; /* the nearest whole number */
        const float y = (v - m * 0.693359375f) + m * 2.12194440e-4f;
        const float series = 1 + y * (1 + y * (1 / 2.f + y * (1 / 6.f + y * (1 / 24.f + y * (1 / 120.f + y * (1 / 720.f + y / 5040))))));
        union { int32_t bits; float number; } power = {.bits = ((int32_t)m + 127) << 23};
        x[i] = series * power.number;
    }
#endif
}

/* The largest of n numbers, n > 0; and their sum, in vectors and then over the lanes. */
static inline real highest(const real *x, long n) {
    real top[WIDE], most = x[0];
    long i = 0;
    for (int lane = 0; lane < WIDE; lane++) top[lane] = x[0];
    for (; i + WIDE <= n; i += WIDE)
        for (int lane = 0; lane < WIDE; lane++) top[lane] = x[i + lane] > top[lane] ? x[i + lane] : top[lane];
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    for (int lane = 0; lane < WIDE; lane++) most = top[lane] > most ? top[lane] : most;
    return most;
}

static inline real sum_of(const real *x, long n) {
    vec sum = {0};
    real total = 0;
    long i = 0;
    for (; i + WIDE <= n; i += WIDE) sum += *(const vec *)(x + i);
    for (int lane = 0; lane < WIDE; lane++) total += sum[lane];
    for (; i < n; i++) total += x[i];
    return total;
}

static inline void softmax(real *x, long n) {
    exponentials(x, n, 1, highest(x, n));
    const real total = sum_of(x, n);
    for (long i = 0; i < n; i++) x[i] /= total;
}

/* ---------------------------------------------------------------- choosing keys */

/* Indexer scores from dots (Hi, n) of one query with n keys: sum over heads, in order, of w (Hi) · max(0, dot). */
static inline void weigh(const real *dots, const real *w, long Hi, long n, real *scores) {
    memset(scores, 0, (size_t)n * sizeof(real));
    for (long h = 0; h < Hi; h++)
        for (long s = 0; s < n; s++) scores[s] += w[h] * (dots[h * n + s] < 0 ? 0 : dots[h * n + s]); /* NaN stays */
}

/* A number's bits in an order in which larger is later; -0 counts as 0. */
static uint64_t order_of(real x) {
    if (sizeof(real) == 4) {
        union { float number; uint32_t bits; } u = {.number = (float)x};
        if (u.bits == 0x80000000u) u.bits = 0;
        return (u.bits & 0x80000000u) ? (uint32_t)~u.bits : u.bits | 0x80000000u;
    }
    union { double number; uint64_t bits; } u = {.number = (double)x};
    if (u.bits == 1ull << 63) u.bits = 0;
    return (u.bits >> 63) ? ~u.bits : u.bits | 1ull << 63;
}

/* The k largest of scores (S > k), equal ones by the lowest place, in rising order of place. A byte of the threshold at a
   time, from the highest: how many lie above, and among which is the k-th. `keys`: room for S. */
static inline void largest(const real *scores, long S, long k, int32_t *chosen, uint64_t *keys) {
    uint64_t prefix = 0;
    long needed = k, alive = S;
    for (long s = 0; s < S; s++) keys[s] = order_of(scores[s]);
    for (int shift = 8 * (int)sizeof(real) - 8; shift >= 0; shift -= 8) {
        long counts[256] = {0};
        for (long s = 0; s < alive; s++) counts[(keys[s] >> shift) & 255]++;
        int bin = 255;
        while (counts[bin] < needed) needed -= counts[bin--];
        prefix |= (uint64_t)bin << shift;
        long kept = 0;
        for (long s = 0; s < alive; s++)
            if (((keys[s] >> shift) & 255) == (uint64_t)bin) keys[kept++] = keys[s];
        alive = kept;
    }
    long n = 0;
    for (long s = 0; s < S; s++) { /* all above the threshold, and the first `needed` that are equal to it */
        const uint64_t key = order_of(scores[s]);
        if (key > prefix) chosen[n++] = (int32_t)s;
        else if (key == prefix && needed > 0) { chosen[n++] = (int32_t)s; needed--; }
    }
}
