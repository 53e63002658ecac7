# Winograd's minimal filtering: m outputs of a kernel of r taps from m + r - 1 pixels
# (points), with as many products a channel instead of m * r, along rows, columns or
# both. A task copies a band, transforms its patches (V), multiplies them with the
# transformed weights (U) in the tile kernel, point by point, and transforms the
# products back.
#
# A dilated kernel is an undilated one for each phase of the pixels: rows y0, y0 +
# dilation, ... and columns x0, x0 + dilation, ... Rows of a phase are taken for an
# image of their own. The phases of the columns stay together, so that copies run along
# rows: a patch is wide enough for all of them, and there is one for each.

from boxes cimport (
    band, band_of, box, box_at, box_grid, box_pixels, cut, fill_band, halve,
    tap_list,
)
from correlate cimport (
    aligned, bias_panel, clear_behind, correlation, move_pixels, pack_block, panel,
    width_of,
)
from geometry cimport ceil_div, image, pixel
from kernels cimport (
    CACHE_LINE, CNN_LINEAR, CNN_ZERO, cnn_inside, cnn_kernels, cnn_tile, cnn_winograd,
    isize, run_tile,
)

cdef enum:
    # Bounds of scratch memory, in bytes: transformed weights, a task's patches and
    # their products.
    WEIGHT_BYTES = 16 << 20
    PATCH_BYTES = 640 << 10
    LARGE_BYTES = 6 << 20
    SCRATCH_BYTES = 8 << 20
    # blocks that take their turn at each point
    TOGETHER = 4


cdef inline isize points_of(const cnn_winograd *f) noexcept nogil:
    return f.rows * f.cols


cdef inline isize phases_down(const tap_list *taps) noexcept nogil:
    """The dilation of the rows."""
    if taps.rows == 1:
        return 1
    return (taps.dy_max - taps.dy_min) // (taps.rows - 1)


cdef inline isize phases_across(const tap_list *taps) noexcept nogil:
    """The dilation of the columns."""
    if taps.count == taps.rows:
        return 1
    return (taps.dx_max - taps.dx_min) // (taps.count // taps.rows - 1)


cdef inline bint is_streamed(
    const cnn_winograd *f, isize depth, isize outs, isize size
) noexcept nogil:
    """Whether the transformed weights are more than the second-level cache holds."""
    return points_of(f) * depth * outs * size > 1 << 20


