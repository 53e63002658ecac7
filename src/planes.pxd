# The direct sum for few channels or few filters (first layers, their gradients,
# groups, depthwise): rows of A are filters, vectors are pixels of planes. A task
# copies the planes of a box, with zeros around, so that the outputs of all its rows
# are one run of positions; the positions between rows are computed and dropped.
#
# With strides, a plane is split into its stride_h * stride_w phases first: then
# neighbouring outputs are neighbours in memory for every tap.

from boxes cimport box, box_at, box_grid, cut, halve, tap_list
from correlate cimport aligned, correlation, plane_band
from geometry cimport ceil_div, image, pixel
from kernels cimport (
    CNN_ADD, CNN_BIAS, CNN_LINEAR, CNN_ZERO, cnn_kernels, cnn_plane_kernel,
    cnn_plane_tile, isize,
)
from libc.string cimport memset

cdef enum:
    PLANES_BYTES = 256 << 10            # of a task's band


cdef inline plane_band plane_band_of(
    const box_grid *grid, const tap_list *taps
) noexcept nogil:
    cdef plane_band b
    b.rows = grid.box_h + (taps.dy_max - taps.dy_min) // taps.sy
    b.pitch = grid.box_w + (taps.dx_max - taps.dx_min) // taps.sx
    b.phase_step = b.rows * b.pitch
    b.channel_step = b.phase_step * (
        min(taps.sy, taps.dy_max - taps.dy_min + 1)
        * min(taps.sx, taps.dx_max - taps.dx_min + 1))
    return b


