/* Optimisers: one pass over a parameter, its gradient and what is kept beside it. */

/* What is kept is never subnormal. A velocity whose gradient stays 0 (a unit that died)
 * would be for good: 0.9 of the smallest number rounds to itself. A step of LeNet-5 then
 * took 3 times as long, most of it for these numbers. */
static inline VEC FN(settled)(VEC v) /* NaN stays NaN */
{
    const REAL least = sizeof(REAL) == 4 ? (REAL)FLT_MIN : (REAL)DBL_MIN;
    return FN(select)((IVEC)(v < least) & (IVEC)(v > -least), (VEC){0}, v);
}

/* v = momentum v + g, g including weight_decay p; p -= lr v, or the Nesterov step */
static void FN(sgd)(void *p_, const void *g_, void *const *kept, isize count,
                    const double *rule)
{
    REAL *p = p_, *v = kept[0];
    const REAL *g = g_;
    const REAL lr = (REAL)rule[0], momentum = (REAL)rule[1], decay = (REAL)rule[2];
    const int nesterov = rule[3] != 0;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC value = FN(load_some)(p + at, n);
        VEC step = FN(load_some)(g + at, n) + decay * value;
        if (v) {
            VEC velocity = FN(load_some)(v + at, n) * momentum + step;
            velocity = FN(settled)(velocity);
            FN(store_some)(v + at, velocity, n);
            step = nesterov ? step + momentum * velocity : velocity;
        }
        FN(store_some)(p + at, value - lr * step, n);
    }
}

/* m, v: running means of g and g^2; p -= rate m / (sqrt(v correction) + eps) */
static void FN(adam)(void *p_, const void *g_, void *const *kept, isize count,
                     const double *rule)
{
    REAL *p = p_, *m = kept[0], *v = kept[1];
    const REAL *g = g_;
    const REAL rate = (REAL)rule[0], beta1 = (REAL)rule[1], beta2 = (REAL)rule[2];
    const REAL new1 = (REAL)(1 - rule[1]), new2 = (REAL)(1 - rule[2]);
    const REAL eps = (REAL)rule[3], correction = (REAL)rule[4];
    const REAL decay = (REAL)rule[5], shrink = (REAL)rule[6];
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC value = FN(load_some)(p + at, n);
        VEC error = FN(load_some)(g + at, n) + decay * value;
        VEC first = beta1 * FN(load_some)(m + at, n) + new1 * error;
        VEC second = beta2 * FN(load_some)(v + at, n) + new2 * (error * error);
        first = FN(settled)(first), second = FN(settled)(second);
        FN(store_some)(m + at, first, n);
        FN(store_some)(v + at, second, n);
        VEC root = FN(root)(second * correction) + eps;
        FN(store_some)(p + at, shrink * value - rate * (first / root), n);
    }
}

/* v (and a): running means of g^2 (and g); d = g / (sqrt(v - a^2) + eps) */
static void FN(rmsprop)(void *p_, const void *g_, void *const *kept, isize count,
                        const double *rule)
{
    REAL *p = p_, *v = kept[0], *a = kept[1], *b = kept[2];
    const REAL *g = g_;
    const REAL lr = (REAL)rule[0], alpha = (REAL)rule[1], eps = (REAL)rule[2];
    const REAL fresh = (REAL)(1 - rule[1]), decay = (REAL)rule[3];
    const REAL momentum = (REAL)rule[4];
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC value = FN(load_some)(p + at, n);
        VEC error = FN(load_some)(g + at, n) + decay * value;
        VEC square = alpha * FN(load_some)(v + at, n) + fresh * (error * error);
        square = FN(settled)(square);
        FN(store_some)(v + at, square, n);
        if (a) {
            VEC mean = alpha * FN(load_some)(a + at, n) + fresh * error;
            mean = FN(settled)(mean);
            FN(store_some)(a + at, mean, n);
            square -= mean * mean;
        }
        VEC step = error / (FN(root)(square) + eps);
        if (b) {
            step += momentum * FN(load_some)(b + at, n);
            step = FN(settled)(step);
            FN(store_some)(b + at, step, n);
        }
        FN(store_some)(p + at, value - lr * step, n);
    }
}

/* in the order of CNN_SGD, CNN_ADAM, CNN_RMSPROP */
static void (*const FN(updates)[])(void *, const void *, void *const *, isize,
                                   const double *) = {FN(sgd), FN(adam), FN(rmsprop)};

/* in double: squares of floats neither overflow nor vanish there */
typedef double FN(wide) __attribute__((vector_size(VBYTES), aligned(sizeof(REAL))));
typedef REAL FN(narrow) __attribute__((
    vector_size(VBYTES / sizeof(double) * sizeof(REAL)), aligned(sizeof(REAL))));

static double FN(sum_squares)(const void *x_, isize count)
{
    const REAL *x = x_;
    const isize lanes = VBYTES / sizeof(double);
    FN(wide) sum[4] = {{0}};
    isize at = 0;
    for (; at + 4 * lanes <= count; at += 4 * lanes)
        UNROLL for (int k = 0; k < 4; k++) {
            FN(narrow) v = *(const FN(narrow) *)(x + at + k * lanes);
            FN(wide) d = __builtin_convertvector(v, FN(wide));
            sum[k] += d * d;
        }
    double total = 0;
    for (; at < count; at++) total += (double)x[at] * (double)x[at];
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (isize lane = 0; lane < lanes; lane++) total += sum[0][lane];
    return total;
}

static void FN(scale_by)(void *x_, isize count, double factor)
{
    REAL *x = x_;
    for (isize at = 0; at < count; at += LANES)
        FN(store_some)(x + at, FN(load_some)(x + at, count - at) * (REAL)factor,
                       count - at);
}

static void FN(clip)(void *x_, isize count, double limit)
{
    REAL *x = x_;
    for (isize at = 0; at < count; at += LANES)
        FN(store_some)(x + at,
                       FN(within)(FN(load_some)(x + at, count - at), (REAL)-limit,
                                  (REAL)limit),
                       count - at);
}
