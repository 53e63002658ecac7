# Which algorithm a correlation gets, and the loop that runs it.

from boxes cimport band_of, boxes, tap_list
from columns cimport FEW_PIXELS, plan_columns, run_columns
from correlate cimport (
    COLUMNS, DEPTHWISE, DEPTHWISE_PLANES, DIRECT, DOTS, GROUPED, PLANES, WINOGRAD,
    aligned, correlation, order_of_weights, source_bytes, copy_task,
)
from direct cimport (
    PANEL_BYTES, direct_pack_task, direct_space_of, direct_task, offsets_of_taps,
    plan_direct,
)
from direct_gradient cimport gradient_task, plan_gradient, space_of
from geometry cimport ceil_div, image
from kernels cimport (
    CNN_ADD, CNN_BIAS, CNN_LINEAR, cnn_kernels, cnn_runtime, cnn_task, cnn_winograd,
    isize, kernels_for,
)
from depthwise cimport (
    correlate_depthwise, depthwise_gradient_space, depthwise_gradient_task, has_pairs,
    is_along_channels, pack_channels, packed_space_of, plan_depthwise_gradient,
    store_depthwise,
)
from depthwise_planes cimport (
    correlate_depthwise_planes, depthwise_planes_gradient_space,
    depthwise_planes_gradient_task, plan_depthwise_planes_gradient,
    store_depthwise_planes,
)
from few_pixels cimport (
    few_pixels, few_pixels_task, few_space_of, plan_few_pixels,
)
from libc.string cimport memcmp, memset
from planes_gradient cimport (
    dot_space_of, plan_planes_gradient, planes_gradient_task, store_planes,
)
from planes cimport (
    offsets_of_planes, pack_planes, plan_planes, plane_space_of, plane_task,
    weights_as_they_lie,
)
from turned cimport is_turned, plan_turned, run_turned
from weight_gradient cimport (
    CHUNKS_BYTES, add_chunks_task, gradient_of_weight, store_weights,
)
from winograd_gradient cimport (
    plan_winograd_gradient, share_values, winograd_gradient_space_of,
    winograd_gradient_task,
)
from winograd cimport plan_winograd, run_winograd
from winograd_patches cimport count_patches, phases_across, phases_down, points_of
from winograd_values cimport winograd_space_of
from winograd_weights cimport (
    FUSED_BYTES, WEIGHT_BYTES, is_fused, is_streamed, order_of_taps, rows_of_tiles,
    winograd_pack_bytes, winograd_pack_task, winograd_panel_bytes,
)


cdef enum:
    # More channels would exceed what set_precision promises: 10 points have twice the
    # error of 8 (1x7 of 256 channels: 3.0e-6 of the norm), and 8 along both axes more
    # (5x5 of 32, 96, 128 channels: 2.5, 3.8, 4.4e-6).
    MOST_FOR_10_POINTS = 256
    MOST_FOR_64_POINTS = 128


cdef inline isize most_channels(const cnn_winograd *f) noexcept nogil:
    """Channels of a sum whose error is within bounds; 0: any number."""
    cdef isize points = points_of(f)
    if points == 10:
        return MOST_FOR_10_POINTS
    return MOST_FOR_64_POINTS if points == 64 else 0


