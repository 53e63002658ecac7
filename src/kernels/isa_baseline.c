/* What every CPU of the platform has: SSE2 on x86-64, plain vectors elsewhere. */
#define ISA baseline
#define VBYTES 16
#define MR 5
#define LOW_ROWS 3
#define WIDE_ROWS 2
#define EVEN_ROWS_1 10
#define PLANE_ROWS_1 1
#define PLANE_VECTORS_1 4
#define PLANE_ROWS_2 2
#define PLANE_VECTORS_2 4
#define PLANE_ROWS_3 3
#define PLANE_VECTORS_3 3
#define PLANE_ROWS_4 4
#define PLANE_VECTORS_4 2
#define DOT_COLS_1 9
#define DOT_ROWS_2 3
#define DOT_COLS_2 3
#define GRADIENT_ROWS_1 12
#define GRADIENT_ROWS_2 6
#define GRADIENT_SINGLE 0
#include "kernel_set.h"
