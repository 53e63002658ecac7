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
        if (n >= LANES) return FN(even_end)(FN(load)(p), FN(load)(p + LANES - 1));
        isize all = 2 * n - 1;
        if (all > LANES)
            return FN(even)(FN(load)(p), FN(load_part)(p + LANES, all - LANES));
        return FN(even)(all == LANES ? FN(load)(p) : FN(load_part)(p, all), (VEC){0});
    }
    VEC v = {0};
    for (isize i = 0; i < (n < LANES ? n : LANES); i++) v[i] = p[i * lane];
    return v;
}

static inline IVEC FN(load_codes)(const IREAL *p, isize n)
{
    if (n >= LANES) return *(const IVEC *)p;
    IVEC v = {0};
    memcpy(&v, p, (size_t)n * sizeof(IREAL));
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
    } else if (size == sizeof(IREAL)) {
        if (n == LANES) memcpy(p, &code, sizeof code);
        else memcpy(p, &code, (size_t)n * sizeof(IREAL));
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

/* The window of `some` vectors of outputs from `at` on, n lanes in the last one. With
 * `kept`, pixels are the winners of a row, and these are their codes. */
static inline __attribute__((always_inline)) void
FN(max_block)(REAL *y, void *argmax, int argmax_size, const REAL *x, const IREAL *kept,
              const cnn_window *g, isize at, isize n, const int some, const int coded,
              const isize lane)
{
    VEC best[SOME];
    IVEC winner[SOME];
    UNROLL for (int v = 0; v < some; v++) {
        best[v] = FN(splat)(-(REAL)INFINITY);
        if (!coded) continue;
        winner[v] = (IVEC){0} + (IREAL)g->code;
        /* what nothing wins goes to the first pixel */
        const IREAL *first = kept ? kept : (const IREAL *)g->first;
        if (first) winner[v] += FN(load_codes)(first + at + v * LANES, n);
    }
    for (isize r = 0; r < g->rows; r++) {
        isize from = at * lane + r * g->row_step;
        IVEC code = (IVEC){0} + (IREAL)(g->code + r * g->code_row);
        for (isize s = 0; s < g->cols; s++, from += g->col_step, code += 1)
            UNROLL for (int v = 0; v < some; v++) {
                isize pixel = from + v * LANES * lane;
                VEC value = FN(load_lanes)(x + pixel, lane, n);
                if (coded) {
                    FN(mask) wins = FN(wins)(value, best[v]);
                    IVEC here = code;
                    if (kept) here += FN(load_codes)(kept + pixel, n);
                    best[v] = FN(blend)(wins, value, best[v]);
                    winner[v] = FN(blend_codes)(wins, here, winner[v]);
                } else
                    best[v] = FN(larger)(value, best[v]);
            }
    }
    UNROLL for (int v = 0; v < some; v++) {
        FN(store_some)(y + at + v * LANES, best[v], n);
        if (coded) FN(store_codes)(argmax, argmax_size, at + v * LANES, winner[v], n);
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

/* The same for rows of a plane: all runs of a block, which are streams of memory side
 * by side, before the next; the last vector ends with the row, if that is long enough,
 * and makes some outputs again */
#define WALK_PLANE(count)                                                         \
    do {                                                                          \
        isize at = 0;                                                             \
        for (; at + SOME * LANES <= count; at += SOME * LANES)                    \
            RUNS BLOCK(at, LANES, SOME);                                          \
        for (; at + LANES <= count; at += LANES) RUNS BLOCK(at, LANES, 1);        \
        if (at < count && count >= LANES)                                         \
            RUNS BLOCK(count - LANES, LANES, 1);                                  \
        else if (at < count)                                                      \
            RUNS BLOCK(at, count - at, 1);                                        \
    } while (0)
#define RUNS for (isize i = 0; i < g->runs; i++)

/* y = the first maximum of each window in row-major order; NaN wins, the last one.
 * Lanes are channels, runs neighbouring pixels. */
static void FN(max_window)(void *y_, void *argmax_, int argmax_size, const void *x_,
                           const cnn_window *g)
{
    RUNS {
        REAL *y = (REAL *)y_ + i * g->y_run;
        const REAL *x = (const REAL *)x_ + i * g->x_run;
        char *argmax = argmax_ ? (char *)argmax_ + i * g->code_run * argmax_size : 0;
#define BLOCK(at, n, some)                                                        \
    FN(max_block)(y, argmax, argmax_size, x, 0, g, at, n, some, 1, 1)
        if (argmax)
            WALK(g->count);
#undef BLOCK
#define BLOCK(at, n, some) FN(max_block)(y, 0, 0, x, 0, g, at, n, some, 0, 1)
        else
            WALK(g->count);
#undef BLOCK
    }
}

/* The same where lanes are columns and runs are rows of a plane; `kept` (or NULL) are
 * the codes of x, which were made by a call for single rows. */
static void FN(max_plane)(void *y, void *argmax, int argmax_size, const void *x,
                          const void *kept, const cnn_window *g)
{
#define CODED(kept, lane, at, n, some)                                            \
    FN(max_block)((REAL *)y + i * g->y_run,                                       \
                  (char *)argmax + i * g->code_run * argmax_size, argmax_size,    \
                  (const REAL *)x + i * g->x_run, kept, g, at, n, some, 1, lane)
#define PLAIN(lane, at, n, some)                                                  \
    FN(max_block)((REAL *)y + i * g->y_run, 0, 0, (const REAL *)x + i * g->x_run, \
                  0, g, at, n, some, 0, lane)
    if (kept) {
#define BLOCK(at, n, some)                                                        \
    CODED((const IREAL *)kept + i * g->x_run, 1, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else if (argmax && g->lane == 1) {
#define BLOCK(at, n, some) CODED(0, 1, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else if (argmax && g->lane == 2) {
#define BLOCK(at, n, some) CODED(0, 2, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else if (argmax) {
#define BLOCK(at, n, some) CODED(0, g->lane, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else if (g->lane == 1) {
#define BLOCK(at, n, some) PLAIN(1, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else if (g->lane == 2) {
#define BLOCK(at, n, some) PLAIN(2, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else {
#define BLOCK(at, n, some) PLAIN(g->lane, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    }
#undef CODED
#undef PLAIN
}

/* Few outputs over many pixels (means of whole images): long pieces of each pixel */
#define MANY (4 * SOME)

static inline __attribute__((always_inline)) void
FN(sum_block)(REAL *y, const REAL *x, const cnn_window *g, double divisor,
              const REAL *lanes, isize at, isize n, const int some, const isize lane)
{
    VEC sum[MANY];
    UNROLL for (int v = 0; v < some; v++) sum[v] = (VEC){0};
    for (isize r = 0; r < g->rows; r++) {
        const REAL *row = x + at * lane + r * g->row_step;
        for (isize s = 0; s < g->cols; s++)
            UNROLL for (int v = 0; v < some; v++)
                sum[v] += FN(load_lanes)(row + s * g->col_step + v * LANES * lane,
                                         lane, n);
    }
    UNROLL for (int v = 0; v < some; v++) {
        if (lanes)
            sum[v] /= FN(splat)((REAL)divisor) *
                      FN(load_some)(lanes + at + v * LANES, n);
        else if (divisor != 1)
            sum[v] /= FN(splat)((REAL)divisor);
        FN(store_some)(y + at + v * LANES, sum[v], n);
    }
}

/* y = sum of each window / divisor; lanes are channels */
static void FN(sum_window)(void *y_, const void *x_, const cnn_window *g,
                           double divisor)
{
    RUNS {
        REAL *y = (REAL *)y_ + i * g->y_run;
        const REAL *x = (const REAL *)x_ + i * g->x_run;
#define BLOCK(at, n, some) FN(sum_block)(y, x, g, divisor, 0, at, n, some, 1)
        isize start = 0;
        for (; start + MANY * LANES <= g->count; start += MANY * LANES)
            BLOCK(start, LANES, MANY);
        WALK_FROM(start, g->count);
#undef BLOCK
    }
}

/* The same where lanes are columns; with `lanes`, divided by each lane's own, too */
static void FN(sum_plane)(void *y, const void *x, const cnn_window *g, double divisor,
                          const void *lanes)
{
#define SUM(lane, at, n, some)                                                    \
    FN(sum_block)((REAL *)y + i * g->y_run, (const REAL *)x + i * g->x_run, g,    \
                  divisor, lanes, at, n, some, lane)
    if (g->lane == 1) {
#define BLOCK(at, n, some) SUM(1, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else if (g->lane == 2) {
#define BLOCK(at, n, some) SUM(2, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    } else {
#define BLOCK(at, n, some) SUM(g->lane, at, n, some)
        WALK_PLANE(g->count);
#undef BLOCK
    }
#undef SUM
}
#undef RUNS
#undef WALK_PLANE

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
