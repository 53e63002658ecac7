/* Element by element: activations and their deltas. */
static void FN(relu)(void *y_, const void *x_, isize count)
{
    REAL *y = y_;
    const REAL *x = x_;
    for (isize at = 0; at < count; at += LANES) {
        VEC v = FN(load_lanes)(x + at, 1, count - at);
        v = FN(select)((IVEC)(v <= 0), (VEC){0}, v); /* NaN stays NaN */
        FN(store_lanes)(y + at, v, count - at);
    }
}

/* the errors of the units that were on; where, not a product: 0 * inf is NaN */
static void FN(relu_backward)(void *grad_x_, const void *grad_y_, const void *y_,
                              isize count)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_, *y = y_;
    for (isize at = 0; at < count; at += LANES) {
        VEC error = FN(load_lanes)(grad_y + at, 1, count - at);
        VEC out = FN(load_lanes)(y + at, 1, count - at);
        FN(store_lanes)(grad_x + at, (VEC)(~(IVEC)(out <= 0) & (IVEC)error),
                        count - at);
    }
}

/* grad_y * (a + b y + c y^2): the delta of every sigmoid-type unit */
static void FN(quadratic_backward)(void *grad_x_, const void *grad_y_, const void *y_,
                                   isize count, double a, double b, double c)
{
    REAL *grad_x = grad_x_;
    const REAL *grad_y = grad_y_, *y = y_;
    for (isize at = 0; at < count; at += LANES) {
        VEC error = FN(load_lanes)(grad_y + at, 1, count - at);
        VEC out = FN(load_lanes)(y + at, 1, count - at);
        VEC slope = (REAL)a + out * ((REAL)b + (REAL)c * out);
        FN(store_lanes)(grad_x + at, error * slope, count - at);
    }
}
