# Depthwise convolution of planes (NCHW): one channel in, one out a group. Lanes are
# columns of a row. A task copies the rows of some planes, one after the other, into
# one small band with zeros around, which stays in the first-level cache, and stores
# outputs where they belong. The gradient of the weights beside the sum itself.

from boxes cimport box, box_at, box_grid, boxes, cut, tap_list
from correlate cimport DEPTHWISE_PLANES, aligned, correlation
from depthwise cimport has_pairs
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_PLANE_HIGH, cnn_depthwise_plane, cnn_kernels, cnn_runtime, isize,
)
from libc.string cimport memcpy, memset
from weight_gradient cimport gradient_of_weight, gradient_part, part_of, partial_sums

# Outputs of a box and of a task, about; bytes of a gradient's sums.
cdef enum:
    BOX_OUTPUTS = 3072
    PHASE_OUTPUTS = 12288               # of all phases: whole planes are one stream
    TASK_OUTPUTS = 16384
    SUMS_BYTES = 64 << 10


# The band of a box's source rows, [row][phase of the columns][pitch], in elements.
cdef struct column_band:
    isize rows, phases, phase_step, pitch
    isize tables, pixels                # bytes


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
    b.pixels = aligned(
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
    const cnn_kernels *kernels, const column_band *band, const box *where,
    const tap_list *taps, const isize *order, isize weight_taps, const image *src,
    isize y_step, char *tables, char *pixels,
) noexcept nogil:
    """List where the taps lie in the band, whose pixels the caller clears."""
    cdef plane_walk w
    cdef isize *down = <isize *> tables
    cdef isize *at = down + taps.rows
    cdef isize *tap = at + taps.count
    cdef isize cols = taps.count // max(1, taps.rows), r, s, left
    cdef isize lanes = kernels.lanes
    w.kernels, w.band, w.pixels = kernels, band[0], pixels
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
    cdef column_band band = column_band_of(c.kernels, &j.grid, &c.taps)
    cdef plane_walk w = begin_box(
        c.kernels, &band, &where, &c.taps, c.order, c.weight_taps, &c.src,
        c.dst.step_h, scratch, scratch + band.tables)
    memset(w.pixels, 0, band.pixels)
    for m in range(task % parts * j.some,
                   min(c.groups, (task % parts + 1) * j.some)):
        copy_plane(&w, &c.src, where.n0, m, c.taps.sx)
        if c.bias != NULL:
            bias = c.bias + m * size
        c.kernels.depthwise_plane(
            &w.g, pixel(&c.dst, where.n0, m, where.i0, where.j0),
            c.weight + m * c.weight_taps * size, bias, c.activation)


cdef inline box_grid grid_of_planes(const image *dst, isize outputs) noexcept nogil:
    cdef box_grid grid = cut(1, dst.h, dst.w, outputs)
    grid.n = grid.count_n = dst.n
    return grid


