/* Winograd's minimal filtering F(M, R): M outputs of a kernel of R taps from P = M + R - 1
 * pixels, with P products in place of M * R. It runs along the columns of a patch (TALL
 * is 1), along its rows (WIDE is 1), or is nested along both. Included once for each.
 *
 * y = A^T [ (G w) . (B^T x) ]; B^T holds the coefficients of the products
 * prod (t - p) over the other points, G those points' powers over the products of
 * their differences, A the powers of the points. The points are 0 (unless WITHOUT_0),
 * pairs +-POINT, so that all sums split into even and odd powers, of 7 a SINGLE one, and
 * infinity. Of 6 points 0, +-1/2, +-3/2 lose about half as many bits as 0, +-1, +-2; of
 * 5 those without 0 lose 2/3 as many as 0, +-1, 2.
 * Source: A. Lavin and S. Gray, Fast algorithms for convolutional neural networks,
 * CVPR 2016; points after B. Barabasz et al., ACM TOMS 46(4), 2020. */
#define M (P - R + 1)
#define WITHOUT_0 (P == 5)
#define PAIRS ((P - 2 + WITHOUT_0) / 2)
#define FROM (1 - WITHOUT_0)               /* the first pair's place */
#define PAIRED (2 * PAIRS + FROM + 1)      /* points without the single one */
#define PY (TALL ? P : 1)
#define PX (WIDE ? P : 1)
#define MY (TALL ? M : 1)
#define MX (WIDE ? M : 1)
#define RY (TALL ? R : 1)
#define RX (WIDE ? R : 1)

/* OTHERS: coefficients of the product of t^2 - p^2 over the other pairs, by powers of
 * t^2; ALL: over all pairs; SCALE: for each point one over the product of its
 * differences */
#if P == 5
static const REAL W(POINT)[] = {0.5, 1.5};
static const REAL W(OTHERS)[][2] = {{-2.25, 1}, {-0.25, 1}};
static const REAL W(ALL)[] = {0.5625, -2.5, 1};
static const REAL W(SCALE)[] = {-0.5, 0.5, 1.0 / 6, -1.0 / 6, 1};
#elif P == 6
static const REAL W(POINT)[] = {0.5, 1.5};
static const REAL W(OTHERS)[][2] = {{-2.25, 1}, {-0.25, 1}};
static const REAL W(ALL)[] = {0.5625, -2.5, 1};
static const REAL W(SCALE)[] = {1 / 0.5625, -1, -1, 1.0 / 9, 1.0 / 9, 1};
#elif P == 7
#define SINGLE 2
static const REAL W(POINT)[] = {0.5, 1};
static const REAL W(OTHERS)[][2] = {{-1, 1}, {-0.25, 1}};
static const REAL W(ALL)[] = {0.25, -1.25, 1};
static const REAL W(SCALE)[] = {
    -2, 1 / 0.5625, 1 / 0.9375, -1 / 1.5, -1 / 4.5, 1 / 22.5, 1};
#elif P == 8
static const REAL W(POINT)[] = {0.5, 1, 2};
static const REAL W(OTHERS)[][3] = {{4, -5, 1}, {1, -4.25, 1}, {0.25, -1.25, 1}};
static const REAL W(ALL)[] = {-1, 5.25, -5.25, 1};
static const REAL W(SCALE)[] = {
    -1, 32.0 / 45, 32.0 / 45, -1 / 4.5, -1 / 4.5, 1.0 / 90, 1.0 / 90, 1};
#elif P == 10
static const REAL W(POINT)[] = {0.4, 0.8, 1.25, 2.5};
static const REAL W(OTHERS)[][4] = {{-6.25, 14.765625, -8.4525, 1},
                                    {-1.5625, 11.015625, -7.9725, 1},
                                    {-0.64, 5.1024, -7.05, 1},
                                    {-0.16, 1.3524, -2.3625, 1}};
