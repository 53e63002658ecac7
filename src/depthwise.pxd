# Correlations of channels-last arrays whose lanes are channels, the source read where it
# lies; taps beyond its border are left out. Depthwise: one channel in, one out, a group,
# or as few on both sides (a power of 2); or many in and few out, a dot product each. A
# task makes some rows, or some columns of them. The gradient of depthwise weights beside
# the sum itself.

from boxes cimport box, box_at, boxes, cut, tap_list
from correlate cimport DEPTHWISE, DOTS, GROUPED, aligned, correlation
from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport (
    CNN_GROUPED_SOME, cnn_depthwise, cnn_kernels, cnn_runtime, isize,
)
from libc.string cimport memcpy, memset
from weight_gradient cimport gradient_of_weight, gradient_part, part_of, partial_sums

# Elements that a task makes, about; bytes of the rows that its taps look at, which
# stay in the second-level cache, or, where all images are in that, in the first-level
# one; bytes of a gradient's sums, in the first-level one.
cdef enum:
    DEPTHWISE_ELEMENTS = 65536
    ROWS_BYTES = 256 << 10
    NEAR_ROWS_BYTES = 40 << 10
    NEAR_BYTES = 3 << 19
    SUMS_BYTES = 24 << 10
    IMAGE_BYTES = 1 << 20               # of an image that caches hold
    DOT_BYTES = 512 << 10               # of weights whose rows are dotted


cdef inline bint has_pairs(const correlation *c) noexcept nogil:
    """Whether a group has one channel in and one out."""
    return c.depth == 1 and c.outs == 1 and c.groups > 1


cdef inline bint is_depthwise(const correlation *c) noexcept nogil:
    """One channel in and one out a group, channels last: whatever the taps are."""
    return has_pairs(c) and c.src.step_c == 1 and c.dst.step_c == 1


cdef inline bint is_grouped(const correlation *c) noexcept nogil:
    """2, 4 or 8 channels in and as many out a group, channels last.

    GFLOP/s so and by planes: 3x3 32 groups of 4 88 and 25, of 8 97 and 61, 1x1 20 and
    9; but 5x5, whose taps do not share swapped pixels, 48 and 71, and 2 groups of 4,
    half a vector, 30 and 40.
    """
    return (
        c.groups > 1 and c.depth == c.outs
        and (c.depth == 2 or c.depth == 4 or c.depth == 8)
        and c.groups * c.depth >= c.kernels.lanes
        and c.taps.count <= 3 * c.taps.rows
        and c.src.step_c == 1 and c.dst.step_c == 1)


cdef inline bint is_dots(const correlation *c) noexcept nogil:
    """Few channels out, from vectors of them that are mostly full, channels last.

    GFLOP/s so, by planes and directly (AVX-512): 3x3 64->3 93, 48, 24; 64->10 116, 80,
    79; 32->4 63, 52, 30; 32->12 85, 96, 90; but 20->3 46, 49, 19; 16->8 62, 83, 48;
    64->15 103, 85, 126. 1x1 64->3 29, 14, 17; 256->8 72, 36, 60; 64->8 39, 31, 47.
    """
    cdef isize lanes = c.kernels.lanes, whole = ceil_div(c.depth, lanes) * lanes
    if not (c.src.step_c == 1 and (c.dst.step_c == 1 or c.outs == 1)):
        return False
    if (c.outs > 12 or c.depth < lanes or 4 * c.depth < 3 * whole or c.taps.count == 0
            or c.outs * whole * c.weight_taps * c.kernels.itemsize > DOT_BYTES):
        return False
    if c.weight_taps == 1:
        return c.depth >= 8 * c.outs
    return 1 < c.outs <= 4 or c.depth >= 2 * lanes


cdef inline bint is_along_channels(correlation *c) noexcept nogil:
    """Whether lanes are channels, of the source where it lies: sets how."""
    if is_depthwise(c):
        c.algorithm = DEPTHWISE
    elif is_grouped(c):
        c.algorithm = GROUPED
    elif is_dots(c):
        c.algorithm = DOTS
    else:
        return False
    return True


cdef inline bint is_near(const image *a, const image *b) noexcept nogil:
    """Whether the second-level cache holds all of two batches of images.

    Then the first-level one is worth more blocks of channels and columns (MobileNetV2's
    layers of one image take 0.9 of the time); from afar longer pieces come faster (64
    channels of 112x112, stride 2, 8 images: 0.85).
    """
    return a.itemsize * (
        a.n * a.c * a.h * a.w + b.n * b.c * b.h * b.w) <= NEAR_BYTES


