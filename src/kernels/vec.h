/* Vectors of REAL: the only place that knows an instruction set.
 *
 * Included once per element type, with REAL, FN and VBYTES defined. */
#define LANES ((isize)(VBYTES / sizeof(REAL)))

typedef REAL FN(vec) __attribute__((vector_size(VBYTES), aligned(sizeof(REAL))));
#define VEC FN(vec)
/* lane-wide integers: the result of comparing two vectors */
typedef IREAL FN(ivec) __attribute__((vector_size(VBYTES), aligned(sizeof(REAL))));
#define IVEC FN(ivec)

static inline VEC FN(load)(const REAL *p) { return *(const VEC *)p; }
static inline void FN(store)(REAL *p, VEC v) { *(VEC *)p = v; }

/* The first n lanes only; no byte beyond them is touched. */
static inline VEC FN(load_part)(const REAL *p, isize n)
{
#if VBYTES == 64 && FLOAT_BITS == 32
    return (VEC)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif VBYTES == 64
    return (VEC)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
    VEC v = {0};
    __builtin_memcpy(&v, p, (size_t)n * sizeof(REAL));
    return v;
#endif
}

static inline void FN(store_part)(REAL *p, VEC v, isize n)
{
#if VBYTES == 64 && FLOAT_BITS == 32
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#elif VBYTES == 64
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
    __builtin_memcpy(p, &v, (size_t)n * sizeof(REAL));
#endif
}

/* n lanes, or all of them where n is more */
static inline VEC FN(load_some)(const REAL *p, isize n)
{
    return n >= LANES ? FN(load)(p) : FN(load_part)(p, n);
}

static inline void FN(store_some)(REAL *p, VEC v, isize n)
{
    if (n >= LANES)
        FN(store)(p, v);
    else
        FN(store_part)(p, v, n);
}

/* Past the caches, for what is too large to be found there again: the line is not
 * read before it is written. p is aligned to a vector; `streamed` ends a run of them. */
static inline void FN(stream)(REAL *p, VEC v)
{
#if VBYTES == 64 && FLOAT_BITS == 32
    _mm512_stream_ps(p, (__m512)v);
#elif VBYTES == 64
    _mm512_stream_pd(p, (__m512d)v);
#elif VBYTES == 32 && FLOAT_BITS == 32
    _mm256_stream_ps(p, (__m256)v);
#elif VBYTES == 32
    _mm256_stream_pd(p, (__m256d)v);
#elif (defined(__x86_64__) || defined(_M_X64)) && FLOAT_BITS == 32
    _mm_stream_ps(p, (__m128)v);
#elif defined(__x86_64__) || defined(_M_X64)
    _mm_stream_pd(p, (__m128d)v);
#else
    FN(store)(p, v);
#endif
}

static inline void FN(streamed)(void) /* other threads see what was stored before */
{
#if defined(__x86_64__) || defined(_M_X64)
    _mm_sfence();
#endif
}

static inline VEC FN(splat)(REAL value) { return value - (VEC){0}; }

