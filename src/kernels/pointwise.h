/* Element by element: activations beside their deltas, sums. Outputs may lie where an
 * input does. */
#define FORWARD(name, result)                                                     \
    static void FN(name)(void *y_, const void *x_, isize count, double a_, double b_) \
    {                                                                             \
        REAL *y = y_;                                                             \
        const REAL *from = x_, a = (REAL)a_, b = (REAL)b_;                        \
        (void)a, (void)b;                                                         \
        for (isize at = 0; at < count; at += LANES) {                             \
            VEC x = FN(load_some)(from + at, count - at);                         \
            FN(store_some)(y + at, result, count - at);                           \
        }                                                                         \
    }

/* `kept` is y or x, whichever the delta is a function of */
#define BACKWARD(name, result)                                                    \
    static void FN(name##_backward)(void *grad_x_, const void *grad_y_,           \
                                    const void *kept, isize count, double a_,     \
                                    double b_, double c_)                         \
    {                                                                             \
        REAL *grad_x = grad_x_;                                                   \
        const REAL *grad_y = grad_y_, *from = kept;                               \
        const REAL a = (REAL)a_, b = (REAL)b_, c = (REAL)c_;                      \
        (void)a, (void)b, (void)c;                                                \
        for (isize at = 0; at < count; at += LANES) {                             \
            VEC g = FN(load_some)(grad_y + at, count - at);                       \
            VEC v = FN(load_some)(from + at, count - at);                         \
            FN(store_some)(grad_x + at, result, count - at);                      \
        }                                                                         \
    }

#define WHERE(condition, yes, no) FN(select)((IVEC)(condition), yes, no)
#define ZERO ((VEC){0})

static inline VEC FN(within)(VEC x, REAL low, REAL high) /* NaN stays NaN */
{
    x = WHERE(x <= low, FN(splat)(low), x);
    return WHERE(x >= high, FN(splat)(high), x);
}

/* x * sigmoid(x): the delta is s + x s (1 - s) */
static inline VEC FN(silu_of)(VEC x)
{
    VEC rest;
    return x * FN(sigmoid_pair)(x, &rest);
}

static inline VEC FN(silu_slope)(VEC x)
{
    VEC rest, share = FN(sigmoid_pair)(x, &rest);
    return share + x * share * rest;
}

static inline VEC FN(sigmoid_of)(VEC x)
{
    VEC rest;
    return FN(sigmoid_pair)(x, &rest);
}

/* Phi(x) + x phi(x) */
static inline VEC FN(gelu_slope)(VEC x)
{
    VEC density = FN(exp_down)(x * x * (REAL)-0.5) * (REAL)0.39894228040143267794;
    return FN(normal_cdf)(x) + x * density;
}

FORWARD(relu, WHERE(x <= 0, ZERO, x)) /* NaN stays NaN */
/* the errors of the units that were on; where, not a product: 0 * inf is NaN */
BACKWARD(relu, WHERE(v <= 0, ZERO, g))
FORWARD(relu6, FN(within)(x, 0, 6))
BACKWARD(relu6, WHERE((v <= 0) | (v >= 6), ZERO, g))
FORWARD(leaky, WHERE(x > 0, x, a * x))
BACKWARD(leaky, WHERE(v > 0, g, a * g))
FORWARD(elu, WHERE(x > 0, x, a * FN(expm1_down)(WHERE(x > 0, ZERO, x))))
BACKWARD(elu, WHERE(v > 0, g, g * (v + a)))
FORWARD(sigmoid, FN(sigmoid_of)(x))
FORWARD(tanh, a * FN(tanh_of)(b * x))
/* grad_y * (a + b y + c y^2): the delta of every sigmoid-type unit */
BACKWARD(quadratic, g * (a + v * (b + c * v)))
FORWARD(hardswish, x * FN(within)(x + 3, 0, 6) * (REAL)(1.0 / 6))
BACKWARD(hardswish,
         WHERE(v <= -3, ZERO, WHERE(v >= 3, g, g * (v * (REAL)(1.0 / 3) + (REAL)0.5))))
FORWARD(silu, FN(silu_of)(x))
BACKWARD(silu, g * FN(silu_slope)(v))
FORWARD(gelu, x * FN(normal_cdf)(x))
BACKWARD(gelu, g * FN(gelu_slope)(v))

/* in the order of enum cnn_activation */
static void (*const FN(activations)[])(void *, const void *, isize, double, double) = {
    FN(relu), FN(relu6), FN(leaky),     FN(elu),  FN(sigmoid),
    FN(tanh), FN(silu),  FN(hardswish), FN(gelu),
};
static void (*const FN(deltas)[])(void *, const void *, const void *, isize, double,
                                  double, double) = {
    FN(relu_backward),      FN(relu6_backward),     FN(leaky_backward),
    FN(elu_backward),       FN(quadratic_backward), FN(quadratic_backward),
    FN(silu_backward),      FN(hardswish_backward), FN(gelu_backward),
};

/* y = a + b, then the activation */
static void FN(add)(void *y_, const void *a_, const void *b_, isize count,
                    int activation)
{
    REAL *y = y_;
    const REAL *a = a_, *b = b_;
    for (isize at = 0; at < count; at += LANES) {
        isize n = count - at;
        VEC v = FN(load_some)(a + at, n) + FN(load_some)(b + at, n);
        FN(store_some)(y + at, FN(activated)(v, activation), n);
    }
}
#undef FORWARD
#undef BACKWARD
