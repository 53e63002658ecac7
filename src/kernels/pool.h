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

/* Which of n codes are `code` */
static inline FN(mask) FN(equal_codes)(const char *from, int size, isize at, isize n,
                                       isize code)
{
    const char *p = from + at * size;
#if VBYTES == 64
    uint32_t lanes = n < LANES ? (1u << n) - 1 : (1u << LANES) - 1;
    if (size == 1)
        return (FN(mask))_mm_mask_cmpeq_epi8_mask(
            (__mmask16)lanes, _mm_maskz_loadu_epi8((__mmask16)lanes, p),
            _mm_set1_epi8((char)code));
    return (FN(mask))_mm256_mask_cmpeq_epi16_mask(
        (__mmask16)lanes, _mm256_maskz_loadu_epi16((__mmask16)lanes, p),
        _mm256_set1_epi16((short)code));
#else
    n = n < LANES ? n : LANES;
    if (size == 1) {
        FN(codes8) narrow = {0};
        if (n == LANES) memcpy(&narrow, p, sizeof narrow);
        else memcpy(&narrow, p, (size_t)n);
        /* in two steps: compilers widen bytes to 32 bits one by one otherwise */
        return (IVEC)(__builtin_convertvector(
                          __builtin_convertvector(narrow, FN(codes16)), IVEC) ==
                      (IREAL)code);
    }
    FN(codes16) narrow = {0};
    if (n == LANES) memcpy(&narrow, p, sizeof narrow);
    else memcpy(&narrow, p, (size_t)n * 2);
    return (IVEC)(__builtin_convertvector(narrow, IVEC) == (IREAL)code);
#endif
}

/* How many vectors share the walk through a window */
#define SOME 4

/* The window of `some` vectors of outputs from `at` on, n lanes in the last one */
static inline __attribute__((always_inline)) void
FN(max_block)(REAL *y, void *argmax, int argmax_size, const REAL *x,
              const cnn_window *g, isize at, isize n, const int some)
{
    VEC best[SOME];
    IVEC winner[SOME];
    UNROLL for (int v = 0; v < some; v++) {
        best[v] = FN(splat)(-(REAL)INFINITY);
        winner[v] = (IVEC){0} + (IREAL)g->code;
        if (g->first) {
            IVEC first = {0};
            isize lanes = n < LANES ? n : LANES;
            memcpy(&first, (const IREAL *)g->first + at + v * LANES,
                   (size_t)lanes * sizeof(REAL));
            winner[v] += first;
        }
    }
    for (isize r = 0; r < g->rows; r++) {
        const REAL *row = x + at * g->lane + r * g->row_step;
        IVEC code = (IVEC){0} + (IREAL)(g->code + r * g->code_row);
        for (isize s = 0; s < g->cols; s++, code += 1)
            UNROLL for (int v = 0; v < some; v++) {
                VEC value = FN(load_lanes)(
                    row + s * g->col_step + v * LANES * g->lane, g->lane, n);
                FN(mask) wins = FN(wins)(value, best[v]);
                best[v] = FN(blend)(wins, value, best[v]);
                winner[v] = FN(blend_codes)(wins, code, winner[v]);
            }
    }
    UNROLL for (int v = 0; v < some; v++) {
        FN(store_some)(y + at + v * LANES, best[v], n);
        if (argmax) FN(store_codes)(argmax, argmax_size, at + v * LANES, winner[v], n);
    }
}

/* BLOCK(at, n, some) for `count` outputs, n lanes in each of `some` vectors */
#define WALK(count) WALK_FROM(0, count)
#define WALK_FROM(start, count)                                                   \
    do {                                                                          \
        isize at = start;                                                         \
        for (; at + SOME * LANES <= count; at += SOME * LANES)                    \
            BLOCK(at, LANES, SOME);                                               \
        for (; at + LANES <= count; at += LANES) BLOCK(at, LANES, 1);             \
        if (at < count) BLOCK(at, count - at, 1);                                 \
    } while (0)

