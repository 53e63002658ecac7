/* Batch normalisation: the statistics of channels, and what follows from them.
 *
 * A block is `rows` x `cols` elements. With `each` its columns are channels (channels
 * last) and coefficients vary along them; else it is a piece of one plane (one row)
 * and one coefficient serves all. Sums take eight rows at a time, so that each is
 * short; what writes goes through memory in its order, or stores wait for it. */
#define TOGETHER 8

/* Arrays come from far: x of the way back was written long ago. Asking for lines ahead,
 * of the next eight rows or of what follows, takes 0.5 to 0.75 of the time of waiting
 * for what the processor asks for by itself (19 MB: sums 3.0 ms -> 2.0, grad_x 3.0 ->
 * 2.2), and no more where the arrays are in a near cache. */
#define FETCH(p, ahead) __builtin_prefetch((p) + (ahead), 0, 3)
#define AHEAD (2048 / (isize)sizeof(REAL))

static inline VEC FN(coefficient)(const REAL *p, isize at, isize n, int each)
{
    return each ? FN(load_some)(p + at, n) : FN(splat)(*p);
}

/* the error, stopped where the activation of a x + b was flat */
static inline VEC FN(through)(VEC g, VEC before, int activation)
{
    if (activation != CNN_LINEAR) g = (VEC)(~(IVEC)(before <= 0) & (IVEC)g);
    if (activation == CNN_RELU6) g = (VEC)(~(IVEC)(before >= 6) & (IVEC)g);
    return g;
}

/* sums += sum of x - shift, squares += sum of (x - shift)^2 of each column */
static void FN(centred_sums)(REAL *sums, REAL *squares, const REAL *x,
                             const REAL *shift, isize rows, isize cols)
{
    for (; rows > 0; rows -= TOGETHER, x += TOGETHER * cols)
        for (isize at = 0; at < cols; at += LANES) {
            isize n = cols - at;
            VEC middle = FN(load_some)(shift + at, n);
            VEC sum = FN(load_some)(sums + at, n);
            VEC square = FN(load_some)(squares + at, n);
            if (rows >= TOGETHER) {
                VEC d[TOGETHER], q[2];
                UNROLL for (int k = 0; k < TOGETHER; k++) {
                    FETCH(x + at, (k + TOGETHER) * cols);
                    d[k] = FN(load_some)(x + at + k * cols, n) - middle;
                }
                q[0] = d[0] * d[0], q[1] = d[1] * d[1];
                UNROLL for (int k = 2; k < TOGETHER; k++) q[k & 1] += d[k] * d[k];
                square += q[0] + q[1];
                sum += ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7]));
            } else {
                for (isize k = 0; k < rows; k++) {
                    VEC d = FN(load_some)(x + at + k * cols, n) - middle;
                    sum += d;
                    square += d * d;
                }
            }
            FN(store_some)(sums + at, sum, n);
            FN(store_some)(squares + at, square, n);
        }
}

/* Joins the sums over `rows` more values with mean and sum of squared distances of
 * the `before` values so far (Chan, Golub, LeVeque, 1979). */
static inline void FN(join_moments)(double *mean, double *square, double before,
                                    double rows, double shift, double sum,
                                    double squares)
{
    double step = sum / rows, centre = shift + step, own = squares - sum * step;
    double delta = centre - *mean, all = before + rows;
    *mean += delta * (rows / all);
    *square += (own > 0 ? own : own != own ? own : 0) +
               delta * delta * (before * rows / all);
}

/* mean and sum of squared distances of each channel, joined with what was before.
 *
 * One pass over memory: distances are from the mean of the first eighth of the block.
 * A mean of 1/8 of the values is at most sqrt(8) standard deviations off, so that
 * squares - sum^2 / rows loses three bits at most. */
