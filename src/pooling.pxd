# What the pooling passes share: the job, its windows, and the tables of its axes.
#
# Channels last, the lanes of a vector are channels and each output stands alone.
# In planes the lanes are the columns of a row: a task copies the rows it needs with
# what never wins (or adds nothing) around them, so that a whole row is one run.

from geometry cimport ceil_div, image, pixel, pool_geometry
from kernels cimport cnn_kernels, isize
from libc.stdint cimport int32_t, int64_t


# Pixels of a plane that are summed or filled at a stretch. Bytes from which a result
# passes the caches by, which would read each line of it first (96 MB written to memory
# in use: 4 ms instead of 10; but 25 instead of 15 to new memory, whose lines the
# system's zeros have brought into a cache). Bytes of a task's rows then, at most. Bytes of
# the copy that errors go out to, at most.
cdef enum:
    LARGE_PLANE = 1 << 20
    STREAM_BYTES = 32 << 20
    STREAM_ROWS = 512 << 10
    SENT_BYTES = 4 << 20


cdef struct span:
    isize first, last                   # steps of a window inside of the image


# One axis of a backward: pixel `at` lies in window (at + before - q*dilation) / stride
# for each tap q where that is whole. As taps fall by tap_step, windows rise.
cdef struct axis:
    isize size, before, dilation, taps, stride, outs
    isize tap_step, window_step


# The windows that hold one pixel of an axis: `count` of them from `window` on, which
# meet it at `tap` and before. The next run - 1 pixels, stride apart, lie alike in the
# next windows, whose divisors are the same.
cdef struct place:
    isize count, window, tap, run


# What a forward task in planes copies of the pixels, and keeps of their rows.
cdef struct forward_rows:
    bint copied, kept, coded
    isize lead, used                    # elements before a row's pixels, and these
    isize pitch, width                  # elements of a row, copied and kept
    isize batch                         # output rows made at a stretch
    isize values, codes, total          # bytes from the scratch's start


# What a task in planes copies: the rows of errors that reach its pixels, and their
# positions.
cdef struct error_rows:
    bint copied
    isize before, pitch, rows           # columns before window 0, of a row; rows
    isize counts, errors, places, total  # bytes from the scratch's start


cdef struct pooling:
    const cnn_kernels *kernels
    int (*interrupted)() noexcept nogil
    pool_geometry g
    image x, y                          # y is grad_y, x grad_x in a backward
    image argmax                        # data NULL if it is not wanted
    bint channels_last
    bint average, include_pad
    bint fresh                          # the result is memory that nobody used yet
    isize divisor_override
    isize rows_per_task, tasks_per_plane, planes_per_task
    forward_rows forward
    bint streamed                       # the result passes the caches by
    # for each output column: code of its first pixel in the image (an integer of the
    # element's size), and its divisor
    void *tables                        # memory of what follows
    char *first
    char *divisors                      # forward: divisors; backward: reciprocals
    isize *winner                       # for each code, from a window's corner
    # backward: for each row and column of pixels the windows that hold it
    axis down, across
    place *row
    place *column
    error_rows errors
    isize *columns                      # of each phase: window and tap, in pairs
    isize *phase_columns                # how many


cdef inline bint stopped(const pooling *p, isize row, isize elements) noexcept nogil:
    """Whether a task with a whole plane is to end before a row of so many elements.

    To look costs more than a short row: only each 64th of those does.
    """
    return (row & 63 == 63 or elements >= 1 << 14) and p.interrupted() != 0


cdef inline isize rows_bytes(const image *a, isize rows) noexcept nogil:
    return (rows * a.step_h * a.itemsize + 63) // 64 * 64


cdef inline bint streams(const pooling *p, const image *to) noexcept nogil:
    """Whether a result of planes (or images) without gaps is to pass the caches by."""
    cdef isize pixels = to.n * to.h * to.w * to.c
    return (
        not p.fresh and p.kernels.stream != NULL and pixels * to.itemsize >= STREAM_BYTES
        and to.step_w == (to.c if p.channels_last else 1)
        and to.step_h == to.w * to.step_w
        and rows_bytes(to, p.rows_per_task) <= STREAM_ROWS)


cdef inline char *moved(
    const image *a, isize n, isize c, isize row, char *rows
) noexcept nogil:
    """The data of an image whose row (n, c, row) lies at `rows`."""
    return rows - (pixel(a, n, c, row, 0) - <char *> a.data)


cdef inline void stream_rows(
    const pooling *p, const image *to, const image *from_, isize n, isize c,
    isize first, isize last,
) noexcept nogil:
    p.kernels.stream(
        pixel(to, n, c, first, 0), pixel(from_, n, c, first, 0),
        (last - first) * to.step_h * to.itemsize)


cdef inline span inside(
    isize start, isize dilation, isize count, isize size
) noexcept nogil:
    """Steps q, first <= q < last, with 0 <= start + q*dilation < size."""
    cdef span result
    result.first = ceil_div(-start, dilation) if start < 0 else 0
    result.last = count
    if start + (count - 1) * dilation >= size:
        result.last = ceil_div(size - start, dilation) if size > start else 0
    if result.last < result.first:
        result.last = result.first
    return result


