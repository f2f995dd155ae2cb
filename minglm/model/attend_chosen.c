/* Attention of absorbed queries to the latents that were chosen for them, and its gradients: what `_SparseAttention` of
   minglm/model/sparse_attention.py says in torch between its products with the up-projections, query by query, so that
   the keys of a query are gathered into the core's own cache and never written to memory.

Shapes: B batch, T queries, S keys, H heads, k chosen, R width of a latent with its rotary key, L of which is the value. */

#include <stdlib.h>

#include "kernels.h"

typedef struct {
    int64_t H, k, R, L, T, S;
    const float *latent;               /* (B, S, R) */
    const int64_t *chosen;             /* (B, T, k), -1 where there is none */
    float scale;
    const float *q;                    /* (B, T, H, R) */
    float *probs, *attended, *p;       /* (B, T, H, k), (B, T, H, L), (B, T, k) the mean over heads, or NULL */
    const float *d_attended;           /* (B, T, H, L) */
    float *d_q;                        /* (B, T, H, R) */
} Attention;

/* The chosen latents of one query, one after the other, and where they stand among the k; how many there are. */
static long gather(const Attention *c, long at, float *rows, int64_t *places) {
    const float *latent = c->latent + at / c->T * c->S * c->R;
    long n = 0;
    for (long j = 0; j < c->k; j++)
        if (c->chosen[at * c->k + j] >= 0) {
            places[n] = j;
            memcpy(rows + n++ * c->R, latent + c->chosen[at * c->k + j] * c->R, (size_t)c->R * sizeof(float));
        }
    return n;
}

/* n numbers to their places among the k, and back. Mostly the empty places are behind the others. */
static void spread(const float *from, const int64_t *places, long n, float *to) {
    if (n > 0 && places[n - 1] == n - 1) memcpy(to, from, (size_t)n * sizeof(float));
    else for (long j = 0; j < n; j++) to[places[j]] = from[j];
}

static void collect(const float *from, const int64_t *places, long n, float *to) {
    if (n > 0 && places[n - 1] == n - 1) memcpy(to, from, (size_t)n * sizeof(float));
    else for (long j = 0; j < n; j++) to[j] = from[places[j]];
}

/* probs, attended and p of chunks of queries: parts (count, 3) of sequence, first query and the one after the last. */
int attend(const Attention *c, const int64_t *parts, int64_t count) {
    const long H = c->H, k = c->k, R = c->R, L = c->L;
    int64_t *places = malloc((size_t)k * sizeof(int64_t) + (size_t)(k * (R + H)) * sizeof(float));
    if (places == NULL) return 1;
    float *rows = (float *)(places + k), *weights = rows + k * R;
    for (long part = 0; part < count; part++)
        for (long at = parts[3 * part] * c->T + parts[3 * part + 1]; at < parts[3 * part] * c->T + parts[3 * part + 2]; at++) {
            const long n = gather(c, at, rows, places);
            float *probs = c->probs + at * H * k;
            product(rows, c->q + at * H * R, R, weights, n, n, R, H, 0);
            for (long i = 0; i < H * n; i++) weights[i] *= c->scale;
            for (long h = 0; h < H; h++) softmax(weights + h * n, n);
            mix(weights, n, rows, R, c->attended + at * H * L, L, H);
            if (n < k) memset(probs, 0, (size_t)(H * k) * sizeof(float));
            for (long h = 0; h < H; h++) spread(weights + h * n, places, n, probs + h * k);
            if (c->p == NULL) continue;
            float *p = c->p + at * k;
            memset(p, 0, (size_t)k * sizeof(float));
            for (long h = 0; h < H; h++)
                for (long j = 0; j < k; j++) p[j] += probs[h * k + j] / (float)H;
        }
    free(places);
    return 0;
}

/* d_q of chunks of queries; what they give the latents is added to d_latent (B, S, R). */
int attend_backward(const Attention *c, const int64_t *parts, int64_t count, float *d_latent) {
    const long H = c->H, k = c->k, R = c->R, L = c->L;
    int64_t *places = malloc((size_t)k * sizeof(int64_t) + (size_t)(2 * k * R + 2 * H * (k + R)) * sizeof(float));
    if (places == NULL) return 1;
    /* A key's gradient is dS^T q + (P^T dA, 0): one product of the stacked pairs [dS; P] and [q; (dA, 0)]. */
    float *rows = (float *)(places + k), *d_rows = rows + k * R, *left = d_rows + k * R, *right = left + 2 * H * k;
    memset(right, 0, (size_t)(2 * H * R) * sizeof(float));
    for (long part = 0; part < count; part++)
        for (long at = parts[3 * part] * c->T + parts[3 * part + 1]; at < parts[3 * part] * c->T + parts[3 * part + 2]; at++) {
            const long n = gather(c, at, rows, places);
            const float *probs = c->probs + at * H * k, *d_attended = c->d_attended + at * H * L;
            float *d_scores = left, *weights = left + H * n, *d_store = d_latent + at / c->T * c->S * R;
            memcpy(right, c->q + at * H * R, (size_t)(H * R) * sizeof(float));
            for (long h = 0; h < H; h++) memcpy(right + (H + h) * R, d_attended + h * L, (size_t)L * sizeof(float));
            product_of(rows, R, d_attended, L, d_scores, n, n, L, H, 0);
            for (long h = 0; h < H; h++) {
                float *d_score = d_scores + h * n, *weight = weights + h * n;
                const float paid = dot(d_attended + h * L, c->attended + (at * H + h) * L, L);
                collect(probs + h * k, places, n, weight);
                for (long j = 0; j < n; j++) d_score[j] = (d_score[j] - paid) * weight[j] * c->scale;
            }
            mix(d_scores, n, rows, R, c->d_q + at * H * R, R, H);
            mix_of(left, 1, n, 2 * H, right, R, d_rows, R, R, n, 0);
            for (long j = 0; j < n; j++) {
                float *row = d_store + c->chosen[at * k + places[j]] * R;
                for (long r = 0; r < R; r++) row[r] += d_rows[j * R + r];
            }
        }
    free(places);
    return 0;
}
