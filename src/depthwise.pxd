# Depthwise convolution of channels-last arrays: one channel in, one out, a group, or
# as few on both sides (a power of 2). Lanes are channels; the source is read where it
# lies, and taps beyond its border are left out. A task makes some rows, or some columns
# of them; the gradient of depthwise weights beside the sum itself.

from boxes cimport box, box_at, boxes, cut, tap_list
from correlate cimport aligned, correlation
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_GROUPED_SOME, cnn_depthwise, cnn_kernels, cnn_runtime, isize,
)
from libc.string cimport memcpy, memset
from weight_gradient cimport gradient_of_weight, gradient_part, part_of, partial_sums

# Elements that a task makes, about; bytes of the rows that its taps look at, which
# stay in the second-level cache; bytes of a gradient's sums, in the first-level one.
cdef enum:
    DEPTHWISE_ELEMENTS = 65536
    ROWS_BYTES = 256 << 10
    SUMS_BYTES = 24 << 10


# Correlations whose outputs interleave: one for a forward pass, one for each phase of
# a strided gradient of the input (which a task makes together, row by row).
cdef struct depthwise_job:
    const cnn_kernels *kernels
    const correlation *phase
    isize down, across
    isize channels
    isize rows_per_task, cols_per_task, row_tasks, col_tasks
    const char *weight                  # [tap][channel]; or as grouped kernels want it
    const char *zeros
    const char *bias


cdef inline isize columns(const tap_list *taps) noexcept nogil:
    return taps.count // taps.rows if taps.rows > 0 else 0


cdef inline isize row_space(const tap_list *taps) noexcept nogil:
    return taps.rows * <isize> sizeof(void *)


cdef inline void find_row(
    cnn_depthwise *d, const tap_list *taps, const isize *tap, const image *src,
    isize n, isize channel, isize i, char *scratch,
) noexcept nogil:
    """The rows of taps that output row i has in the source."""
    cdef isize r, first = 0, last = taps.rows
    cdef const void **x = <const void **> scratch
    while first < last and i * taps.sy + taps.row_dy[first] < 0:
        first += 1
    while last > first and i * taps.sy + taps.row_dy[last - 1] >= src.h:
        last -= 1
    for r in range(first, last):
        x[r - first] = pixel(src, n, channel, i * taps.sy + taps.row_dy[r], 0)
    d.rows, d.cols = last - first, columns(taps)
    d.x, d.tap, d.dx = x, tap + first * d.cols, taps.dx
    d.stride, d.width, d.x_step = taps.sx, src.w, src.step_w


cdef inline void depthwise_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const depthwise_job *w = <const depthwise_job *> job
    cdef isize j0 = task // w.row_tasks % w.col_tasks * w.cols_per_task
    cdef isize i0 = task % w.row_tasks * w.rows_per_task
    cdef isize n = task // w.row_tasks // w.col_tasks, i, p
    cdef const correlation *c
    cdef cnn_depthwise d
    d.channels, d.depth, d.taps = w.channels, w.phase.depth, w.phase.weight_taps
    d.zeros = w.zeros
    for i in range(i0, min(i0 + w.rows_per_task, w.phase.dst.h)):
        for p in range(w.down * w.across):
            c = w.phase + p
            if i >= c.dst.h or j0 >= c.dst.w:
                continue
            find_row(&d, &c.taps, c.to, &c.src, n, 0, i, scratch)
            d.look = <const void **> scratch + d.rows
            d.first, d.last = j0, min(j0 + w.cols_per_task, c.dst.w)
            d.y_step = c.dst.step_w
            if d.depth == 1:
                w.kernels.depthwise(
                    &d, pixel(&c.dst, n, 0, i, j0), w.weight, w.bias, c.activation)
            else:
                w.kernels.grouped(
                    &d, pixel(&c.dst, n, 0, i, j0), w.weight, w.bias, c.activation)