cdef inline span whole_windows(
    isize before, isize dilation, isize taps, isize stride, isize size, isize outs
) noexcept nogil:
    """Outputs of one axis whose windows lie inside of the image."""
    cdef span result
    cdef isize reach = dilation * (taps - 1)
    result.first = min(ceil_div(before, stride), outs)
    result.last = result.first
    if size + before > reach:
        result.last = max(
            result.first, min((size + before - reach - 1) // stride + 1, outs))
    return result


cdef inline isize columns_touched(const pool_geometry *g) noexcept nogil:
    """Columns, with padding, that the windows of all output columns touch."""
    return (g.out_w - 1) * g.stride_w + g.dilation_w * (g.s - 1) + 1


cdef inline isize rows_touched(const pool_geometry *g, isize outs) noexcept nogil:
    """The same of so many output rows."""
    return (outs - 1) * g.stride_h + g.dilation_h * (g.r - 1) + 1


cdef inline isize axis_divisor(
    const pooling *p, isize start, isize count, isize size, isize after
) noexcept nogil:
    """Pixels of one axis of a window that the divisor counts.

    With include_pad padding counts, the overhang of ceil_mode never does.
    """
    cdef span rows
    if p.divisor_override:
        return 1
    if p.include_pad:
        return min(start + count, size + after) - start
    rows = inside(start, 1, count, size)
    return rows.last - rows.first


cdef inline double row_divisor(const pooling *p, isize i) noexcept nogil:
    """The divisor of output row i, but for its columns' part."""
    cdef const pool_geometry *g = &p.g
    if p.divisor_override:
        return <double> p.divisor_override
    return <double> axis_divisor(p, i * g.stride_h - g.top, g.r, g.h, g.bottom)


cdef inline double column_divisor(const pooling *p, isize j) noexcept nogil:
    cdef const pool_geometry *g = &p.g
    return <double> axis_divisor(p, j * g.stride_w - g.left, g.s, g.w, g.right)


cdef inline void set_real(
    char *to, isize itemsize, isize at, double value
) noexcept nogil:
    if itemsize == 4:
        (<float *> to)[at] = <float> value
    else:
        (<double *> to)[at] = value


cdef inline void set_integer(
    char *to, isize itemsize, isize at, isize value
) noexcept nogil:
    if itemsize == 4:
        (<int32_t *> to)[at] = <int32_t> value
    else:
        (<int64_t *> to)[at] = value


cdef inline isize planes_of(const pooling *p) noexcept nogil:
    """Planes (or images, channels last) that tasks share out."""
    return p.g.n * (1 if p.channels_last else p.g.c)


cdef inline axis axis_of(
    isize size, isize before, isize dilation, isize taps, isize stride, isize outs
) noexcept nogil:
    cdef axis a
    a.size, a.before, a.dilation, a.taps = size, before, dilation, taps
    a.stride, a.outs = stride, outs
    a.tap_step = 1
    while a.tap_step < taps and a.tap_step * dilation % stride:
        a.tap_step += 1
    a.window_step = max(1, a.tap_step * dilation // stride)
    return a


cdef inline isize most_windows(const axis *a) noexcept nogil:
    """Windows that one pixel lies in, at most."""
    return ceil_div(a.taps, a.tap_step)


cdef inline place place_of(const axis *a, isize at) noexcept nogil:
    cdef place p
    cdef isize _tries
    p.tap = min(a.taps - 1, (at + a.before) // a.dilation)
    p.count, p.window, p.run = 0, 0, 1
    for _tries in range(min(a.tap_step, p.tap + 1)):
        if (at + a.before - p.tap * a.dilation) % a.stride == 0:
            p.window = (at + a.before - p.tap * a.dilation) // a.stride
            if p.window < a.outs:
                p.count = 1 + min(
                    p.tap // a.tap_step, (a.outs - 1 - p.window) // a.window_step)
            break
        p.tap -= 1
    return p


cdef inline bint goes_on(
    const axis *a, const place *p, const place *next_, const double *divisor
) noexcept nogil:
    """Whether a pixel lies in its windows as its neighbour in the windows before."""
    cdef isize q, window
    if p.count != next_.count:
        return False
    if p.count == 0:
        return True
    if p.tap != next_.tap or p.window + 1 != next_.window:
        return False
    for q in range(p.count):
        window = p.window + q * a.window_step
        if divisor[window] != divisor[window + 1]:
            return False
    return True


cdef inline void find_places(
    const axis *a, place *places, const double *divisor
) noexcept nogil:
    cdef isize at
    for at in range(a.size - 1, -1, -1):
        places[at] = place_of(a, at)
        if at + a.stride < a.size and goes_on(
                a, places + at, places + at + a.stride, divisor):
            places[at].run = 1 + places[at + a.stride].run
