/* Causal attention inside each document of packed rows, and its gradients: what `_ByDocument` of minglm/model/documents.py
   asks torch for, document by document. Most documents are shorter than what torch's own attention is made for.

Shapes: B rows, T positions, H heads, D width of queries and keys, V of values. */

#include <stdlib.h>

#include "kernels.h"

#define BLOCK 12 /* queries that read the keys together */
#define NEVER -1e30f /* the score of a key that lies ahead of a query */

typedef struct {
    int64_t H, T, D, V, key_row, key_head, value_row, value_head; /* floats from a position, a head to the next */
    float scale;
    const float *q, *k, *v;            /* (B, T, H, D); keys and values may be parts of wider rows */
    float *out, *log_sums;             /* (B, T, H, V), (B, T, H) log of the sum of exponentials */
    const float *d_out;                /* (B, T, H, V) */
    float *d_q, *d_k, *d_v;            /* (B, T, H, D), (B, T, H, D), (B, T, H, V) */
} Packed;

/* One head's part of one document: where its first query, key, ... is, and how far it is to the next position's. */
typedef struct {
    long n, q_row, out_row;
    const float *q, *k, *v, *d_out;
    float *out, *log_sums, *d_q, *d_k, *d_v;
} Document;

static Document document(const Packed *c, const int64_t *part) {
    const long first = part[0] * c->T + part[1], head = part[3], at = first * c->H + head;
    Document d = {.n = part[2] - part[1], .q_row = c->H * c->D, .out_row = c->H * c->V};
    d.q = c->q + at * c->D;
    d.k = c->k + first * c->key_row + head * c->key_head;
    d.v = c->v + first * c->value_row + head * c->value_head;
    d.out = c->out + at * c->V, d.log_sums = c->log_sums + at;
    if (c->d_out != NULL) {
        d.d_out = c->d_out + at * c->V;
        d.d_q = c->d_q + at * c->D, d.d_k = c->d_k + at * c->D, d.d_v = c->d_v + at * c->V;
    }
    return d;
}

static long longest(const int64_t *parts, int64_t count) {
    long most = 0;
    for (long p = 0; p < count; p++) most = parts[4 * p + 2] - parts[4 * p + 1] > most ? parts[4 * p + 2] - parts[4 * p + 1] : most;
    return most;
}

/* Room for the scores of a query with n keys: whole vectors, so that no number is left over. */
static long room(long n) { return (n + WIDE - 1) / WIDE * WIDE; }

/* rows of store (n, width), ld apart → columns (width, wide), 0 behind the n: products with them need no sum over lanes */
static void turn(const float *store, long ld, long n, long width, float *columns, long wide) {
    for (long c = 0; c < width; c++) {
        for (long j = 0; j < n; j++) columns[c * wide + j] = store[j * ld + c];
        for (long j = n; j < wide; j++) columns[c * wide + j] = 0;
    }
}

/* out and log_sums of documents: parts (count, 4) of row, first position, the one after the last, head */
int attend(const Packed *c, const int64_t *parts, int64_t count) {
    const long most = room(longest(parts, count));
    float *weights = malloc((size_t)((BLOCK + c->D) * most) * sizeof(float)), *keys = weights + BLOCK * most;
    if (weights == NULL && most > 0) return 1;
    for (long p = 0; p < count; p++) {
        const Document d = document(c, parts + 4 * p);
        const long all = room(d.n);
        turn(d.k, c->key_row, d.n, c->D, keys, all);
        for (long t = 0; t < d.n; t += BLOCK) {
            const long end = t + BLOCK < d.n ? t + BLOCK : d.n, wide = room(end);
            mix_of(d.q + t * d.q_row, d.q_row, 1, c->D, keys, all, weights, wide, wide, end - t, 0);
            for (long i = t; i < end; i++) {
                float *weight = weights + (i - t) * wide;
                for (long j = i + 1; j < wide; j++) weight[j] = NEVER;
                const float most_of = c->scale * highest(weight, wide);
                exponentials(weight, wide, c->scale, most_of);
                for (long j = i + 1; j < wide; j++) weight[j] = 0;
                const float total = sum_of(weight, wide), share = 1 / total;
                for (long j = 0; j < wide; j++) weight[j] *= share;
                d.log_sums[i * c->H] = most_of + logf(total);
            }
            mix_of(weights, wide, 1, end, d.v, c->value_row, d.out + t * d.out_row, d.out_row, c->V, end - t, 0);
        }
    }
    free(weights);
    return 0;
}

/* d_q, d_k and d_v of documents */
int attend_backward(const Packed *c, const int64_t *parts, int64_t count) {
    const long most = room(longest(parts, count));
    float *weights = malloc((size_t)((2 * BLOCK + c->D + c->V) * most) * sizeof(float)), *d_scores = weights + BLOCK * most;
    float *keys = d_scores + BLOCK * most, *values = keys + c->D * most;
    if (weights == NULL && most > 0) return 1;
    for (long p = 0; p < count; p++) {
        const Document d = document(c, parts + 4 * p);
        const long all = room(d.n);
        turn(d.k, c->key_row, d.n, c->D, keys, all);
        turn(d.v, c->value_row, d.n, c->V, values, all);
        for (long j = 0; j < d.n; j++) {
            memset(d.d_k + j * d.q_row, 0, (size_t)c->D * sizeof(float));
            memset(d.d_v + j * d.out_row, 0, (size_t)c->V * sizeof(float));
        }
        for (long t = 0; t < d.n; t += BLOCK) {
            const long end = t + BLOCK < d.n ? t + BLOCK : d.n, n = end - t, wide = room(end);
            const float *q = d.q + t * d.q_row, *d_out = d.d_out + t * d.out_row;
            mix_of(q, d.q_row, 1, c->D, keys, all, weights, wide, wide, n, 0);
            mix_of(d_out, d.out_row, 1, c->V, values, all, d_scores, wide, wide, n, 0);
            for (long i = t; i < end; i++) {
                float *weight = weights + (i - t) * wide, *d_score = d_scores + (i - t) * wide;
                const float paid = dot(d.d_out + i * d.out_row, d.out + i * d.out_row, c->V);
                exponentials(weight, wide, c->scale, d.log_sums[i * c->H]);
                for (long j = i + 1; j < wide; j++) weight[j] = 0;
                for (long j = 0; j < wide; j++) d_score[j] = weight[j] * (d_score[j] - paid) * c->scale;
            }
            mix_of(d_scores, wide, 1, end, d.k, c->key_row, d.d_q + t * d.q_row, d.q_row, c->D, n, 0);
            mix_of(d_scores, 1, wide, n, q, d.q_row, d.d_k, d.q_row, c->D, end, 1);
            mix_of(weights, 1, wide, n, d_out, d.out_row, d.d_v, d.out_row, c->V, end, 1);
        }
    }
    free(weights);
    return 0;
}
