# The engine of the gradients that are sums over images and pixels:
#
#   grad_weight[k, c, t] = sum over n, i, j of
#                          grad_y[n, k, i, j] * x[n, c, i*sy + dy_t, j*sx + dx_t]
#
# A task owns some channels and filters of one group, and a chunk of the pixels. The
# sum is cut by shape into chunks that are added in a fixed order: the same bits for
# any number of threads. Here is the direct sum, in tiles of (tap, channel) rows x block
# filters; planes_gradient.pxd, winograd_gradient.pxd and few_pixels.pxd have others.

from boxes cimport (
    band, band_elements, band_of, band_offset, box, box_at, box_grid, box_pixels,
    boxes, cut, fill_band, halve, meets_padding, tap_list,
)
from correlate cimport aligned
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_ADD, CNN_ZERO, cnn_gradient_kernel, cnn_gradient_tile, cnn_kernels, cnn_lines,
    cnn_winograd, isize,
)
from libc.string cimport memset

# Bounds of scratch memory, in bytes: a task's sums, its copies, all chunks' sums.
cdef enum:
    SUM_BYTES = 640 << 10
    COPY_BYTES = 1 << 20
    CHUNKS_BYTES = 4 << 20


# A task's part of the sum.
cdef struct gradient_part:
    isize chunk, group, channel0, channels, filter0, filters


ctypedef void (*store_sums)(
    const gradient_of_weight *, const gradient_part *, const char *) noexcept nogil


cdef struct gradient_of_weight:
    const cnn_kernels *kernels
    image x, grad_y
    char *grad_weight                   # contiguous
    isize groups, channels, filters     # of one group
    tap_list taps
    bint exchanged                      # x and grad_y, channels and filters: exchange
    int (*interrupted)() noexcept nogil

    # what the geometry leads to
    int algorithm
    bint padded                         # taps can lie outside of the image
    bint x_lies, errors_lie             # tiles read them where they lie
    const cnn_winograd *winograd
    isize gang                          # PLANES: groups of a part
    box_grid grid                       # of outputs, or of Winograd's patches
    isize block
    isize some_channels, some_filters   # a task's part of the weights
    isize channel_parts, filter_parts, chunks
    isize part_size                     # a part's weights, filters in whole vectors
    store_sums store
    char *partial                       # [part][chunk][part_size], if chunks > 1


cdef inline gradient_part part_of(
    const gradient_of_weight *w, isize task
) noexcept nogil:
    cdef gradient_part p
    p.chunk = task % w.chunks
    task //= w.chunks
    p.filter0 = task % w.filter_parts * w.some_filters
    task //= w.filter_parts
    p.channel0 = task % w.channel_parts * w.some_channels
    p.group = task // w.channel_parts
    p.channels = min(w.some_channels, w.channels - p.channel0)
    p.filters = min(w.some_filters, w.filters - p.filter0)
    return p


cdef inline char *partial_sums(
    const gradient_of_weight *w, isize task
) noexcept nogil:
    """Where a task leaves its sums [block][tap][channel][filter]."""
    return w.partial + task * w.part_size * w.kernels.itemsize


cdef inline isize whole_vectors(
    const gradient_of_weight *w, isize count
) noexcept nogil:
    return ceil_div(count, w.kernels.lanes) * w.kernels.lanes


cdef inline isize filters_at(
    const gradient_of_weight *w, isize filters, isize first
) noexcept nogil:
    """Width of the block of filters that begins at `first`."""
    return min(w.block, whole_vectors(w, filters) - first)


cdef inline void store_weights(
    const gradient_of_weight *w, const gradient_part *p, const char *sums,
) noexcept nogil:
    """sums[block][tap][channel][filter] -> grad_weight[filter][channel][tap]."""
    cdef isize size = w.kernels.itemsize, taps = w.taps.count, f = 0, c, t, width
    cdef isize all_channels = w.channels * taps, used
    cdef char *to = w.grad_weight + size * (
        (p.group * w.filters + p.filter0) * all_channels + p.channel0 * taps)
    if w.exchanged:
        to = w.grad_weight + size * taps * (
            (p.group * w.channels + p.channel0) * w.filters + p.filter0)
    while f < p.filters:
        width = filters_at(w, p.filters, f)
        used = min(width, p.filters - f)
        if w.exchanged:
            for t in range(taps):
                w.kernels.copy(
                    to + size * (f * taps + taps - 1 - t), w.filters * taps, taps,
                    sums + t * p.channels * width * size, width, 1,
                    p.channels, used)
        elif taps == 1:
            w.kernels.copy(
                to + size * f * all_channels, 1, all_channels, sums, width, 1,
                p.channels, used)
        else:
            for c in range(p.channels):
                w.kernels.copy(
                    to + size * (f * all_channels + c * taps), 1, all_channels,
                    sums + c * width * size, p.channels * width, 1, taps, used)
        sums += taps * p.channels * width * size
        f += width


