# What every pass that makes pixels has in common: forward, the gradient of the input,
# transposed convolution. Each is a correlation
#
#   dst[n, m, i, j] = bias[m] + sum over taps t and channels d of
#                     src[n, d, i*sy + dy_t, j*sx + dx_t] * weight[m, d, t]
#
# computed by one of the algorithms beside this file, chosen in algorithms.pxd.
# Weights are packed into panels, one for each group and block of outs.

from boxes cimport band, box, box_grid, tap_list
from geometry cimport ceil_div, image, pixel
from kernels cimport cnn_kernels, cnn_plane_kernel, cnn_winograd, isize
from libc.string cimport memcpy, memset


# The planes of a box: [channel][phase][row][column], in elements.
cdef struct plane_band:
    isize rows, pitch                   # of one phase
    isize phase_step, channel_step


cdef enum:
    DIRECT
    PLANES
    DEPTHWISE
    GROUPED
    DOTS
    DEPTHWISE_PLANES
    WINOGRAD
    COLUMNS


cdef struct correlation:
    const cnn_kernels *kernels
    image src, dst
    image planes_src                    # DIRECT, copied: what src is a copy of
    isize groups, depth, outs           # channels of src and dst in one group
    tap_list taps
    const char *weight                  # contiguous, every tap of it
    isize weight_taps
    const isize *order                  # of weight tap t in the tap list, or -1
    bint transposed                     # weight is [depth][outs][taps]
    const char *bias                    # a value for each channel of dst, or NULL
    bint stays                          # both are packed beforehand:
    char *prepared                      # here; or NULL
    int activation

    # what the geometry leads to
    int algorithm
    const cnn_plane_kernel *plane       # PLANES: shape of its tiles
    plane_band planes
    isize gang                          # PLANES: groups of a task
    isize slab                          # COLUMNS: panels that are copied at a time,
    isize tile_rows                     # filters of a tile; DIRECT: pixels
    bint flat                           # DIRECT: c.to has an offset for each step
    const cnn_winograd *winograd        # NULL: the direct sum
    box_grid grid                       # of outputs, or of Winograd's patches
    band around
    bint banded                         # the source is copied into bands
    bint copied                         # DIRECT: all of the source is copied first
    bint padded                         # taps can lie outside of the image
    bint by_columns                     # DIRECT: tiles go down the columns
    bint direct                         # tiles are stored in dst itself
    bint turned                         # DIRECT: pixels lie [channel][pixel]
    bint streamed                       # weights are more than the caches hold
    bint fused                          # WINOGRAD: tasks transform the weights
    bint shares                         # WINOGRAD: tasks share their boxes' patches
    isize block, blocks                 # channels of a tile; tiles for all outs
    isize panel_bytes
    # what the pass under way does
    isize group0, group1, block0, block1, depth0, depth_now, splits
    int start, end
    isize *to
    char *panels
    char *bias_panels
    char *shared                        # of all boxes: panels, turned pixels, or V


