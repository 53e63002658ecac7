/* Depthwise convolution, channels last: lanes are channels, each with its own
 * weights. Forward (and the gradient of the input) beside the gradient of weights.
 *
 * A row of outputs goes by blocks of neighbours, all channels of a block before the
 * next: rows are read and written as one stream each. Taps that lie outside of the
 * row are left out. Rows of 3, 5 or 7 neighbouring taps have bodies of their own, where
 * a pixel is loaded once for all taps of its row; others pay a load a product. */
#define SOME 8
#define BODY static inline __attribute__((always_inline)) void

/* n lanes of pixel i from x on */
#define PIXEL(i) FN(load_lanes)(x + (i) * step, 1, n)

/* The `near` body's loop: DO(i, s) for output i that meets the pixel at tap s. `inside`
 * has a bit for each pixel of the block that is in the image; a whole block has them
 * all. It steps from pixel to pixel: compilers keep (and spill) all their distances. */
#define EACH_PIXEL(near, stride, whole, inside, DO)                               \
    UNROLL for (int q = 0; q < (SOME - 1) * stride + near; q++) {                 \
        const REAL *here = x;                                                     \
        x = FN(at)(x + step);                                                     \
        if (!whole && !(inside & 1u << q)) continue;                              \
        VEC pixel = FN(load_lanes)(here, 1, n);                                   \
        FN(keep)(&pixel);                                                         \
        UNROLL for (int s = 0; s < near; s++)                                     \
            if (q >= s && (q - s) % stride == 0 && (q - s) / stride < SOME)       \
                DO((q - s) / stride, s);                                          \
    }

/* The pixels [from, to) of a block, as bits */
static inline unsigned FN(bits_of)(isize from, isize to)
{
    from = from < 0 ? 0 : from < 31 ? from : 31;
    to = to < 0 ? 0 : to < 31 ? to : 31;
    return (1u << to) - (1u << (from < to ? from : to));
}

/* Ask the second-level cache for what the next row reads first, and writes, of n lanes */
BODY FN(fetch_row)(const cnn_depthwise *g, const REAL *y, isize p, isize c,
                   const int stride)
{
    const REAL *x = (const REAL *)g->x[g->rows - 1] + g->x_ahead;
    x += (p * stride + g->dx[0]) * g->x_step + c;
    y += g->y_ahead + c;
    UNROLL for (int i = 0; i < SOME; i++) {
        __builtin_prefetch(y, 0, 2);
        y = FN(at)(y + g->y_step);
    }
    UNROLL for (int q = 0; q < SOME * stride; q++) {
        __builtin_prefetch(x, 0, 2);
        x = FN(at)(x + g->x_step);
    }
}

/* y = bias + sum over taps of x * weight for SOME outputs from p on (`todo` of them
 * are there) and n lanes */
BODY FN(depthwise_near)(const cnn_depthwise *g, REAL *y, const REAL *weight,
                        const REAL *bias, int activation, isize p, isize c, isize n,
                        isize todo, const int near, const int stride,
                        const int whole)
{
    isize step = g->x_step, left = p * stride + g->dx[0];
    unsigned inside = FN(bits_of)(-left, g->width - left);
    VEC acc[SOME], w[7];
    if (g->x_ahead && g->rows > 0) FN(fetch_row)(g, y, p, c, stride);
    UNROLL for (int i = 0; i < SOME; i++)
        acc[i] = bias ? FN(load)(bias + c) : (VEC){0};
    for (isize r = 0; r < g->rows; r++) {
        const REAL *x = (const REAL *)g->x[r] + left * step + c;
        const REAL *tap = weight + g->tap[r * near] + c;
        isize next = g->tap[1] - g->tap[0];
        UNROLL for (int s = 0; s < near; s++) {
            w[s] = FN(load)(tap);
            tap = FN(at)(tap + next);
        }
#define ADD(i, s) acc[i] += w[s] * pixel
        EACH_PIXEL(near, stride, whole, inside, ADD)
#undef ADD
    }
    y += c;
    UNROLL for (int i = 0; i < SOME; i++) {
        if (whole || i < todo)
            FN(store_some)(y, FN(activated)(acc[i], activation), n);
        y = FN(at)(y + g->y_step);
    }
}

