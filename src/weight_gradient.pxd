# The engine of the gradients that are sums over images and pixels:
#
#   grad_weight[k, c, t] = sum over n, i, j of
#                          grad_y[n, k, i, j] * x[n, c, i*sy + dy_t, j*sx + dx_t]
#
# in tiles of mr (tap, channel) rows x block filters. A walks over the pixels of x
# in a band, B over the pixels of grad_y. The sum is cut by shape into chunks that
# are added in a fixed order: the same bits for any number of threads.

from boxes cimport (
    band, band_elements, band_of, band_offset, box, box_at, box_grid, box_pixels,
    boxes, cut, fill_band, halve, tap_list,
)
from correlate cimport aligned
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_ADD, CNN_LINEAR, cnn_kernels, cnn_runtime, cnn_tile, isize, kernels_for,
)
from libc.string cimport memset

# Bounds of scratch memory, in bytes: a task's sums, its two bands, all chunks' sums.
cdef enum:
    SUM_BYTES = 640 << 10
    BANDS_BYTES = 1 << 20
    CHUNKS_BYTES = 4 << 20


cdef struct gradient_of_weight:
    const cnn_kernels *kernels
    image x, grad_y
    char *grad_weight                   # contiguous
    isize groups, channels, filters     # of one group
    tap_list taps

    # what the geometry leads to
    box_grid grid
    band around
    bint copied                         # grad_y is copied into a band
    isize block
    isize some_channels, some_filters   # a task's part of the weights
    isize channel_parts, filter_parts, chunks
    char *partial                       # [chunk][weights], if chunks > 1


cdef struct gradient_space:
    isize rows                          # tap-channel pairs of a task, whole tiles
    isize sums, a, c, x, grad_y, total  # bytes from the start of scratch


cdef inline gradient_space space_of(const gradient_of_weight *w) noexcept nogil:
    cdef gradient_space s
    cdef isize size = w.kernels.itemsize, mr = w.kernels.mr
    s.rows = ceil_div(w.some_channels * w.taps.count, mr) * mr
    s.sums = 0
    s.a = s.sums + aligned(s.rows * padded_filters(w) * size)
    s.c = s.a + aligned(s.rows * <isize> sizeof(void *))
    s.x = s.c + aligned(mr * <isize> sizeof(void *))
    s.grad_y = s.x + aligned(band_elements(&w.grid, &w.around) * size)
    s.total = s.grad_y
    if w.copied:
        s.total += aligned(box_pixels(&w.grid) * padded_filters(w) * size)
    return s


cdef inline isize padded_filters(const gradient_of_weight *w) noexcept nogil:
    return ceil_div(w.some_filters, w.kernels.lanes) * w.kernels.lanes