cdef inline int correlate_depthwise(
    const cnn_runtime *runtime, correlation *phase, isize down, isize across
) noexcept nogil:
    """Run `down` * `across` correlations, the first of which has the most outputs."""
    cdef depthwise_job w
    cdef correlation *c
    cdef isize size = phase.kernels.itemsize, lanes = phase.kernels.lanes
    cdef isize taps = phase.weight_taps, p, t, space = 0, row
    cdef isize channels = phase.groups * phase.depth
    cdef isize tap = channels           # weights of a tap
    cdef isize weights, biases = aligned((channels + lanes) * size)
    cdef isize *at
    cdef char *shared
    cdef int failed
    if phase.depth > 1:
        tap = phase.depth * lanes
        weights = aligned(ceil_div(channels, lanes) * taps * tap * size)
    else:
        weights = aligned((taps * tap + lanes) * size)
    shared = <char *> runtime.take(
        weights + 2 * biases + down * across * taps * <isize> sizeof(isize))
    if shared == NULL:
        return -1
    w.kernels, w.phase, w.channels = phase.kernels, phase, channels
    w.down, w.across = down, across
    w.weight, w.bias, w.zeros = shared, NULL, shared + weights + biases
    memset(shared + weights, 0, 2 * biases)
    if phase.depth > 1:
        memset(shared, 0, weights)
        w.kernels.grouped_weights(
            shared, phase.weight, channels, phase.depth, taps, phase.transposed)
    else:
        memset(shared + taps * channels * size, 0, lanes * size)
        w.kernels.copy(shared, channels, 1, phase.weight, 1, taps, taps, channels)
    if phase.bias != NULL:
        w.bias = shared + weights
        memcpy(shared + weights, phase.bias, channels * size)
    at = <isize *> (shared + weights + 2 * biases)
    for p in range(down * across):
        c = phase + p
        c.to = at + p * taps
        for t in range(taps):
            if c.order[t] >= 0:
                c.to[c.order[t]] = t * tap
        space = max(space, row_space(&c.taps) + (
            CNN_GROUPED_SOME * c.taps.count * <isize> sizeof(void *)))
    row = max(1, w.channels * phase.taps.sx * size * (phase.taps.rows + 1))
    w.cols_per_task = even_share(phase.dst.w, max(16, ROWS_BYTES // row))
    w.col_tasks = ceil_div(phase.dst.w, w.cols_per_task)
    w.rows_per_task = even_share(phase.dst.h, max(1, DEPTHWISE_ELEMENTS // (
        w.channels * w.cols_per_task * down * across)))
    w.row_tasks = ceil_div(phase.dst.h, w.rows_per_task)
    failed = runtime.run(
        depthwise_task, &w, phase.dst.n * w.row_tasks * w.col_tasks, space,
        <double> channels * phase.depth * phase.dst.n * phase.dst.h * phase.dst.w * taps)
    runtime.give(shared)
    return failed


# --- gradient of the weights -----------------------------------------------------


cdef inline isize depthwise_gradient_space(
    const gradient_of_weight *w
) noexcept nogil:
    return (
        aligned(w.part_size * w.kernels.itemsize)
        + aligned(w.taps.count * <isize> sizeof(isize)) + row_space(&w.taps))


cdef inline void depthwise_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize size = w.kernels.itemsize, b, i, t
    cdef gradient_part part = part_of(w, task)
    cdef char *sums = scratch
    cdef isize *at = <isize *> (scratch + aligned(w.part_size * size))
    cdef char *rows = <char *> at + aligned(w.taps.count * <isize> sizeof(isize))
    cdef box where
    cdef cnn_depthwise d
    if w.chunks > 1:
        sums = partial_sums(w, task)
    memset(sums, 0, w.part_size * size)
    for t in range(w.taps.count):
        at[t] = t * whole_channels(w)
    d.channels, d.y_step = part.channels, w.grad_y.step_w
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        d.first, d.last = where.j0, where.j1
        for i in range(where.i0, where.i1):
            find_row(&d, &w.taps, at, &w.x, where.n0, part.channel0, i, rows)
            w.kernels.depthwise_gradient(
                &d, sums, pixel(&w.grad_y, where.n0, part.channel0, i, where.j0))
    if w.chunks == 1:
        store_depthwise(w, &part, sums)


cdef inline isize whole_channels(const gradient_of_weight *w) noexcept nogil:
    """Channels of a part, in whole vectors."""
    return ceil_div(w.some_channels, w.kernels.lanes) * w.kernels.lanes


cdef inline void store_depthwise(
    const gradient_of_weight *w, const gradient_part *p, const char *sums
) noexcept nogil:
    """sums[tap][channel] -> grad_weight[channel][tap]."""
    cdef isize taps = w.taps.count
    w.kernels.copy(
        w.grad_weight + p.channel0 * taps * w.kernels.itemsize, 1, taps,
        sums, whole_channels(w), 1, taps, p.channels)


cdef inline void plan_depthwise_gradient(gradient_of_weight *w) noexcept nogil:
    cdef isize lanes = w.kernels.lanes, some
    # all channels are one group's here: a part is some of them, in whole vectors
    w.channels, w.groups = w.groups, 1
    some = max(4 * lanes, SUMS_BYTES // (w.taps.count * w.kernels.itemsize))
    w.some_channels = min(
        w.channels, ceil_div(even_share(w.channels, some), lanes) * lanes)
    w.some_filters = 1
    w.grid = cut(1, w.grad_y.h, w.grad_y.w, max(
        64, DEPTHWISE_ELEMENTS // w.some_channels))
    w.grid.n = w.grid.count_n = w.grad_y.n
    w.part_size = whole_channels(w) * w.taps.count
