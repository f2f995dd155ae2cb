/* The experts of a layer, each whole on one core: the products of the rows that chose it, the activation between them, and all
   gradients. `GroupedSwiGLU` of minglm/model/moe.py says the same in torch.

Shapes: N tokens, K choices each, C hidden, E experts, F expert width, n choices, sorted by expert; a row of `inner` (n, 2F)
holds what silu is taken of, then what it is multiplied by. */

#include <stdlib.h>

#include "kernels.h"
#include "multiply.h"
#include "rounding.h"

/* hidden (n, F) = silu(g) · u · gate, gate (n,) */
void swiglu(const float *inner, const float *gate, long n, long F, float *hidden) {
    for (long i = 0; i < n; i++) {
        const float *restrict g = inner + 2 * F * i, *restrict u = g + F;
        float *restrict out = hidden + F * i;
        memcpy(out, g, (size_t)F * sizeof(float));
        exponentials(out, F, -1, 0);
        for (long f = 0; f < F; f++) out[f] = g[f] / (1 + out[f]) * u[f] * gate[i];
    }
}

/* d_inner (n, 2F), d_gate (n,) and hidden (n, F) once more, from d_hidden (n, F) */
static void swiglu_backward(const float *inner, const float *gate, const float *d_hidden, long n, long F, float *hidden,
                            float *d_inner, float *d_gate) {
    for (long i = 0; i < n; i++) {
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

/* ---------------------------------------------------------------- whole experts */

#define ROWS 96 /* of an expert at a time: what they need between its products stays in the cache */
#define FEW 16  /* rows below which packing a matrix costs more than it saves */

struct experts {
    int64_t C, F;
    int64_t rounding, tile; /* of `hidden`: 0 none; 8 to e4m3, a scale for each `tile` neighbours; 1 to whole numbers */
    const float *x, *gate_up, *down, *gate; /* (N, C), (E, 2F, C), (E, C, F), (n,) */
    const int64_t *token;                   /* (n,): whose row a choice reads */
    float *inner, *out;                     /* (n, 2F), (n, C) */
    const float *d_out;                     /* (N, C): gradient of each token's sum */
    float *d_rows, *d_gate_up, *d_down, *d_gate; /* (n, C), (E, 2F, C), (E, C, F), (n,) */
};

static void gather(const float *from, const int64_t *token, long n, long C, float *to) {
    for (long i = 0; i < n; i++) memcpy(to + i * C, from + token[i] * C, (size_t)C * sizeof(float));
}

/* hidden (n, F) rounded as a format does that rounds what it multiplies, and multiplied back; scales (n,) is room */
static void rounded(const struct experts *e, const float *hidden, long n, float *out, float *scales) {
    if (e->rounding == 8) to_fp8(hidden, n, e->F, e->tile, out);
    else {
        to_int8(hidden, n, e->F, out, scales);
        for (long i = 0; i < n; i++)
            for (long f = 0; f < e->F; f++) out[i * e->F + f] *= scales[i];
    }
}

/* inner and out of `count` experts: (expert, its first choice, the one after its last). 1 where there is no room. */
int forward(const struct experts *e, const int64_t *share, int64_t count) {
    const long C = e->C, F = e->F;
    float *room = malloc((PACKED(C, 2 * F) + PACKED(F, C) + ROWS * (C + 2 * F + 1)) * sizeof(float));
    if (!room) return 1;
    float *packed_up = room, *packed_down = packed_up + PACKED(C, 2 * F), *rows = packed_down + PACKED(F, C),
          *hidden = rows + ROWS * C, *room_for_rounded = hidden + ROWS * F;
    for (; count > 0; count--, share += 3) {
        const float *gate_up = e->gate_up + share[0] * 2 * F * C, *down = e->down + share[0] * C * F;
        const int few = share[2] - share[1] < FEW;
        if (!few) {
            pack(gate_up, 1, C, C, 2 * F, packed_up);
            pack(down, 1, F, F, C, packed_down);
        }
        for (long at = share[1]; at < share[2]; at += ROWS) {
            const long n = share[2] - at < ROWS ? share[2] - at : ROWS;
            float *inner = e->inner + at * 2 * F, *out = e->out + at * C;
            gather(e->x, e->token + at, n, C, rows);
            if (few) product(gate_up, rows, C, inner, 2 * F, 2 * F, C, n, 0);
            else multiply(rows, C, 1, packed_up, inner, 2 * F, n, C, 2 * F, 0);
            swiglu(inner, e->gate + at, n, F, hidden);
            const float *read = hidden;
            if (e->rounding) {
                rounded(e, hidden, n, room_for_rounded, room_for_rounded + ROWS * F);
                read = room_for_rounded;
            }
            if (few) product(down, read, F, out, C, C, F, n, 0);
            else multiply(read, F, 1, packed_down, out, C, n, F, C, 0);
        }
    }
    free(room);
    return 0;
}

/* The gradients of `count` experts, of which none is without a choice. 1 where there is no room. */
int backward(const struct experts *e, const int64_t *share, int64_t count) {
    const long C = e->C, F = e->F;
    float *room = malloc((PACKED(C, F) + PACKED(2 * F, C) + PACKED(ROWS, F) + PACKED(ROWS, C) + ROWS * (2 * C + 4 * F)) *
                         sizeof(float));
    if (!room) return 1;
    float *packed_down = room, *packed_up = packed_down + PACKED(C, F), *packed_hidden = packed_up + PACKED(2 * F, C),
          *packed_rows = packed_hidden + PACKED(ROWS, F), *rows = packed_rows + PACKED(ROWS, C), *d_out = rows + ROWS * C,
          *d_hidden = d_out + ROWS * C, *hidden = d_hidden + ROWS * F, *d_inner = hidden + ROWS * F;
    for (; count > 0; count--, share += 3) {
        float *d_gate_up = e->d_gate_up + share[0] * 2 * F * C, *d_down = e->d_down + share[0] * C * F;
        pack(e->down + share[0] * C * F, F, 1, C, F, packed_down);
        pack(e->gate_up + share[0] * 2 * F * C, C, 1, 2 * F, C, packed_up);
        for (long at = share[1]; at < share[2]; at += ROWS) {
            const long n = share[2] - at < ROWS ? share[2] - at : ROWS;
            const int more = at > share[1];
            gather(e->x, e->token + at, n, C, rows);
            gather(e->d_out, e->token + at, n, C, d_out);
            multiply(d_out, C, 1, packed_down, d_hidden, F, n, C, F, 0); /* gradient of gate·hidden */
            swiglu_backward(e->inner + at * 2 * F, e->gate + at, d_hidden, n, F, hidden, d_inner, e->d_gate + at);
            pack(hidden, F, 1, n, F, packed_hidden);
            multiply(d_out, 1, C, packed_hidden, d_down, F, C, n, F, more);
            pack(rows, C, 1, n, C, packed_rows);
            multiply(d_inner, 1, 2 * F, packed_rows, d_gate_up, C, 2 * F, n, C, more);
            multiply(d_inner, 2 * F, 1, packed_up, e->d_rows + at * C, C, n, 2 * F, C, 0);
        }
    }
    free(room);
    return 0;
}
