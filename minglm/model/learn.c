/* The indexer's loss on the keys that it chose, and its gradients: what `_TopkKL` of minglm/model/indexer_loss.py says in
   torch, query by query, so that what a query needs stays in the core's first cache.

Shapes: B batch, T queries, S keys, Hi/Di indexer heads and width, k chosen. */

#include <stdlib.h>

#include "kernels.h"

typedef struct {
    int64_t Hi, Di, k, T, S;
    const float *q, *w, *keys;         /* (B, T, Hi, Di), (B, T, Hi), (B, S, Di) */
    const int64_t *chosen;             /* (B, T, k), -1 where there is none */
    const float *p, *weights;          /* (B, T, k) the attention paid, (B, T) what a query counts */
    float *d_q, *d_w;                  /* as q and w */
} Loss;

/* Σ weight · KL(p ‖ softmax(scores)) of chunks of queries, parts (count, 3) of sequence, first query and the one after the
   last, added to *total; gradients to d_q and d_w, those of the keys added to d_keys (B, S, Di), unless that is NULL. */
int learn(const Loss *c, const int64_t *parts, int64_t count, float *d_keys, double *total) {
    const long Hi = c->Hi, Di = c->Di, k = c->k;
    float *rows = malloc((size_t)(k * (Di + 2 * Hi + 3)) * sizeof(float) + (size_t)k * sizeof(int64_t));
    if (rows == NULL) return 1;
    int64_t *places = (int64_t *)rows;
    rows += k * (long)(sizeof(int64_t) / sizeof(float));
    float *dots = rows + k * Di, *d_dots = dots + k * Hi, *scores = d_dots + k * Hi, *p = scores + k, *q_index = p + k;
    for (long part = 0; part < count; part++)
        for (long at = parts[3 * part] * c->T + parts[3 * part + 1]; at < parts[3 * part] * c->T + parts[3 * part + 2]; at++) {
            const float *q = c->q + at * Hi * Di, *w = c->w + at * Hi, *keys = c->keys + at / c->T * c->S * Di;
            long n = 0;
            for (long j = 0; j < k; j++)
                if (c->chosen[at * k + j] >= 0) {
                    places[n] = c->chosen[at * k + j], p[n] = c->p[at * k + j];
                    memcpy(rows + n++ * Di, keys + c->chosen[at * k + j] * Di, (size_t)Di * sizeof(float));
                }
            product(rows, q, Di, dots, n, n, Di, Hi, 0);
            weigh(dots, w, Hi, n, scores);
            float most = n ? scores[0] : 0;
            double sum = 0, kl = 0;
            for (long j = 1; j < n; j++) most = scores[j] > most ? scores[j] : most;
            for (long j = 0; j < n; j++) q_index[j] = scores[j];
            exponentials(q_index, n, 1, most);
            for (long j = 0; j < n; j++) sum += q_index[j];
            const double log_sum = most + log(sum);
            for (long j = 0; j < n; j++)
                if (p[j] > 0) kl += p[j] * ((double)logf(p[j]) - scores[j] + log_sum);
            *total += n ? kl * c->weights[at] : 0;
            if (d_keys == NULL) continue;
            float *d_index = scores, *d_rows = d_keys + at / c->T * c->S * Di;
            for (long j = 0; j < n; j++) d_index[j] = (q_index[j] * (float)(1 / sum) - p[j]) * c->weights[at];
            for (long h = 0; h < Hi; h++) {
                for (long j = 0; j < n; j++) d_dots[h * n + j] = dots[h * n + j] > 0 ? w[h] * d_index[j] : 0;
                for (long j = 0; j < n; j++) dots[h * n + j] = dots[h * n + j] < 0 ? 0 : dots[h * n + j];
                c->d_w[at * Hi + h] = dot(dots + h * n, d_index, n);
            }
            mix(d_dots, n, rows, Di, c->d_q + at * Hi * Di, Di, Hi);
            for (long j = 0; j < n; j++) {
                float *d_row = d_rows + places[j] * Di;
                for (long h = 0; h < Hi; h++)
                    for (long d = 0; d < Di; d++) d_row[d] += d_dots[h * n + j] * q[h * Di + d];
            }
        }
    free(places);
    return 0;
}
