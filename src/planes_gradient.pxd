# The gradient of the weights for few channels or few filters: dot products of the
# planes of grad_y with the shifted planes of x. Both are copied with one pitch; what
# lies between the rows of grad_y is zero.

from boxes cimport box, box_at, boxes, cut, halve, tap_list
from correlate cimport aligned, plane_band
from geometry cimport ceil_div, pixel
from kernels cimport cnn_dot_kernel, cnn_dot_tile, cnn_kernels, isize
from libc.string cimport memcpy, memset
from planes cimport fill_planes, plane_band_of, plane_offset
from weight_gradient cimport gradient_of_weight, gradient_part, part_of, partial_sums

cdef enum:
    COPY_BYTES = 384 << 10


# What a task's scratch holds, in bytes from its start; planes of grad_y in elements.
cdef struct dot_space:
    plane_band planes
    isize positions
    isize at, x, grad_y, total


cdef inline dot_space dot_space_of(const gradient_of_weight *w) noexcept nogil:
    cdef dot_space s
    cdef isize size = w.kernels.itemsize, lanes = w.kernels.lanes
    s.planes = plane_band_of(&w.grid, &w.taps)
    s.positions = ceil_div(w.grid.box_h * s.planes.pitch, lanes) * lanes
    s.at = aligned(w.part_size * size)
    s.x = s.at + aligned(w.some_channels * w.taps.count * <isize> sizeof(isize))
    s.grad_y = s.x + aligned(
        (w.gang * w.some_channels * s.planes.channel_step
         + s.planes.pitch + lanes) * size)
    s.total = s.grad_y + aligned(w.gang * w.some_filters * s.positions * size)
    return s


cdef inline void fill_errors(
    const gradient_of_weight *w, const box *where, isize filter, isize filters,
    const dot_space *s, char *to,
) noexcept nogil:
    """grad_y of a box -> [filter][row][pitch], zero from a row's end to its pitch."""
    cdef isize size = w.kernels.itemsize, i, m
    cdef isize rows = where.i1 - where.i0, cols = where.j1 - where.j0
    memset(to, 0, filters * s.positions * size)
    if w.grad_y.step_c == 1:
        for i in range(rows):
            w.kernels.copy(
                to + i * s.planes.pitch * size, s.positions, 1,
                pixel(&w.grad_y, where.n0, filter, where.i0 + i, where.j0),
                1, w.grad_y.step_w, filters, cols)
        return
    for m in range(filters):
        w.kernels.copy(
            to + m * s.positions * size, s.planes.pitch, 1,
            pixel(&w.grad_y, where.n0, filter + m, where.i0, where.j0),
            w.grad_y.step_h, w.grad_y.step_w, rows, cols)


cdef inline void planes_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize size = w.kernels.itemsize, lanes = w.kernels.lanes
    cdef isize taps = w.taps.count
    cdef gradient_part part = part_of(w, task)
    cdef dot_space s = dot_space_of(w)
    cdef isize pairs = part.channels * taps
    cdef isize group0 = part.group * w.gang
    cdef isize groups = min(w.gang, w.groups - group0)
    cdef isize *at = <isize *> (scratch + s.at)
    cdef char *sums = scratch
    cdef const cnn_dot_kernel *kernel = w.kernels.dot_tile
    cdef isize b, g, m, j, t, d
    cdef box where
    cdef cnn_dot_tile q
    if part.filters > kernel.rows:
        kernel += 1
    if w.chunks > 1:
        sums = partial_sums(w, task)
    memset(sums, 0, w.part_size * size)
    for d in range(part.channels):
        for t in range(taps):
            at[d * taps + t] = (
                d * s.planes.channel_step + plane_offset(&s.planes, &w.taps, t))
    q.a_step, q.c_step = s.positions, pairs
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        if w.gang > 1:
            d, m = groups * w.channels, groups * w.filters
        else:
            d, m = part.channels, part.filters
        # what a vector reads behind the last row must be finite
        memset(scratch + s.x + d * s.planes.channel_step * size, 0,
               (s.planes.pitch + lanes) * size)
        fill_planes(scratch + s.x, &s.planes, &where, &w.taps, w.kernels, &w.x,
                    group0 * w.channels + part.channel0, d)
        fill_errors(w, &where, group0 * w.filters + part.filter0, m, &s,
                    scratch + s.grad_y)
        q.positions = ceil_div((where.i1 - where.i0) * s.planes.pitch, lanes) * lanes
        # grad_y[filters x positions] . x[positions x pairs] -> sums
        for g in range(groups):
            for m in range(ceil_div(part.filters, kernel.rows)):
                q.rows = min(kernel.rows, part.filters - m * kernel.rows)
                q.a = scratch + s.grad_y + size * (
                    (g * part.filters + m * kernel.rows) * s.positions)
                q.b = scratch + s.x + (
                    g * part.channels * s.planes.channel_step * size)
                for j in range(ceil_div(pairs, kernel.cols)):
                    q.cols = min(kernel.cols, pairs - j * kernel.cols)
                    q.at = at + j * kernel.cols
                    q.c = sums + size * (
                        (g * part.filters + m * kernel.rows) * pairs
                        + j * kernel.cols)
                    kernel.run(&q)
    if w.chunks == 1:
        store_planes(w, &part, sums)


cdef inline void store_planes(
    const gradient_of_weight *w, const gradient_part *p, const char *sums
) noexcept nogil:
    """sums[filter][channel][tap] are the weights' own order."""
    cdef isize size = w.kernels.itemsize, taps = w.taps.count, m
    cdef isize group0 = p.group * w.gang
    cdef isize filters = p.filters * min(w.gang, w.groups - group0)
    for m in range(filters):
        memcpy(
            w.grad_weight + size * taps * (
                (group0 * w.filters + p.filter0 + m) * w.channels + p.channel0),
            sums + m * p.channels * taps * size, p.channels * taps * size)


cdef inline void plan_planes_gradient(gradient_of_weight *w) noexcept nogil:
    """Choose boxes, and parts where channels or filters are many."""
    cdef isize pixels = w.grad_y.n * w.grad_y.h * w.grad_y.w
    cdef dot_space s
    w.some_channels, w.some_filters = w.channels, w.filters
    w.gang = min(w.groups, ceil_div(16, max(w.channels, w.filters)))
    w.grid = cut(1, w.grad_y.h, w.grad_y.w, min(max(pixels // 8, 256), 2048))
    w.grid.n = w.grid.count_n = w.grad_y.n
    while True:
        w.part_size = w.gang * w.some_channels * w.some_filters * w.taps.count
        s = dot_space_of(w)
        if s.total <= COPY_BYTES:
            return
        # rather some of the many channels than a row of pixels
        if w.grid.box_h > 4 and halve(&w.grid, 256):
            continue
        if w.gang > 1:
            w.gang = ceil_div(w.gang, 2)
        elif w.some_channels > 8 and w.some_channels >= w.some_filters:
            w.some_channels = ceil_div(w.some_channels, 2)
        elif w.some_filters > 8:
            w.some_filters = ceil_div(w.some_filters, 2)
        elif not halve(&w.grid, 64):
            return
