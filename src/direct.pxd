# The direct sum: tiles of mr pixels x block channels. The rows of A are source
# pixels, where they lie (channels last) or in a band copied that way; B is a panel of
# weights [tap][channel][out].

from boxes cimport (
    band_elements, band_of, band_offset, box, box_at, box_pixels, cut, fill_band,
    halve, meets_padding, tap_list,
)
from correlate cimport (
    aligned, bias_panel, correlation, move_sums, pack_block, panel, width_of,
)
from geometry cimport ceil_div, pixel
from kernels cimport CACHE_LINE, CNN_ADD, cnn_kernels, cnn_tile, isize, run_tile
from libc.string cimport memset

# Bounds of scratch memory, in bytes: all panels of a pass, a task's band.
cdef enum:
    PANEL_BYTES = 4 << 20
    BAND_BYTES = 1 << 20
    FEW_PANEL_BYTES = 512 << 10


cdef inline void direct_pack_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef isize group = c.group0 + task // (c.block1 - c.block0)
    cdef isize block = c.block0 + task % (c.block1 - c.block0)
    pack_block(c, group, block, panel(c, group, block))


# A box's pixels in the order in which tiles take them: row by row, or column by
# column where the kernel is wider than high (c.by_columns).
cdef struct pixel_order:
    isize lines, run                    # `lines` times `run` pixels
    isize line_i, line_j, step_i, step_j


cdef inline pixel_order order_of(const correlation *c, const box *where) noexcept nogil:
    cdef pixel_order o
    o.lines, o.run = where.i1 - where.i0, where.j1 - where.j0
    o.line_i, o.line_j, o.step_i, o.step_j = 1, 0, 0, 1
    if c.by_columns:
        o.lines, o.run = o.run, o.lines
        o.line_i, o.line_j, o.step_i, o.step_j = 0, 1, 1, 0
    return o


# What a tile's pixels reach in the source.
cdef struct tile_reach:
    isize first, count                  # runs of taps: the others meet padding alone
    bint inside                         # no tap of any pixel meets padding


cdef inline tile_reach reach_of(
    const correlation *c, const box *where, const pixel_order *o, isize p, isize last
) noexcept nogil:
    """The reach of pixels p to `last` of a box."""
    cdef const tap_list *taps = &c.taps
    cdef isize line0 = p // o.run, line1 = last // o.run, v0, v1
    cdef isize y0, y1, x0, x1           # source pixels of the kernel's origin
    cdef bint single = taps.rows == 1   # then columns rise as rows do elsewhere
    cdef tile_reach r
    v0, v1 = 0, o.run - 1
    if line0 == line1:
        v0, v1 = p - line0 * o.run, last - line0 * o.run
    if line0 // o.lines == line1 // o.lines:
        line0, line1 = line0 % o.lines, line1 % o.lines
    else:
        line0, line1 = 0, o.lines - 1
    y0 = (where.i0 + line0 * o.line_i + v0 * o.step_i) * taps.sy
    y1 = (where.i0 + line1 * o.line_i + v1 * o.step_i) * taps.sy
    x0 = (where.j0 + line0 * o.line_j + v0 * o.step_j) * taps.sx
    x1 = (where.j0 + line1 * o.line_j + v1 * o.step_j) * taps.sx
    r.inside = (
        y0 + taps.dy_min >= 0 and y1 + taps.dy_max < c.src.h
        and x0 + taps.dx_min >= 0 and x1 + taps.dx_max < c.src.w)
    r.first, last = 0, taps.count
    while not r.inside and r.first < last and (
            y1 + taps.dy[r.first] < 0 or single and x1 + taps.dx[r.first] < 0):
        r.first += 1
    while not r.inside and last > r.first and (
            y0 + taps.dy[last - 1] >= c.src.h
            or single and x0 + taps.dx[last - 1] >= c.src.w):
        last -= 1
    r.first //= taps.wide
    r.count = ceil_div(last, taps.wide) - r.first
    return r