/* y = the first maximum of each window in row-major order; NaN wins, the last one */
static void FN(max_window)(void *y_, void *argmax_, int argmax_size, const void *x_,
                           const cnn_window *g)
{
    for (isize i = 0; i < g->runs; i++) {
        REAL *y = (REAL *)y_ + i * g->y_run;
        const REAL *x = (const REAL *)x_ + i * g->x_run;
        char *argmax = argmax_ ? (char *)argmax_ + i * g->code_run * argmax_size : 0;
        if (g->lane == 1) {
#define BLOCK(at, n, some)                                                        \
    FN(max_block)(y, argmax, argmax_size, x, &w, at, n, some)
            cnn_window w = *g;
            w.lane = 1;
            WALK(g->count);
        } else if (g->lane == 2) {
            cnn_window w = *g;
            w.lane = 2;
            WALK(g->count);
#undef BLOCK
        } else {
#define BLOCK(at, n, some)                                                        \
    FN(max_block)(y, argmax, argmax_size, x, g, at, n, some)
            WALK(g->count);
#undef BLOCK
        }
    }
}

/* Few outputs over many pixels (means of whole images): long pieces of each pixel */
#define MANY (4 * SOME)

static inline __attribute__((always_inline)) void
FN(sum_block)(REAL *y, const REAL *x, const cnn_window *g, VEC by, const REAL *lanes,
              isize at, isize n, const int some)
{
    VEC sum[MANY];
    UNROLL for (int v = 0; v < some; v++) sum[v] = (VEC){0};
    for (isize r = 0; r < g->rows; r++) {
        const REAL *row = x + at * g->lane + r * g->row_step;
        for (isize s = 0; s < g->cols; s++)
            UNROLL for (int v = 0; v < some; v++)
                sum[v] += FN(load_lanes)(row + s * g->col_step + v * LANES * g->lane,
                                         g->lane, n);
    }
    UNROLL for (int v = 0; v < some; v++) {
        VEC divisor = by;
        if (lanes) divisor *= FN(load_lanes)(lanes + at + v * LANES, 1, n);
        FN(store_some)(y + at + v * LANES, sum[v] / divisor, n);
    }
}

/* y = sum of each window / divisor; with `lanes`, times each lane's own divisor */
static void FN(sum_window)(void *y_, const void *x_, const cnn_window *g,
                           double divisor, const void *lanes)
{
    VEC by = FN(splat)((REAL)divisor);
    for (isize i = 0; i < g->runs; i++) {
        REAL *y = (REAL *)y_ + i * g->y_run;
        const REAL *x = (const REAL *)x_ + i * g->x_run;
#define BLOCK(at, n, some) FN(sum_block)(y, x, &w, by, lanes, at, n, some)
        cnn_window w = *g;
        isize start = 0;
        if (g->lane == 1) {
            w.lane = 1;
            for (; start + MANY * LANES <= g->count; start += MANY * LANES)
                BLOCK(start, LANES, MANY);
            WALK_FROM(start, g->count);
        } else if (g->lane == 2) {
            w.lane = 2;
            WALK(g->count);
        } else
            WALK(g->count);
#undef BLOCK
    }
}

/* The errors that reach `some` vectors of pixels; without argmax their shares */
static inline __attribute__((always_inline)) void
FN(gather_block)(VEC *sum, const REAL *grad_y, const char *argmax, int argmax_size,
                 const cnn_share *share, isize shares, isize at, isize n,
                 const int some)
{
    UNROLL for (int v = 0; v < some; v++) sum[v] = (VEC){0};
    for (isize q = 0; q < shares; q++) {
        isize from = share[q].at + at;
        if (argmax) {
            UNROLL for (int v = 0; v < some; v++, from += LANES)
                sum[v] = FN(add_where)(
                    FN(equal_codes)(argmax, argmax_size, from, n, share[q].code),
                    sum[v], FN(load_lanes)(grad_y + from, 1, n));
        } else {
            VEC scale = FN(splat)((REAL)share[q].scale);
            UNROLL for (int v = 0; v < some; v++, from += LANES)
                sum[v] += FN(load_lanes)(grad_y + from, 1, n) * scale;
        }
    }
}

