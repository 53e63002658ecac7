# Winograd's minimal filtering: m outputs of a kernel of r taps from m + r - 1 pixels
# (points), with as many products a channel instead of m * r, along rows, columns or
# both. Patches are copied to a band and transformed (V), multiplied with the
# transformed weights (U) in the tile kernel, point by point, and the products are
# transformed back. Tasks that share a box's patches share V, too.
#
# U is 4 times as large as the weights of 3x3 taps, or more. Where few tasks use it, each
# transforms what it needs of it (c.fused), a chunk of channels at a time that stays in
# the second-level cache; else U is made once, in memory.

from boxes cimport box, box_at, box_pixels, halve
from correlate cimport bias_panel, correlation, move_pixels, panel, width_of
from geometry cimport ceil_div, even_share, pixel
from kernels cimport (
    CACHE_LINE, CNN_ADD, CNN_LINEAR, CNN_ZERO, cnn_runtime, cnn_tile, cnn_winograd,
    isize, run_even,
)
from winograd_patches cimport (
    count_patches, cut_patches, phase, phase_of, phases_across, phases_down, points_of,
    share_range, shares_at, shares_of, summed_at_once,
)
from winograd_values cimport (
    TOGETHER, in_place, outputs_of, patch_end, transform_patches, winograd_shared_bytes,
    winograd_space, winograd_space_of, winograd_values_bytes, winograd_values_task,
)
from winograd_weights cimport (
    is_streamed, low_tiles_pay, pack_taps, point_of_panel, transform_taps,
    winograd_panel_bytes,
)

cdef enum:
    # Bounds of scratch memory, in bytes: a task's patches and their products, patches
    # that tasks share.
    PATCH_BYTES = 640 << 10
    LARGE_BYTES = 6 << 20
    SHARES_BYTES = 1 << 20
    SCRATCH_BYTES = 8 << 20
    SHARED_BYTES = 16 << 20
    # transformed weights of a task that makes them
    CHUNK_BYTES = 512 << 10


cdef inline isize end_patches(
    const correlation *c, const winograd_space *w, const box *where, isize group,
    char *tile, patch_end *ends,
) noexcept nogil:
    """Where the outputs of each patch of a box go: in dst, or in the tile."""
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = c.kernels.itemsize, across = phases_across(&c.taps)
    cdef isize n, i, j, part, row, col, wide = f.out_cols * across, p = 0
    cdef phase here
    cdef box outputs
    for n in range(where.n0, where.n1):
        here = phase_of(&c.src, &c.dst, &c.taps, n)
        outputs = outputs_of(c, where, &here)
        for i in range(where.i0, min(where.i1, ceil_div(here.dst.h, f.out_rows))):
            row = i * f.out_rows
            for j in range(where.j0, where.j1):
                for part in range(across):
                    col = j * wide + part
                    if col >= here.dst.w:
                        break
                    ends[p].rows = min(f.out_rows, here.dst.h - row)
                    ends[p].cols = f.out_cols
                    if here.dst.w - col < wide:
                        ends[p].cols = ceil_div(here.dst.w - col, across)
                    if c.direct:
                        ends[p].y = pixel(&here.dst, 0, group * c.outs, row, col)
                    else:
                        ends[p].y = tile + w.width * size * (
                            (row - outputs.i0) * (outputs.j1 - outputs.j0)
                            + col - outputs.j0)
                    p += 1
        tile += w.tile_step * size
    return p


# What a task multiplies: a box's patches and some blocks of one group.
cdef struct product_part:
    box where
    isize group, first, last, patches
    const void **a                      # V of each patch
    void **products
    const patch_end *ends
    char *tile
    # what comes from memory meanwhile: lines from here on, for so many tiles
    const char *ahead
    isize ahead_step, ahead_tiles
    cnn_tile q


