/* 16 registers of 32 bytes: 6 x 2 sums, 2 of B, 1 broadcast. */
#define ISA avx2
#define VBYTES 32
#define MR 6
#include "kernel_set.h"