cdef inline int correlate_depthwise_planes(
    const cnn_runtime *runtime, const correlation *c
) noexcept nogil:
    cdef planes_job j
    cdef column_band band
    j.c, j.grid = c, grid_of_planes(&c.dst, BOX_OUTPUTS)
    j.some = even_share(
        c.groups, max(1, TASK_OUTPUTS // (j.grid.box_h * j.grid.box_w)))
    band = column_band_of(c.kernels, &j.grid, &c.taps)
    return runtime.run(
        depthwise_planes_task, &j, boxes(&j.grid) * ceil_div(c.groups, j.some),
        band.tables + band.pixels,
        <double> c.groups * c.dst.n * c.dst.h * c.dst.w * c.weight_taps)


# --- phases of a strided gradient of the input --------------------------------------
#
# A box of one plane of grad_y is copied once for all of them; their outputs are made side
# by side, then stored in turn.


cdef inline bint is_phased_planes(
    correlation *c, isize down, isize across
) noexcept nogil:
    """The phases of a strided gradient of the input, depthwise, in planes: one pass
    makes them together, for their outputs interleave. (As many as the caches hold.)"""
    if (has_pairs(c) and c.src.step_w == 1 and c.dst.step_w == across
            and 1 < across and down * across <= 64):
        c.algorithm = DEPTHWISE_PLANES
        return True
    return False


cdef struct phases_job:
    const correlation *phase            # the first has the most outputs
    isize down, across
    isize row_step                      # of all phases' outputs
    box_grid grid                       # of the first's
    column_band band                    # with room for every phase's taps
    isize some                          # channels of a task


# A task's sums, [phase][row][pitch], behind each phase's tables and the band; in bytes
# from its start, steps in elements.
cdef struct phases_space:
    isize pitch, step                   # from row to row, from phase to phase
    isize walks, pixels, sums, total


cdef inline phases_space phases_space_of(const phases_job *j) noexcept nogil:
    cdef phases_space s
    cdef isize count = j.down * j.across
    s.pitch = in_vectors(j.phase.kernels, j.grid.box_w)
    s.step = j.grid.box_h * s.pitch
    s.walks = count * j.band.tables
    s.pixels = s.walks + aligned(count * <isize> sizeof(plane_walk))
    s.sums = s.pixels + j.band.pixels
    s.total = s.sums + aligned(count * s.step * j.phase.kernels.itemsize)
    return s


cdef inline void plane_phases_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const phases_job *j = <const phases_job *> job
    cdef const correlation *c = j.phase
    cdef const cnn_kernels *kernels = c.kernels
    cdef isize size = kernels.itemsize, parts = ceil_div(c.groups, j.some)
    cdef isize count = j.down * j.across, m, p, rows = 0, cols = 0
    cdef box whole = box_at(&j.grid, task // parts), where
    cdef phases_space s = phases_space_of(j)
    cdef plane_walk *walk = <plane_walk *> (scratch + s.walks)
    for p in range(count):
        c, where = j.phase + p, whole
        where.i1, where.j1 = min(where.i1, c.dst.h), min(where.j1, c.dst.w)
        walk[p] = begin_box(
            kernels, &j.band, &where, &c.taps, c.order, c.weight_taps, &c.src, s.pitch,
            scratch + p * j.band.tables, scratch + s.pixels)
        if p < j.across:
            cols += max(0, walk[p].g.cols)
        if p % j.across == 0:
            rows += max(0, walk[p].g.rows)
    memset(scratch + s.pixels, 0, j.band.pixels)
    for m in range(task % parts * j.some,
                   min(c.groups, (task % parts + 1) * j.some)):
        copy_plane(walk, &c.src, whole.n0, m, 1)
        for p in range(count):
            kernels.depthwise_plane(
                &walk[p].g, scratch + s.sums + p * s.step * size,
                c.weight + m * c.weight_taps * size, NULL, c.activation)
        # from row to row of a phase lie all of its neighbours' rows
        kernels.put_phases(
            pixel(&j.phase.dst, whole.n0, m, whole.i0, whole.j0),
            j.row_step, scratch + s.sums, s.pitch, s.step, j.down,
            j.across, rows, cols)


cdef inline int correlate_plane_phases(
    const cnn_runtime *runtime, correlation *phase, isize down, isize across,
    isize row_step,
) noexcept nogil:
    cdef phases_job j
    cdef isize p, tables = 0
    cdef tap_list all = phase.taps
    cdef tap_list *taps
    # each phase's taps are counted from the first of all
    for p in range(down * across):
        taps = &phase[p].taps
        if taps.count > 0:
            if all.count == 0:
                all = taps[0]
            all.dy_min, all.dy_max = (
                min(all.dy_min, taps.dy_min), max(all.dy_max, taps.dy_max))
            all.dx_min, all.dx_max = (
                min(all.dx_min, taps.dx_min), max(all.dx_max, taps.dx_max))
    j.phase, j.down, j.across, j.row_step = phase, down, across, row_step
    j.grid = grid_of_planes(&phase.dst, max(64, PHASE_OUTPUTS // (down * across)))
    for p in range(down * across):
        taps = &phase[p].taps
        taps.dy_min, taps.dy_max = all.dy_min, all.dy_max
        taps.dx_min, taps.dx_max = all.dx_min, all.dx_max
        j.band = column_band_of(phase.kernels, &j.grid, taps)
        tables = max(tables, j.band.tables)
    j.band.tables = tables
    j.some = even_share(phase.groups, max(
        1, TASK_OUTPUTS // (j.grid.box_h * j.grid.box_w * down * across)))
    return runtime.run(
        plane_phases_task, &j, boxes(&j.grid) * ceil_div(phase.groups, j.some),
        phases_space_of(&j).total,
        <double> phase.groups * phase.src.n * phase.src.h * phase.src.w
        * phase.weight_taps)


# --- gradient of the weights -----------------------------------------------------


cdef inline isize lane_sums_bytes(const gradient_of_weight *w) noexcept nogil:
    return aligned(
        w.part_size * w.kernels.lanes * w.kernels.itemsize)


cdef inline isize depthwise_planes_gradient_space(
    const gradient_of_weight *w
) noexcept nogil:
    cdef column_band band = column_band_of(w.kernels, &w.grid, &w.taps)
    return (
        lane_sums_bytes(w) + aligned(w.part_size * w.kernels.itemsize)
        + band.tables + band.pixels)


cdef inline void depthwise_planes_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize size = w.kernels.itemsize, lanes = w.kernels.lanes
    cdef isize taps = w.taps.count, b, m
    cdef gradient_part part = part_of(w, task)
    cdef char *lane_sums = scratch      # [channel][tap][lane]
    cdef char *sums = scratch + lane_sums_bytes(w)
    cdef char *tables = sums + aligned(w.part_size * size)
    cdef column_band band = column_band_of(w.kernels, &w.grid, &w.taps)
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
            w.kernels, &band, &where, &w.taps, NULL, 0, &w.x, w.grad_y.step_h, tables,
            tables + band.tables)
        memset(walk.pixels, 0, band.pixels)
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
    w.grid = grid_of_planes(&w.grad_y, BOX_OUTPUTS)
    w.part_size = w.some_channels * w.taps.count