cdef inline void point_at_source(
    const correlation *c, const box *where, const pixel_order *o, isize group,
    const void **a, const char *band,
) noexcept nogil:
    """Fill a[pixel]: where its taps are counted from, in the band or in src."""
    cdef const tap_list *taps = &c.taps
    cdef isize size = c.kernels.itemsize, n, u, p = 0, _v
    cdef isize row_step, col_step, step
    cdef const char *image
    cdef const char *base
    if c.banded:
        row_step = taps.sy * c.around.row_step * size
        col_step = taps.sx * c.around.channels * size
    else:
        row_step = taps.sy * c.src.step_h * size
        col_step = taps.sx * c.src.step_w * size
    step = o.step_i * row_step + o.step_j * col_step
    for n in range(where.n0, where.n1):
        if c.banded:
            image = band + size * (n - where.n0) * c.around.image_step
        else:
            image = pixel(&c.src, n, group * c.depth + c.depth0,
                          where.i0 * taps.sy, where.j0 * taps.sx)
        for u in range(o.lines):
            base = image + u * (o.line_i * row_step + o.line_j * col_step)
            for _v in range(o.run):
                a[p] = base
                base += step
                p += 1
    for u in range(ceil_div(p, c.kernels.mr) * c.kernels.mr - p):
        a[p + u] = a[p - 1]             # rows that nobody will store


cdef inline void point_around(
    const correlation *c, const box *where, const pixel_order *o, isize p,
    isize count, const void *const *a, const void **to, const char *zeros,
) noexcept nogil:
    """Fill to[run][row] for the `count` pixels from p on, with zeros for padding."""
    cdef const tap_list *taps = &c.taps
    cdef isize mr = c.kernels.mr, size = c.kernels.itemsize, runs = taps.count
    cdef isize t, y, x, lane, u = p // o.run % o.lines, v = p % o.run
    cdef const char *base
    for lane in range(count):
        y = (where.i0 + u * o.line_i + v * o.step_i) * taps.sy
        x = (where.j0 + u * o.line_j + v * o.step_j) * taps.sx
        base = <const char *> a[lane]
        for t in range(runs):
            to[t * mr + lane] = base + c.to[t] * size
        if (y + taps.dy_min < 0 or y + taps.dy_max >= c.src.h
                or x + taps.dx_min < 0 or x + taps.dx_max >= c.src.w):
            for t in range(runs):
                if not (0 <= y + taps.dy[t] < c.src.h
                        and 0 <= x + taps.dx[t] < c.src.w):
                    to[t * mr + lane] = zeros
        v += 1
        if v == o.run:
            v, u = 0, (u + 1) % o.lines
    for lane in range(count, mr):       # rows that nobody will store
        for t in range(runs):
            to[t * mr + lane] = to[t * mr]


cdef inline void point_at_result(
    const correlation *c, const box *where, const pixel_order *o, isize group,
    void **to, char *tile,
) noexcept nogil:
    """Fill to[pixel]: where each row of C begins, in dst or in the scratch tile."""
    cdef isize n, u, p = 0, _v, size = c.dst.itemsize
    cdef isize row_step, col_step, step
    cdef char *image = tile
    cdef char *row
    if c.direct:
        row_step, col_step = c.dst.step_h * size, c.dst.step_w * size
    else:
        col_step = c.block * size
        row_step = col_step * (where.j1 - where.j0)
    step = o.step_i * row_step + o.step_j * col_step
    for n in range(where.n0, where.n1):
        if c.direct:
            image = pixel(&c.dst, n, group * c.outs, where.i0, where.j0)
        for u in range(o.lines):
            row = image + u * (o.line_i * row_step + o.line_j * col_step)
            for _v in range(o.run):
                to[p] = row
                row += step
                p += 1
        if not c.direct:
            image += o.lines * o.run * col_step
    for u in range(ceil_div(p, c.kernels.mr) * c.kernels.mr - p):
        to[p + u] = to[p - 1]


# What a task's scratch holds, in bytes from its start.
cdef struct direct_space:
    isize a, around, c, reach, tile, zeros, total