cdef inline isize plane_offset(
    const plane_band *b, const tap_list *taps, isize tap
) noexcept nogil:
    """Where tap `tap` of the box's first output lies in a channel's planes."""
    cdef isize dy = taps.dy[tap] - taps.dy_min, dx = taps.dx[tap] - taps.dx_min
    cdef isize phases = min(taps.sx, taps.dx_max - taps.dx_min + 1)
    return (
        (dy % taps.sy * phases + dx % taps.sx) * b.phase_step
        + dy // taps.sy * b.pitch + dx // taps.sx)


cdef inline void fill_planes(
    char *to, const plane_band *b, const box *where, const tap_list *taps,
    const cnn_kernels *kernels, const image *src, isize channel, isize channels,
) noexcept nogil:
    """Copy the source pixels of a box of one image, phase by phase.

    What is left of the planes is cleared, for vectors reach into it: old bits may be
    subnormal numbers, which cost a hundred times as much. All of them are cleared at
    once: many short rows are many calls.
    """
    cdef isize size = kernels.itemsize, py, px, row, y, first, x0, x1
    cdef isize phases_y = min(taps.sy, taps.dy_max - taps.dy_min + 1)
    cdef isize phases_x = min(taps.sx, taps.dx_max - taps.dx_min + 1)
    cdef isize rows = where.i1 - where.i0 + (taps.dy_max - taps.dy_min) // taps.sy
    y, first = where.i0 * taps.sy + taps.dy_min, where.j0 * taps.sx + taps.dx_min
    if (rows < b.rows or y < 0 or y + rows * taps.sy > src.h
            or first < 0 or first + b.pitch * taps.sx > src.w):
        memset(to, 0, channels * b.channel_step * size)
    for py in range(phases_y):
        for px in range(phases_x):
            # columns first + q*sx, x0 <= q < x1, lie inside of the image
            first = where.j0 * taps.sx + taps.dx_min + px
            x0 = ceil_div(-first, taps.sx) if first < 0 else 0
            x1 = min(ceil_div(src.w - first, taps.sx), b.pitch)
            for row in range(rows):
                y = (where.i0 + row) * taps.sy + taps.dy_min + py
                if 0 <= y < src.h and x1 > x0:
                    kernels.copy(
                        to + x0 * size, b.channel_step, 1,
                        pixel(src, where.n0, channel, y, first + x0 * taps.sx),
                        src.step_c, taps.sx * src.step_w, channels, x1 - x0)
                to += b.pitch * size
            to += (b.rows - rows) * b.pitch * size


cdef inline double plane_cost(
    const cnn_plane_kernel *k, isize filters
) noexcept nogil:
    """Cycles of a kernel shape for one vector of all filters: sums or loads.

    Two of each go through in a cycle; a vector that crosses cache lines loads twice.
    """
    return ceil_div(filters, k.rows) * max(
        <double> k.rows * k.vectors, k.rows + 1.7 * k.vectors) / k.vectors


cdef inline const cnn_plane_kernel *plane_kernel_for(
    const cnn_kernels *kernels, isize filters
) noexcept nogil:
    cdef const cnn_plane_kernel *best = kernels.plane_tile
    cdef const cnn_plane_kernel *k = best + 1
    while k.rows > 0:
        if plane_cost(k, filters) <= plane_cost(best, filters):
            best = k
        k += 1
    return best


# What a task's scratch holds, in bytes from its start; sums' rows in elements.
cdef struct plane_space:
    isize tile, positions               # positions: of one row of sums
    isize sums, total


cdef inline plane_space plane_space_of(const correlation *c) noexcept nogil:
    cdef plane_space s
    cdef isize size = c.kernels.itemsize
    s.tile = c.plane.vectors * c.kernels.lanes
    s.positions = ceil_div(c.grid.box_h * c.planes.pitch, s.tile) * s.tile
    # a tile reads on beyond the last row's last output
    s.sums = aligned(size * (
        c.gang * c.depth_now * c.planes.channel_step + s.tile + c.planes.pitch))
    s.total = s.sums + c.gang * c.outs * s.positions * size
    return s


cdef inline bint weights_as_they_lie(const correlation *c) noexcept nogil:
    """Whether weight[m][d][t] is in the order that the tiles read."""
    return not c.transposed and c.taps.count == c.weight_taps


cdef inline void pack_planes(const correlation *c, isize group) noexcept nogil:
    """weight -> panel[m][d][t] of one group."""
    cdef isize taps = c.weight_taps, count = c.taps.count, size = c.kernels.itemsize, t
    cdef isize step_m = c.depth * taps, step_d = taps
    cdef char *to = c.panels + (group - c.group0) * c.panel_bytes
    cdef const char *weight = c.weight + group * c.outs * c.depth * taps * size
    if c.transposed:
        step_m, step_d = taps, c.outs * taps
    for t in range(taps):
        if c.order[t] >= 0:
            c.kernels.copy(
                to + c.order[t] * size, c.depth * count, count,
                weight + t * size, step_m, step_d, c.outs, c.depth)


cdef inline void offsets_of_planes(correlation *c) noexcept nogil:
    """c.to[d, t]: from an output's position to its pixel for channel d and tap t."""
    cdef isize d, t
    for d in range(c.depth_now):
        for t in range(c.taps.count):
            c.to[d * c.taps.count + t] = (
                d * c.planes.channel_step + plane_offset(&c.planes, &c.taps, t))


cdef inline void plane_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef isize size = kernels.itemsize, count = c.taps.count
    cdef isize gangs = ceil_div(c.group1 - c.group0, c.gang)
    cdef isize group = c.group0 + task % gangs * c.gang
    cdef isize groups = min(c.gang, c.group1 - group)
    cdef box where = box_at(&c.grid, task // gangs)
    cdef plane_space space = plane_space_of(c)
    cdef isize rows = where.i1 - where.i0, cols = where.j1 - where.j0
    cdef isize last = (rows - 1) * c.planes.pitch + cols
    cdef isize d, g, m, p, i
    cdef char *sums = scratch + space.sums
    cdef char *result = pixel(&c.dst, where.n0, group * c.outs, where.i0, where.j0)
    # a filter's sums go to one run of memory
    cdef bint rows_lie = c.dst.step_w == 1 and c.dst.step_h == cols
    cdef const char *weights
    cdef cnn_plane_tile q
    q.next_step = c.dst.step_c
    q.a_step, q.c_step, q.at = c.depth * count, space.positions, c.to
    d = 0
    while True:
        # several groups, or a chunk of the channels of one
        q.depth = min(c.depth_now, c.depth - d) * count
        fill_planes(scratch, &c.planes, &where, &c.taps, kernels, &c.src,
                    group * c.depth + d,
                    groups * c.depth if c.gang > 1 else min(c.depth_now, c.depth - d))
        memset(
            scratch + size * c.planes.channel_step * (
                groups * c.depth if c.gang > 1 else min(c.depth_now, c.depth - d)),
            0, (space.tile + c.planes.pitch) * size)
        q.start = CNN_ADD
        if d == 0:
            q.start = CNN_ZERO if c.bias == NULL else CNN_BIAS
        q.activation = CNN_LINEAR
        if d + c.depth_now >= c.depth:
            q.activation = c.activation
        # weight[filters x depth] . planes[depth x positions] -> sums
        for g in range(groups):
            weights = c.panels + (group + g - c.group0) * c.panel_bytes
            if weights_as_they_lie(c):
                weights = c.weight + (group + g) * c.outs * q.a_step * size
            for p in range(ceil_div(last, space.tile)):
                q.b = scratch + size * (
                    g * c.depth * c.planes.channel_step + p * space.tile)
                for i in range(ceil_div(c.outs, c.plane.rows)):
                    m = i * c.plane.rows
                    q.rows = min(c.plane.rows, c.outs - m)
                    q.a = weights + (m * q.a_step + d * count) * size
                    q.c = sums + size * (
                        (g * c.outs + m) * space.positions + p * space.tile)
                    q.next = NULL
                    if rows_lie:
                        q.next = result + size * (
                            (g * c.outs + m) * c.dst.step_c
                            + p * space.tile * cols // c.planes.pitch)
                    if c.bias != NULL:
                        q.bias = c.bias + ((group + g) * c.outs + m) * size
                    c.plane.run(&q)
        d += c.depth_now
        if d >= c.depth:
            break
    if c.dst.step_c == 1:
        for i in range(rows):
            kernels.copy(
                pixel(&c.dst, where.n0, group * c.outs, where.i0 + i, where.j0),
                c.dst.step_w, 1, sums + i * c.planes.pitch * size, 1,
                space.positions, cols, groups * c.outs)
        return
    for m in range(groups * c.outs):
        kernels.copy(
            pixel(&c.dst, where.n0, group * c.outs + m, where.i0, where.j0),
            c.dst.step_h, c.dst.step_w, sums + m * space.positions * size,
            c.planes.pitch, 1, rows, cols)


cdef inline void plan_planes(correlation *c) noexcept nogil:
    """Choose boxes and chunks of channels from the geometry alone."""
    cdef isize size = c.kernels.itemsize
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w
    c.plane = plane_kernel_for(c.kernels, c.outs)
    c.grid = cut(1, c.dst.h, c.dst.w, min(max(pixels // 8, 256), 4096))
    c.grid.n = c.grid.count_n = c.dst.n
    c.depth_now = c.depth
    c.planes = plane_band_of(&c.grid, &c.taps)
    # all the sums of a box stay in the second-level cache
    while c.outs * c.grid.box_h * c.planes.pitch * size > 2 * PLANES_BYTES:
        if not halve(&c.grid, 64):
            break
        c.planes = plane_band_of(&c.grid, &c.taps)
    while c.depth_now * c.planes.channel_step * size > PLANES_BYTES:
        if c.depth_now > 1:
            c.depth_now = ceil_div(c.depth_now, 2)
        elif not halve(&c.grid, 64):
            break
        c.planes = plane_band_of(&c.grid, &c.taps)
    # groups of few channels share a task, so that its copies move whole vectors
    c.gang = 1
    if c.depth_now == c.depth:
        c.gang = min(c.groups, ceil_div(16, max(c.depth, c.outs)))
    c.panel_bytes = 0
    if not weights_as_they_lie(c):
        c.panel_bytes = aligned(c.outs * c.depth * c.taps.count * size)
