/* 32 registers of 16 bytes: 12 x 2 sums, 2 of B, the broadcasts. */
#define ISA neon
#define VBYTES 16
#define MR 12
#include "kernel_set.h"
