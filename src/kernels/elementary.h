/* Elementary functions of whole vectors, exact to about one unit in the last place.
 *
 * exp of what is not positive is all that softmax, sigmoid and tanh need: it cannot
 * overflow. x = n ln 2 + r with |r| <= ln(2)/2, exp(x) = 2^n (1 + expm1(r)); ln 2 is
 * taken in two parts, so that n times the first is exact (Cody and Waite). */
#if FLOAT_BITS == 32
#define ROUNDER ((REAL)12582912) /* 1.5 * 2^23: adding it leaves an integer */
#define MANTISSA 23
#define BIAS 127
#define LN2_HIGH ((REAL)0.693145751953125)
#define LN2_LOW ((REAL)1.42860682030941723212e-6)
#define EXP_LOWEST ((REAL)-104) /* exp is 0 from here on */
#define TERMS 7                 /* of Taylor's series: less than 2^-26 is missing */
#define UPPER_BITS ((IREAL)0xffffe000)
#else
#define ROUNDER ((REAL)6755399441055744)
#define MANTISSA 52
#define BIAS 1023
#define LN2_HIGH ((REAL)6.93147180369123816490e-01)
#define LN2_LOW ((REAL)1.90821492927058770002e-10)
#define EXP_LOWEST ((REAL)-746)
#define TERMS 13
#define UPPER_BITS ((IREAL)0xffffffff00000000)
#endif

static const REAL FN(inverse_factorials)[] = {
    1.0,           1.0,          1.0 / 2,         1.0 / 6,         1.0 / 24,
    1.0 / 120,     1.0 / 720,    1.0 / 5040,      1.0 / 40320,     1.0 / 362880,
    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

static inline VEC FN(magnitude)(VEC x)
{
    return (VEC)((IVEC)x & ~(IVEC)FN(splat)(-(REAL)0));
}

/* magnitude of x, sign of s */
static inline VEC FN(signed_as)(VEC x, VEC s)
{
    IVEC sign = (IVEC)FN(splat)(-(REAL)0);
    return (VEC)(((IVEC)x & ~sign) | ((IVEC)s & sign));
}

/* the integer in n as an exponent: 2^n for normal results */
static inline VEC FN(power_of_two)(VEC n)
{
    IVEC whole = (IVEC)(n + ROUNDER) - (IVEC)FN(splat)(ROUNDER);
    return (VEC)((whole + BIAS) << MANTISSA);
}

/* n, and expm1(x - n ln 2) */
static inline VEC FN(reduced_expm1)(VEC x, VEC *n)
{
    *n = (x * (REAL)1.44269504088896340736 + ROUNDER) - ROUNDER;
    VEC r = (x - *n * LN2_HIGH) - *n * LN2_LOW;
    VEC p = FN(splat)(FN(inverse_factorials)[TERMS]);
    UNROLL for (int k = TERMS - 1; k >= 2; k--)
        p = p * r + FN(inverse_factorials)[k];
    return r * r * p + r;
}

/* exp(x) for x <= 0 (or NaN), down to subnormal results */
static inline VEC FN(exp_down)(VEC x)
{
    VEC n;
    x = FN(select)((IVEC)(x < EXP_LOWEST), FN(splat)(EXP_LOWEST), x);
    VEC p = FN(reduced_expm1)(x, &n) + 1;
    /* in two steps: 2^n itself may be subnormal */
    VEC half = (n * (REAL)0.5 + ROUNDER) - ROUNDER;
    return p * FN(power_of_two)(half) * FN(power_of_two)(n - half);
}

/* exp(x) - 1 for x <= 0 (or NaN); the sign of zero stays */
static inline VEC FN(expm1_down)(VEC x)
{
    VEC n, bounded = FN(select)((IVEC)(x < -60), FN(splat)(-60), x); /* -1 from there */
    VEC p = FN(reduced_expm1)(bounded, &n);
    VEC scale = FN(power_of_two)(n);
    return FN(signed_as)(scale * p + (scale - 1), x);
}

/* 1 / (1 + exp(-x)), and the same of -x: neither loses digits */
static inline VEC FN(sigmoid_pair)(VEC x, VEC *of_minus_x)
{
    VEC e = FN(exp_down)(-FN(magnitude)(x)), below = e + 1;
    VEC small = e / below, large = 1 / below;
    IVEC negative = (IVEC)(x < 0);
    *of_minus_x = FN(select)(negative, large, small);
    return FN(select)(negative, small, large);
}

static inline VEC FN(tanh_of)(VEC x)
{
    VEC m = FN(expm1_down)(-2 * FN(magnitude)(x));
    return FN(signed_as)(-m / (m + 2), x);
}

static inline VEC FN(polynomial)(const double *coefficients, int count, VEC x)
{
    VEC y = FN(splat)((REAL)coefficients[count - 1]);
    UNROLL for (int k = count - 2; k >= 0; k--) y = y * x + (REAL)coefficients[k];
    return y;
}

#define RATIO(over, under, x)                                                     \
    (FN(polynomial)(over, sizeof over / sizeof *over, x) /                        \
     FN(polynomial)(under, sizeof under / sizeof *under, x))

/* The standard normal distribution function, after erfc in FreeBSD's and Sun's
 * s_erf.c, with the rational approximations of erf.h. */
static inline VEC FN(normal_cdf)(VEC x)
{
    VEC size = FN(magnitude)(x);
    size = FN(select)((IVEC)(size > 40), FN(splat)(40), size); /* 0 from there on */
    VEC v = size * (REAL)0.70710678118654752440;
    /* half of erfc(v): */
    VEC ratio = v * RATIO(erf_pp, erf_qq, v * v);
    VEC tail = (REAL)0.5 * ((REAL)0.5 - (ratio + (v - (REAL)0.5)));
    VEC middle = (REAL)0.5 * ((REAL)(1 - erf_erx) - RATIO(erf_pa, erf_qa, v - 1));
    tail = FN(select)((IVEC)(v >= (REAL)0.84375), middle, tail);
    /* size^2 = z^2 + (size - z)(size + z) with z^2 exact, or exp would lose digits */
    VEC z = (VEC)((IVEC)size & UPPER_BITS), s = 2 / (size * size);
    VEC exponent = FN(select)((IVEC)(v >= (REAL)(1 / 0.35)), RATIO(erf_rb, erf_sb, s),
                              RATIO(erf_ra, erf_sa, s));
    exponent += (z - size) * (z + size) * (REAL)0.5;
    VEC far = FN(exp_down)(z * z * (REAL)-0.5 - (REAL)0.5625) *
              FN(exp_down)(exponent) * (REAL)0.5 / v;
    tail = FN(select)((IVEC)(v >= (REAL)1.25), far, tail);
    return FN(select)((IVEC)(x > 0), 1 - tail, tail);
}
#undef RATIO
#undef ROUNDER
#undef MANTISSA
#undef BIAS
#undef LN2_HIGH
#undef LN2_LOW
#undef EXP_LOWEST
#undef TERMS
#undef UPPER_BITS
