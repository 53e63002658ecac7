/* The one arithmetic body of every convolution pass: a tile of ROWS x (NV *
 * LANES) sums held in registers. Included once per ROWS and NV; with KEEPS, it also
 * copies the rows of B side by side, for the tiles that read them after it; with FLAT,
 * it is for any number of rows, ROWS at a time, of one batch whose steps have offsets of
 * their own: short batches would end in many loops, each with a branch that nobody
 * foresees, and tiles of a few hundred cycles are called for at a tenth of their time;
 * with EVEN, it is for whole tiles, any number of them, whose rows lie at constant
 * distances: few registers reach them all. */
#ifndef FLAT
#define FLAT 0
#endif
#ifndef EVEN
#define EVEN 0
#endif

#if EVEN
/* Rows of A are reached from few pointers, each with up to 7 rows, by offsets that all
 * pointers share. The compiler must not see what they are, or it keeps a pointer for each
 * row, most of them in memory: a row of one vector then waits for the loads. */
#define BASES ((ROWS + 6) / 7)
#define OF_BASE ((ROWS + BASES - 1) / BASES)
#define A_VALUE(I, AT)                                                            \
    (*(const REAL *)(base[(I) / OF_BASE] + ((I) % OF_BASE ? offset[(I) % OF_BASE] : 0)))
#define TILE_BEGIN                                                                \
    UNROLL for (int i = 1; i < OF_BASE; i++) __asm__("" : "+r"(offset[i]));       \
    UNROLL for (int i = 0; i < BASES; i++) __asm__("" : "+r"(base[i]));
#define TILE_END UNROLL for (int i = 0; i < BASES; i++) base[i] += a_step;
#else
#define A_VALUE(I, AT) a[I][AT]
#define TILE_BEGIN
#define TILE_END
#endif
#define TILE_STEP(AT)                                                             \
    {                                                                             \
        VEC row[NV];                                                              \
        TILE_BEGIN                                                                \
        UNROLL for (int v = 0; v < NV; v++) row[v] = FN(load)(b + v * LANES);     \
        KEEP_ROW                                                                  \
        UNROLL for (int i = 0; i < ROWS; i++) {                                   \
            REAL scalar = A_VALUE(i, AT);                                         \
            UNROLL for (int v = 0; v < NV; v++) acc[i][v] += scalar * row[v];     \
        }                                                                         \
        b += b_step;                                                              \
        TILE_END                                                                  \
    }
#define TILE_FETCH __builtin_prefetch(next, 0, 2), next += next_step

#ifdef KEEPS
#define KEEP_ROW                                                                  \
    UNROLL for (int v = 0; v < NV; v++) FN(store)(kept + v * LANES, row[v]);      \
    kept += NV * LANES;
#else
#define KEEP_ROW
#endif

