# The gradient of many weights from few pixels, whose cost is writing it: rows are
# filters, and the columns are weights in their own order, so that every weight is
# written once, where it belongs.

from boxes cimport cut
from correlate cimport aligned
from direct_gradient cimport (
    COPY_BYTES, SUM_BYTES, cut_rows, tile_cut, tile_rows, tile_width,
)
from geometry cimport ceil_div, image, pixel
from kernels cimport CNN_ZERO, cnn_gradient_tile, cnn_kernels, cnn_lines, isize
from libc.string cimport memset
from weight_gradient cimport gradient_of_weight, gradient_part, part_of


# What a task's scratch holds, in bytes from its start; columns in elements.
cdef struct few_space:
    isize pixels, columns               # of a row of pixels, in whole vectors
    isize errors, total


cdef inline few_space few_space_of(const gradient_of_weight *w) noexcept nogil:
    cdef few_space s
    cdef isize size = w.kernels.itemsize, lanes = w.kernels.lanes
    s.pixels = w.grad_y.n * w.grad_y.h * w.grad_y.w
    s.columns = ceil_div(w.some_channels * w.taps.count, lanes) * lanes
    s.errors = aligned(s.pixels * s.columns * size)
    # a tile of an even number of rows may look at one element more
    s.total = s.errors + aligned((s.pixels * w.filters + 1) * size)
    return s


cdef inline bint few_pixels(const gradient_of_weight *w) noexcept nogil:
    """Whether ordering the sums costs more than ordering the pixels.

    GFLOP/s in place of the general tiles', channels-last: 3x3 512->512, 16 pixels
    33 -> 80, 98 pixels 74 -> 91; 1x1 1024->256, 196 pixels 124 -> 136; but 512->2048,
    98 pixels 116 -> 104 (each task copies the errors, which short rows do not repay),
    3x3 64->64, 64 pixels 71 -> 38 (the sums stay in the caches).
    """
    cdef isize columns = w.channels * w.taps.count, size = w.kernels.itemsize
    cdef isize pixels = w.grad_y.n * w.grad_y.h * w.grad_y.w
    return (
        not w.exchanged and w.filters >= 64 and columns >= 1024
        and w.filters * columns * size >= 1 << 20
        and pixels <= 200 and pixels * w.filters * size <= COPY_BYTES)


cdef inline void fill_windows(
    const gradient_of_weight *w, const gradient_part *p, const few_space *s, char *to
) noexcept nogil:
    """x -> [pixel][channel][tap], zeros where a tap meets padding."""
    cdef isize size = w.kernels.itemsize, taps = w.taps.count, n, i, j, t, y, x
    memset(to, 0, s.pixels * s.columns * size)
    for n in range(w.grad_y.n):
        for i in range(w.grad_y.h):
            for j in range(w.grad_y.w):
                for t in range(taps):
                    y = i * w.taps.sy + w.taps.dy[t]
                    x = j * w.taps.sx + w.taps.dx[t]
                    if 0 <= y < w.x.h and 0 <= x < w.x.w:
                        w.kernels.copy(
                            to + t * size, taps, 1,
                            pixel(&w.x, n, p.group * w.channels + p.channel0, y, x),
                            w.x.step_c, 1, p.channels, 1)
                to += s.columns * size


cdef inline void few_pixels_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef const cnn_kernels *kernels = w.kernels
    cdef isize size = kernels.itemsize, lanes = kernels.lanes
    cdef gradient_part part = part_of(w, task)
    cdef few_space s = few_space_of(w)
    cdef isize columns = part.channels * w.taps.count, row, col, n, i, width
    cdef isize all_columns = w.channels * w.taps.count
    cdef bint planar = w.grad_y.step_w == 1
    cdef char *to = w.grad_weight + size * (
        part.group * w.filters * all_columns + part.channel0 * w.taps.count)
    cdef char *errors = scratch + s.errors
    cdef const char *at
    cdef tile_cut tile
    cdef cnn_gradient_tile q
    cdef cnn_lines next
    fill_windows(w, &part, &s, scratch)
    # grad_y -> [filter][pixel] or [pixel][filter], as its order is
    q.a_row = s.pixels if planar else 1
    q.a_step = 1 if planar else w.filters
    for n in range(w.grad_y.n):
        for i in range(w.grad_y.h):
            at = pixel(&w.grad_y, n, part.group * w.filters, i, 0)
            if planar:
                kernels.copy(errors, s.pixels, 1, at, w.grad_y.step_c, 1,
                             w.filters, w.grad_y.w)
            else:
                kernels.copy(errors, w.filters, 1, at, w.grad_y.step_w,
                             w.grad_y.step_c, w.grad_y.w, w.filters)
            errors += w.grad_y.w * q.a_step * size
    q.batches, q.depth = 1, s.pixels
    q.a_move = q.b_move = 0
    q.b_step, q.c_step, q.start = s.columns, all_columns, CNN_ZERO
    q.next = &next
    # grad_y[filters x pixels] . windows[pixels x columns] -> grad_weight
    tile = cut_rows(kernels, w.filters, q.a_row, 2 * lanes, True)
    row = 0
    while row < w.filters:
        q.rows = tile_rows(&tile, w.filters - row)
        q.a = scratch + s.errors + row * q.a_row * size
        col = 0
        while col < columns:
            width = tile_width(kernels, &tile, columns - col)
            q.cols = min(width, columns - col)
            q.b = scratch + col * size
            q.c = to + (row * all_columns + col) * size
            # the lines of the tile after this one, so that its stores need not wait
            next.at = <char *> q.c + width * size
            next.run = next.of_run = 2
            next.left = 2 * q.rows
            next.jump = all_columns * size - 128
            next.row_jump = 0
            next.row = next.of_row = next.left
            kernels.gradient_tile[ceil_div(q.rows, 2) - 1].run[width // lanes - 1](&q)
            col += width
        row += q.rows


cdef inline void plan_few_pixels(gradient_of_weight *w) noexcept nogil:
    """A task has all filters and as many channels as leave eight tasks."""
    cdef isize size = w.kernels.itemsize
    cdef isize channel = w.taps.count * w.grad_y.n * w.grad_y.h * w.grad_y.w * size
    w.grid = cut(1, 1, 1, 1)
    w.part_size = 1
    w.some_filters = w.filters
    w.some_channels = max(1, min(
        ceil_div(w.channels * w.groups, 8), SUM_BYTES // channel, w.channels))
