/* The layers of a step of decoding: what minglm/inference/decoder.py computes with operations of torch, in one call.

Decoding a few tokens is hundreds of small operations, and between two of them lie a few microseconds in which nothing is
computed. Here nothing lies between. Every row is computed alone, its sums taken in an order that hangs on nothing but
the widths: a token gets the same bits in any batch and on any thread.

Shapes as in decoder.py: N rows (tokens) of sequences in a cache, S positions a row may read, H heads, L latent width,
r rope width, R = L + r, Q query latent, Hi/Di indexer heads and width, C hidden, F width of a feed-forward, E experts,
K chosen ones, k chosen keys, V vocabulary. Matrices are (out, in), rows one after the other. */

#include <math.h>
#include <stdlib.h>

#include "kernels.h"

typedef struct {
    int64_t C, H, L, r, Q, Hi, Di, k, E, K, V, sparse;
    double norm_eps, latent_eps, gate_scale;
    const real *rope;                                  /* (positions, 2, r): cos, sin, each twice */
    real *latent;                                      /* the cache: (layers, rows, max_len, R) */
    real *index;                                       /* (layers with an indexer, rows, max_len, Di) */
    int64_t latent_layer, latent_row, index_layer, index_row; /* steps of it, in numbers */
    const real *norm, *head;                           /* (C), (V, C) */
} Model;

typedef struct {
    const real *norm_in, *w_in, *norm_q, *w_q, *norm_kv, *w_out, *norm_ffn;
    const real *index_q, *index_norm, *index_norm_bias;    /* NULL: reads the keys that the layer before chose */
    const real *gate_up, *down;                            /* a dense feed-forward or the shared expert, or NULL */
    const real *router, *router_bias, *expert_gate_up, *expert_down; /* NULL: no experts */
    int64_t width, expert_width, cache_layer, index_layer;
} Layer;

/* ---------------------------------------------------------------- small parts */

static void rms_norm(const real *x, const real *weight, double eps, long n, real *out) {
    const real factor = (real)(1.0 / sqrt((double)dot(x, x, n) / n + eps));
    for (long i = 0; i < n; i++) out[i] = x[i] * factor * weight[i];
}

static void layer_norm(const real *x, const real *weight, const real *bias, double eps, long n, real *out) {
    double mean = 0, square = 0;
    for (long i = 0; i < n; i++) mean += x[i];
    mean /= n;
    for (long i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    const double factor = 1.0 / sqrt(square / n + eps);
    for (long i = 0; i < n; i++) out[i] = (real)((x[i] - mean) * factor) * weight[i] + bias[i];
}

/* pairs (0, 1), (2, 3), … of x (r), in place */
static void rotate(real *x, const real *rope, long r) {
    const real *cosine = rope, *sine = rope + r;
    for (long i = 0; i < r; i += 2) {
        const real a = x[i], b = x[i + 1];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + 1] = a * sine[i] + b * cosine[i];
    }
}

static void sigmoid(real *x, long n) {
    exponentials(x, n, -1, 0);
    for (long i = 0; i < n; i++) x[i] = 1 / (1 + x[i]);
}

/* (n, 2F) gate and up → silu(gate) · up, in the place of the up; the next row begins 2F further on */
static void swiglu(real *inner, long F, long n) {
    for (long i = 0; i < n; i++) {
        real *gate = inner + i * 2 * F, *up = gate + F;
        for (long f = 0; f < F; f++) up[f] *= gate[f];
        sigmoid(gate, F);
        for (long f = 0; f < F; f++) up[f] *= gate[f];
    }
}

/* ---------------------------------------------------------------- room */

/* What a step needs beside its input: given out from one block, freed at its end. */
typedef struct { char *next, *end; } Room;

static void *take(Room *room, long bytes) {
    void *out = room->next;
    room->next += (bytes + 63) / 64 * 64;
    return room->next <= room->end ? out : NULL;
}

#define REALS(count) ((real *)take(room, (long)(count) * (long)sizeof(real)))

/* ---------------------------------------------------------------- a layer */

typedef struct {
    const Model *m;
    long N;                      /* rows */
    const int64_t *rows, *positions;
    int32_t *chosen;             /* (N, k): what the last layer with an indexer chose */
    int *every;                  /* (N): all keys are read */
    real *x, *h, *in, *q_latent, *q, *attended, *dots, *scores, *keys, *inner, *gathered, *out;
    real *router;
    int64_t *picked;             /* (N, K) */
    real *gates;
    int32_t *members;
    uint64_t *order;
} Step;

