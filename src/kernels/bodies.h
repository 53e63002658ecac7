/* Every kernel body, for one element type. */
#include "vec.h"

#define UNROLL UNROLL_ALL
#define ROWS MR
#define NV 1
#define TILE FN(tile1)
#include "tile.h"
#define NV 2
#define TILE FN(tile2)
#include "tile.h"
#define NV 2
#define KEEPS
#define TILE FN(keeping_tile)
#include "tile.h"
#undef ROWS
#define ROWS (MR / 2)
#define NV 1
#define TILE FN(half_tile1)
#include "tile.h"
#define NV 2
#define TILE FN(half_tile2)
#include "tile.h"
#undef ROWS
#define ROWS LOW_ROWS
#define NV 3
#define TILE FN(low_tile)
#include "tile.h"
#define NV 3
#define KEEPS
#define TILE FN(keeping_low_tile)
#include "tile.h"
#undef ROWS
#undef FLAT
#define FLAT 1
#define ROWS MR
#define NV 1
#define TILE FN(flat_tile1)
#include "tile.h"
#define NV 2
#define TILE FN(flat_tile2)
#include "tile.h"
#undef ROWS
#define ROWS (MR / 2)
#define NV 1
#define TILE FN(flat_rest1)
#include "tile.h"
#define NV 2
#define TILE FN(flat_rest2)
#include "tile.h"
#undef ROWS
#define ROWS LOW_ROWS
#define NV 3
#define TILE FN(flat_tile3)
#include "tile.h"
#undef ROWS
#define ROWS WIDE_ROWS
#define NV 4
#define TILE FN(flat_tile4)
#include "tile.h"
#undef FLAT
#undef ROWS
#undef EVEN
#define EVEN 1
#define ROWS EVEN_ROWS_1
#define NV 1
#define TILE FN(even_tile1)
#include "tile.h"
#undef ROWS
#define ROWS MR
#define NV 2
#define TILE FN(even_tile2)
#include "tile.h"
#undef ROWS
#define ROWS LOW_ROWS
#define NV 3
#define TILE FN(even_tile3)
#include "tile.h"
#undef EVEN
static const cnn_even_kernel FN(even_tiles)[] = {
    {EVEN_ROWS_1, FN(even_tile1)},
    {MR, FN(even_tile2)},
    {LOW_ROWS, FN(even_tile3)},
};
static const cnn_flat_kernel FN(flat_tiles)[] = {
    {MR, FN(flat_tile1), MR / 2, FN(flat_rest1)},
    {MR, FN(flat_tile2), MR / 2, FN(flat_rest2)},
    {LOW_ROWS, FN(flat_tile3), 0, 0},
    {WIDE_ROWS, FN(flat_tile4), 0, 0},
};
#undef ROWS
#define ROWS PLANE_ROWS_1
#define NV PLANE_VECTORS_1
#define TILE FN(plane_tile_1)
#include "plane_tile.h"
#define ROWS PLANE_ROWS_2
#define NV PLANE_VECTORS_2
#define TILE FN(plane_tile_2)
#include "plane_tile.h"
#define ROWS PLANE_ROWS_3
#define NV PLANE_VECTORS_3
#define TILE FN(plane_tile_3)
#include "plane_tile.h"
#define ROWS PLANE_ROWS_4
#define NV PLANE_VECTORS_4
#define TILE FN(plane_tile_4)
#include "plane_tile.h"
static const cnn_plane_kernel FN(plane_tiles)[] = {
    {PLANE_ROWS_1, PLANE_VECTORS_1, FN(plane_tile_1)},
    {PLANE_ROWS_2, PLANE_VECTORS_2, FN(plane_tile_2)},
    {PLANE_ROWS_3, PLANE_VECTORS_3, FN(plane_tile_3)},
    {PLANE_ROWS_4, PLANE_VECTORS_4, FN(plane_tile_4)},
    {0, 0, 0},
};
#include "pool.h"
#include "pool_backward.h"
#include "elementary.h"
#include "pointwise.h"
#include "normalize.h"
#include "update.h"
#include "softmax.h"
#include "row.h"
#include "transpose.h"
#include "depthwise.h"
#include "grouped.h"
#include "dots.h"
#include "depthwise_planes.h"
#include "tap_rows.h"
#define ROWS 1
#define COLS DOT_COLS_1
#define TILE FN(dot_tile_1)
#include "dot_tile.h"
#define ROWS DOT_ROWS_2
#define COLS DOT_COLS_2
#define TILE FN(dot_tile_2)
#include "dot_tile.h"
static const cnn_dot_kernel FN(dot_tiles)[] = {
    {1, DOT_COLS_1, FN(dot_tile_1)},
    {DOT_ROWS_2, DOT_COLS_2, FN(dot_tile_2)},
};
#include "gradient_tiles.h"
#if FLOAT_BITS == 32 /* double is for exactness: direct sums only */
#define W(name) FN(name##_3x3)
#define P 6
#define R 3
#define TALL 1
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_5x5)
#define P 6
#define R 5
#define TALL 1
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_1x3)
#define P 8
#define R 3
#define TALL 0
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_3x1)
#define P 8
#define R 3
#define TALL 1
#define WIDE 0
#include "winograd.h"
#define W(name) FN(name##_1x5)
#define P 8
#define R 5
#define TALL 0
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_5x1)
#define P 8
#define R 5
#define TALL 1
#define WIDE 0
#include "winograd.h"
#define W(name) FN(name##_1x7)
#define P 8
#define R 7
#define TALL 0
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_7x1)
#define P 8
#define R 7
#define TALL 1
#define WIDE 0
#include "winograd.h"
#define W(name) FN(name##_1x3_small)
#define P 6
#define R 3
#define TALL 0
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_3x1_small)
#define P 6
#define R 3
#define TALL 1
#define WIDE 0
#include "winograd.h"
#define W(name) FN(name##_1x7_large)
#define P 10
#define R 7
#define TALL 0
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_7x1_large)
#define P 10
#define R 7
#define TALL 1
#define WIDE 0
#include "winograd.h"
#define W(name) FN(name##_5x5_large)
#define P 8
#define R 5
#define TALL 1
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_2x2)
#define P 5
#define R 2
#define TALL 1
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_2x2_large)
#define P 6
#define R 2
#define TALL 1
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_1x2)
#define P 5
#define R 2
#define TALL 0
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_2x1)
#define P 5
#define R 2
#define TALL 1
#define WIDE 0
#include "winograd.h"
#define W(name) FN(name##_1x2_large)
#define P 8
#define R 2
#define TALL 0
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_2x1_large)
#define P 8
#define R 2
#define TALL 1
#define WIDE 0
#include "winograd.h"
#define W(name) FN(name##_3x3_large)
#define P 8
#define R 3
#define TALL 1
#define WIDE 1
#include "winograd.h"
#define W(name) FN(name##_3x3_middle)
#define P 7
#define R 3
#define TALL 1
#define WIDE 1
#include "winograd.h"
static const cnn_winograd *const FN(winograd)[] = {
    &FN(winograd_3x3), &FN(winograd_5x5), &FN(winograd_1x3), &FN(winograd_3x1),
    &FN(winograd_1x5), &FN(winograd_5x1), &FN(winograd_1x7), &FN(winograd_7x1),
    &FN(winograd_1x3_small), &FN(winograd_3x1_small), &FN(winograd_5x5_large),
    &FN(winograd_1x7_large), &FN(winograd_7x1_large),
    &FN(winograd_3x3_large), &FN(winograd_3x3_middle),
    &FN(winograd_2x2), &FN(winograd_2x2_large), &FN(winograd_1x2), &FN(winograd_2x1),
    &FN(winograd_1x2_large), &FN(winograd_2x1_large), 0,
};
#define WINOGRAD FN(winograd)
#else
#define WINOGRAD 0
#endif
#undef UNROLL

