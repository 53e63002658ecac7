# The direct sum as one matrix product: rows of A are filters, where their weights lie;
# B's rows are panels of pixels, [channel, tap][pixel], copied for a task. It turns no
# weights, so it is for one tap over large planes, and for weights that outnumber the
# pixels by far. A handful of pixels would leave most of a vector empty: then vectors
# run along the weights instead, and each sum is a dot product.

from boxes cimport (
    box, box_at, box_pixels, boxes, count as count_boxes, cut, meets_padding, tap_list,
)
from correlate cimport aligned, correlation, move_sums
from geometry cimport ceil_div, pixel
from kernels cimport (
    CACHE_LINE, CNN_ACT_RELU, CNN_ADD, CNN_BIAS_ROWS, CNN_LINEAR, CNN_RELU, CNN_ZERO,
    cnn_dot_kernel, cnn_dot_tile, cnn_kernels, cnn_runtime, cnn_tile, isize, run_tile,
)
from libc.string cimport memset
from planes cimport weights_as_they_lie

# Bounds in bytes: of the panels that are copied at a time, a slab. A small one leaves
# the second-level cache to the weights and to the next slab's source.
cdef enum:
    SLAB_BYTES = 128 << 10
    COLUMNS_BYTES = 512 << 10
    FEW_PIXELS = 64
    DOT_PIXELS = 8


cdef inline bint by_dots(const correlation *c) noexcept nogil:
    """Whether vectors run along the weights, which whole vectors must fill.

    Milliseconds, and those of panels, 3x3 512->512, AVX-512, one thread: 4 pixels 0.38
    (0.62), 8 pixels 0.56 (0.64), but 9 pixels 0.68 (0.62).
    """
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w, row = c.depth * c.taps.count
    return (
        pixels <= min(DOT_PIXELS, c.kernels.lanes // 2)
        and row % c.kernels.lanes == 0 and weights_as_they_lie(c)
        and pixels * row * c.kernels.itemsize <= COLUMNS_BYTES)


cdef inline bint shared_panels(const correlation *c) noexcept nogil:
    """Whether tasks that share a box's pixels share its panels, too."""
    return c.splits > 1 and box_pixels(&c.grid) <= min(FEW_PIXELS, c.slab * c.block)


# What a task's scratch holds, in bytes from its start.
cdef struct column_space:
    isize panel, panels                 # bytes of a panel, of a slab's panels
    isize a, c, sums, total


cdef inline column_space column_space_of(const correlation *c) noexcept nogil:
    cdef column_space s
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr
    s.panel = c.depth_now * c.taps.count * c.block * size
    s.panels = aligned(c.slab * s.panel)
    if by_dots(c):
        s.panels = aligned(c.depth * c.taps.count * box_pixels(&c.grid) * size)
    s.a = 0 if shared_panels(c) else s.panels
    s.c = s.a + aligned(mr * <isize> sizeof(void *))
    s.sums = s.c + aligned(mr * <isize> sizeof(void *))
    s.total = s.sums + (0 if c.direct else aligned(mr * c.slab * c.block * size))
    if by_dots(c):
        s.total = s.sums + aligned(c.outs * box_pixels(&c.grid) * size)
    return s


cdef inline isize panel_width(const correlation *c, isize pixels) noexcept nogil:
    """Columns of a panel: whole vectors."""
    return ceil_div(pixels, c.kernels.lanes) * c.kernels.lanes


cdef inline void fill_panel(
    const correlation *c, const box *where, isize group, isize first, isize count,
    isize channel, isize channels, char *to,
) noexcept nogil:
    """Pixels [first, first + count) of the box, for some channels and each tap."""
    cdef const tap_list *taps = &c.taps
    cdef isize size = c.kernels.itemsize, width = panel_width(c, count)
    cdef isize rows = where.i1 - where.i0, cols = where.j1 - where.j0
    cdef isize n, i, j, j0, j1, y, t, run, done = 0
    to += channel * taps.count * width * size
    if c.padded or count < width:
        memset(to, 0, channels * taps.count * width * size)
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
                to + (t * width + done + j0 - j) * size, taps.count * width, 1,
                pixel(&c.src, n, group * c.depth + c.depth0 + channel, y,
                      j0 * taps.sx + taps.dx[t]),
                c.src.step_c, taps.sx * c.src.step_w, channels, j1 - j0)
        done += run


