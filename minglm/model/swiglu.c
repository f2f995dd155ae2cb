/* The activation between the two products of an expert, and its gradients, in one pass each: what `gated` and
   `gated_backward` of minglm/model/moe.py say in torch.

Shapes: n rows, F width; a row of `inner` (n, 2F) holds what silu is taken of, then what it is multiplied by. */

#include "kernels.h"

/* hidden (n, F) = silu(g) · u · gate, gate (n,), of rows first to last - 1 */
void swiglu(const float *inner, const float *gate, long first, long last, long F, float *hidden) {
    for (long i = first; i < last; i++) {
        const float *restrict g = inner + 2 * F * i, *restrict u = g + F;
        float *restrict out = hidden + F * i;
        memcpy(out, g, (size_t)F * sizeof(float));
        exponentials(out, F, -1, 0);
        for (long f = 0; f < F; f++) out[f] = g[f] / (1 + out[f]) * u[f] * gate[i];
    }
}

/* d_inner (n, 2F), d_gate (n,) and hidden (n, F) once more, from d_hidden (n, F) */
void swiglu_backward(const float *inner, const float *gate, const float *d_hidden, long first, long last, long F,
                     float *hidden, float *d_inner, float *d_gate) {
    for (long i = first; i < last; i++) {
        const float *restrict g = inner + 2 * F * i, *restrict u = g + F, *restrict d = d_hidden + F * i;
        float *restrict out = hidden + F * i, *restrict d_g = d_inner + 2 * F * i, *restrict d_u = d_g + F;
        memcpy(d_g, g, (size_t)F * sizeof(float));
        exponentials(d_g, F, -1, 0);
        for (long f = 0; f < F; f++) {
            const float sigmoid = 1 / (1 + d_g[f]), act = g[f] * sigmoid, scaled = d[f] * gate[i];
            out[f] = act * u[f];
            d_u[f] = scaled * act;
            d_g[f] = scaled * u[f] * (sigmoid + act * (1 - sigmoid)); /* silu' = sigmoid + silu·(1 - sigmoid) */
        }
        d_gate[i] = dot(d, out, F);
        for (long f = 0; f < F; f++) out[f] *= gate[i];
    }
}