cdef inline const cnn_winograd *filtering(
    const cnn_runtime *runtime, const cnn_kernels *kernels, const tap_list *taps,
    isize channels, isize filters, const image *dst, bint packed, bint of_weights,
) noexcept nogil:
    """The minimal filtering that pays for this geometry; NULL for the direct sum.

    Winograd saves products (1 of 4 stays for 3x3, 4 or 9 of 25 for 5x5, 4 of 9 for 1x3,
    2 of 5 for 1x5, 5 of 14 for 1x7) and pays with transforms of pixels and of weights.
    It is for dense kernels with stride 1, any dilation, and for float32.
    """
    cdef const cnn_winograd *const *at = kernels.winograd
    cdef const cnn_winograd *f
    cdef const cnn_winograd *best = NULL
    # products for a pair of channel and filter
    cdef isize direct = dst.n * dst.h * dst.w * taps.count, products
    cdef isize across = phases_across(taps), least = direct
    cdef isize cost, patches, points, empty
    cdef bint streamed
    if at == NULL or runtime.strict or taps.sy != 1 or taps.sx != 1:
        return NULL
    if channels < 16 or filters < 16:
        return NULL
    if not of_weights and dst.n * dst.h * dst.w <= FEW_PIXELS:
        least = 7 * direct // 5     # tiles for few pixels stay half empty
    while at[0] != NULL:
        f = at[0]
        at += 1
        if f.tap_rows != taps.rows or f.tap_rows * f.tap_cols != taps.count:
            continue
        if not of_weights and 0 < most_channels(f) < channels:
            continue
        points, patches = points_of(f), count_patches(f, taps, dst)
        products = points * patches
        # phases with few pixels fill patches badly, and copies of them are mostly zeros
        if across > 1 or phases_down(taps) > 1:
            if 2 * products > direct or across > 2 * kernels.mr:
                continue
        # In products: to transform a value of a patch and back costs about 12 (1x7 of
        # 16 channels takes 1.3 times the direct sum's time, 1x5 of 32 channels 0.7
        # times); a value of a weight 32, or 64 through memory, whence tiles get it more
        # slowly, too (3x3 256->256 with 128 patches 0.8 times); in the gradient of
        # weights 20 (512->512 with 8 patches 1.1 times, 16 patches 0.8 times). A task
        # that transforms its weights pays 9, and 19 to pack each of them (256->256 with
        # 4 patches 1.1 times, 8 patches 0.7 times), or 8 for those packed beforehand;
        # values made beforehand are read for 4 (0.7 times with 4 patches). There few
        # patches are rounded up to the rows of tiles.
        # Whole numbers: the caller's floating-point state is left alone.
        cost = products + 12 * products // channels + 12 * products // filters
        empty = (rows_of_tiles(kernels, patches) - patches) * points
        streamed = is_streamed(f, channels, filters, kernels.itemsize)
        if not of_weights and is_fused(
                f, patches, channels, filters, kernels.itemsize, packed):
            cost += 6 * empty // 5 + products // 5
            cost += 8 * points if packed else 9 * points + 19 * taps.count
        elif packed:
            cost += empty + 4 * points
        elif of_weights and streamed:
            cost += 3 * products // 10 + 20 * points
        elif patches < kernels.mr:  # tiles of the products would stay half empty
            continue
        elif streamed:
            cost += 2 * products // 5 + 64 * points
        else:
            cost += 32 * points
        if cost < least:
            best, least = f, cost
    return best


