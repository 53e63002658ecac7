/* Every kernel body, for one element type. */
#include "vec.h"

#define UNROLL UNROLL_ALL
#define NV 1
#define TILE(n) FN(tile1)
#include "tile.h"
#undef NV
#undef TILE
#define NV 2
#define TILE(n) FN(tile2)
#include "tile.h"
#undef NV
#undef TILE
#include "pool.h"
#include "transpose.h"
#undef UNROLL

static void (*const FN(tiles)[])(const cnn_tile *) = {FN(tile1), FN(tile2)};

static const cnn_kernels FN(kernels) = {
    .itemsize = sizeof(REAL),
    .lanes = VBYTES / sizeof(REAL),
    .mr = MR,
    .vectors = 2,
    .tile = FN(tiles),
    .transpose = FN(transpose),
    .copy = FN(copy),
    .pack = FN(pack),
    .sum_parts = FN(sum_parts),
    .sum_rows = FN(sum_rows),
    .max_window = FN(max_window),
    .sum_window = FN(sum_window),
    .max_backward = FN(max_backward),
    .sum_backward = FN(sum_backward),
};

#undef VEC
#undef IVEC
#undef LANES