/* Load once: compilers would rather load again for every use of v. */
static inline void FN(keep)(VEC *v)
{
#if VBYTES == 64
    __asm__("" : "+v"(*v));
#elif defined(__x86_64__) || defined(_M_X64)
    __asm__("" : "+x"(*v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(*v));
#else
    (void)v;
#endif
}

/* The same address, but compilers do not see it: they would rather keep (and spill) the
 * distances of all that a body reads than step from row to row. */
static inline REAL *FN(at)(const REAL *p)
{
    __asm__("" : "+r"(p));
    return (REAL *)p;
}

static inline VEC FN(select)(IVEC mask, VEC yes, VEC no)
{
    return (VEC)((mask & (IVEC)yes) | (~mask & (IVEC)no));
}

/* op is max or min: of the operands the second, if both are zero or one is NaN */
#if VBYTES == 64 && FLOAT_BITS == 32
#define EXTREME(op, a, b) (VEC) _mm512_##op##_ps((__m512)(a), (__m512)(b))
#elif VBYTES == 64
#define EXTREME(op, a, b) (VEC) _mm512_##op##_pd((__m512d)(a), (__m512d)(b))
#elif VBYTES == 32 && FLOAT_BITS == 32
#define EXTREME(op, a, b) (VEC) _mm256_##op##_ps((__m256)(a), (__m256)(b))
#elif VBYTES == 32
#define EXTREME(op, a, b) (VEC) _mm256_##op##_pd((__m256d)(a), (__m256d)(b))
#elif (defined(__x86_64__) || defined(_M_X64)) && FLOAT_BITS == 32
#define EXTREME(op, a, b) (VEC) _mm_##op##_ps((__m128)(a), (__m128)(b))
#elif defined(__x86_64__) || defined(_M_X64)
#define EXTREME(op, a, b) (VEC) _mm_##op##_pd((__m128d)(a), (__m128d)(b))
#endif

/* the larger of v and bound, the smaller; a NaN in v stays. Comparing and selecting takes
 * three instructions where this takes one (1x1 24->144 with ReLU6: 0.88 of the time,
 * depthwise 3x3 0.9). */
static inline VEC FN(at_least)(VEC v, VEC bound)
{
#ifdef EXTREME
    return EXTREME(max, bound, v);
#else
    return FN(select)((IVEC)(v < bound), bound, v);
#endif
}

static inline VEC FN(at_most)(VEC v, VEC bound)
{
#ifdef EXTREME
    return EXTREME(min, bound, v);
#else
    return FN(select)((IVEC)(v > bound), bound, v);
#endif
}

/* What a pass ends with. */
static inline VEC FN(activated)(VEC v, int activation)
{
    if (activation != CNN_LINEAR) v = FN(at_least)(v, (VEC){0});
    if (activation == CNN_RELU6) v = FN(at_most)(v, FN(splat)(6));
    return v;
}

/* correctly rounded square roots */
static inline VEC FN(root)(VEC v)
{
#if VBYTES == 64 && FLOAT_BITS == 32
    return (VEC)_mm512_sqrt_ps((__m512)v);
#elif VBYTES == 64
    return (VEC)_mm512_sqrt_pd((__m512d)v);
#elif VBYTES == 32 && FLOAT_BITS == 32
    return (VEC)_mm256_sqrt_ps((__m256)v);
#elif VBYTES == 32
    return (VEC)_mm256_sqrt_pd((__m256d)v);
#elif (defined(__x86_64__) || defined(_M_X64)) && FLOAT_BITS == 32
    return (VEC)_mm_sqrt_ps((__m128)v);
#elif defined(__x86_64__) || defined(_M_X64)
    return (VEC)_mm_sqrt_pd((__m128d)v);
#elif defined(__aarch64__) && FLOAT_BITS == 32
    return (VEC)vsqrtq_f32((float32x4_t)v);
#elif defined(__aarch64__)
    return (VEC)vsqrtq_f64((float64x2_t)v);
#else
    for (int lane = 0; lane < LANES; lane++)
        v[lane] = (REAL)__builtin_sqrt((double)v[lane]);
    return v;
#endif
}

/* Sum of all lanes, in double and in one order. */
static inline double FN(sum_lanes)(VEC v)
{
    double total = 0;
    for (int lane = 0; lane < LANES; lane++) total += (double)v[lane];
    return total;
}

/* What a comparison gives: a bit a lane where there are mask registers. */
#if VBYTES == 64 && FLOAT_BITS == 32
typedef __mmask16 FN(mask);
#define CMP(a, b, how) _mm512_cmp_ps_mask((__m512)(a), (__m512)(b), how)
#define BLEND(m, yes, no) _mm512_mask_blend_ps(m, (__m512)(no), (__m512)(yes))
#define BLEND_CODES _mm512_mask_blend_epi32
#define ADD_WHERE(m, a, b) _mm512_mask_add_ps((__m512)(a), m, (__m512)(a), (__m512)(b))
#elif VBYTES == 64
typedef __mmask8 FN(mask);
#define CMP(a, b, how) _mm512_cmp_pd_mask((__m512d)(a), (__m512d)(b), how)
#define BLEND(m, yes, no) _mm512_mask_blend_pd(m, (__m512d)(no), (__m512d)(yes))
#define BLEND_CODES _mm512_mask_blend_epi64
#define ADD_WHERE(m, a, b)                                                        \
    _mm512_mask_add_pd((__m512d)(a), m, (__m512d)(a), (__m512d)(b))
#else
typedef IVEC FN(mask);
#endif

/* lanes first <= lane < end */
static inline FN(mask) FN(lane_range)(isize first, isize end)
{
#if VBYTES == 64
    return (FN(mask))((1u << end) - (1u << first));
#else
    IVEC lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (IVEC)(lane >= (IREAL)first) & (IVEC)(lane < (IREAL)end);
#endif
}

/* whether value is more than best, or NaN */
static inline FN(mask) FN(wins)(VEC value, VEC best)
{
#if VBYTES == 64
    return (FN(mask))(CMP(value, best, _CMP_GT_OQ) | CMP(value, value, _CMP_UNORD_Q));
#else
    return (IVEC)(value > best) | (IVEC)(value != value);
#endif
}

static inline VEC FN(blend)(FN(mask) mask, VEC yes, VEC no)
{
#if VBYTES == 64
    return (VEC)BLEND(mask, yes, no);
#else
    return FN(select)(mask, yes, no);
#endif
}

/* value where it wins, else best: the instruction's maximum is its second operand if
 * both are zero, or one is NaN */
static inline VEC FN(larger)(VEC value, VEC best)
{
#if VBYTES == 64
    VEC most = EXTREME(max, value, best);
    return (VEC)BLEND(CMP(value, value, _CMP_UNORD_Q), value, most);
#elif defined(EXTREME)
    return FN(select)((IVEC)(value != value), value, EXTREME(max, value, best));
#else
    return FN(select)(FN(wins)(value, best), value, best);
#endif
}

static inline IVEC FN(blend_codes)(FN(mask) mask, IVEC yes, IVEC no)
{
#if VBYTES == 64
    return (IVEC)BLEND_CODES(mask, (__m512i)no, (__m512i)yes);
#else
    return (mask & yes) | (~mask & no);
#endif
}

static inline VEC FN(add_where)(FN(mask) mask, VEC sum, VEC value)
{
#if VBYTES == 64
    return (VEC)ADD_WHERE(mask, sum, value);
#else
    return sum + (VEC)(mask & (IVEC)value);
#endif
}
#undef CMP
#undef EXTREME
#undef BLEND
#undef BLEND_CODES
#undef ADD_WHERE

/* a0 b0 a1 b1 ... of the lower and of the upper halves; even lanes; even lanes of a and
 * odd lanes of b; the first three of each four lanes, side by side */
#if VBYTES / (FLOAT_BITS / 8) == 2
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 2)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 1, 3)
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2)
#define EVEN_END(a, b) __builtin_shufflevector(a, b, 0, 3)
#elif VBYTES / (FLOAT_BITS / 8) == 4
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define EVEN_END(a, b) __builtin_shufflevector(a, b, 0, 2, 5, 7)
#define THREES(a) (a)
#elif VBYTES / (FLOAT_BITS / 8) == 8
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define EVEN_END(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 9, 11, 13, 15)
#define THREES(a) __builtin_shufflevector(a, a, 0, 1, 2, 4, 5, 6, 3, 7)
#elif VBYTES / (FLOAT_BITS / 8) == 16
#define ZIP_LOW(a, b)                                                             \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,    \
                            22, 7, 23)
