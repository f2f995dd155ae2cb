/* One matrix product for what is computed whole on one core: blocks of six rows by two vectors of columns stay in registers
   while the numbers summed over go by. The right matrix is packed first, so that what a block reads lies side by side. Each
   sum is taken in rising order, whatever the block, so bits hang on nothing but the numbers. Include kernels.h before it. */

#ifdef __AVX512F__
typedef real span __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));
#else
typedef vec span;
#endif
#define SPAN ((long)(sizeof(span) / sizeof(real)))
#define PANEL (2 * SPAN) /* columns of a block */
#define PACKED(k, n) ((size_t)(k) * (size_t)(((n) + PANEL - 1) / PANEL * PANEL)) /* numbers of a packed (k, n) */

/* b (k, n), numbers rb apart down and cb apart along → panels of columns, each (k, PANEL), the last filled up with zeros */
static void pack(const real *b, long rb, long cb, long k, long n, real *to) {
    for (long j = 0; j < n; j += PANEL)
        for (long p = 0; p < k; p++, to += PANEL) {
            const real *from = b + p * rb + j * cb;
            const long width = n - j < PANEL ? n - j : PANEL;
            if (width == PANEL && cb == 1) memcpy(to, from, PANEL * sizeof(real));
            else
                for (long c = 0; c < PANEL; c++) to[c] = c < width ? from[c * cb] : 0;
        }
}

/* nr rows of a panel of out, or added to them: a (nr, k), numbers ra apart down and ca apart along, b (k, PANEL) */
INLINE void block(const real *a, long ra, long ca, const real *b, real *out, long ldo, long k, const int nr, int add) {
    span sum[6][2];
#pragma GCC unroll 6
    for (int i = 0; i < nr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) sum[i][j] = add ? *(const span *)(out + i * ldo + j * SPAN) : (span){0};
    for (long p = 0; p < k; p++) {
        const span row[2] = {*(const span *)(b + p * PANEL), *(const span *)(b + p * PANEL + SPAN)};
#pragma GCC unroll 6
        for (int i = 0; i < nr; i++)
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) sum[i][j] += a[i * ra + p * ca] * row[j];
    }
#pragma GCC unroll 6
    for (int i = 0; i < nr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) *(span *)(out + i * ldo + j * SPAN) = sum[i][j];
}

static void rows_of(const real *a, long ra, long ca, const real *b, real *out, long ldo, long m, long k, int add) {
    long i = 0;
    for (; i + 6 <= m; i += 6) block(a + i * ra, ra, ca, b, out + i * ldo, ldo, k, 6, add);
    for (; i + 4 <= m; i += 4) block(a + i * ra, ra, ca, b, out + i * ldo, ldo, k, 4, add);
    for (; i + 2 <= m; i += 2) block(a + i * ra, ra, ca, b, out + i * ldo, ldo, k, 2, add);
    if (i < m) block(a + i * ra, ra, ca, b, out + i * ldo, ldo, k, 1, add);
}

/* a (m, k), numbers ra apart down and ca apart along, by a packed (k, n) → out (m, n), rows ldo apart, or added to it */
static void multiply(const real *a, long ra, long ca, const real *packed, real *out, long ldo, long m, long k, long n, int add) {
    long j = 0;
    for (; j + PANEL <= n; j += PANEL, packed += k * PANEL) rows_of(a, ra, ca, packed, out + j, ldo, m, k, add);
    if (j < n)
        for (long i = 0; i < m; i++) { /* what is less than a panel goes through one that is whole */
            real whole[PANEL] = {0};
            if (add) memcpy(whole, out + i * ldo + j, (size_t)(n - j) * sizeof(real));
            rows_of(a + i * ra, ra, ca, packed, whole, PANEL, 1, k, add);
            memcpy(out + i * ldo + j, whole, (size_t)(n - j) * sizeof(real));
        }
}
