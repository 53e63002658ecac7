# The loops that run what algorithms.pxd chose, and the weights that stay packed.

from algorithms cimport choose, choose_gradient
from boxes cimport band_of, boxes
from columns cimport plan_columns, run_columns
from correlate cimport (
    COLUMNS, DEPTHWISE, DEPTHWISE_PLANES, DIRECT, DOTS, GROUPED, PLANES, WINOGRAD,
    aligned, copy_task, correlation, order_of_weights, source_bytes,
)
from depthwise cimport (
    correlate_depthwise, depthwise_gradient_space, depthwise_gradient_task,
    pack_channels, packed_space_of, plan_depthwise_gradient, store_depthwise,
)
from depthwise_planes cimport (
    correlate_depthwise_planes, depthwise_planes_gradient_space,
    depthwise_planes_gradient_task, plan_depthwise_planes_gradient,
    store_depthwise_planes,
)
from direct cimport (
    PANEL_BYTES, direct_pack_task, direct_space_of, direct_task, offsets_of_taps,
    plan_direct,
)
from direct_gradient cimport gradient_task, plan_gradient, share_errors, space_of
from few_pixels cimport few_pixels, few_pixels_task, few_space_of, plan_few_pixels
from geometry cimport ceil_div
from kernels cimport (
    CNN_ADD, CNN_BIAS, CNN_LINEAR, cnn_kernels, cnn_runtime, cnn_task, isize,
    kernels_for,
)
from libc.string cimport memcmp, memset
from planes cimport (
    offsets_of_planes, pack_planes, plan_planes, plane_space_of, plane_task,
    weights_as_they_lie,
)
from planes_gradient cimport (
    dot_space_of, plan_planes_gradient, planes_gradient_task, store_planes,
)
from turned cimport plan_turned, run_turned
from weight_gradient cimport (
    CHUNKS_BYTES, add_chunks_task, gradient_of_weight, store_weights,
)
from winograd cimport plan_winograd, run_winograd
from winograd_gradient cimport (
    plan_winograd_gradient, share_values, winograd_gradient_space_of,
    winograd_gradient_task,
)
from winograd_values cimport winograd_space_of
from winograd_weights cimport (
    FUSED_BYTES, WEIGHT_BYTES, order_of_taps, winograd_pack_bytes, winograd_pack_task,
)


# The passes of a correlation: as many groups as their panels' bytes allow, or one
# group's blocks in turn, and chunks of the channels.
cdef struct weight_passes:
    isize groups, blocks, depth         # of a pass, at most
    isize block_passes, chunks, count
    isize panels, bytes                 # of the panels alone; with their biases


