/* The tile of the weights' gradient for few channels or few filters: each sum is a
 * dot product of two planes, kept in the lanes of a vector until the end.
 * Included once per ROWS (filters) and COLS (channel-tap pairs). */
static void TILE(const cnn_dot_tile *q)
{
    VEC acc[ROWS][COLS];
    const REAL *a[ROWS], *b[COLS];
    UNROLL for (int i = 0; i < ROWS; i++) {
        a[i] = (const REAL *)q->a + (i < q->rows ? i : 0) * q->a_step;
        UNROLL for (int j = 0; j < COLS; j++) acc[i][j] = (VEC){0};
    }
    UNROLL for (int j = 0; j < COLS; j++)
        b[j] = (const REAL *)q->b + q->at[j < q->cols ? j : 0];
    /* grad_y[filters x positions] . x[positions x pairs]; positions are whole vectors */
    for (isize p = 0; p < q->positions; p += LANES) {
        VEC x[COLS];
        UNROLL for (int j = 0; j < COLS; j++) x[j] = FN(load)(b[j] + p);
        UNROLL for (int i = 0; i < ROWS; i++) {
            VEC error = FN(load)(a[i] + p);
            UNROLL for (int j = 0; j < COLS; j++) acc[i][j] += error * x[j];
        }
    }
    /* sum the lanes of LANES sums at a time */
    for (isize first = 0; first < ROWS * COLS; first += LANES) {
        VEC block[LANES], sum = {0};
        UNROLL for (int i = 0; i < LANES; i++)
            block[i] = first + i < ROWS * COLS ? (&acc[0][0])[first + i] : (VEC){0};
        FN(transpose_block)(block);
        UNROLL for (int i = 0; i < LANES; i++) sum += block[i];
        for (isize i = 0; i < LANES && first + i < ROWS * COLS; i++) {
            isize row = (first + i) / COLS, col = (first + i) % COLS;
            if (row < q->rows && col < q->cols)
                ((REAL *)q->c)[row * q->c_step + col] += sum[i];
        }
    }
}
#undef TILE
#undef ROWS
#undef COLS