cdef inline int choose(const cnn_runtime *runtime, correlation *c) noexcept nogil:
    """Choose the algorithm of a correlation from its geometry."""
    cdef isize few = min(c.depth, c.outs), empty
    c.turned = False
    c.winograd = filtering(
        runtime, c.kernels, &c.taps, c.depth, c.outs, &c.dst, c.stays, False)
    if c.winograd != NULL:
        c.fused = is_fused(
            c.winograd, count_patches(c.winograd, &c.taps, &c.dst), c.depth, c.outs,
            c.kernels.itemsize, c.stays)
        if winograd_panel_bytes(c) <= WEIGHT_BYTES:
            return WINOGRAD
    if is_along_channels(c):
        return c.algorithm
    if c.taps.count == 0:
        return DIRECT
    if is_turned(c):
        c.turned = True
        return DIRECT
    # rows of outputs that lie together (not the phases of a strided gradient)
    if has_pairs(c) and c.src.step_w == 1 and c.dst.step_w == 1:
        return DEPTHWISE_PLANES
    if (c.outs >= 16 and not c.transposed and c.dst.n * c.dst.h * c.dst.w <= FEW_PIXELS
            and c.depth * c.outs * c.taps.count >= 1 << 16):
        return COLUMNS
    # vectors of filters would stay half empty (channels-last GFLOP/s by planes and
    # directly: 3x3 8->12 72 and 69, 8->15 71 and 86; 1x1 16->6 17 and 18, 64->12 40 and
    # 68); or few channels, and the result would have to be turned to planes
    empty = 16
    if c.groups == 1 and c.src.step_c == 1 and c.dst.step_c == 1 and c.depth >= 8:
        empty = 0 if c.weight_taps == 1 else 13
    if c.outs < empty or (few < 16 and c.dst.step_c != 1):
        return PLANES
    # one tap does not pay for turning large planes to channels-last and back, nor if
    # every other column is stored (gradient of 1x1, stride 2: 5 to 12 % less time)
    if (c.taps.count == 1 and c.src.step_w == 1
            and c.dst.step_w <= (2 if c.weight_taps == 1 else c.taps.sx)
            and c.dst.n * c.dst.h * c.dst.w >= 256
            and c.depth * c.outs * c.kernels.itemsize <= PANEL_BYTES):
        return COLUMNS
    return DIRECT


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
    cdef char *shared
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
    copied = source_bytes(c) if c.algorithm == DIRECT and c.copied else 0
    shared = <char *> runtime.take(
        copied + offsets_bytes(c) + (0 if c.stays else p.bytes))
    if shared == NULL:
        return -1
    c.to = <isize *> (shared + copied)
    if copied > 0:
        c.src.data = shared
        failed = runtime.run(
            copy_task, c, c.src.n * c.src.h, 0, <double> copied)
    memory = shared
    shared += copied + offsets_bytes(c)
    for index in range(p.count):
        if failed:
            break
        if c.stays:
            begin_pass(c, &p, index, c.prepared + PREPARED_HEAD + index * p.bytes)
        else:
            begin_pass(c, &p, index, shared)
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


cdef inline int choose_gradient(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Choose the algorithm of a weights' gradient from its geometry."""
    cdef isize size = w.kernels.itemsize, few
    w.winograd = filtering(
        runtime, w.kernels, &w.taps, w.channels, w.filters, &w.grad_y, False,
        True)
    # one vector of filters, and of channels: the transforms cost what they save
    # (GFLOP/s by Winograd and direct: 3x3 16->16 142 and 148, 5x5 123 and 163, but
    # 3x3 16->32 191 and 156)
    if w.winograd != NULL and max(w.channels, w.filters) > w.kernels.lanes:
        return WINOGRAD
    if w.channels == 1 and w.filters == 1 and w.groups > 1:
        if w.x.step_c == 1 and w.grad_y.step_c == 1:
            return DEPTHWISE
        # the widest vectors stay half empty along the rows of small planes (7x7 float32
        # 10 to 20 % slower than PLANES); narrower ones gain there too
        if (w.x.step_w == 1 and w.grad_y.step_w == 1 and (
                w.kernels.lanes * size < 64 or w.grad_y.h * w.grad_y.w * size >= 512)):
            return DEPTHWISE_PLANES
    # vectors of filters would stay half empty (after the exchange with channels), and
    # planes would have to be turned; GFLOP/s direct and by planes: 5x5 1->6 29 and 47,
    # but 3->32 127 and 74; channels-last 3x3 8->8 59 and 30, 12->12 101 and 47
    few = 16 if w.x.step_c != 1 else 8
    return PLANES if w.filters < few else DIRECT


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
    if not failed:
        failed = runtime.run(task, w, w.chunks * parts, scratch, work)
    if w.algorithm == WINOGRAD and w.shared != NULL:
        runtime.give(w.shared)
    if w.chunks > 1:
        if not failed:
            failed = runtime.run(
                add_chunks_task, w, parts, w.part_size * size,
                <double> weights * w.chunks)
        runtime.give(w.partial)
    return failed
