/* Muon's iteration on a stack of matrices, each whole on one core: what `orthogonalize` of minglm/training/optim.py says in torch.

Shapes: a matrix is (m, n) with m <= n. */

#include <stdlib.h>

#include "kernels.h"
#include "multiply.h"

/* a (m, k) by b, packed (k, m), where the product is symmetric: what lies on and below the diagonal, and its mirror image */
static void symmetric(const float *a, const float *b, float *out, long m, long k) {
    for (long j = 0; j < m; j += PANEL)
        multiply(a + j * k, k, 1, b + j * k, out + j * m + j, m, m - j, k, m - j < PANEL ? m - j : PANEL, 0);
    for (long i = 0; i < m; i++)
        for (long j = i + 1; j < m; j++) out[i * m + j] = out[j * m + i];
}

/* `steps` times x = a x + (b g + c g g) x with g = x x', for matrices first to last - 1 of x, in place; 1 where there is no room */
int orthogonalise(float *x, long first, long last, long m, long n, long steps, float a, float b, float c) {
    float *room = malloc(((size_t)(2 * m * m) + PACKED(n, m) + PACKED(m, n)) * sizeof(float));
    if (!room) return 1;
    float *gram = room, *poly = gram + m * m, *turned = poly + m * m, *packed = turned + PACKED(n, m);
    for (long at = first; at < last; at++) {
        float *now = x + at * m * n;
        for (long step = 0; step < steps; step++) {
            pack(now, 1, n, n, m, turned);
            symmetric(now, turned, gram, m, n);
            pack(gram, m, 1, m, m, turned);
            symmetric(gram, turned, poly, m, m);
            for (long i = 0; i < m * m; i++) poly[i] = b * gram[i] + c * poly[i];
            pack(now, n, 1, m, n, packed);
            for (long i = 0; i < m * n; i++) now[i] *= a;
            multiply(poly, m, 1, packed, now, n, m, m, n, 1);
        }
    }
    free(room);
    return 0;
}
