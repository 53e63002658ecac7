# The patches of minimal filtering, transformed: V. What a task's scratch memory holds,
# and what tasks share.

from boxes cimport band, band_of, box, box_at, box_pixels, boxes, tap_list
from correlate cimport aligned, clear_behind, correlation, width_of
from geometry cimport ceil_div, pixel
from kernels cimport cnn_inside, cnn_kernels, cnn_winograd, isize
from winograd_patches cimport (
    fill_phase, inside_of, patch_taps, phase, phase_of, phases_across, points_of,
    share_col, share_row, shares_of,
)

cdef enum:
    TOGETHER = 4                        # blocks that take their turn at each point


# Where the outputs of a patch go.
cdef struct patch_end:
    char *y
    isize rows, cols


# What a task's scratch holds, in bytes from its start; steps in elements. The band and
# V are elsewhere where tasks share them.
cdef struct winograd_space:
    isize patches, channels             # at most, of a chunk; rounded up to vectors
    isize row                           # of V: a patch's channels, of all shares
    isize values_step, products_step    # from point to point
    isize width, products_row           # of a block's products; from patch to patch
    isize chunk_step                    # of V, from chunk to chunk of channels
    isize together                      # blocks that are multiplied point by point
    isize tile_step                     # from phase to phase
    isize values_bytes
    isize values, products, weights, packed, a, c, ends, tile, total


cdef inline band band_of_patches(const correlation *c, isize channels) noexcept nogil:
    """What some channels of the patches of a box are copied to."""
    cdef tap_list patch = patch_taps(&c.taps, c.winograd)
    return band_of(&c.grid, &patch, channels)


cdef inline isize band_bytes(const correlation *c, isize channels) noexcept nogil:
    """A band; vectors of its last pixel's channels reach beyond it."""
    if not c.banded:
        return 0
    return aligned(c.kernels.itemsize * (
        c.kernels.lanes + band_of_patches(c, channels).image_step))


cdef inline bint in_place(const correlation *c) noexcept nogil:
    """Whether the products of a tile take the place of the values that they are of."""
    return c.blocks == 1 and not c.fused and width_of(c, 0) <= c.depth


cdef inline winograd_space winograd_space_of(const correlation *c) noexcept nogil:
    cdef winograd_space w
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = c.kernels.itemsize, lanes = c.kernels.lanes, rows
    cdef isize points = points_of(f), across = phases_across(&c.taps)
    w.patches = box_pixels(&c.grid) * across
    w.channels = ceil_div(c.depth_now, lanes) * lanes
    w.row = shares_of(&c.taps) * w.channels
    # a vector more, so that no two points fall on the same cache sets
    w.values_step = w.patches * w.row + lanes
    w.width = w.products_row = width_of(c, 0)
    w.products_step = w.patches * w.width + lanes
    w.chunk_step = points * w.values_step
    w.values_bytes = aligned(ceil_div(c.depth, w.channels) * w.chunk_step * size)
    w.together = min(TOGETHER, c.blocks) if c.streamed and not c.fused else 1
    w.tile_step = (
        c.grid.box_h * f.out_rows * c.grid.box_w * f.out_cols * across * w.width)
    w.values = w.products = 0
    if not c.shares:
        w.values = band_bytes(c, c.depth)
        w.products = w.values + w.values_bytes
    w.weights = w.products
    if in_place(c):
        w.products = w.values
        w.products_step, w.products_row = w.values_step, w.row
    else:
        w.weights += aligned(w.together * points * w.products_step * size)
    w.packed = w.a = w.weights
    if c.fused:
        w.packed += aligned(points * (w.row * c.block + lanes) * size)
        w.a = w.packed
        if not c.stays:
            w.a += aligned(c.taps.count * w.channels * c.block * size)
    rows = w.patches + c.kernels.mr
    w.c = w.a + aligned(rows * <isize> sizeof(void *))
    w.ends = w.c + aligned(rows * <isize> sizeof(void *))
    w.tile = w.ends + aligned(w.patches * <isize> sizeof(patch_end))
    w.total = w.tile
    if not c.direct:
        w.total += aligned(c.grid.box_n * w.tile_step * size)
    return w


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


