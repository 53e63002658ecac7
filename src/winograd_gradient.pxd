# The gradient of the weights by Winograd: the exact adjoint of the forward pass,
#
#   grad_weight = G^T [ sum over patches of (B^T x B) . (A grad_y A^T) ] G
#
# For each of the points the sum over patches is a product of matrices,
# V[channels x patches] . Q[patches x filters], in the tile kernel.

from boxes cimport band, band_of, box, box_at, box_pixels, boxes, tap_list
from correlate cimport aligned, clear_behind
from geometry cimport ceil_div, even_share
from kernels cimport (
    CNN_ADD, CNN_LINEAR, CNN_ZERO, cnn_kernels, cnn_runtime, cnn_tile, cnn_winograd,
    isize, run_even,
)
from weight_gradient cimport (
    filters_at, gradient_of_weight, gradient_part, part_of, partial_sums,
    store_weights, whole_vectors,
)
from winograd_patches cimport (
    count_patches, cut_patches, error_taps, fill_phase, patch_taps, phase, phase_of,
    phases_across, points_of,
)


cdef enum:
    SHARED_BYTES = 16 << 20             # V and Q of all tasks, at most


# What a task's scratch holds, in bytes from its start; steps in elements. V and Q are
# elsewhere where tasks share them.
cdef struct winograd_gradient_space:
    isize rows, filters                 # channels and filters, rounded up
    isize v_step, q_step, sum_step      # from point to point
    isize sums, copied, v, q, a, c, taps, total


cdef inline tap_list pixels_of(
    const gradient_of_weight *w, bint of_errors
) noexcept nogil:
    if of_errors:
        return error_taps(&w.taps, w.winograd)
    return patch_taps(&w.taps, w.winograd)


cdef inline isize copied_bytes(
    const gradient_of_weight *w, isize channels, bint of_errors
) noexcept nogil:
    """A band; vectors of its last pixel's channels reach beyond it."""
    cdef tap_list pixels = pixels_of(w, of_errors)
    cdef band around = band_of(&w.grid, &pixels, channels)
    return aligned((around.image_step + w.kernels.lanes) * w.kernels.itemsize)


cdef inline isize value_step(
    const gradient_of_weight *w, isize channels
) noexcept nogil:
    """Elements of V or Q from point to point."""
    return w.kernels.lanes + whole_vectors(w, channels) * (
        box_pixels(&w.grid) * phases_across(&w.taps))


cdef inline isize value_bytes(
    const gradient_of_weight *w, isize channels
) noexcept nogil:
    return aligned(
        points_of(w.winograd) * value_step(w, channels) * w.kernels.itemsize)


cdef inline winograd_gradient_space winograd_gradient_space_of(
    const gradient_of_weight *w, isize channels, isize filters
) noexcept nogil:
    cdef winograd_gradient_space s
    cdef isize size = w.kernels.itemsize, points = points_of(w.winograd)
    s.rows = ceil_div(channels, w.kernels.mr) * w.kernels.mr
    s.filters = whole_vectors(w, filters)
    s.v_step, s.q_step = value_step(w, channels), value_step(w, filters)
    s.sum_step = s.rows * s.filters
    s.sums = 0
    s.copied = s.v = s.q = s.a = aligned(points * s.sum_step * size)
    if w.shared == NULL:
        s.v += max(copied_bytes(w, channels, False), copied_bytes(w, filters, True))
        s.q = s.v + value_bytes(w, channels)
        s.a = s.q + value_bytes(w, filters)
    s.c = s.a + aligned(s.rows * <isize> sizeof(void *))
    s.taps = s.c + aligned(s.rows * <isize> sizeof(void *))
    s.total = s.taps + aligned(w.taps.count * channels * s.filters * size)
    return s