cdef inline product_part begin_products(
    const correlation *c, const winograd_space *w, isize task, char *scratch
) noexcept nogil:
    cdef product_part part
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0, p
    cdef isize split = task % c.splits
    cdef char *values = scratch + w.values
    part.group = c.group0 + task // c.splits % groups
    part.where = box_at(&c.grid, task // c.splits // groups)
    part.first = c.block0 + split * count // c.splits
    part.last = c.block0 + (split + 1) * count // c.splits
    if c.shares:
        values = c.shared + task // c.splits * w.values_bytes
    else:
        transform_patches(
            c, w, &part.where, part.group, 0, c.depth, scratch, values)
    part.a = <const void **> (scratch + w.a)
    part.products = <void **> (scratch + w.c)
    part.ends = <const patch_end *> (scratch + w.ends)
    part.tile = scratch + w.tile
    part.patches = end_patches(
        c, w, &part.where, part.group, part.tile, <patch_end *> part.ends)
    for p in range(part.patches + c.kernels.mr):    # the last ones fill a tile
        part.a[p] = values
        part.products[p] = scratch + w.products
        if p < part.patches:
            part.a[p] = values + p * w.row * c.kernels.itemsize
            part.products[p] = (
                scratch + w.products + p * w.products_row * c.kernels.itemsize)
    part.q.start, part.q.activation = CNN_ZERO, CNN_LINEAR
    part.q.next, part.q.next_step = NULL, CACHE_LINE
    part.ahead_tiles = 0
    part.q.a_at = NULL
    part.q.batches = 1
    part.q.a_next, part.q.a_step = 0, 1
    part.q.a_row, part.q.c_row, part.q.c_far = w.row, w.products_row, 0
    return part


cdef inline void multiply_parts(
    const correlation *c, cnn_tile *q, isize width, isize some
) noexcept nogil:
    """One tile, the sum over some channels at a time, each from zero, then added.

    Products in place take no more channels than the first part has read.
    """
    cdef isize depth = q.depth, from_here = q.a_from, first = 0
    cdef int start = q.start
    cdef const char *b = <const char *> q.b
    cdef const char *ahead = <const char *> q.next
    while first < depth:
        q.depth = min(some, depth - first)
        q.a_from = from_here + first
        q.b = b + first * width * c.kernels.itemsize
        if ahead != NULL:
            q.next, q.next_lines = ahead + first * CACHE_LINE, q.depth
        run_even(c.kernels, q, width)
        first += q.depth
        q.start = CNN_ADD
    q.depth, q.a_from, q.b, q.start = depth, from_here, b, start


cdef inline void multiply_point(
    const correlation *c, product_part *part, isize width
) noexcept nogil:
    """V[patches x depth] . U[depth x width] -> products, at one point."""
    cdef cnn_tile *q = &part.q
    cdef isize p = 0, rows, tile = c.kernels.even_tile[width // c.kernels.lanes - 1].rows
    cdef isize some = even_share(q.depth, summed_at_once(c.winograd, &c.taps))
    q.cols = q.b_step = width
    while p < part.patches:
        rows = part.patches - p
        q.next, q.next_lines = NULL, 0
        if part.ahead_tiles > 0 or some < q.depth:
            rows = min(rows, tile)
        if part.ahead_tiles > 0:
            q.next, q.next_lines = part.ahead, q.depth
            part.ahead += part.ahead_step
            part.ahead_tiles -= 1
        q.a, q.c, q.rows = part.a + p, part.products + p, rows
        if some < q.depth:
            multiply_parts(c, q, width, some)
        else:
            run_even(c.kernels, q, width)
        p += rows


cdef inline void store_outputs(
    const correlation *c, const winograd_space *w, const product_part *part,
    isize block, isize products,
) noexcept nogil:
    """Transform a block's products, which begin so many bytes on, to outputs."""
    cdef const cnn_winograd *f = c.winograd
    cdef const box *where = &part.where
    cdef isize size = c.kernels.itemsize, across = phases_across(&c.taps), p, n
    cdef isize cols = min(width_of(c, block), c.outs - block * c.block)
    cdef isize step_col = across * w.width, step_block = 0
    cdef isize step_row = w.width * (
        min(where.j1 * f.out_cols * across, c.dst.w) - where.j0 * f.out_cols * across)
    cdef phase here
    cdef box outputs
    if c.direct:
        step_row = c.dst.step_h * phases_down(&c.taps)
        step_col = c.dst.step_w * across
        step_block = c.block * c.dst.step_c * size
    for p in range(part.patches):
        f.output(
            part.ends[p].y + block * step_block, step_row, step_col,
            part.ends[p].rows, part.ends[p].cols, cols,
            <char *> part.products[p] + products, w.products_step,
            bias_panel(c, part.group, block), c.activation)
    if c.direct:
        return
    for n in range(where.n0, where.n1):
        here = phase_of(&c.src, &c.dst, &c.taps, n)
        outputs = outputs_of(c, where, &here)
        if outputs.i0 < outputs.i1:
            move_pixels(
                c.kernels, &here.dst, &outputs,
                part.group * c.outs + block * c.block, cols,
                part.tile + (n - where.n0) * w.tile_step * size, w.width, 1, False)


cdef inline void winograd_task(void *job, isize task, char *scratch) noexcept nogil:
    """The products with weights that are transformed already."""
    cdef const correlation *c = <const correlation *> job
    cdef isize size = c.kernels.itemsize, points = points_of(c.winograd)
    cdef winograd_space w = winograd_space_of(c)
    cdef product_part part = begin_products(c, &w, task, scratch)
    cdef isize first = part.first, last, block, e, width, lanes = c.kernels.lanes
    cdef const char *follows
    cdef share_range shares
    while first < part.last:
        last = min(first + w.together, part.last)
        for e in range(points):
            shares = shares_at(&c.taps, c.winograd, e)
            part.q.depth = shares.count * c.depth
            part.q.a_from = e * w.values_step + shares.first * c.depth
            for block in range(first, last):
                part.q.b = point_of_panel(c, part.group, block, e)
                part.q.c_move = ((block - first) * points + e) * w.products_step
                follows = NULL
                width = width_of(c, block)
                if c.streamed and block + 1 < last:
                    follows = point_of_panel(c, part.group, block + 1, e)
                elif c.streamed and e + 1 < points:
                    follows = point_of_panel(c, part.group, first, e + 1)
                part.ahead, part.ahead_step = follows, part.q.depth * CACHE_LINE
                part.ahead_tiles = width // lanes if follows != NULL else 0
                multiply_point(c, &part, width)
        for block in range(first, last):
            store_outputs(
                c, &w, &part, block, (block - first) * points * w.products_step * size)
        first = last


cdef inline void go_ahead(
    const correlation *c, product_part *part, isize block, isize first
) noexcept nogil:
    """Fetch the weights of a block's channels from `first` on during the next tiles."""
    cdef isize taps = c.weight_taps * c.kernels.itemsize, m = block * c.block
    cdef isize row = c.taps.count * width_of(c, block) * c.kernels.itemsize
    if c.stays:
        part.ahead = panel(c, part.group, block) + first * row
        part.ahead_step = part.q.depth * CACHE_LINE
        part.ahead_tiles = row // (shares_of(&c.taps) * CACHE_LINE)
    elif c.transposed:
        part.ahead = c.weight + ((part.group * c.depth + first) * c.outs + m) * taps
        part.ahead_step, part.ahead_tiles = c.outs * taps, part.q.depth
    else:
        part.ahead = c.weight + ((part.group * c.outs + m) * c.depth + first) * taps
        part.ahead_step = c.depth * taps
        part.ahead_tiles = min(c.outs - m, c.block)


cdef inline void fused_task(void *job, isize task, char *scratch) noexcept nogil:
    """The products with weights that are transformed chunk by chunk."""
    cdef const correlation *c = <const correlation *> job
    cdef isize size = c.kernels.itemsize
    cdef winograd_space w = winograd_space_of(c)
    cdef product_part part = begin_products(c, &w, task, scratch)
    cdef isize block, chunk, e, width, step, first, channels
    cdef share_range shares
    cdef char *weights = scratch + w.weights
    cdef char *packed
    for block in range(part.first, part.last):
        width = width_of(c, block)
        for chunk in range(ceil_div(c.depth, w.channels)):
            first = chunk * w.channels
            channels = min(w.channels, c.depth - first)
            packed = scratch + w.packed
            if c.stays:
                packed = panel(c, part.group, block) + (
                    first * c.taps.count * width * size)
            else:
                pack_taps(c, part.group, block, first, channels, packed)
            step = shares_of(&c.taps) * channels * width + c.kernels.lanes
            transform_taps(c, channels, width, packed, weights, step)
            part.q.depth = shares_of(&c.taps) * channels
            if first + channels < c.depth:
                go_ahead(c, &part, block, first + channels)
            elif block + 1 < part.last:
                go_ahead(c, &part, block + 1, 0)
            part.q.start = CNN_ZERO if chunk == 0 else CNN_ADD
            for e in range(points_of(c.winograd)):
                shares = shares_at(&c.taps, c.winograd, e)
                part.q.depth = shares.count * channels
                part.q.b = weights + (
                    e * step + shares.first * channels * width) * size
                part.q.a_from = (
                    chunk * w.chunk_step + e * w.values_step + shares.first * channels)
                part.q.c_move = e * w.products_step
                multiply_point(c, &part, width)
        store_outputs(c, &w, &part, block, 0)


cdef inline void plan_winograd(correlation *c) noexcept nogil:
    """Choose the patches of a task from the geometry alone."""
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr, lanes = c.kernels.lanes
    cdef isize points = points_of(f), shares = shares_of(&c.taps)
    cdef isize channels = ceil_div(c.depth, lanes) * lanes * shares
    cdef isize values = channels + (0 if in_place(c) else width_of(c, 0))
    cdef isize patches = PATCH_BYTES // (points * values * size) // mr * mr
    cdef isize all_patches = count_patches(f, &c.taps, &c.dst)
    # Weights that stream past the patches: then more patches share them, and some
    # blocks take their turn at each point.
    c.streamed = is_streamed(f, shares * c.depth, c.outs, size)
    if c.fused:
        patches = all_patches
    else:
        if c.streamed:
            patches = min(112, LARGE_BYTES // (
                points * (channels + min(c.outs, TOGETHER * c.block)) * size))
            # stride 2: V of so many patches is more than the second-level cache holds
            # (128->128, 56x56 166 GFLOP/s with 98 patches, 191 with 28)
            if shares > 1:
                patches = SHARES_BYTES // (points * channels * size)
            if phases_across(&c.taps) == 1:     # phases fill tiles as they come
                patches = patches // mr * mr
        patches = min(max(patches, 2 * mr), max(2 * mr, ceil_div(
            all_patches // (2 if c.streamed else 8), mr) * mr))
    c.grid = cut_patches(f, &c.taps, &c.dst, patches)
    if low_tiles_pay(c.kernels, min(
            all_patches, box_pixels(&c.grid) * phases_across(&c.taps))):
        c.block = 3 * lanes
        c.blocks = ceil_div(c.outs, c.block)
    c.depth_now = c.depth
    if c.fused:
        c.depth_now = even_share(
            ceil_div(c.depth, lanes),
            max(1, CHUNK_BYTES // (points * shares * c.block * lanes * size)))
        c.depth_now = min(c.depth, c.depth_now * lanes)
    c.panel_bytes = winograd_panel_bytes(c)
    # channels last, patches are read where they lie; but vectors of the last pixel's
    # channels must not reach beyond the image
    c.banded = c.src.step_c != 1 or c.depth % lanes != 0
    c.splits = 1
    c.shares = c.fused
    while winograd_space_of(c).total > SCRATCH_BYTES and halve(&c.grid, 1):
        pass


cdef inline int run_winograd(
    const cnn_runtime *runtime, correlation *c, isize tasks, double work
) noexcept nogil:
    cdef int failed = 0
    c.shares = c.fused or (
        c.splits > 1 and winograd_shared_bytes(c) <= SHARED_BYTES)
    if c.shares:
        c.shared = <char *> runtime.take(winograd_shared_bytes(c))
        if c.shared == NULL:
            return -1
        failed = runtime.run(
            winograd_values_task, c, tasks, winograd_values_bytes(c),
            16 * <double> winograd_shared_bytes(c) / c.kernels.itemsize)
    if not failed:
        failed = runtime.run(
            fused_task if c.fused else winograd_task, c, tasks,
            winograd_space_of(c).total, work)
    if c.shares:
        runtime.give(c.shared)
    return failed