cdef inline void transform_patch(
    const correlation *c, const winograd_space *w, const phase *here, isize group,
    isize first, isize last, isize row, isize col, isize share, const char *copy,
    const band *around, char *values,
) noexcept nogil:
    """Transform one share of a patch for the outputs from row and col on.

    The patch lies in the source, or begins at `copy` in a band.
    """
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = c.kernels.itemsize, down = c.taps.sy, chunk, channels
    cdef isize across = phases_across(&c.taps) * c.taps.sx, d = first, run
    cdef isize top = share_row(&c.taps, share), left = share_col(&c.taps, share)
    cdef isize step_row, step_col
    cdef cnn_inside inside
    cdef const cnn_inside *partly = NULL
    cdef const char *x
    if c.banded:
        step_row, step_col = around.row_step, around.channels
        x = copy + size * (top * step_row + left * step_col)
    else:
        step_row, step_col = here.src.step_h, here.src.step_w
        top += row * down + here.dy
        left += col * c.taps.sx + c.taps.dx_min
        x = pixel(&here.src, 0, group * c.depth + first, top, left)
        if (top < 0 or top + (f.rows - 1) * down >= here.src.h
                or left < 0 or left + (f.cols - 1) * across >= here.src.w):
            inside = inside_of(&here.src, top, left, down, across)
            partly = &inside
    while d < last:
        chunk = d // w.channels
        run = min(last, (chunk + 1) * w.channels) - d
        channels = min(w.channels, c.depth - chunk * w.channels)
        f.input(
            values + size * (
                chunk * w.chunk_step + share * channels + d % w.channels),
            w.values_step, x + (d - first) * size, step_row * down, step_col * across,
            run, partly)
        d += run


cdef inline void transform_patches(
    const correlation *c, const winograd_space *w, const box *where, isize group,
    isize first, isize last, char *scratch, char *values,
) noexcept nogil:
    """Transform channels [first, last) of the patches of a box: V."""
    cdef const cnn_kernels *kernels = c.kernels
    cdef const cnn_winograd *f = c.winograd
    cdef isize size = kernels.itemsize, across = phases_across(&c.taps), wide
    cdef isize n, i, j, part, row, col, p = 0, share
    cdef band around = band_of_patches(c, last - first)
    cdef tap_list patch = patch_taps(&c.taps, f)
    cdef phase here
    cdef box outputs
    wide = f.out_cols * across
    for n in range(where.n0, where.n1):
        here = phase_of(&c.src, &c.dst, &c.taps, n)
        outputs = outputs_of(c, where, &here)
        if outputs.i0 >= outputs.i1:
            continue
        if c.banded:
            fill_phase(scratch, &around, where, &patch, here.dy, kernels, &here.src,
                       group * c.depth + first, last - first)
            clear_behind(scratch, around.image_step, kernels)
        for i in range(where.i0, min(where.i1, ceil_div(here.dst.h, f.out_rows))):
            row = i * f.out_rows
            for j in range(where.j0, where.j1):
                for part in range(across):
                    col = j * wide + part
                    if col >= here.dst.w:
                        break
                    for share in range(shares_of(&c.taps)):
                        transform_patch(
                            c, w, &here, group, first, last, row, col, share,
                            scratch + size * (
                                (row - outputs.i0) * c.taps.sy * around.row_step
                                + (col - outputs.j0) * c.taps.sx * around.channels),
                            &around, values + p * w.row * size)
                    p += 1


cdef inline void winograd_values_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    """Some channels of a box's V, where several tasks read them."""
    cdef const correlation *c = <const correlation *> job
    cdef isize lanes = c.kernels.lanes, part = task % c.splits
    cdef isize vectors = ceil_div(c.depth, lanes), groups = c.group1 - c.group0
    cdef isize first = part * vectors // c.splits * lanes
    cdef isize last = min(c.depth, (part + 1) * vectors // c.splits * lanes)
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef winograd_space w = winograd_space_of(c)
    if first < last:
        transform_patches(
            c, &w, &where, c.group0 + task // c.splits % groups, first, last, scratch,
            c.shared + task // c.splits * w.values_bytes)


cdef inline isize winograd_shared_bytes(const correlation *c) noexcept nogil:
    """V of a pass."""
    return (
        winograd_space_of(c).values_bytes * boxes(&c.grid) * (c.group1 - c.group0))


cdef inline isize winograd_values_bytes(const correlation *c) noexcept nogil:
    """Scratch of the task above."""
    cdef isize lanes = c.kernels.lanes
    return band_bytes(c, ceil_div(ceil_div(c.depth, lanes), c.splits) * lanes)
