/* Convolution of groups with 2^n channels in and as many out, channels last: lanes are
 * channels of several groups. Lane l meets the channels l ^ j of its group in turn: a
 * pixel with its lanes swapped, times weights that are laid out for that.
 *
 * A row of outputs goes by blocks of neighbours, all channels of a block before the
 * next. Swapping costs as much as a product: rows of 3 neighbouring taps share it. */
#if VBYTES == 64 /* 32 registers: 8 outputs are 20 % slower */
#define SOME CNN_GROUPED_SOME
#else
#define SOME 8
#endif
#define BODY static inline __attribute__((always_inline)) void

/* y = bias + sum over runs of `near` taps of x * weight: `some` outputs from y on (`todo`
 * of them are there), n lanes from channel c on. Output i meets pixel i * stride + s at
 * tap s of a run; x has the pixels of each run. */
BODY FN(grouped_block)(const cnn_depthwise *g, REAL *y, const REAL *weight,
                       const REAL *bias, int activation, isize c, isize n, isize todo,
                       isize runs, const int some, const int near,
                       const int stride)
{
    const int pixels = (some - 1) * stride + near;
    const isize depth = g->depth;
    VEC acc[SOME], w[3];
    UNROLL for (int i = 0; i < some; i++)
        acc[i] = bias ? FN(load)(bias + c) : (VEC){0};
    weight += c * depth * g->taps;
    for (isize r = 0; r < runs; r++) {
        const REAL *const *x = (const REAL *const *)g->look + r * pixels;
        const isize *tap = g->tap + r * near;
        for (isize j0 = 0; j0 < depth; j0 += SWAPS)
            UNROLL for (int k = 0; k < SWAPS; k++) {
                if (k >= depth) break;
                isize j = j0 + k, from = c ^ (j & -LANES);
                /* pointers come from memory each time: fewer registers to spill */
                __asm__("" : "+r"(x));
                UNROLL for (int s = 0; s < near; s++)
                    w[s] = FN(load)(weight + tap[s] + j * LANES);
                UNROLL for (int q = 0; q < pixels; q++) {
                    VEC pixel = FN(swapped)(FN(load_lanes)(x[q] + from, 1, n),
                                            SWAPS > 1 ? k : j);
                    FN(keep)(&pixel);
                    UNROLL for (int s = 0; s < near; s++)
                        if (q >= s && (q - s) % stride == 0 && (q - s) / stride < some)
                            acc[(q - s) / stride] += w[s] * pixel;
                }
            }
    }
    UNROLL for (int i = 0; i < some; i++) {
        VEC sum = FN(activated)(acc[i], activation);
        if (i < todo) FN(store_some)(y + i * g->y_step + c, sum, n);
    }
}

static void FN(grouped)(const cnn_depthwise *g, void *y_, const void *weight,
                        const void *bias, int activation)
{
    isize near = 1, stride = g->stride, all = g->last - g->first, some;
    if (g->cols == 3 && stride <= 2 && g->dx[1] == g->dx[0] + 1 &&
        g->dx[2] == g->dx[0] + 2)
        near = 3;
    isize runs = g->rows * g->cols / near, rest = g->channels % LANES;
    for (isize at = g->first; at < g->last; at += some) {
        /* the last block begins early rather than to stay half empty */
        some = g->last - at > SOME / 2 ? SOME : SOME / 2;
        isize todo = all < some ? all : some, c = 0;
        isize p = at + todo <= g->last ? at : g->last - todo;
        isize pixels = near == 3 ? (some - 1) * stride + 3 : some;
        REAL *y = (REAL *)y_ + (p - g->first) * g->y_step;
        for (isize r = 0; r < runs; r++)
            for (isize q = 0; q < pixels; q++) {
                isize col = near == 3 ? p * stride + g->dx[0] + q
                                      : (p + q) * stride + g->dx[r % g->cols];
                g->look[r * pixels + q] =
                    col >= 0 && col < g->width
                        ? (const REAL *)g->x[near == 3 ? r : r / g->cols] +
                              col * g->x_step
                        : g->zeros;
            }
#define BLOCK(some, near, stride)                                                 \
    do {                                                                          \
        for (; c < g->channels - rest; c += LANES)                                \
            FN(grouped_block)(g, y, weight, bias, activation, c, LANES, todo,     \
                              runs, some, near, stride);                          \
        if (rest)                                                                 \
            FN(grouped_block)(g, y, weight, bias, activation, c, rest, todo,      \
                              runs, some, near, stride);                          \
    } while (0)
        if (near == 1 && some == SOME) BLOCK(SOME, 1, 1);
        else if (near == 1) BLOCK(SOME / 2, 1, 1);
        else if (stride == 1 && some == SOME) BLOCK(SOME, 3, 1);
        else if (stride == 1) BLOCK(SOME / 2, 3, 1);
        else if (some == SOME) BLOCK(SOME, 3, 2);
        else BLOCK(SOME / 2, 3, 2);
#undef BLOCK
    }
}

/* weight[channel][from][tap], or with channel and from exchanged in each group, as
 * FN(grouped) reads it */
static void FN(grouped_weights)(void *dst_, const void *src_, isize channels,
                                isize depth, isize taps, int transposed)
{
    REAL *dst = dst_;
    const REAL *src = src_;
    for (isize c = 0; c < channels; c++)
        for (isize j = 0; j < depth; j++) {
            isize row = transposed ? c ^ j : c, from = (transposed ? c : c ^ j) % depth;
            REAL *to = dst + (c - c % LANES) * depth * taps + j * LANES + c % LANES;
            const REAL *taps_of = src + (row * depth + from) * taps;
            for (isize t = 0; t < taps; t++) to[t * depth * LANES] = taps_of[t];
        }
}
#undef BODY
#undef SOME
#undef SWAPS
