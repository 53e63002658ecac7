# The engine of the gradients that are sums over images and pixels:
#
#   grad_weight[k, c, t] = sum over n, i, j of
#                          grad_y[n, k, i, j] * x[n, c, i*sy + dy_t, j*sx + dx_t]
#
# A task owns some channels and filters of one group, and a chunk of the pixels. The
# sum is cut by shape into chunks that are added in a fixed order: the same bits for
# any number of threads. Here is the direct sum, in tiles of mr (tap, channel) rows x
# block filters; winograd_gradient.pxd has the other algorithm.

from boxes cimport (
    band, band_elements, band_of, band_offset, box, box_at, box_grid, box_pixels,
    boxes, cut, fill_band, halve, tap_list,
)
from correlate cimport aligned
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_ADD, CNN_LINEAR, cnn_kernels, cnn_runtime, cnn_tile, cnn_winograd, isize,
    kernels_for, run_tile,
)
from libc.string cimport memset

# Bounds of scratch memory, in bytes: a task's sums, its copies, all chunks' sums.
cdef enum:
    SUM_BYTES = 640 << 10
    COPY_BYTES = 1 << 20
    CHUNKS_BYTES = 4 << 20
    # pixels that are summed at a stretch for the gradient of a bias
    STRETCH = 1 << 20


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
    int (*interrupted)() noexcept nogil

    # what the geometry leads to
    int algorithm
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
    cdef isize size = w.kernels.itemsize, taps = w.taps.count, f = 0, c, width
    cdef char *to = w.grad_weight + size * taps * (
        (p.group * w.filters + p.filter0) * w.channels + p.channel0)
    while f < p.filters:
        width = filters_at(w, p.filters, f)
        if taps == 1:
            w.kernels.copy(
                to + size * f * w.channels, 1, w.channels, sums, width, 1,
                p.channels, min(width, p.filters - f))
        else:
            for c in range(p.channels):
                w.kernels.copy(
                    to + size * (f * w.channels + c) * taps, 1, w.channels * taps,
                    sums + c * width * size, p.channels * width, 1,
                    taps, min(width, p.filters - f))
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
    isize rows                          # tap-channel pairs of a task, whole tiles
    band around                         # of one vector of channels
    isize a, c, x, grad_y, total


cdef inline gradient_space space_of(const gradient_of_weight *w) noexcept nogil:
    cdef gradient_space s
    cdef isize size = w.kernels.itemsize, mr = w.kernels.mr
    cdef isize filters = whole_vectors(w, w.some_filters)
    s.around = band_of(&w.grid, &w.taps, min(w.kernels.lanes, w.some_channels))
    s.rows = ceil_div(w.some_channels * w.taps.count, mr) * mr
    s.a = aligned(s.rows * filters * size)
    s.c = s.a + aligned(s.rows * <isize> sizeof(void *))
    s.x = s.c + aligned(mr * <isize> sizeof(void *))
    s.grad_y = s.x + aligned(
        ceil_div(w.some_channels, s.around.channels)
        * band_elements(&w.grid, &s.around) * size)
    s.total = s.grad_y + aligned(box_pixels(&w.grid) * filters * size)
    return s


