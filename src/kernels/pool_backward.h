/* Pooling backward: pixels gather the errors of their windows, or errors go out to
 * their pixels. */
/* The errors that reach `some` vectors of pixels, `step` apart; without argmax their
 * shares */
static inline __attribute__((always_inline)) void
FN(gather_block)(VEC *sum, const REAL *grad_y, const char *argmax, int argmax_size,
                 const cnn_share *share, isize shares, isize at, isize step, isize n,
                 const int some)
{
    UNROLL for (int v = 0; v < some; v++) sum[v] = (VEC){0};
    for (isize q = 0; q < shares; q++) {
        isize from = share[q].at + at;
        if (argmax) {
            isize code = share[q].code;
            UNROLL for (int v = 0; v < some; v++, from += step)
                sum[v] = FN(add_where)(
                    FN(equal_codes)(argmax, argmax_size, from, n, code), sum[v],
                    FN(load_some)(grad_y + from, n));
        } else {
            VEC scale = FN(splat)((REAL)share[q].scale);
            UNROLL for (int v = 0; v < some; v++, from += step)
                sum[v] += FN(load_some)(grad_y + from, n) * scale;
        }
    }
}

/* Columns of two phases, interleaved; n columns have errors, `left` pixels are there */
static inline __attribute__((always_inline)) void
FN(gather_two)(REAL *to, const REAL *grad_y, const char *argmax, int argmax_size,
               const cnn_gather *g, isize at, isize n, isize left, const int some)
{
    VEC a[2], b[2];
    FN(gather_block)(a, grad_y, argmax, argmax_size, g->share,
                     n > 0 ? g->shares[0] : 0, at, g->y_run, n, some);
    FN(gather_block)(b, grad_y, argmax, argmax_size, g->share + g->shares[0],
                     n > 0 ? g->shares[1] : 0, at, g->y_run, n, some);
    UNROLL for (int v = 0; v < some; v++, to += g->x_run) {
        FN(store_some)(to, FN(zip_low)(a[v], b[v]), left);
        if (left > LANES)
            FN(store_some)(to + LANES, FN(zip_high)(a[v], b[v]), left - LANES);
    }
}

/* grad_x = sum of what reaches each pixel from the windows that hold it */
static inline __attribute__((always_inline)) void
FN(gather)(void *grad_x_, const void *grad_y_, const void *argmax_, int argmax_size,
           const cnn_gather *g)
{
    isize codes_run = g->y_run * argmax_size;
    if (g->phases == 1) {
        isize i = 0;
        /* a share's place and code are found once for several runs */
        for (; i + SOME <= g->runs; i += SOME) {
            REAL *grad_x = (REAL *)grad_x_ + i * g->x_run;
            const REAL *grad_y = (const REAL *)grad_y_ + i * g->y_run;
            const char *argmax = argmax_ ? (const char *)argmax_ + i * codes_run : 0;
#define BLOCK(at, n)                                                              \
    do {                                                                          \
        VEC sum[SOME];                                                            \
        FN(gather_block)(sum, grad_y, argmax, argmax_size, g->share, g->shares[0],\
                         at, g->y_run, n, SOME);                                  \
        UNROLL for (int v = 0; v < SOME; v++)                                     \
            FN(store_some)(grad_x + at + v * g->x_run, sum[v], n);               \
    } while (0)
            isize at = 0;
            for (; at + LANES <= g->count; at += LANES) BLOCK(at, LANES);
            if (at < g->count && g->count >= LANES)
                BLOCK(g->count - LANES, LANES);
            else if (at < g->count)
                BLOCK(at, g->count - at);
#undef BLOCK
        }
        for (; i < g->runs; i++) {
            REAL *grad_x = (REAL *)grad_x_ + i * g->x_run;
            const REAL *grad_y = (const REAL *)grad_y_ + i * g->y_run;
            const char *argmax = argmax_ ? (const char *)argmax_ + i * codes_run : 0;
#define BLOCK(at, n, some)                                                        \
    do {                                                                          \
        VEC sum[SOME];                                                            \
        FN(gather_block)(sum, grad_y, argmax, argmax_size, g->share, g->shares[0],\
                         at, LANES, n, some);                                     \
        UNROLL for (int v = 0; v < some; v++)                                     \
            FN(store_some)(grad_x + at + v * LANES, sum[v], n);                  \
    } while (0)
            WALK(g->count);
#undef BLOCK
        }
        return;
    }
    /* columns of several phases interleave; all runs of a vector share its masks */
    for (isize at = 0; at * g->phases < g->count; at += LANES) {
        isize left = g->count - at * g->phases, n = g->there - at, i = 0;
        REAL *to = (REAL *)grad_x_ + at * g->phases;
        const REAL *grad_y = grad_y_;
        const char *argmax = argmax_;
#define TWO(n, left, some)                                                        \
    for (; i + some <= g->runs; i += some, to += some * g->x_run,                 \
         grad_y += some * g->y_run, argmax += argmax ? some * codes_run : 0)      \
        FN(gather_two)(to, grad_y, argmax, argmax_size, g, at, n, left, some)
        if (g->phases == 2 && n >= LANES && left >= 2 * LANES) {
            TWO(LANES, 2 * LANES, 2);
            TWO(LANES, 2 * LANES, 1);
        } else if (g->phases == 2) {
            TWO(n, left, 2);
            TWO(n, left, 1);
        } else {
            for (; i < g->runs; i++, to += g->x_run, grad_y += g->y_run,
                                argmax += argmax ? codes_run : 0) {
                const cnn_share *share = g->share;
                for (isize p = 0; p < g->phases; p++) {
                    VEC sum;
                    FN(gather_block)(&sum, grad_y, argmax, argmax_size, share,
                                     n > 0 ? g->shares[p] : 0, at, LANES, n, 1);
                    share += g->shares[p];
                    for (isize lane = 0;
                         lane < LANES && lane * g->phases + p < left; lane++)
                        to[lane * g->phases + p] = sum[lane];
                }
            }
        }
#undef TWO
    }
}

