# Winograd's minimal filtering: m x m outputs from a patch of CNN_POINTS^2 pixels
# with CNN_POINTS^2 products a channel instead of m^2 r^2. A task copies a band,
# transforms its patches (V), multiplies them with the transformed weights (U) in
# the tile kernel, point by point, and transforms the products back.

from boxes cimport (
    band_elements, band_of, box, box_at, box_grid, box_pixels, cut, fill_band, halve, tap_list,
)
from correlate cimport (
    aligned, bias_panel, clear_behind, correlation, move_sums, pack_block, panel,
    width_of,
)
from geometry cimport ceil_div, image, pixel
from kernels cimport (
    CNN_LINEAR, CNN_POINTS, CNN_ZERO, cnn_kernels, cnn_tile, cnn_winograd, isize,
    run_tile,
)

cdef enum:
    VALUES = CNN_POINTS * CNN_POINTS
    # Bounds of scratch memory, in bytes: transformed weights, a task's patches.
    WEIGHT_BYTES = 16 << 20
    PATCH_BYTES = 640 << 10
    LARGE_BYTES = 6 << 20


cdef inline tap_list patch_taps(const tap_list *taps, isize m) noexcept nogil:
    """A patch's pixels, as taps of outputs that lie m pixels apart."""
    cdef tap_list patch
    patch.count, patch.wide, patch.rows = VALUES, CNN_POINTS, CNN_POINTS
    patch.dy = patch.dx = patch.row = patch.row_dy = NULL
    patch.dy_min, patch.dy_max = taps.dy_min, taps.dy_min + CNN_POINTS - 1
    patch.dx_min, patch.dx_max = taps.dx_min, taps.dx_min + CNN_POINTS - 1
    patch.sy = patch.sx = m
    return patch


cdef inline tap_list patch_corner() noexcept nogil:
    """A patch's pixels, as taps of its first pixel."""
    cdef tap_list patch
    patch.count, patch.wide, patch.rows = VALUES, CNN_POINTS, CNN_POINTS
    patch.dy = patch.dx = patch.row = patch.row_dy = NULL
    patch.dy_min = patch.dx_min = 0
    patch.dy_max = patch.dx_max = CNN_POINTS - 1
    patch.sy = patch.sx = 1
    return patch


cdef inline box patch_box(
    const correlation *c, isize n, isize i, isize j
) noexcept nogil:
    """The source pixels of the patch whose first output is (i, j)."""
    cdef box b
    b.n0, b.n1 = n, n + 1
    b.i0, b.j0 = i + c.taps.dy_min, j + c.taps.dx_min
    b.i1, b.j1 = b.i0 + CNN_POINTS, b.j0 + CNN_POINTS
    return b


cdef inline bint is_inside(const box *b, const image *src) noexcept nogil:
    return b.i0 >= 0 and b.j0 >= 0 and b.i1 <= src.h and b.j1 <= src.w


# What a task's scratch holds, in bytes from its start; steps in elements.
cdef struct winograd_space:
    isize rows, channels                # patches and channels, rounded up
    isize values_step, products_step    # from point to point
    isize together                      # blocks that are multiplied point by point
    isize values, products, a, c, tile, total


cdef inline winograd_space winograd_space_of(const correlation *c) noexcept nogil:
    cdef winograd_space w
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr, lanes = c.kernels.lanes
    cdef isize patches = box_pixels(&c.grid), m = c.winograd.m
    w.rows = ceil_div(patches, mr) * mr
    w.channels = ceil_div(c.depth, lanes) * lanes
    # a vector more, so that no two points fall on the same cache sets
    w.values_step = patches * w.channels + lanes
    w.products_step = w.rows * c.block + lanes
    w.together = ceil_div(c.block1 - c.block0, c.splits) if c.streamed else 1
    # vectors of the last pixel's channels reach beyond the band
    w.values = aligned(size * (lanes + c.around.image_step * (
        c.grid.box_n if c.banded else 1)))
    w.products = w.values + aligned(VALUES * w.values_step * size)
    w.a = w.products + aligned(w.together * VALUES * w.products_step * size)
    w.c = w.a + aligned(w.rows * <isize> sizeof(void *))
    w.tile = w.c + aligned(w.rows * <isize> sizeof(void *))
    w.total = w.tile
    if not c.direct:
        w.total += aligned(patches * m * m * c.block * size)
    return w


