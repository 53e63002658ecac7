/* 32 registers of 64 bytes: 14 x 2 sums, 2 of B, the broadcasts. */
#define ISA avx512
#define VBYTES 64
#define MR 14
#include "kernel_set.h"
