# The frame of the gradients that are sums over images and pixels:
#
#   grad_weight[k, c, t] = sum over n, i, j of
#                          grad_y[n, k, i, j] * x[n, c, i*sy + dy_t, j*sx + dx_t]
#
# A task owns some channels and filters of one group, and a chunk of the pixels. The
# sum is cut by shape into chunks that are added in a fixed order: the same bits for
# any number of threads. The sums themselves are in direct_gradient.pxd, few_pixels.pxd,
# planes_gradient.pxd and winograd_gradient.pxd.

from boxes cimport box_grid, tap_list
from geometry cimport ceil_div, image
from kernels cimport cnn_kernels, cnn_winograd, isize

# Bound of the scratch memory for all chunks' sums, in bytes.
cdef enum:
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
    bint errors_shared                  # copied once for all tasks
    const cnn_winograd *winograd
    isize gang                          # PLANES: groups of a part
    box_grid grid                       # of outputs, or of Winograd's patches
    isize block
    isize some_channels, some_filters   # a task's part of the weights
    isize row_channels                  # channels side by side in sums, at most
    isize channel_parts, filter_parts, chunks
    isize tasks                         # to share out, at least
    isize part_size                     # a part's weights, filters in whole vectors
    store_sums store
    char *partial                       # [part][chunk][part_size], if chunks > 1
    char *shared                        # V and Q, or errors, of all tasks, or NULL


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
    """Where a task leaves its sums."""
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
    """sums[block][channels][tap][channel][filter] -> grad_weight[filter][channel][tap].

    Blocks are of filters, and channels lie `row_channels` together.
    """
    cdef isize size = w.kernels.itemsize, taps = w.taps.count, f = 0, c, t, width
    cdef isize all_channels = w.channels * taps, used, first, channels
    cdef char *all = w.grad_weight + size * (
        (p.group * w.filters + p.filter0) * all_channels + p.channel0 * taps)
    cdef char *to
    if w.exchanged:
        all = w.grad_weight + size * taps * (
            (p.group * w.channels + p.channel0) * w.filters + p.filter0)
    while f < p.filters:
        width = filters_at(w, p.filters, f)
        used = min(width, p.filters - f)
        first = 0
        while first < p.channels:
            channels = min(w.row_channels, p.channels - first)
            if w.exchanged:
                to = all + size * taps * (first * w.filters + f)
                for t in range(taps):
                    w.kernels.copy(
                        to + size * (taps - 1 - t), w.filters * taps, taps,
                        sums + t * channels * width * size, width, 1, channels, used)
            elif taps == 1:
                w.kernels.copy(
                    all + size * (f * all_channels + first), 1, all_channels,
                    sums, width, 1, channels, used)
            else:
                to = all + size * (f * all_channels + first * taps)
                for c in range(channels):
                    w.kernels.copy(
                        to + size * c * taps, 1, all_channels,
                        sums + c * width * size, channels * width, 1, taps, used)
            sums += taps * channels * width * size
            first += channels
        f += width


cdef inline void add_chunks_task(void *job, isize task, char *scratch) noexcept nogil:
    """Add the chunks of one part, in a fixed order, and store its weights."""
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef gradient_part part = part_of(w, task * w.chunks)
    w.kernels.sum_parts(
        scratch, partial_sums(w, task * w.chunks), w.part_size, w.chunks,
        w.part_size)
    w.store(w, &part, scratch)


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