cdef inline void add_chunks_task(void *job, isize task, char *scratch) noexcept nogil:
    """Add the chunks of one part, in a fixed order, and store its weights."""
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef gradient_part part = part_of(w, task * w.chunks)
    w.kernels.sum_parts(
        scratch, partial_sums(w, task * w.chunks), w.part_size, w.chunks,
        w.part_size)
    w.store(w, &part, scratch)


# What a direct task's scratch holds, in bytes from its start.
cdef struct gradient_space:
    isize rows                          # tap-channel pairs of a task, and a tile
    band around                         # of one vector of channels, or of one plane
    isize a, x, grad_y, total


cdef inline gradient_space space_of(const gradient_of_weight *w) noexcept nogil:
    cdef gradient_space s
    cdef isize size = w.kernels.itemsize
    cdef isize filters = whole_vectors(w, w.some_filters)
    s.around = band_of(&w.grid, &w.taps, min(
        1 if w.x.step_w == 1 else w.kernels.lanes, w.some_channels))
    s.rows = w.some_channels * w.taps.count + w.kernels.gradient_tile.rows
    s.a = aligned(w.some_channels * w.taps.count * filters * size)
    s.x = s.a + aligned(s.rows * <isize> sizeof(void *))
    s.grad_y = s.x
    if not w.x_lies:
        s.grad_y += aligned(
            ceil_div(w.some_channels, s.around.channels)
            * band_elements(&w.grid, &s.around) * size)
    s.total = s.grad_y
    if not w.errors_lie:
        s.total += aligned(box_pixels(&w.grid) * filters * size)
    return s


cdef inline void point_at_rows(
    const gradient_of_weight *w, const gradient_part *p, const gradient_space *s,
    const char *copied, const void **a,
) noexcept nogil:
    """a[row]: the first pixel of each (tap, channel), of the array or of a band."""
    cdef isize size = w.kernels.itemsize, lanes = s.around.channels, t, ch
    cdef isize band_bytes = band_elements(&w.grid, &s.around) * size
    cdef isize row = 0
    cdef const char *tap
    for t in range(w.taps.count):
        if w.x_lies:
            tap = w.x.data + size * (
                (p.group * w.channels + p.channel0) * w.x.step_c
                + w.taps.dy[t] * w.x.step_h + w.taps.dx[t] * w.x.step_w)
        else:
            tap = copied + size * band_offset(&s.around, &w.taps, t)
        for ch in range(p.channels):
            if w.x_lies:
                a[row] = tap + ch * w.x.step_c * size
            else:
                a[row] = tap + ch // lanes * band_bytes + ch % lanes * size
            row += 1
    for ch in range(w.kernels.gradient_tile.rows):
        a[row + ch] = a[0]