cdef inline direct_space direct_space_of(const correlation *c) noexcept nogil:
    cdef direct_space w
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr
    cdef isize rows = ceil_div(box_pixels(&c.grid), mr) * mr
    w.a = aligned(band_elements(&c.grid, &c.around) * size) if c.banded else 0
    w.around = w.a + aligned(rows * <isize> sizeof(void *))
    w.c = w.around
    if c.padded and not c.banded:
        w.c += aligned(rows * c.taps.count * <isize> sizeof(void *))
    w.reach = w.c + aligned(rows * <isize> sizeof(void *))
    w.tile = w.reach + aligned(rows // mr * <isize> sizeof(tile_reach))
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
    cdef pixel_order o = order_of(c, &where)
    cdef isize runs = c.taps.count // c.taps.wide
    cdef isize pixels = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef direct_space w = direct_space_of(c)
    cdef isize first = c.block0 + split * count // c.splits
    cdef isize block, p, width, last, turn, u, ahead, tiles = ceil_div(pixels, mr)
    cdef const void **a = <const void **> (scratch + w.a)
    cdef const void **around = <const void **> (scratch + w.around)
    cdef tile_reach *reach = <tile_reach *> (scratch + w.reach)
    cdef cnn_tile q
    if c.banded:
        fill_band(scratch, &c.around, &where, &c.taps, kernels, &c.src,
                  group * c.depth + c.depth0, c.depth_now)
    else:
        memset(scratch + w.zeros, 0, c.depth_now * size)
    point_at_source(c, &where, &o, group, a, scratch)
    point_at_result(c, &where, &o, group, <void **> (scratch + w.c), scratch + w.tile)
    for p in range(tiles):
        reach[p] = reach_of(
            c, &where, &o, p * mr, min((p + 1) * mr, pixels) - 1)
        if not (c.banded or reach[p].inside):
            point_around(c, &where, &o, p * mr, min(mr, pixels - p * mr), a + p * mr,
                         around + p * mr * runs, scratch + w.zeros)
    q.depth = c.depth_now * c.taps.wide
    q.a_from, q.a_step, q.next_step = 0, 1, CACHE_LINE
    q.start, q.activation = c.start, c.end
    # Panels that stay in the second-level cache: all of them for a tile's pixels, so
    # that results are stored in their order (1x1, channels last, 128->512 and 256->512
    # with stride 2 4 to 5 % faster, 32->64 3 %, 64->256 1 %; from 1024 channels on, and
    # for more taps, no gain). Else a panel for all tiles
    last = c.block0 + (split + 1) * count // c.splits
    turn = tiles
    if (c.direct and c.taps.count == 1
            and (last - first) * c.panel_bytes <= FEW_PANEL_BYTES):
        turn = 1
    for u in range(ceil_div(tiles, turn)):
        for block in range(first, last):
            width = width_of(c, block)
            q.cols = min(width, c.outs - block * c.block)
            q.b_move, q.b_step = q.depth * width, width
            q.bias = bias_panel(c, group, block)
            q.c_move = block * c.block if c.direct else 0
            if not c.direct and c.start == CNN_ADD:
                move_sums(c, &where, group * c.outs + block * c.block, q.cols,
                          scratch + w.tile, c.block, 1, True)
            # weight[block x taps*depth] . pixels[taps*depth x mr] -> dst, tile by tile
            for p in range(u * turn, (u + 1) * turn):
                q.rows = min(mr, pixels - p * mr)
                q.batches = reach[p].count
                if c.banded or reach[p].inside:
                    q.a = a + p * mr
                    q.a_at = c.to + reach[p].first
                    q.a_next = 0
                else:
                    q.a = around + (p * runs + reach[p].first) * mr
                    q.a_at = NULL
                    q.a_next = mr
                q.b = panel(c, group, block) + reach[p].first * q.b_move * size
                q.c = <void **> (scratch + w.c) + p * mr
                # the first blocks meet pixels that no cache holds yet
                q.next = NULL
                ahead = p + 1 + block - first
                if (runs > 0 and not c.banded and ahead < tiles
                        and (block == first or turn == 1 and block == first + 1)):
                    q.next = <const char *> a[ahead * mr] + c.to[runs - 1] * size
                run_tile(kernels, &q, width)
            if not c.direct:
                move_sums(c, &where, group * c.outs + block * c.block, q.cols,
                          scratch + w.tile, c.block, 1, False)


cdef inline isize direct_panel_bytes(const correlation *c) noexcept nogil:
    return c.taps.count * c.depth_now * c.block * c.kernels.itemsize


cdef inline void plan_direct(correlation *c) noexcept nogil:
    """Choose boxes, bands and chunks from the geometry alone."""
    cdef const cnn_kernels *kernels = c.kernels
    cdef tap_list *taps = &c.taps
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w, least = kernels.mr
    c.padded = meets_padding(taps, &c.src, &c.dst)
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
    if not c.banded or c.depth >= kernels.lanes:
        taps.wide = 1
    # a tile of pixels below each other skips the taps that padding swallows
    c.by_columns = c.padded and (
        taps.dx_max - taps.dx_min > taps.dy_max - taps.dy_min)
    if not c.banded:
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
    """c.to[run]: elements from an output's base to the run's first source pixel."""
    cdef isize t
    for t in range(c.taps.count // c.taps.wide):
        if c.banded:
            c.to[t] = band_offset(&c.around, &c.taps, t * c.taps.wide)
        else:
            c.to[t] = c.taps.dy[t] * c.src.step_h + c.taps.dx[t] * c.src.step_w
