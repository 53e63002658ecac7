# Which algorithm a correlation gets, and the loop that runs it.

from boxes cimport band_of, boxes, tap_list
from correlate cimport (
    DEPTHWISE, DIRECT, PLANES, WINOGRAD, aligned, correlation, order_of_weights,
)
from direct cimport (
    PANEL_BYTES, direct_pack_task, direct_space_of, direct_task, offsets_of_taps,
    plan_direct,
)
from geometry cimport ceil_div
from kernels cimport (
    CNN_ADD, CNN_BIAS, CNN_LINEAR, cnn_kernels, cnn_runtime, cnn_task, cnn_winograd,
    isize, kernels_for,
)
from depthwise cimport (
    depthwise_gradient_space, depthwise_gradient_task, depthwise_pack,
    depthwise_space, depthwise_task, plan_depthwise, plan_depthwise_gradient,
    store_depthwise,
)
from few_pixels cimport (
    few_pixels, few_pixels_task, few_space_of, plan_few_pixels,
)
from libc.string cimport memcpy, memset
from planes_gradient cimport (
    dot_space_of, plan_planes_gradient, planes_gradient_task, store_planes,
)
from planes cimport (
    offsets_of_planes, pack_planes, plan_planes, plane_space_of, plane_task,
    weights_as_they_lie,
)
from weight_gradient cimport (
    CHUNKS_BYTES, add_chunks_task, gradient_of_weight, gradient_task,
    plan_gradient, space_of, store_weights, whole_vectors,
)
from winograd_gradient cimport (
    plan_winograd_gradient, winograd_gradient_space_of, winograd_gradient_task,
)
from winograd cimport (
    WEIGHT_BYTES, plan_winograd, winograd_pack_bytes, winograd_pack_task,
    winograd_panel_bytes, winograd_space_of, winograd_task,
)


cdef inline const cnn_winograd *filtering(
    const cnn_runtime *runtime, const cnn_kernels *kernels, const tap_list *taps,
    isize channels, isize filters, isize n, isize rows, isize cols,
) noexcept nogil:
    """The minimal filtering that pays for this geometry; NULL for the direct sum.

    Winograd saves products (4 of 9 to 1 of 4 stay for 3x3, 9 of 25 for 5x5) and
    pays with transforms of pixels and of weights. It is for dense square kernels
    with stride 1, and for float32.
    """
    cdef const cnn_winograd *f = kernels.winograd
    cdef isize r = taps.rows
    if f == NULL or runtime.strict or taps.sy != 1 or taps.sx != 1:
        return NULL
    if r == 5:
        f += 1
    elif r != 3:
        return NULL
    if (taps.count != r * r or taps.dy_max - taps.dy_min != r - 1
            or taps.dx_max - taps.dx_min != r - 1):
        return NULL
    # few channels: the transforms cost more than the products saved
    if channels < 16 or filters < 16:
        return NULL
    # few patches: the tiles of the products stay half empty
    if n * ceil_div(rows, f.m) * ceil_div(cols, f.m) < kernels.mr:
        return NULL
    return f


cdef inline int choose(const cnn_runtime *runtime, correlation *c) noexcept nogil:
    """Choose the algorithm of a correlation from its geometry."""
    cdef isize few = min(c.depth, c.outs)
    c.winograd = filtering(
        runtime, c.kernels, &c.taps, c.depth, c.outs, c.dst.n, c.dst.h, c.dst.w)
    if c.winograd != NULL and winograd_panel_bytes(c) <= WEIGHT_BYTES:
        return WINOGRAD
    if c.taps.count == 0:
        return DIRECT
    if (few == 1 and c.depth == c.outs and c.groups > 1
            and c.src.step_c == 1 and c.dst.step_c == 1):
        return DEPTHWISE
    # vectors of filters would stay half empty; or few channels, and the result would
    # have to be turned to planes
    if c.outs < 16 or (few < 16 and c.dst.step_c != 1):
        return PLANES
    # one tap does not pay for turning large planes to channels-last and back
    if (c.taps.count == 1 and c.src.step_w == 1 and c.dst.step_w <= c.taps.sx
            and c.dst.h * c.dst.w >= 512):
        return PLANES
    return DIRECT


