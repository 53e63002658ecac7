# The gradient of the input where weights outnumber the pixels by far: the adjoint of
# columns.pxd. Rows of A are pixels of grad_y, copied side by side; B's are the weights
# where they lie:
#
#   sums[pixel, (c, t)] = sum over k of grad_y[k, pixel] * weight[k, (c, t)]
#
# and each sum is added to the pixel of grad_x that its tap reaches. No weight is
# packed, and all phases of a stride are one pass.

from boxes cimport tap_list
from correlate cimport aligned
from direct_gradient cimport cut_rows, tile_cut, tile_rows, tile_width
from geometry cimport ceil_div, conv_geometry, image, pixel
from kernels cimport (
    CNN_ADD, CNN_ZERO, cnn_gradient_tile, cnn_kernels, cnn_lines, isize,
)
from libc.string cimport memset

cdef enum:
    FILTERS_NOW = 64                    # of a tile's weights, which so stay in L1
    ADJOINT_BYTES = 512 << 10           # of a task's sums


cdef struct gradient_of_input:
    const cnn_kernels *kernels
    image grad_y, grad_x
    const char *weight                  # contiguous
    isize groups, channels, filters     # of one group
    tap_list taps                       # of the forward pass
    isize some_channels, parts          # a task's channels; tasks of a group


# What a task's scratch holds, in bytes from its start; steps in elements.
cdef struct adjoint_space:
    isize pixels, columns, channels     # columns and channels in whole vectors
    isize pitch                         # from filter to filter, an even number
    isize taps, result, tail, errors, total


cdef inline adjoint_space adjoint_space_of(const gradient_of_input *g) noexcept nogil:
    cdef adjoint_space s
    cdef isize size = g.kernels.itemsize, lanes = g.kernels.lanes
    s.pixels = g.grad_y.n * g.grad_y.h * g.grad_y.w
    s.columns = ceil_div(g.some_channels * g.taps.count, lanes) * lanes
    s.channels = ceil_div(g.some_channels, lanes) * lanes
    s.taps = aligned(s.pixels * s.columns * size)
    s.result = s.taps + aligned(g.taps.count * s.channels * size)
    s.tail = s.result + aligned(
        g.grad_x.n * g.grad_x.h * g.grad_x.w * s.channels * size)
    s.pitch = s.pixels + s.pixels % 2
    s.errors = s.tail + aligned(2 * lanes * FILTERS_NOW * size)
    s.total = s.errors + aligned(s.pitch * FILTERS_NOW * size)
    return s


cdef inline void copy_errors(
    const gradient_of_input *g, const adjoint_space *s, isize filter_, isize filters,
    char *to,
) noexcept nogil:
    """grad_y -> [filter][pixel], for some filters."""
    cdef isize n, i, size = g.kernels.itemsize
    for n in range(g.grad_y.n):
        for i in range(g.grad_y.h):
            g.kernels.copy(
                to, s.pitch, 1, pixel(&g.grad_y, n, filter_, i, 0),
                g.grad_y.step_c, g.grad_y.step_w, filters, g.grad_y.w)
            to += g.grad_y.w * size


