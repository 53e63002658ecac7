# How batch normalisation sees an array: rows and columns, blocks whose sums are in one
# precision, tasks; and what one call holds.

from geometry cimport Py_buffer, PyBuffer_Release, ceil_div, hold
from kernels cimport cnn_error, cnn_kernels, isize

cdef enum:
    BLOCK_ELEMENTS = 16384              # of a block: sums in one precision
    BLOCK_ROWS = 512                    # at most: its sums stay short
    TASK_ELEMENTS = 65536
    MAX_VIEWS = 9
    # From here on y, written for the first time, goes past the caches: the pass takes
    # 0.6 of its time, and who reads y next as much or little more. Below, y would still
    # be in the second-level cache. (18.9 MB: 3.5 ms -> 2.0, reader 1.5 -> 1.5; 3.1 MB:
    # 0.47 -> 0.30, reader 0.15 -> 0.19; 1 MB, in cache: 0.04 -> 0.05, 0.03 -> 0.06.)
    STREAM_BYTES = 2 << 20
    LINE = 64

cdef enum:
    MEAN
    VARIANCE
    INVERSE
    SCALE
    SHIFT
    STATS


# Channels last it is `rows` pixels x `cols` channels; as planes, `rows` = N * C runs of
# `cols` pixels.
cdef struct normalization:
    const cnn_kernels *kernels
    bint channels_last
    isize n, c, pixels                  # of a plane
    isize rows, cols
    isize rows_per_block, rows_per_task, tasks
    # pixels side by side that fill whole vectors: what goes element by element takes
    # them for one, `step` elements long (24 channels, 0.4 MB: forward 0.94, grad_x 0.75
    # of the time; 3 MB: alike)
    isize side, step
    int activation
    bint stream                         # y is written past the caches
    char *y                             # or grad_x
    const char *x
    const char *grad_y
    const char *residual
    cnn_error error                     # what the sums' pass makes grad_y of
    const char *coefficients            # mean, a, b, level, slope: `step` each
    double *parts                       # two sums of each channel, of each task


# Buffers of one call, and where they come from.
cdef struct views:
    Py_buffer view[MAX_VIEWS]
    int count


cdef inline char *take(views *held, object array, bint writable) except? NULL:
    """The memory of an array, held until `release`; NULL for None."""
    if array is None:
        return NULL
    hold(array, &held.view[held.count], writable)
    held.count += 1
    return <char *> held.view[held.count - 1].buf


cdef inline int release(views *held) except -1:
    while held.count:
        held.count -= 1
        PyBuffer_Release(&held.view[held.count])
    return 0


cdef inline double real(const void *p, isize itemsize, isize i) noexcept nogil:
    return (<const float *> p)[i] if itemsize == 4 else (<const double *> p)[i]


cdef inline void set_real(void *p, isize itemsize, isize i, double to) noexcept nogil:
    if itemsize == 4:
        (<float *> p)[i] = <float> to
    else:
        (<double *> p)[i] = to


cdef inline void lay_out(
    normalization *p, const cnn_kernels *kernels, const Py_buffer *x
) noexcept nogil:
    cdef isize rows
    p.kernels = kernels
    p.n, p.c = x.shape[0], x.shape[1]
    p.pixels = x.shape[2] * x.shape[3]
    p.channels_last = p.pixels == 1 or (
        p.c > 1 and x.strides[1] == x.itemsize)
    if p.channels_last:
        p.rows, p.cols = p.n * p.pixels, p.c
    else:
        p.rows, p.cols = p.n * p.c, p.pixels
    rows = max(1, BLOCK_ELEMENTS // max(1, p.cols))
    p.rows_per_block = max(16, min(BLOCK_ROWS, rows // 8 * 8))
    rows = max(1, TASK_ELEMENTS // max(1, p.cols))
    if p.channels_last:
        rows = max(p.rows_per_block, rows // p.rows_per_block * p.rows_per_block)
    p.rows_per_task = rows
    p.tasks = ceil_div(p.rows, rows)
    p.side = 1
    if p.channels_last:
        while p.side * p.c % p.kernels.lanes:
            p.side *= 2
        if p.rows % p.side or p.rows_per_task % p.side:
            p.side = 1
    p.step = p.side * p.c
