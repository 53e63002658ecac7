# The direct sum: tiles of mr pixels x block channels. The rows of A are source
# pixels, where they lie (channels last) or in a band copied that way; B is a panel of
# weights [tap][channel][out].

from boxes cimport (
    band_elements, band_of, band_offset, box, box_at, box_grid, box_pixels, boxes,
    count as count_boxes, cut, fill_band, halve, meets_padding, tap_list,
)
from correlate cimport (
    COPIED_BYTES, aligned, bias_panel, copy_first, correlation, move_sums, pack_block,
    panel, source_bytes, width_of,
)
from direct_pixels cimport (
    columns_of, go_on, joins, order_of, pixel_order, place, point_around, point_at_result,
    point_at_source, reach_of, tap_columns, tile_reach,
)
from geometry cimport ceil_div, even_share, pixel
from kernels cimport (
    CACHE_LINE, CNN_ADD, CNN_LINEAR, cnn_flat_kernel, cnn_kernels, cnn_lines, cnn_tile,
    isize, run_even, run_tile,
)
from libc.string cimport memset
from turned cimport add_bias_row

# Bounds in bytes: all panels of a pass, a task's band.
cdef enum:
    PANEL_BYTES = 4 << 20
    BAND_BYTES = 1 << 20
    NEAR_BYTES = 64 << 10               # of panels that stay in the near caches
    SECOND_BYTES = 512 << 10            # and in the second-level cache
    SHORT = 64                          # channels that make short batches of a tap
    STEPS = 2048                        # of a tile that have offsets of their own
    NEAR_ROW_BYTES = 8 << 10            # of a panel, for each row of a tile
    STRIP = 4                           # tiles for which blocks take turns then
    STRIP_BYTES = 16 << 10              # of their source


cdef inline void direct_pack_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef isize group = c.group0 + task // (c.block1 - c.block0)
    cdef isize block = c.block0 + task % (c.block1 - c.block0)
    cdef char *to = panel(c, group, block)
    if c.turned:
        pack_block(c, group, block, to + width_of(c, block) * c.kernels.itemsize)
        add_bias_row(c, group, block)
    else:
        pack_block(c, group, block, to)


# What a task's scratch holds, in bytes from its start.
cdef struct direct_space:
    isize a, around, c, reach, tile, zeros, total


cdef inline direct_space direct_space_of(const correlation *c) noexcept nogil:
    cdef direct_space w
    cdef isize size = c.kernels.itemsize, mr = c.tile_rows
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


cdef inline cnn_lines lines_after(
    const correlation *c, isize index
) noexcept nogil:
    """What the band of the box after box `index` will be copied from, if one run."""
    cdef const tap_list *taps = &c.taps
    cdef cnn_lines r
    cdef box where
    cdef isize y0, y1, rows
    r.at, r.left = NULL, 0
    # few channels are few lines, which are found in time without
    if (not c.banded or c.depth_now < c.kernels.lanes or index + 1 >= boxes(&c.grid)
            or c.src.step_c != 1 or c.src.step_w != c.depth_now
            or c.src.step_h != c.src.w * c.src.step_w or c.grid.count_w > 1):
        return r
    where = box_at(&c.grid, index + 1)
    y0 = max(0, where.i0 * taps.sy + taps.dy_min)
    y1 = min(c.src.h, (where.i1 - 1) * taps.sy + taps.dy_max + 1)
    rows = (where.n1 - where.n0 - 1) * c.src.h + y1 - y0
    if y1 > y0 and (where.n1 - where.n0 == 1 or c.src.step_n == c.src.h * c.src.step_h):
        r.at = pixel(&c.src, where.n0, 0, y0, 0)
        r.left = ceil_div(rows * c.src.step_h * c.kernels.itemsize, CACHE_LINE)
    return r


