/* Pooling: each forward beside its backward. Outputs that share a window's shape
 * and lie side by side (channels, or columns of a row) are the lanes of a vector. */

static inline VEC FN(load_lanes)(const REAL *p, isize lane, isize n)
{
    if (lane == 1) return n >= LANES ? FN(load)(p) : FN(load_part)(p, n);
    if (lane == 2 && n > LANES) /* the odd lane after the last may not exist */
        return FN(even)(FN(load)(p), FN(load)(p + LANES));
    VEC v = {0};
    for (isize i = 0; i < (n < LANES ? n : LANES); i++) v[i] = p[i * lane];
    return v;
}

static inline void FN(store_codes)(void *to, int size, isize at, IVEC code, isize n)
{
    if (size == 1)
        for (isize i = 0; i < n; i++) ((uint8_t *)to)[at + i] = (uint8_t)code[i];
    else if (size == 2)
        for (isize i = 0; i < n; i++) ((uint16_t *)to)[at + i] = (uint16_t)code[i];
    else
        for (isize i = 0; i < n; i++) ((int32_t *)to)[at + i] = (int32_t)code[i];
}

/* y = the first maximum of each window in row-major order; NaN wins, the last one */
static void FN(max_window)(void *y_, void *argmax, int argmax_size, const void *x_,
                           const cnn_window *g)
{
    REAL *y = y_;
    const REAL *x = x_;
    for (isize at = 0; at < g->count; at += LANES) {
        isize n = g->count - at;
        VEC best = FN(splat)(-(REAL)INFINITY);
        IVEC winner = (IVEC){0} + (IREAL)g->code;
        for (isize r = 0; r < g->rows; r++) {
            const REAL *row = x + at * g->lane + r * g->row_step;
            IVEC code = (IVEC){0} + (IREAL)(g->code + r * g->code_row);
            for (isize s = 0; s < g->cols; s++, code += 1) {
                VEC value = FN(load_lanes)(row + s * g->col_step, g->lane, n);
                IVEC wins = (IVEC)(value > best) | (IVEC)(value != value);
                best = FN(select)(wins, value, best);
                winner = (wins & code) | (~wins & winner);
            }
        }
        if (n >= LANES)
            FN(store)(y + at, best);
        else
            FN(store_part)(y + at, best, n);
        if (argmax)
            FN(store_codes)(argmax, argmax_size, at, winner, n < LANES ? n : LANES);
    }
}

/* y = sum of each window / divisor */
static void FN(sum_window)(void *y_, const void *x_, const cnn_window *g,
                           double divisor)
{
    REAL *y = y_;
    const REAL *x = x_;
    for (isize at = 0; at < g->count; at += LANES) {
        isize n = g->count - at;
        VEC sum = {0};
        for (isize r = 0; r < g->rows; r++) {
            const REAL *row = x + at * g->lane + r * g->row_step;
            for (isize s = 0; s < g->cols; s++)
                sum += FN(load_lanes)(row + s * g->col_step, g->lane, n);
        }
        sum = sum / (REAL)divisor;
        if (n >= LANES)
            FN(store)(y + at, sum);
        else
            FN(store_part)(y + at, sum, n);
    }
}

static inline void FN(store_lanes)(REAL *p, isize lane, VEC v, isize n)
{
    if (lane == 1 && n >= LANES)
        FN(store)(p, v);
    else if (lane == 1)
        FN(store_part)(p, v, n);
    else
        for (isize i = 0; i < (n < LANES ? n : LANES); i++) p[i * lane] = v[i];
}

static inline IVEC FN(load_codes)(const void *from, int size, isize at, isize n)
{
    IVEC code = {0};
    n = n < LANES ? n : LANES;
    if (size == 1)
        for (isize i = 0; i < n; i++) code[i] = ((const uint8_t *)from)[at + i];
    else
        for (isize i = 0; i < n; i++) code[i] = ((const uint16_t *)from)[at + i];
    return code;
}

/* grad_x = sum of the errors of the windows that this pixel won */
static void FN(max_backward)(void *grad_x_, isize grad_x_lane, isize count,
                             const void *grad_y_, const void *argmax, int argmax_size,
                             const cnn_share *share, isize shares)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC sum = {0};
        for (isize q = 0; q < shares; q++) {
            isize from = share[q].at + at;
            VEC error = n >= LANES ? FN(load)(grad_y + from)
                                   : FN(load_part)(grad_y + from, n);
            IVEC code = FN(load_codes)(argmax, argmax_size, from, n);
            IVEC won = (IVEC)(code == (IREAL)share[q].code);
            sum += (VEC)(won & (IVEC)error);
        }
        FN(store_lanes)(grad_x + at * grad_x_lane, grad_x_lane, sum, n);
    }
}

/* grad_x = sum of this pixel's share in the errors of the windows that hold it */
static void FN(sum_backward)(void *grad_x_, isize grad_x_lane, isize count,
                             const void *grad_y_, const double *scales,
                             const cnn_share *share, isize shares)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC sum = {0};
        for (isize q = 0; q < shares; q++) {
            isize from = share[q].at + at;
            VEC error = n >= LANES ? FN(load)(grad_y + from)
                                   : FN(load_part)(grad_y + from, n);
            if (scales)
                for (isize i = 0; i < (n < LANES ? n : LANES); i++)
                    error[i] *= (REAL)scales[share[q].code + at + i];
            sum += error * (REAL)share[q].scale;
        }
        FN(store_lanes)(grad_x + at * grad_x_lane, grad_x_lane, sum, n);
    }
}
