/* Depthwise convolution of planes: lanes are neighbouring columns of a row. Forward
 * (and the gradient of the input) beside the gradient of the weights.
 *
 * The source is a copy of a plane's rows with zeros around, its columns split by the
 * stride, so that the outputs of a vector meet neighbours at every tap. HIGH rows of
 * outputs are made at a time: 3x3 and 5x5 taps load a row once for all of them. */
#define HIGH CNN_PLANE_HIGH
#define BODY static inline __attribute__((always_inline)) void

/* DO(i, r, s, pixel) for all products of `high` rows of outputs, near x near taps */
#define EACH_ROW(high, near, down, x, PIXEL, DO)                                  \
    UNROLL for (int q = 0; q < (high - 1) * down + near; q++) {                   \
        UNROLL for (int s = 0; s < near; s++) {                                   \
            VEC pixel = PIXEL((x) + q * g->pitch + g->at[s]);                     \
            FN(keep)(&pixel);                                                     \
            UNROLL for (int r = 0; r < near; r++)                                 \
                if (q >= r && (q - r) % down == 0 && (q - r) / down < high)       \
                    DO((q - r) / down, r, s, pixel);                              \
        }                                                                         \
    }

/* One vector of HIGH rows: y = start + sum over taps of x * weight */
BODY FN(plane_rows)(const cnn_depthwise_plane *g, REAL *y, const REAL *x,
                    const REAL *weight, const VEC *w, VEC start, int activation, isize todo, isize n,
                    const int near, const int down)
{
    VEC acc[HIGH];
    UNROLL for (int i = 0; i < HIGH; i++) acc[i] = start;
    if (near) {
#define ADD(i, r, s, pixel) acc[i] += w[r * near + s] * pixel
        EACH_ROW(HIGH, near, down, x, FN(load), ADD)
#undef ADD
    } else {
        isize step = g->stride * g->pitch;
        for (isize r = 0; r < g->tap_rows; r++)
            for (isize s = 0; s < g->tap_cols; s++) {
                const REAL *from = x + g->down[r] * g->pitch + g->at[s];
                VEC tap = FN(splat)(weight[g->tap[r * g->tap_cols + s]]);
                UNROLL for (int i = 0; i < HIGH; i++)
                    acc[i] += tap * FN(load)(from + i * step);
            }
    }
    UNROLL for (int i = 0; i < HIGH; i++) {
        acc[i] = FN(activated)(acc[i], activation);
        if (i < todo) FN(store_some)(y + i * g->y_step, acc[i], n);
    }
}

/* All rows and columns. The last vector of a row ends with the row: it makes some
 * outputs again rather than store a part. */
BODY FN(plane_walk)(const cnn_depthwise_plane *g, REAL *y, const REAL *weight,
                    const REAL *bias, int activation, const int near, const int down)
{
    VEC start = bias ? FN(splat)(*bias) : (VEC){0}, w[25];
    UNROLL for (int t = 0; t < near * near; t++) w[t] = FN(splat)(weight[g->tap[t]]);
    for (isize i = 0; i < g->rows; i += HIGH) {
        const REAL *x = (const REAL *)g->x + i * g->stride * g->pitch;
        for (isize p = 0; p < g->cols; p += LANES) {
            isize j = p + LANES > g->cols && g->cols >= LANES ? g->cols - LANES : p;
            FN(plane_rows)(g, y + i * g->y_step + j, x + j, weight, w, start,
                           activation, g->rows - i, g->cols - j, near, down);
        }
    }
}

/* Which body: near x near taps without gaps, rows as far apart as `down`, or any */
static inline int FN(plane_near)(const cnn_depthwise_plane *g)
{
    if (g->tap_rows != g->tap_cols || g->stride > 2) return 0;
    for (isize r = 0; r < g->tap_rows; r++)
        if (g->down[r] != r) return 0;
    return g->tap_rows == 3 || g->tap_rows == 5 ? (int)g->tap_rows : 0;
}

#define EACH_BODY                                                                 \
    switch (10 * FN(plane_near)(g) + (int)(g->stride > 2 ? 0 : g->stride)) {      \
    case 31: WALK(3, 1); break;                                                   \
    case 32: WALK(3, 2); break;                                                   \
    case 51: WALK(5, 1); break;                                                   \
    case 52: WALK(5, 2); break;                                                   \
    default: WALK(0, 1);                                                          \
    }

static void FN(depthwise_plane)(const cnn_depthwise_plane *g, void *y,
                                const void *weight, const void *bias,
                                int activation)
{
#define WALK(near, down) FN(plane_walk)(g, y, weight, bias, activation, near, down)
    EACH_BODY
#undef WALK
}

/* One vector of `high` rows: acc += grad_y * x. Not `whole`: only the lanes of `lanes`
 * are there, n from grad_y on; the others must not meet an infinite pixel. */