cdef inline bint is_one_row(const correlation *c, const box *where) noexcept nogil:
    """Whether a box's pixels are one row of each channel's plane."""
    return (
        c.taps.count == 1 and not c.padded
        and where.i1 - where.i0 == 1 and where.n1 - where.n0 == 1)


cdef inline const char *source_at(
    const correlation *c, const box *where, isize group, isize first
) noexcept nogil:
    """Pixel `first` of a box that is one row, in its first channel."""
    return pixel(
        &c.src, where.n0, group * c.depth + c.depth0,
        where.i0 * c.taps.sy + c.taps.dy[0],
        (where.j0 + first) * c.taps.sx + c.taps.dx[0])


cdef inline void fill_slab(
    const correlation *c, const box *where, isize group, isize first, isize pixels,
    isize panel, char *to,
) noexcept nogil:
    """Pixels [first, first + pixels) of the box, panel by panel."""
    cdef isize size = c.kernels.itemsize, done = 0, d
    cdef isize col_step = c.taps.sx * c.src.step_w
    if pixels >= c.block and is_one_row(c, where):
        # what fills panels goes channel by channel
        done = pixels // c.block
        for d in range(c.depth_now):
            c.kernels.copy(
                to + d * c.block * size, c.depth_now * c.block, 1,
                source_at(c, where, group, first) + d * c.src.step_c * size,
                c.block * col_step, col_step, done, c.block)
        to += done * panel
        done *= c.block
    while done < pixels:
        fill_panel(c, where, group, first + done, min(c.block, pixels - done), 0,
                   c.depth_now, to)
        to += panel
        done += c.block


cdef inline const char *source_of(
    const correlation *c, isize box_index, isize group, isize first
) noexcept nogil:
    """Where pixels `first` and on of a box lie, a line for each channel; or NULL."""
    cdef box where = box_at(&c.grid, box_index)
    cdef isize pixels = (where.n1 - where.n0) * (where.j1 - where.j0)
    if c.src.h > 1 or c.taps.count > 1 or c.src.step_w != 1 or c.taps.sx > 1:
        return NULL
    if first >= pixels:
        if box_index + 1 >= boxes(&c.grid):
            return NULL
        where = box_at(&c.grid, box_index + 1)
        first = 0
    return pixel(&c.src, where.n0 + first // (where.j1 - where.j0),
                 group * c.depth + c.depth0, 0,
                 where.j0 + first % (where.j1 - where.j0))