cdef inline isize transform_box(
    const gradient_of_weight *w, const box *where, bint of_errors, isize channel,
    isize channels, char *copied, char *values,
) noexcept nogil:
    """Transform some channels of a box's pixels (V) or errors (Q); NULL: count them."""
    cdef const cnn_winograd *g = w.winograd
    cdef isize size = w.kernels.itemsize, across = phases_across(&w.taps)
    cdef isize n, i, j, col, p = 0
    cdef isize step = value_step(w, channels), row = whole_vectors(w, channels) * size
    cdef tap_list pixels = pixels_of(w, of_errors)
    cdef band around = band_of(&w.grid, &pixels, channels)
    cdef phase here
    cdef char *x
    for n in range(where.n0, where.n1):
        here = phase_of(&w.x, &w.grad_y, &w.taps, n)
        if where.i0 * g.out_rows >= here.dst.h:
            continue
        if values != NULL:
            fill_phase(
                copied, &around, where, &pixels, 0 if of_errors else here.dy,
                w.kernels, &here.dst if of_errors else &here.src, channel, channels)
            clear_behind(copied, around.image_step, w.kernels)
        for i in range(min(where.i1, ceil_div(here.dst.h, g.out_rows)) - where.i0):
            for j in range((where.j1 - where.j0) * across):
                col = j // across * g.out_cols * across + j % across
                if where.j0 * g.out_cols * across + col >= here.dst.w:
                    continue
                x = copied + size * (
                    i * g.out_rows * around.row_step + col * channels)
                if values == NULL:
                    pass
                elif of_errors:
                    g.error(values + p * row, step, x, around.row_step,
                            across * channels, channels)
                else:
                    g.input(values + p * row, step, x, around.row_step,
                            across * channels, channels, NULL)
                p += 1
    return p


cdef inline char *shared_values(
    const gradient_of_weight *w, isize group, isize box_index, isize part,
    bint of_errors,
) noexcept nogil:
    """Where V of a part of the channels lies, or Q of a part of the filters."""
    cdef isize at = group * boxes(&w.grid) + box_index
    cdef isize v = value_bytes(w, w.some_channels)
    if not of_errors:
        return w.shared + (at * w.channel_parts + part) * v
    return (
        w.shared + w.groups * boxes(&w.grid) * w.channel_parts * v
        + (at * w.filter_parts + part) * value_bytes(w, w.some_filters))


cdef inline void share_values_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    """V, or Q, of one box and part, where all tasks read it."""
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize parts = w.channel_parts + w.filter_parts, part = task % parts, first
    cdef isize group = task // parts // boxes(&w.grid)
    cdef isize index = task // parts % boxes(&w.grid)
    cdef bint of_errors = part >= w.channel_parts
    cdef box where = box_at(&w.grid, index)
    if of_errors:
        part -= w.channel_parts
        first = part * w.some_filters
        transform_box(
            w, &where, True, group * w.filters + first,
            min(w.some_filters, w.filters - first), scratch,
            shared_values(w, group, index, part, True))
    else:
        first = part * w.some_channels
        transform_box(
            w, &where, False, group * w.channels + first,
            min(w.some_channels, w.channels - first), scratch,
            shared_values(w, group, index, part, False))