BODY FN(plane_gradient_rows)(const cnn_depthwise_plane *g, VEC *acc, REAL *sums,
                             const REAL *grad_y, const REAL *x, isize n,
                             FN(mask) lanes, const int near, const int down,
                             const int high, const int whole)
{
    VEC error[HIGH];
#define KEPT(v) (whole ? (v) : FN(blend)(lanes, v, (VEC){0}))
#define PIXEL(p) KEPT(FN(load)(p))
    UNROLL for (int i = 0; i < high; i++) {
        const REAL *at = grad_y + i * g->y_step;
        error[i] = KEPT(whole ? FN(load)(at) : FN(load_some)(at, n));
    }
    if (near) {
#define ADD(i, r, s, pixel) acc[r * near + s] += error[i] * pixel
        EACH_ROW(high, near, down, x, PIXEL, ADD)
#undef ADD
    } else {
        isize step = g->stride * g->pitch;
        for (isize r = 0; r < g->tap_rows; r++)
            for (isize s = 0; s < g->tap_cols; s++) {
                const REAL *from = x + g->down[r] * g->pitch + g->at[s];
                REAL *to = sums + g->tap[r * g->tap_cols + s] * LANES;
                VEC sum = FN(load)(to);
                UNROLL for (int i = 0; i < high; i++)
                    sum += error[i] * PIXEL(from + i * step);
                FN(store)(to, sum);
            }
    }
#undef PIXEL
#undef KEPT
}

/* `high` rows of outputs, all columns of them */
BODY FN(plane_gradient_columns)(const cnn_depthwise_plane *g, VEC *acc, REAL *sums,
                                const REAL *grad_y, const REAL *x, const int near,
                                const int down, const int high)
{
    isize p = 0, rest = g->cols % LANES;
    for (; p + LANES <= g->cols; p += LANES)
        FN(plane_gradient_rows)(g, acc, sums, grad_y + p, x + p, LANES,
                                FN(lane_range)(0, LANES), near, down, high, 1);
    if (rest == 0) return;
    /* the last vector ends with the row, if the row is that long */
    isize first = g->cols >= LANES ? LANES - rest : 0;
    p -= first;
    FN(plane_gradient_rows)(g, acc, sums, grad_y + p, x + p, first + rest,
                            FN(lane_range)(first, first + rest), near, down, high, 0);
}

BODY FN(plane_gradient_walk)(const cnn_depthwise_plane *g, REAL *sums,
                             const REAL *grad_y, const int near, const int down)
{
    VEC acc[25];
    UNROLL for (int t = 0; t < near * near; t++)
        acc[t] = FN(load)(sums + g->tap[t] * LANES);
    for (isize i = 0; i < g->rows;) {
        const REAL *x = (const REAL *)g->x + i * g->stride * g->pitch;
        const REAL *errors = grad_y + i * g->y_step;
        if (i + HIGH <= g->rows) {
            FN(plane_gradient_columns)(g, acc, sums, errors, x, near, down, HIGH);
            i += HIGH;
        } else {
            FN(plane_gradient_columns)(g, acc, sums, errors, x, near, down, 1);
            i++;
        }
    }
    UNROLL for (int t = 0; t < near * near; t++)
        FN(store)(sums + g->tap[t] * LANES, acc[t]);
}

static void FN(depthwise_plane_gradient)(const cnn_depthwise_plane *g, void *sums,
                                         const void *grad_y)
{
#define WALK(near, down) FN(plane_gradient_walk)(g, sums, grad_y, near, down)
    EACH_BODY
#undef WALK
}

/* dst[i * dst_row + j] = src[i * src_row + j * stride]; whole vectors are stored, zero
 * beyond `cols`, where cols is less than a vector */
static void FN(take_columns)(void *dst, isize dst_row, const void *src,
                             isize src_row, isize stride, isize rows, isize cols)
{
    for (isize i = 0; i < rows; i++) {
        REAL *to = (REAL *)dst + i * dst_row;
        const REAL *from = (const REAL *)src + i * src_row;
        isize j = 0;
        if (stride == 1) {
            for (; j + LANES <= cols; j += LANES) FN(store)(to + j, FN(load)(from + j));
            if (j < cols && cols >= LANES)
                FN(store)(to + cols - LANES, FN(load)(from + cols - LANES));
            else if (j < cols)
                FN(store)(to, FN(load_part)(from, cols));
            continue;
        }
        if (stride == 2) /* the last column's neighbour may not be there */
            for (; j + LANES < cols; j += LANES)
                FN(store)(to + j, FN(even)(FN(load)(from + 2 * j),
                                           FN(load)(from + 2 * j + LANES)));
        for (; j < cols; j++) to[j] = from[j * stride];
    }
}

/* dst[i * dst_row + j] = row i / down, column j / across of phase (i % down, j % across);
 * whole vectors of src are read */
static void FN(put_phases)(void *dst, isize dst_row, const void *src, isize src_row,
                           isize phase_step, isize down, isize across, isize rows,
                           isize cols)
{
    for (isize i = 0; i < rows; i++) {
        REAL *to = (REAL *)dst + i * dst_row;
        const REAL *from = (const REAL *)src + i % down * across * phase_step +
                           i / down * src_row;
        if (across != 2) {
            for (isize p = 0; p < across; p++, from += phase_step)
                for (isize j = 0; j * across + p < cols; j++)
                    to[j * across + p] = from[j];
            continue;
        }
        for (isize j = 0; 2 * j < cols; j += LANES) {
            VEC a = FN(load)(from + j), b = FN(load)(from + phase_step + j);
            isize left = cols - 2 * j;
            FN(store_some)(to + 2 * j, FN(zip_low)(a, b), left);
            if (left > LANES)
                FN(store_some)(to + 2 * j + LANES, FN(zip_high)(a, b), left - LANES);
        }
    }
}
#undef BODY
#undef EACH_BODY
#undef EACH_ROW
#undef HIGH