static void FN(moments)(double *mean, double *square, const void *x_, isize rows,
                        isize cols, int each, isize before, void *scratch)
{
    const REAL *x = x_;
    if (each) {
        REAL *shift = scratch, *sums = shift + cols, *squares = sums + cols;
        isize few = (rows + 7) / 8;
        memset(shift, 0, (size_t)(3 * cols) * sizeof(REAL));
        FN(centred_sums)(sums, squares, x, shift, few, cols);
        for (isize c = 0; c < cols; c++) shift[c] = sums[c] / (REAL)few;
        memset(sums, 0, (size_t)(2 * cols) * sizeof(REAL));
        FN(centred_sums)(sums, squares, x, shift, rows, cols);
        for (isize c = 0; c < cols; c++)
            FN(join_moments)(mean + c, square + c, (double)before, (double)rows,
                             (double)shift[c], (double)sums[c], (double)squares[c]);
        return;
    }
    VEC first = {0}, sum[4] = {{0}}, squares[4] = {{0}};
    isize few = (cols + 7) / 8, at = 0;
    for (; at < few; at += LANES) first += FN(load_some)(x + at, few - at);
    REAL shift = (REAL)(FN(sum_lanes)(first) / (double)few);
    VEC middle = FN(splat)(shift);
    for (at = 0; at + 4 * LANES <= cols; at += 4 * LANES)
        UNROLL for (int k = 0; k < 4; k++) {
            VEC d = FN(load)(x + at + k * LANES) - middle;
            sum[k] += d;
            squares[k] += d * d;
        }
    double total = 0, total_squares = 0;
    for (; at + LANES <= cols; at += LANES) {
        VEC d = FN(load)(x + at) - middle;
        sum[0] += d;
        squares[0] += d * d;
    }
    for (; at < cols; at++) {
        REAL d = x[at] - shift;
        total += (double)d;
        total_squares += (double)d * (double)d;
    }
    total += FN(sum_lanes)((sum[0] + sum[1]) + (sum[2] + sum[3]));
    total_squares += FN(sum_lanes)((squares[0] + squares[1]) + (squares[2] + squares[3]));
    FN(join_moments)(mean, square, (double)before, (double)cols, (double)shift, total,
                     total_squares);
}

/* y = a x + b, plus a residual, then the activation; `stream`: past the caches, for
 * rows of whole vectors */
static inline void FN(normalize_body)(REAL *y, const REAL *x, const REAL *residual,
                                      const REAL *a, const REAL *b, isize rows,
                                      isize cols, int each, int activation, int stream)
{
    for (isize i = 0; i < rows; i++)
        for (isize at = 0; at < cols; at += LANES) {
            isize n = cols - at, place = i * cols + at;
            VEC scale = FN(coefficient)(a, at, n, each);
            VEC shift = FN(coefficient)(b, at, n, each);
            FETCH(x + place, AHEAD);
            VEC v = FN(load_some)(x + place, n) * scale + shift;
            if (residual) v += FN(load_some)(residual + place, n);
            v = FN(activated)(v, activation);
            if (stream)
                FN(stream)(y + place, v);
            else
                FN(store_some)(y + place, v, n);
        }
    if (stream) FN(streamed)();
}

static void FN(normalize)(void *y, const void *x, const void *residual, const void *a,
                          const void *b, isize rows, isize cols, int each,
                          int activation, int stream)
{
    if (each && stream)
        FN(normalize_body)(y, x, residual, a, b, rows, cols, 1, activation, 1);
    else if (each)
        FN(normalize_body)(y, x, residual, a, b, rows, cols, 1, activation, 0);
    else
        FN(normalize_body)(y, x, residual, a, b, rows, cols, 0, activation, stream);
}

/* The error that a normalisation behind a sum gets: what arrives, in one part or two,
 * stopped where the activation was flat, which `ended` tells, what it had returned. */
static inline void FN(make_error)(const cnn_error *of, isize at, isize count,
                                  int activation)
{
    const REAL *grad_y = of->grad_y, *more = of->more, *ended = of->ended;
    REAL *error = of->error;
    for (isize end = at + count; at < end; at += LANES) {
        isize n = end - at;
        FETCH(grad_y + at, AHEAD);
        VEC e = FN(load_some)(grad_y + at, n);
        if (more) {
            FETCH(more + at, AHEAD);
            e += FN(load_some)(more + at, n);
        }
        if (activation != CNN_LINEAR) {
            FETCH(ended + at, AHEAD);
            e = FN(through)(e, FN(load_some)(ended + at, n), activation);
        }
        FN(store_some)(error + at, e, n);
    }
}

