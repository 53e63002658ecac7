/* Winograd's minimal filtering F(M x M, R x R), M + R - 1 = 6 points: 0, +-1/2, +-3/2
 * and infinity, whose rounding error is about half that of 0, +-1, +-2.
 *
 * y = A^T [ (G w G^T) . (B^T x B) ] A; B^T holds the coefficients of the products
 * prod (t - p) over the other points, G those points' powers over the products of
 * their differences, A the powers of the points. Included once per R.
 * Source: A. Lavin and S. Gray, Fast algorithms for convolutional neural networks,
 * CVPR 2016; points after B. Barabasz et al., ACM TOMS 46(4), 2020. */
#define M (CNN_POINTS - R + 1)

#if R == 3
static inline void FN(winograd_in)(VEC *o, const VEC *d)
{
    VEC even = d[4] - 2.25f * d[2], odd = 0.5f * d[3] - 1.125f * d[1];
    VEC even3 = d[4] - 0.25f * d[2], odd3 = 1.5f * d[3] - 0.375f * d[1];
    o[0] = d[4] - 2.5f * d[2] + 0.5625f * d[0];
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = even3 + odd3;
    o[4] = even3 - odd3;
    o[5] = d[5] - 2.5f * d[3] + 0.5625f * d[1];
}
#endif

/* M values from 6: A^T */
static inline void W(winograd_out)(VEC *o, const VEC *d)
{
    VEC even = d[1] + d[2], odd = d[1] - d[2], even3 = d[3] + d[4], odd3 = d[3] - d[4];
    o[0] = d[0] + even + even3;
    o[1] = 0.5f * odd + 1.5f * odd3;
#if M == 4
    o[2] = 0.25f * even + 2.25f * even3;
    o[3] = 0.125f * odd + 3.375f * odd3;
#endif
    o[M - 1] += d[5];
}

/* 6 values from M: A */
static inline void W(winograd_err)(VEC *o, const VEC *d)
{
    VEC even = d[0], odd = 0.5f * d[1], even3 = d[0], odd3 = 1.5f * d[1];
#if M == 4
    even += 0.25f * d[2], odd += 0.125f * d[3];
    even3 += 2.25f * d[2], odd3 += 3.375f * d[3];
#endif
    o[0] = d[0];
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = even3 + odd3;
    o[4] = even3 - odd3;
    o[5] = d[M - 1];
}

#define NINTH (1.0f / 9)
/* 6 values from R: G */
static inline void W(winograd_wts)(VEC *o, const VEC *g)
{
    VEC even = g[0] + 0.25f * g[2], odd = 0.5f * g[1];
    VEC even3 = NINTH * g[0] + 0.25f * g[2], odd3 = 1.5f * NINTH * g[1];
#if R == 5
    even += 0.0625f * g[4], odd += 0.125f * g[3];
    even3 += 0.5625f * g[4], odd3 += 0.375f * g[3];
#endif
    o[0] = (16 * NINTH) * g[0];
    o[1] = -(even + odd);
    o[2] = odd - even;
    o[3] = even3 + odd3;
    o[4] = even3 - odd3;
    o[5] = g[R - 1];
}

/* R values from 6: G^T */
static inline void W(winograd_grad)(VEC *o, const VEC *d)
{
    VEC even = d[1] + d[2], odd = d[1] - d[2], even3 = d[3] + d[4], odd3 = d[3] - d[4];
    o[0] = (16 * NINTH) * d[0] - even + NINTH * even3;
    o[1] = 1.5f * NINTH * odd3 - 0.5f * odd;
    o[2] = 0.25f * (even3 - even);
#if R == 5
    o[3] = 0.375f * odd3 - 0.125f * odd;
    o[4] = 0.5625f * even3 - 0.0625f * even;
#endif
    o[R - 1] += d[5];
}

static void W(winograd_input)(void *values_, isize step, const void *patch_,
                              isize row_step, isize col_step, isize channels)
{
    for (isize c = 0; c < channels; c += LANES) {
        const REAL *patch = (const REAL *)patch_ + c;
        REAL *values = (REAL *)values_ + c;
        VEC half[6][6], in[6], out[6];
        UNROLL for (int j = 0; j < 6; j++) {
            UNROLL for (int i = 0; i < 6; i++)
                in[i] = FN(load)(patch + i * row_step + j * col_step);
            FN(winograd_in)(out, in);
            UNROLL for (int i = 0; i < 6; i++) half[i][j] = out[i];
        }
        UNROLL for (int i = 0; i < 6; i++) {
            FN(winograd_in)(out, half[i]);
            UNROLL for (int j = 0; j < 6; j++)
                FN(store)(values + (i * 6 + j) * step, out[j]);
        }
    }
}

