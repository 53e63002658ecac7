# The engine of every pass that makes pixels: forward, the gradient of the input,
# transposed convolution. Each is a correlation
#
#   dst[n, m, i, j] = sum over taps t and channels d of
#                     src[n, d, i*sy + dy_t, j*sx + dx_t] * weight[m, d, t]
#
# computed in tiles of mr pixels x block channels: the rows of A are source pixels,
# where they lie (channels last) or in a band copied that way; B is packed weights.

from boxes cimport (
    band, band_elements, band_of, band_offset, box, box_at, box_grid, box_pixels,
    boxes, cut, fill_band, halve, tap_list,
)
from geometry cimport ceil_div, image, pixel
from kernels cimport (
    CNN_ADD, CNN_BIAS, CNN_LINEAR, cnn_kernels, cnn_runtime, cnn_tile, isize,
    kernels_for,
)
from libc.string cimport memcpy, memset

# Bounds of scratch memory, in bytes: shared by all threads, and for each of them.
cdef enum:
    PANEL_BYTES = 4 << 20
    BAND_BYTES = 1 << 20


cdef struct correlation:
    const cnn_kernels *kernels
    image src, dst
    isize groups, depth, outs           # channels of src and dst in one group
    tap_list taps
    const char *weight                  # contiguous, every tap of it
    isize weight_taps
    const isize *order                  # of weight tap t in the tap list, or -1
    bint transposed                     # weight is [depth][outs][taps]
    const char *bias                    # a value for each channel of dst, or NULL
    int activation

    # what the geometry leads to
    box_grid grid
    band around
    bint banded                         # the source is copied into bands
    bint padded                         # taps can lie outside of the image
    bint direct                         # tiles are stored in dst itself
    isize block, blocks                 # channels of a tile; tiles for all outs
    # what the pass under way does
    isize group0, group1, block0, block1, depth0, depth_now, splits
    int start, end
    isize *to
    char *panels
    char *bias_panels


cdef inline isize width_of(const correlation *c, isize block) noexcept nogil:
    """Columns of a block's panel: one vector where that is enough."""
    if c.outs - block * c.block <= c.kernels.lanes:
        return c.kernels.lanes
    return c.block


cdef inline isize panel_bytes(const correlation *c) noexcept nogil:
    return c.taps.count * c.depth_now * c.block * c.kernels.itemsize


cdef inline char *panel(
    const correlation *c, isize group, isize block
) noexcept nogil:
    return c.panels + panel_bytes(c) * (
        (group - c.group0) * (c.block1 - c.block0) + block - c.block0
    )


cdef inline void pack_task(void *job, isize task, char *scratch) noexcept nogil:
    """weight[m, d, t] -> panel[t][d][m] of one group and block, bias beside it."""
    cdef const correlation *c = <const correlation *> job
    cdef isize group = c.group0 + task // (c.block1 - c.block0)
    cdef isize block = c.block0 + task % (c.block1 - c.block0)
    cdef isize size = c.kernels.itemsize, taps = c.weight_taps
    cdef isize first = block * c.block, width = width_of(c, block), d
    cdef isize outs = min(c.outs - first, width)
    cdef char *to = panel(c, group, block)
    cdef char *bias
    if c.transposed:
        for d in range(c.depth_now):
            c.kernels.pack(
                to + d * width * size, c.to, width,
                c.weight + size * taps * (
                    (group * c.depth + c.depth0 + d) * c.outs + first),
                taps, outs, taps,
            )
    else:
        c.kernels.pack(
            to, c.to, width,
            c.weight + size * taps * (
                (group * c.outs + first) * c.depth + c.depth0),
            taps * c.depth, outs, taps * c.depth_now,
        )
    bias = c.bias_panels + size * c.block * (
        (group - c.group0) * (c.block1 - c.block0) + block - c.block0)
    memset(bias, 0, c.block * size)
    if c.bias != NULL:
        memcpy(bias, c.bias + (group * c.outs + first) * size, outs * size)


