/* The tile of the weights' gradient: sums[ROWS x (NV * LANES)] over pixels, held in
 * registers. While it adds, it fetches the lines that come next from memory, one for
 * each step. Included once for each number of ROWS; NV is 1 and, for fewer, 2. */
#ifndef NV
#define NV 1
#include "gradient_tile.h"
#if ROWS <= GRADIENT_ROWS_2
#define NV 2
#include "gradient_tile.h"
#endif
#undef ROWS
#else
#define GRADIENT_STEP(VALUE)                                                      \
    {                                                                             \
        VEC row[NV];                                                              \
        UNROLL for (int v = 0; v < NV; v++) row[v] = FN(load)(b + v * LANES);     \
        if (next.left > 0) {                                                      \
            __builtin_prefetch(next.at, 0, 2);                                    \
            next.at += 64, next.left--;                                           \
            if (--next.of_run == 0) {                                             \
                next.at += next.jump, next.of_run = next.run;                     \
                if (--next.of_row == 0)                                           \
                    next.at += next.row_jump, next.of_row = next.row;             \
            }                                                                     \
        }                                                                         \
        UNROLL for (int i = 0; i < ROWS; i++) {                                   \
            REAL scalar = (VALUE);                                                \
            UNROLL for (int v = 0; v < NV; v++) acc[i][v] += scalar * row[v];     \
        }                                                                         \
    }

static void GRADIENT_NAME(ROWS, NV)(const cnn_gradient_tile *q)
{
    VEC acc[ROWS][NV];
    const isize depth = q->depth, a_row = q->a_row, a_step = q->a_step;
    const isize b_step = q->b_step;
    cnn_lines next = *q->next;

    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int v = 0; v < NV; v++) acc[i][v] = (VEC){0};
    /* x[rows x pixels] . grad_y[pixels x filters], row of pixels by row */
    for (isize t = 0; t < q->batches; t++) {
        const REAL *x = (const REAL *)q->a + t * q->a_move;
        const REAL *b = (const REAL *)q->b + t * q->b_move;
        if (a_row == 1) {
            for (isize k = 0; k < depth; k++, b += b_step, x += a_step)
                GRADIENT_STEP(x[i])
        }
#if ROWS <= GRADIENT_ROWS_2
        else {
            const REAL *a[ROWS];
            UNROLL for (int i = 0; i < ROWS; i++)
                a[i] = x + (i < q->rows ? i : 0) * a_row;
            for (isize k = 0; k < depth; k++, b += b_step)
                GRADIENT_STEP(a[i][k * a_step])
        }
#endif
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
#undef GRADIENT_STEP
#undef NV
#endif