cdef inline int share_values(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Transform pixels and errors once for all parts, if there is room for it."""
    cdef isize many = w.groups * boxes(&w.grid)
    cdef isize bytes = many * (
        w.channel_parts * value_bytes(w, w.some_channels)
        + w.filter_parts * value_bytes(w, w.some_filters))
    w.shared = NULL
    if w.channel_parts * w.filter_parts == 1 or bytes > SHARED_BYTES:
        return 0
    w.shared = <char *> runtime.take(bytes)
    if w.shared == NULL:
        return -1
    return runtime.run(
        share_values_task, w, many * (w.channel_parts + w.filter_parts),
        max(copied_bytes(w, w.some_channels, False),
            copied_bytes(w, w.some_filters, True)),
        16 * <double> bytes / w.kernels.itemsize)


cdef inline void winograd_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef const cnn_kernels *kernels = w.kernels
    cdef const cnn_winograd *g = w.winograd
    cdef isize size = kernels.itemsize, taps = w.taps.count
    cdef gradient_part part = part_of(w, task)
    cdef winograd_gradient_space s = winograd_gradient_space_of(
        w, part.channels, part.filters)
    cdef isize points = points_of(g)
    cdef const void **a = <const void **> (scratch + s.a)
    cdef void **c = <void **> (scratch + s.c)
    cdef void *to[25]
    cdef isize b, p, e, f, t, row, width
    cdef isize first = part.chunk * boxes(&w.grid) // w.chunks
    cdef char *v = scratch + s.v
    cdef char *errors = scratch + s.q
    cdef char *sums
    cdef char *weights
    cdef box where
    cdef cnn_tile q

    q.activation, q.next = CNN_LINEAR, NULL
    q.a_at = NULL
    q.batches = 1
    q.a_next, q.a_step, q.a_row = 0, whole_vectors(w, part.channels), 1
    q.a, q.c, q.c_far, q.next_lines = a, c, 1, 0
    for b in range(first, (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        if w.shared != NULL:
            v = shared_values(
                w, part.group, b, part.channel0 // w.some_channels, False)
            errors = shared_values(
                w, part.group, b, part.filter0 // w.some_filters, True)
            p = transform_box(w, &where, False, 0, part.channels, NULL, NULL)
        else:
            transform_box(
                w, &where, False, part.group * w.channels + part.channel0,
                part.channels, scratch + s.copied, v)
            p = transform_box(
                w, &where, True, part.group * w.filters + part.filter0, part.filters,
                scratch + s.copied, errors)
        for row in range(s.rows):   # a row beyond the channels is not looked at
            a[row] = v + (row if row < part.channels else 0) * size
        q.start = CNN_ZERO if b == first else CNN_ADD
        # V[channels x patches] . Q[patches x filters] -> sums, point by point
        q.depth, q.b_step = p, s.filters
        for e in range(points):
            sums = scratch + e * s.sum_step * size
            q.a_from = e * s.v_step
            f = 0
            while f < part.filters:
                width = filters_at(w, part.filters, f)
                q.cols = width
                q.b = errors + (e * s.q_step + f) * size
                q.c_move = 0
                for row in range(s.rows):
                    c[row] = sums + row * width * size
                q.c_row, q.rows = width, part.channels
                run_even(kernels, &q, width)
                sums += s.rows * width * size
                f += width
    # sums[point][block][channel][filter] -> taps[block][tap][channel][filter]
    weights = scratch + s.taps
    if w.chunks > 1:
        weights = partial_sums(w, task)
    f = 0
    sums = scratch
    while f < part.filters:
        width = filters_at(w, part.filters, f)
        for row in range(part.channels):
            for t in range(taps):
                to[t] = weights + size * (
                    f * taps * part.channels + (t * part.channels + row) * width)
            g.gradient(to, sums + row * width * size, s.sum_step, width)
        sums += s.rows * width * size
        f += width
    if w.chunks == 1:
        store_weights(w, &part, weights)


cdef inline void plan_winograd_gradient(gradient_of_weight *w) noexcept nogil:
    """Choose parts and boxes of patches from the geometry alone."""
    cdef isize points = points_of(w.winograd), most, patches, room
    # the sums at all points stay in the second-level cache (1.2 MB at most)
    most = max(64, 64 * 36 // points)
    w.some_filters = even_share(w.filters, most)
    if w.some_filters < w.filters:
        w.some_filters = ceil_div(w.some_filters, w.block) * w.block
    w.some_channels = even_share(w.channels, min(128, 64 * 128 * 36 // (points * most)))
    # V and Q stay there, too. 36 patches at 64 points often make boxes of 20, the depth
    # of the tiles: where there is room for more (16->32, 24x240: 0.9 of the time)
    room = 64 * 36 * (64 + 128) // (points * (w.some_channels + w.some_filters))
    patches = count_patches(w.winograd, &w.taps, &w.grad_y)
    w.grid = cut_patches(w.winograd, &w.taps, &w.grad_y, min(64, max(
        64 * 36 // points, min(48, room, patches // 8))))
    w.part_size = (
        w.some_channels * w.taps.count * whole_vectors(w, w.some_filters))
