# The gradient of the weights summed directly, in tiles of channels x filters over the
# pixels of a box. Channels of x, and the taps of a row beside each other, lie side by
# side: the rows of a tile are numbers at constant distances.

from boxes cimport (
    band, band_elements, band_of, band_offset, box, box_at, box_grid, box_pixels,
    boxes, cut, fill_band, halve, meets_padding, tap_list,
)
from correlate cimport aligned
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_ADD, CNN_ZERO, cnn_gradient_tile, cnn_kernels, cnn_lines, cnn_runtime,
    isize,
)
from libc.string cimport memset
from weight_gradient cimport (
    filters_at, gradient_of_weight, gradient_part, part_of, partial_sums,
    store_weights, whole_vectors,
)

# Bounds of scratch memory, in bytes: a task's sums, and its copies. The pixels of few
# channels that a box reads.
cdef enum:
    SUM_BYTES = 640 << 10
    COPY_BYTES = 1 << 20
    FEW_BYTES = 16 << 10
    SHARED_BYTES = 16 << 20             # for all tasks


# What a task's scratch holds, in bytes from its start.
cdef struct gradient_space:
    band around                         # of row_channels channels
    isize x, grad_y, total


cdef inline gradient_space space_of(const gradient_of_weight *w) noexcept nogil:
    cdef gradient_space s
    cdef isize size = w.kernels.itemsize
    cdef isize filters = whole_vectors(w, w.some_filters)
    s.around = band_of(&w.grid, &w.taps, w.row_channels)
    s.x = aligned(w.some_channels * w.taps.count * filters * size)
    s.grad_y = s.x
    if not w.x_lies:
        # a tile of an even number of rows may look at one element more
        s.grad_y += aligned(size + size * band_elements(&w.grid, &s.around)
                            * ceil_div(w.some_channels, w.row_channels))
    s.total = s.grad_y
    if not w.errors_lie and not w.errors_shared:
        s.total += errors_bytes(w)
    return s


cdef inline isize errors_bytes(const gradient_of_weight *w) noexcept nogil:
    """A copy of a box's errors, of a part of the filters."""
    return aligned(
        box_pixels(&w.grid) * whole_vectors(w, w.some_filters) * w.kernels.itemsize)


