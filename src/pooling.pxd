# What the pooling passes share: the job, its windows, and the tables of its axes.
#
# Channels last, the lanes of a vector are channels and each output stands alone.
# In planes the lanes are the columns of a row: a task copies the rows it needs with
# what never wins (or adds nothing) around them, so that a whole row is one run.

from geometry cimport ceil_div, image, pixel, pool_geometry
from kernels cimport cnn_kernels, cnn_share, isize


# Pixels of a plane that are summed or filled at a stretch.
cdef enum:
    LARGE_PLANE = 1 << 20


cdef struct span:
    isize first, last                   # steps of a window inside of the image


cdef struct pooling:
    const cnn_kernels *kernels
    int (*interrupted)() noexcept nogil
    pool_geometry g
    image x, y                          # y is grad_y, x grad_x in a backward
    image argmax                        # data NULL if it is not wanted
    bint channels_last
    bint average, include_pad
    isize divisor_override
    isize rows_per_task, tasks_per_plane
    # for each output column: code of its first pixel in the image, and its divisor
    isize *first
    char *divisors                      # forward: divisors; backward: reciprocals
    isize *offset                       # from a window's corner, for each code


cdef inline bint stopped(const pooling *p, isize row, isize elements) noexcept nogil:
    """Whether a task with a whole plane is to end before a row of so many elements.

    To look costs more than a short row: only each 64th of those does.
    """
    return (row & 63 == 63 or elements >= 1 << 14) and p.interrupted() != 0


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


cdef inline isize planes_of(const pooling *p) noexcept nogil:
    """Planes (or images, channels last) that tasks share out."""
    return p.g.n * (1 if p.channels_last else p.g.c)