cdef inline void move_slab(
    const correlation *c, const box *where, isize channel, isize channels,
    isize first, isize pixels, char *sums, bint load,
) noexcept nogil:
    """Copy sums[channel][pixel] of a slab to dst, or from it."""
    cdef isize rows = where.i1 - where.i0, cols = where.j1 - where.j0
    cdef isize pitch = c.slab * c.block, run
    cdef char *at
    if cols == c.dst.w and c.dst.step_h == cols * c.dst.step_w:
        cols *= rows
        rows = 1
    while pixels > 0:
        run = min(pixels, cols - first % cols)
        at = pixel(&c.dst, where.n0 + first // (rows * cols), channel,
                   where.i0 + first // cols % rows, where.j0 + first % cols)
        if load:
            c.kernels.copy(
                sums, pitch, 1, at, c.dst.step_c, c.dst.step_w, channels, run)
        else:
            c.kernels.copy(
                at, c.dst.step_c, c.dst.step_w, sums, pitch, 1, channels, run)
        sums += run * c.kernels.itemsize
        first += run
        pixels -= run


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
    if shared_panels(c):
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
    cdef isize size = kernels.itemsize, lanes = kernels.lanes
    cdef isize groups = c.group1 - c.group0, count = ceil_div(c.outs, c.tile_rows)
    cdef isize split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef isize index = task // c.splits // groups
    cdef box where = box_at(&c.grid, index)
    cdef isize all_pixels = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef column_space s = column_space_of(c)
    cdef isize first = 0, pixels, tiles, kept = 0, i, p, mr, channel, width
    cdef isize begin = split * count // c.splits * c.tile_rows, m
    cdef isize end = min(c.outs, (split + 1) * count // c.splits * c.tile_rows)
    cdef isize run, runs, line, lines, halves
    cdef isize row = c.depth * c.taps.count * size
    cdef const char *weights = c.weight + group * c.outs * row
    cdef const char *ahead
    cdef char *panels = scratch
    cdef bint keeps = (
        c.block > lanes and is_one_row(c, &where) and c.src.step_w * c.taps.sx == 1
        and not shared_panels(c))
    cdef const void **a = <const void **> (scratch + s.a)
    cdef void **to = <void **> (scratch + s.c)
    cdef cnn_tile q
    if not weights_as_they_lie(c):
        weights = c.panels + (group - c.group0) * c.panel_bytes
    weights += c.depth0 * c.taps.count * size
    q.batches, q.depth = 1, c.depth_now * c.taps.count
    q.a_next, q.a_from, q.a_step, q.b_move = 0, 0, 1, 0
    q.a, q.c = a, to
    q.a_at = NULL
    q.start, q.activation = c.start, c.end
    if c.start != CNN_ADD:
        q.start = CNN_BIAS_ROWS if c.bias != NULL else CNN_ZERO
    while first < all_pixels:
        pixels = min(all_pixels - first, c.slab * c.block)
        mr = c.tile_rows
        if mr < kernels.mr and 0 < pixels % c.block <= 2 * lanes:
            # the last pixels do not fill a panel: a slab of its own for high tiles
            if pixels > c.block:
                pixels -= pixels % c.block
            else:
                mr = kernels.mr
        tiles = ceil_div(pixels, c.block)
        if shared_panels(c):
            panels = (c.shared + task // c.splits * s.panels
                      + first // c.block * s.panel)
        else:
            # tiles of the first filters copy whole panels where they lie
            kept = pixels // c.block if keeps else 0
            fill_slab(c, &where, group, first + kept * c.block,
                      pixels - kept * c.block, s.panel, scratch + kept * s.panel)
        # the next slab's source is fetched while this one is multiplied; low tiles
        # fetch a line every other step
        ahead = source_of(c, index, group, first + pixels)
        halves = 2 if mr < kernels.mr else 1
        lines, line, run = 0, 0, 0
        if ahead != NULL:
            lines = halves * (c.slab * c.block * size // CACHE_LINE + 1)
        runs = ceil_div(end - begin, mr) * tiles
        # weight[mr x channels*taps] . pixels[channels*taps x block] -> dst
        m = begin
        while m < end:
            q.rows = min(mr, end - m)
            channel = group * c.outs + m
            q.bias = c.bias + channel * size if c.bias != NULL else NULL
            for i in range(mr):
                a[i] = weights + (m + min(i, q.rows - 1)) * row
                to[i] = scratch + s.sums + i * c.slab * c.block * size
                if c.direct:
                    to[i] = pixel(&c.dst, where.n0, channel + min(i, q.rows - 1),
                                  where.i0, where.j0 + first)
            if not c.direct and c.start == CNN_ADD:
                move_slab(c, &where, channel, q.rows, first, pixels,
                          scratch + s.sums, True)
            for p in range(tiles):
                q.c_move = p * c.block
                q.cols = min(c.block, pixels - p * c.block)
                width = panel_width(c, q.cols)
                q.b, q.b_step = panels + p * s.panel, width
                q.next, q.next_step = NULL, CACHE_LINE
                run += 1
                if run * lines // runs > line:
                    q.next = ahead + line // halves * CACHE_LINE + size * (
                        line % halves * (q.depth // 2) * c.src.step_c)
                    q.next_step = c.src.step_c * size
                    line += 1
                elif p == tiles - 1 and m + mr < c.outs:
                    # the next filters' weights come from far
                    q.next = weights + (m + mr) * row
                if m == begin and p < kept:
                    q.keep, q.b_step = <void *> q.b, c.src.step_c
                    q.b = source_at(c, &where, group, first + p * c.block)
                    if mr < kernels.mr:
                        kernels.keeping_low_tile(&q)
                    else:
                        kernels.keeping_tile(&q)
                elif mr < kernels.mr:
                    kernels.low_tile(&q)
                else:
                    run_tile(kernels, &q, width)
            if not c.direct:
                move_slab(c, &where, channel, q.rows, first, pixels,
                          scratch + s.sums, False)
            m += mr
        first += pixels


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
    cdef isize mr = c.kernels.mr, low = c.kernels.low_rows, rest
    cdef isize tiles = 1
    c.padded = meets_padding(taps, &c.src, &c.dst)
    if without_rows(c):
        c.src.w *= c.src.h
        c.dst.w *= c.dst.h
        c.src.h = c.dst.h = 1
    c.tile_rows = mr
    if pixels <= c.kernels.lanes:
        c.block = c.kernels.lanes
    elif pixels >= max(FEW_PIXELS + 1, 3 * c.kernels.lanes):
        # low tiles where high ones would have empty rows (64 filters are 5 * 14 or
        # 8 * 8), or as many: of 64 to 1024 channels they reach 92 to 98 % of the peak,
        # high ones 86 to 93 %
        rest = c.outs % mr
        rest = mr if 2 * rest > mr else mr // 2 if rest > 0 else 0
        if ceil_div(c.outs, low) * low <= c.outs // mr * mr + rest:
            c.tile_rows = low
            c.block = 3 * c.kernels.lanes
    panel = taps.count * c.block * size
    if pixels <= FEW_PIXELS:
        tiles = ceil_div(pixels, c.block)   # one box: weights are read once
    if by_dots(c):
        panel = taps.count * pixels * size
    c.depth_now = max(1, min(c.depth, COLUMNS_BYTES // (panel * tiles)))
    c.depth_now = ceil_div(c.depth, ceil_div(c.depth, c.depth_now))
    panel *= c.depth_now
    # tasks of whole panels, eight or more, and of some slabs each
    c.grid = cut(c.dst.n, c.dst.h, c.dst.w, max(
        c.block, min(pixels // 8, max(4096, COLUMNS_BYTES // panel * c.block))))
    if pixels <= FEW_PIXELS:
        c.grid = cut(c.dst.n, c.dst.h, c.dst.w, pixels)
    if c.grid.box_w < c.dst.w:
        c.grid.box_w = ceil_div(c.grid.box_w, c.block) * c.block
        count_boxes(&c.grid)
    c.slab = COLUMNS_BYTES
    if c.outs * c.depth_now * taps.count * size <= 2 * SLAB_BYTES:
        c.slab = SLAB_BYTES
    c.slab = max(1, min(
        c.slab // panel, ceil_div(box_pixels(&c.grid), c.block)))
    if pixels <= FEW_PIXELS:
        c.slab = tiles
    c.direct = c.dst.step_w == 1 and c.grid.box_n == 1 and (
        c.grid.box_h == 1 or c.dst.step_h == c.grid.box_w)
    c.panel_bytes = 0
    if not weights_as_they_lie(c):
        c.panel_bytes = aligned(c.outs * c.depth * taps.count * size)


cdef inline int run_columns(
    const cnn_runtime *runtime, correlation *c, isize tasks, double work
) noexcept nogil:
    cdef column_space s = column_space_of(c)
    cdef int failed = 0
    c.shared = NULL
    if shared_panels(c):
        c.shared = <char *> runtime.take(tasks // c.splits * s.panels)
        if c.shared == NULL:
            return -1
        failed = runtime.run(
            fill_shared_task, c, tasks, 0, 4 * <double> (tasks // c.splits * s.panels))
    if not failed:
        failed = runtime.run(
            dots_task if by_dots(c) else columns_task, c, tasks, s.total, work)
    if c.shared != NULL:
        runtime.give(c.shared)
    return failed
