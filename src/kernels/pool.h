/* Pooling forward, and what its backward shares. Outputs that share a window's shape
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

/* BLOCK(at, step, n, some) for the rows of a plane: all runs of two vectors, which are
 * streams of memory side by side, before the next two. The last vector ends with the
 * row, if that is long enough: it makes some outputs again. */
#define WALK_PLANE(count)                                                         \
    do {                                                                          \
        isize at = 0, left;                                                       \
        for (; (left = count - at) > 0; at += 2 * LANES)                          \
            if (left > LANES) {                                                   \
                isize step = left < 2 * LANES ? left - LANES : LANES;             \
                if (g->fetched)                                                   \
                    RUNS FN(fetch)(g, x + i * g->x_run + at * lane,               \
                                   2 * LANES * lane);                             \
                RUNS BLOCK(at, step, LANES, 2);                                   \
            } else if (count >= LANES)                                            \
                RUNS BLOCK(count - LANES, LANES, LANES, 1);                       \
            else                                                                  \
                RUNS BLOCK(0, LANES, count, 1);                                   \
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
    WALK_PLANE(g->count);
#undef BLOCK
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
    WALK_PLANE(g->count);
#undef BLOCK
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