cdef inline bint is_far(
    const tap_list *taps, const image *a, const image *b
) noexcept nogil:
    """Whether to ask for the next row, as the processor does not by itself.

    Where images come from memory, as in training: MobileNetV2, 32 images, forward 14.7
    ms to 10.4, gradients 10.1 to 7.5 and 11.8 to 9.0, a step 239 to 222; the same arrays
    again and again, from a shared cache, take 1.03 of the time. Strides gain nothing.
    """
    return taps.sy == 1 and taps.sx == 1 and not is_near(a, b)


# Correlations whose outputs interleave: one for a forward pass, one for each phase of
# a strided gradient of the input (which a task makes together, row by row).
cdef struct depthwise_job:
    const cnn_kernels *kernels
    const correlation *phase
    isize down, across
    isize rows_per_task, cols_per_task, row_tasks, col_tasks
    bint far                            # rows are asked for before their turn
    isize some_channels                 # DEPTHWISE: that go through all rows of a task
    const char *weight                  # packed, and what lies behind it
    const char *bias
    const char *zeros


# Weights as the kernels want them, then the bias and zeros for a pixel; in bytes.
cdef struct packed_space:
    isize tap                           # elements from one tap's weights to the next
    isize group                         # DOTS: from group to group
    isize bias, zeros, total


cdef inline packed_space packed_space_of(const correlation *c) noexcept nogil:
    cdef packed_space s
    cdef isize size = c.kernels.itemsize, lanes = c.kernels.lanes
    cdef isize channels = c.groups * c.depth
    s.group = 0
    if c.algorithm == DOTS:
        s.tap = 1
        s.group = size * c.outs * c.weight_taps * ceil_div(c.depth, lanes) * lanes
        s.bias = c.groups * s.group
    elif c.algorithm == GROUPED:
        s.tap = c.depth * lanes
        s.bias = ceil_div(channels, lanes) * c.weight_taps * s.tap * size
    else:
        s.tap = channels
        s.bias = (c.weight_taps * s.tap + lanes) * size
    s.bias = aligned(s.bias)
    s.zeros = s.bias + aligned((c.groups * c.outs + lanes) * size)
    s.total = s.zeros + aligned((channels + lanes) * size)
    return s


cdef inline void pack_channels(const correlation *c, char *to) noexcept nogil:
    cdef packed_space s = packed_space_of(c)
    cdef isize size = c.kernels.itemsize, taps = c.weight_taps, g
    memset(to, 0, s.total)
    if c.algorithm == DOTS:
        for g in range(c.groups):
            c.kernels.dots_weights(
                to + g * s.group, c.weight + g * c.outs * c.depth * taps * size,
                c.outs, c.depth, taps, c.transposed)
    elif c.algorithm == GROUPED:
        c.kernels.grouped_weights(
            to, c.weight, c.groups * c.depth, c.depth, taps, c.transposed)
    else:
        c.kernels.copy(to, s.tap, 1, c.weight, 1, taps, taps, s.tap)
    if c.bias != NULL:
        memcpy(to + s.bias, c.bias, c.groups * c.outs * size)


cdef inline isize columns(const tap_list *taps) noexcept nogil:
    return taps.count // taps.rows if taps.rows > 0 else 0


cdef inline isize row_space(const tap_list *taps) noexcept nogil:
    return taps.rows * <isize> sizeof(void *)


cdef inline void find_row(
    cnn_depthwise *d, const tap_list *taps, const isize *tap, const image *src,
    isize n, isize channel, isize i, char *scratch,
) noexcept nogil:
    """The rows of taps that output row i has in the source."""
    cdef isize r, first = 0, last = taps.rows
    cdef const void **x = <const void **> scratch
    while first < last and i * taps.sy + taps.row_dy[first] < 0:
        first += 1
    while last > first and i * taps.sy + taps.row_dy[last - 1] >= src.h:
        last -= 1
    for r in range(first, last):
        x[r - first] = pixel(src, n, channel, i * taps.sy + taps.row_dy[r], 0)
    d.rows, d.cols = last - first, columns(taps)
    d.x, d.tap, d.dx = x, tap + first * d.cols, taps.dx
    d.stride, d.width, d.x_step = taps.sx, src.w, src.step_w


