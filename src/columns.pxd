# The direct sum as one matrix product: rows of A are filters, where their weights lie;
# B's rows are panels of pixels, [channel, tap][pixel], copied for a task. It turns no
# weights, so it is for one tap over large planes, and for weights that outnumber the
# pixels by far. A handful of pixels would leave most of a vector empty: then vectors
# run along the weights instead, and each sum is a dot product.

from boxes cimport box, box_at, box_pixels, cut, meets_padding, tap_list
from correlate cimport aligned, correlation, move_sums
from geometry cimport ceil_div, pixel
from kernels cimport (
    CNN_ACT_RELU, CNN_ADD, CNN_BIAS_ROWS, CNN_LINEAR, CNN_RELU, CNN_ZERO,
    cnn_dot_kernel, cnn_dot_tile, cnn_kernels, cnn_tile, isize, run_tile,
)
from libc.string cimport memset
from planes cimport weights_as_they_lie

cdef enum:
    COLUMNS_BYTES = 512 << 10           # of a task's panels
    FEW_PIXELS = 64
    DOT_PIXELS = 8


cdef inline bint by_dots(const correlation *c) noexcept nogil:
    """Whether vectors run along the weights, which whole vectors must fill.

    Milliseconds, and those of panels, 3x3 512->512, AVX-512, one thread: 4 pixels 0.38
    (0.62), 8 pixels 0.56 (0.64), but 9 pixels 0.68 (0.62).
    """
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w, row = c.depth * c.taps.count
    return (
        pixels <= min(DOT_PIXELS, c.kernels.lanes // 2) and row % c.kernels.lanes == 0 and weights_as_they_lie(c)
        and pixels * row * c.kernels.itemsize <= COLUMNS_BYTES)


# What a task's scratch holds, in bytes from its start.
cdef struct column_space:
    isize panel, tiles                  # bytes of a panel, panels of a box
    isize panels                        # bytes of a box's panels
    isize a, c, sums, total


cdef inline column_space column_space_of(const correlation *c) noexcept nogil:
    cdef column_space s
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr
    s.panel = c.depth_now * c.taps.count * c.block * size
    s.tiles = ceil_div(box_pixels(&c.grid), c.block)
    if by_dots(c):
        s.panel = c.depth * c.taps.count * box_pixels(&c.grid) * size
    s.panels = aligned(s.tiles * s.panel)
    s.a = s.panels if c.splits == 1 else 0
    s.c = s.a + aligned(mr * <isize> sizeof(void *))
    s.sums = s.c + aligned(mr * <isize> sizeof(void *))
    s.total = s.sums + (0 if c.direct else aligned(mr * s.tiles * c.block * size))
    if by_dots(c):
        s.total = s.sums + aligned(c.outs * box_pixels(&c.grid) * size)
    return s


cdef inline void fill_panel(
    const correlation *c, const box *where, isize group, isize first, isize count,
    isize channel, isize channels, char *to,
) noexcept nogil:
    """Pixels [first, first + count) of the box, for some channels and each tap."""
    cdef const tap_list *taps = &c.taps
    cdef isize size = c.kernels.itemsize
    cdef isize rows = where.i1 - where.i0, cols = where.j1 - where.j0
    cdef isize n, i, j, j0, j1, y, t, run, done = 0
    to += channel * taps.count * c.block * size
    if c.padded or count < c.block:
        memset(to, 0, channels * taps.count * c.block * size)
    while done < count:
        n = where.n0 + (first + done) // (rows * cols)
        i = where.i0 + (first + done) // cols % rows
        j = (first + done) % cols
        run = min(count - done, cols - j)
        j += where.j0
        for t in range(taps.count):
            y = i * taps.sy + taps.dy[t]
            j0, j1 = j, j + run
            if c.padded:
                if y < 0 or y >= c.src.h:
                    continue
                j0 = max(j0, ceil_div(max(0, -taps.dx[t]), taps.sx))
                j1 = min(j1, ceil_div(max(0, c.src.w - taps.dx[t]), taps.sx))
                if j1 <= j0:
                    continue
            c.kernels.copy(
                to + (t * c.block + done + j0 - j) * size, taps.count * c.block, 1,
                pixel(&c.src, n, group * c.depth + c.depth0 + channel, y,
                      j0 * taps.sx + taps.dx[t]),
                c.src.step_c, taps.sx * c.src.step_w, channels, j1 - j0)
        done += run


cdef inline isize fill_whole_panels(
    const correlation *c, const box *where, isize group, isize pixels, char *to,
) noexcept nogil:
    """Fill what panels one row of pixels fills; how many. Channel by channel, for
    a long row comes from memory at once and a short one does not."""
    cdef isize size = c.kernels.itemsize, d, col_step = c.taps.sx * c.src.step_w
    cdef isize tiles = pixels // c.block
    if (c.taps.count > 1 or c.padded or where.i1 - where.i0 > 1
            or where.n1 - where.n0 > 1):
        return 0
    for d in range(c.depth_now):
        c.kernels.copy(
            to + d * c.block * size, c.depth_now * c.block, 1,
            pixel(&c.src, where.n0, group * c.depth + c.depth0 + d,
                  where.i0 * c.taps.sy + c.taps.dy[0],
                  where.j0 * c.taps.sx + c.taps.dx[0]),
            c.block * col_step, col_step, tiles, c.block)
    return tiles


cdef inline void fill_rows(
    const correlation *c, const box *where, isize group, isize channel, isize channels,
    char *to,
) noexcept nogil:
    """Some channels of every pixel's row [channel, tap], as the weights' rows are."""
    cdef const tap_list *taps = &c.taps
    cdef isize size = c.kernels.itemsize, n, i, j, t, y, x
    to += channel * taps.count * size
    for n in range(where.n0, where.n1):
        for i in range(where.i0, where.i1):
            for j in range(where.j0, where.j1):
                if c.padded:
                    memset(to, 0, channels * taps.count * size)
                for t in range(taps.count):
                    y = i * taps.sy + taps.dy[t]
                    x = j * taps.sx + taps.dx[t]
                    if 0 <= y < c.src.h and 0 <= x < c.src.w:
                        c.kernels.copy(
                            to + t * size, taps.count, 1,
                            pixel(&c.src, n, group * c.depth + channel, y, x),
                            c.src.step_c, 1, channels, 1)
                to += c.depth * taps.count * size


cdef inline void dots_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef const cnn_dot_kernel *kernel = kernels.dot_tile + 1
    cdef isize size = kernels.itemsize, row = c.depth * c.taps.count, m, p
    cdef isize groups = c.group1 - c.group0, split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef isize pixels = box_pixels(&c.grid)
    cdef isize first = split * c.outs // c.splits
    cdef isize outs = (split + 1) * c.outs // c.splits - first
    cdef column_space s = column_space_of(c)
    cdef char *sums = scratch + s.sums
    cdef const char *weights = c.weight + (group * c.outs + first) * row * size
    cdef isize at[DOT_PIXELS]
    cdef cnn_dot_tile q
    for p in range(pixels):
        at[p] = p * row
    q.b = scratch
    if c.splits > 1:
        q.b = c.shared + task // c.splits * s.panels
    else:
        fill_rows(c, &where, group, 0, c.depth, scratch)
    memset(sums, 0, outs * pixels * size)
    if c.bias != NULL:
        for p in range(pixels):
            kernels.copy(sums + p * size, pixels, 1,
                         c.bias + (group * c.outs + first) * size, 1, 1, outs, 1)
    q.positions = q.a_step = row
    q.c_step = pixels
    # weight[outs x row] . pixels[pixels x row] -> sums, vectors along the rows
    for m in range(ceil_div(outs, kernel.rows)):
        q.rows = min(kernel.rows, outs - m * kernel.rows)
        q.a = weights + m * kernel.rows * row * size
        for p in range(ceil_div(pixels, kernel.cols)):
            q.cols = min(kernel.cols, pixels - p * kernel.cols)
            q.at = at + p * kernel.cols
            q.c = sums + (m * kernel.rows * pixels + p * kernel.cols) * size
            kernel.run(&q)
    if c.end != CNN_LINEAR:
        kernels.activation[CNN_ACT_RELU + c.end - CNN_RELU](
            sums, sums, outs * pixels, 0, 0)
    move_sums(c, &where, group * c.outs + first, outs, sums, 1, pixels, False)


cdef inline void fill_shared_task(void *job, isize task, char *scratch) noexcept nogil:
    """Fill some channels of a box's panels, where several tasks read them."""
    cdef const correlation *c = <const correlation *> job
    cdef isize part = task % c.splits, groups = c.group1 - c.group0, p
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef isize pixels = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef isize first = part * c.depth_now // c.splits
    cdef column_space s = column_space_of(c)
    if by_dots(c):
        fill_rows(c, &where, group, first,
                  (part + 1) * c.depth // c.splits - first,
                  c.shared + task // c.splits * s.panels)
        return
    for p in range(ceil_div(pixels, c.block)):
        fill_panel(c, &where, group, p * c.block, min(c.block, pixels - p * c.block),
                   first, (part + 1) * c.depth_now // c.splits - first,
                   c.shared + task // c.splits * s.panels + p * s.panel)


cdef inline void columns_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef isize mr = kernels.mr, size = kernels.itemsize, lanes = kernels.lanes
    cdef isize groups = c.group1 - c.group0, count = ceil_div(c.outs, mr)
    cdef isize split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef isize pixels = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef column_space s = column_space_of(c)
    cdef isize tiles = ceil_div(pixels, c.block), i, m, p, tile, channel
    cdef isize row = c.depth * c.taps.count * size
    cdef const char *weights = c.weight + group * c.outs * row
    cdef const void **a = <const void **> (scratch + s.a)
    cdef void **to = <void **> (scratch + s.c)
    cdef char *panels = scratch
    cdef cnn_tile q
    if not weights_as_they_lie(c):
        weights = c.panels + (group - c.group0) * c.panel_bytes
    weights += c.depth0 * c.taps.count * size
    if c.splits > 1:
        panels = c.shared + task // c.splits * s.panels
    else:
        p = fill_whole_panels(c, &where, group, pixels, scratch)
        for p in range(p, tiles):
            fill_panel(c, &where, group, p * c.block, min(c.block, pixels - p * c.block),
                       0, c.depth_now, scratch + p * s.panel)
    q.batches, q.depth = 1, c.depth_now * c.taps.count
    q.a_next, q.a_from, q.a_step = 0, 0, 1
    q.b_move, q.b_step = 0, c.block
    q.a, q.c = a, to
    q.a_at = NULL
    q.start, q.activation = c.start, c.end
    if c.start != CNN_ADD:
        q.start = CNN_BIAS_ROWS if c.bias != NULL else CNN_ZERO
    # weight[mr x channels*taps] . pixels[channels*taps x block] -> dst, tile by tile
    for tile in range(split * count // c.splits, (split + 1) * count // c.splits):
        m = tile * mr
        q.rows = min(mr, c.outs - m)
        channel = group * c.outs + m
        q.bias = c.bias + channel * size if c.bias != NULL else NULL
        for i in range(mr):
            a[i] = weights + (m + min(i, q.rows - 1)) * row
            if c.direct:
                to[i] = pixel(&c.dst, where.n0, channel + min(i, q.rows - 1),
                              where.i0, where.j0)
            else:
                to[i] = scratch + s.sums + i * s.tiles * c.block * size
        if not c.direct and c.start == CNN_ADD:
            move_sums(c, &where, channel, q.rows, scratch + s.sums, 1,
                      s.tiles * c.block, True)
        for p in range(tiles):
            q.b = panels + p * s.panel
            q.c_move = p * c.block
            q.cols = min(c.block, pixels - p * c.block)
            # the next filters' weights come from far
            q.next = NULL
            if p == tiles - 1 and m + mr < c.outs:
                q.next = weights + (m + mr) * row
            run_tile(kernels, &q, lanes if q.cols <= lanes else c.block)
        if not c.direct:
            move_sums(c, &where, channel, q.rows, scratch + s.sums, 1,
                      s.tiles * c.block, False)


cdef inline bint without_rows(const correlation *c) noexcept nogil:
    """Whether each output reads its own pixel, and planes can be one long row."""
    return (
        c.taps.count == 1 and c.taps.sy == 1 and c.taps.sx == 1 and not c.padded
        and c.src.h == c.dst.h and c.src.w == c.dst.w
        and c.src.step_h == c.src.w * c.src.step_w
        and c.dst.step_h == c.dst.w * c.dst.step_w)


cdef inline void plan_columns(correlation *c) noexcept nogil:
    """Choose boxes and chunks of channels from the geometry alone."""
    cdef const tap_list *taps = &c.taps
    cdef isize size = c.kernels.itemsize, pixels = c.dst.n * c.dst.h * c.dst.w, panel
    cdef isize tiles = 1
    c.padded = meets_padding(taps, &c.src, &c.dst)
    if without_rows(c):
        c.src.w *= c.src.h
        c.dst.w *= c.dst.h
        c.src.h = c.dst.h = 1
    if pixels <= c.kernels.lanes:
        c.block = c.kernels.lanes
    panel = taps.count * c.block * size
    if pixels <= FEW_PIXELS:
        tiles = ceil_div(pixels, c.block)   # one box: weights are read once
    if by_dots(c):
        panel = taps.count * pixels * size
    c.depth_now = max(1, min(c.depth, COLUMNS_BYTES // (panel * tiles)))
    c.depth_now = ceil_div(c.depth, ceil_div(c.depth, c.depth_now))
    panel *= c.depth_now
    if pixels > FEW_PIXELS:
        tiles = min(max(1, COLUMNS_BYTES // panel), max(1, pixels // (8 * c.block)))
    c.grid = cut(c.dst.n, c.dst.h, c.dst.w, tiles * c.block)
    c.direct = c.dst.step_w == 1 and c.grid.box_n == 1 and (
        c.grid.box_h == 1 or c.dst.step_h == c.grid.box_w)
    c.panel_bytes = 0
    if not weights_as_they_lie(c):
        c.panel_bytes = aligned(c.outs * c.depth * taps.count * size)