/* sums += error, products += error * (x - mean): n columns of some rows, which begin at
 * `at` and are `cols` apart */
static inline __attribute__((always_inline)) void
FN(error_rows)(REAL *sums, REAL *products, const REAL *grad_y, const REAL *x, isize at,
               VEC middle, VEC scale, VEC shift, isize rows, isize cols, isize n,
               int activation)
{
    VEC sum[2] = {{0}}, product[2] = {{0}};
    const int ahead = rows == TOGETHER;
#define ROW(k)                                                                    \
    {                                                                             \
        isize place = at + (k) * cols;                                            \
        if (ahead) {                                                              \
            FETCH(x + place, TOGETHER * cols);                                    \
            FETCH(grad_y + place, TOGETHER * cols);                               \
        }                                                                         \
        VEC v = FN(load_some)(x + place, n);                                      \
        VEC e = FN(through)(FN(load_some)(grad_y + place, n), v * scale + shift,  \
                            activation);                                          \
        sum[(k) & 1] += e;                                                        \
        product[(k) & 1] += e * (v - middle);                                     \
    }
    if (rows == TOGETHER)
        UNROLL for (int k = 0; k < TOGETHER; k++) ROW(k)
    else
        for (isize k = 0; k < rows; k++) ROW(k)
#undef ROW
    FN(store_some)(sums, FN(load_some)(sums, n) + (sum[0] + sum[1]), n);
    FN(store_some)(products, FN(load_some)(products, n) + (product[0] + product[1]), n);
}

static inline __attribute__((always_inline)) void
FN(error_columns)(REAL *sums, REAL *products, const cnn_error *of, const REAL *x,
                  const REAL *mean, const REAL *a, const REAL *b, isize rows, isize cols,
                  int activation)
{
    for (isize row = 0; row < rows; row += TOGETHER) {
        isize high = rows - row < TOGETHER ? rows - row : TOGETHER, at = 0;
        const REAL *grad_y = of->grad_y;
        if (of->error) {
            /* in the order of memory: stores to eight rows at once took twice as long */
            FN(make_error)(of, row * cols, high * cols, activation);
            grad_y = of->error;
        }
        isize whole = high == TOGETHER ? cols / LANES * LANES : 0;
        for (; at < whole; at += LANES) /* constants: one straight line */
            FN(error_rows)(sums + at, products + at, grad_y, x, row * cols + at,
                           FN(load)(mean + at), FN(load)(a + at), FN(load)(b + at),
                           TOGETHER, cols, LANES, of->error ? CNN_LINEAR : activation);
        for (; at < cols; at += LANES) {
            isize n = cols - at < LANES ? cols - at : LANES;
            FN(error_rows)(sums + at, products + at, grad_y, x, row * cols + at,
                           FN(load_some)(mean + at, n), FN(load_some)(a + at, n),
                           FN(load_some)(b + at, n), high, cols, n,
                           of->error ? CNN_LINEAR : activation);
        }
    }
}