cdef inline isize aligned(isize bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef inline void clear_behind(
    char *pixels, isize elements, const cnn_kernels *kernels
) noexcept nogil:
    """Clear the vector behind a band, which the last pixel's vectors reach into.

    Old bits may be subnormal numbers, which cost a hundred times as much.
    """
    memset(pixels + elements * kernels.itemsize, 0, kernels.lanes * kernels.itemsize)


cdef inline isize width_of(const correlation *c, isize block) noexcept nogil:
    """Columns of a block's panel: as many vectors as its outs need."""
    cdef isize lanes = c.kernels.lanes
    return min(c.block, ceil_div(c.outs - block * c.block, lanes) * lanes)


cdef inline isize panel_index(
    const correlation *c, isize group, isize block
) noexcept nogil:
    return (group - c.group0) * (c.block1 - c.block0) + block - c.block0


cdef inline char *panel(
    const correlation *c, isize group, isize block
) noexcept nogil:
    return c.panels + c.panel_bytes * panel_index(c, group, block)


cdef inline char *bias_panel(
    const correlation *c, isize group, isize block
) noexcept nogil:
    return c.bias_panels + c.kernels.itemsize * c.block * panel_index(c, group, block)


cdef inline void pack_bias(
    const correlation *c, isize group, isize block
) noexcept nogil:
    cdef isize size = c.kernels.itemsize, first = block * c.block
    cdef char *bias = bias_panel(c, group, block)
    memset(bias, 0, c.block * size)
    if c.bias != NULL:
        memcpy(bias, c.bias + (group * c.outs + first) * size,
               min(c.outs - first, c.block) * size)


cdef inline void pack_block(
    const correlation *c, isize group, isize block, char *to
) noexcept nogil:
    """weight[m, d, t] -> to[t][d][m] for one group and block; its bias beside it."""
    cdef isize size = c.kernels.itemsize, taps = c.weight_taps
    cdef isize first = block * c.block, width = width_of(c, block), d
    cdef isize outs = min(c.outs - first, width)
    pack_bias(c, group, block)
    if c.transposed and taps == 1 and c.taps.count == 1:
        # rows of outs as they lie; turned one by one they took half as long as the sums
        # of 400 pixels
        if outs < width:
            memset(to, 0, c.depth_now * width * size)
        c.kernels.copy(
            to, width, 1,
            c.weight + size * ((group * c.depth + c.depth0) * c.outs + first),
            c.outs, 1, c.depth_now, outs)
    elif c.transposed:
        for d in range(c.depth_now):
            c.kernels.pack(
                to + d * width * size, c.to, width,
                c.weight + size * taps * (
                    (group * c.depth + c.depth0 + d) * c.outs + first),
                taps, outs, taps,
            )
    else:
        c.kernels.pack(
            to, c.to, width,
            c.weight + size * taps * (
                (group * c.outs + first) * c.depth + c.depth0),
            taps * c.depth, outs, taps * c.depth_now,
        )


cdef inline void order_of_weights(correlation *c) noexcept nogil:
    """c.to[...]: row of the panel for each weight that pack_task reads in a run."""
    cdef isize t, d
    for d in range(1 if c.transposed else c.depth_now):
        for t in range(c.weight_taps):
            c.to[d * c.weight_taps + t] = (
                c.order[t] * c.depth_now + d if c.order[t] >= 0 else -1)


cdef inline void move_sums(
    const correlation *c, const box *where, isize channel, isize channels,
    char *sums, isize pixel_step, isize channel_step, bint load
) noexcept nogil:
    """Copy the sums of a box's pixels, which lie in their order, to dst or from it."""
    move_pixels(c.kernels, &c.dst, where, channel, channels, sums, pixel_step,
                channel_step, load)


cdef inline void move_pixels(
    const cnn_kernels *kernels, const image *dst, const box *where, isize channel,
    isize channels, char *sums, isize pixel_step, isize channel_step, bint load,
) noexcept nogil:
    cdef isize n, i, run = where.j1 - where.j0, lines = where.i1 - where.i0
    cdef isize rows, cols, row, col, to_row, to_col
    cdef char *at
    if run == dst.w and dst.step_h == run * dst.step_w:
        run *= lines
        lines = 1
    rows, row, to_row = run, pixel_step, dst.step_w
    cols, col, to_col = channels, channel_step, dst.step_c
    if pixel_step == 1:     # the copy's columns are what lies side by side
        rows, row, to_row, cols, col, to_col = cols, col, to_col, rows, row, to_row
    for n in range(where.n0, where.n1):
        for i in range(lines):
            at = pixel(dst, n, channel, where.i0 + i, where.j0)
            if load:
                kernels.copy(sums, row, col, at, to_row, to_col, rows, cols)
            else:
                kernels.copy(at, to_row, to_col, sums, row, col, rows, cols)
            sums += run * pixel_step * dst.itemsize


cdef enum:
    COPIED_BYTES = 16 << 20             # of a source that is copied channels-last


cdef inline isize source_bytes(const correlation *c) noexcept nogil:
    return aligned(
        c.src.n * c.src.h * c.src.w * c.groups * c.depth * c.src.itemsize)


cdef inline void copy_first(correlation *c) noexcept nogil:
    """Plan to copy all of the source, channels last, where many boxes would have copied
    much of it each."""
    c.copied = True
    c.planes_src = c.src
    c.src.data = NULL
    c.src.step_c, c.src.step_w = 1, c.groups * c.depth
    c.src.step_h = c.src.w * c.src.step_w
    c.src.step_n = c.src.h * c.src.step_h


cdef inline void copy_task(void *job, isize task, char *scratch) noexcept nogil:
    """Copy a row of an image."""
    cdef const correlation *c = <const correlation *> job
    cdef isize n = task // c.src.h, y = task % c.src.h
    c.kernels.copy(
        pixel(&c.src, n, 0, y, 0), c.src.step_w, 1,
        pixel(&c.planes_src, n, 0, y, 0), c.planes_src.step_w, c.planes_src.step_c,
        c.src.w, c.src.step_w)