#define ZIP_HIGH(a, b)                                                            \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,   \
                            14, 30, 15, 31)
#define EVEN(a, b)                                                                \
    __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24,  \
                            26, 28, 30)
#define EVEN_END(a, b)                                                            \
    __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25,  \
                            27, 29, 31)
#define THREES(a)                                                                 \
    __builtin_shufflevector(a, a, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7,   \
                            11, 15)
#endif

/* lane l of the result is lane l ^ j of v, for j < LANES. Where that is an instruction
 * for each j, j has to be known (SWAPS of them at once, in an unrolled loop). */
#if VBYTES / (FLOAT_BITS / 8) == 2
#define SWAPS 2
static inline VEC FN(swapped)(VEC v, isize j)
{
    return j ? __builtin_shufflevector(v, v, 1, 0) : v;
}
#elif VBYTES / (FLOAT_BITS / 8) == 4
#define SWAPS 4
static inline VEC FN(swapped)(VEC v, isize j)
{
    return j == 0   ? v
           : j == 1 ? __builtin_shufflevector(v, v, 1, 0, 3, 2)
           : j == 2 ? __builtin_shufflevector(v, v, 2, 3, 0, 1)
                    : __builtin_shufflevector(v, v, 3, 2, 1, 0);
}
#else
#define SWAPS 1
static inline VEC FN(swapped)(VEC v, isize j)
{
    IVEC lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    lane ^= (IREAL)j;
#if VBYTES == 64 && FLOAT_BITS == 32
    return (VEC)_mm512_permutexvar_ps((__m512i)lane, (__m512)v);
#elif VBYTES == 64
    return (VEC)_mm512_permutexvar_pd((__m512i)lane, (__m512d)v);
#else
    return (VEC)_mm256_permutevar8x32_ps((__m256)v, (__m256i)lane);
#endif
}
#endif

static inline VEC FN(zip_low)(VEC a, VEC b) { return ZIP_LOW(a, b); }
static inline VEC FN(zip_high)(VEC a, VEC b) { return ZIP_HIGH(a, b); }
static inline VEC FN(even)(VEC a, VEC b) { return EVEN(a, b); }
static inline VEC FN(even_end)(VEC a, VEC b) { return EVEN_END(a, b); }
#ifdef THREES
static inline VEC FN(threes)(VEC a) { return THREES(a); }
#undef THREES
#endif
#undef ZIP_LOW
#undef ZIP_HIGH
#undef EVEN
#undef EVEN_END
