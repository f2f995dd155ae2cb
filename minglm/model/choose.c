/* The indexer's choice: for each query the k keys of the highest score Σ_h w[h] · max(0, q[h] · key), equal ones by the
   lowest position. What minglm/model/indexer.py says in torch, without writing a score to memory.

Most keys are far from being chosen, and to see that takes few bits. Queries and keys are rounded to whole numbers of some
13 bits, of which a processor multiplies twice as many at a time as of fp32. What rounding can change is bounded, and the
bound is where a sum begins: above zero for heads of positive weight, below for the others. So the sum is never under the
score, and a key is passed over where even this is not above what k earlier keys are known to reach. The few that remain
are scored in fp32 as decoding does it, and the best of these are the choice: the same as if all were.

Shapes: B batch, T queries, S keys, Hi/Di indexer heads and width, P pairs of Di, k chosen. */

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "kernels.h"

#if defined(__AVX2__) && !defined(PORTABLE)
#include <immintrin.h>
#define KEEP(a, b) __asm__("" : "+x"(a), "+x"(b)) /* in registers: else each product reads them again */
#else
#define KEEP(a, b)
#endif

#define QUERIES 4         /* a tile's: with two vectors of keys, what registers hold */
#define LANES 8           /* keys of a vector */
#define KEYS (2 * LANES)  /* a tile's */
#define CHUNK 64          /* native.py's: queries that read a block of keys while it lies in the core's second cache */
#define BLOCK 1024        /* keys */
#define LEAST 1e-12f      /* numbers are rounded to parts of the largest of them, or of this */
#define HALF 0.51         /* of a part: what rounding moves a number by, with the division's own rounding */
#define EPS 1.2e-7        /* of fp32 */

typedef int32_t ints __attribute__((vector_size(32), may_alias));
typedef uint32_t bits __attribute__((vector_size(32), may_alias));
typedef float floats __attribute__((vector_size(32), may_alias));

typedef struct {
    int64_t Hi, Di, k, T, S, offset;       /* the first query stands at position `offset` */
    const float *q, *w, *keys;             /* (B, T, Hi, Di), (B, T, Hi), (B, S, Di) */
    int64_t keys_row;                      /* from one sequence's keys to the next, in numbers */
    const int64_t *doc_start;              /* (B, T): hides what stands before; NULL: nothing is hidden */
    const int32_t *packed;                 /* (B, tiles, 2, P, LANES), by `pack` */
    const double *facts;                   /* (B, 3) */
    int64_t *chosen;                       /* (B, T, k): positions, -1 where there is none */
} Choice;

/* ---------------------------------------------------------------- whole numbers */

/* The largest that Di products may have on either side, with room left for where the sum begins. */
static double limit(long Di) {
    const double most = sqrt(0.99 * INT32_MAX / (double)Di);
    return floor(most < INT16_MAX ? most : INT16_MAX);
}

static int32_t pair(const float *x, long at, long n, float scale) {
    const int32_t a = (int32_t)rintf(x[at] / scale), b = at + 1 < n ? (int32_t)rintf(x[at + 1] / scale) : 0;
    return (int32_t)((uint32_t)a & 0xffff) | (int32_t)((uint32_t)b << 16);
}

/* Magnitudes of n numbers: the largest and the sum; 1 where one is not finite. */
static int magnitudes(const float *x, long n, float *most, double *sum) {
    *most = 0, *sum = 0;
    for (long i = 0; i < n; i++) {
        const float size = fabsf(x[i]);
        if (!(size <= FLT_MAX)) return 1;
        *most = size > *most ? size : *most;
        *sum += size;
    }
    return 0;
}

/* A sequence's keys (S, Di) → whole numbers, pair by pair, LANES keys side by side, zeros after the last; facts: the part
   they are counted in, the largest magnitude, the largest sum of a key's magnitudes. 1 where one is not finite. */