cdef inline void sum_filters(
    const gradient_of_input *g, const adjoint_space *s, isize group,
    const char *weight, isize columns, char *scratch,
) noexcept nogil:
    """grad_y[pixels x filters] . weight[filters x columns] -> sums, some filters at a
    time, so that a tile's weights are read from memory once for all pixels."""
    cdef const cnn_kernels *kernels = g.kernels
    cdef isize size = kernels.itemsize, lanes = kernels.lanes
    cdef isize row = g.channels * g.taps.count, k = 0, col, first, width
    cdef const char *at
    cdef tile_cut tile = cut_rows(kernels, s.pixels, 1, 2 * lanes, True)
    cdef cnn_gradient_tile q
    cdef cnn_lines next
    memset(scratch + s.errors, 0, s.pitch * FILTERS_NOW * size)
    q.batches = 1
    q.a_move = q.b_move = 0
    q.a_row, q.a_step = 1, s.pitch
    q.c_step = s.columns
    q.next = &next
    while k < g.filters:
        q.depth = min(FILTERS_NOW, g.filters - k)
        copy_errors(g, s, group * g.filters + k, q.depth, scratch + s.errors)
        q.start = CNN_ADD if k > 0 else CNN_ZERO
        col = 0
        while col < columns:
            width = tile_width(kernels, &tile, columns - col)
            q.cols = min(width, columns - col)
            at = weight + (k * row + col) * size
            q.b, q.b_step = at, row
            if q.cols < width:          # vectors must not reach beyond the weights
                kernels.copy(scratch + s.tail, width, 1, at, row, 1, q.depth, q.cols)
                q.b, q.b_step = scratch + s.tail, width
            # the columns after these, filter by filter
            next.at = at + width * size
            next.run = next.of_run = max(1, width * size // 64)
            next.left = q.depth * next.run
            next.jump = row * size - next.run * 64
            next.row_jump = 0
            next.row = next.of_row = next.left
            first = 0
            while first < s.pixels:
                q.rows = tile_rows(&tile, s.pixels - first)
                q.a = scratch + s.errors + first * size
                q.c = scratch + (first * s.columns + col) * size
                kernels.gradient_tile[ceil_div(q.rows, 2) - 1].run[width // lanes - 1](
                    &q)
                first += q.rows
            col += width
        k += q.depth


cdef inline void adjoint_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const gradient_of_input *g = <const gradient_of_input *> job
    cdef const cnn_kernels *kernels = g.kernels
    cdef const tap_list *taps = &g.taps
    cdef isize size = kernels.itemsize, group = task // g.parts
    cdef isize channel = task % g.parts * g.some_channels
    cdef isize channels = min(g.some_channels, g.channels - channel)
    cdef adjoint_space s = adjoint_space_of(g)
    cdef char *sums = scratch
    cdef char *to
    cdef isize n, i, j, t, y, x, lines = g.grad_x.h, run = g.grad_x.w
    sum_filters(
        g, &s, group, g.weight + size * taps.count * (
            group * g.filters * g.channels + channel),
        channels * taps.count, scratch)
    memset(scratch + s.result, 0,
           g.grad_x.n * g.grad_x.h * g.grad_x.w * s.channels * size)
    for n in range(g.grad_y.n):
        for i in range(g.grad_y.h):
            for j in range(g.grad_y.w):
                to = sums
                if taps.count > 1:      # [channel][tap] -> [tap][channel]
                    to = scratch + s.taps
                    kernels.copy(
                        to, 1, s.channels, sums, taps.count, 1, channels, taps.count)
                for t in range(taps.count):
                    y = i * taps.sy + taps.dy[t]
                    x = j * taps.sx + taps.dx[t]
                    if 0 <= y < g.grad_x.h and 0 <= x < g.grad_x.w:
                        kernels.add_row(
                            scratch + s.result + size * s.channels * (
                                (n * g.grad_x.h + y) * g.grad_x.w + x),
                            to + t * s.channels * size, channels)
                sums += s.columns * size
    if g.grad_x.step_h == run * g.grad_x.step_w:
        run *= lines
        lines = 1
    to = scratch + s.result
    for n in range(g.grad_x.n):
        for y in range(lines):
            kernels.copy(
                pixel(&g.grad_x, n, group * g.channels + channel, y, 0),
                g.grad_x.step_w, g.grad_x.step_c, to, s.channels, 1, run, channels)
            to += run * s.channels * size


cdef inline bint few_errors(
    const conv_geometry *g, const cnn_kernels *kernels
) noexcept nogil:
    """Whether packing the weights costs more than scattering the sums.

    Milliseconds in place of the direct sum, planes, AVX-512, one thread: 3x3 512->512,
    4 pixels 0.39 (1.6), 16 pixels 0.70 (1.7), 98 pixels 3.3 (4.8); with stride 2,
    16 pixels 0.73 (3.5: each phase packs its taps); 1x1 2048->512, 98 pixels 1.6 (3.8).
    But 3x3 128->128, 64 pixels 0.25 (0.18); 64->64, 25 pixels 0.034 (0.027).
    """
    cdef isize pixels = g.n * g.out_h * g.out_w
    cdef isize columns = g.c // g.groups * g.r * g.s
    cdef isize weights = g.k // g.groups * columns
    return (
        0 < pixels <= 256 and g.n * g.h * g.w <= 1024
        and columns >= 2 * kernels.lanes and weights >= 1 << 14
        and pixels <= weights >> (12 if g.stride_h * g.stride_w == 1 else 10))


cdef inline void plan_adjoint(gradient_of_input *g) noexcept nogil:
    """About eight tasks, of whole vectors of channels."""
    cdef isize lanes = g.kernels.lanes
    cdef isize most = max(
        g.taps.count * g.grad_y.n * g.grad_y.h * g.grad_y.w,
        g.grad_x.n * g.grad_x.h * g.grad_x.w) * g.kernels.itemsize
    g.some_channels = min(
        ceil_div(g.channels * g.groups, 8), ADJOINT_BYTES // most)
    g.some_channels = min(
        g.channels, ceil_div(max(1, g.some_channels), lanes) * lanes)
    g.parts = ceil_div(g.channels, g.some_channels)