cdef inline box_grid cut_patches(
    const cnn_winograd *f, const tap_list *taps, const image *dst, isize patches
) noexcept nogil:
    """Cut the outputs into boxes of about this many patches."""
    cdef isize down = phases_down(taps), across = phases_across(taps)
    return cut(
        dst.n * down, ceil_div(ceil_div(dst.h, down), f.out_rows),
        ceil_div(dst.w, f.out_cols * across), max(1, patches // across))


cdef inline isize along(isize size, isize dilation, isize outputs) noexcept nogil:
    """Patches of `outputs` along one side of an image, in all phases."""
    cdef isize longer = size % dilation
    return (
        longer * ceil_div(ceil_div(size, dilation), outputs)
        + (dilation - longer) * ceil_div(size // dilation, outputs))


cdef inline isize count_patches(
    const cnn_winograd *f, const tap_list *taps, const image *dst
) noexcept nogil:
    return (
        dst.n * along(dst.h, phases_down(taps), f.out_rows)
        * along(dst.w, phases_across(taps), f.out_cols))


cdef inline tap_list patch_taps(
    const tap_list *taps, const cnn_winograd *f
) noexcept nogil:
    """The pixels of the patches of all phases of columns, as taps of a place."""
    cdef tap_list patch
    cdef isize across = phases_across(taps)
    patch.rows, patch.wide = f.rows, f.cols * across
    patch.count = patch.rows * patch.wide
    patch.dy = patch.dx = patch.row = patch.row_dy = NULL
    patch.dy_min, patch.dy_max = taps.dy_min, taps.dy_min + patch.rows - 1
    patch.dx_min, patch.dx_max = taps.dx_min, taps.dx_min + patch.wide - 1
    patch.sy, patch.sx = f.out_rows, f.out_cols * across
    return patch


# The rows of a phase of one image; row i of dst needs rows i + dy, ... of src.
cdef struct phase:
    image src, dst
    isize dy


cdef inline isize take_every(
    char **data, isize *count, isize *step, isize size, isize first, isize every
) noexcept nogil:
    """See pixels first, first + every, ... alone; return where `first` is then."""
    cdef isize at = (first % every + every) % every
    data[0] += at * step[0] * size
    count[0] = max(0, ceil_div(count[0] - at, every))
    step[0] *= every
    return (first - at) // every


cdef inline phase phase_of(
    const image *src, const image *dst, const tap_list *taps, isize index
) noexcept nogil:
    cdef phase p
    cdef isize down = phases_down(taps), n = index // down, first = index % down
    p.src, p.dst = src[0], dst[0]
    p.src.n = p.dst.n = 1
    p.src.data, p.dst.data = pixel(src, n, 0, 0, 0), pixel(dst, n, 0, 0, 0)
    take_every(&p.dst.data, &p.dst.h, &p.dst.step_h, dst.itemsize, first, down)
    p.dy = take_every(
        &p.src.data, &p.src.h, &p.src.step_h, src.itemsize, first + taps.dy_min, down)
    return p


cdef inline void fill_phase(
    char *to, const band *b, const box *where, tap_list *patch, isize dy,
    const cnn_kernels *kernels, const image *src, isize channel, isize channels,
) noexcept nogil:
    """Copy what the patches of a box need of one phase, in its place in the band."""
    cdef box one = where[0]
    one.n0, one.n1 = 0, 1
    patch.dy_max += dy - patch.dy_min
    patch.dy_min = dy
    fill_band(to, b, &one, patch, kernels, src, channel, channels)


cdef inline cnn_inside inside_of(
    const image *src, isize row, isize col, isize across
) noexcept nogil:
    """What an image has of the patch at row and col."""
    cdef cnn_inside there
    there.row0, there.row1 = -row, src.h - row
    there.col0 = ceil_div(-col, across) if col < 0 else 0
    there.col1 = ceil_div(src.w - col, across) if col < src.w else 0
    return there


# Where the outputs of a patch go.
cdef struct patch_end:
    char *y
    isize rows, cols


# What a task's scratch holds, in bytes from its start; steps in elements.
cdef struct winograd_space:
    isize patches, rows, channels       # at most; the latter ones rounded up
    isize values_step, products_step    # from point to point
    isize width, products_row           # of a block's products; from patch to patch
    isize together                      # blocks that are multiplied point by point
    isize tile_step                     # from phase to phase
    isize values, products, a, c, ends, tile, total


cdef inline bint in_place(const correlation *c) noexcept nogil:
    """Whether the products of a tile take the place of the values that they are of."""
    return c.blocks == 1 and width_of(c, 0) <= c.depth


cdef inline winograd_space winograd_space_of(const correlation *c) noexcept nogil:
    cdef winograd_space w
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr, lanes = c.kernels.lanes
    cdef isize across = phases_across(&c.taps)
    w.patches = box_pixels(&c.grid) * across
    w.rows = ceil_div(w.patches, mr) * mr
    w.channels = ceil_div(c.depth, lanes) * lanes
    # a vector more, so that no two points fall on the same cache sets
    w.values_step = w.patches * w.channels + lanes
    w.products_row = w.width = width_of(c, 0)
    w.products_step = w.rows * w.width + lanes
    w.together = min(TOGETHER, c.blocks) if c.streamed else 1
    w.tile_step = (
        c.grid.box_h * f.out_rows * c.grid.box_w * f.out_cols * across * w.width)
    # vectors of the last pixel's channels reach beyond the band
    w.values = 0
    if c.banded:
        w.values = aligned(size * (lanes + c.around.image_step * c.grid.box_n))
    w.products = w.a = w.values + aligned(points_of(f) * w.values_step * size)
    if in_place(c):
        w.products = w.values
        w.products_step, w.products_row = w.values_step, w.channels
    else:
        w.a += aligned(w.together * points_of(f) * w.products_step * size)
    w.c = w.a + aligned(w.rows * <isize> sizeof(void *))
    w.ends = w.c + aligned(w.rows * <isize> sizeof(void *))
    w.tile = w.ends + aligned(w.patches * <isize> sizeof(patch_end))
    w.total = w.tile
    if not c.direct:
        w.total += aligned(c.grid.box_n * w.tile_step * size)
    return w


cdef inline isize winograd_panel_bytes(const correlation *c) noexcept nogil:
    return points_of(c.winograd) * c.depth * c.block * c.kernels.itemsize


cdef inline isize winograd_pack_bytes(const correlation *c) noexcept nogil:
    return c.taps.count * c.depth * c.block * c.kernels.itemsize


cdef inline const char *point_of_panel(
    const correlation *c, isize group, isize block, isize point
) noexcept nogil:
    """The transformed weights of a block at one point."""
    return panel(c, group, block) + c.kernels.itemsize * (
        point * c.depth * width_of(c, block))


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


cdef inline box outputs_of(
    const correlation *c, const box *where, const phase *here
) noexcept nogil:
    """The outputs of a box of patches, of one phase."""
    cdef const cnn_winograd *f = c.winograd
    cdef isize wide = f.out_cols * phases_across(&c.taps)
    cdef box b
    b.n0, b.n1 = 0, 1
    b.i0, b.i1 = where.i0 * f.out_rows, min(where.i1 * f.out_rows, here.dst.h)
    b.j0, b.j1 = where.j0 * wide, min(where.j1 * wide, here.dst.w)
    return b


cdef inline isize transform_patches(
    const correlation *c, const winograd_space *w, const box *where, isize group,
    char *scratch,
) noexcept nogil:
    """Transform the patches of a box: V, and where the outputs of each go."""
    cdef const cnn_kernels *kernels = c.kernels
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = kernels.itemsize, across = phases_across(&c.taps), wide
    cdef isize n, i, j, part, row, col, first, p = 0, step_row, step_col
    cdef const void **a = <const void **> (scratch + w.a)
    cdef patch_end *ends = <patch_end *> (scratch + w.ends)
    cdef tap_list patch = patch_taps(&c.taps, f)
    cdef phase here
    cdef box outputs
    cdef cnn_inside inside
    cdef const cnn_inside *partly
    cdef char *x
    cdef char *copied
    cdef char *tile
    wide = f.out_cols * across
    for n in range(where.n0, where.n1):
        here = phase_of(&c.src, &c.dst, &c.taps, n)
        outputs = outputs_of(c, where, &here)
        if outputs.i0 >= outputs.i1:
            continue
        copied = scratch + (n - where.n0) * c.around.image_step * size
        tile = scratch + w.tile + (n - where.n0) * w.tile_step * size
        if c.banded:
            fill_phase(copied, &c.around, where, &patch, here.dy, kernels, &here.src,
                       group * c.depth, c.depth)
            clear_behind(copied, c.around.image_step, kernels)
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
                    partly = NULL
                    if c.banded:
                        step_row, step_col = c.around.row_step, c.around.channels
                        x = copied + size * (
                            (row - outputs.i0) * step_row
                            + (col - outputs.j0) * step_col)
                        step_col *= across
                    else:
                        first = col + c.taps.dx_min
                        x = pixel(
                            &here.src, 0, group * c.depth, row + here.dy, first)
                        step_row = here.src.step_h
                        step_col = here.src.step_w * across
                        if (row + here.dy < 0 or row + here.dy + f.rows > here.src.h
                                or first < 0
                                or first + (f.cols - 1) * across >= here.src.w):
                            inside = inside_of(
                                &here.src, row + here.dy, first, across)
                            partly = &inside
                    a[p] = scratch + w.values + p * w.channels * size
                    f.input(<void *> a[p], w.values_step, x, step_row, step_col,
                            c.depth, partly)
                    p += 1
    return p


cdef inline void winograd_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef const cnn_winograd *f = c.winograd
    cdef isize mr = kernels.mr, size = kernels.itemsize, points = points_of(f)
    cdef isize across = phases_across(&c.taps)
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0
    cdef isize split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef winograd_space w = winograd_space_of(c)
    cdef const void **a = <const void **> (scratch + w.a)
    cdef void **products = <void **> (scratch + w.c)
    cdef const patch_end *ends = <const patch_end *> (scratch + w.ends)
    cdef isize patches = transform_patches(c, &w, &where, group, scratch)
    cdef isize padded = ceil_div(patches, mr) * mr
    cdef isize n, p, e, block, width, cols, first = 0, last, at
    cdef isize step_row, step_col, step_block
    cdef phase here
    cdef box outputs
    cdef const char *follows
    cdef cnn_tile q
    for p in range(patches, padded):
        a[p] = a[0]
    q.start, q.activation, q.next = CNN_ZERO, CNN_LINEAR, NULL
    q.a_at = NULL
    q.batches, q.depth = 1, c.depth
    q.a_next, q.a_step, q.next_step = 0, 1, CACHE_LINE
    q.c = products
    for p in range(padded):
        products[p] = scratch + w.products + p * w.products_row * size
    step_col, step_block = across * w.width, 0
    step_row = w.width * (
        min(where.j1 * f.out_cols * across, c.dst.w) - where.j0 * f.out_cols * across)
    if c.direct:
        step_row = c.dst.step_h * phases_down(&c.taps)
        step_col = c.dst.step_w * across
        step_block = c.block * c.dst.step_c * size
    last = c.block0 + split * count // c.splits
    for block in range(last, c.block0 + (split + 1) * count // c.splits):
        if block == last:
            # V[patches x depth] . U[depth x block] -> products, point by point
            first = block
            last = min(block + w.together, c.block0 + (split + 1) * count // c.splits)
            for e in range(points):
                for at in range(first, last):
                    width = width_of(c, at)
                    q.cols = q.b_step = width
                    q.b = point_of_panel(c, group, at, e)
                    q.a_from = e * w.values_step
                    q.c_move = ((at - first) * points + e) * w.products_step
                    # while tiles are computed, the next panel comes from memory
                    follows = NULL
                    if c.streamed and at + 1 < last:
                        follows = point_of_panel(c, group, at + 1, e)
                    elif c.streamed and e + 1 < points:
                        follows = point_of_panel(c, group, first, e + 1)
                    for p in range(padded // mr):
                        q.next = NULL
                        if follows != NULL and p * 64 < width * size:
                            q.next = follows + p * c.depth * 64
                        q.a = a + p * mr
                        q.c = products + p * mr
                        q.rows = min(mr, patches - p * mr)
                        run_tile(kernels, &q, width)
        cols = min(width_of(c, block), c.outs - block * c.block)
        for p in range(patches):
            f.output(
                ends[p].y + block * step_block, step_row, step_col,
                ends[p].rows, ends[p].cols, cols,
                <char *> products[p]
                + (block - first) * points * w.products_step * size,
                w.products_step, bias_panel(c, group, block), c.activation)
        if c.direct:
            continue
        for n in range(where.n0, where.n1):
            here = phase_of(&c.src, &c.dst, &c.taps, n)
            outputs = outputs_of(c, &where, &here)
            if outputs.i0 < outputs.i1:
                move_pixels(
                    kernels, &here.dst, &outputs, group * c.outs + block * c.block,
                    cols, scratch + w.tile + (n - where.n0) * w.tile_step * size,
                    w.width, 1, False)


cdef inline void plan_winograd(correlation *c) noexcept nogil:
    """Choose the patches of a task from the geometry alone."""
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr, points = points_of(f)
    cdef isize channels = ceil_div(c.depth, c.kernels.lanes) * c.kernels.lanes
    cdef isize values = channels + (0 if in_place(c) else width_of(c, 0))
    cdef isize patches = PATCH_BYTES // (points * values * size) // mr * mr
    cdef isize all_patches = count_patches(f, &c.taps, &c.dst)
    cdef isize across = phases_across(&c.taps)
    cdef tap_list patch = patch_taps(&c.taps, f)
    # Weights that stream past the patches: then more patches share them, and some
    # blocks take their turn at each point.
    c.streamed = is_streamed(f, c.depth, c.outs, size)
    if c.streamed:
        patches = min(112, LARGE_BYTES // (
            points * (channels + min(c.outs, TOGETHER * c.block)) * size))
        if across == 1:     # phases fill tiles as they come
            patches = patches // mr * mr
    patches = min(max(patches, 2 * mr), max(2 * mr, ceil_div(
        all_patches // (2 if c.streamed else 8), mr) * mr))
    c.depth_now = c.depth
    c.panel_bytes = winograd_panel_bytes(c)
    c.grid = cut_patches(f, &c.taps, &c.dst, patches)
    # channels last, patches are read where they lie; but vectors of the last pixel's
    # channels must not reach beyond the image
    c.banded = c.src.step_c != 1 or c.depth % c.kernels.lanes != 0
    if c.banded:
        c.around = band_of(&c.grid, &patch, c.depth)
    while winograd_space_of(c).total > SCRATCH_BYTES and halve(&c.grid, 1):
        if c.banded:
            c.around = band_of(&c.grid, &patch, c.depth)