static void attend(const Layer *layer, Step *s) {
    const Model *m = s->m;
    const long C = m->C, H = m->H, L = m->L, r = m->r, R = L + r, Q = m->Q, Hi = m->Hi, Di = m->Di, N = s->N;
    const int index = m->sparse && layer->index_q != NULL;
    const long in = Q + R + (layer->index_q != NULL ? Di + Hi : 0);
    for (long n = 0; n < N; n++) rms_norm(s->x + n * C, layer->norm_in, m->norm_eps, C, s->h + n * C);
    product(layer->w_in, s->h, C, s->in, in, in, C, N, 0);
    for (long n = 0; n < N; n++) rms_norm(s->in + n * in, layer->norm_q, m->latent_eps, Q, s->q_latent + n * Q);
    product(layer->w_q, s->q_latent, Q, s->q, H * R, H * R, Q, N, 0);
    for (long n = 0; n < N; n++) { /* all keys first: a token may read one of the same step */
        const real *rope = m->rope + s->positions[n] * 2 * r;
        real *key = m->latent + layer->cache_layer * m->latent_layer + s->rows[n] * m->latent_row + s->positions[n] * R;
        for (long h = 0; h < H; h++) rotate(s->q + (n * H + h) * R + L, rope, r);
        rms_norm(s->in + n * in + Q, layer->norm_kv, m->latent_eps, L, key);
        memcpy(key + L, s->in + n * in + Q + L, (size_t)r * sizeof(real));
        rotate(key + L, rope, r);
        if (index) {
            key = m->index + layer->index_layer * m->index_layer + s->rows[n] * m->index_row + s->positions[n] * Di;
            layer_norm(s->in + n * in + Q + R, layer->index_norm, layer->index_norm_bias, m->latent_eps, Di, key);
            rotate(key, rope, r);
        }
    }
    for (long n = 0; n < N; n++) {
        const long end = s->positions[n] + 1;
        const real *store = m->latent + layer->cache_layer * m->latent_layer + s->rows[n] * m->latent_row;
        int32_t *chosen = s->chosen + n * m->k;
        if (index && !(s->every[n] = end <= m->k)) {
            const real *rope = m->rope + s->positions[n] * 2 * r, *w = s->in + n * in + Q + R + Di;
            product(layer->index_q, s->q_latent + n * Q, Q, s->out, Hi * Di, Hi * Di, Q, 1, 0);
            for (long h = 0; h < Hi; h++) rotate(s->out + h * Di, rope, r);
            product(m->index + layer->index_layer * m->index_layer + s->rows[n] * m->index_row, s->out, Di, s->dots, end,
                    end, Di, Hi, 0);
            weigh(s->dots, w, Hi, end, s->scores);
            largest(s->scores, end, m->k, chosen, s->order);
        }
        long read = end;
        if (!s->every[n]) {
            read = m->k;
            for (long p = 0; p < read; p++) memcpy(s->keys + p * R, store + chosen[p] * R, (size_t)R * sizeof(real));
            store = s->keys;
        }
        product(store, s->q + n * H * R, R, s->dots, read, read, R, H, 0); /* (H, read) */
        for (long h = 0; h < H; h++) softmax(s->dots + h * read, read);
        mix(s->dots, read, store, R, s->attended + n * H * L, L, H);
    }
    product(layer->w_out, s->attended, H * L, s->x, C, C, H * L, N, 1);
}

/* Experts in rising order, each with all rows that chose it: a row's sum is in the same order whoever else is there. */
static void experts(const Layer *layer, Step *s) {
    const Model *m = s->m;
    const long C = m->C, E = m->E, K = m->K, F = layer->expert_width, N = s->N;
    product(layer->router, s->h, C, s->router, E, E, C, N, 0);
    for (long n = 0; n < N; n++) {
        real *scores = s->router + n * E, total = 0;
        int64_t *picked = s->picked + n * K;
        sigmoid(scores, E);
        for (long i = 0; i < K; i++) { /* the largest not taken yet */
            long best = -1;
            for (long e = 0; e < E; e++) {
                int taken = 0;
                for (long j = 0; j < i; j++) taken |= picked[j] == e;
                if (!taken && (best < 0 || scores[e] + layer->router_bias[e] > scores[best] + layer->router_bias[best]))
                    best = e;
            }
            picked[i] = best;
            s->gates[n * K + i] = scores[best];
            total += scores[best];
        }
        for (long i = 0; i < K; i++) s->gates[n * K + i] *= (real)(m->gate_scale / ((double)total + 1e-20));
    }
    for (long e = 0; e < E; e++) {
        long count = 0;
        for (long i = 0; i < N * K; i++)
            if (s->picked[i] == e) {
                s->members[count] = (int32_t)i;
                memcpy(s->gathered + count++ * C, s->h + i / K * C, (size_t)C * sizeof(real));
            }
        if (!count) continue;
        product(layer->expert_gate_up + e * 2 * F * C, s->gathered, C, s->inner, 2 * F, 2 * F, C, count, 0);
        swiglu(s->inner, F, count);
        product(layer->expert_down + e * C * F, s->inner + F, 2 * F, s->out, C, C, F, count, 0);
        for (long i = 0; i < count; i++) {
            real *x = s->x + s->members[i] / K * C;
            for (long c = 0; c < C; c++) x[c] += s->gates[s->members[i]] * s->out[i * C + c];
        }
    }
}

