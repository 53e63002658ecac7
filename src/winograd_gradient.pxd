# The gradient of the weights by Winograd: the exact adjoint of the forward pass,
#
#   grad_weight = G^T [ sum over patches of (B^T x B) . (A grad_y A^T) ] G
#
# For each of the points the sum over patches is a product of matrices,
# V[channels x patches] . Q[patches x filters], in the tile kernel.

from boxes cimport (
    band, band_elements, band_of, box, box_at, box_pixels, boxes, tap_list,
)
from correlate cimport aligned, clear_behind
from geometry cimport ceil_div, even_share
from kernels cimport (
    CNN_ADD, CNN_LINEAR, cnn_kernels, cnn_tile, cnn_winograd, isize, run_tile,
)
from libc.string cimport memset
from weight_gradient cimport (
    filters_at, gradient_of_weight, gradient_part, part_of, partial_sums,
    store_weights, whole_vectors,
)
from winograd cimport (
    cut_patches, fill_phase, patch_taps, phase, phase_of, phases_across,
    points_of,
)


cdef inline tap_list error_taps(
    const tap_list *taps, const cnn_winograd *f
) noexcept nogil:
    """The errors of the patches of all phases of columns."""
    cdef tap_list errors
    cdef isize across = phases_across(taps)
    errors.rows, errors.wide = f.out_rows, f.out_cols * across
    errors.count = errors.rows * errors.wide
    errors.dy = errors.dx = errors.row = errors.row_dy = NULL
    errors.dy_min = errors.dx_min = 0
    errors.dy_max, errors.dx_max = errors.rows - 1, errors.wide - 1
    errors.sy, errors.sx = errors.rows, errors.wide
    return errors


# What a task's scratch holds, in bytes from its start; steps in elements.
cdef struct winograd_gradient_space:
    isize rows, filters                 # channels and filters, rounded up
    isize v_step, q_step, sum_step      # from point to point
    band around_x, around_y
    isize sums, x, grad_y, v, q, a, c, taps, total


cdef inline winograd_gradient_space winograd_gradient_space_of(
    const gradient_of_weight *w, isize channels, isize filters
) noexcept nogil:
    cdef winograd_gradient_space s
    cdef isize size = w.kernels.itemsize, lanes = w.kernels.lanes
    cdef isize patches = box_pixels(&w.grid) * phases_across(&w.taps)
    cdef isize points = points_of(w.winograd)
    cdef tap_list patch = patch_taps(&w.taps, w.winograd)
    cdef tap_list errors = error_taps(&w.taps, w.winograd)
    s.around_x = band_of(&w.grid, &patch, channels)
    s.around_y = band_of(&w.grid, &errors, filters)
    s.rows = ceil_div(channels, w.kernels.mr) * w.kernels.mr
    s.filters = whole_vectors(w, filters)
    s.v_step = patches * whole_vectors(w, channels) + lanes
    s.q_step = patches * s.filters + lanes
    s.sum_step = s.rows * s.filters
    s.sums = 0
    s.x = aligned(points * s.sum_step * size)
    # vectors of the last pixel's channels reach beyond the bands
    s.grad_y = s.x + aligned((band_elements(&w.grid, &s.around_x) + lanes) * size)
    s.v = s.grad_y + aligned((band_elements(&w.grid, &s.around_y) + lanes) * size)
    s.q = s.v + aligned(points * s.v_step * size)
    s.a = s.q + aligned(points * s.q_step * size)
    s.c = s.a + aligned(s.rows * <isize> sizeof(void *))
    s.taps = s.c + aligned(s.rows * <isize> sizeof(void *))
    s.total = s.taps + aligned(w.taps.count * channels * s.filters * size)
    return s


