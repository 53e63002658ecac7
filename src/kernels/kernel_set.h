/* The kernel bodies for float and double, and their table, for one instruction set:
 * ISA, VBYTES (bytes in a vector), MR (rows of a tile), LOW_ROWS (of one of three
 * vectors), WIDE_ROWS (of four) and EVEN_ROWS_1 (of one, where rows lie at constant
 * distances) come from isa_*.c. */
#include <float.h>
#include <math.h>
#include <string.h>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "erf.h"
#include "table.h"

#ifdef __clang__
#define UNROLL_ALL _Pragma("clang loop unroll(full)")
#define UNROLL_FOUR _Pragma("clang loop unroll_count(4)")
#else
#define UNROLL_ALL _Pragma("GCC unroll 32")
#define UNROLL_FOUR _Pragma("GCC unroll 4")
#endif

#define REAL float
#define IREAL int32_t
#define FLOAT_BITS 32
#define FN(name) name##_f32
#include "bodies.h"
#undef REAL
#undef IREAL
#undef FLOAT_BITS
#undef FN

#define REAL double
#define IREAL int64_t
#define FLOAT_BITS 64
#define FN(name) name##_f64
#include "bodies.h"
#undef REAL
#undef IREAL
#undef FLOAT_BITS
#undef FN

#define SET_NAME_(isa) cnn_kernels_##isa
#define SET_NAME(isa) SET_NAME_(isa)
#define SUPPORTED_(isa) cnn_supports_##isa
#define SUPPORTED(isa) SUPPORTED_(isa)
#define TEXT_(isa) #isa
#define TEXT(isa) TEXT_(isa)

int SUPPORTED(ISA)(void);
const cnn_kernel_set SET_NAME(ISA) = {TEXT(ISA), SUPPORTED(ISA), &kernels_f32,
                                      &kernels_f64};
