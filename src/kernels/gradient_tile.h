/* The tile of the weights' gradient: sums[ROWS x (NV * LANES)] over pixels, held in
 * registers. While it adds, it fetches the lines that come next from memory, one for
 * each step. Included once per ROWS and NV. */
static void TILE(const cnn_gradient_tile *q)
{
    VEC acc[ROWS][NV];
    const isize depth = q->depth, a_step = q->a_step, b_step = q->b_step;
    cnn_lines next = *q->next;

    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int v = 0; v < NV; v++) acc[i][v] = (VEC){0};
    /* x[rows x pixels] . grad_y[pixels x filters], row of pixels by row */
    for (isize t = 0; t < q->batches; t++) {
        const REAL *a[ROWS], *b = (const REAL *)q->b + t * q->b_move;
        UNROLL for (int i = 0; i < ROWS; i++)
            a[i] = (const REAL *)q->a[i] + q->a_from + t * q->a_move;
        for (isize k = 0; k < depth; k++, b += b_step) {
            VEC row[NV];
            UNROLL for (int v = 0; v < NV; v++) row[v] = FN(load)(b + v * LANES);
            if (next.left > 0) {
                __builtin_prefetch(next.at, 0, 2);
                next.at += 64, next.left--;
                if (--next.of_run == 0) {
                    next.at += next.jump, next.of_run = next.run;
                    if (--next.of_row == 0)
                        next.at += next.row_jump, next.of_row = next.row;
                }
            }
            UNROLL for (int i = 0; i < ROWS; i++) {
                REAL scalar = a[i][k * a_step];
                UNROLL for (int v = 0; v < NV; v++) acc[i][v] += scalar * row[v];
            }
        }
    }
    *q->next = next;
    UNROLL for (int i = 0; i < ROWS; i++) {
        if (i >= q->rows) break;
        REAL *c = (REAL *)q->c + i * q->c_step;
        UNROLL for (int v = 0; v < NV; v++) {
            isize left = q->cols - v * LANES;
            VEC sum = acc[i][v];
            if (left >= LANES) {
                if (q->start == CNN_ADD) sum += FN(load)(c + v * LANES);
                FN(store)(c + v * LANES, sum);
            } else if (left > 0) {
                if (q->start == CNN_ADD) sum += FN(load_part)(c + v * LANES, left);
                FN(store_part)(c + v * LANES, sum, left);
            }
        }
    }
}
#undef TILE
#undef NV
