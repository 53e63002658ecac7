# The direct sum: tiles of mr pixels x block channels. The rows of A are source
# pixels, where they lie (channels last) or in a band copied that way; B is a panel of
# weights [tap][channel][out].

from boxes cimport (
    band_elements, band_of, band_offset, box, box_at, box_pixels, cut, fill_band,
    halve, tap_list,
)
from correlate cimport (
    aligned, bias_panel, correlation, move_tile, pack_block, panel, width_of,
)
from geometry cimport ceil_div, pixel
from kernels cimport CNN_ADD, cnn_kernels, cnn_tile, isize, run_tile
from libc.string cimport memset

# Bounds of scratch memory, in bytes: all panels of a pass, a task's band.
cdef enum:
    PANEL_BYTES = 4 << 20
    BAND_BYTES = 1 << 20


cdef inline void direct_pack_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef isize group = c.group0 + task // (c.block1 - c.block0)
    cdef isize block = c.block0 + task % (c.block1 - c.block0)
    pack_block(c, group, block, panel(c, group, block))


cdef inline void point_at_source(
    const correlation *c, const box *where, isize group, const void **a,
    const char *source, const char *zeros,
) noexcept nogil:
    """Fill a[tile][run][row]: the pixel that each row of A starts from."""
    cdef const tap_list *taps = &c.taps
    cdef isize mr = c.kernels.mr, size = c.kernels.itemsize
    cdef isize runs = taps.count // taps.wide
    cdef isize n, i, t, y, x, at, lane = 0, _j
    cdef isize col_step
    cdef const char *base
    cdef const void **to = a
    cdef bint inside
    for n in range(where.n0, where.n1):
        for i in range(where.i0, where.i1):
            if c.banded:
                base = source + size * (
                    (n - where.n0) * c.around.image_step
                    + (i - where.i0) * taps.sy * c.around.row_step)
                col_step = taps.sx * c.around.channels * size
            else:
                base = pixel(
                    &c.src, n, group * c.depth + c.depth0, i * taps.sy,
                    where.j0 * taps.sx)
                col_step = taps.sx * c.src.step_w * size
            y = i * taps.sy
            inside = c.banded or not c.padded
            x = where.j0 * taps.sx
            for _j in range(where.j1 - where.j0):
                if inside or (
                    y + taps.dy_min >= 0 and y + taps.dy_max < c.src.h
                    and x + taps.dx_min >= 0 and x + taps.dx_max < c.src.w
                ):
                    for t in range(runs):
                        to[t * mr + lane] = base + c.to[t]
                else:
                    for t in range(runs):
                        at = t * taps.wide
                        if (0 <= y + taps.dy[at] < c.src.h
                                and 0 <= x + taps.dx[at] < c.src.w):
                            to[t * mr + lane] = base + c.to[t]
                        else:
                            to[t * mr + lane] = zeros
                base += col_step
                x += taps.sx
                lane += 1
                if lane == mr:
                    lane = 0
                    to += runs * mr
    if lane:  # rows of the last tile that nobody will store
        for i in range(lane, mr):
            for t in range(runs):
                to[t * mr + i] = to[t * mr]


cdef inline void point_at_result(
    const correlation *c, const box *where, isize group, void **to, char *tile
) noexcept nogil:
    """Fill to[pixel]: where each row of C begins, in dst or in the scratch tile."""
    cdef isize n, i, p = 0, _j
    cdef isize step = c.dst.step_w * c.dst.itemsize
    cdef char *row = tile
    if not c.direct:
        step = c.block * c.dst.itemsize
    for n in range(where.n0, where.n1):
        for i in range(where.i0, where.i1):
            if c.direct:
                row = pixel(&c.dst, n, group * c.outs, i, where.j0)
            for _j in range(where.j1 - where.j0):
                to[p] = row
                row += step
                p += 1
    for i in range(ceil_div(p, c.kernels.mr) * c.kernels.mr - p):
        to[p + i] = to[p - 1]


# What a task's scratch holds, in bytes from its start.
cdef struct direct_space:
    isize a, c, tile, zeros, total