cdef inline void run_flat(
    const cnn_kernels *kernels, cnn_tile *q, isize width
) noexcept nogil:
    """Tile by tile; the last rows may be half a tile."""
    cdef const cnn_flat_kernel *flat = kernels.flat_tile + (width // kernels.lanes - 1)
    cdef isize rest = q.rows % flat.rows
    if not 0 < rest <= flat.rest:
        flat.run(q)
        return
    q.rows -= rest
    flat.run(q)
    q.next = <const char *> q.next + q.rows // flat.rows * q.next_lines * CACHE_LINE
    q.a += q.rows
    q.c += q.rows
    q.rows = rest
    flat.run_rest(q)


cdef inline void run_columns_of_taps(
    const cnn_kernels *kernels, cnn_tile *q, const tap_columns *k, isize width
) noexcept nogil:
    """The tile's rows of taps, without the columns that meet padding alone."""
    cdef const void *const *a = q.a
    cdef const isize *a_at = q.a_at
    cdef const char *b = <const char *> q.b
    cdef isize rows = q.batches // max(1, k.all), i, at
    cdef int start = q.start, end = q.activation
    if k.count == 0:
        q.batches = 0
    if k.count == k.all or q.batches == 0:
        run_tile(kernels, q, width)
        return
    q.batches = k.count
    for i in range(rows):
        at = i * k.all + k.first
        q.a = a + at * q.a_next
        if a_at != NULL:
            q.a_at = a_at + at
        q.b = b + at * q.b_move * kernels.itemsize
        q.start = start if i == 0 else CNN_ADD
        q.activation = end if i == rows - 1 else CNN_LINEAR
        run_tile(kernels, q, width)
    q.start, q.activation = start, end


cdef inline void narrow(const correlation *c, box_grid *grid) noexcept nogil:
    """Cut boxes of rows into columns where more taps then meet padding alone.

    GFLOP/s so and without, 3x3 256->256 of 33x33, channels-last: dilation 6 182 and
    173, 12 240 and 198, 18 327 and 236.
    """
    cdef isize parts, wide, j, all, products, best, most
    cdef isize pixels = box_pixels(grid)
    cdef tap_columns k
    if (not c.padded or c.banded or c.by_columns or c.taps.rows < 2
            or 4 * (c.taps.dx_max - c.taps.dx_min) < grid.cols
            or grid.box_w < grid.cols):
        return
    most = grid.cols * (c.taps.count // c.taps.rows)
    best = most - most // 16
    for parts in range(2, 7):
        wide, products, j = ceil_div(grid.cols, parts), 0, 0
        if wide < 4 or wide * grid.rows < 8 * c.kernels.mr:
            break
        while j < grid.cols:
            all = min(grid.cols, j + wide)
            k = columns_of(c, j, all)
            products += (all - j) * k.count
            j = all
        if products < best:             # worth more boxes
            best = products - most // 32
            grid.box_n, grid.box_w = 1, wide
            grid.box_h = even_share(grid.rows, max(1, pixels // wide))
    count_boxes(grid)


cdef inline void direct_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef isize mr = c.tile_rows, size = kernels.itemsize
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0
    cdef isize split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef pixel_order o = order_of(c, &where)
    cdef isize taps = c.taps.count, depth = c.depth_now
    cdef isize pixels = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef direct_space w = direct_space_of(c)
    cdef isize first = c.block0 + split * count // c.splits
    cdef isize last = c.block0 + (split + 1) * count // c.splits
    cdef isize tiles = ceil_div(pixels, mr), strip = max(tiles, 1)
    cdef isize block, p, p0, end_p, more, left, ahead, width
    cdef bint even, joined
    cdef const void **a = <const void **> (scratch + w.a)
    cdef const void **around = <const void **> (scratch + w.around)
    cdef const void **to
    cdef tile_reach *reach = <tile_reach *> (scratch + w.reach)
    cdef tile_reach whole
    cdef place at, end
    cdef cnn_tile q
    cdef tap_columns k = columns_of(c, where.j0, where.j1)
    cdef cnn_lines follows
    if c.banded:
        fill_band(scratch, &c.around, &where, &c.taps, kernels, &c.src,
                  group * c.depth + c.depth0, c.depth_now)
    else:
        memset(scratch + w.zeros, 0, c.depth_now * size)
    follows = lines_after(c, task // c.splits // groups)
    point_at_source(c, &where, &o, group, a, scratch)
    point_at_result(c, &where, &o, group, <void **> (scratch + w.c), scratch + w.tile)
    at.n = at.u = at.v = 0
    end.n, end.u, end.v = where.n1 - where.n0 - 1, o.lines - 1, o.run - 1
    whole = reach_of(c, &where, &o, &at, &end)
    for p in range(tiles):
        reach[p] = whole
        if not (whole.inside or c.banded and whole.every):
            end = at
            go_on(&o, &end, min(mr, pixels - p * mr) - 1)
            reach[p] = reach_of(c, &where, &o, &at, &end)
            at = end
            go_on(&o, &at, 1)
    # Rows of one tap lie at constant distances: in a line, or all of the box's.
    even = taps == 1 and whole.inside and not (c.banded or c.flat)
    q.a_row = o.step_i * c.taps.sy * c.src.step_h + o.step_j * c.taps.sx * c.src.step_w
    q.c_row, q.c_far = c.block, c.direct
    if c.direct:
        q.c_row = o.step_i * c.dst.step_h + o.step_j * c.dst.step_w
    joined = (
        even and joins(&o, &where, a, q.a_row * size) and joins(
            &o, &where, <const void **> (scratch + w.c), q.c_row * size))
    q.a_from, q.a_step, q.next_step = 0, 1, CACHE_LINE
    q.start, q.activation = c.start, c.end
    # Blocks whose panels stay near take turns tile by tile: what they store of a pixel
    # lies side by side (1x1 32->64 and 3x3 3->64 take 3 to 8 % less time, 1x1 128->512 and
    # 256->512 4 to 5 %; from 1024 channels on, and for more taps with panels in the
    # second-level cache, no gain). Flat tiles are called for by the strip.
    if c.direct and (last - first) * c.panel_bytes <= (
            SECOND_BYTES if c.taps.count == 1 else NEAR_BYTES):
        strip = 1
        if c.flat:
            strip = STRIP if last - first > 1 else tiles
        elif even:                      # whose rows stay in the first-level cache
            strip = max(1, min(STRIP, STRIP_BYTES // (mr * depth * size)))
    for p0 in range(ceil_div(tiles, strip)):
        for block in range(first, last):
            width = width_of(c, block)
            q.cols = min(width, c.outs - block * c.block)
            q.b_move, q.b_step = depth * width, width
            q.bias = bias_panel(c, group, block)
            q.c_move = block * c.block if c.direct else 0
            if not c.direct and c.start == CNN_ADD:
                move_sums(c, &where, group * c.outs + block * c.block, q.cols,
                          scratch + w.tile, c.block, 1, True)
            # weight[block x taps*depth] . pixels[taps*depth x mr] -> dst, tile by tile
            p, end_p = p0 * strip, min((p0 + 1) * strip, tiles)
            while p < end_p:
                more = 1
                left = o.run - p * mr % o.run if even and not joined else pixels
                if even:
                    more = min(end_p - p, max(1, left // mr))
                elif c.flat:            # as many tiles as reach the same taps
                    while (p + more < end_p and reach[p + more].first == reach[p].first
                           and reach[p + more].count == reach[p].count):
                        more += 1
                q.rows = min(more * mr, pixels - p * mr)
                q.batches, q.depth = reach[p].count, depth
                if c.banded or reach[p].inside:
                    q.a = a + p * mr
                    q.a_at = c.to + reach[p].first
                    q.a_next = 0
                    if c.flat:
                        q.a_at = c.to + reach[p].first * depth
                        q.depth = q.batches * depth
                else:
                    to = around + (p * taps * mr if strip > 1 else 0)
                    if block == first:
                        point_around(c, &where, &o, reach[p].begin, q.rows, a + p * mr,
                                     to, scratch + w.zeros)
                    q.a = to + reach[p].first * mr
                    q.a_at = NULL
                    q.a_next = mr
                q.b = panel(c, group, block) + reach[p].first * q.b_move * size
                q.c = <void **> (scratch + w.c) + p * mr
                # the first blocks meet pixels that no cache holds yet
                q.next = NULL
                ahead = p + more + block - first
                if (taps > 0 and not (c.banded or c.flat) and ahead < tiles
                        and (block == first or strip == 1 and block == first + 1)):
                    q.next = <const char *> a[ahead * mr] + c.to[taps - 1] * size
                if c.flat:
                    q.next_lines = 0
                    if block == first:
                        q.next_lines = ceil_div(follows.left, tiles)
                        q.next = follows.at + p * q.next_lines * CACHE_LINE
                    run_flat(kernels, &q, width)
                elif even and q.rows <= left:
                    q.next_lines = q.rows * q.a_row * size // CACHE_LINE
                    q.a_at, q.a_from = NULL, c.to[0]
                    run_even(kernels, &q, width)
                    q.a_from = 0
                else:
                    run_columns_of_taps(kernels, &q, &k, width)
                p += more
            if not c.direct:
                move_sums(c, &where, group * c.outs + block * c.block, q.cols,
                          scratch + w.tile, c.block, 1, False)


cdef inline isize direct_panel_bytes(const correlation *c) noexcept nogil:
    return c.taps.count * c.depth_now * c.block * c.kernels.itemsize


cdef inline void plan_direct(correlation *c) noexcept nogil:
    """Choose boxes, bands and chunks from the geometry alone."""
    cdef const cnn_kernels *kernels = c.kernels
    cdef tap_list *taps = &c.taps
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w, least = kernels.mr, many
    cdef isize tile, rows
    c.padded = meets_padding(taps, &c.src, &c.dst)
    # bands would be several times their boxes (dilation 12 of 33x33 170 GFLOP/s with
    # bands, 219 so)
    if (c.src.step_c != 1 and c.depth >= kernels.lanes and taps.rows > 1
            and 4 * (taps.dy_max - taps.dy_min) >= c.src.h
            and taps.dy_max - taps.dy_min >= 3 * taps.rows
            and source_bytes(c) <= COPIED_BYTES):
        copy_first(c)
    # Padding is copied around few channels, whose pointers for each tap cost more (3x3
    # 16->32, stride 2: 127 to 145 GFLOP/s); a gradient's phases have fewer taps, and are
    # 10 % slower so; few filters do not repay the copy (32->16 5 % slower)
    c.banded = (
        (c.src.step_c != 1 and c.depth > 1)
        or c.padded and taps.wide > 1 and (
            c.depth < kernels.lanes
            or c.depth <= SHORT and taps.count > 4 and c.outs > 16)
    )
    # 3x3 3->64 109 to 137 GFLOP/s (with tiles four vectors wide), 5x5 3->32 133 to 151,
    # 6->16 110 to 130
    c.flat = (
        c.banded or c.depth <= SHORT and taps.count > 1 and not c.padded
    ) and c.depth * taps.count <= STEPS
    # few channels: one tile for all filters, as far as that goes and the panel, which is
    # read once for a tile's few rows, is near (AVX2, 11x11 3->96: 88 to 60 GFLOP/s)
    c.tile_rows, many = least, ceil_div(c.outs, kernels.lanes)
    tile = 4 if many % 4 == 0 else 3 if many % 2 and many % 3 == 0 else kernels.vectors
    rows = kernels.flat_tile[tile - 1].rows
    if c.flat and c.depth < kernels.lanes and tile > kernels.vectors and (
            c.depth * taps.count * tile * kernels.lanes * kernels.itemsize
            <= rows * NEAR_ROW_BYTES):
        c.tile_rows, c.block = rows, tile * kernels.lanes
    c.blocks = ceil_div(c.outs, c.block)
    c.depth_now = c.depth
    while c.depth_now > 1 and direct_panel_bytes(c) > PANEL_BYTES:
        c.depth_now = ceil_div(c.depth_now, 2)

    # a tile's panel is read once for every mr pixels: boxes of 24 tiles keep it
    # in the first caches; fewer where the work would not make eight tasks
    c.grid = cut(c.dst.n, c.dst.h, c.dst.w,
                 min(max(pixels // 8, 4 * least), 24 * least))
    # a tile of pixels below each other skips the taps that padding swallows
    c.by_columns = c.padded and (
        taps.dx_max - taps.dx_min > taps.dy_max - taps.dy_min)
    narrow(c, &c.grid)
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
    """c.to[tap]: elements from an output's base to the tap's source pixel.

    c.flat: c.to[tap, channel].
    """
    cdef isize t, d, at
    for t in range(c.taps.count):
        if c.banded:
            at = band_offset(&c.around, &c.taps, t)
        else:
            at = c.taps.dy[t] * c.src.step_h + c.taps.dx[t] * c.src.step_w
        if c.flat:
            for d in range(c.depth_now):
                c.to[t * c.depth_now + d] = at + d
        else:
            c.to[t] = at