static const REAL W(ALL)[] = {1, -8.6125, 16.118025, -8.6125, 1};
#define TWICE(x) (x), (x)
static const REAL W(SCALE)[] = {
    1, TWICE(-1 / (0.32 * 0.48 * 1.4025 * 6.09)),
    TWICE(1 / (1.28 * 0.48 * 0.9225 * 5.61)),
    TWICE(-1 / (3.125 * 1.4025 * 0.9225 * 4.6875)),
    TWICE(1 / (12.5 * 6.09 * 5.61 * 4.6875)), 1};
#undef TWICE
#endif
static const REAL W(ONES)[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* P values from P pixels: B^T. The highest coefficients are 1. */
static inline void W(winograd_in)(VEC *o, const VEC *pixels)
{
#ifdef SINGLE
    /* all other points have the factor t - SINGLE in common */
    VEC d[PAIRED];
    o[P - 2] = pixels[P - 2];
    UNROLL for (int k = 0; k < PAIRS; k++) o[P - 2] += W(ALL)[k] * pixels[2 * k + 1];
    UNROLL for (int k = 0; k < PAIRED; k++) d[k] = pixels[k + 1] - SINGLE * pixels[k];
#else
    const VEC *d = pixels;
#endif
    if (!WITHOUT_0)
        o[0] = d[PAIRED - 2];
    o[P - 1] = d[PAIRED - 1];
    UNROLL for (int k = 0; k < PAIRS; k++) {
        if (!WITHOUT_0)
            o[0] += W(ALL)[k] * d[2 * k];
        o[P - 1] += W(ALL)[k] * d[2 * k + FROM];
    }
    UNROLL for (int i = 0; i < PAIRS; i++) {
        VEC high = d[PAIRED - 2], low = d[PAIRED - 3];
        UNROLL for (int k = 0; k < PAIRS - 1; k++) {
            high += W(OTHERS)[i][k] * d[2 * k + 1 + FROM];
            low += W(OTHERS)[i][k] * d[2 * k + FROM];
        }
        o[2 * i + FROM] = high + W(POINT)[i] * low;
        o[2 * i + FROM + 1] = high - W(POINT)[i] * low;
    }
}

/* P values from the first `count` powers of each point, scaled: A and G */
static inline __attribute__((always_inline)) void W(winograd_spread)(
    VEC *o, const VEC *d, int count, const REAL *scale)
{
    if (!WITHOUT_0)
        o[0] = scale[0] * d[0];
    UNROLL for (int i = 0; i < PAIRS; i++) {
        const REAL p = W(POINT)[i];
        REAL power = 1;
        VEC even = d[0], odd = d[1];
        UNROLL for (int k = 2; k < count; k++) {
            power *= k % 2 == 0 ? p * p : 1;
            if (k % 2 == 0)
                even += power * d[k];
            else
                odd += power * d[k];
        }
        const int at = 2 * i + FROM;
        o[at] = scale[at] * (even + p * odd);
        o[at + 1] = scale[at + 1] * (even - p * odd);
    }
#ifdef SINGLE
    REAL power = 1;
    VEC sum = d[0];
    UNROLL for (int k = 1; k < count; k++) {
        power *= SINGLE;
        sum += power * d[k];
    }
    o[P - 2] = scale[P - 2] * sum;
#endif
    o[P - 1] = d[count - 1];
}

/* Its adjoint, `count` values from P: A^T and G^T */
static inline __attribute__((always_inline)) void W(winograd_collect)(
    VEC *o, const VEC *d, int count, const REAL *scale)
{
    UNROLL for (int i = 0; i < PAIRS; i++) {
        const REAL p = W(POINT)[i];
        const int at = 2 * i + FROM;
        const VEC plus = scale[at] * d[at], minus = scale[at + 1] * d[at + 1];
        const VEC even = plus + minus, odd = plus - minus;
        REAL power = 1;
        UNROLL for (int k = 0; k < count; k++) {
            const VEC term = power * (k % 2 == 0 ? even : odd);
            if (i > 0)
                o[k] += term;
            else if (k == 0)
                o[k] = WITHOUT_0 ? term : scale[0] * d[0] + term;
            else
                o[k] = k == count - 1 ? d[P - 1] + term : term;
            power *= p;
        }
    }
#ifdef SINGLE
    REAL power = scale[P - 2];
    UNROLL for (int k = 0; k < count; k++) {
        o[k] += power * d[P - 2];
        power *= SINGLE;
    }
#endif
}

static inline void W(winograd_out)(VEC *o, const VEC *d)
{
    W(winograd_collect)(o, d, M, W(ONES));
}

static inline void W(winograd_err)(VEC *o, const VEC *d)
{
    W(winograd_spread)(o, d, M, W(ONES));
}

static inline void W(winograd_wts)(VEC *o, const VEC *d)
{
    W(winograd_spread)(o, d, R, W(SCALE));
}

static inline void W(winograd_grad)(VEC *o, const VEC *d)
{
    W(winograd_collect)(o, d, R, W(SCALE));
}

/* A transform along one side of a patch, which may have a single row (column). */
#define ALONG(side, transform, o, d)                                                    \
    if (side)                                                                           \
        transform(o, d);                                                                \
    else                                                                                \
        (o)[0] = (d)[0]

static void W(winograd_input)(void *values_, isize step, const void *patch_,
                              isize row_step, isize col_step, isize channels,
                              const cnn_inside *inside)
{
    REAL copy[PY * PX * LANES];
    const isize down = inside ? PX * LANES : row_step;
    const isize right = inside ? LANES : col_step;
    for (isize c = 0; c < channels; c += LANES) {
        const REAL *patch = (const REAL *)patch_ + c;
        REAL *values = (REAL *)values_ + c;
        VEC half[PY][P], in[P], out[P];
        if (inside) {
            for (isize i = 0; i < PY; i++)
                for (isize j = 0; j < PX; j++) {
                    VEC pixel = {0};
                    if (i >= inside->row0 && i < inside->row1 && j >= inside->col0
                        && j < inside->col1)
                        pixel = FN(load)(patch + i * row_step + j * col_step);
                    FN(store)(copy + i * down + j * right, pixel);
                }
            patch = copy;
        }
        UNROLL for (int j = 0; j < PX; j++) {
            UNROLL for (int i = 0; i < PY; i++) in[i] = FN(load)(patch + i * down);
            ALONG(TALL, W(winograd_in), out, in);
            UNROLL for (int i = 0; i < PY; i++) half[i][j] = out[i];
            patch = FN(at)(patch + right);
        }
        UNROLL for (int i = 0; i < PY; i++) {
            ALONG(WIDE, W(winograd_in), out, half[i]);
            UNROLL for (int j = 0; j < PX; j++) FN(store)(values + j * step, out[j]);
            values = FN(at)(values + PX * step);
        }
    }
}

static void W(winograd_weight)(void *values_, isize step, const void *const *taps,
                               isize width)
{
    for (isize c = 0; c < width; c += LANES) {
        REAL *values = (REAL *)values_ + c;
        VEC half[PY][P], in[P], out[P];
        UNROLL for (int j = 0; j < RX; j++) {
            UNROLL for (int i = 0; i < RY; i++)
                in[i] = FN(load)((const REAL *)taps[i * RX + j] + c);
            ALONG(TALL, W(winograd_wts), out, in);
            UNROLL for (int i = 0; i < PY; i++) half[i][j] = out[i];
        }
        UNROLL for (int i = 0; i < PY; i++) {
            ALONG(WIDE, W(winograd_wts), out, half[i]);
            UNROLL for (int j = 0; j < PX; j++) FN(store)(values + j * step, out[j]);
            values = FN(at)(values + PX * step);
        }
    }
}

static void W(winograd_output)(void *y_, isize row_step, isize col_step, isize rows,
                               isize cols, isize channels, const void *values_,
                               isize step, const void *bias, int activation)
{
    REAL copy[MY * MX * LANES];
    for (isize c = 0; c < channels; c += LANES) {
        const REAL *values = (const REAL *)values_ + c;
        const isize n = channels - c;
        /* what the image has not all of is stored from a copy: no branch a pixel */
        const int whole = rows == MY && cols == MX && n >= LANES;
        const isize down = whole ? row_step : MX * LANES;
        const isize right = whole ? col_step : LANES;
        REAL *y = whole ? (REAL *)y_ + c : copy;
        const VEC add = FN(load)((const REAL *)bias + c);
        VEC half[MY][P], in[P], out[P];
        UNROLL for (int j = 0; j < PX; j++) {
            UNROLL for (int i = 0; i < PY; i++)
                in[i] = FN(load)(values + i * PX * step);
            ALONG(TALL, W(winograd_out), out, in);
            UNROLL for (int i = 0; i < MY; i++) half[i][j] = out[i];
            values = FN(at)(values + step);
        }
        UNROLL for (int i = 0; i < MY; i++) {
            ALONG(WIDE, W(winograd_out), out, half[i]);
            UNROLL for (int j = 0; j < MX; j++) out[j] += add;
            if (activation != CNN_LINEAR)
                UNROLL for (int j = 0; j < MX; j++)
                    out[j] = FN(activated)(out[j], activation);
            UNROLL for (int j = 0; j < MX; j++) FN(store)(y + j * right, out[j]);
            y = FN(at)(y + down);
        }
        if (whole) continue;
        for (isize i = 0; i < rows; i++)
            for (isize j = 0; j < cols; j++) {
                REAL *to = (REAL *)y_ + c + i * row_step + j * col_step;
                const VEC pixel = FN(load)(copy + (i * MX + j) * LANES);
                if (n >= LANES)
                    FN(store)(to, pixel);
                else
                    FN(store_part)(to, pixel, n);
            }
    }
}

static void W(winograd_error)(void *values_, isize step, const void *grad_y_,
                              isize row_step, isize col_step, isize channels)
{
    for (isize c = 0; c < channels; c += LANES) {
        const REAL *grad_y = (const REAL *)grad_y_ + c;
        REAL *values = (REAL *)values_ + c;
        VEC half[PY][P], in[P], out[P];
        UNROLL for (int j = 0; j < MX; j++) {
            UNROLL for (int i = 0; i < MY; i++) in[i] = FN(load)(grad_y + i * row_step);
            ALONG(TALL, W(winograd_err), out, in);
            UNROLL for (int i = 0; i < PY; i++) half[i][j] = out[i];
            grad_y = FN(at)(grad_y + col_step);
        }
        UNROLL for (int i = 0; i < PY; i++) {
            ALONG(WIDE, W(winograd_err), out, half[i]);
            UNROLL for (int j = 0; j < PX; j++) FN(store)(values + j * step, out[j]);
            values = FN(at)(values + PX * step);
        }
    }
}

static void W(winograd_gradient)(void *const *taps, const void *values_, isize step,
                                 isize width)
{
    for (isize c = 0; c < width; c += LANES) {
        const REAL *values = (const REAL *)values_ + c;
        VEC half[RY][P], in[P], out[P];
        UNROLL for (int j = 0; j < PX; j++) {
            UNROLL for (int i = 0; i < PY; i++)
                in[i] = FN(load)(values + i * PX * step);
            ALONG(TALL, W(winograd_grad), out, in);
            UNROLL for (int i = 0; i < RY; i++) half[i][j] = out[i];
            values = FN(at)(values + step);
        }
        UNROLL for (int i = 0; i < RY; i++) {
            ALONG(WIDE, W(winograd_grad), out, half[i]);
            UNROLL for (int j = 0; j < RX; j++)
                FN(store)((REAL *)taps[i * RX + j] + c, out[j]);
        }
    }
}

static const cnn_winograd W(winograd) = {
    PY, PX, MY, MX, RY, RX,
    W(winograd_input), W(winograd_weight), W(winograd_output),
    W(winograd_error), W(winograd_gradient)};

#undef ALONG
#undef M
#undef PAIRS
#undef WITHOUT_0
#undef FROM
#undef PAIRED
#undef SINGLE
#undef PY
#undef PX
#undef MY
#undef MX
#undef RY
#undef RX
#undef P
#undef R
#undef TALL
#undef WIDE
#undef W
