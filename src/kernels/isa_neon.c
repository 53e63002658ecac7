/* 32 registers of 16 bytes: 12 x 2 sums, 2 of B, the broadcasts. */
#define ISA neon
#define VBYTES 16
#define MR 12
#define LOW_ROWS 8
#define WIDE_ROWS 6
#define EVEN_ROWS_1 12
#define PLANE_ROWS_1 1
#define PLANE_VECTORS_1 8
#define PLANE_ROWS_2 3
#define PLANE_VECTORS_2 7
#define PLANE_ROWS_3 6
#define PLANE_VECTORS_3 4
#define PLANE_ROWS_4 8
#define PLANE_VECTORS_4 3
#define DOT_COLS_1 9
#define DOT_ROWS_2 6
#define DOT_COLS_2 4
#define GRADIENT_ROWS_1 24
#define GRADIENT_ROWS_2 12
#define GRADIENT_SINGLE 0
#include "kernel_set.h"