/* sums += sum over the outputs of grad_y * x, likewise */
BODY FN(depthwise_gradient_near)(const cnn_depthwise *g, REAL *sums,
                                 const REAL *grad_y, isize p, isize c, isize n,
                                 isize todo, const int near, const int stride,
                                 const int whole)
{
    isize step = g->x_step, left = p * stride + g->dx[0];
    unsigned inside = FN(bits_of)(-left, g->width - left);
    VEC error[SOME];
    if (g->x_ahead && g->rows > 0) FN(fetch_row)(g, grad_y, p, c, stride);
    UNROLL for (int i = 0; i < SOME; i++)
        error[i] = whole || i < todo
                       ? FN(load_lanes)(grad_y + i * g->y_step + c, 1, n)
                       : (VEC){0};
    for (isize r = 0; r < g->rows; r++) {
        const REAL *x = (const REAL *)g->x[r] + left * step + c;
        VEC acc[7] = {{0}};
#define ADD(i, s)                                                                 \
    if (whole || i < todo) acc[s] += error[i] * pixel
        EACH_PIXEL(near, stride, whole, inside, ADD)
#undef ADD
        UNROLL for (int s = 0; s < near; s++) {
            REAL *to_ = sums + g->tap[r * near + s] + c;
            FN(store)(to_, FN(load)(to_) + acc[s]);
        }
    }
}

/* Any taps: the columns [s0, s1) of them, for `some` outputs that have them all */
BODY FN(depthwise_any)(const cnn_depthwise *g, REAL *y, const REAL *weight,
                       const REAL *bias, int activation, isize p, isize c, isize n,
                       const int some, isize s0, isize s1)
{
    isize step = g->stride * g->x_step;
    VEC acc[SOME];
    UNROLL for (int i = 0; i < some; i++)
        acc[i] = bias ? FN(load)(bias + c) : (VEC){0};
    for (isize r = 0; r < g->rows; r++)
        for (isize s = s0; s < s1; s++) {
            const REAL *x = (const REAL *)g->x[r] + p * step + g->dx[s] * g->x_step + c;
            VEC w = FN(load)(weight + g->tap[r * g->cols + s] + c);
            UNROLL for (int i = 0; i < some; i++) acc[i] += w * PIXEL(i);
        }
    UNROLL for (int i = 0; i < some; i++) {
        VEC sum = acc[i];
        sum = FN(activated)(sum, activation);
        FN(store_some)(y + i * g->y_step + c, sum, n);
    }
}

BODY FN(depthwise_gradient_any)(const cnn_depthwise *g, REAL *sums,
                                const REAL *grad_y, isize p, isize c, isize n,
                                const int some, isize s0, isize s1)
{
    isize step = g->stride * g->x_step;
    VEC error[SOME];
    UNROLL for (int i = 0; i < some; i++)
        error[i] = FN(load_lanes)(grad_y + i * g->y_step + c, 1, n);
    for (isize r = 0; r < g->rows; r++)
        for (isize s = s0; s < s1; s++) {
            const REAL *x = (const REAL *)g->x[r] + p * step + g->dx[s] * g->x_step + c;
            REAL *to = sums + g->tap[r * g->cols + s] + c;
            VEC acc = {0};
            UNROLL for (int i = 0; i < some; i++) acc += error[i] * PIXEL(i);
            FN(store)(to, FN(load)(to) + acc);
        }
}

/* CALL(c, n) for all channels in vectors of n lanes */
#define ALL_CHANNELS(CALL)                                                        \
    do {                                                                          \
        isize c = 0, rest = g->channels % LANES;                                  \
        for (; c < g->channels - rest; c += LANES) CALL(c, LANES);                \
        if (rest) CALL(c, rest);                                                  \
    } while (0)

/* Walk along a row: NEAR or ANY for each block of outputs */
#define WHOLE(c, n) NEAR(p, c, n, todo, width, stride, 1)
#define BORDER(c, n) NEAR(p, c, n, todo, width, stride, 0)
#define WALK_NEAR(width_, stride_)                                                \
    for (isize p = g->first; p < g->last; p += SOME) {                            \
        enum { width = width_, stride = stride_ };                                \
        isize todo = g->last - p, left = p * stride + g->dx[0];                   \
        if (todo >= SOME && left >= 0 &&                                          \
            left + (SOME - 1) * stride + width <= g->width)                       \
            ALL_CHANNELS(WHOLE);                                                  \
        else                                                                      \
            ALL_CHANNELS(BORDER);                                                 \
    }
