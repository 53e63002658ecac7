# One tap over few pixels, with weights that were packed beforehand: a case of the
# direct sum. Pixels are turned to [channel][pixel], so that the rows of a tile are
# numbers side by side; a panel of weights has their bias as its first row, which a row
# of ones among the pixels adds.

from boxes cimport box, box_at, box_pixels, cut, meets_padding
from columns cimport COLUMNS_BYTES, DOT_PIXELS, FEW_PIXELS
from correlate cimport aligned, bias_panel, correlation, move_sums, panel, width_of
from direct_gradient cimport cut_rows, tile_cut, tile_rows
from geometry cimport ceil_div, pixel
from kernels cimport (
    CNN_ACT_RELU, CNN_LINEAR, CNN_RELU, CNN_ZERO, cnn_gradient_tile, cnn_kernels,
    cnn_lines, cnn_runtime, isize,
)
from libc.string cimport memcpy, memset

cdef inline isize turned_pitch(const correlation *c) noexcept nogil:
    """From channel to channel: a tile of an even number of rows may look at one more."""
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w
    return pixels + pixels % 2


cdef inline isize turned_bytes(const correlation *c) noexcept nogil:
    return aligned((c.depth + 1) * turned_pitch(c) * c.kernels.itemsize)


cdef inline bint is_turned(const correlation *c) noexcept nogil:
    """Whether turning the pixels pays, and changes no bit of the sums.

    Microseconds, and those of weights as they lie, 1x1, channels-last, AVX-512, one
    thread: 16 pixels 160->960 43 (60), 320->1280 109 (131); 49 pixels 512->2048 680
    (948); 64 pixels 96->576 56 (74).
    """
    cdef isize pixels = c.dst.n * c.dst.h * c.dst.w
    return (
        c.stays and c.taps.count == 1 and c.weight_taps == 1 and not c.transposed
        and c.outs >= 16 and c.depth * c.outs >= 1 << 13
        and DOT_PIXELS < pixels <= FEW_PIXELS
        # no more than columns take at a time
        and ceil_div(pixels, c.block) * c.block * c.depth * c.kernels.itemsize
        <= COLUMNS_BYTES
        and not meets_padding(&c.taps, &c.src, &c.dst))


cdef inline void plan_turned(correlation *c) noexcept nogil:
    c.padded = c.banded = False
    c.depth_now = c.depth
    c.grid = cut(c.dst.n, c.dst.h, c.dst.w, c.dst.n * c.dst.h * c.dst.w)
    c.panel_bytes = (c.depth + 1) * c.block * c.kernels.itemsize


cdef inline void add_bias_row(
    const correlation *c, isize group, isize block
) noexcept nogil:
    memcpy(panel(c, group, block), bias_panel(c, group, block),
           width_of(c, block) * c.kernels.itemsize)


cdef inline void turn_task(void *job, isize task, char *scratch) noexcept nogil:
    """Some channels of the pixels -> c.shared, behind a row of ones."""
    cdef const correlation *c = <const correlation *> job
    cdef isize size = c.kernels.itemsize, split = task % c.splits, pitch, n, i
    cdef isize first = split * c.depth // c.splits
    cdef isize channels = (split + 1) * c.depth // c.splits - first
    cdef isize rows = c.dst.h, cols = c.dst.w, step = c.taps.sx * c.src.step_w
    cdef char *to = c.shared + task // c.splits * turned_bytes(c)
    pitch = turned_pitch(c)
    if split == 0:
        for i in range(pitch):
            if size == 4:
                (<float *> to)[i] = 1
            else:
                (<double *> to)[i] = 1
    to += (first + 1) * pitch * size
    if pitch > c.dst.n * rows * cols:
        memset(to, 0, channels * pitch * size)
    if c.taps.sy * c.src.step_h == cols * step:
        cols *= rows
        rows = 1
    for n in range(c.dst.n):
        for i in range(rows):
            c.kernels.copy(
                to, pitch, 1,
                pixel(&c.src, n, (c.group0 + task // c.splits) * c.depth + first,
                      i * c.taps.sy + c.taps.dy[0], c.taps.dx[0]),
                c.src.step_c, step, channels, cols)
            to += cols * size


cdef inline void turned_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef const cnn_kernels *kernels = c.kernels
    cdef isize size = kernels.itemsize, count = c.block1 - c.block0
    cdef isize split = task % c.splits, group = c.group0 + task // c.splits
    cdef isize pixels = box_pixels(&c.grid), block, width, row, outs
    cdef const char *turned = c.shared + task // c.splits * turned_bytes(c)
    cdef box where = box_at(&c.grid, 0)
    cdef tile_cut tile
    cdef cnn_gradient_tile q
    cdef cnn_lines next
    q.batches, q.depth = 1, c.depth + 1
    q.a_row, q.a_step, q.a_move, q.b_move = 1, turned_pitch(c), 0, 0
    q.start, q.next = CNN_ZERO, &next
    # pixels[pixels x channels] . weight[channels x block] -> dst, block by block
    for block in range(c.block0 + split * count // c.splits,
                       c.block0 + (split + 1) * count // c.splits):
        width = width_of(c, block)
        outs = min(width, c.outs - block * c.block)
        tile = cut_rows(kernels, pixels, 1, width, False)
        q.b, q.b_step = panel(c, group, block), width
        q.cols = q.c_step = width
        # the panel behind this one comes from far
        next.at = <const char *> q.b + q.depth * width * size
        next.run = next.of_run = q.depth * width * size // 64 + 1
        next.left = next.run - 1 if block + 1 < c.block1 else 0
        next.jump = next.row_jump = 0
        next.row = next.of_row = 1
        row = 0
        while row < pixels:
            q.rows = tile_rows(&tile, pixels - row)
            q.a = turned + row * size
            q.c = scratch + row * width * size
            kernels.gradient_tile[ceil_div(q.rows, 2) - 1].run[tile.vectors - 1](&q)
            row += q.rows
        if c.end != CNN_LINEAR:
            kernels.activation[CNN_ACT_RELU + c.end - CNN_RELU](
                scratch, scratch, pixels * width, 0, 0)
        move_sums(c, &where, group * c.outs + block * c.block, outs, scratch, width, 1,
                  False)


cdef inline int run_turned(
    const cnn_runtime *runtime, correlation *c, isize tasks, double work
) noexcept nogil:
    cdef isize bytes = tasks // c.splits * turned_bytes(c)
    cdef int failed
    c.shared = <char *> runtime.take(bytes)
    if c.shared == NULL:
        return -1
    failed = runtime.run(turn_task, c, tasks, 0, 4 * <double> bytes)
    if not failed:
        failed = runtime.run(
            turned_task, c, tasks, box_pixels(&c.grid) * c.block * c.kernels.itemsize,
            work)
    runtime.give(c.shared)
    return failed