static void TILE(const cnn_tile *q)
{
#ifdef KEEPS
    REAL *kept = q->keep;
#endif
    const isize depth = q->depth, cols = q->cols;
    const int whole = cols == NV * LANES;
#if EVEN || FLAT && NV > 1
    const char *next = q->next;
    const isize next_step = CACHE_LINE;
#endif
#if EVEN
    isize ahead = q->next_lines;
#elif FLAT && NV > 1
    const isize fetched = q->next_lines < depth ? q->next_lines : depth;
#endif
    for (isize first = 0; first < (FLAT || EVEN ? q->rows : 1); first += ROWS) {
        const isize rows = q->rows - first;
#if EVEN
        REAL *sums = (REAL *)*q->c + q->c_move + first * q->c_row;
#define TILE_ROW(I) (sums + (I) * q->c_row)
#else
        const void *const *pixels = q->a + first;
        void *const *to = q->c + first;
#define TILE_ROW(I) ((REAL *)to[I] + q->c_move)
#endif
        VEC acc[ROWS][NV];

#if !EVEN
        /* the sums' lines come while they are computed */
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int v = 0; v < NV; v++)
                __builtin_prefetch(TILE_ROW(i) + v * LANES, 1, 2);
#endif

        if (q->start == CNN_BIAS) {
            UNROLL for (int v = 0; v < NV; v++) {
                VEC bias = FN(load)((const REAL *)q->bias + v * LANES);
                UNROLL for (int i = 0; i < ROWS; i++) acc[i][v] = bias;
            }
        } else {
            UNROLL for (int i = 0; i < ROWS; i++) {
                VEC start = {0};
                if (q->start == CNN_BIAS_ROWS && (EVEN || i < rows))
                    start = FN(splat)(((const REAL *)q->bias)[first + i]);
                UNROLL for (int v = 0; v < NV; v++) acc[i][v] = start;
            }
        }
#if EVEN
        /* C[ROWS x NR] += A[ROWS x depth] . B[depth x NR] */
        const REAL *a = (const REAL *)*q->a + q->a_from + first * q->a_row, *b = q->b;
        const isize a_step = q->a_step * (isize)sizeof(REAL), b_step = q->b_step;
        const isize fetched = ahead < depth ? ahead : depth;
        isize offset[OF_BASE], k = 0;
        const char *base[BASES];
        UNROLL for (int i = 1; i < OF_BASE; i++)
            offset[i] = i * q->a_row * (isize)sizeof(REAL);
        UNROLL for (int i = 0; i < BASES; i++)
            base[i] = (const char *)(a + i * OF_BASE * q->a_row);
        if (q->c_far) {
            /* the next tile's sums come meanwhile, a row for each step: all asked for at
             * once would keep the loads waiting (1x1 32->64: 137 to 150 GFLOP/s) */
            const REAL *sums_next = sums + ROWS * q->c_row;
            const isize to_next = fetched ? CACHE_LINE : 0;
            if (!fetched) next = q->b;
            for (; k < depth && k < ROWS; k++) {
                __builtin_prefetch(next, 0, 3);
                UNROLL for (int v = 0; v < NV; v++)
                    __builtin_prefetch(sums_next + v * LANES, 1, 3);
                next += to_next;
                sums_next += q->c_row;
                TILE_STEP()
            }
        }
        for (; k < fetched; k++) {
            TILE_FETCH;
            TILE_STEP()
        }
        ahead -= fetched;
        for (; k < depth; k++) {
            TILE_STEP()
        }
#elif FLAT
        /* C[ROWS x NR] += A[ROWS x depth] . B[depth x NR] */
        const isize *at = q->a_at;
        const isize b_step = NV * LANES;
        const REAL *a[ROWS], *b = q->b;
        isize k = 0;
        UNROLL for (int i = 0; i < ROWS; i++) a[i] = pixels[i];
#if NV > 1
        for (; k < fetched; k++) {
            const isize from = at[k];
            TILE_FETCH;
            TILE_STEP(from)
        }
#else
        /* two steps at once: a row pointer may have to come from memory; no register
         * is left to fetch with (5x5 6->16 109 to 130 GFLOP/s) */
        for (; k + 2 <= depth; k += 2, b += 2 * LANES) {
            const isize from = at[k], then = at[k + 1];
            const VEC row = FN(load)(b), next_row = FN(load)(b + LANES);
            UNROLL for (int i = 0; i < ROWS; i++) {
                const REAL *pixel = a[i];
                acc[i][0] += pixel[from] * row;
                acc[i][0] += pixel[then] * next_row;
            }
        }
#endif
        for (; k < depth; k++) {
            const isize from = at[k];
            TILE_STEP(from)
        }
#else
        const isize a_step = q->a_step, b_step = q->b_step;
        /* what will be read next; nowhere new where there is nothing */
        const char *next = q->next ? q->next : q->b;
        isize next_step = q->next ? q->next_step : 0;
        /* C[ROWS x NR] += A[ROWS x depth] . B[depth x NR], batch by batch */
        for (isize t = 0; t < q->batches; t++) {
            const REAL *a[ROWS], *b = (const REAL *)q->b + t * q->b_move;
            const isize from = q->a_from + (q->a_at ? q->a_at[t] : 0);
            UNROLL for (int i = 0; i < ROWS; i++)
                a[i] = (const REAL *)pixels[t * q->a_next + i] + from;
            isize k = 0;
            if (a_step == 1) {
#if NV != 2
                /* two steps at once: of one vector, as a row pointer may have to come
                   from memory; of three, as more lines than these would delay B's */
                for (; k + 2 <= depth; k += 2) {
                    TILE_FETCH;
                    TILE_STEP(k)
#if NV == 1
                    TILE_FETCH;
#endif
                    TILE_STEP(k + 1)
                }
#endif
                for (; k < depth; k++) {
                    TILE_FETCH;
                    TILE_STEP(k)
                }
            } else {
                for (; k < depth; k++) {
                    TILE_FETCH;
                    TILE_STEP(k * a_step)
                }
            }
            next_step = 0;
        }
#endif
        /* the usual tile has no branch in it */
        if (q->activation != CNN_LINEAR && q->start != CNN_ADD)
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int v = 0; v < NV; v++)
                    acc[i][v] = FN(activated)(acc[i][v], q->activation);
        if (whole && (EVEN || rows >= ROWS) && q->start != CNN_ADD) {
            UNROLL for (int i = 0; i < ROWS; i++) {
                REAL *c = TILE_ROW(i);
                UNROLL for (int v = 0; v < NV; v++) FN(store)(c + v * LANES, acc[i][v]);
            }
            continue;
        }
        UNROLL for (int i = 0; i < ROWS; i++) {
            if (!EVEN && i >= rows) break;
            REAL *c = TILE_ROW(i);
            UNROLL for (int v = 0; v < NV; v++) {
                isize left = whole ? LANES : cols - v * LANES;
                VEC sum = acc[i][v];
                if (left <= 0) break;
                if (q->start == CNN_ADD) {
                    sum += left >= LANES ? FN(load)(c + v * LANES)
                                         : FN(load_part)(c + v * LANES, left);
                    sum = FN(activated)(sum, q->activation);
                }
                if (left >= LANES)
                    FN(store)(c + v * LANES, sum);
                else
                    FN(store_part)(c + v * LANES, sum, left);
            }
        }
    }
}
#undef TILE_STEP
#undef TILE_FETCH
#undef TILE_ROW
#undef A_VALUE
#undef BASES
#undef OF_BASE
#undef TILE_BEGIN
#undef TILE_END
#undef KEEP_ROW
#undef KEEPS
#undef TILE
#undef NV