cdef inline void point_at_source(
    const correlation *c, const box *where, isize group, const void **a,
    const char *source, const char *zeros,
) noexcept nogil:
    """Fill a[tile][run][row]: the pixel that each row of A starts from."""
    cdef const tap_list *taps = &c.taps
    cdef isize mr = c.kernels.mr, size = c.kernels.itemsize
    cdef isize runs = taps.count // taps.wide
    cdef isize n, i, j, t, y, x, at, lane = 0
    cdef isize row_step, col_step
    cdef const char *base
    cdef const void **to = a
    cdef bint inside
    for n in range(where.n0, where.n1):
        for i in range(where.i0, where.i1):
            if c.banded:
                base = source + size * (
                    (n - where.n0) * c.around.image_step
                    + (i - where.i0) * taps.sy * c.around.row_step)
                col_step = taps.sx * c.around.channels * size
            else:
                base = pixel(
                    &c.src, n, group * c.depth + c.depth0, i * taps.sy,
                    where.j0 * taps.sx)
                col_step = taps.sx * c.src.step_w * size
            y = i * taps.sy
            inside = c.banded or not c.padded
            for j in range(where.j0, where.j1):
                x = j * taps.sx
                if inside or (
                    y + taps.dy_min >= 0 and y + taps.dy_max < c.src.h
                    and x + taps.dx_min >= 0 and x + taps.dx_max < c.src.w
                ):
                    for t in range(runs):
                        to[t * mr + lane] = base + c.to[t]
                else:
                    for t in range(runs):
                        at = t * taps.wide
                        if (0 <= y + taps.dy[at] < c.src.h
                                and 0 <= x + taps.dx[at] < c.src.w):
                            to[t * mr + lane] = base + c.to[t]
                        else:
                            to[t * mr + lane] = zeros
                base += col_step
                lane += 1
                if lane == mr:
                    lane = 0
                    to += runs * mr
    if lane:  # rows of the last tile that nobody will store
        for j in range(lane, mr):
            for t in range(runs):
                to[t * mr + j] = to[t * mr]


cdef inline void point_at_result(
    const correlation *c, const box *where, isize group, void **to, char *tile
) noexcept nogil:
    """Fill to[pixel]: where each row of C begins, in dst or in the scratch tile."""
    cdef isize n, i, j, p = 0
    cdef isize step = c.dst.step_w * c.dst.itemsize
    cdef char *row = tile
    if not c.direct:
        step = c.block * c.dst.itemsize
    for n in range(where.n0, where.n1):
        for i in range(where.i0, where.i1):
            if c.direct:
                row = pixel(&c.dst, n, group * c.outs, i, where.j0)
            for j in range(where.j0, where.j1):
                to[p] = row
                row += step
                p += 1
    for i in range(ceil_div(p, c.kernels.mr) * c.kernels.mr - p):
        to[p + i] = to[p - 1]


cdef inline void move_tile(
    const correlation *c, const box *where, isize channel, isize channels,
    char *tile, bint load
) noexcept nogil:
    """Copy the box's tile[pixel][channel] to dst, or from it."""
    cdef isize n, i, run = where.j1 - where.j0, rows = where.i1 - where.i0
    cdef isize size = c.dst.itemsize
    cdef char *at
    if run == c.dst.w and c.dst.step_h == run * c.dst.step_w:
        run *= rows
        rows = 1
    for n in range(where.n0, where.n1):
        for i in range(rows):
            at = pixel(&c.dst, n, channel, where.i0 + i, where.j0)
            if load:
                c.kernels.copy(
                    tile, c.block, 1, at, c.dst.step_w, c.dst.step_c, run, channels)
            else:
                c.kernels.copy(
                    at, c.dst.step_w, c.dst.step_c, tile, c.block, 1, run, channels)
            tile += run * c.block * size


# What a task's scratch holds, in bytes from its start.
cdef struct workspace:
    isize a, c, tile, zeros, total