static void feed_forward(const Layer *layer, Step *s) {
    const long C = s->m->C, F = layer->width;
    for (long n = 0; n < s->N; n++) rms_norm(s->x + n * C, layer->norm_ffn, s->m->norm_eps, C, s->h + n * C);
    if (layer->gate_up != NULL) {
        product(layer->gate_up, s->h, C, s->inner, 2 * F, 2 * F, C, s->N, 0);
        swiglu(s->inner, F, s->N);
        product(layer->down, s->inner + F, 2 * F, s->x, C, C, F, s->N, 1);
    }
    if (layer->router != NULL) experts(layer, s);
}

/* ---------------------------------------------------------------- the step */

/* x (N, C) through the layers, in place. `rows`, `positions` (N): where each stands in the cache. `routes` (layers, N, K)
   takes the experts chosen, and `chosen` (N, k) the keys that the last layer read (-1 first where all are); `logits`
   (N, V), unless NULL, what follows each. Returns 0, or 1 where memory is not to be had. */
int decode(const Model *m, const Layer *layers, int64_t count, int64_t N, const int64_t *rows, const int64_t *positions,
           real *x, int64_t *routes, int32_t *chosen, real *logits) {
    const long C = m->C, H = m->H, L = m->L, R = L + m->r, K = m->K;
    long most = 0, width = 0, expert_width = 0;
    for (long n = 0; n < N; n++) most = positions[n] >= most ? positions[n] + 1 : most;
    for (long i = 0; i < count; i++) {
        width = layers[i].width > width ? layers[i].width : width;
        expert_width = layers[i].expert_width > expert_width ? layers[i].expert_width : expert_width;
    }
    const long in = m->Q + R + m->Di + m->Hi, heads = H > m->Hi ? H : m->Hi;
    const long inner = 2 * (width > expert_width ? width : expert_width), out = C > m->Hi * m->Di ? C : m->Hi * m->Di;
    const long reals = N * (C + in + m->Q + H * R + H * L + m->E + K + inner + C + out) + heads * most + most + m->k * R;
    const long bytes = reals * (long)sizeof(real) + N * (K * 12 + 4) + most * 8 + 32 * 64;
    char *block = malloc((size_t)bytes);
    if (block == NULL) return 1;
    Room place = {block, block + bytes}, *room = &place;
    Step s = {.m = m, .N = N, .rows = rows, .positions = positions, .x = x, .chosen = chosen};
    s.h = REALS(N * C), s.in = REALS(N * in), s.q_latent = REALS(N * m->Q), s.q = REALS(N * H * R);
    s.attended = REALS(N * H * L), s.router = REALS(N * m->E), s.gates = REALS(N * K), s.inner = REALS(N * inner);
    s.gathered = REALS(N * C), s.out = REALS(N * out), s.dots = REALS(heads * most), s.scores = REALS(most);
    s.keys = REALS(m->k * R), s.picked = take(room, N * K * 8), s.members = take(room, N * K * 4);
    s.every = take(room, N * (long)sizeof(int)), s.order = take(room, most * 8);
    if (s.order == NULL) { free(block); return 1; }
    for (long n = 0; n < N; n++) s.every[n] = 1;
    for (long i = 0; i < count; i++) {
        attend(&layers[i], &s);
        feed_forward(&layers[i], &s);
        if (routes != NULL && layers[i].router != NULL) {
            memcpy(routes, s.picked, (size_t)(N * K) * sizeof(int64_t));
            routes += N * K;
        }
    }
    for (long n = 0; n < N; n++)
        if (s.every[n]) chosen[n * m->k] = -1;
    if (logits != NULL) {
        for (long n = 0; n < N; n++) rms_norm(x + n * C, m->norm, m->norm_eps, C, s.h + n * C);
        product(m->head, s.h, C, logits, m->V, m->V, C, N, 0);
    }
    free(block);
    return 0;
}
