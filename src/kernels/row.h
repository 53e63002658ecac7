/* Linear maps of one row: the weights are read once, so they are not packed. */

/* sum of all lanes: halves add, in one order */
static inline REAL FN(lanes_together)(VEC v)
{
    REAL part[VBYTES / sizeof(REAL)];
    FN(store)(part, v);
    for (isize half = LANES / 2; half > 0; half /= 2)
        for (isize i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

/* y[k] = bias[k] + sum over c of weight[k * cols + c] x[c], k < rows */
static void FN(row_dots)(void *y_, const void *x_, const void *weight_, isize rows,
                         isize cols, const void *bias_, int activation)
{
    REAL *y = y_;
    const REAL *x = x_, *weight = weight_, *bias = bias_;
    enum { SIDE = 8 }; /* rows side by side: as many chains of sums */
    for (isize k = 0; k < rows; k += SIDE) {
        isize count = rows - k < SIDE ? rows - k : SIDE;
        const REAL *row[SIDE];
        VEC sum[SIDE];
        for (isize i = 0; i < SIDE; i++) {
            row[i] = weight + (k + (i < count ? i : count - 1)) * cols;
            sum[i] = (VEC){0};
        }
        isize at = 0;
        for (; at + LANES <= cols; at += LANES) {
            VEC v = FN(load)(x + at);
            UNROLL
            for (isize i = 0; i < SIDE; i++) sum[i] += FN(load)(row[i] + at) * v;
        }
        if (at < cols) {
            VEC v = FN(load_part)(x + at, cols - at);
            UNROLL
            for (isize i = 0; i < SIDE; i++)
                sum[i] += FN(load_part)(row[i] + at, cols - at) * v;
        }
        for (isize i = 0; i < count; i++) {
            REAL total = FN(lanes_together)(sum[i]) + (bias ? bias[k + i] : 0);
            /* NaN stays NaN */
            y[k + i] = activation == CNN_RELU && total <= 0 ? 0 : total;
        }
    }
}

/* grad_x[c] = sum over k of grad_y[k] weight[k * step + c], c < cols */
static void FN(row_times)(void *grad_x_, const void *grad_y_, const void *weight_,
                          isize rows, isize step, isize cols)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_, *weight = weight_;
    enum { WIDE = 8 }; /* vectors side by side */
    isize c = 0;
    for (; c + WIDE * LANES <= cols; c += WIDE * LANES) {
        VEC sum[WIDE] = {{0}};
        for (isize k = 0; k < rows; k++) {
            const REAL *row = weight + k * step + c;
            UNROLL
            for (isize i = 0; i < WIDE; i++)
                sum[i] += FN(load)(row + i * LANES) * grad_y[k];
        }
        UNROLL
        for (isize i = 0; i < WIDE; i++) FN(store)(grad_x + c + i * LANES, sum[i]);
    }
    for (; c < cols; c += LANES) {
        VEC sum = {0};
        for (isize k = 0; k < rows; k++)
            sum += FN(load_some)(weight + k * step + c, cols - c) * grad_y[k];
        FN(store_some)(grad_x + c, sum, cols - c);
    }
}

/* grad_weight[k * cols + c] = grad_y[k] x[c], k < rows */
static void FN(row_outer)(void *grad_weight_, const void *grad_y_, const void *x_,
                          isize rows, isize cols)
{
    REAL *grad_weight = grad_weight_;
    const REAL *grad_y = grad_y_, *x = x_;
    for (isize k = 0; k < rows; k++)
        for (isize at = 0; at < cols; at += LANES)
            FN(store_some)(grad_weight + k * cols + at,
                           FN(load_some)(x + at, cols - at) * grad_y[k], cols - at);
}