/* grad_x = sum of what reaches each pixel from the windows that hold it */
static inline __attribute__((always_inline)) void
FN(gather)(void *grad_x_, const void *grad_y_, const void *argmax_, int argmax_size,
           const cnn_gather *g)
{
    isize codes_run = g->y_run * argmax_size;
    if (g->phases == 1) {
        for (isize i = 0; i < g->runs; i++) {
            REAL *grad_x = (REAL *)grad_x_ + i * g->x_run;
            const REAL *grad_y = (const REAL *)grad_y_ + i * g->y_run;
            const char *argmax = argmax_ ? (const char *)argmax_ + i * codes_run : 0;
#define BLOCK(at, n, some)                                                        \
    do {                                                                          \
        VEC sum[SOME];                                                            \
        FN(gather_block)(sum, grad_y, argmax, argmax_size, g->share, g->shares[0],\
                         at, n, some);                                            \
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
        isize left = g->count - at * g->phases, n = g->there - at;
        REAL *to = (REAL *)grad_x_ + at * g->phases;
        const REAL *grad_y = grad_y_;
        const char *argmax = argmax_;
#define PHASE(sum, share, shares, n)                                              \
    FN(gather_block)(&sum, grad_y, argmax, argmax_size, share, shares, at, n, 1)
#define RUNS                                                                      \
    for (isize i = 0; i < g->runs;                                                \
         i++, to += g->x_run, grad_y += g->y_run, argmax += argmax ? codes_run : 0)
        if (g->phases == 2 && n >= LANES && left >= 2 * LANES) {
            const cnn_share *second = g->share + g->shares[0];
            RUNS {
                VEC a, b;
                PHASE(a, g->share, g->shares[0], LANES);
                PHASE(b, second, g->shares[1], LANES);
                FN(store)(to, FN(zip_low)(a, b));
                FN(store)(to + LANES, FN(zip_high)(a, b));
            }
        } else if (g->phases == 2) {
            const cnn_share *second = g->share + g->shares[0];
            isize first = n > 0 ? g->shares[0] : 0, others = n > 0 ? g->shares[1] : 0;
            RUNS {
                VEC a, b;
                PHASE(a, g->share, first, n);
                PHASE(b, second, others, n);
                FN(store_some)(to, FN(zip_low)(a, b), left);
                if (left > LANES)
                    FN(store_some)(to + LANES, FN(zip_high)(a, b), left - LANES);
            }
        } else {
            RUNS {
                const cnn_share *share = g->share;
                for (isize p = 0; p < g->phases; p++) {
                    VEC sum;
                    PHASE(sum, share, n > 0 ? g->shares[p] : 0, n);
                    share += g->shares[p];
                    for (isize lane = 0;
                         lane < LANES && lane * g->phases + p < left; lane++)
                        to[lane * g->phases + p] = sum[lane];
                }
            }
        }
#undef PHASE
#undef RUNS
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
#undef WALK
#undef WALK_FROM
#undef MANY
#undef SOME

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

/* Rows of `bytes` each; calls of memcpy would cost more than short ones */
static void FN(copy_rows)(void *dst_, isize dst_row, const void *src_, isize src_row,
                          isize rows, isize bytes)
{
    char *dst = dst_;
    const char *src = src_;
    for (; rows > 0; rows--, dst += dst_row, src += src_row) {
        isize at = 0;
        /* the last piece may overlap the one before */
#define COPY(size)                                                                \
    if (bytes >= size) {                                                          \
        for (; at + size <= bytes; at += size) memcpy(dst + at, src + at, size);  \
        if (at < bytes) memcpy(dst + bytes - size, src + bytes - size, size);     \
        continue;                                                                 \
    }
        COPY(VBYTES)
        COPY(16)
        COPY(4)
        COPY(1)
#undef COPY
    }
}

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

static void FN(fill_row)(void *dst_, double value, isize count)
{
    REAL *dst = dst_;
    for (isize at = 0; at < count; at += LANES)
        FN(store_some)(dst + at, FN(splat)((REAL)value), count - at);
}