cdef inline weight_passes plan_correlation(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    cdef weight_passes p
    cdef isize many = PANEL_BYTES
    c.kernels = kernels_for(runtime, c.src.itemsize)
    c.block = c.kernels.lanes * c.kernels.vectors
    c.blocks = ceil_div(c.outs, c.block)
    c.direct = c.dst.step_c == 1 or c.outs == 1
    c.algorithm = choose(runtime, c)
    c.depth_now = c.depth
    if c.algorithm in (DEPTHWISE, GROUPED, DOTS):
        c.panel_bytes = packed_space_of(c).total
        p.groups, p.blocks, p.depth = c.groups, c.blocks, c.depth
        p.block_passes = p.chunks = p.count = 1
        p.panels = p.bytes = c.panel_bytes
        return p
    if c.algorithm == DEPTHWISE_PLANES:
        c.panel_bytes = 0
    elif c.algorithm == PLANES:
        plan_planes(c)
        c.blocks = 1
    elif c.algorithm == COLUMNS:
        plan_columns(c)
        c.blocks = 1
    elif c.algorithm == WINOGRAD:
        plan_winograd(c)
        many = WEIGHT_BYTES
        if c.fused:     # all blocks, so that patches are transformed once
            many = c.blocks * c.panel_bytes * max(
                1, FUSED_BYTES // winograd_space_of(c).values_bytes)
    elif c.turned:
        plan_turned(c)
    else:
        plan_direct(c)
    many = max(1, many // max(1, c.panel_bytes))
    p.groups, p.blocks = max(1, many // c.blocks), min(many, c.blocks)
    p.depth = c.depth
    if c.algorithm == COLUMNS or c.algorithm == DIRECT:
        p.depth = c.depth_now
    p.block_passes, p.chunks = ceil_div(c.blocks, p.blocks), ceil_div(c.depth, p.depth)
    p.count = ceil_div(c.groups, p.groups) * p.block_passes * p.chunks
    many = min(many, c.groups * c.blocks)
    p.panels = aligned(many * c.panel_bytes)
    p.bytes = p.panels + aligned(many * c.block * c.kernels.itemsize)
    return p


cdef inline void begin_pass(
    correlation *c, const weight_passes *p, isize index, char *panels
) noexcept nogil:
    cdef isize chunk = index % p.chunks, blocks = index // p.chunks % p.block_passes
    c.group0 = index // p.chunks // p.block_passes * p.groups
    c.group1 = min(c.groups, c.group0 + p.groups)
    c.block0 = blocks * p.blocks
    c.block1 = min(c.blocks, c.block0 + p.blocks)
    c.depth0 = chunk * p.depth
    if p.chunks > 1:
        c.depth_now = min(p.depth, c.depth - c.depth0)
    c.start = CNN_BIAS if chunk == 0 else CNN_ADD
    c.end = c.activation if chunk == p.chunks - 1 else CNN_LINEAR
    c.panels, c.bias_panels = panels, panels + p.panels


cdef inline isize offsets_bytes(const correlation *c) noexcept nogil:
    return c.depth * max(c.weight_taps, c.taps.count) * <isize> sizeof(isize)


cdef inline int correlate(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    """Run the whole correlation; 0, or -1 if scratch memory ran out."""
    cdef weight_passes p
    cdef correlation fresh
    cdef isize index, copied
    cdef char *memory
    cdef char *panels
    cdef int failed = 0
    if c.dst.n == 0 or c.dst.h == 0 or c.dst.w == 0:
        return 0
    fresh = c[0]
    p = plan_correlation(runtime, c)
    if c.stays and not is_prepared(c, &p):     # for another memory order, or precision
        c[0] = fresh
        c.stays = False
        p = plan_correlation(runtime, c)
    if c.algorithm in (DEPTHWISE, GROUPED, DOTS):
        return correlate_depthwise(
            runtime, c, 1, 1, c.prepared + PREPARED_HEAD if c.stays else NULL)
    if c.algorithm == DEPTHWISE_PLANES:
        return correlate_depthwise_planes(runtime, c)
    if c.algorithm == WINOGRAD and c.fused and not c.stays:
        p.bytes -= p.panels
        p.panels = 0
    copied = source_bytes(c) if c.copied else 0
    memory = <char *> runtime.take(
        copied + offsets_bytes(c) + (0 if c.stays else p.bytes))
    if memory == NULL:
        return -1
    c.to = <isize *> (memory + copied)
    panels = memory + copied + offsets_bytes(c)
    if c.copied:
        c.src.data = memory
        failed = runtime.run(
            copy_task, c, c.src.n * c.src.h, 0, <double> copied)
    for index in range(p.count):
        if failed:
            break
        if c.stays:
            begin_pass(c, &p, index, c.prepared + PREPARED_HEAD + index * p.bytes)
        else:
            begin_pass(c, &p, index, panels)
            failed = pack_pass(runtime, c)
        if not failed:
            failed = run_pass(runtime, c)
    runtime.give(memory)
    return failed


# Weights packed beforehand: this head, then the panels of every pass.
cdef enum:
    PREPARED_HEAD = 64


cdef struct prepared_head:
    const cnn_kernels *kernels
    isize algorithm, block, panel_bytes, bytes, count, weights


cdef inline prepared_head head_of(
    const correlation *c, const weight_passes *p
) noexcept nogil:
    cdef prepared_head h
    h.kernels, h.algorithm, h.block = c.kernels, c.algorithm, c.block
    h.panel_bytes, h.bytes, h.count = c.panel_bytes, p.bytes, p.count
    h.weights = c.groups * c.outs * c.depth * c.taps.count
    return h


cdef inline bint is_prepared(
    const correlation *c, const weight_passes *p
) noexcept nogil:
    """Whether c.prepared was made for what is about to run."""
    cdef prepared_head h = head_of(c, p)
    return memcmp(c.prepared, &h, sizeof(prepared_head)) == 0


cdef inline isize prepared_bytes(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    """Size of the panels of every pass; 0 where weights are used as they lie."""
    cdef weight_passes p = plan_correlation(runtime, c)
    if c.panel_bytes == 0:
        return 0
    return PREPARED_HEAD + p.count * p.bytes


cdef inline int prepare(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    """Pack the weights of every pass into c.prepared."""
    cdef weight_passes p = plan_correlation(runtime, c)
    cdef prepared_head *head = <prepared_head *> c.prepared
    cdef isize index
    cdef int failed = 0
    if c.algorithm in (DEPTHWISE, GROUPED, DOTS):
        memset(c.prepared, 0, PREPARED_HEAD)
        head[0] = head_of(c, &p)
        pack_channels(c, c.prepared + PREPARED_HEAD)
        return 0
    c.to = <isize *> runtime.take(offsets_bytes(c))
    if c.to == NULL:
        return -1
    memset(c.prepared, 0, PREPARED_HEAD + p.count * p.bytes)
    head[0] = head_of(c, &p)
    for index in range(p.count):
        begin_pass(c, &p, index, c.prepared + PREPARED_HEAD + index * p.bytes)
        if not failed:
            failed = pack_pass(runtime, c)
    runtime.give(c.to)
    return failed


cdef inline double pass_weights(const correlation *c) noexcept nogil:
    return (
        <double> (c.group1 - c.group0) * min(c.outs, (c.block1 - c.block0) * c.block)
        * c.depth * c.weight_taps)


cdef inline int pack_pass(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    """Put the weights of the pass under way into its panels."""
    cdef isize panels = (c.group1 - c.group0) * (c.block1 - c.block0), group
    if c.algorithm == PLANES or c.algorithm == COLUMNS:
        if not weights_as_they_lie(c):
            for group in range(c.group0, c.group1):
                pack_planes(c, group)
        return 0
    if c.algorithm == WINOGRAD:
        order_of_taps(c)
        return runtime.run(winograd_pack_task, c, panels, winograd_pack_bytes(c),
                           8 * pass_weights(c))
    order_of_weights(c)
    return runtime.run(direct_pack_task, c, panels, 0, 4 * pass_weights(c))


cdef inline int run_pass(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    cdef isize groups = c.group1 - c.group0, tasks = boxes(&c.grid) * groups
    cdef isize parts = c.block1 - c.block0
    cdef double work = pass_weights(c) * c.dst.n * c.dst.h * c.dst.w
    if c.algorithm == PLANES:
        offsets_of_planes(c)
        return runtime.run(
            plane_task, c, boxes(&c.grid) * ceil_div(groups, c.gang),
            plane_space_of(c).total, work)
    # few boxes: several tasks share a box's pixels, each with its own outs
    if c.algorithm == COLUMNS:
        parts = ceil_div(c.outs, c.tile_rows)
    c.splits = min(parts, max(1, ceil_div(8, tasks)))
    tasks *= c.splits
    if c.algorithm == COLUMNS:
        return run_columns(runtime, c, tasks, work)
    if c.algorithm == WINOGRAD:
        return run_winograd(runtime, c, tasks, work)
    if c.turned:
        return run_turned(runtime, c, tasks, work)
    c.around = band_of(&c.grid, &c.taps, c.depth_now)
    offsets_of_taps(c)
    return runtime.run(direct_task, c, tasks, direct_space_of(c).total, work)


cdef inline int weight_gradient(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Run the whole sum; 0, or -1 if scratch memory ran out."""
    cdef isize weights = w.groups * w.filters * w.channels * w.taps.count
    cdef isize parts, size, scratch = 0
    cdef cnn_task task
    cdef int failed
    cdef double work = <double> weights * w.grad_y.n * w.grad_y.h * w.grad_y.w
    w.kernels = kernels_for(runtime, w.x.itemsize)
    size = w.kernels.itemsize
    if w.grad_y.n * w.grad_y.h * w.grad_y.w == 0:
        memset(w.grad_weight, 0, weights * size)
        return 0
    w.block = w.kernels.lanes * w.kernels.vectors
    w.gang, w.tasks = 1, 8
    w.shared = NULL
    w.row_channels = w.channels
    w.store = store_weights
    w.algorithm = choose_gradient(runtime, w)
    if w.algorithm == DEPTHWISE:
        plan_depthwise_gradient(w)
        scratch = depthwise_gradient_space(w)
        task, w.store = depthwise_gradient_task, store_depthwise
    elif w.algorithm == DEPTHWISE_PLANES:
        plan_depthwise_planes_gradient(w)
        scratch = depthwise_planes_gradient_space(w)
        task, w.store = depthwise_planes_gradient_task, store_depthwise_planes
    elif w.algorithm == PLANES:
        plan_planes_gradient(w)
        scratch = dot_space_of(w).total
        task, w.store = planes_gradient_task, store_planes
    elif w.algorithm == WINOGRAD:
        plan_winograd_gradient(w)
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
    w.chunks = min(ceil_div(w.tasks, parts), boxes(&w.grid))
    w.chunks = max(1, min(w.chunks, CHUNKS_BYTES // (parts * w.part_size * size)))
    w.partial = NULL
    if w.chunks > 1:
        w.partial = <char *> runtime.take(parts * w.chunks * w.part_size * size)
        if w.partial == NULL:
            return -1
    failed = 0
    if w.algorithm == WINOGRAD:
        failed = share_values(runtime, w)
        scratch = winograd_gradient_space_of(
            w, w.some_channels, w.some_filters).total
    elif task == gradient_task:
        failed = share_errors(runtime, w)
    if not failed:
        failed = runtime.run(task, w, w.chunks * parts, scratch, work)
    if w.shared != NULL:
        runtime.give(w.shared)
    if w.chunks > 1:
        if not failed:
            failed = runtime.run(
                add_chunks_task, w, parts, w.part_size * size,
                <double> weights * w.chunks)
        runtime.give(w.partial)
    return failed