cdef inline const void *next_row(
    const correlation *c, isize n, isize channel, isize i
) noexcept nogil:
    """The source row that output row i + 1 reads first, where no cache holds images."""
    cdef isize y = (i + 1) * c.taps.sy + c.taps.dy_max
    if y >= c.src.h or c.src.h * c.src.step_h * c.src.itemsize <= IMAGE_BYTES:
        return NULL
    return pixel(&c.src, n, channel, y, 0)


cdef inline void depthwise_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const depthwise_job *w = <const depthwise_job *> job
    cdef isize all = w.phase.groups * w.phase.depth, channel
    if w.phase.algorithm == DEPTHWISE:
        for channel in range(ceil_div(all, w.some_channels)):
            depthwise_rows(w, task, scratch, channel * w.some_channels,
                           min(w.some_channels, all - channel * w.some_channels))
    else:
        depthwise_rows(w, task, scratch, 0, all)


cdef inline void depthwise_rows(
    const depthwise_job *w, isize task, char *scratch, isize channel, isize channels
) noexcept nogil:
    cdef isize j0 = task // w.row_tasks % w.col_tasks * w.cols_per_task
    cdef isize i0 = task % w.row_tasks * w.rows_per_task
    cdef isize n = task // w.row_tasks // w.col_tasks, i, p, g
    cdef isize group = packed_space_of(w.phase).group, outs = w.phase.outs
    cdef const correlation *c
    cdef cnn_depthwise d
    cdef isize at = channel * w.kernels.itemsize
    d.channels, d.depth = channels, w.phase.depth
    d.taps, d.zeros = w.phase.weight_taps, w.zeros
    d.x_ahead = d.y_ahead = 0
    if w.far:
        d.x_ahead, d.y_ahead = w.phase.src.step_h, w.phase.dst.step_h
    for i in range(i0, min(i0 + w.rows_per_task, w.phase.dst.h)):
        for p in range(w.down * w.across):
            c = w.phase + p
            if i >= c.dst.h or j0 >= c.dst.w:
                continue
            find_row(&d, &c.taps, c.to, &c.src, n, channel, i, scratch)
            d.look = <const void **> scratch + d.rows
            d.first, d.last = j0, min(j0 + w.cols_per_task, c.dst.w)
            d.y_step = c.dst.step_w
            if c.algorithm == DEPTHWISE:
                w.kernels.depthwise(
                    &d, pixel(&c.dst, n, channel, i, j0), w.weight + at, w.bias + at,
                    c.activation)
            elif c.algorithm == GROUPED:
                w.kernels.grouped(
                    &d, pixel(&c.dst, n, 0, i, j0), w.weight, w.bias, c.activation)
            else:
                d.channels = outs
                for g in range(c.groups):
                    find_row(&d, &c.taps, c.to, &c.src, n, g * c.depth, i, scratch)
                    d.next = next_row(c, n, g * c.depth, i)
                    w.kernels.dots(
                        &d, pixel(&c.dst, n, g * outs, i, j0), w.weight + g * group,
                        w.bias + g * outs * w.kernels.itemsize, c.activation)