cdef inline isize aligned(isize bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef inline workspace workspace_of(const correlation *c) noexcept nogil:
    cdef workspace w
    cdef isize size = c.kernels.itemsize, mr = c.kernels.mr
    cdef isize rows = ceil_div(box_pixels(&c.grid), mr) * mr
    w.a = aligned(band_elements(&c.grid, &c.around) * size) if c.banded else 0
    w.c = w.a + aligned(
        rows * (c.taps.count // c.taps.wide) * <isize> sizeof(void *))
    w.tile = w.c + aligned(rows * <isize> sizeof(void *))
    w.zeros = w.tile + (0 if c.direct else aligned(rows * c.block * size))
    w.total = w.zeros + (0 if c.banded else aligned(c.depth_now * size))
    return w


cdef inline void correlate_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef isize mr = kernels.mr, size = kernels.itemsize
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0
    cdef isize split = task % c.splits
    cdef isize group = c.group0 + task // c.splits % groups
    cdef box where = box_at(&c.grid, task // c.splits // groups)
    cdef isize runs = c.taps.count // c.taps.wide
    cdef isize pixels = (
        (where.n1 - where.n0) * (where.i1 - where.i0) * (where.j1 - where.j0))
    cdef workspace w = workspace_of(c)
    cdef isize block, p, width
    cdef cnn_tile q
    if c.banded:
        fill_band(scratch, &c.around, &where, &c.taps, kernels, &c.src,
                  group * c.depth + c.depth0)
    else:
        memset(scratch + w.zeros, 0, c.depth_now * size)
    point_at_source(c, &where, group, <const void **> (scratch + w.a), scratch,
                    scratch + w.zeros)
    point_at_result(c, &where, group, <void **> (scratch + w.c), scratch + w.tile)
    q.batches = runs
    q.depth = c.depth_now * c.taps.wide
    q.a_next, q.a_move, q.a_step = mr, 0, 1
    q.start, q.activation = c.start, c.end
    for block in range(c.block0 + split * count // c.splits,
                       c.block0 + (split + 1) * count // c.splits):
        width = width_of(c, block)
        q.cols = min(width, c.outs - block * c.block)
        q.b = panel(c, group, block)
        q.b_move, q.b_step = q.depth * width, width
        q.bias = c.bias_panels + size * c.block * (
            (group - c.group0) * count + block - c.block0)
        q.c_move = block * c.block if c.direct else 0
        if not c.direct and c.start == CNN_ADD:
            move_tile(c, &where, group * c.outs + block * c.block, q.cols,
                      scratch + w.tile, True)
        # weight[block x taps*depth] . pixels[taps*depth x mr] -> dst, tile by tile
        for p in range(ceil_div(pixels, mr)):
            q.rows = min(mr, pixels - p * mr)
            q.a = <const void **> (scratch + w.a) + p * mr * runs
            q.c = <void **> (scratch + w.c) + p * mr
            kernels.tile[width // kernels.lanes - 1](&q)
        if not c.direct:
            move_tile(c, &where, group * c.outs + block * c.block, q.cols,
                      scratch + w.tile, False)


cdef inline void plan_correlation(correlation *c) noexcept nogil:
    """Choose boxes, bands and chunks from the geometry alone."""
    cdef const cnn_kernels *kernels = c.kernels
    cdef tap_list *taps = &c.taps
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w, least = kernels.mr
    cdef isize k
    c.block = kernels.lanes * kernels.vectors
    c.blocks = ceil_div(c.outs, c.block)
    c.direct = c.dst.step_c == 1 or c.outs == 1
    c.padded = (
        taps.dy_min < 0 or taps.dx_min < 0
        or (c.dst.h - 1) * taps.sy + taps.dy_max >= c.src.h
        or (c.dst.w - 1) * taps.sx + taps.dx_max >= c.src.w
    )
    c.depth_now = c.depth
    while c.depth_now > 1 and panel_bytes(c) > PANEL_BYTES:
        c.depth_now = ceil_div(c.depth_now, 2)

    # a tile's panel is read once for every mr pixels: boxes of 24 tiles keep it
    # in the first caches; fewer where the work would not make eight tasks
    c.grid = cut(c.dst.n, c.dst.h, c.dst.w,
                 min(max(pixels // 8, 4 * least), 24 * least))
    # taps that lie side by side in the band make one long run of A
    c.banded = (
        (c.src.step_c != 1 and c.depth > 1)
        or (taps.wide > 1 and c.depth < kernels.lanes)
    )
    if not c.banded:
        taps.wide = 1
        return
    c.around = band_of(&c.grid, taps, c.depth_now)
    while band_elements(&c.grid, &c.around) * kernels.itemsize > BAND_BYTES:
        if not halve(&c.grid, least):
            if c.depth_now == 1:
                break
            c.depth_now = ceil_div(c.depth_now, 2)
        c.around = band_of(&c.grid, taps, c.depth_now)


cdef inline void offsets_of_taps(correlation *c) noexcept nogil:
    """c.to[run]: bytes from an output's base to the run's first source pixel."""
    cdef isize t, size = c.kernels.itemsize
    for t in range(c.taps.count // c.taps.wide):
        if c.banded:
            c.to[t] = size * band_offset(&c.around, &c.taps, t * c.taps.wide)
        else:
            c.to[t] = size * (
                c.taps.dy[t] * c.src.step_h + c.taps.dx[t] * c.src.step_w)


cdef inline void order_of_weights(correlation *c) noexcept nogil:
    """c.to[...]: row of the panel for each weight that pack_task reads in a run."""
    cdef isize t, d
    for d in range(1 if c.transposed else c.depth_now):
        for t in range(c.weight_taps):
            c.to[d * c.weight_taps + t] = (
                c.order[t] * c.depth_now + d if c.order[t] >= 0 else -1)


cdef inline int correlate(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    """Run the whole correlation; 0, or -1 if scratch memory ran out."""
    cdef isize panels, per_pass, passes_of_blocks, size, depth
    cdef double work
    cdef char *shared
    c.kernels = kernels_for(runtime, c.src.itemsize)
    size = c.kernels.itemsize
    if c.dst.n == 0 or c.dst.h == 0 or c.dst.w == 0:
        return 0
    plan_correlation(c)
    per_pass = max(1, PANEL_BYTES // max(1, panel_bytes(c)))
    panels = min(per_pass, c.groups * c.blocks)
    depth = c.depth_now
    shared = <char *> runtime.take(
        aligned(panels * panel_bytes(c)) + aligned(panels * c.block * size)
        + (c.weight_taps * (1 if c.transposed else depth) + c.taps.count)
        * <isize> sizeof(isize))
    if shared == NULL:
        return -1
    c.panels = shared
    c.bias_panels = shared + aligned(panels * panel_bytes(c))
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
                c.depth_now = min(depth, c.depth - c.depth0)
                c.around = band_of(&c.grid, &c.taps, c.depth_now)
                c.start = CNN_BIAS if c.depth0 == 0 else CNN_ADD
                c.end = CNN_LINEAR
                if c.depth0 + c.depth_now == c.depth:
                    c.end = c.activation
                if run_pass(runtime, c):
                    runtime.give(shared)
                    return -1
                c.depth0 += c.depth_now
            c.block0 = c.block1
        c.group0 = c.group1
    runtime.give(shared)
    return 0


cdef inline int run_pass(
    const cnn_runtime *runtime, correlation *c
) noexcept nogil:
    cdef isize groups = c.group1 - c.group0, count = c.block1 - c.block0
    cdef double weights = (
        <double> groups * count * c.block * c.depth_now * c.weight_taps)
    cdef isize tasks = boxes(&c.grid) * groups
    order_of_weights(c)
    if runtime.run(pack_task, c, groups * count, 0, 4 * weights):
        return -1
    offsets_of_taps(c)
    # few boxes: several tasks share a box's pixels, each with its own blocks
    c.splits = min(count, max(1, ceil_div(8, tasks)))
    return runtime.run(
        correlate_task, c, tasks * c.splits, workspace_of(c).total,
        weights * c.dst.n * c.dst.h * c.dst.w)