static void W(winograd_weight)(void *values_, isize step, const void *const *taps,
                               isize width)
{
    for (isize c = 0; c < width; c += LANES) {
        REAL *values = (REAL *)values_ + c;
        VEC half[6][R], in[R], out[6];
        UNROLL for (int j = 0; j < R; j++) {
            UNROLL for (int i = 0; i < R; i++)
                in[i] = FN(load)((const REAL *)taps[i * R + j] + c);
            W(winograd_wts)(out, in);
            UNROLL for (int i = 0; i < 6; i++) half[i][j] = out[i];
        }
        UNROLL for (int i = 0; i < 6; i++) {
            W(winograd_wts)(out, half[i]);
            UNROLL for (int j = 0; j < 6; j++)
                FN(store)(values + (i * 6 + j) * step, out[j]);
        }
    }
}

static void W(winograd_output)(void *y_, isize row_step, isize col_step, isize rows,
                               isize cols, isize channels, const void *values_,
                               isize step, const void *bias, int activation)
{
    for (isize c = 0; c < channels; c += LANES) {
        REAL *y = (REAL *)y_ + c;
        const REAL *values = (const REAL *)values_ + c;
        isize n = channels - c;
        VEC add = FN(load)((const REAL *)bias + c);
        VEC half[M][6], in[6], out[M];
        UNROLL for (int j = 0; j < 6; j++) {
            UNROLL for (int i = 0; i < 6; i++)
                in[i] = FN(load)(values + (i * 6 + j) * step);
            W(winograd_out)(out, in);
            UNROLL for (int i = 0; i < M; i++) half[i][j] = out[i];
        }
        UNROLL for (int i = 0; i < M; i++) {
            if (i >= rows) break;
            W(winograd_out)(out, half[i]);
            UNROLL for (int j = 0; j < M; j++) {
                if (j >= cols) break;
                VEC sum = out[j] + add;
                sum = FN(activated)(sum, activation);
                if (n >= LANES)
                    FN(store)(y + i * row_step + j * col_step, sum);
                else
                    FN(store_part)(y + i * row_step + j * col_step, sum, n);
            }
        }
    }
}

static void W(winograd_error)(void *values_, isize step, const void *grad_y_,
                              isize row_step, isize col_step, isize channels)
{
    for (isize c = 0; c < channels; c += LANES) {
        const REAL *grad_y = (const REAL *)grad_y_ + c;
        REAL *values = (REAL *)values_ + c;
        VEC half[6][M], in[M], out[6];
        UNROLL for (int j = 0; j < M; j++) {
            UNROLL for (int i = 0; i < M; i++)
                in[i] = FN(load)(grad_y + i * row_step + j * col_step);
            W(winograd_err)(out, in);
            UNROLL for (int i = 0; i < 6; i++) half[i][j] = out[i];
        }
        UNROLL for (int i = 0; i < 6; i++) {
            W(winograd_err)(out, half[i]);
            UNROLL for (int j = 0; j < 6; j++)
                FN(store)(values + (i * 6 + j) * step, out[j]);
        }
    }
}

static void W(winograd_gradient)(void *const *taps, const void *values_, isize step,
                                 isize width)
{
    for (isize c = 0; c < width; c += LANES) {
        const REAL *values = (const REAL *)values_ + c;
        VEC half[R][6], in[6], out[R];
        UNROLL for (int j = 0; j < 6; j++) {
            UNROLL for (int i = 0; i < 6; i++)
                in[i] = FN(load)(values + (i * 6 + j) * step);
            W(winograd_grad)(out, in);
            UNROLL for (int i = 0; i < R; i++) half[i][j] = out[i];
        }
        UNROLL for (int i = 0; i < R; i++) {
            W(winograd_grad)(out, half[i]);
            UNROLL for (int j = 0; j < R; j++)
                FN(store)((REAL *)taps[i * R + j] + c, out[j]);
        }
    }
}

#undef M