cdef inline int correlate_depthwise(
    const cnn_runtime *runtime, correlation *phase, isize down, isize across,
    const char *packed,
) noexcept nogil:
    """Run `down` * `across` correlations, the first of which has the most outputs.

    packed: what pack_channels has made, or NULL.
    """
    cdef depthwise_job w
    cdef correlation *c
    cdef isize size = phase.kernels.itemsize, taps = phase.weight_taps
    cdef isize channels = phase.groups * phase.depth, p, t, space = 0, row, near
    cdef packed_space s = packed_space_of(phase)
    cdef isize tables = aligned(down * across * taps * <isize> sizeof(isize))
    cdef isize *at = <isize *> runtime.take(
        tables + (s.total if packed == NULL else 0))
    cdef int failed
    if at == NULL:
        return -1
    if packed == NULL:
        packed = <char *> at + tables
        pack_channels(phase, <char *> packed)
    w.kernels, w.phase, w.down, w.across = phase.kernels, phase, down, across
    w.weight, w.bias, w.zeros = packed, packed + s.bias, packed + s.zeros
    for p in range(down * across):
        c = phase + p
        c.to = at + p * taps
        for t in range(taps):
            if c.order[t] >= 0:
                c.to[c.order[t]] = t * s.tap
        space = max(space, row_space(&c.taps) + (
            CNN_GROUPED_SOME * c.taps.count * <isize> sizeof(void *)))
    row = phase.taps.sx * size * (phase.taps.rows + 1)
    near = ROWS_BYTES
    if phase.algorithm == DEPTHWISE and is_near(&phase.src, &phase.dst):
        near = NEAR_ROWS_BYTES
    w.cols_per_task = even_share(
        phase.dst.w, max(16, near // max(1, channels * row)))
    w.some_channels = channels
    if channels * w.cols_per_task * row > near:
        w.some_channels = ceil_div(even_share(channels, max(64, near // (
            w.cols_per_task * row))), phase.kernels.lanes) * phase.kernels.lanes
    w.far = down * across == 1 and is_far(&phase.taps, &phase.src, &phase.dst)
    w.col_tasks = ceil_div(phase.dst.w, w.cols_per_task)
    w.rows_per_task = even_share(phase.dst.h, max(1, DEPTHWISE_ELEMENTS // (
        channels * w.cols_per_task * down * across)))
    w.row_tasks = ceil_div(phase.dst.h, w.rows_per_task)
    failed = runtime.run(
        depthwise_task, &w, phase.dst.n * w.row_tasks * w.col_tasks, space,
        <double> channels * phase.outs * phase.dst.n * phase.dst.h * phase.dst.w * taps)
    runtime.give(at)
    return failed


# --- gradient of the weights -----------------------------------------------------


cdef inline isize depthwise_gradient_space(
    const gradient_of_weight *w
) noexcept nogil:
    return (
        aligned(w.part_size * w.kernels.itemsize)
        + aligned(w.taps.count * <isize> sizeof(isize)) + row_space(&w.taps))


cdef inline void depthwise_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize size = w.kernels.itemsize, b, i, t
    cdef gradient_part part = part_of(w, task)
    cdef char *sums = scratch
    cdef isize *at = <isize *> (scratch + aligned(w.part_size * size))
    cdef char *rows = <char *> at + aligned(w.taps.count * <isize> sizeof(isize))
    cdef box where
    cdef cnn_depthwise d
    if w.chunks > 1:
        sums = partial_sums(w, task)
    memset(sums, 0, w.part_size * size)
    for t in range(w.taps.count):
        at[t] = t * whole_channels(w)
    d.channels, d.y_step = part.channels, w.grad_y.step_w
    d.x_ahead = d.y_ahead = 0
    if is_far(&w.taps, &w.x, &w.grad_y):
        d.x_ahead, d.y_ahead = w.x.step_h, w.grad_y.step_h
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        d.first, d.last = where.j0, where.j1
        for i in range(where.i0, where.i1):
            find_row(&d, &w.taps, at, &w.x, where.n0, part.channel0, i, rows)
            w.kernels.depthwise_gradient(
                &d, sums, pixel(&w.grad_y, where.n0, part.channel0, i, where.j0))
    if w.chunks == 1:
        store_depthwise(w, &part, sums)


cdef inline isize whole_channels(const gradient_of_weight *w) noexcept nogil:
    """Channels of a part, in whole vectors."""
    return ceil_div(w.some_channels, w.kernels.lanes) * w.kernels.lanes


cdef inline void store_depthwise(
    const gradient_of_weight *w, const gradient_part *p, const char *sums
) noexcept nogil:
    """sums[tap][channel] -> grad_weight[channel][tap]."""
    cdef isize taps = w.taps.count
    w.kernels.copy(
        w.grad_weight + p.channel0 * taps * w.kernels.itemsize, 1, taps,
        sums, whole_channels(w), 1, taps, p.channels)


cdef inline void plan_depthwise_gradient(gradient_of_weight *w) noexcept nogil:
    cdef isize lanes = w.kernels.lanes, some
    # all channels are one group's here: a part is some of them, in whole vectors
    w.channels, w.groups = w.groups, 1
    some = max(4 * lanes, SUMS_BYTES // (w.taps.count * w.kernels.itemsize))
    w.some_channels = min(
        w.channels, ceil_div(even_share(w.channels, some), lanes) * lanes)
    w.some_filters = 1
    w.grid = cut(1, w.grad_y.h, w.grad_y.w, max(
        64, DEPTHWISE_ELEMENTS // w.some_channels))
    w.grid.n = w.grid.count_n = w.grad_y.n
    w.part_size = whole_channels(w) * w.taps.count
