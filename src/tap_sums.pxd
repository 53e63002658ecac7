# The gradient of the input as one matrix product and sums of its results. Rows of A are
# weights, B's rows are panels of pixels of grad_y, [filter][pixel]:
#
#   sums[(c, t), pixel] = sum over k of weight[k, (c, t)] * grad_y[k, pixel]
#
# and a pixel of grad_x adds up the sums that its taps have for it. A correlation makes
# as many products for each pixel of grad_x, and those in the padding with them; here
# there are as many as the forward pass has, few channels fill whole tiles with their
# taps, and all phases of a stride are one pass. The additions are a product's share in
# the number of filters.

from boxes cimport box, box_at, box_grid, boxes, count as count_boxes, tap_list
from correlate cimport aligned
from direct_gradient cimport cut_rows, lines_of, tile_cut
from geometry cimport ceil_div, conv_geometry, even_share, image, pixel
from kernels cimport (
    CNN_TAPS_NOW, CNN_ZERO, cnn_gradient_tile, cnn_kernels, cnn_lines, cnn_runtime,
    cnn_tap_rows, isize,
)
from libc.string cimport memset

cdef enum:
    SUMS_BYTES = 32 << 10               # of a chunk's sums of some channels
    PIXELS_BYTES = 256 << 10            # of a chunk of grad_y
    RESULT_BYTES = 512 << 10            # of a task's pixels of some images
    ROW_BYTES = 64 << 10                # of one row of grad_y
    ROW_SUMS_BYTES = 48 << 10           # of a channel's sums for it


cdef struct tap_sums:
    const cnn_kernels *kernels
    image grad_y, grad_x
    const char *weight                  # contiguous
    isize groups, channels, filters     # of one group
    tap_list taps                       # of the forward pass
    box_grid grid                       # of grad_x: whole rows
    isize chunk_n, chunk_h              # images, or rows, of grad_y summed at a time
    isize some_channels, parts          # summed at a time; how many times
    tile_cut tile
    isize block                         # pixels of a panel
    # made for the run
    int (*interrupted)() noexcept nogil
    char *panels                        # weights: [group][part][tile][filter][row]
    isize panel_bytes                   # of a part
    isize *phase                        # of each phase of grad_x its first tap; the
    isize *down                         # taps of a phase: row Y of it gets their
    isize *across                       # sums of row Y - down, from column q - across
    isize *at


# What a task's scratch holds, in bytes from its start; steps in elements.
cdef struct tap_sums_space:
    isize pixels, sums, result, total
    isize pitch                         # from row to row of the sums
    isize rows, width                   # of one phase of the result
    isize plane, channel, image         # from phase to phase, channel to channel, ...


cdef inline tap_sums_space tap_sums_space_of(const tap_sums *g) noexcept nogil:
    cdef tap_sums_space s
    cdef isize size = g.kernels.itemsize, lanes = g.kernels.lanes
    s.pitch = g.block * ceil_div(
        g.chunk_n * g.chunk_h * g.grad_y.w, g.block)
    s.pixels = 0
    s.sums = aligned(g.filters * s.pitch * size)
    if s.pitch * size % 1024 == 0:      # rows that share few places of the first cache
        s.pitch += lanes
    s.result = s.sums + aligned(
        (g.some_channels * g.taps.count * s.pitch + 2 * lanes) * size)
    s.rows = ceil_div(g.grid.box_h, g.taps.sy)
    s.width = ceil_div(ceil_div(g.grad_x.w, g.taps.sx), lanes) * lanes
    s.plane = s.rows * s.width
    s.channel = s.plane * g.taps.sy * g.taps.sx
    s.image = s.channel * g.channels
    s.total = s.result + aligned(g.chunk_n * s.image * size)
    return s


cdef inline void pack_weights(void *job, isize task, char *scratch) noexcept nogil:
    """weight[k, (c, t)] -> panels of a part of a group's channels, tile by tile."""
    cdef const tap_sums *g = <const tap_sums *> job
    cdef isize size = g.kernels.itemsize, columns = g.channels * g.taps.count
    cdef isize row = task % g.parts * g.some_channels * g.taps.count
    cdef isize end = min(columns, row + g.some_channels * g.taps.count)
    cdef const char *weight = g.weight + task // g.parts * g.filters * columns * size
    cdef char *to = g.panels + task * g.panel_bytes
    if (end - row) % g.tile.rows:
        memset(to, 0, g.panel_bytes)
    while row < end:
        g.kernels.copy(
            to, g.tile.rows, 1, weight + row * size, columns, 1, g.filters,
            min(g.tile.rows, end - row))
        to += g.filters * g.tile.rows * size
        row += g.tile.rows