/* sums += error, products += error * (x - mean), of each channel */
static inline __attribute__((always_inline)) void
FN(error_sums_of)(double *sums, double *products, const cnn_error *of, const REAL *x,
                  const REAL *mean, const REAL *a, const REAL *b, isize rows, isize cols,
                  int each, int activation, void *scratch)
{
    if (each) {
        REAL *sum = scratch, *product = sum + cols;
        memset(sum, 0, (size_t)(2 * cols) * sizeof(REAL));
        FN(error_columns)(sum, product, of, x, mean, a, b, rows, cols, activation);
        for (isize c = 0; c < cols; c++) {
            sums[c] += (double)sum[c];
            products[c] += (double)product[c];
        }
        return;
    }
    VEC middle = FN(splat)(*mean), scale = FN(splat)(*a), shift = FN(splat)(*b);
    VEC sum[4] = {{0}}, product[4] = {{0}};
    const REAL *grad_y = of->grad_y;
    isize at = 0;
    if (of->error) {
        FN(make_error)(of, 0, cols, activation);
        grad_y = of->error;
        activation = CNN_LINEAR;
    }
    for (; at + 4 * LANES <= cols; at += 4 * LANES)
        UNROLL for (int k = 0; k < 4; k++) {
            VEC v = FN(load)(x + at + k * LANES);
            VEC e = FN(through)(FN(load)(grad_y + at + k * LANES), v * scale + shift,
                                activation);
            sum[k] += e;
            product[k] += e * (v - middle);
        }
    for (; at < cols; at += LANES) { /* behind the end the error is 0 */
        VEC v = FN(load_some)(x + at, cols - at);
        VEC e = FN(through)(FN(load_some)(grad_y + at, cols - at), v * scale + shift,
                            activation);
        sum[0] += e;
        product[0] += e * (v - middle);
    }
    *sums += FN(sum_lanes)((sum[0] + sum[1]) + (sum[2] + sum[3]));
    *products += FN(sum_lanes)((product[0] + product[1]) + (product[2] + product[3]));
}

static void FN(error_sums)(double *sums, double *products, const cnn_error *of,
                           const void *x, const void *mean, const void *a, const void *b,
                           isize rows, isize cols, int each, int activation,
                           void *scratch)
{
    const cnn_error plain = {of->grad_y, NULL, NULL, NULL};
    if (of->error) /* made and summed eight rows at a time: 0.7 of the time of passes
                      over blocks of 64 KB (10 MB arrays, in place) */
        FN(error_sums_of)(sums, products, of, x, mean, a, b, rows, cols, each, activation,
                          scratch);
    else if (activation == CNN_LINEAR)
        FN(error_sums_of)(sums, products, &plain, x, mean, a, b, rows, cols, each,
                          CNN_LINEAR, scratch);
    else
        FN(error_sums_of)(sums, products, &plain, x, mean, a, b, rows, cols, each,
                          activation, scratch);
}

/* grad_x = a (error - level - (x - mean) slope); `of` holds mean, a, b, level, slope,
 * `step` elements apart */
static inline void FN(normalize_backward_body)(REAL *grad_x, const REAL *grad_y,
                                               const REAL *x, const REAL *of,
                                               isize step, isize rows, isize cols,
                                               int each, int activation)
{
    for (isize i = 0; i < rows; i++)
        for (isize at = 0; at < cols; at += LANES) {
            isize n = cols - at, place = i * cols + at;
            VEC middle = FN(coefficient)(of, at, n, each);
            VEC scale = FN(coefficient)(of + step, at, n, each);
            VEC shift = FN(coefficient)(of + 2 * step, at, n, each);
            VEC level = FN(coefficient)(of + 3 * step, at, n, each);
            VEC slope = FN(coefficient)(of + 4 * step, at, n, each);
            FETCH(x + place, AHEAD);
            FETCH(grad_y + place, AHEAD);
            VEC v = FN(load_some)(x + place, n);
            VEC e = FN(through)(FN(load_some)(grad_y + place, n), v * scale + shift,
                                activation);
            e = scale * ((e - level) - (v - middle) * slope);
            FN(store_some)(grad_x + place, e, n);
        }
}

static void FN(normalize_backward)(void *grad_x, const void *grad_y, const void *x,
                                   const void *of, isize step, isize rows, isize cols,
                                   int each, int activation)
{
    if (each)
        FN(normalize_backward_body)(grad_x, grad_y, x, of, step, rows, cols, 1,
                                    activation);
    else
        FN(normalize_backward_body)(grad_x, grad_y, x, of, step, rows, cols, 0,
                                    activation);
}
#undef AHEAD
#undef FETCH
#undef TOGETHER