cdef inline int correlate(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    """Run the whole correlation; 0, or -1 if scratch memory ran out."""
    cdef isize panels, per_pass, size, depth
    cdef char *shared
    c.kernels = kernels_for(runtime, c.src.itemsize)
    size = c.kernels.itemsize
    if c.dst.n == 0 or c.dst.h == 0 or c.dst.w == 0:
        return 0
    c.block = c.kernels.lanes * c.kernels.vectors
    c.blocks = ceil_div(c.outs, c.block)
    c.direct = c.dst.step_c == 1 or c.outs == 1
    c.algorithm = choose(runtime, c)
    if c.algorithm == DEPTHWISE:
        return correlate_depthwise(runtime, c)
    if c.algorithm == PLANES:
        plan_planes(c)
        c.blocks = 1
        depth = c.depth
    elif c.algorithm == WINOGRAD:
        plan_winograd(c)
        depth = c.depth
    else:
        plan_direct(c)
        depth = c.depth_now
    per_pass = PANEL_BYTES
    if c.algorithm == WINOGRAD:
        per_pass = WEIGHT_BYTES
    per_pass = max(1, per_pass // max(1, c.panel_bytes))
    panels = min(per_pass, c.groups * c.blocks)
    shared = <char *> runtime.take(
        aligned(panels * c.panel_bytes) + aligned(panels * c.block * size)
        + c.depth * max(c.weight_taps, c.taps.count) * <isize> sizeof(isize))
    if shared == NULL:
        return -1
    c.panels = shared
    c.bias_panels = shared + aligned(panels * c.panel_bytes)
    c.to = <isize *> (c.bias_panels + aligned(panels * c.block * size))
    c.group0 = 0
    while c.group0 < c.groups:
        # as many groups as fit, or one group's blocks in turn
        c.group1 = min(c.groups, c.group0 + max(1, per_pass // c.blocks))
        c.block0 = 0
        while c.block0 < c.blocks:
            c.block1 = min(c.blocks, c.block0 + per_pass)
            c.depth0 = 0
            while c.depth0 < c.depth:
                if c.algorithm == DIRECT:
                    c.depth_now = min(depth, c.depth - c.depth0)
                c.start = CNN_BIAS if c.depth0 == 0 else CNN_ADD
                c.end = CNN_LINEAR
                if c.depth0 + depth >= c.depth:
                    c.end = c.activation
                if run_pass(runtime, c):
                    runtime.give(shared)
                    return -1
                c.depth0 += depth
            c.block0 = c.block1
        c.group0 = c.group1
    runtime.give(shared)
    return 0


cdef inline int correlate_depthwise(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    cdef isize size = c.kernels.itemsize, lanes = c.kernels.lanes
    cdef isize weights = aligned((c.groups * c.taps.count + lanes) * size)
    cdef isize biases = aligned((c.groups + lanes) * size)
    cdef int failed
    plan_depthwise(c)
    c.panels = <char *> runtime.take(
        weights + biases + c.taps.count * <isize> sizeof(isize))
    if c.panels == NULL:
        return -1
    c.bias_panels = c.panels + weights
    c.to = <isize *> (c.bias_panels + biases)
    if c.bias != NULL:
        memcpy(c.bias_panels, c.bias, c.groups * size)
    depthwise_pack(c)
    failed = runtime.run(
        depthwise_task, c, boxes(&c.grid) * ceil_div(c.groups, c.gang),
        depthwise_space(c),
        <double> c.groups * c.dst.n * c.dst.h * c.dst.w * c.taps.count)
    runtime.give(c.panels)
    return failed


cdef inline int run_pass(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0, group
    cdef double weights = (
        <double> groups * min(c.outs, count * c.block) * c.depth * c.weight_taps)
    cdef double work = weights * c.dst.n * c.dst.h * c.dst.w
    cdef isize tasks = boxes(&c.grid) * groups
    if c.algorithm == PLANES:
        if not weights_as_they_lie(c):
            for group in range(c.group0, c.group1):
                pack_planes(c, group)
        offsets_of_planes(c)
        return runtime.run(
            plane_task, c, boxes(&c.grid) * ceil_div(groups, c.gang),
            plane_space_of(c).total, work)
    order_of_weights(c)
    # few boxes: several tasks share a box's pixels, each with its own blocks
    c.splits = min(count, max(1, ceil_div(8, tasks)))
    if c.algorithm == WINOGRAD:
        if runtime.run(winograd_pack_task, c, groups * count,
                       winograd_pack_bytes(c), 8 * weights):
            return -1
        return runtime.run(winograd_task, c, tasks * c.splits,
                           winograd_space_of(c).total, work)
    if runtime.run(direct_pack_task, c, groups * count, 0, 4 * weights):
        return -1
    c.around = band_of(&c.grid, &c.taps, c.depth_now)
    offsets_of_taps(c)
    return runtime.run(direct_task, c, tasks * c.splits,
                       direct_space_of(c).total, work)


cdef inline int choose_gradient(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Choose the algorithm of a weights' gradient from its geometry."""
    w.winograd = filtering(
        runtime, w.kernels, &w.taps, w.channels, w.filters,
        w.grad_y.n, w.grad_y.h, w.grad_y.w)
    if w.winograd != NULL:
        return WINOGRAD
    if (w.channels == 1 and w.filters == 1 and w.groups > 1
            and w.x.step_c == 1 and w.grad_y.step_c == 1):
        return DEPTHWISE
    # vectors of filters would stay half empty (after the exchange with channels);
    # GFLOP/s direct and by planes: 5x5 1->6 29 and 47, but 3->32 127 and 74
    return PLANES if w.filters < 16 else DIRECT


cdef inline int weight_gradient(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Run the whole sum; 0, or -1 if scratch memory ran out."""
    cdef isize weights = w.groups * w.filters * w.channels * w.taps.count
    cdef isize parts, size, scratch
    cdef cnn_task task
    cdef int failed
    cdef double work = <double> weights * w.grad_y.n * w.grad_y.h * w.grad_y.w
    w.kernels = kernels_for(runtime, w.x.itemsize)
    size = w.kernels.itemsize
    if w.grad_y.n * w.grad_y.h * w.grad_y.w == 0:
        memset(w.grad_weight, 0, weights * size)
        return 0
    w.block = w.kernels.lanes * w.kernels.vectors
    w.gang = 1
    w.store = store_weights
    w.algorithm = choose_gradient(runtime, w)
    if w.algorithm == DEPTHWISE:
        plan_depthwise_gradient(w)
        scratch = depthwise_gradient_space(w)
        task, w.store = depthwise_gradient_task, store_depthwise
    elif w.algorithm == PLANES:
        plan_planes_gradient(w)
        scratch = dot_space_of(w).total
        task, w.store = planes_gradient_task, store_planes
    elif w.algorithm == WINOGRAD:
        plan_winograd_gradient(w)
        scratch = winograd_gradient_space_of(
            w, w.some_channels, w.some_filters).total
        task = winograd_gradient_task
    elif few_pixels(w):
        plan_few_pixels(w)
        scratch = few_space_of(w).total
        task = few_pixels_task
    else:
        plan_gradient(w)
        scratch = space_of(w).total
        task = gradient_task
    w.filter_parts = ceil_div(w.filters, w.some_filters)
    w.channel_parts = ceil_div(w.channels, w.some_channels)
    parts = ceil_div(w.groups, w.gang) * w.filter_parts * w.channel_parts
    # enough tasks to share out, as far as the chunks' sums may be stored
    w.chunks = min(ceil_div(8, parts), boxes(&w.grid))
    w.chunks = max(1, min(w.chunks, CHUNKS_BYTES // (parts * w.part_size * size)))
    w.partial = NULL
    if w.chunks > 1:
        w.partial = <char *> runtime.take(parts * w.chunks * w.part_size * size)
        if w.partial == NULL:
            return -1
    failed = runtime.run(task, w, w.chunks * parts, scratch, work)
    if w.chunks > 1:
        if not failed:
            failed = runtime.run(
                add_chunks_task, w, parts, w.part_size * size,
                <double> weights * w.chunks)
        runtime.give(w.partial)
    return failed
