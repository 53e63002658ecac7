# Depthwise convolution of planes (NCHW): one channel in, one out a group. Lanes are
# columns of a row. A task copies the rows of some planes, one after the other, into
# one small band with zeros around, which stays in the first-level cache, and stores
# outputs where they belong. The gradient of the weights beside the sum itself.

from boxes cimport box, box_at, box_grid, boxes, cut, tap_list
from correlate cimport aligned, correlation
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_PLANE_HIGH, cnn_depthwise_plane, cnn_kernels, cnn_runtime, isize,
)
from libc.string cimport memcpy, memset
from weight_gradient cimport gradient_of_weight, gradient_part, part_of, partial_sums

# Outputs of a box and of a task, about; bytes of a gradient's sums.
cdef enum:
    BOX_OUTPUTS = 3072
    TASK_OUTPUTS = 16384
    SUMS_BYTES = 64 << 10


# The band of a box's source rows, [row][phase of the columns][pitch], in elements.
cdef struct column_band:
    isize rows, phases, phase_step, pitch
    isize tables, total                 # bytes: of the tables, of all


cdef inline isize in_vectors(const cnn_kernels *kernels, isize count) noexcept nogil:
    return ceil_div(count, kernels.lanes) * kernels.lanes


cdef inline column_band column_band_of(
    const cnn_kernels *kernels, const box_grid *grid, const tap_list *taps
) noexcept nogil:
    cdef column_band b
    cdef isize height = ceil_div(grid.box_h, CNN_PLANE_HIGH) * CNN_PLANE_HIGH
    cdef isize wide = taps.dx_max - taps.dx_min
    b.rows = (height - 1) * taps.sy + taps.dy_max - taps.dy_min + 1
    b.phases = min(taps.sx, wide + 1)
    # room to begin where the image's first column is aligned, and for whole vectors
    b.phase_step = in_vectors(
        kernels, in_vectors(kernels, grid.box_w) + wide // taps.sx + kernels.lanes)
    b.pitch = b.phases * b.phase_step
    b.tables = aligned(
        (taps.rows + 2 * taps.count) * <isize> sizeof(isize)
        + b.phases * <isize> sizeof(column_phase))
    b.total = b.tables + aligned(
        (b.rows * b.pitch + 2 * kernels.lanes) * kernels.itemsize)
    return b


# What one phase of the columns takes of a row: the band's columns [x0, x1), from the
# source's column `first`.
cdef struct column_phase:
    isize x0, x1, first


# A box's band and what its copies and its kernel need.
cdef struct plane_walk:
    const cnn_kernels *kernels
    isize row, col                      # of the source: the band's first
    isize row0, row1                    # rows of the band inside of the image
    isize lead                          # elements before the band's first column
    column_band band
    char *pixels
    column_phase *phase
    cnn_depthwise_plane g


cdef inline plane_walk begin_box(
    const cnn_kernels *kernels, const box_grid *grid, const box *where,
    const tap_list *taps, const isize *order, isize weight_taps, const image *src,
    isize y_step, char *scratch,
) noexcept nogil:
    """Clear the band, for what copies leave, and list where the taps lie in it."""
    cdef plane_walk w
    cdef isize *down = <isize *> scratch
    cdef isize *at = down + taps.rows
    cdef isize *tap = at + taps.count
    cdef isize cols = taps.count // taps.rows, r, s, left, lanes = kernels.lanes
    w.kernels, w.band = kernels, column_band_of(kernels, grid, taps)
    w.pixels = scratch + w.band.tables
    memset(w.pixels, 0, w.band.total - w.band.tables)
    w.row = where.i0 * taps.sy + taps.dy_min
    w.col = where.j0 * taps.sx + taps.dx_min
    w.row0 = max(0, -w.row)
    w.row1 = min(src.h - w.row,
                 (where.i1 - where.i0 - 1) * taps.sy + taps.dy_max - taps.dy_min + 1)
    left = ceil_div(-w.col, taps.sx) if w.col < 0 else 0
    w.lead = ceil_div(left, lanes) * lanes - left
    for r in range(taps.rows):
        down[r] = taps.row_dy[r] - taps.dy_min
    for s in range(cols):
        left = taps.dx[s] - taps.dx_min
        at[s] = left % taps.sx * w.band.phase_step + left // taps.sx
    for r in range(taps.count):
        tap[r] = r
    for r in range(weight_taps if order != NULL else 0):
        if order[r] >= 0:
            tap[order[r]] = r
    w.g.rows, w.g.cols = where.i1 - where.i0, where.j1 - where.j0
    w.g.tap_rows, w.g.tap_cols = taps.rows, cols
    w.g.down, w.g.at, w.g.tap = down, at, tap
    w.g.stride, w.g.pitch = taps.sy, w.band.pitch
    w.g.x, w.g.y_step = w.pixels + w.lead * kernels.itemsize, y_step
    w.phase = <column_phase *> (tap + taps.count)
    for r in range(w.band.phases):
        w.phase[r] = phase_of(&w, taps, src, r)
    return w


cdef inline column_phase phase_of(
    const plane_walk *w, const tap_list *taps, const image *src, isize phase
) noexcept nogil:
    cdef column_phase p
    # columns first + q*sx, x0 <= q < x1, lie inside of the image
    cdef isize first = w.col + phase
    p.x0 = ceil_div(-first, taps.sx) if first < 0 else 0
    # no further than the last tap of the last output
    p.x1 = min(ceil_div(src.w - first, taps.sx),
               w.g.cols + (taps.dx_max - taps.dx_min) // taps.sx)
    p.first = first + p.x0 * taps.sx
    return p


cdef inline void copy_plane(
    const plane_walk *w, const image *src, isize n, isize channel, isize stride
) noexcept nogil:
    """Copy the box's part of a plane into the band, each phase of its columns."""
    cdef isize i
    cdef const column_phase *p
    for i in range(w.band.phases):
        p = w.phase + i
        if p.x1 > p.x0 and w.row1 > w.row0:
            w.kernels.take_columns(
                w.pixels + w.kernels.itemsize * (
                    w.row0 * w.band.pitch + i * w.band.phase_step + w.lead + p.x0),
                w.band.pitch, pixel(src, n, channel, w.row + w.row0, p.first),
                src.step_h, stride, w.row1 - w.row0, p.x1 - p.x0)


cdef struct planes_job:
    const correlation *c
    box_grid grid
    isize some                          # channels of a task


cdef inline void depthwise_planes_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const planes_job *j = <const planes_job *> job
    cdef const correlation *c = j.c
    cdef isize size = c.kernels.itemsize, parts = ceil_div(c.groups, j.some), m
    cdef box where = box_at(&j.grid, task // parts)
    cdef const char *bias = NULL
    cdef plane_walk w = begin_box(
        c.kernels, &j.grid, &where, &c.taps, c.order, c.weight_taps, &c.src,
        c.dst.step_h, scratch)
    for m in range(task % parts * j.some,
                   min(c.groups, (task % parts + 1) * j.some)):
        copy_plane(&w, &c.src, where.n0, m, c.taps.sx)
        if c.bias != NULL:
            bias = c.bias + m * size
        c.kernels.depthwise_plane(
            &w.g, pixel(&c.dst, where.n0, m, where.i0, where.j0),
            c.weight + m * c.weight_taps * size, bias, c.activation)


cdef inline box_grid grid_of_planes(const image *dst) noexcept nogil:
    cdef box_grid grid = cut(1, dst.h, dst.w, BOX_OUTPUTS)
    grid.n = grid.count_n = dst.n
    return grid


cdef inline int correlate_depthwise_planes(
    const cnn_runtime *runtime, const correlation *c
) noexcept nogil:
    cdef planes_job j
    j.c, j.grid = c, grid_of_planes(&c.dst)
    j.some = even_share(
        c.groups, max(1, TASK_OUTPUTS // (j.grid.box_h * j.grid.box_w)))
    return runtime.run(
        depthwise_planes_task, &j, boxes(&j.grid) * ceil_div(c.groups, j.some),
        column_band_of(c.kernels, &j.grid, &c.taps).total,
        <double> c.groups * c.dst.n * c.dst.h * c.dst.w * c.weight_taps)


# --- gradient of the weights -----------------------------------------------------


cdef inline isize lane_sums_bytes(const gradient_of_weight *w) noexcept nogil:
    return aligned(
        w.part_size * w.kernels.lanes * w.kernels.itemsize)


cdef inline isize depthwise_planes_gradient_space(
    const gradient_of_weight *w
) noexcept nogil:
    return (
        lane_sums_bytes(w) + aligned(w.part_size * w.kernels.itemsize)
        + column_band_of(w.kernels, &w.grid, &w.taps).total)


cdef inline void depthwise_planes_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize size = w.kernels.itemsize, lanes = w.kernels.lanes
    cdef isize taps = w.taps.count, b, m
    cdef gradient_part part = part_of(w, task)
    cdef char *lane_sums = scratch      # [channel][tap][lane]
    cdef char *sums = scratch + lane_sums_bytes(w)
    cdef char *band = sums + aligned(w.part_size * size)
    cdef box where
    cdef plane_walk walk
    if w.chunks > 1:
        sums = partial_sums(w, task)
    memset(lane_sums, 0, lane_sums_bytes(w))
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        walk = begin_box(
            w.kernels, &w.grid, &where, &w.taps, NULL, 0, &w.x, w.grad_y.step_h, band)
        for m in range(part.channels):
            copy_plane(&walk, &w.x, where.n0, part.channel0 + m, w.taps.sx)
            w.kernels.depthwise_plane_gradient(
                &walk.g, lane_sums + m * taps * lanes * size,
                pixel(&w.grad_y, where.n0, part.channel0 + m, where.i0, where.j0))
    w.kernels.mean_rows(sums, 1, lane_sums, lanes, part.channels * taps, lanes, 1)
    if w.chunks == 1:
        store_depthwise_planes(w, &part, sums)


cdef inline void store_depthwise_planes(
    const gradient_of_weight *w, const gradient_part *p, const char *sums
) noexcept nogil:
    """sums[channel][tap] are the weights' own order."""
    cdef isize bytes = w.taps.count * w.kernels.itemsize
    memcpy(w.grad_weight + p.channel0 * bytes, sums, p.channels * bytes)


cdef inline void plan_depthwise_planes_gradient(
    gradient_of_weight *w
) noexcept nogil:
    # all channels are one group's here: a part is some of them
    w.channels, w.groups = w.groups, 1
    w.some_filters = 1
    w.some_channels = even_share(w.channels, max(
        1, SUMS_BYTES // (w.taps.count * w.kernels.lanes * w.kernels.itemsize)))
    w.grid = grid_of_planes(&w.grad_y)
    w.part_size = w.some_channels * w.taps.count