static void (*const FN(tiles)[])(const cnn_tile *) = {FN(tile1), FN(tile2)};
static void (*const FN(half_tiles)[])(const cnn_tile *) = {FN(half_tile1),
                                                           FN(half_tile2)};

static const cnn_kernels FN(kernels) = {
    .itemsize = sizeof(REAL),
    .lanes = VBYTES / sizeof(REAL),
    .mr = MR,
    .vectors = 2,
    .tile = FN(tiles),
    .half_tile = FN(half_tiles),
    .low_tile = FN(low_tile),
    .keeping_tile = FN(keeping_tile),
    .keeping_low_tile = FN(keeping_low_tile),
    .low_rows = LOW_ROWS,
    .flat_tile = FN(flat_tiles),
    .even_tile = FN(even_tiles),
    .plane_tile = FN(plane_tiles),
    .dot_tile = FN(dot_tiles),
    .gradient_tile = FN(gradient_tiles),
    .gradient_rows = {GRADIENT_ROWS_1, GRADIENT_ROWS_2},
    .gradient_single = GRADIENT_SINGLE,
    .depthwise = FN(depthwise),
    .grouped = FN(grouped),
    .grouped_weights = FN(grouped_weights),
    .dots = FN(dots),
    .dots_weights = FN(dots_weights),
    .depthwise_gradient = FN(depthwise_gradient),
    .depthwise_plane = FN(depthwise_plane),
    .depthwise_plane_gradient = FN(depthwise_plane_gradient),
    .take_columns = FN(take_columns),
    .put_phases = FN(put_phases),
    .transpose = FN(transpose),
    .copy = FN(copy),
    .pack = FN(pack),
    .sum_parts = FN(sum_parts),
    .sum_rows = FN(sum_rows),
    .winograd = WINOGRAD,
    .activation = FN(activations),
    .delta = FN(deltas),
    .add = FN(add),
    .moments = FN(moments),
    .normalize = FN(normalize),
    .error_sums = FN(error_sums),
    .normalize_backward = FN(normalize_backward),
    .update = FN(updates),
    .sum_squares = FN(sum_squares),
    .scale_by = FN(scale_by),
    .clip = FN(clip),
    .cross_entropy = FN(cross_entropy),
    .row_dots = FN(row_dots),
    .row_times = FN(row_times),
    .row_outer = FN(row_outer),
    .max_window = FN(max_window),
    .max_plane = FN(max_plane),
    .sum_window = FN(sum_window),
    .sum_plane = FN(sum_plane),
    .max_backward = FN(max_backward),
    .max_scatter = FN(max_scatter),
    .sum_backward = FN(sum_backward),
    .copy_rows = FN(copy_rows),
    .scale_row = FN(scale_row),
    .sum_spread = FN(sum_spread),
    .add_row = FN(add_row),
    .tap_rows = FN(tap_rows),
    .fill_row = FN(fill_row),
    .mean_rows = FN(mean_rows),
#if defined(__x86_64__) || defined(_M_X64)
    .stream = FN(stream_bytes),
#endif
};

#undef WINOGRAD
#undef WHERE
#undef ZERO
#undef VEC
#undef IVEC
#undef LANES
