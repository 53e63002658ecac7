/* The tile for few channels or few filters: rows are filters, vectors are pixels of
 * planes, so that no lane waits for a channel that is not there. Included once per
 * ROWS and NV. */
static void TILE(const cnn_plane_tile *q)
{
    VEC acc[ROWS][NV];
    const isize depth = q->depth, *at = q->at;
    const REAL *a[ROWS], *base = q->b;

    /* (3x3 3->64 85 to 92 GFLOP/s, 7x7 121 to 133) */
    if (q->next)
        for (int i = 0; i < ROWS; i++)
            UNROLL for (int v = 0; v < NV; v++)
                __builtin_prefetch(
                    (const REAL *)q->next + (i < q->rows ? i : 0) * q->next_step
                        + v * LANES, 1, 2);
    UNROLL for (int i = 0; i < ROWS; i++) {
        VEC start = {0};
        a[i] = (const REAL *)q->a + (i < q->rows ? i : 0) * q->a_step;
        if (q->start == CNN_BIAS && i < q->rows)
            start = FN(splat)(((const REAL *)q->bias)[i]);
        UNROLL for (int v = 0; v < NV; v++) acc[i][v] = start;
    }
    /* weight[rows x depth] . pixels[depth x NV * LANES], a plane at a time */
    for (isize k = 0; k < depth; k++) {
        const REAL *b = base + at[k];
        VEC row[NV];
        UNROLL for (int v = 0; v < NV; v++) row[v] = FN(load)(b + v * LANES);
        UNROLL for (int i = 0; i < ROWS; i++) {
            REAL scalar = a[i][k];
            UNROLL for (int v = 0; v < NV; v++) acc[i][v] += scalar * row[v];
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        if (i >= q->rows) break;
        REAL *c = (REAL *)q->c + i * q->c_step;
        UNROLL for (int v = 0; v < NV; v++) {
            VEC sum = acc[i][v];
            if (q->start == CNN_ADD) sum += FN(load)(c + v * LANES);
            sum = FN(activated)(sum, q->activation);
            FN(store)(c + v * LANES, sum);
        }
    }
}
#undef TILE
#undef ROWS
#undef NV