cdef inline void winograd_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef const cnn_kernels *kernels = w.kernels
    cdef const cnn_winograd *g = w.winograd
    cdef isize size = kernels.itemsize, mr = kernels.mr, taps = w.taps.count
    cdef gradient_part part = part_of(w, task)
    cdef winograd_gradient_space s = winograd_gradient_space_of(
        w, part.channels, part.filters)
    cdef isize points = points_of(g), across = phases_across(&w.taps)
    cdef tap_list patch = patch_taps(&w.taps, g)
    cdef tap_list errors = error_taps(&w.taps, g)
    cdef const void **a = <const void **> (scratch + s.a)
    cdef void **c = <void **> (scratch + s.c)
    cdef void *to[25]
    cdef isize b, n, i, j, p, e, f, t, row, col, width
    cdef isize channels = whole_vectors(w, part.channels)
    cdef char *sums
    cdef char *weights
    cdef char *x
    cdef char *grad_y
    cdef box where
    cdef phase here
    cdef cnn_tile q

    memset(scratch, 0, points * s.sum_step * size)
    for row in range(s.rows):  # a row beyond the channels is not looked at
        a[row] = scratch + s.v + (row if row < part.channels else 0) * size
    q.start, q.activation, q.next = CNN_ADD, CNN_LINEAR, NULL
    q.a_at = NULL
    q.batches = 1
    q.a_next, q.a_step = 0, channels
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        p = 0
        for n in range(where.n0, where.n1):
            here = phase_of(&w.x, &w.grad_y, &w.taps, n)
            if where.i0 * g.out_rows >= here.dst.h:
                continue
            x = scratch + s.x + (n - where.n0) * s.around_x.image_step * size
            grad_y = scratch + s.grad_y + (n - where.n0) * s.around_y.image_step * size
            fill_phase(
                x, &s.around_x, &where, &patch, here.dy, kernels, &here.src,
                part.group * w.channels + part.channel0, part.channels)
            fill_phase(
                grad_y, &s.around_y, &where, &errors, 0, kernels, &here.dst,
                part.group * w.filters + part.filter0, part.filters)
            clear_behind(x, s.around_x.image_step, kernels)
            clear_behind(grad_y, s.around_y.image_step, kernels)
            for i in range(
                    min(where.i1, ceil_div(here.dst.h, g.out_rows)) - where.i0):
                for j in range((where.j1 - where.j0) * across):
                    col = j // across * g.out_cols * across + j % across
                    if where.j0 * g.out_cols * across + col >= here.dst.w:
                        continue
                    g.input(
                        scratch + s.v + p * channels * size, s.v_step,
                        x + size * (
                            i * g.out_rows * s.around_x.row_step
                            + col * part.channels),
                        s.around_x.row_step, across * part.channels, part.channels,
                        NULL)
                    g.error(
                        scratch + s.q + p * s.filters * size, s.q_step,
                        grad_y + size * (
                            i * g.out_rows * s.around_y.row_step
                            + col * part.filters),
                        s.around_y.row_step, across * part.filters, part.filters)
                    p += 1
        # V[channels x patches] . Q[patches x filters] -> sums, point by point
        q.depth, q.b_step = p, s.filters
        for e in range(points):
            sums = scratch + e * s.sum_step * size
            q.a_from = e * s.v_step
            f = 0
            while f < part.filters:
                width = filters_at(w, part.filters, f)
                q.cols = width
                q.b = scratch + s.q + (e * s.q_step + f) * size
                q.c_move = 0
                for row in range(s.rows):
                    c[row] = sums + row * width * size
                for row in range(s.rows // mr):
                    q.a = a + row * mr
                    q.c = c + row * mr
                    q.rows = min(mr, part.channels - row * mr)
                    run_tile(kernels, &q, width)
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
    cdef isize points = points_of(w.winograd), most
    # the sums at all points stay in the second-level cache (1.2 MB at most)
    most = max(64, 64 * 36 // points)
    w.some_filters = even_share(w.filters, most)
    if w.some_filters < w.filters:
        w.some_filters = ceil_div(w.some_filters, w.block) * w.block
    w.some_channels = even_share(w.channels, min(128, 64 * 128 * 36 // (points * most)))
    w.grid = cut_patches(
        w.winograd, &w.taps, &w.grad_y, min(64, 64 * 36 // points))
    w.part_size = (
        w.some_channels * w.taps.count * whole_vectors(w, w.some_filters))