cdef inline void gradient_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize, mr = kernels.mr, taps = w.taps.count
    cdef isize chunk = task % w.chunks
    cdef isize part = task // w.chunks
    cdef isize filter0 = part % w.filter_parts * w.some_filters
    cdef isize channel0 = part // w.filter_parts % w.channel_parts * w.some_channels
    cdef isize group = part // w.filter_parts // w.channel_parts
    cdef isize channels = min(w.some_channels, w.channels - channel0)
    cdef isize filters = min(w.some_filters, w.filters - filter0)
    cdef gradient_space space = space_of(w)
    cdef band around = band_of(&w.grid, &w.taps, channels)
    cdef isize row, n, b, f, width, used, t, d, ch
    cdef isize rows = channels * taps, padded = ceil_div(rows, mr) * mr
    cdef const void **a = <const void **> (scratch + space.a)
    cdef void **c = <void **> (scratch + space.c)
    cdef char *sums = scratch + space.sums
    cdef char *to
    cdef char *image_band
    cdef const char *errors
    cdef isize error_row, error_pixel, error_image
    cdef box where
    cdef cnn_tile q

    memset(sums, 0, space.rows * padded_filters(w) * size)
    q.start, q.activation = CNN_ADD, CNN_LINEAR
    q.c, q.c_move = c, 0
    q.a_next, q.a_step = 0, w.taps.sx * channels
    q.a_move = w.taps.sy * around.row_step
    for b in range(chunk * boxes(&w.grid) // w.chunks,
                   (chunk + 1) * boxes(&w.grid) // w.chunks):
        where = box_at(&w.grid, b)
        fill_band(scratch + space.x, &around, &where, &w.taps, kernels, &w.x,
                  group * w.channels + channel0)
        q.batches, q.depth = where.i1 - where.i0, where.j1 - where.j0
        if w.copied:
            error_pixel = padded_filters(w)
            error_row = q.depth * error_pixel
            error_image = q.batches * error_row
            errors = scratch + space.grad_y
            copy_errors(w, &where, group * w.filters + filter0, filters,
                        scratch + space.grad_y)
        else:
            error_pixel, error_row = w.grad_y.step_w, w.grad_y.step_h
            error_image = w.grad_y.step_n
            errors = pixel(&w.grad_y, where.n0, group * w.filters + filter0,
                           where.i0, where.j0)
        for n in range(where.n1 - where.n0):
            image_band = scratch + space.x + n * around.image_step * size
            row = 0
            for t in range(taps):
                d = band_offset(&around, &w.taps, t)
                for ch in range(channels):
                    a[row] = image_band + (d + ch) * size
                    row += 1
            for row in range(rows, padded):
                a[row] = a[0]
            q.b_move, q.b_step = error_row, error_pixel
            # x[rows x pixels] . grad_y[pixels x filters] -> sums, tile by tile
            to = sums
            f = 0
            while f < filters:
                width = kernels.lanes
                if padded_filters(w) - f > width and filters - f > width:
                    width = w.block
                q.b = errors + (n * error_image + f) * size
                q.cols = width
                for row in range(padded // mr):
                    for d in range(mr):
                        c[d] = to + d * width * size
                    q.rows = mr
                    q.a = a + row * mr
                    kernels.tile[width // kernels.lanes - 1](&q)
                    to += mr * width * size
                f += width
    # sums[block][tap][channel][filter] -> grad_weight[filter][channel][tap]
    to = w.grad_weight
    if w.chunks > 1:
        to = w.partial + chunk * size * (
            w.groups * w.filters * w.channels * taps)
    to += size * taps * (
        (group * w.filters + filter0) * w.channels + channel0)
    f = 0
    while f < filters:
        width = kernels.lanes
        if padded_filters(w) - f > width and filters - f > width:
            width = w.block
        used = min(width, filters - f)
        for t in range(taps):
            kernels.copy(
                to + size * (f * w.channels * taps + t), taps, w.channels * taps,
                sums + t * channels * width * size, width, 1, channels, used)
        sums += padded * width * size
        f += width


cdef inline void copy_errors(
    const gradient_of_weight *w, const box *where, isize filter, isize filters,
    char *to,
) noexcept nogil:
    """grad_y of a box -> [pixel][filter], with zeros for the lanes beyond."""
    cdef isize n, i, step = padded_filters(w), size = w.kernels.itemsize
    cdef isize run = where.j1 - where.j0
    if step != filters:
        memset(to, 0, (where.n1 - where.n0) * (where.i1 - where.i0)
               * run * step * size)
    for n in range(where.n0, where.n1):
        for i in range(where.i0, where.i1):
            w.kernels.copy(
                to, step, 1, pixel(&w.grad_y, n, filter, i, where.j0),
                w.grad_y.step_w, w.grad_y.step_c, run, filters)
            to += run * step * size


cdef inline void plan_gradient(gradient_of_weight *w) noexcept nogil:
    """Choose parts, chunks and boxes from the geometry alone."""
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize, lanes = kernels.lanes, parts, pixels
    cdef isize weights
    w.block = lanes * kernels.vectors
    # a task's sums stay in the second-level cache; its bands are copied once for
    # all of its filters, so filters come first
    w.some_filters = even_share(w.filters, 256)
    if w.some_filters < w.filters:
        w.some_filters = ceil_div(w.some_filters, w.block) * w.block
    while (w.some_filters > lanes
           and w.taps.count * padded_filters(w) * size > SUM_BYTES):
        w.some_filters = ceil_div(w.some_filters // 2, lanes) * lanes
    w.some_channels = even_share(w.channels, max(
        1, SUM_BYTES // (w.taps.count * padded_filters(w) * size)))
    w.filter_parts = ceil_div(w.filters, w.some_filters)
    w.channel_parts = ceil_div(w.channels, w.some_channels)
    w.copied = w.grad_y.step_c != 1 or w.filters % lanes != 0

    pixels = w.grad_y.n * w.grad_y.h * w.grad_y.w
    w.grid = cut(w.grad_y.n, w.grad_y.h, w.grad_y.w, min(max(pixels // 8, 64), 512))
    w.around = band_of(&w.grid, &w.taps, w.some_channels)
    while size * (band_elements(&w.grid, &w.around)
                  + box_pixels(&w.grid) * padded_filters(w)) > BANDS_BYTES:
        if not halve(&w.grid, 16):
            if w.some_channels == 1:
                break
            w.some_channels = ceil_div(w.some_channels, 2)
            w.channel_parts = ceil_div(w.channels, w.some_channels)
        w.around = band_of(&w.grid, &w.taps, w.some_channels)
    parts = w.groups * w.filter_parts * w.channel_parts
    weights = w.groups * w.filters * w.channels * w.taps.count * size
    w.chunks = min(ceil_div(16, parts), boxes(&w.grid))
    w.chunks = max(1, min(w.chunks, CHUNKS_BYTES // max(1, weights)))


cdef enum:
    SUM_ELEMENTS = 4096


cdef inline void add_chunks_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize weights = w.groups * w.filters * w.channels * w.taps.count
    cdef isize first = task * SUM_ELEMENTS, size = w.kernels.itemsize
    w.kernels.sum_parts(
        w.grad_weight + first * size, w.partial + first * size, weights, w.chunks,
        min(SUM_ELEMENTS, weights - first))


cdef inline int weight_gradient(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Run the whole sum; 0, or -1 if scratch memory ran out."""
    cdef isize weights = w.groups * w.filters * w.channels * w.taps.count
    cdef int failed
    cdef double work
    w.kernels = kernels_for(runtime, w.x.itemsize)
    if w.grad_y.n == 0:
        memset(w.grad_weight, 0, weights * w.kernels.itemsize)
        return 0
    plan_gradient(w)
    w.partial = NULL
    if w.chunks > 1:
        w.partial = <char *> runtime.take(w.chunks * weights * w.kernels.itemsize)
        if w.partial == NULL:
            return -1
    work = <double> weights * w.grad_y.n * w.grad_y.h * w.grad_y.w
    failed = runtime.run(
        gradient_task, w,
        w.chunks * w.groups * w.filter_parts * w.channel_parts,
        space_of(w).total, work)
    if w.chunks > 1:
        if not failed:
            failed = runtime.run(
                add_chunks_task, w, ceil_div(weights, SUM_ELEMENTS), 0,
                <double> weights * w.chunks)
        runtime.give(w.partial)
    return failed


# grad_bias: each task owns some channels and adds image by image, row by row.
cdef struct channel_sum:
    const cnn_kernels *kernels
    image src
    char *dst
    isize some


cdef inline void sum_channels_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const channel_sum *s = <const channel_sum *> job
    cdef isize size = s.kernels.itemsize
    cdef isize c0 = task * s.some, channels = min(s.some, s.src.c - c0)
    cdef isize n, y
    cdef char *dst = s.dst + c0 * size
    memset(dst, 0, channels * size)
    for n in range(s.src.n):
        # a plane without gaps is one long row
        if s.src.step_h == s.src.w * s.src.step_w:
            memset(scratch, 0, channels * size)
            s.kernels.sum_rows(
                scratch, pixel(&s.src, n, c0, 0, 0), s.src.step_c, s.src.step_w,
                channels, s.src.h * s.src.w)
        else:
            memset(scratch, 0, channels * size)
            for y in range(s.src.h):
                s.kernels.sum_rows(
                    scratch, pixel(&s.src, n, c0, y, 0), s.src.step_c, s.src.step_w,
                    channels, s.src.w)
        s.kernels.sum_rows(dst, scratch, 1, 0, channels, 1)


cdef inline int sum_channels(
    const cnn_runtime *runtime, image src, char *dst
) noexcept nogil:
    cdef channel_sum s
    s.kernels = kernels_for(runtime, src.itemsize)
    s.src, s.dst = src, dst
    s.some = 4 * s.kernels.lanes
    if src.step_c != 1:
        s.some = max(1, src.c // 8)
    return runtime.run(
        sum_channels_task, &s, ceil_div(src.c, s.some), s.some * src.itemsize,
        <double> src.n * src.c * src.h * src.w)