cdef inline char *shared_errors(
    const gradient_of_weight *w, const gradient_part *p, isize index
) noexcept nogil:
    """Where the copy of box `index` lies that all parts of the channels read."""
    cdef isize at = p.group * boxes(&w.grid) + index
    return w.shared + errors_bytes(w) * (
        at * w.filter_parts + p.filter0 // w.some_filters)


cdef inline void clip(
    isize *first, isize *end, isize from_, isize to, isize stride, isize d_min,
    isize d_max, isize size,
) noexcept nogil:
    """The outputs in [from_, to) for which one of the taps lies in the image."""
    first[0] = max(0, -d_max)
    end[0] = max(0, size - d_min)
    if stride > 1:              # divisions tell where tiles are short
        first[0] = ceil_div(first[0], stride)
        end[0] = ceil_div(end[0], stride)
    first[0] = max(first[0], from_)
    end[0] = min(end[0], to)
    if end[0] < first[0]:
        first[0] = end[0] = from_


cdef inline cnn_lines lines_of(
    const image *src, const box *where, isize sy, isize sx, isize channel,
    isize channels,
) noexcept nogil:
    """The memory that a box reads, of its first image."""
    cdef cnn_lines r
    cdef isize i0 = where.i0 * sy, j0 = where.j0 * sx
    cdef isize rows = min(where.i1 * sy, src.h) - i0
    cdef isize cols = min(where.j1 * sx, src.w) - j0, run, step, row_step
    if src.step_c != 1:    # the rows of a plane are one run, the planes the next
        run, r.row = (rows - 1) * src.step_h + (cols - 1) * src.step_w + 1, channels
        step, row_step, rows = src.step_c, 0, 1
    elif channels == src.step_w:
        run, r.row = cols * channels, 1
        step, row_step = 0, src.step_h
    else:
        run, r.row = channels, cols
        step, row_step = src.step_w, src.step_h
    r.at = pixel(src, where.n0, channel, i0, j0)
    r.run = r.of_run = ceil_div(run * src.itemsize, 64)
    r.left = rows * r.row * r.run
    r.jump = step * src.itemsize - 64 * r.run
    r.row_jump = (row_step - r.row * step) * src.itemsize
    r.of_row = r.row
    return r


cdef inline cnn_lines all_lines(const char *at, isize size) noexcept nogil:
    """The memory of a copy."""
    cdef cnn_lines r
    r.at = at
    r.left = r.run = r.of_run = r.row = r.of_row = ceil_div(size, 64)
    r.jump = r.row_jump = 0
    return r


# How the rows of a product are cut into tiles.
cdef struct tile_cut:
    isize rows, vectors                 # of a tile, at most


cdef inline tile_cut cut_rows(
    const cnn_kernels *kernels, isize rows, isize row_step, isize width, bint again
) noexcept nogil:
    """Tiles for rows `row_step` apart, `width` columns.

    again: whether the rows' pixels are in the first cache, being read by many tiles.
    """
    cdef tile_cut t
    t.rows = kernels.gradient_rows[1]
    t.vectors = width // kernels.lanes
    # rows side by side are operands of the products themselves where the kernel set
    # says so. If they fit one tile of one vector, fewer instructions do as much, which
    # tells where cores are shared (cq1 133 to 142 GFLOP/s); but each row is read twice
    # (1x1: 10 % slower), and many rows are better read once, by two vectors (3x3,
    # stride 2, 128->128 141 to 147, float64 61 to 73; 512->512 of 4x4 68 to 96)
    if row_step == 1 and (
            t.vectors == 1
            or again and 0 < kernels.gradient_single <= rows < kernels.gradient_rows[0]):
        t.vectors = 1
        t.rows = kernels.gradient_rows[0]
    return t


cdef inline isize tile_rows(const tile_cut *tile, isize left) noexcept nogil:
    """Rows of the tile that has `left` of them before it, an even number but the last.

    All are about as high (32 are 12 + 10 + 10): the few sums of a low one would take as
    long as 8.
    """
    cdef isize rows
    if left <= tile.rows:
        return left
    rows = ceil_div(left, ceil_div(left, tile.rows))
    return rows + rows % 2


cdef inline isize tile_width(
    const cnn_kernels *kernels, const tile_cut *tile, isize left
) noexcept nogil:
    """Columns of the tile that has `left` of them before it."""
    return kernels.lanes * (1 if left <= kernels.lanes else tile.vectors)


cdef inline void run_tiles(
    const gradient_of_weight *w, const box *where, cnn_gradient_tile *q,
    isize channels, isize tap, isize width, cnn_lines *x_next, cnn_lines *errors_next,
) noexcept nogil:
    """x[rows x pixels] . grad_y[pixels x filters] -> sums, tile by tile.

    q begins with the first of the rows, taps from `tap` on, of `channels` each.
    """
    cdef const cnn_kernels *kernels = w.kernels
    cdef const tap_list *taps = &w.taps
    cdef isize rows = channels * taps.wide, row = 0, v, size = kernels.itemsize
    cdef isize i0, i1, j0, j1
    cdef tile_cut tile = cut_rows(
        kernels, rows, q.a_row, width, taps.count > 1)
    cdef const char *a = <const char *> q.a
    cdef const char *b = <const char *> q.b
    cdef char *c = <char *> q.c
    cdef isize vector = tile.vectors * kernels.lanes
    q.cols, q.c_step = vector, width
    while row < rows:
        q.rows = tile_rows(&tile, rows - row)
        q.a = a + row * q.a_row * size
        if w.padded:
            clip(&i0, &i1, where.i0, where.i1, taps.sy, taps.dy[tap], taps.dy[tap],
                 w.x.h)
            clip(&j0, &j1, where.j0, where.j1, taps.sx, taps.dx[tap + row // channels],
                 taps.dx[tap + (row + q.rows - 1) // channels], w.x.w)
            q.batches, q.depth = i1 - i0, j1 - j0
            q.a = <const char *> q.a + size * (
                (i0 - where.i0) * q.a_move + (j0 - where.j0) * q.a_step)
            q.b = b + size * (
                (i0 - where.i0) * q.b_move + (j0 - where.j0) * q.b_step)
        else:
            q.b = b
        for v in range(width // vector):
            q.c = c + (row * width + v * vector) * size
            q.next = x_next if x_next.left > 0 else errors_next
            kernels.gradient_tile[ceil_div(q.rows, 2) - 1].run[tile.vectors - 1](q)
            q.b = <const char *> q.b + vector * size
        row += q.rows
    q.b = b


cdef inline void run_block(
    const gradient_of_weight *w, const box *where, const gradient_part *p, isize n,
    const band *around, const char *copied, isize width, char *sums,
    cnn_gradient_tile *q, cnn_lines *x_next, cnn_lines *errors_next,
) noexcept nogil:
    """All of a part's rows for one block of filters and image n of the box."""
    cdef isize size = w.kernels.itemsize, first = 0, t, channels, offset
    cdef band own = around[0]
    cdef const char *at
    while first < p.channels:
        channels = min(w.row_channels, p.channels - first)
        if w.x_lies:
            q.a_row, q.a_step = w.x.step_c, w.taps.sx * w.x.step_w
            q.a_move = w.taps.sy * w.x.step_h
            at = pixel(
                &w.x, where.n0 + n, p.group * w.channels + p.channel0 + first,
                where.i0 * w.taps.sy, where.j0 * w.taps.sx)
        else:
            own = band_of_channels(around, channels)
            q.a_row, q.a_step = 1, w.taps.sx * channels
            q.a_move = w.taps.sy * own.row_step
            at = copied + n * own.image_step * size
        t = 0
        while t < w.taps.count:
            if w.x_lies:
                offset = w.taps.dy[t] * w.x.step_h + w.taps.dx[t] * w.x.step_w
            else:
                offset = band_offset(&own, &w.taps, t)
            q.a, q.c = at + offset * size, sums
            run_tiles(w, where, q, channels, t, width, x_next, errors_next)
            sums += w.taps.wide * channels * width * size
            t += w.taps.wide
        copied += band_elements(&w.grid, around) * size
        first += channels


cdef inline band band_of_channels(const band *around, isize channels) noexcept nogil:
    """The same band of fewer channels."""
    cdef band b = around[0]
    b.channels = channels
    b.row_step = b.cols * channels
    b.image_step = b.rows * b.row_step
    return b


cdef inline void gradient_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize size = w.kernels.itemsize
    cdef gradient_part part = part_of(w, task)
    cdef gradient_part follows
    cdef gradient_space space = space_of(w)
    cdef isize band_bytes = band_elements(&w.grid, &space.around) * size
    cdef isize n, b, b_next, f, width, first, channels, run, pixels
    cdef band own
    cdef char *to
    cdef char *copied
    cdef char *sums = scratch
    cdef const char *errors
    cdef box where, after
    cdef cnn_lines x_next, errors_next
    cdef cnn_gradient_tile q

    if w.chunks > 1:
        sums = partial_sums(w, task)
    q.start = CNN_ZERO
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        run = where.j1 - where.j0
        pixels = (where.n1 - where.n0) * (where.i1 - where.i0) * run
        q.batches, q.depth = where.i1 - where.i0, run
        # x[channels][pixel][channel], so that a row of A walks on by some channels
        first = 0 if not w.x_lies else part.channels
        to = scratch + space.x
        while first < part.channels:
            channels = min(w.row_channels, part.channels - first)
            own = band_of_channels(&space.around, channels)
            fill_band(
                to, &own, &where, &w.taps, w.kernels, &w.x,
                part.group * w.channels + part.channel0 + first, channels)
            to += band_bytes
            first += channels
        copied = scratch + space.grad_y
        if w.errors_shared:
            copied = shared_errors(w, &part, b)
        elif not w.errors_lie:
            copy_errors(w, &part, &where, pixels, copied)
        # the next box, or the first one of the task that will follow
        follows = part
        b_next = b + 1
        if b_next == (part.chunk + 1) * boxes(&w.grid) // w.chunks:
            follows = part_of(w, task + 1)
            b_next = follows.chunk * boxes(&w.grid) // w.chunks
        x_next.left = errors_next.left = 0
        if follows.group < w.groups:
            after = box_at(&w.grid, b_next)
            x_next = lines_of(
                &w.x, &after, w.taps.sy, w.taps.sx,
                follows.group * w.channels + follows.channel0, follows.channels)
            if w.errors_shared:
                errors_next = all_lines(
                    shared_errors(w, &follows, b_next), errors_bytes(w))
            else:
                errors_next = lines_of(
                    &w.grad_y, &after, 1, 1,
                    follows.group * w.filters + follows.filter0, follows.filters)
        for n in range(where.n1 - where.n0):
            to = sums
            errors = copied
            f = 0
            while f < part.filters:
                width = filters_at(w, part.filters, f)
                if w.errors_lie:
                    q.b = pixel(
                        &w.grad_y, where.n0 + n,
                        part.group * w.filters + part.filter0 + f, where.i0, where.j0)
                    q.b_move, q.b_step = w.grad_y.step_h, w.grad_y.step_w
                else:
                    q.b = errors + n * run * (where.i1 - where.i0) * width * size
                    q.b_move, q.b_step = run * width, width
                run_block(w, &where, &part, n, &space.around, scratch + space.x, width,
                          to, &q, &x_next, &errors_next)
                to += part.channels * w.taps.count * width * size
                errors += pixels * width * size
                f += width
            q.start = CNN_ADD
    if w.chunks == 1:
        store_weights(w, &part, sums)


cdef inline void copy_errors(
    const gradient_of_weight *w, const gradient_part *p, const box *where,
    isize pixels, char *to,
) noexcept nogil:
    """grad_y of a box -> [block][pixel][filter], zeros in the lanes beyond."""
    cdef isize n, i, f = 0, width, used, size = w.kernels.itemsize
    cdef isize run = where.j1 - where.j0, rows = where.i1 - where.i0
    cdef char *at
    if run == w.grad_y.w and w.grad_y.step_h == run * w.grad_y.step_w:
        run *= rows
        rows = 1
    while f < p.filters:
        width = filters_at(w, p.filters, f)
        used = min(width, p.filters - f)
        if used < width:
            memset(to, 0, pixels * width * size)
        at = to
        for n in range(where.n0, where.n1):
            for i in range(rows):
                w.kernels.copy(
                    at, width, 1,
                    pixel(&w.grad_y, n, p.group * w.filters + p.filter0 + f,
                          where.i0 + i, where.j0),
                    w.grad_y.step_w, w.grad_y.step_c, run, used)
                at += run * width * size
        to += pixels * width * size
        f += width


cdef inline void share_errors_task(void *job, isize task, char *scratch) noexcept nogil:
    """The errors of one box and part, where all parts of the channels read them."""
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize index = task // w.filter_parts % boxes(&w.grid)
    cdef box where = box_at(&w.grid, index)
    cdef gradient_part p
    p.group = task // w.filter_parts // boxes(&w.grid)
    p.filter0 = task % w.filter_parts * w.some_filters
    p.filters = min(w.some_filters, w.filters - p.filter0)
    copy_errors(
        w, &p, &where,
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0),
        shared_errors(w, &p, index))


cdef inline int share_errors(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Copy the errors once for all parts of the channels."""
    cdef isize copies = w.groups * boxes(&w.grid) * w.filter_parts
    w.shared = NULL
    if not w.errors_shared:
        return 0
    w.shared = <char *> runtime.take(copies * errors_bytes(w))
    if w.shared == NULL:
        return -1
    return runtime.run(
        share_errors_task, w, copies, 0,
        4 * <double> (copies * errors_bytes(w)) / w.kernels.itemsize)


cdef inline bint rows_lie(const gradient_of_weight *w) noexcept nogil:
    """Whether the rows of tiles may be read where x lies."""
    cdef isize size = w.kernels.itemsize
    if w.x.step_c != 1:
        # planes further apart than this share too few places of the first cache
        return (
            w.taps.count == 1 and w.x.step_w == 1 and w.x.step_c * size % 2048 != 0)
    # an even number of rows, for no tile must look behind them; and taps beside each
    # other need whole pixels, without a gap
    return w.x.step_w * size <= 1024 and w.channels * w.taps.wide % 2 == 0 and (
        w.taps.count == 1
        or w.some_channels >= w.channels and w.x.step_w == w.channels)


cdef inline void plan_gradient(gradient_of_weight *w) noexcept nogil:
    """Choose parts, chunks and boxes from the geometry alone."""
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize, lanes = kernels.lanes, pixels
    cdef isize chunks, parts, share, columns, most
    w.padded = meets_padding(&w.taps, &w.x, &w.grad_y)
    w.errors_lie = (
        w.grad_y.step_c == 1 and w.filters % lanes == 0
        and w.grad_y.step_w * size <= 1024)
    # a task's sums stay in the second-level cache; its pixels are copied once for
    # all of its filters, so filters come first
    w.some_filters = even_share(w.filters, 256)
    if w.some_filters < w.filters:
        w.some_filters = ceil_div(w.some_filters, w.block) * w.block
    while (w.some_filters > lanes and
           w.taps.count * whole_vectors(w, w.some_filters) * size > SUM_BYTES):
        w.some_filters = ceil_div(w.some_filters // 2, lanes) * lanes
    w.some_channels = even_share(w.channels, max(
        1, SUM_BYTES // (w.taps.count * whole_vectors(w, w.some_filters) * size)))
    # up to eight tasks: rather by channels than by chunks, whose sums go through
    # memory, which costs each chunk about as much as 60 pixels in the tiles; but each
    # part of the channels copies the errors (1x1 40->120 at 14x14: 64 to 106 GFLOP/s)
    pixels = w.grad_y.n * w.grad_y.h * w.grad_y.w
    columns = w.channels * w.taps.count
    w.tasks = min(8, max(1, (pixels * w.groups * w.filters * columns) >> 21))
    chunks = pixels // 1200
    if not w.errors_lie:
        chunks = max(chunks, pixels // max(400, 2 * columns))
    chunks = min(w.tasks, max(1, chunks))
    parts = w.groups * ceil_div(w.filters, w.some_filters)
    share = ceil_div(w.channels, ceil_div(w.tasks, chunks * parts))
    share = ceil_div(share, lanes) * lanes
    w.some_channels = min(w.some_channels + w.some_channels % 2, share)
    w.x_lies = not w.padded and rows_lie(w)
    # parts of the channels share a copy of the errors (1x1 1024->256 over planes of
    # 14x14: 186 to 194 GFLOP/s, float64 88 to 94)
    w.errors_shared = (
        w.some_channels < w.channels and not w.errors_lie
        and pixels * w.groups * whole_vectors(w, w.filters) * size <= SHARED_BYTES)
    # whole tiles of channels, however many taps lie side by side
    w.row_channels = w.some_channels
    if not w.x_lies and w.some_channels > 2 * kernels.gradient_rows[0]:
        w.row_channels = 2 * kernels.gradient_rows[0]
    # a block's errors stay in the first cache, row tile by row tile; with the channels
    # of one tap, which come from further away, rather half of it (float64 1x1
    # 256->512, stride 2: 51 to 59 GFLOP/s; but planes are read by runs of pixels).
    # Wide images of few channels: some more rows than the kernel's, for each box copies
    # those again (channels-last 3->64 of 224x224 140 to 153, 8->16 of 112x112 154 to 162;
    # but copies of errors are better small: 3->16 of 640x480 91 to 74)
    most = 256
    if w.taps.count > 1 and w.errors_lie:
        most = max(most, min(
            (w.taps.rows + 1) * w.grad_y.w,
            FEW_BYTES // (w.row_channels * w.taps.sy * w.taps.sx * size)))
    elif w.taps.count == 1 and not (w.x_lies and w.x.step_c != 1):
        most = 128
    w.grid = cut(w.grad_y.n, w.grad_y.h, w.grad_y.w, min(max(pixels // 8, 64), most))
    while copies_bytes(w) > COPY_BYTES:
        if not halve(&w.grid, 16):
            if w.some_channels <= 2:
                break
            w.some_channels = ceil_div(w.some_channels, 4) * 2
            w.row_channels = min(w.row_channels, w.some_channels)
    w.part_size = (
        w.some_channels * w.taps.count * whole_vectors(w, w.some_filters))


cdef inline isize copies_bytes(const gradient_of_weight *w) noexcept nogil:
    cdef gradient_space s = space_of(w)
    return s.total - s.x