cdef inline direct_space direct_space_of(const correlation *c) noexcept nogil:
    cdef direct_space w
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr
    cdef isize rows = ceil_div(box_pixels(&c.grid), mr) * mr
    w.a = aligned(band_elements(&c.grid, &c.around) * size) if c.banded else 0
    w.c = w.a + aligned(
        rows * (c.taps.count // c.taps.wide) * <isize> sizeof(void *))
    w.tile = w.c + aligned(rows * <isize> sizeof(void *))
    w.zeros = w.tile + (0 if c.direct else aligned(rows * c.block * size))
    w.total = w.zeros + (0 if c.banded else aligned(c.depth_now * size))
    return w


cdef inline void direct_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef isize mr = kernels.mr, size = kernels.itemsize
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0
    cdef isize split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef isize runs = c.taps.count // c.taps.wide
    cdef isize pixels = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef direct_space w = direct_space_of(c)
    cdef isize block, p, width
    cdef cnn_tile q
    if c.banded:
        fill_band(scratch, &c.around, &where, &c.taps, kernels, &c.src,
                  group * c.depth + c.depth0, c.depth_now)
    else:
        memset(scratch + w.zeros, 0, c.depth_now * size)
    point_at_source(c, &where, group, <const void **> (scratch + w.a), scratch,
                    scratch + w.zeros)
    point_at_result(c, &where, group, <void **> (scratch + w.c), scratch + w.tile)
    q.batches = runs
    q.depth = c.depth_now * c.taps.wide
    q.a_next, q.a_move, q.a_from, q.a_step = mr, 0, 0, 1
    q.start, q.activation = c.start, c.end
    for block in range(c.block0 + split * count // c.splits,
                       c.block0 + (split + 1) * count // c.splits):
        width = width_of(c, block)
        q.cols = min(width, c.outs - block * c.block)
        q.b = panel(c, group, block)
        q.b_move, q.b_step = q.depth * width, width
        q.bias = bias_panel(c, group, block)
        q.c_move = block * c.block if c.direct else 0
        if not c.direct and c.start == CNN_ADD:
            move_tile(c, &where, group * c.outs + block * c.block, q.cols,
                      scratch + w.tile, True)
        # weight[block x taps*depth] . pixels[taps*depth x mr] -> dst, tile by tile
        for p in range(ceil_div(pixels, mr)):
            q.rows = min(mr, pixels - p * mr)
            q.a = <const void **> (scratch + w.a) + p * mr * runs
            q.c = <void **> (scratch + w.c) + p * mr
            run_tile(kernels, &q, width)
        if not c.direct:
            move_tile(c, &where, group * c.outs + block * c.block, q.cols,
                      scratch + w.tile, False)


cdef inline isize direct_panel_bytes(const correlation *c) noexcept nogil:
    return c.taps.count * c.depth_now * c.block * c.kernels.itemsize


cdef inline void plan_direct(correlation *c) noexcept nogil:
    """Choose boxes, bands and chunks from the geometry alone."""
    cdef const cnn_kernels *kernels = c.kernels
    cdef tap_list *taps = &c.taps
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w, least = kernels.mr
    c.padded = (
        taps.dy_min < 0 or taps.dx_min < 0
        or (c.dst.h - 1) * taps.sy + taps.dy_max >= c.src.h
        or (c.dst.w - 1) * taps.sx + taps.dx_max >= c.src.w
    )
    c.depth_now = c.depth
    while c.depth_now > 1 and direct_panel_bytes(c) > PANEL_BYTES:
        c.depth_now = ceil_div(c.depth_now, 2)

    # a tile's panel is read once for every mr pixels: boxes of 24 tiles keep it
    # in the first caches; fewer where the work would not make eight tasks
    c.grid = cut(c.dst.n, c.dst.h, c.dst.w,
                 min(max(pixels // 8, 4 * least), 24 * least))
    # taps that lie side by side in the band make one long run of A
    c.banded = (
        (c.src.step_c != 1 and c.depth > 1)
        or (taps.wide > 1 and c.depth < kernels.lanes)
    )
    if not c.banded:
        taps.wide = 1
        c.panel_bytes = direct_panel_bytes(c)
        return
    c.around = band_of(&c.grid, taps, c.depth_now)
    while band_elements(&c.grid, &c.around) * kernels.itemsize > BAND_BYTES:
        if not halve(&c.grid, least):
            if c.depth_now == 1:
                break
            c.depth_now = ceil_div(c.depth_now, 2)
        c.around = band_of(&c.grid, taps, c.depth_now)
    c.panel_bytes = direct_panel_bytes(c)


cdef inline void offsets_of_taps(correlation *c) noexcept nogil:
    """c.to[run]: bytes from an output's base to the run's first source pixel."""
    cdef isize t, size = c.kernels.itemsize
    for t in range(c.taps.count // c.taps.wide):
        if c.banded:
            c.to[t] = size * band_offset(&c.around, &c.taps, t * c.taps.wide)
        else:
            c.to[t] = size * (
                c.taps.dy[t] * c.src.step_h + c.taps.dx[t] * c.src.step_w)