static void FN(max_backward)(void *grad_x, const void *grad_y, const void *argmax,
                             int argmax_size, const cnn_gather *g)
{
    if (argmax_size == 1)
        FN(gather)(grad_x, grad_y, argmax, 1, g);
    else
        FN(gather)(grad_x, grad_y, argmax, 2, g);
}

static void FN(sum_backward)(void *grad_x, const void *grad_y, const cnn_gather *g)
{
    FN(gather)(grad_x, grad_y, 0, 1, g);
}
#undef RUNS
#undef WALK
#undef WALK_FROM
#undef MANY
#undef SOME

/* Planes whose errors go out in turn: windows that overlap share winners, and a sum
 * would wait for the one before (13x13 windows of stride 1: 2/3 of the time) */
#define SIDES 4

/* Whether all winners of windows with one corner lie inside: positions row by row of
 * `taps`. Compilers make vectors of it. */
static int FN(all_inside)(const uint8_t *argmax, const cnn_scatter *g, isize y, isize x)
{
    const isize down = g->dilation_h, across = g->dilation_w;
    const isize row1 = g->rows > y ? (g->rows - y + down - 1) / down : 0;
    const isize col1 = g->cols > x ? (g->cols - x + across - 1) / across : 0;
    const uint16_t row0 = (uint16_t)(y < 0 ? (-y + down - 1) / down : 0);
    const uint16_t col0 = (uint16_t)(x < 0 ? (-x + across - 1) / across : 0);
    const uint16_t rows = (uint16_t)((row1 < 256 ? row1 : 256) - row0);
    const uint16_t cols = (uint16_t)((col1 < 256 ? col1 : 256) - col0);
    const uint16_t taps = (uint16_t)g->taps, over = (uint16_t)((65535 + taps) / taps);
    uint16_t outside = 0;
    if (row1 <= row0 || col1 <= col0 || taps == 1) return 0;
    for (isize p = 0; p < g->count; p++) {
        uint16_t row = (uint16_t)(((uint32_t)argmax[p] * over) >> 16);
        uint16_t col = (uint16_t)(argmax[p] - row * taps);
        outside |= (uint16_t)(row - row0) >= rows;
        outside |= (uint16_t)(col - col0) >= cols;
    }
    return !outside;
}