#define SOME_OUTPUTS(c, n) ANY(p, c, n, SOME, 0, cols)
#define FEW_OUTPUTS(c, n) ANY(p, c, n, SOME / 2, 0, cols)
#define ONE_OUTPUT(c, n) ANY(p, c, n, 1, s0, s1)
#define WALK                                                                      \
    isize cols = g->cols, near = cols, p = g->first;                              \
    for (isize s = 1; s < cols; s++)                                              \
        if (g->dx[s] != g->dx[0] + s) near = 0;                                   \
    if (near == 3 && g->stride == 1) {                                            \
        WALK_NEAR(3, 1)                                                           \
    } else if (near == 3 && g->stride == 2) {                                     \
        WALK_NEAR(3, 2)                                                           \
    } else if (near == 5 && g->stride == 1) {                                     \
        WALK_NEAR(5, 1)                                                           \
    } else if (near == 5 && g->stride == 2) {                                     \
        WALK_NEAR(5, 2)                                                           \
    } else if (near == 7 && g->stride == 1) {                                     \
        WALK_NEAR(7, 1)                                                           \
    } else                                                                        \
        while (p < g->last) {                                                     \
            isize at = p * g->stride, s0 = 0, s1 = cols;                          \
            /* outputs from here on whose taps are all inside */                  \
            isize inner = cols == 0 ? g->last - p : 0;                            \
            if (cols > 0 && at + g->dx[0] >= 0 &&                                 \
                at + g->dx[cols - 1] < g->width) {                                \
                inner = (g->width - 1 - g->dx[cols - 1] - at) / g->stride + 1;    \
                inner = inner < g->last - p ? inner : g->last - p;                \
            }                                                                     \
            if (inner >= SOME) {                                                  \
                ALL_CHANNELS(SOME_OUTPUTS);                                       \
                p += SOME;                                                        \
            } else if (inner >= SOME / 2) {                                       \
                ALL_CHANNELS(FEW_OUTPUTS);                                        \
                p += SOME / 2;                                                    \
            } else {                                                              \
                while (s0 < s1 && at + g->dx[s0] < 0) s0++;                       \
                while (s0 < s1 && at + g->dx[s1 - 1] >= g->width) s1--;           \
                ALL_CHANNELS(ONE_OUTPUT);                                         \
                p++;                                                              \
            }                                                                     \
        }

static void FN(depthwise)(const cnn_depthwise *g, void *y_, const void *weight,
                          const void *bias, int activation)
{
    REAL *y = (REAL *)y_ - g->first * g->y_step;
#define NEAR(p, c, n, todo, width, stride, whole)                                 \
    FN(depthwise_near)(g, y + p * g->y_step, weight, bias, activation, p, c, n,   \
                       todo, width, stride, whole)
#define ANY(p, c, n, some, s0, s1)                                                \
    FN(depthwise_any)(g, y + p * g->y_step, weight, bias, activation, p, c, n,    \
                      some, s0, s1)
    WALK
#undef NEAR
#undef ANY
}

static void FN(depthwise_gradient)(const cnn_depthwise *g, void *sums,
                                   const void *grad_y_)
{
    const REAL *grad_y = (const REAL *)grad_y_ - g->first * g->y_step;
#define NEAR(p, c, n, todo, width, stride, whole)                                 \
    FN(depthwise_gradient_near)(g, sums, grad_y + p * g->y_step, p, c, n, todo,   \
                                width, stride, whole)
#define ANY(p, c, n, some, s0, s1)                                                \
    FN(depthwise_gradient_any)(g, sums, grad_y + p * g->y_step, p, c, n, some,    \
                               s0, s1)
    WALK
#undef NEAR
#undef ANY
}
#undef ALL_CHANNELS
#undef BODY
#undef BORDER
#undef EACH_PIXEL
#undef FEW_OUTPUTS
#undef ONE_OUTPUT
#undef PIXEL
#undef SOME
#undef SOME_OUTPUTS
#undef WALK
#undef WALK_NEAR
#undef WHOLE
