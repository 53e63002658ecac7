/* The one arithmetic body of every convolution pass: a tile of ROWS x (NV *
 * LANES) sums held in registers. Included once per ROWS and NV. */
#define TILE_LOOP(STEP)                                                           \
    for (; k < depth; k++, b += b_step) {                                         \
        VEC row[NV];                                                              \
        UNROLL for (int v = 0; v < NV; v++) row[v] = FN(load)(b + v * LANES);     \
        UNROLL for (int i = 0; i < ROWS; i++) {                                     \
            REAL scalar = a[i][k * (STEP)];                                       \
            UNROLL for (int v = 0; v < NV; v++) acc[i][v] += scalar * row[v];     \
        }                                                                         \
    }

static void TILE(const cnn_tile *q)
{
    VEC acc[ROWS][NV];
    const isize depth = q->depth, a_step = q->a_step, b_step = q->b_step;
    const isize cols = q->cols;
    const int whole = cols == NV * LANES;

    if (q->start == CNN_BIAS) {
        UNROLL for (int v = 0; v < NV; v++) {
            VEC bias = FN(load)((const REAL *)q->bias + v * LANES);
            UNROLL for (int i = 0; i < ROWS; i++) acc[i][v] = bias;
        }
    } else {
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int v = 0; v < NV; v++) acc[i][v] = (VEC){0};
    }
    /* C[ROWS x NR] += A[ROWS x depth] . B[depth x NR], batch by batch */
    for (isize t = 0; t < q->batches; t++) {
        const REAL *a[ROWS], *b = (const REAL *)q->b + t * q->b_move;
        UNROLL for (int i = 0; i < ROWS; i++)
            a[i] = (const REAL *)q->a[t * q->a_next + i] + q->a_from + t * q->a_move;
        isize k = 0;
        if (a_step == 1) {
#if NV == 1
            /* four steps at once: a row pointer may have to come from memory */
            for (; k + 4 <= depth; k += 4, b += 4 * b_step) {
                VEC row[4];
                UNROLL for (int u = 0; u < 4; u++) row[u] = FN(load)(b + u * b_step);
                UNROLL for (int i = 0; i < ROWS; i++)
                    UNROLL for (int u = 0; u < 4; u++) acc[i][0] += a[i][k + u] * row[u];
            }
#endif
            TILE_LOOP(1)
        } else {
            TILE_LOOP(a_step)
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        if (i >= q->rows) break;
        REAL *c = (REAL *)q->c[i] + q->c_move;
        UNROLL for (int v = 0; v < NV; v++) {
            isize left = whole ? LANES : cols - v * LANES;
            VEC sum = acc[i][v];
            if (left <= 0) break;
            if (q->start == CNN_ADD)
                sum += left >= LANES ? FN(load)(c + v * LANES)
                                     : FN(load_part)(c + v * LANES, left);
            if (q->activation == CNN_RELU) /* NaN stays NaN */
                sum = FN(select)((IVEC)(sum <= 0), (VEC){0}, sum);
            if (left >= LANES)
                FN(store)(c + v * LANES, sum);
            else
                FN(store_part)(c + v * LANES, sum, left);
        }
    }
}
#undef TILE_LOOP
#undef TILE
#undef NV
