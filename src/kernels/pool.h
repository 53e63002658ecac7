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
#if VBYTES == 64 && FLOAT_BITS == 32
    if (size == 1 && n >= LANES)
        return _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i *)p),
                                   _mm_set1_epi8((char)code));
#endif
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

/* The window of `some` vectors of outputs, `step` apart from `at` on, n lanes in the last
 * one. With `kept`, pixels are the winners of a row, and these are their codes. Rows
 * and columns of the window are constants, or 0 for any. */
static inline __attribute__((always_inline)) void
FN(max_block)(REAL *y, void *argmax, int argmax_size, const REAL *x, const IREAL *kept,
              const cnn_window *g, isize at, isize step, isize n, const int some,
              const int coded, const isize lane, const isize rows, const isize cols)
{
    VEC best[SOME];
    IVEC winner[SOME];
    UNROLL for (int v = 0; v < some; v++) {
        best[v] = FN(splat)(-(REAL)INFINITY);
        if (!coded) continue;
        winner[v] = (IVEC){0} + (IREAL)g->code;
        /* what nothing wins goes to the first pixel */
        const IREAL *first = kept ? kept : (const IREAL *)g->first;
        if (first) winner[v] += FN(load_codes)(first + at + v * step, n);
    }
    for (isize r = 0; r < (rows ? rows : g->rows); r++) {
        isize from = at * lane + r * g->row_step;
        IVEC code = (IVEC){0} + (IREAL)(g->code + r * g->code_row);
        for (isize s = 0; s < (cols ? cols : g->cols); s++) {
            UNROLL for (int v = 0; v < some; v++) {
                isize pixel = from + v * step * lane;
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
            from += g->col_step;
            code += 1;
        }
    }
    UNROLL for (int v = 0; v < some; v++) {
        FN(store_some)(y + at + v * step, best[v], n);
        if (coded) FN(store_codes)(argmax, argmax_size, at + v * step, winner[v], n);
    }
}

/* Ask the second-level cache for what comes later, as far away as that is for x */
static inline void FN(fetch)(const cnn_window *g, const REAL *x, isize elements)
{
    for (isize r = 0; r < g->fetched; r++)
        for (isize at = 0; at < elements; at += 64 / (isize)sizeof(REAL))
            __builtin_prefetch(x + g->ahead + r * g->fetch_step + at, 0, 2);
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

/* FETCH(at), PAIR(at, step) and ONE(at, n) for the rows of a plane: all runs of two vectors, which
 * are streams of memory side by side, before the next two. The last vector ends with
 * the row, if that is long enough: it makes some outputs again. */
#define WALK_PLANE(count)                                                         \
    do {                                                                          \
        isize at = 0, left;                                                       \
        for (; (left = count - at) > 0; at += 2 * LANES)                          \
            if (left > LANES) {                                                   \
                isize step = left < 2 * LANES ? left - LANES : LANES;             \
                if (g->fetched) RUNS FETCH(at);                                   \
                RUNS PAIR(at, step);                                              \
            } else if (count >= LANES)                                            \
                RUNS ONE(count - LANES, LANES);                                   \
            else                                                                  \
                RUNS ONE(0, count);                                               \
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
        if (g->fetched) FN(fetch)(g, x, g->x_run);
#define BLOCK(at, n, some)                                                        \
    FN(max_block)(y, argmax, argmax_size, x, 0, g, at, LANES, n, some, 1, 1, 0, 0)
        if (argmax)
            WALK(g->count);
#undef BLOCK
#define BLOCK(at, n, some)                                                        \
    FN(max_block)(y, 0, 0, x, 0, g, at, LANES, n, some, 0, 1, 0, 0)
        else
            WALK(g->count);
#undef BLOCK
    }
}

static inline __attribute__((always_inline)) void
FN(max_rows)(REAL *y, char *argmax, int argmax_size, const REAL *x, const IREAL *kept,
             const cnn_window *g, const int coded, const isize lane, const isize rows,
             const isize cols)
{
#define BLOCK(at, step, n, some)                                                  \
    FN(max_block)(y + i * g->y_run,                                               \
                  coded ? argmax + i * g->code_run * argmax_size : 0, argmax_size,\
                  x + i * g->x_run, kept ? kept + i * g->x_run : 0, g, at, step, n,\
                  some, coded, lane, rows, cols)
#define FETCH(at) FN(fetch)(g, x + i * g->x_run + at * lane, 2 * LANES * lane)
#define PAIR(at, step) BLOCK(at, step, LANES, 2)
#define ONE(at, n) BLOCK(at, LANES, n, 1)
    WALK_PLANE(g->count);
#undef BLOCK
#undef FETCH
#undef ONE
#undef PAIR
}

/* The same where lanes are columns and runs are rows of a plane; `kept` (or NULL) are
 * the codes of x, which were made by a call for single rows. Loops of a few turns cost
 * more than what they do: usual windows have bodies without. */
static void FN(max_plane)(void *y, void *argmax, int argmax_size, const void *x,
                          const void *kept, const cnn_window *g)
{
#define ROWS_OF(coded, lane, rows, cols)                                          \
    FN(max_rows)(y, argmax, argmax_size, x, kept, g, coded, lane, rows, cols)
#define EACH_LANE(coded)                                                          \
    do {                                                                          \
        if (g->rows == 1 && g->cols == 3 && g->lane == 1)                         \
            ROWS_OF(coded, 1, 1, 3);                                              \
        else if (g->rows == 1 && g->cols == 3 && g->lane == 2)                    \
            ROWS_OF(coded, 2, 1, 3);                                              \
        else if (g->rows == 2 && g->cols == 2 && g->lane == 2)                    \
            ROWS_OF(coded, 2, 2, 2);                                              \
        else if (g->lane == 1)                                                    \
            ROWS_OF(coded, 1, 0, 0);                                              \
        else if (g->lane == 2)                                                    \
            ROWS_OF(coded, 2, 0, 0);                                              \
        else                                                                      \
            ROWS_OF(coded, g->lane, 0, 0);                                        \
    } while (0)
    if (kept && g->rows == 3)
        ROWS_OF(1, 1, 3, 1);
    else if (kept)
        ROWS_OF(1, 1, 0, 1);
    else {
        kept = 0;
        if (argmax)
            EACH_LANE(1);
        else if (g->rows == 3 && g->cols == 1 && g->lane == 1)
            ROWS_OF(0, 1, 3, 1);
        else
            EACH_LANE(0);
    }
#undef EACH_LANE
#undef ROWS_OF
}

/* Few outputs over many pixels (means of whole images): long pieces of each pixel */
#define MANY (4 * SOME)

static inline __attribute__((always_inline)) void
FN(sum_block)(REAL *y, const REAL *x, const cnn_window *g, double divisor,
              const REAL *lanes, isize at, isize step, isize n, const int some,
              const isize lane, const isize rows, const isize cols)
{
    VEC sum[MANY];
    UNROLL for (int v = 0; v < some; v++) sum[v] = (VEC){0};
    for (isize r = 0; r < (rows ? rows : g->rows); r++) {
        const REAL *from = x + at * lane + r * g->row_step;
        for (isize s = 0; s < (cols ? cols : g->cols); s++, from += g->col_step)
            UNROLL for (int v = 0; v < some; v++)
                sum[v] += FN(load_lanes)(from + v * step * lane, lane, n);
    }
    UNROLL for (int v = 0; v < some; v++) {
        if (lanes)
            sum[v] /= FN(splat)((REAL)divisor) *
                      FN(load_some)(lanes + at + v * step, n);
        else if (divisor != 1)
            sum[v] /= FN(splat)((REAL)divisor);
        FN(store_some)(y + at + v * step, sum[v], n);
    }
}

/* y = sum of each window / divisor; lanes are channels */
static void FN(sum_window)(void *y_, const void *x_, const cnn_window *g,
                           double divisor)
{
    RUNS {
        REAL *y = (REAL *)y_ + i * g->y_run;
        const REAL *x = (const REAL *)x_ + i * g->x_run;
        if (g->fetched) FN(fetch)(g, x, g->x_run);
#define BLOCK(at, n, some)                                                        \
    FN(sum_block)(y, x, g, divisor, 0, at, LANES, n, some, 1, 0, 0)
        isize start = 0;
        for (; start + MANY * LANES <= g->count; start += MANY * LANES)
            BLOCK(start, LANES, MANY);
        WALK_FROM(start, g->count);
#undef BLOCK
    }
}

static inline __attribute__((always_inline)) void
FN(sum_rows_of)(REAL *y, const REAL *x, const cnn_window *g, double divisor,
                const REAL *lanes, const isize lane, const isize rows,
                const isize cols)
{
#define BLOCK(at, step, n, some)                                                  \
    FN(sum_block)(y + i * g->y_run, x + i * g->x_run, g, divisor, lanes, at, step,\
                  n, some, lane, rows, cols)
#define FETCH(at) FN(fetch)(g, x + i * g->x_run + at * lane, 2 * LANES * lane)
#define PAIR(at, step) BLOCK(at, step, LANES, 2)
#define ONE(at, n) BLOCK(at, LANES, n, 1)
    WALK_PLANE(g->count);
#undef BLOCK
#undef FETCH
#undef ONE
#undef PAIR
}

/* The same where lanes are columns; with `lanes`, divided by each lane's own, too */
static void FN(sum_plane)(void *y, const void *x, const cnn_window *g, double divisor,
                          const void *lanes)
{
#define ROWS_OF(lanes, lane, rows, cols)                                          \
    FN(sum_rows_of)(y, x, g, divisor, lanes, lane, rows, cols)
    if (!lanes && g->cols == 3 && g->lane == 1)
        ROWS_OF(0, 1, 1, 3);
    else if (!lanes && g->cols == 3 && g->lane == 2)
        ROWS_OF(0, 2, 1, 3);
    else if (lanes && g->rows == 3 && g->cols == 1 && g->lane == 1)
        ROWS_OF(lanes, 1, 3, 1);
    else if (g->rows == 2 && g->cols == 2 && g->lane == 2)
        ROWS_OF(lanes, 2, 2, 2);
    else if (g->lane == 1)
        ROWS_OF(lanes, 1, 0, 0);
    else if (g->lane == 2)
        ROWS_OF(lanes, 2, 0, 0);
    else
        ROWS_OF(lanes, g->lane, 0, 0);
#undef ROWS_OF
}
#undef WALK_PLANE

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

#if defined(__x86_64__) || defined(_M_X64)
/* Write what no cache shall keep: memory is not read first, as it is for others */
static void FN(stream_bytes)(void *dst_, const void *src_, isize bytes)
{
    char *dst = dst_;
    const char *src = src_;
    isize head = -(uintptr_t)dst % VBYTES, at;
    head = head < bytes ? head : bytes;
    memcpy(dst, src, (size_t)head);
    for (at = head; at + VBYTES <= bytes; at += VBYTES)
        FN(stream)((void *)(dst + at), FN(load)((const void *)(src + at)));
    memcpy(dst + at, src + at, (size_t)(bytes - at));
    FN(streamed)();
}
#endif
