/* Convolution of many channels to few filters, channels last: lanes are channels of a
 * pixel, where it lies; each sum is a dot product, whose lanes are added at the end.
 *
 * A row of outputs goes by blocks of neighbours times up to 3 filters. */
#if VBYTES == 64 || defined(__aarch64__) /* 32 registers */
#define SOME 8
#else
#define SOME 4
#endif
#define MOST CNN_DOT_FILTERS
#define BODY static inline __attribute__((always_inline)) void

/* lane i = sum of the lanes of v[i] */
static inline VEC FN(lane_sums)(VEC *v)
{
#define FOLD(half)                                                                \
    if (LANES > half)                                                             \
        UNROLL for (int i = 0; i < half; i++)                                       \
            v[i] = FN(zip_low)(v[i], v[i + half]) + FN(zip_high)(v[i], v[i + half]);
    FOLD(8) FOLD(4) FOLD(2) FOLD(1)
#undef FOLD
    return v[0];
}

/* `some` outputs from p on (`todo` of them are there) by `filters` filters. Channels
 * behind the last whole vector are the end of one that begins before: its other lanes
 * are cleared, for they may hold anything. */
BODY FN(dots_block)(const cnn_depthwise *g, REAL *y, const REAL *weight,
                    const REAL *bias, int activation, isize p, isize todo,
                    int fetch, const int some, const int filters)
{
    const isize depth = g->depth, rest = depth % LANES, whole = depth - rest;
    const isize vectors = whole + (rest ? LANES : 0), step = g->stride * g->x_step;
    const FN(mask) end = FN(lane_range)(LANES - rest, LANES);
    /* a part of the next row's pixels at each tap */
    const char *next = (const char *)((const REAL *)g->next + p * step);
    const isize part = (some * step * (isize)sizeof(REAL) / CACHE_LINE +
                        g->rows * g->cols) / (g->rows * g->cols + 1) * CACHE_LINE;
    VEC acc[SOME * MOST + LANES];
    REAL sums[SOME * MOST + LANES];
    UNROLL for (int m = 0; m < filters; m++) {
        VEC start = bias ? FN(load_part)(bias + m, 1) : (VEC){0};
        UNROLL for (int i = 0; i < some; i++) acc[i * filters + m] = start;
    }
    for (isize r = 0; r < g->rows; r++)
        for (isize s = 0; s < g->cols; s++) {
            if (fetch)
                for (const char *end_ = next + part; next < end_; next += CACHE_LINE)
                    __builtin_prefetch(next, 0, 2);
            const isize col = p * g->stride + g->dx[s];
            const REAL *w = weight + g->tap[r * g->cols + s] * vectors * filters;
            const REAL *x = (const REAL *)g->x[r] + col * g->x_step, *a[SOME];
            if (col >= 0 && col + (some - 1) * g->stride < g->width) {
                UNROLL for (int i = 0; i < some; i++) a[i] = x + i * step;
            } else {
                if (col + (some - 1) * g->stride < 0 || col >= g->width) continue;
                UNROLL for (int i = 0; i < some; i++) {
                    isize at = col + i * g->stride;
                    a[i] = at >= 0 && at < g->width ? x + i * step : g->zeros;
                }
            }
#define ADD(PIXEL)                                                                \
    do {                                                                          \
        VEC row[MOST];                                                            \
        UNROLL for (int m = 0; m < filters; m++) row[m] = FN(load)(w + m * LANES);  \
        UNROLL for (int i = 0; i < some; i++) {                                     \
            VEC pixel = PIXEL;                                                    \
            FN(keep)(&pixel);                                                     \
            UNROLL for (int m = 0; m < filters; m++)                                \
                acc[i * filters + m] += row[m] * pixel;                           \
        }                                                                         \
        w += filters * LANES;                                                     \
    } while (0)
            for (isize k = 0; k < whole; k += LANES) ADD(FN(load)(a[i] + k));
            if (rest)
                ADD(FN(blend)(end, FN(load)(a[i] + depth - LANES), (VEC){0}));
#undef ADD
        }
    UNROLL for (int first = 0; first < some * filters; first += LANES) {
        VEC block[LANES];
        UNROLL for (int i = 0; i < LANES; i++)
            block[i] = first + i < some * filters ? acc[first + i] : (VEC){0};
        FN(store)(sums + first, FN(activated)(FN(lane_sums)(block), activation));
    }
    for (isize i = 0; i < todo; i++)
        UNROLL for (int m = 0; m < filters; m++)
            y[i * g->y_step + m] = sums[i * filters + m];
}

/* filters of the next tile: as even as they come */
static inline int FN(dots_share)(isize filters)
{
    return (int)((filters + (filters + MOST - 1) / MOST - 1) /
                 ((filters + MOST - 1) / MOST));
}

/* g->channels filters; g->tap counts taps */
static void FN(dots)(const cnn_depthwise *g, void *y_, const void *weight_,
                     const void *bias_, int activation)
{
    const isize vectors = (g->depth + LANES - 1) / LANES * LANES;
    isize all = g->last - g->first, some;
    for (isize at = g->first; at < g->last; at += some) {
        const REAL *weight = weight_, *bias = bias_;
        some = all - (at - g->first) > SOME / 2 ? SOME : SOME / 2;
        /* the last block begins early rather than to stay half empty */
        isize todo = all < some ? all : some;
        isize p = at + todo <= g->last ? at : g->last - todo;
        REAL *y = (REAL *)y_ + (p - g->first) * g->y_step;
        int filters;
        for (isize m = 0; m < g->channels; m += filters) {
            filters = FN(dots_share)(g->channels - m);
#define BLOCK(some, filters)                                                      \
    FN(dots_block)(g, y + m, weight, bias, activation, p, todo,            \
                   g->next && m == 0, some, filters)
            if (some == SOME && filters == 3) BLOCK(SOME, 3);
            else if (some == SOME && filters == 2) BLOCK(SOME, 2);
            else if (some == SOME) BLOCK(SOME, 1);
            else if (filters == 3) BLOCK(SOME / 2, 3);
            else if (filters == 2) BLOCK(SOME / 2, 2);
            else BLOCK(SOME / 2, 1);
#undef BLOCK
            weight += g->taps * vectors * filters;
            if (bias) bias += filters;
        }
    }
}

/* weight[filter][channel][tap], or with filter and channel exchanged, as FN(dots) reads
 * it: by [tile of filters][tap][vector of channels][filter] */
static void FN(dots_weights)(void *dst, const void *src_, isize filters, isize depth,
                             isize taps, int transposed)
{
    const isize whole = depth - depth % LANES, vectors = (depth + LANES - 1) / LANES;
    const REAL *src = src_;
    REAL *to = dst;
    int some;
    for (isize m0 = 0; m0 < filters; m0 += some) {
        some = FN(dots_share)(filters - m0);
        for (int m = 0; m < some; m++)
            for (isize d = 0; d < depth; d++) {
                isize from = transposed ? d * filters + m0 + m : (m0 + m) * depth + d;
                isize lane = d < whole ? d % LANES : LANES - depth + d;
                for (isize t = 0; t < taps; t++)
                    to[((t * vectors + d / LANES) * some + m) * LANES + lane] =
                        src[from * taps + t];
            }
        to += taps * vectors * some * LANES;
    }
}
#undef BODY
#undef MOST
#undef SOME
