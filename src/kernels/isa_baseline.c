/* What every CPU of the platform has: SSE2 on x86-64, plain vectors elsewhere. */
#define ISA baseline
#define VBYTES 16
#define MR 5
#include "kernel_set.h"