int pack(const float *keys, int64_t S, int64_t Di, int32_t *packed, double *facts) {
    const long P = (Di + 1) / 2, vectors = (S + KEYS - 1) / KEYS * 2;
    float most = LEAST, one;
    double widest = 0, sum;
    for (long s = 0; s < S; s++) {
        if (magnitudes(keys + s * Di, Di, &one, &sum)) return 1;
        most = one > most ? one : most;
        widest = sum > widest ? sum : widest;
    }
    const float scale = (float)(most / limit(Di));
    for (long v = 0; v < vectors; v++)
        for (long p = 0; p < P; p++)
            for (long lane = 0; lane < LANES; lane++) {
                const long s = v * LANES + lane;
                *packed++ = s < S ? pair(keys + s * Di, 2 * p, Di, scale) : 0;
            }
    facts[0] = scale, facts[1] = most, facts[2] = widest;
    return 0;
}

/* sum + both products of each pair */
INLINE ints add_pairs(ints sum, ints a, ints b) {
#if defined(__AVX2__) && !defined(PORTABLE)
    return sum + (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const ints low_a = (ints)((bits)a << 16) >> 16, low_b = (ints)((bits)b << 16) >> 16;
    return sum + low_a * low_b + (a >> 16) * (b >> 16);
#endif
}

/* ---------------------------------------------------------------- queries */

typedef struct {
    long t;             /* its number in the sequence */
    long first, last;   /* keys it sees */
    float slack;        /* a bound is above its score by at most so much */
    long count;         /* candidates, in rising order of position */
    float *values;      /* their bounds, or scores */
    int32_t *places;
} Query;

typedef struct {
    long room;                  /* candidates of a query */
    Query queries[CHUNK];
    float floors[CHUNK];        /* a key that is not above it has lost; INFINITY: no key is looked for */
    int32_t *q, *start;         /* (CHUNK / QUERIES, Hi, P, QUERIES) whole numbers, (…, Hi, QUERIES) where sums begin */
    float *w;                   /* (…, Hi, QUERIES) weights times both parts */
    float *rows, *padded, *dots, *scores;
    int32_t *doubtful, *best;
    uint64_t *order;
} Space;

/* Query t of sequence b as the i-th of a chunk; 1 where its numbers are of no size that the bounds hold for. */
static int prepare(const Choice *c, Space *s, long b, long t, long i) {
    const long Hi = c->Hi, Di = c->Di, P = (Di + 1) / 2, group = i / QUERIES, lane = i % QUERIES;
    const double scale = c->facts[3 * b], most = c->facts[3 * b + 1], widest = c->facts[3 * b + 2];
    const float *q = c->q + (b * c->T + t) * Hi * Di, *w = c->w + (b * c->T + t) * Hi;
    double slack = 0, reach = 0;
    for (long h = 0, rising = 0, falling = Hi; h < Hi; h++, q += Di) {
        const long slot = w[h] > 0 ? rising++ : --falling;
        float largest_q;
        double sum;
        if (magnitudes(q, Di, &largest_q, &sum) || !(fabsf(w[h]) <= FLT_MAX)) return 1;
        const float own = (float)((largest_q > LEAST ? largest_q : LEAST) / limit(Di));
        for (long p = 0; p < P; p++) s->q[((group * Hi + slot) * P + p) * QUERIES + lane] = pair(q, 2 * p, Di, own);
        const double rounding = (2 * (double)(Di + Hi) + 8) * EPS * sum * most; /* of fp32, here and in the score */
        const double bound = HALF * own * widest + HALF * scale * (sum + HALF * own * (double)Di) + rounding;
        const double begin = ceil(1.001 * bound / (own * scale)) + 1, weight = w[h] * (double)own * scale;
        if (begin > 0.009 * INT32_MAX || (weight != 0 && fabs(weight) < 1e-30)) return 1;
        s->start[(group * Hi + slot) * QUERIES + lane] = (int32_t)(weight > 0 ? begin : -begin);
        s->w[(group * Hi + slot) * QUERIES + lane] = (float)weight;
        slack += 2.5 * fabs(weight) * begin;
        reach += fabs((double)w[h]) * sum * most;
    }
    s->queries[i].slack = (float)(1.001 * slack);
    return !(reach < 1e30);
}

INLINE floats where(ints mask, floats yes, floats no) { return (floats)((mask & (ints)yes) | (~mask & (ints)no)); }

/* Of the candidates, exactly k stay. Those above `sure` are among the k best whatever the others' scores; of the rest,
   scored in the arithmetic of decoding, the best fill up. */
static void settle(const Choice *c, Space *s, long b, long i, float sure) {
    Query *query = &s->queries[i];
    const long t = query->t;
    const long Hi = c->Hi, Di = c->Di, D = (Di + LANES - 1) / LANES * LANES;
    const float *keys = c->keys + b * c->keys_row, *q = c->q + (b * c->T + t) * Hi * Di;
    long n = 0, kept = 0;
    for (long j = 0; j < query->count; j++)
        if (!(query->values[j] > sure)) s->doubtful[n++] = (int32_t)j;
    const long needed = c->k - (query->count - n);
    for (long j = 0; j < n; j++)
        for (long d = 0; d < Di; d++) s->rows[j * D + d] = keys[query->places[s->doubtful[j]] * Di + d];
    for (long h = 0; h < Hi; h++) memcpy(s->padded + h * D, q + h * Di, (size_t)Di * sizeof(float));
    product(s->rows, s->padded, D, s->dots, n, n, D, Hi, 0);
    weigh(s->dots, c->w + (b * c->T + t) * Hi, Hi, n, s->scores);
    largest(s->scores, n, needed, s->best, s->order);
    float least = FLT_MAX;
    for (long j = 0; j < needed; j++) {
        const float score = s->scores[s->best[j]];
        query->values[s->doubtful[s->best[j]]] = score;
        least = score < least ? score : least;
        s->best[j] = s->doubtful[s->best[j]];
    }
    for (long j = 0, next = 0, best = 0; j < query->count; j++) { /* in rising order still */
        const int doubtful = next < n && s->doubtful[next] == j, stays = !doubtful || (best < needed && s->best[best] == j);
        query->values[kept] = query->values[j], query->places[kept] = query->places[j];
        kept += stays, next += doubtful, best += doubtful && stays;
    }
    query->count = kept;
    least = least < sure - query->slack ? least : sure - query->slack;
    if (least > s->floors[i]) s->floors[i] = least; /* later keys lose where they are equal */
}

/* Drop the candidates that k others are above for certain, whatever their scores; where `last`, or where too many are left,
   all but the k best. */
static void sift(const Choice *c, Space *s, long b, long i, int last) {
    Query *query = &s->queries[i];
    float *values = query->values;
    if (query->count <= c->k) return;
    const long vectors = (query->count + LANES - 1) / LANES;
    for (long j = query->count; j < vectors * LANES; j++) values[j] = values[0];
    floats lows = *(floats *)values, highs = lows;
    for (long v = 1; v < vectors; v++) {
        const floats one = ((floats *)values)[v];
        lows = where(one < lows, one, lows), highs = where(one > highs, one, highs);
    }
    for (long j = query->count; j < vectors * LANES; j++) values[j] = -FLT_MAX;
    float low = lows[0], high = highs[0];
    for (int lane = 1; lane < LANES; lane++) {
        low = lows[lane] < low ? lows[lane] : low;
        high = highs[lane] > high ? highs[lane] : high;
    }
    for (int step = 0; step < (last ? 14 : 8); step++) { /* k candidates are not under `low`, and none beyond k above `high` */
        const float middle = low + (high - low) / 2;
        ints under = {0};
        for (long v = 0; v < vectors; v++) under += ((floats *)values)[v] >= middle;
        int32_t reach = 0;
        for (int lane = 0; lane < LANES; lane++) reach -= under[lane];
        if (reach >= c->k) low = middle;
        else high = middle;
    }
    const float slack = query->slack + (float)(4 * EPS) * (fabsf(low) + fabsf(high) + query->slack);
    if (low - slack > s->floors[i]) s->floors[i] = low - slack;
    const float floor = s->floors[i];
    long kept = 0;
    for (long j = 0; j < query->count; j++) {
        const float value = values[j];
        values[kept] = value, query->places[kept] = query->places[j];
        kept += value >= floor;
    }
    query->count = kept;
    if (kept > c->k && (last || kept > s->room / 2)) settle(c, s, b, i, high + slack);
}

/* ---------------------------------------------------------------- tiles */

INLINE uint32_t lanes(ints above) {
#if defined(__AVX2__) && !defined(PORTABLE)
    return (uint32_t)_mm256_movemask_ps((__m256)above);
#else
    uint32_t mask = 0;
    for (int lane = 0; lane < LANES; lane++) mask |= (uint32_t)(above[lane] & 1) << lane;
    return mask;
#endif
}

/* Whether any is above its query's floor. */
INLINE int any(floats values[QUERIES][2], const float *floors) {
    ints above = {0};
#pragma GCC unroll 4
    for (int i = 0; i < QUERIES; i++) above |= (values[i][0] > floors[i]) | (values[i][1] > floors[i]);
    return lanes(above) != 0;
}

/* QUERIES queries against KEYS keys: upper bounds of the scores, and whether any is above its query's floor. Heads from
   `rising` on have no positive weight and only lower it: where none is above before them, none will be. */
INLINE int bounds(const Choice *c, const int32_t *q, const int32_t *start, const float *w, const ints *keys, long rising,
                  const float *floors, floats out[QUERIES][2]) {
    const long P = (c->Di + 1) / 2;
    for (long i = 0; i < QUERIES; i++) out[i][0] = out[i][1] = (floats){0};
    for (long h = 0; h < c->Hi; h++, start += QUERIES, w += QUERIES) {
        if (h == rising && !any(out, floors)) return 0;
        ints sum[QUERIES][2];
#pragma GCC unroll 4
        for (int i = 0; i < QUERIES; i++) sum[i][0] = sum[i][1] = (ints){0} + start[i];
        for (long p = 0; p < P; p++, q += QUERIES) {
            ints left = keys[p], right = keys[P + p];
            KEEP(left, right);
#pragma GCC unroll 4
            for (int i = 0; i < QUERIES; i++) {
                const ints both = (ints){0} + q[i];
                sum[i][0] = add_pairs(sum[i][0], left, both);
                sum[i][1] = add_pairs(sum[i][1], right, both);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++)
                out[i][j] += w[i] * __builtin_convertvector(sum[i][j] & (sum[i][j] > 0), floats);
    }
    return any(out, floors);
}

/* Keys first..first+KEYS join the candidates of the queries whose floor they are above. */
static void admit(Space *s, long group, floats values[QUERIES][2], long first) {
    for (long i = 0; i < QUERIES; i++) {
        Query *query = &s->queries[group + i];
        const float floor = s->floors[group + i], *value = (const float *)values[i];
        uint32_t mask = lanes(values[i][0] > floor) | lanes(values[i][1] > floor) << LANES;
        if (!mask) continue;
        const long from = query->first - first, to = query->last - first;
        if (from > 0) mask &= from < KEYS ? ~0u << from : 0;
        if (to < KEYS - 1) mask &= to < 0 ? 0 : ~(~0u << (to + 1));
        long count = query->count;
        for (; mask; mask &= mask - 1) {
            const int lane = __builtin_ctz(mask);
            query->values[count] = value[lane];
            query->places[count++] = (int32_t)first + lane;
        }
        query->count = count;
    }
}

/* Heads of positive weight. */
static long rises(const Choice *c, long b, long t) {
    long count = 0;
    for (long h = 0; h < c->Hi; h++) count += c->w[(b * c->T + t) * c->Hi + h] > 0;
    return count;
}

/* Queries start..stop of sequence b; 1 where their numbers are out of bounds. */
static int chunk(const Choice *c, Space *s, long b, long start, long stop) {
    const long n = stop - start, Hi = c->Hi, P = (c->Di + 1) / 2, tiles = (c->S + KEYS - 1) / KEYS;
    const int32_t *packed = c->packed + b * tiles * KEYS * P;
    /* of a group: keys, and heads of positive weight at most; it is of queries that have as many */
    long begins[CHUNK / QUERIES], ends[CHUNK / QUERIES], rising[CHUNK / QUERIES], low = c->S, high = 0, i = 0;
    for (long count = 0; count <= Hi; count++)
        for (long t = start; t < stop; t++) {
            if (rises(c, b, t) != count) continue;
            const long group = i / QUERIES;
            Query *query = &s->queries[i];
            if (i % QUERIES == 0) begins[group] = c->S, ends[group] = 0;
            rising[group] = count;
            query->t = t, query->count = 0, s->floors[i] = INFINITY;
            query->first = c->doc_start != NULL ? c->doc_start[b * c->T + t] : 0;
            query->first = query->first > 0 ? query->first : 0;
            query->last = c->offset + t;
            i++;
            if (query->last - query->first < c->k) { /* all that it sees */
                for (long p = query->first; p <= query->last; p++) query->places[query->count++] = (int32_t)p;
                continue;
            }
            if (prepare(c, s, b, t, i - 1)) return 1;
            s->floors[i - 1] = -FLT_MAX;
            begins[group] = query->first / KEYS * KEYS < begins[group] ? query->first / KEYS * KEYS : begins[group];
            ends[group] = query->last + 1 > ends[group] ? query->last + 1 : ends[group];
            low = begins[group] < low ? begins[group] : low;
            high = ends[group] > high ? ends[group] : high;
        }
    for (; i % QUERIES; i++) s->floors[i] = INFINITY, s->queries[i].count = 0;
    for (long from = low; from < high; from += BLOCK)
        for (long g = 0; g < n; g += QUERIES) {
            const long begin = begins[g / QUERIES] > from ? begins[g / QUERIES] : from;
            const long end = ends[g / QUERIES] < from + BLOCK ? ends[g / QUERIES] : from + BLOCK;
            for (long key = begin; key < end; key += KEYS) {
                floats values[QUERIES][2];
                if (!bounds(c, s->q + g * Hi * P, s->start + g * Hi, s->w + g * Hi, (const ints *)(packed + key * P),
                            rising[g / QUERIES], s->floors + g, values))
                    continue;
                admit(s, g, values, key);
                for (long i = g; i < g + QUERIES; i++)
                    if (s->queries[i].count > s->room - KEYS) sift(c, s, b, i, 0);
            }
        }
    for (long i = 0; i < n; i++) {
        const Query *query = &s->queries[i];
        int64_t *chosen = c->chosen + (b * c->T + query->t) * c->k;
        sift(c, s, b, i, 1);
        for (long j = 0; j < c->k; j++) chosen[j] = j < query->count ? query->places[j] : -1;
    }
    return 0;
}

/* Chunks of at most CHUNK queries: parts (count, 3) of sequence, first query and the one after the last. Returns 0; 1 where
   numbers are out of the bounds' reach (not finite, or vast); 2 where memory is not to be had. */
int choose(const Choice *c, const int64_t *parts, int64_t count) {
    const long Hi = c->Hi, P = (c->Di + 1) / 2, D = (c->Di + LANES - 1) / LANES * LANES;
    const long room = (2 * c->k + 128 + KEYS - 1) / KEYS * KEYS;
    const long words = CHUNK * (2 * room + Hi * P + 2 * Hi) + room * (D + Hi + 3) + Hi * D;
    char *block = calloc((size_t)(words * 4 + room * 8 + 16 * 64), 1), *next = block;
    if (block == NULL) return 2;
#define TAKE(kind, number) \
    (next += ((uintptr_t)-(intptr_t)next) % 64, next += (number) * sizeof(kind), (kind *)(next - (number) * sizeof(kind)))
    Space s = {.room = room};
    s.order = TAKE(uint64_t, room);
    s.q = TAKE(int32_t, CHUNK * Hi * P), s.start = TAKE(int32_t, CHUNK * Hi), s.w = TAKE(float, CHUNK * Hi);
    s.rows = TAKE(float, room * D), s.padded = TAKE(float, Hi * D), s.dots = TAKE(float, room * Hi);
    s.scores = TAKE(float, room), s.doubtful = TAKE(int32_t, room), s.best = TAKE(int32_t, room);
    float *values = TAKE(float, CHUNK * room);
    int32_t *places = TAKE(int32_t, CHUNK * room);
    for (long i = 0; i < CHUNK; i++) s.queries[i].values = values + i * room, s.queries[i].places = places + i * room;
    int failed = 0;
    for (long i = 0; i < count && !failed; i++) failed = chunk(c, &s, parts[3 * i], parts[3 * i + 1], parts[3 * i + 2]);
    free(block);
    return failed;
}