cdef inline void clip(
    isize *first, isize *end, isize from_, isize to, isize stride, isize d_min,
    isize d_max, isize size,
) noexcept nogil:
    """The outputs in [from_, to) for which one of the taps lies in the image."""
    first[0] = max(from_, ceil_div(max(0, -d_max), stride))
    end[0] = min(to, (size - 1 - d_min) // stride + 1) if size > d_min else 0
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


cdef inline isize tile_rows(const cnn_gradient_kernel *kernels, isize rows) noexcept nogil:
    """Rows of the kernel that begins `rows` rows: with the next one, few are idle."""
    cdef const cnn_gradient_kernel *k = kernels
    cdef const cnn_gradient_kernel *after
    cdef isize most = kernels.rows, best = 0, idle = 3 * most, covered
    if rows >= 2 * most:
        return 0
    while k.rows > 0:
        after = kernels
        while after.rows > 0:
            covered = k.rows if k.rows >= rows else k.rows + after.rows
            if covered >= rows and covered - rows < idle:
                idle = covered - rows
                best = k - kernels
            after += 1
        k += 1
    return best


cdef inline void run_tiles(
    const gradient_of_weight *w, const box *where,
    cnn_gradient_tile *q, isize channels, isize width, const void *const *a,
    char *sums, cnn_lines *x_next, cnn_lines *errors_next,
) noexcept nogil:
    """x[rows x pixels] . grad_y[pixels x filters] -> sums, tile by tile."""
    cdef const cnn_kernels *kernels = w.kernels
    cdef const cnn_gradient_kernel *kernel
    cdef const tap_list *taps = &w.taps
    cdef isize rows = channels * taps.count, row = 0, t0, t1, i0, i1, j0, j1, d
    cdef isize dx_min, dx_max, size = kernels.itemsize
    cdef isize a_from = q.a_from
    cdef const char *b = <const char *> q.b
    while row < rows:
        kernel = kernels.gradient_tile + tile_rows(kernels.gradient_tile, rows - row)
        q.rows = min(kernel.rows, rows - row)
        q.a = a + row
        q.c = sums + row * width * size
        if w.padded:
            t0, t1 = row // channels, (row + q.rows - 1) // channels
            dx_min, dx_max = taps.dx[t0], taps.dx[t0]
            for d in range(t0 + 1, t1 + 1):
                dx_min, dx_max = min(dx_min, taps.dx[d]), max(dx_max, taps.dx[d])
            clip(&i0, &i1, where.i0, where.i1, taps.sy, taps.dy[t0], taps.dy[t1],
                 w.x.h)
            clip(&j0, &j1, where.j0, where.j1, taps.sx, dx_min, dx_max, w.x.w)
            q.batches, q.depth = i1 - i0, j1 - j0
            q.a_from = (
                a_from + (i0 - where.i0) * q.a_move + (j0 - where.j0) * q.a_step)
            q.b = b + size * (
                (i0 - where.i0) * q.b_move + (j0 - where.j0) * q.b_step)
        q.next = x_next if x_next.left > 0 else errors_next
        kernel.run[width // kernels.lanes - 1](q)
        row += q.rows
    q.a_from = a_from


cdef inline void gradient_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize
    cdef gradient_part part = part_of(w, task)
    cdef gradient_part follows
    cdef gradient_space space = space_of(w)
    cdef const band *around = &space.around
    cdef isize lanes = around.channels
    cdef isize band_bytes = band_elements(&w.grid, around) * size
    cdef isize rows = part.channels * w.taps.count
    cdef isize n, b, b_next, f, width, ch, run, pixels
    cdef const void **a = <const void **> (scratch + space.a)
    cdef char *to
    cdef char *sums = scratch
    cdef const char *errors
    cdef box where, after
    cdef cnn_lines x_next, errors_next
    cdef cnn_gradient_tile q

    if w.chunks > 1:
        sums = partial_sums(w, task)
    point_at_rows(w, &part, &space, scratch + space.x, a)
    q.start = CNN_ZERO
    q.a_step = w.taps.sx * (w.x.step_w if w.x_lies else lanes)
    q.a_move = w.taps.sy * (w.x.step_h if w.x_lies else around.row_step)
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        run = where.j1 - where.j0
        pixels = (where.n1 - where.n0) * (where.i1 - where.i0) * run
        q.batches, q.depth = where.i1 - where.i0, run
        # x[channel / lanes][pixel][lane], so that a row of A walks on by one vector
        for ch in range(0 if w.x_lies else ceil_div(part.channels, lanes)):
            fill_band(
                scratch + space.x + ch * band_bytes, around, &where, &w.taps,
                kernels, &w.x, part.group * w.channels + part.channel0 + ch * lanes,
                min(lanes, part.channels - ch * lanes))
        if not w.errors_lie:
            copy_errors(w, &part, &where, pixels, scratch + space.grad_y)
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
            errors_next = lines_of(
                &w.grad_y, &after, 1, 1,
                follows.group * w.filters + follows.filter0, follows.filters)
        for n in range(where.n1 - where.n0):
            q.a_from = n * around.image_step
            if w.x_lies:
                q.a_from = (
                    (where.n0 + n) * w.x.step_n + where.i0 * w.taps.sy * w.x.step_h
                    + where.j0 * w.taps.sx * w.x.step_w)
            # x[rows x pixels] . grad_y[pixels x filters] -> sums, tile by tile
            to = sums
            errors = scratch + space.grad_y
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
                q.cols = q.c_step = width
                run_tiles(w, &where, &q, part.channels, width, a, to,
                          &x_next, &errors_next)
                to += rows * width * size
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


cdef inline void join_rows(gradient_of_weight *w) noexcept nogil:
    """Images and rows of a 1x1 kernel's pixels become as few runs as can be."""
    if (w.grad_y.n == 0 or w.taps.count != 1
            or w.taps.dy[0] != 0 or w.taps.dx[0] != 0
            or (w.grad_y.h - 1) * w.taps.sy >= w.x.h
            or (w.grad_y.w - 1) * w.taps.sx >= w.x.w):
        return
    w.x.step_h *= w.taps.sy
    w.x.step_w *= w.taps.sx
    w.x.h, w.x.w = w.grad_y.h, w.grad_y.w
    w.taps.sy = w.taps.sx = 1
    if one_run(&w.x) and one_run(&w.grad_y):
        rows_to_columns(&w.x)
        rows_to_columns(&w.grad_y)
        if one_run(&w.x) and one_run(&w.grad_y):
            rows_to_columns(&w.x)
            rows_to_columns(&w.grad_y)


cdef inline bint exchange_pays(const gradient_of_weight *w) noexcept nogil:
    """Whether filters are better the rows of tiles, and channels their vectors.

    The sum over pixels p of grad_y[p] x[p + d] is that of x[p] grad_y[p - d].
    """
    # vectors of filters would stay half empty
    if w.filters < 16 <= w.channels:
        return w.taps.sy == 1 and w.taps.sx == 1
    # planes: vectors have to be turned, rows are read as they lie
    return (
        w.taps.count == 1 and w.taps.sy == 1 and w.taps.sx == 1
        and w.x.step_w == 1 and w.grad_y.step_w == 1 and 16 <= w.channels < w.filters)


cdef inline void exchange(gradient_of_weight *w) noexcept nogil:
    """Exchange the operands; the caller lists the taps the other way round."""
    w.exchanged = True
    w.x, w.grad_y = w.grad_y, w.x
    w.channels, w.filters = w.filters, w.channels


cdef inline bint one_run(const image *i) noexcept nogil:
    return i.step_h == i.w * i.step_w


cdef inline void rows_to_columns(image *i) noexcept nogil:
    """An image becomes a row, and the images the rows of one image."""
    i.w *= i.h
    i.h, i.step_h = i.n, i.step_n
    i.n = 1


cdef inline void plan_gradient(gradient_of_weight *w) noexcept nogil:
    """Choose parts, chunks and boxes from the geometry alone."""
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize, lanes = kernels.lanes, pixels
    cdef isize chunks, parts, share
    w.padded = meets_padding(&w.taps, &w.x, &w.grad_y)
    # pixels that several taps read are better copied close together; pixels further
    # apart than this share too few places of the first cache
    w.x_lies = not w.padded and w.taps.count == 1 and (
        w.x.step_c * size % 2048 != 0 if w.x.step_w == 1
        else w.x.step_c == 1 and w.x.step_w * size <= 1024)
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
    # eight tasks: rather by channels than by chunks, whose sums go through memory,
    # which costs each chunk about as much as 60 pixels in the tiles
    pixels = w.grad_y.n * w.grad_y.h * w.grad_y.w
    chunks = min(8, max(1, pixels // 1200))
    parts = w.groups * ceil_div(w.filters, w.some_filters)
    share = ceil_div(w.channels, ceil_div(8, chunks * parts))
    share = ceil_div(share, lanes) * lanes
    w.some_channels = min(w.some_channels, share)
    # a block's errors (256 pixels) stay in the first cache, row tile by row tile
    w.grid = cut(w.grad_y.n, w.grad_y.h, w.grad_y.w, min(max(pixels // 8, 64), 256))
    while copies_bytes(w) > COPY_BYTES:
        if not halve(&w.grid, 16):
            if w.some_channels == 1:
                break
            w.some_channels = ceil_div(w.some_channels, 2)
    w.part_size = (
        w.some_channels * w.taps.count * whole_vectors(w, w.some_filters))


cdef inline isize copies_bytes(const gradient_of_weight *w) noexcept nogil:
    cdef gradient_space s = space_of(w)
    return s.total - s.x
