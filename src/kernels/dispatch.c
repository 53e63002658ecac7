/* Which kernel sets this build has, best first, and which of them this CPU runs. */
#include "table.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

/* CPUID says what the CPU has; XGETBV, what the system saves of it on a switch of
 * threads. __builtin_cpu_supports is not used: some compilers answer 0 always. */
enum { AVX2 = 1, AVX512 = 2 };

static int features(void)
{
    unsigned a, b, c, d, seven_b, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (!(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA)) return 0;
    unsigned saved, high;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & 0x06) != 0x06) return 0;
    if (!__get_cpuid_count(7, 0, &a, &seven_b, &c, &d)) return 0;
    if (seven_b & bit_AVX2) found |= AVX2;
    unsigned wide = bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ;
    if ((saved & 0xe6) == 0xe6 && (seven_b & wide) == wide && (found & AVX2))
        found |= AVX512;
    return (int)found;
}

int cnn_supports_avx2(void) { return (features() & AVX2) != 0; }
int cnn_supports_avx512(void) { return (features() & AVX512) != 0; }

const char *cnn_cpu_features(void)
{
    int found = features();
    return found & AVX512 ? "avx2 fma avx512f avx512vl avx512bw avx512dq"
           : found & AVX2 ? "avx2 fma"
                          : "sse2";
}

extern const cnn_kernel_set cnn_kernels_avx2, cnn_kernels_avx512;
#define BETTER &cnn_kernels_avx512, &cnn_kernels_avx2,

#elif defined(__aarch64__) || defined(_M_ARM64)
int cnn_supports_neon(void) { return 1; }
const char *cnn_cpu_features(void) { return "neon"; }
extern const cnn_kernel_set cnn_kernels_neon;
#define BETTER &cnn_kernels_neon,

#else
const char *cnn_cpu_features(void) { return ""; }
#define BETTER
#endif

int cnn_supports_baseline(void) { return 1; }
extern const cnn_kernel_set cnn_kernels_baseline;

const cnn_kernel_set *const cnn_kernel_sets[] = {BETTER & cnn_kernels_baseline, 0};
