/* 16 registers of 32 bytes: 6 x 2 sums, 2 of B, 1 broadcast. */
#define ISA avx2
#define VBYTES 32
#define MR 6
#define LOW_ROWS 4
#define WIDE_ROWS 3
#define EVEN_ROWS_1 12
#define PLANE_ROWS_1 1
#define PLANE_VECTORS_1 8
#define PLANE_ROWS_2 2
#define PLANE_VECTORS_2 5
#define PLANE_ROWS_3 3
#define PLANE_VECTORS_3 4
#define PLANE_ROWS_4 4
#define PLANE_VECTORS_4 3
#define DOT_COLS_1 9
#define DOT_ROWS_2 3
#define DOT_COLS_2 3
#define GRADIENT_ROWS_1 12
#define GRADIENT_ROWS_2 6
#define GRADIENT_SINGLE 0
#include "kernel_set.h"