cdef inline isize winograd_panel_bytes(const correlation *c) noexcept nogil:
    return VALUES * c.depth * c.block * c.kernels.itemsize


cdef inline isize winograd_pack_bytes(const correlation *c) noexcept nogil:
    return c.taps.count * c.depth * c.block * c.kernels.itemsize


cdef inline void winograd_pack_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    """weight -> U[point][d][m] of one group and block."""
    cdef const correlation *c = <const correlation *> job
    cdef isize group = c.group0 + task // (c.block1 - c.block0)
    cdef isize block = c.block0 + task % (c.block1 - c.block0)
    cdef isize width = width_of(c, block), size = c.kernels.itemsize, d, t
    cdef const void *taps[25]
    cdef char *to = panel(c, group, block)
    pack_block(c, group, block, scratch)
    for d in range(c.depth):
        for t in range(c.taps.count):
            taps[t] = scratch + (t * c.depth + d) * width * size
        c.winograd.weight(to + d * width * size, c.depth * width, taps, width)


cdef inline void winograd_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef const cnn_winograd *f = c.winograd
    cdef isize mr = kernels.mr, size = kernels.itemsize
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0
    cdef isize split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef tap_list patch = patch_taps(&c.taps, f.m)
    cdef tap_list corner = patch_corner()
    cdef winograd_space w = winograd_space_of(c)
    cdef const void **a = <const void **> (scratch + w.a)
    cdef void **products = <void **> (scratch + w.c)
    cdef isize patches = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef isize padded = ceil_div(patches, mr) * mr
    cdef isize n, i, j, p = 0, e, block, width, cols, first, last, at
    cdef isize step_row, step_col
    cdef box pixels = where
    cdef box source
    cdef char *y
    cdef cnn_tile q
    if c.banded:
        fill_band(scratch, &c.around, &where, &patch, kernels, &c.src,
                  group * c.depth, c.depth)
        clear_behind(scratch, band_elements(&c.grid, &c.around), kernels)
    for n in range(where.n0, where.n1):
        for i in range(where.i0, where.i1):
            for j in range(where.j0, where.j1):
                a[p] = scratch + w.values + p * w.channels * size
                step_row, step_col = c.around.row_step, c.around.channels
                source = patch_box(c, n, i * f.m, j * f.m)
                if c.banded:
                    y = scratch + size * (
                        (n - where.n0) * c.around.image_step
                        + (i - where.i0) * f.m * step_row
                        + (j - where.j0) * f.m * step_col)
                elif is_inside(&source, &c.src):
                    y = pixel(&c.src, n, group * c.depth, source.i0, source.j0)
                    step_row, step_col = c.src.step_h, c.src.step_w
                else:
                    y = scratch
                    source.i1, source.j1 = source.i0 + 1, source.j0 + 1
                    fill_band(y, &c.around, &source, &corner, kernels, &c.src,
                              group * c.depth, c.depth)
                f.input(
                    <void *> a[p], w.values_step, y, step_row, step_col, c.depth)
                p += 1
    for p in range(patches, padded):
        a[p] = a[0]
    pixels.i0, pixels.i1 = where.i0 * f.m, min(where.i1 * f.m, c.dst.h)
    pixels.j0, pixels.j1 = where.j0 * f.m, min(where.j1 * f.m, c.dst.w)
    q.start, q.activation, q.next = CNN_ZERO, CNN_LINEAR, NULL
    q.a_at = NULL
    q.batches, q.depth = 1, c.depth
    q.a_next, q.a_step = 0, 1
    q.c = products
    for p in range(padded):
        products[p] = scratch + w.products + p * c.block * size
    last = c.block0 + split * count // c.splits
    for block in range(last, c.block0 + (split + 1) * count // c.splits):
        if block == last:
            # V[patches x depth] . U[depth x block] -> products, point by point
            first = block
            last = min(block + w.together, c.block0 + (split + 1) * count // c.splits)
            for e in range(VALUES):
                for at in range(first, last):
                    width = width_of(c, at)
                    q.cols = q.b_step = width
                    q.b = panel(c, group, at) + e * c.depth * width * size
                    q.a_from = e * w.values_step
                    q.c_move = ((at - first) * VALUES + e) * w.products_step
                    for p in range(padded // mr):
                        q.a = a + p * mr
                        q.c = products + p * mr
                        q.rows = min(mr, patches - p * mr)
                        run_tile(kernels, &q, width)
        cols = min(width_of(c, block), c.outs - block * c.block)
        p = 0
        for n in range(where.n0, where.n1):
            for i in range(where.i0, where.i1):
                for j in range(where.j0, where.j1):
                    if c.direct:
                        y = pixel(&c.dst, n, group * c.outs + block * c.block,
                                  i * f.m, j * f.m)
                        step_row, step_col = c.dst.step_h, c.dst.step_w
                    else:
                        step_col = c.block
                        step_row = (pixels.j1 - pixels.j0) * step_col
                        y = scratch + w.tile + size * (
                            ((n - where.n0) * (pixels.i1 - pixels.i0)
                             + (i - where.i0) * f.m) * step_row
                            + (j - where.j0) * f.m * step_col)
                    f.output(
                        y, step_row, step_col,
                        min(f.m, c.dst.h - i * f.m), min(f.m, c.dst.w - j * f.m),
                        cols,
                        <char *> products[p] + (
                            (block - first) * VALUES * w.products_step * size),
                        w.products_step,
                        bias_panel(c, group, block), c.activation)
                    p += 1
        if not c.direct:
            move_sums(c, &pixels, group * c.outs + block * c.block, cols,
                      scratch + w.tile, c.block, 1, False)


cdef inline void plan_winograd(correlation *c) noexcept nogil:
    """Choose the patches of a task from the geometry alone."""
    cdef isize m = c.winograd.m, size = c.kernels.itemsize, mr = c.kernels.mr
    cdef isize rows = ceil_div(c.dst.h, m), cols = ceil_div(c.dst.w, m)
    cdef isize channels = ceil_div(c.depth, c.kernels.lanes) * c.kernels.lanes
    cdef isize patches = PATCH_BYTES // (VALUES * channels * size) // mr * mr
    cdef tap_list patch = patch_taps(&c.taps, m)
    cdef box_grid single
    # Weights beyond the second-level cache stream past the patches: then more
    # patches share them, and all blocks take their turn at each point.
    c.streamed = VALUES * c.depth * c.outs * size > 1 << 20
    if c.streamed:
        patches = LARGE_BYTES // (
            VALUES * (channels + min(c.outs, WEIGHT_BYTES // (
                VALUES * c.depth * size)) + c.block) * size)
        patches = min(patches, 112) // mr * mr
    patches = min(max(patches, 2 * mr), max(2 * mr, ceil_div(
        c.dst.n * rows * cols // (2 if c.streamed else 8), mr) * mr))
    c.depth_now = c.depth
    c.panel_bytes = winograd_panel_bytes(c)
    c.grid = cut(c.dst.n, rows, cols, patches)
    # channels last, patches are read where they lie; but vectors of the last pixel's
    # channels must not reach beyond the image
    c.banded = c.src.step_c != 1 or c.depth % c.kernels.lanes != 0
    if c.banded:
        c.around = band_of(&c.grid, &patch, c.depth)
    else:
        single = cut(1, 1, 1, 1)
        patch = patch_corner()
        c.around = band_of(&single, &patch, c.depth)