cdef inline void gradient_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize, mr = kernels.mr, taps = w.taps.count
    cdef gradient_part part = part_of(w, task)
    cdef gradient_space space = space_of(w)
    cdef const band *around = &space.around
    cdef isize lanes = around.channels
    cdef isize band_bytes = band_elements(&w.grid, around) * size
    cdef isize rows = part.channels * taps, padded = ceil_div(rows, mr) * mr
    cdef isize row, n, b, f, width, t, d, ch, pixels
    cdef const void **a = <const void **> (scratch + space.a)
    cdef void **c = <void **> (scratch + space.c)
    cdef char *to
    cdef char *sums = scratch
    cdef const char *images
    cdef const char *errors
    cdef box where
    cdef cnn_tile q

    if w.chunks > 1:
        sums = partial_sums(w, task)
    memset(sums, 0, rows * whole_vectors(w, part.filters) * size)
    q.start, q.activation = CNN_ADD, CNN_LINEAR
    q.c, q.c_move = c, 0
    q.a_next, q.a_from, q.a_step = 0, 0, w.taps.sx * lanes
    q.a_move = w.taps.sy * around.row_step
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        q.batches, q.depth = where.i1 - where.i0, where.j1 - where.j0
        pixels = (where.n1 - where.n0) * q.batches * q.depth
        # x[channel / lanes][pixel][lane], so that a row of A walks on by one vector
        for ch in range(ceil_div(part.channels, lanes)):
            fill_band(
                scratch + space.x + ch * band_bytes, around, &where, &w.taps,
                kernels, &w.x, part.group * w.channels + part.channel0 + ch * lanes,
                min(lanes, part.channels - ch * lanes))
        copy_errors(w, &part, &where, pixels, scratch + space.grad_y)
        for n in range(where.n1 - where.n0):
            images = scratch + space.x + n * around.image_step * size
            row = 0
            for t in range(taps):
                d = band_offset(around, &w.taps, t) * size
                for ch in range(part.channels):
                    a[row] = (
                        images + d + ch // lanes * band_bytes + ch % lanes * size)
                    row += 1
            for row in range(rows, padded):
                a[row] = a[0]
            # x[rows x pixels] . grad_y[pixels x filters] -> sums, tile by tile
            to = sums
            errors = scratch + space.grad_y
            f = 0
            while f < part.filters:
                width = filters_at(w, part.filters, f)
                q.b = errors + n * q.batches * q.depth * width * size
                q.b_move, q.b_step, q.cols = q.depth * width, width, width
                for row in range(padded // mr):
                    for d in range(mr):
                        c[d] = to + d * width * size
                    q.a = a + row * mr
                    q.rows = min(mr, rows - row * mr)
                    run_tile(kernels, &q, width)
                    to += q.rows * width * size
                errors += pixels * width * size
                f += width
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


cdef inline void plan_gradient(gradient_of_weight *w) noexcept nogil:
    """Choose parts, chunks and boxes from the geometry alone."""
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize, lanes = kernels.lanes, pixels
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
    # a block's errors (256 pixels) stay in the first cache, row tile by row tile
    pixels = w.grad_y.n * w.grad_y.h * w.grad_y.w
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


# grad_bias: each task owns some channels and adds image by image, row by row.
cdef struct channel_sum:
    const cnn_kernels *kernels
    image src
    char *dst
    isize some
    int (*interrupted)() noexcept nogil


cdef inline void sum_channels_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const channel_sum *s = <const channel_sum *> job
    cdef isize size = s.kernels.itemsize
    cdef isize c0 = task * s.some, channels = min(s.some, s.src.c - c0)
    cdef isize n, y, x, rows = s.src.h, cols = s.src.w, passed = 0
    cdef char *dst = s.dst + c0 * size
    if s.src.step_h == s.src.w * s.src.step_w:  # without gaps: one long row
        cols *= rows
        rows = 1
    memset(dst, 0, channels * size)
    for n in range(s.src.n):
        memset(scratch, 0, channels * size)
        for y in range(rows):
            for x in range(ceil_div(cols, STRETCH)):
                passed += min(cols, STRETCH)
                if passed > STRETCH:
                    passed = 0
                    if s.interrupted():
                        return
                s.kernels.sum_rows(
                    scratch, pixel(&s.src, n, c0, y, x * STRETCH), s.src.step_c,
                    s.src.step_w, channels, min(cols - x * STRETCH, STRETCH))
        s.kernels.sum_rows(dst, scratch, 1, 0, channels, 1)


cdef inline int sum_channels(
    const cnn_runtime *runtime, image src, char *dst
) noexcept nogil:
    cdef channel_sum s
    s.kernels = kernels_for(runtime, src.itemsize)
    s.src, s.dst = src, dst
    s.interrupted = runtime.interrupted
    s.some = 4 * s.kernels.lanes
    if src.step_c != 1:
        s.some = max(1, src.c // 8)
    return runtime.run(
        sum_channels_task, &s, ceil_div(src.c, s.some), s.some * src.itemsize,
        <double> src.n * src.c * src.h * src.w)