static inline __attribute__((always_inline)) void
FN(scatter)(REAL *grad_x, const REAL *grad_y, const char *argmax, const int size,
            const cnn_scatter *g, isize y, isize x, const int checked, const int sides)
{
    const isize *at = g->at;
    /* several windows a turn: what counts is the number of instructions */
    UNROLL_FOUR for (isize p = 0; p < g->count; p++, x += g->step) {
        UNROLL for (int v = 0; v < sides; v++) {
            const char *codes = argmax + v * g->code_side * size;
            isize code = size == 1 ? (isize)((const uint8_t *)codes)[p]
                                   : (isize)((const uint16_t *)codes)[p];
            if (checked) {
                isize row = y + code / g->taps * g->dilation_h;
                isize col = x + code % g->taps * g->dilation_w;
                if (row < 0 || row >= g->rows || col < 0 || col >= g->cols) continue;
            }
            grad_x[v * g->x_side + at[code]] += grad_y[v * g->y_side + p];
        }
        grad_x += g->x_step;
    }
}

/* grad_x[window + at[code]] += error of each window. Codes without a pixel, where
 * windows reach beyond the image, are foreign: no forward pass makes them. */
static void FN(max_scatter)(void *grad_x_, const void *grad_y_, const void *argmax_,
                            int size, const cnn_scatter *g)
{
    for (isize i = 0; i < g->runs; i++) {
        REAL *grad_x = (REAL *)grad_x_ + i * g->x_run;
        const REAL *grad_y = (const REAL *)grad_y_ + i * g->y_run;
        const char *argmax = (const char *)argmax_ + i * g->code_run * size;
        isize y = g->y + i * g->down, x = g->x + i * g->across;
        int whole = size == 1 && !g->checked;
        if (size == 1 && g->checked && g->step == 0)
            whole = (y >= 0 && y + g->high <= g->rows && x >= 0 &&
                     x + g->wide <= g->cols) ||
                    FN(all_inside)((const uint8_t *)argmax, g, y, x);
        if (whole && g->sides == SIDES) {
            FN(scatter)(grad_x, grad_y, argmax, 1, g, y, x, 0, SIDES);
            continue;
        }
        for (isize v = 0; v < g->sides; v++, grad_x += g->x_side, grad_y += g->y_side,
                   argmax += g->code_side * size)
            if (whole)
                FN(scatter)(grad_x, grad_y, argmax, 1, g, y, x, 0, 1);
            else if (size == 1)
                FN(scatter)(grad_x, grad_y, argmax, 1, g, y, x, 1, 1);
            else
                FN(scatter)(grad_x, grad_y, argmax, 2, g, y, x, 1, 1);
    }
}
#undef SIDES

/* dst[p] = src[p] * scale * scales[p] */
static void FN(scale_row)(void *dst_, const void *src_, isize count, double scale,
                          const void *scales_)
{
    REAL *dst = dst_;
    const REAL *src = src_, *scales = scales_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC value = FN(load_lanes)(src + at, 1, n) * (REAL)scale;
        FN(store_some)(dst + at, value * FN(load_lanes)(scales + at, 1, n), n);
    }
}

/* row[p * step + s] += grad_y[p] * scale * scales[p], s < cols: a row's shares */
static void FN(sum_spread)(void *row_, isize step, isize cols, isize count,
                           const void *grad_y_, double scale, const void *scales_)
{
    REAL *row = row_;
    const REAL *grad_y = grad_y_, *scales = scales_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC share = FN(load_lanes)(grad_y + at, 1, n) * (REAL)scale;
        share *= FN(load_lanes)(scales + at, 1, n);
        if (step == 1) {
            for (isize s = 0; s < cols; s++)
                FN(store_some)(row + at + s,
                                FN(load_lanes)(row + at + s, 1, n) + share, n);
        } else {
            for (isize i = 0; i < (n < LANES ? n : LANES); i++)
                for (isize s = 0; s < cols; s++) row[(at + i) * step + s] += share[i];
        }
    }
}

static void FN(add_row)(void *dst_, const void *src_, isize count)
{
    REAL *dst = dst_;
    const REAL *src = src_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        FN(store_some)(dst + at, FN(load_lanes)(dst + at, 1, n) +
                                      FN(load_lanes)(src + at, 1, n), n);
    }
}
