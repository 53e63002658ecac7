/* Tiles of the weights' gradient for every even number of rows: 2, 4, ... up to
 * GRADIENT_ROWS_1 of one vector, to GRADIENT_ROWS_2 of two. */
#define GRADIENT_PASTE(rows, nv) FN(gradient_tile_##rows##_##nv)
#define GRADIENT_NAME(rows, nv) GRADIENT_PASTE(rows, nv)
#define ROWS 2
#include "gradient_tile.h"
#define ROWS 4
#include "gradient_tile.h"
#define ROWS 6
#include "gradient_tile.h"
#define ROWS 8
#include "gradient_tile.h"
#define ROWS 10
#include "gradient_tile.h"
#define ROWS 12
#include "gradient_tile.h"
#if GRADIENT_ROWS_1 > 12
#define ROWS 14
#include "gradient_tile.h"
#define ROWS 16
#include "gradient_tile.h"
#define ROWS 18
#include "gradient_tile.h"
#define ROWS 20
#include "gradient_tile.h"
#define ROWS 22
#include "gradient_tile.h"
#define ROWS 24
#include "gradient_tile.h"
#endif
#if GRADIENT_ROWS_1 > 24
#define ROWS 26
#include "gradient_tile.h"
#define ROWS 28
#include "gradient_tile.h"
#endif

#define ONE(rows) {rows, {GRADIENT_NAME(rows, 1), 0}}
#define BOTH(rows) {rows, {GRADIENT_NAME(rows, 1), GRADIENT_NAME(rows, 2)}}
static const cnn_gradient_kernel FN(gradient_tiles)[] = {
    BOTH(2),  BOTH(4),  BOTH(6),
#if GRADIENT_ROWS_2 == 6
    ONE(8),   ONE(10),  ONE(12),
#else
    BOTH(8),  BOTH(10), BOTH(12),
#endif
#if GRADIENT_ROWS_2 == 12
    ONE(14),
#elif GRADIENT_ROWS_2 == 14
    BOTH(14),
#endif
#if GRADIENT_ROWS_1 > 12
    ONE(16),  ONE(18),  ONE(20), ONE(22), ONE(24),
#endif
#if GRADIENT_ROWS_1 > 24
    ONE(26),  ONE(28),
#endif
};
#undef ONE
#undef BOTH
#undef GRADIENT_NAME
#undef GRADIENT_PASTE
