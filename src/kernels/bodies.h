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
#undef ROWS
#define ROWS (MR / 2)
#define NV 1
#define TILE FN(half_tile1)
#include "tile.h"
#define NV 2
#define TILE FN(half_tile2)
#include "tile.h"
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
#include "depthwise_planes.h"
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
#define ROWS GRADIENT_ROWS_1
#define NV 1
#define TILE FN(gradient_tile_1_1)
#include "gradient_tile.h"
#define NV 2
#define TILE FN(gradient_tile_1_2)
#include "gradient_tile.h"
#undef ROWS
#define ROWS GRADIENT_ROWS_2
#define NV 1
#define TILE FN(gradient_tile_2_1)
#include "gradient_tile.h"
#define NV 2
#define TILE FN(gradient_tile_2_2)
#include "gradient_tile.h"
#undef ROWS
#define ROWS GRADIENT_ROWS_3
#define NV 1
#define TILE FN(gradient_tile_3_1)
#include "gradient_tile.h"
#define NV 2
#define TILE FN(gradient_tile_3_2)
#include "gradient_tile.h"
#undef ROWS
#define ROWS GRADIENT_ROWS_4
#define NV 1
#define TILE FN(gradient_tile_4_1)
#include "gradient_tile.h"
#define NV 2
#define TILE FN(gradient_tile_4_2)
#include "gradient_tile.h"
#undef ROWS
static const cnn_gradient_kernel FN(gradient_tiles)[] = {
    {GRADIENT_ROWS_1, {FN(gradient_tile_1_1), FN(gradient_tile_1_2)}},
    {GRADIENT_ROWS_2, {FN(gradient_tile_2_1), FN(gradient_tile_2_2)}},
    {GRADIENT_ROWS_3, {FN(gradient_tile_3_1), FN(gradient_tile_3_2)}},
    {GRADIENT_ROWS_4, {FN(gradient_tile_4_1), FN(gradient_tile_4_2)}},
    {0, {0, 0}},
};
#if FLOAT_BITS == 32 /* double is for exactness: direct sums only */
#define R 3
#define W(name) FN(name##_3)
#include "winograd.h"
#undef R
#undef W
#define R 5
#define W(name) FN(name##_5)
#include "winograd.h"
#undef R
#undef W
#define WINOGRAD_TABLE(r)                                                         \
    {CNN_POINTS - r + 1,         r,                                               \
     FN(winograd_input_##r),     FN(winograd_weight_##r),                         \
     FN(winograd_output_##r),    FN(winograd_error_##r),                          \
     FN(winograd_gradient_##r)}
static const cnn_winograd FN(winograd)[] = {WINOGRAD_TABLE(3), WINOGRAD_TABLE(5)};
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
    .plane_tile = FN(plane_tiles),
    .dot_tile = FN(dot_tiles),
    .gradient_tile = FN(gradient_tiles),
    .depthwise = FN(depthwise),
    .depthwise_gradient = FN(depthwise_gradient),
    .depthwise_plane = FN(depthwise_plane),
    .depthwise_plane_gradient = FN(depthwise_plane_gradient),
    .take_columns = FN(take_columns),
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
    .fill_row = FN(fill_row),
    .mean_rows = FN(mean_rows),
#if defined(__x86_64__) || defined(_M_X64)
    .stream = FN(stream),
#endif
};

#undef WINOGRAD
#undef WHERE
#undef ZERO
#undef VEC
#undef IVEC
#undef LANES
