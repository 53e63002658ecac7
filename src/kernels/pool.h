/* Pooling: each forward beside its backward. Outputs that share a window's shape
 * and lie side by side (channels, or columns of a row) are the lanes of a vector. */
typedef uint8_t FN(codes8) __attribute__((vector_size(VBYTES / sizeof(REAL))));
typedef uint16_t FN(codes16) __attribute__((vector_size(2 * VBYTES / sizeof(REAL))));
typedef int32_t FN(codes32) __attribute__((vector_size(4 * VBYTES / sizeof(REAL))));

/* n lanes of p, `lane` elements apart; nothing behind the last one is read */
static inline VEC FN(load_lanes)(const REAL *p, isize lane, isize n)
{
    if (lane == 1) return n >= LANES ? FN(load)(p) : FN(load_part)(p, n);
    if (lane == 2) {
        isize all = 2 * n - 1;
        if (all >= 2 * LANES) return FN(even)(FN(load)(p), FN(load)(p + LANES));
        if (all > LANES)
            return FN(even)(FN(load)(p), FN(load_part)(p + LANES, all - LANES));
        return FN(even)(all == LANES ? FN(load)(p) : FN(load_part)(p, all), (VEC){0});
    }
    VEC v = {0};
    for (isize i = 0; i < (n < LANES ? n : LANES); i++) v[i] = p[i * lane];
    return v;
}

static inline void FN(store_lanes)(REAL *p, VEC v, isize n)
{
    if (n >= LANES)
        FN(store)(p, v);
    else
        FN(store_part)(p, v, n);
}

static inline void FN(store_codes)(void *to, int size, isize at, IVEC code, isize n)
{
    n = n < LANES ? n : LANES;
    char *p = (char *)to + at * size;
    if (size == 1) {
        FN(codes8) narrow = __builtin_convertvector(code, FN(codes8));
        if (n == LANES) memcpy(p, &narrow, sizeof narrow);
        else memcpy(p, &narrow, (size_t)n);
    } else if (size == 2) {
        FN(codes16) narrow = __builtin_convertvector(code, FN(codes16));
        memcpy(p, &narrow, (size_t)n * 2);
    } else {
        FN(codes32) narrow = __builtin_convertvector(code, FN(codes32));
        memcpy(p, &narrow, (size_t)n * 4);
    }
}

static inline IVEC FN(load_codes)(const void *from, int size, isize at, isize n)
{
    n = n < LANES ? n : LANES;
    const char *p = (const char *)from + at * size;
    if (size == 1) {
        FN(codes8) narrow = {0};
        if (n == LANES) memcpy(&narrow, p, sizeof narrow);
        else memcpy(&narrow, p, (size_t)n);
        /* in two steps: compilers widen bytes to 32 bits one by one otherwise */
        return __builtin_convertvector(__builtin_convertvector(narrow, FN(codes16)),
                                       IVEC);
    }
    FN(codes16) narrow = {0};
    memcpy(&narrow, p, (size_t)n * 2);
    return __builtin_convertvector(narrow, IVEC);
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
        if (g->first)
            for (isize i = 0; i < (n < LANES ? n : LANES); i++)
                winner[i] += (IREAL)g->first[at + i];
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
        FN(store_lanes)(y + at, best, n);
        if (argmax) FN(store_codes)(argmax, argmax_size, at, winner, n);
    }
}

/* y = sum of each window / divisor; with `lanes`, times each lane's own divisor */
static void FN(sum_window)(void *y_, const void *x_, const cnn_window *g,
                           double divisor, const void *lanes_)
{
    REAL *y = y_;
    const REAL *x = x_, *lanes = lanes_;
    for (isize at = 0; at < g->count; at += LANES) {
        isize n = g->count - at;
        VEC sum = {0}, by = FN(splat)((REAL)divisor);
        for (isize r = 0; r < g->rows; r++) {
            const REAL *row = x + at * g->lane + r * g->row_step;
            for (isize s = 0; s < g->cols; s++)
                sum += FN(load_lanes)(row + s * g->col_step, g->lane, n);
        }
        if (lanes) by *= FN(load_lanes)(lanes + at, 1, n);
        FN(store_lanes)(y + at, sum / by, n);
    }
}

/* grad_x = sum of the errors of the windows that this pixel won */
static void FN(max_backward)(void *grad_x_, isize count, const void *grad_y_,
                             const void *argmax, int argmax_size,
                             const cnn_share *share, isize shares)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC sum = {0};
        for (isize q = 0; q < shares; q++) {
            isize from = share[q].at + at;
            VEC error = FN(load_lanes)(grad_y + from, 1, n);
            IVEC code = FN(load_codes)(argmax, argmax_size, from, n);
            IVEC won = (IVEC)(code == (IREAL)share[q].code);
            sum += (VEC)(won & (IVEC)error);
        }
        FN(store_lanes)(grad_x + at, sum, n);
    }
}

/* grad_x[p * step + offset[argmax[p]]] += grad_y[p]: strides leave few windows */
static void FN(max_scatter)(void *grad_x_, isize step, isize count,
                            const void *grad_y_, const void *argmax, int argmax_size,
                            const isize *offset)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_;
    if (argmax_size == 1)
        for (isize p = 0; p < count; p++)
            grad_x[p * step + offset[((const uint8_t *)argmax)[p]]] += grad_y[p];
    else
        for (isize p = 0; p < count; p++)
            grad_x[p * step + offset[((const uint16_t *)argmax)[p]]] += grad_y[p];
}

/* grad_x = sum of this pixel's share in the errors of the windows that hold it */
static void FN(sum_backward)(void *grad_x_, isize count, const void *grad_y_,
                             const cnn_share *share, isize shares)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC sum = {0};
        for (isize q = 0; q < shares; q++)
            sum += FN(load_lanes)(grad_y + share[q].at + at, 1, n) *
                   (REAL)share[q].scale;
        FN(store_lanes)(grad_x + at, sum, n);
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
                FN(store_lanes)(row + at + s,
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
        FN(store_lanes)(dst + at, FN(load_lanes)(dst + at, 1, n) +
                                      FN(load_lanes)(src + at, 1, n), n);
    }
}

static void FN(fill_row)(void *dst_, double value, isize count)
{
    REAL *dst = dst_;
    for (isize at = 0; at < count; at += LANES)
        FN(store_lanes)(dst + at, FN(splat)((REAL)value), count - at);
}