cdef inline void fill_panels(
    const tap_sums *g, isize group, const box *where, char *to
) noexcept nogil:
    """grad_y of some images' rows -> [panel][filter][pixel]."""
    cdef const image *src = &g.grad_y
    cdef isize size = g.kernels.itemsize, panel = g.filters * g.block * size
    cdef isize rows = where.i1 - where.i0, run = src.w, done = 0, n, i, j, some
    cdef isize images = where.n1 - where.n0, pixels = images * rows * run
    if pixels % g.block:
        memset(to + pixels // g.block * panel, 0, panel)
    if src.step_h == run * src.step_w:
        run *= rows
        rows = 1
        if src.step_n == run * src.step_w:
            run *= images
            images = 1
    for n in range(where.n0, where.n0 + images):
        for i in range(rows):
            j = 0
            while j < run:
                some = min(run - j, g.block - done)
                g.kernels.copy(
                    to + done * size, g.block, 1,
                    pixel(src, n, group * g.filters, where.i0 + i, j),
                    src.step_c, src.step_w, g.filters, some)
                j += some
                done += some
                if done == g.block:
                    to += panel
                    done = 0


cdef inline void sum_pixels(
    const tap_sums *g, const tap_sums_space *s, const char *weights, isize rows,
    isize pixels, char *scratch, cnn_lines *next,
) noexcept nogil:
    """weight[(c, t) x filters] . grad_y[filters x pixels] -> sums."""
    cdef const cnn_kernels *kernels = g.kernels
    cdef isize size = kernels.itemsize, row, _panel
    cdef cnn_gradient_tile q
    cdef char *sums = scratch + s.sums + kernels.lanes * size
    q.next = next
    q.batches, q.depth, q.start = 1, g.filters, CNN_ZERO
    q.a_move = q.b_move = 0
    q.a_row, q.a_step, q.b_step = 1, g.tile.rows, g.block
    q.cols, q.c_step = g.block, s.pitch
    q.b = scratch + s.pixels
    for _panel in range(ceil_div(pixels, g.block)):
        q.a = weights
        q.c = sums
        row = 0
        while row < rows:
            q.rows = min(g.tile.rows, rows - row)
            row += q.rows
            kernels.gradient_tile[ceil_div(q.rows, 2) - 1].run[g.tile.vectors - 1](&q)
            q.a = <const char *> q.a + g.filters * g.tile.rows * size
            q.c = <char *> q.c + g.tile.rows * s.pitch * size
        q.b = <const char *> q.b + g.filters * g.block * size
        sums += g.block * size


cdef inline void add_taps(
    const tap_sums *g, const tap_sums_space *s, const box *to, isize i0, isize i1,
    isize channels, const char *sums, char *result,
) noexcept nogil:
    """The sums of rows [i0, i1) of one image -> its pixels."""
    cdef cnn_tap_rows q
    cdef isize size = g.kernels.itemsize, p, tap, end
    cdef isize first = to.i0 // g.taps.sy
    q.row0, q.row1, q.cols = i0, i1, g.grad_y.w
    q.channels, q.channel_step = channels, g.taps.count * s.pitch
    q.sums = sums
    q.to_row, q.to_channel = s.width, s.channel
    for p in range(g.taps.sy * g.taps.sx):
        q.width = ceil_div(g.grad_x.w - p % g.taps.sx, g.taps.sx)
        end = ceil_div(to.i1 - p // g.taps.sx, g.taps.sy)
        tap = g.phase[p]
        while tap < g.phase[p + 1]:
            q.taps = min(g.phase[p + 1] - tap, CNN_TAPS_NOW)
            q.down, q.across, q.at = g.down + tap, g.across + tap, g.at + tap
            tap += q.taps
            q.first = max(first, i0 + q.down[0])
            q.end = min(end, i1 + q.down[q.taps - 1])
            if q.first < q.end and q.width > 0:
                q.to = result + size * (p * s.plane + (q.first - first) * s.width)
                g.kernels.tap_rows(&q)


cdef inline void store_pixels(
    const tap_sums *g, const tap_sums_space *s, isize group, isize n, const box *to,
    const char *result,
) noexcept nogil:
    cdef const image *dst = &g.grad_x
    cdef isize size = g.kernels.itemsize, phases = g.taps.sy * g.taps.sx, p, c, y, cols
    cdef isize row, channel = group * g.channels, rows = to.i1 - to.i0
    if dst.step_c != 1 and dst.step_w == 1 and phases > 1:
        for c in range(g.channels):
            g.kernels.put_phases(
                pixel(dst, n, channel + c, to.i0, 0), dst.step_h,
                result + c * s.channel * size, s.width, s.plane, g.taps.sy, g.taps.sx,
                rows, dst.w)
        return
    for p in range(phases):
        cols = ceil_div(dst.w - p % g.taps.sx, g.taps.sx)
        if dst.step_c == 1:
            y = to.i0 + p // g.taps.sx
            while y < to.i1:
                g.kernels.copy(
                    pixel(dst, n, channel, y, p % g.taps.sx),
                    g.taps.sx * dst.step_w, 1,
                    result + size * (
                        p * s.plane + (y - to.i0) // g.taps.sy * s.width),
                    1, s.channel, cols, g.channels)
                y += g.taps.sy
            continue
        row = ceil_div(rows - p // g.taps.sx, g.taps.sy)
        for c in range(g.channels):
            g.kernels.copy(
                pixel(dst, n, channel + c, to.i0 + p // g.taps.sx, p % g.taps.sx),
                g.taps.sy * dst.step_h, g.taps.sx * dst.step_w,
                result + (c * s.channel + p * s.plane) * size, s.width, 1, row, cols)


cdef inline void tap_sums_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const tap_sums *g = <const tap_sums *> job
    cdef const tap_list *taps = &g.taps
    cdef tap_sums_space s = tap_sums_space_of(g)
    cdef isize size = g.kernels.itemsize, group = task % g.groups, n, m, i, p
    cdef isize channels, pixels
    cdef box to = box_at(&g.grid, task // g.groups)
    cdef box where, follows
    cdef cnn_lines next
    cdef const char *part
    cdef char *result = scratch + s.result
    # rows of grad_y whose taps reach these
    cdef isize first = ceil_div(max(0, to.i0 - taps.dy_max), taps.sy), end = 0
    if to.i1 > taps.dy_min:
        end = min(g.grad_y.h, (to.i1 - 1 - taps.dy_min) // taps.sy + 1)
    end = max(first, end)
    where.j0, where.j1 = 0, g.grad_y.w
    part = g.panels + group * g.parts * g.panel_bytes
    n = to.n0
    while n < to.n1:
        if g.interrupted():
            return
        where.n0, where.n1 = n, min(n + g.chunk_n, to.n1)
        i = first
        while True:
            where.i0, where.i1 = i, min(i + g.chunk_h, end)
            pixels = (where.i1 - i) * g.grad_y.w
            fill_panels(g, group, &where, scratch + s.pixels)
            # the next chunk is fetched while this one is multiplied
            follows = where
            follows.i0, follows.i1 = where.i1, min(where.i1 + g.chunk_h, end)
            if where.i1 >= end:
                follows.n0, follows.n1 = where.n1, min(where.n1 + g.chunk_n, to.n1)
                follows.i0, follows.i1 = first, min(first + g.chunk_h, end)
            next.left = 0
            if follows.n0 < to.n1:
                next = lines_of(
                    &g.grad_y, &follows, 1, 1, group * g.filters, g.filters)
            if i == first:
                memset(result, 0, (where.n1 - n) * s.image * size)
            for p in range(g.parts):
                channels = min(g.some_channels, g.channels - p * g.some_channels)
                sum_pixels(g, &s, part + p * g.panel_bytes, channels * taps.count,
                           (where.n1 - n) * pixels, scratch, &next)
                for m in range(where.n1 - n):
                    add_taps(
                        g, &s, &to, i, where.i1, channels,
                        scratch + s.sums + (g.kernels.lanes + m * pixels) * size,
                        result + (
                            m * s.image + p * g.some_channels * s.channel) * size)
            i = where.i1
            if i >= end:
                break
        for m in range(where.n1 - n):
            store_pixels(g, &s, group, n + m, &to, result + m * s.image * size)
        n = where.n1


cdef inline void list_phases(tap_sums *g, isize *memory) noexcept nogil:
    """The taps of each phase of grad_x."""
    cdef const tap_list *taps = &g.taps
    cdef tap_sums_space s = tap_sums_space_of(g)
    cdef isize phases = taps.sy * taps.sx, p, t, made = 0, y, x
    g.phase = memory
    g.down = memory + phases + 1
    g.across = g.down + taps.count
    g.at = g.across + taps.count
    for p in range(phases):
        g.phase[p] = made
        for t in range(taps.count):
            y, x = taps.dy[t] - p // taps.sx, taps.dx[t] - p % taps.sx
            if y % taps.sy == 0 and x % taps.sx == 0:
                g.down[made], g.across[made] = y // taps.sy, x // taps.sx
                g.at[made] = (
                    t * s.pitch - g.down[made] * g.grad_y.w - g.across[made])
                made += 1
    g.phase[phases] = made


cdef inline void plan_tap_sums(tap_sums *g) noexcept nogil:
    """Choose chunks and tasks from the geometry alone."""
    cdef isize size = g.kernels.itemsize, most = g.kernels.gradient_rows[0], rows
    cdef isize pixels, strips = 1, least, row_bytes
    cdef isize image_pixels = g.grad_y.h * g.grad_y.w
    # channels that fill a tile with their taps
    g.some_channels = even_share(g.channels, max(1, most // g.taps.count))
    g.parts = ceil_div(g.channels, g.some_channels)
    rows = g.some_channels * g.taps.count
    g.tile = cut_rows(g.kernels, rows, 1, 2 * g.kernels.lanes, True)
    g.block = g.tile.vectors * g.kernels.lanes
    g.panel_bytes = aligned(
        ceil_div(rows, g.tile.rows) * g.tile.rows * g.filters * size)
    # about 16 tasks: of some images, or of some rows of one, where the pixels of one
    # are many or images are few
    g.grid.n, g.grid.rows, g.grid.cols = g.grad_x.n, g.grad_x.h, g.grad_x.w
    g.grid.box_n = max(1, g.grad_x.n * g.groups // 16)
    g.grid.box_h, g.grid.box_w = g.grad_x.h, g.grad_x.w
    if g.grad_x.n * g.groups < 8:
        strips = ceil_div(8, g.grad_x.n * g.groups)
        # rows that two tasks sum are a part of all
        least = 4 * (g.taps.dy_max - g.taps.dy_min + g.taps.sy)
        strips = max(1, min(strips, g.grad_x.h // least))
    row_bytes = g.channels * g.taps.sx * size * g.kernels.lanes * ceil_div(
        ceil_div(g.grad_x.w, g.taps.sx), g.kernels.lanes)
    most = max(1, RESULT_BYTES // row_bytes)
    g.grid.box_h = min(ceil_div(g.grad_x.h, strips), most)
    if g.grid.box_h < g.grad_x.h:
        g.grid.box_n = 1
        g.grid.box_h = even_share(g.grad_x.h, g.grid.box_h)
        g.grid.box_h = ceil_div(g.grid.box_h, g.taps.sy) * g.taps.sy
    count_boxes(&g.grid)
    pixels = min(SUMS_BYTES // (rows * size), PIXELS_BYTES // (g.filters * size))
    g.chunk_n, g.chunk_h = 1, g.grad_y.h
    if image_pixels <= pixels:
        g.chunk_n = even_share(g.grid.box_n, max(1, min(
            pixels // image_pixels, RESULT_BYTES // (g.grid.box_h * row_bytes))))
    else:
        g.chunk_h = even_share(g.grad_y.h, max(1, pixels // g.grad_y.w))


cdef inline int run_tap_sums(
    const cnn_runtime *runtime, const cnn_kernels *kernels, const conv_geometry *sizes,
    const tap_list *taps, image grad_y, const char *weight, image grad_x,
) noexcept nogil:
    """taps: of the forward pass."""
    cdef tap_sums g
    cdef isize tables, tasks
    cdef double weights
    cdef char *memory
    cdef int failed
    g.kernels, g.taps = kernels, taps[0]
    g.interrupted = runtime.interrupted
    g.grad_y, g.grad_x, g.weight = grad_y, grad_x, weight
    g.groups = sizes.groups
    g.channels, g.filters = sizes.c // g.groups, sizes.k // g.groups
    plan_tap_sums(&g)
    weights = <double> g.groups * g.filters * g.channels * g.taps.count
    tasks = g.groups * g.parts
    tables = aligned(<isize> sizeof(isize) * (
        g.taps.sy * g.taps.sx + 1 + 3 * g.taps.count))
    memory = <char *> runtime.take(tables + tasks * g.panel_bytes)
    if memory == NULL:
        return -1
    list_phases(&g, <isize *> memory)
    g.panels = memory + tables
    failed = runtime.run(pack_weights, &g, tasks, 0, weights)
    if not failed:
        failed = runtime.run(
            tap_sums_task, &g, boxes(&g.grid) * g.groups, tap_sums_space_of(&g).total,
            weights * g.grad_y.n * g.grad_y.h * g.grad_y.w)
    runtime.give(memory)
    return failed


cdef inline bint taps_are_summed(
    const conv_geometry *g, const cnn_kernels *kernels, bint last
) noexcept nogil:
    """Whether this takes less time than a correlation; `last`: grad_y channels-last.

    A correlation wastes products on what lies outside grad_y, planes of few channels
    leave registers empty, and phases of a stride are stored with gaps. What the sums
    cost is a share in the number of filters. Time of planes / this time, float32 and
    float64, AVX-512, one thread: 5x5 1->32 2.0, 1.9, 14x14 without padding 3.3, 3.8;
    3->64 1.2, 1.1, without 2.2, 2.0; but 3->16 0.8, 0.8, without 1.3, 1.3; 8->32 0.8,
    0.8, without 1.9, 1.7; 7x7 with stride 2 10->64 1.5, 1.3. Channels-last 5x5 1->32
    without padding 2.0, 1.8; 3->64 0.7, 0.9, without 1.1, 1.2; 14->64 without 1.6, 1.2.
    Direct sums, float64: 12x12 20->50 without padding 1.6, with 1.0. Narrower vectors
    gain less: AVX2 5x5 3->32 1.3, 1.2, 2->16 0.8, 0.7, with stride 2 12->64 0.9, 0.9,
    channels-last 6->32 without padding 0.9, 0.9, float64 3x3 40->32 0.8; baseline 5x5
    3->32 0.9, 0.9, channels-last 6->32 0.8, 0.8.
    """
    cdef isize itemsize = kernels.itemsize, vector = kernels.lanes * itemsize
    cdef isize channels = g.c // g.groups, filters = g.k // g.groups, taps = g.r * g.s
    cdef isize pixels, sums
    cdef bint wasted
    # rows that stay in the caches, phases that are not mostly rounded up; the first
    # bounds keep the products from overflowing
    if (filters > ROW_BYTES or taps > ROW_SUMS_BYTES or g.out_w > ROW_BYTES
            or max(g.stride_h, g.stride_w) > 4
            or filters * g.out_w * itemsize > ROW_BYTES
            or taps * g.out_w * itemsize > ROW_SUMS_BYTES):
        return False
    if channels == 0 or taps < 9 or filters < 8:
        return False
    pixels = g.n * g.h * g.w
    sums = g.n * g.out_h * g.out_w * g.stride_h * g.stride_w
    if sums == 0 or sums - pixels > pixels // 9:
        return False
    wasted = 4 * pixels >= 7 * sums
    if channels >= 16:
        return wasted and channels <= 64 and filters >= 32 and (
            vector >= 64 or taps >= 25 and itemsize == 8)
    if last:
        if g.groups > 1:
            return False
        if channels == 1:
            return vector >= 32 and taps >= 25 and 4 * pixels >= 5 * sums
        return vector >= 64 and wasted and channels >= 6 and filters >= 4 * itemsize
    if wasted:
        return filters >= 16 or filters >= 2 * channels
    if vector < 64 and (vector < 32 or filters < 32):
        return False
    if g.stride_h * g.stride_w > 1:
        if vector >= 64 and filters >= 64:
            return True
    elif taps > 49:                     # 9x9 2->16 0.6
        return False
    return channels <= 4 and filters >= max(8 * channels, 2 * itemsize)
