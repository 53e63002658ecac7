"""Pooling: max and average, each forward beside its backward.

A pooling layer is a transfer function without weights. Max pooling gives the pixel
that won a window the window's whole error; average pooling gives every pixel of the
window its share. Both backwards gather: each pixel of grad_x is written once, with
the sum over the windows that hold it.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memset

from geometry cimport (
    Py_buffer, PyBuffer_Release, ceil_div, hold, image, image_of, pixel,
    pool_geometry, pool_sizes,
)
from kernels cimport (
    CNN_RUNTIME, cnn_kernels, cnn_runtime, cnn_share, cnn_window, isize, kernels_for,
)

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)

# Elements of an output that one task makes, about.
cdef enum:
    TASK_ELEMENTS = 16384


cdef struct pooling:
    const cnn_kernels *kernels
    pool_geometry g
    image x, y                          # y is grad_y, x grad_x in a backward
    image argmax                        # data NULL if it is not wanted
    bint channels_last                  # lanes are channels, else columns of a row
    bint average, include_pad
    isize divisor_override
    isize rows_per_task, tasks_per_plane, planes
    isize max_shares


cdef struct span:
    isize first, last                   # the window's pixels inside of the image


cdef inline span inside(
    isize start, isize dilation, isize count, isize size
) noexcept nogil:
    """Window steps q, first <= q < last, with 0 <= start + q*dilation < size."""
    cdef span result
    result.first = ceil_div(-start, dilation) if start < 0 else 0
    result.last = count
    if start + (count - 1) * dilation >= size:
        result.last = ceil_div(size - start, dilation) if size > start else 0
    if result.last < result.first:
        result.last = result.first
    return result


cdef inline isize padded_extent(
    isize start, isize count, isize size, isize after
) noexcept nogil:
    """Pixels of a window that the divisor counts: padding, but no overhang."""
    return min(start + count, size + after) - start


cdef double divisor_of(const pooling *p, isize i, isize j) noexcept nogil:
    cdef const pool_geometry *g = &p.g
    cdef isize y = i * g.stride_h - g.top, x = j * g.stride_w - g.left
    cdef span rows, cols
    if p.divisor_override:
        return <double> p.divisor_override
    if p.include_pad:
        return <double> (
            padded_extent(y, g.r, g.h, g.bottom) * padded_extent(x, g.s, g.w, g.right))
    rows = inside(y, 1, g.r, g.h)
    cols = inside(x, 1, g.s, g.w)
    return <double> ((rows.last - rows.first) * (cols.last - cols.first))


cdef void window_of(
    const pooling *p, isize n, isize c, isize i, isize j, isize count, isize lane
) noexcept nogil:
    """Pool `count` outputs that share the shape of the window of output (i, j)."""
    cdef const pool_geometry *g = &p.g
    cdef isize top = i * g.stride_h - g.top, left = j * g.stride_w - g.left
    cdef span rows = inside(top, g.dilation_h, g.r, g.h)
    cdef span cols = inside(left, g.dilation_w, g.s, g.w)
    cdef cnn_window w
    cdef const char *x
    cdef char *argmax = NULL
    cdef char *y = pixel(&p.y, n, c, i, j)
    w.count, w.lane = count, lane
    w.rows, w.cols = rows.last - rows.first, cols.last - cols.first
    w.row_step = g.dilation_h * p.x.step_h
    w.col_step = g.dilation_w * p.x.step_w
    w.code = rows.first * g.s + cols.first
    w.code_row = g.s
    x = pixel(&p.x, n, c, top + rows.first * g.dilation_h,
              left + cols.first * g.dilation_w)
    if p.average:
        p.kernels.sum_window(y, x, &w, divisor_of(p, i, j))
        return
    if p.argmax.data != NULL:
        argmax = pixel(&p.argmax, n, c, i, j)
    if w.rows == 0 or w.cols == 0:
        w.code = 0
    p.kernels.max_window(y, argmax, <int> p.argmax.itemsize, x, &w)


cdef void forward_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize plane = task // p.tasks_per_plane
    cdef isize i0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize i1 = min(i0 + p.rows_per_task, g.out_h)
    cdef isize n = plane, c = 0, i, j, j0, j1
    cdef isize extent = g.dilation_w * (g.s - 1) + 1
    if p.channels_last:
        for i in range(i0, i1):
            for j in range(g.out_w):
                window_of(p, n, 0, i, j, g.c, 1)
        return
    n, c = plane // g.c, plane % g.c
    # the columns whose windows lie inside of the row share one shape
    j0 = min(ceil_div(g.left, g.stride_w), g.out_w)
    j1 = max(j0, min((g.w + g.left - extent) // g.stride_w + 1, g.out_w))
    if g.w + g.left < extent:
        j1 = j0
    for i in range(i0, i1):
        for j in range(j0):
            window_of(p, n, c, i, j, 1, 1)
        if j1 > j0:
            window_of(p, n, c, i, j0, j1 - j0, g.stride_w * p.x.step_w)
        for j in range(j1, g.out_w):
            window_of(p, n, c, i, j, 1, 1)


cdef isize shares_of(
    const pooling *p, isize y, isize x, cnn_share *share
) noexcept nogil:
    """List the windows that hold input pixel (y, x), in row-major order.

    `at` is the window's place in grad_y, from output (0, 0) on.
    """
    cdef const pool_geometry *g = &p.g
    cdef isize r, s, i, j, count = 0
    for r in range(g.r - 1, -1, -1):
        i = y + g.top - r * g.dilation_h
        if i < 0 or i % g.stride_h or i // g.stride_h >= g.out_h:
            continue
        i //= g.stride_h
        for s in range(g.s - 1, -1, -1):
            j = x + g.left - s * g.dilation_w
            if j < 0 or j % g.stride_w or j // g.stride_w >= g.out_w:
                continue
            j //= g.stride_w
            share[count].at = i * p.y.step_h + j * p.y.step_w
            share[count].code = r * g.s + s
            share[count].scale = 1.0
            if p.average:
                share[count].scale = 1.0 / divisor_of(p, i, j)
            count += 1
    return count


cdef inline void gather(
    const pooling *p, isize n, isize c, isize y, isize x, isize count, isize lane,
    const cnn_share *share, isize shares,
) noexcept nogil:
    """grad_x of `count` pixels from (y, x) on, whose windows differ by one step."""
    cdef char *grad_x = pixel(&p.x, n, c, y, x)
    if p.average:
        p.kernels.sum_backward(
            grad_x, lane, count, pixel(&p.y, n, c, 0, 0), NULL, share, shares)
    else:
        p.kernels.max_backward(
            grad_x, lane, count, pixel(&p.y, n, c, 0, 0),
            pixel(&p.argmax, n, c, 0, 0), <int> p.argmax.itemsize, share, shares)


cdef void backward_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef cnn_share *share = <cnn_share *> scratch
    cdef isize plane = task // p.tasks_per_plane
    cdef isize y0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize y1 = min(y0 + p.rows_per_task, g.h)
    cdef isize n, c, y, x, phase, first, last, count
    cdef isize extent = g.dilation_w * (g.s - 1)
    if p.channels_last:
        for y in range(y0, y1):
            for x in range(g.w):
                gather(p, plane, 0, y, x, g.c, 1, share, shares_of(p, y, x, share))
        return
    n, c = plane // g.c, plane % g.c
    # columns that no window misses for being the first or the last of its row
    first = max(0, extent - g.left)
    last = min(g.w, g.out_w * g.stride_w - g.left)
    if p.average:  # and whose windows lie inside: they share one divisor
        first, last = max(first, extent), min(last, g.w - extent)
    first = min(first, g.w)
    last = max(first, last)
    for y in range(y0, y1):
        for x in range(first):
            gather(p, n, c, y, x, 1, 1, share, shares_of(p, y, x, share))
        for phase in range(min(g.stride_w, last - first)):
            # every stride-th pixel meets the same windows, one column on
            count = ceil_div(last - first - phase, g.stride_w)
            gather(p, n, c, y, first + phase, count, g.stride_w * p.x.step_w, share,
                   shares_of(p, y, first + phase, share))
        for x in range(last, g.w):
            gather(p, n, c, y, x, 1, 1, share, shares_of(p, y, x, share))


cdef void scatter_task(void *job, isize task, char *scratch) noexcept nogil:
    """max backward from flat indices: each task owns one plane."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize n = task // g.c, c = task % g.c, i, j
    cdef int64_t at
    cdef char *to
    cdef const char *error
    for i in range(g.h):
        for j in range(g.w):
            memset(pixel(&p.x, n, c, i, j), 0, p.x.itemsize)
    for i in range(g.out_h):
        for j in range(g.out_w):
            at = (<const int64_t *> pixel(&p.argmax, n, c, i, j))[0]
            if at < 0 or at >= g.h * g.w:  # Python has refused such indices
                continue
            to = pixel(&p.x, n, c, at // g.w, at % g.w)
            error = pixel(&p.y, n, c, i, j)
            if p.x.itemsize == 4:
                (<float *> to)[0] += (<const float *> error)[0]
            else:
                (<double *> to)[0] += (<const double *> error)[0]


cdef void indices_task(void *job, isize task, char *scratch) noexcept nogil:
    """Flat indices in the plane from positions in the window."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize n = task // g.c, c = task % g.c, i, j
    cdef int64_t code, y, x
    for i in range(g.out_h):
        for j in range(g.out_w):
            code = (<const int32_t *> pixel(&p.argmax, n, c, i, j))[0]
            y = i * g.stride_h - g.top + code // g.s * g.dilation_h
            x = j * g.stride_w - g.left + code % g.s * g.dilation_w
            y = min(max(y, 0), g.h - 1)  # a window without any pixel
            x = min(max(x, 0), g.w - 1)
            (<int64_t *> pixel(&p.x, n, c, i, j))[0] = y * g.w + x


cdef int run_rows(
    pooling *p, void (*task)(void *, isize, char *) noexcept nogil,
    isize rows, isize cols, isize scratch,
) noexcept nogil:
    """Run tasks of some rows each, over images (channels last) or over planes."""
    cdef isize per_row = max(1, cols * (p.g.c if p.channels_last else 1))
    p.planes = p.g.n * (1 if p.channels_last else p.g.c)
    p.rows_per_task = min(rows, max(1, TASK_ELEMENTS // per_row))
    p.tasks_per_plane = ceil_div(rows, p.rows_per_task)
    return runtime.run(
        task, p, p.planes * p.tasks_per_plane, scratch,
        2.0 * p.planes * rows * per_row)


cdef int run_forward(pooling *p) noexcept nogil:
    p.kernels = kernels_for(runtime, p.x.itemsize)
    p.channels_last = p.x.step_c == 1 and p.y.step_c == 1
    return run_rows(p, forward_task, p.g.out_h, p.g.out_w, 0)


cdef int run_backward(pooling *p) noexcept nogil:
    p.kernels = kernels_for(runtime, p.x.itemsize)
    p.channels_last = p.x.step_c == 1 and p.y.step_c == 1
    p.max_shares = (
        (ceil_div(p.g.r, p.g.stride_h) + 1) * (ceil_div(p.g.s, p.g.stride_w) + 1))
    if p.g.dilation_h > 1 or p.g.dilation_w > 1:
        p.max_shares = p.g.r * p.g.s
    return run_rows(
        p, backward_task, p.g.h, p.g.w, p.max_shares * <isize> sizeof(cnn_share))


def max_pool2d(object sizes, x, y, argmax):
    """y = the first maximum of each window; argmax (or None) = its position."""
    cdef pooling p
    cdef Py_buffer vx, vy, va
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average = False
    hold(x, &vx, False)
    hold(y, &vy, True)
    p.x, p.y = image_of(&vx), image_of(&vy)
    p.argmax.data = NULL
    p.argmax.itemsize = 0
    if argmax is not None:
        hold(argmax, &va, True)
        p.argmax = image_of(&va)
    with nogil:
        failed = run_forward(&p)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vy)
    if argmax is not None:
        PyBuffer_Release(&va)
    if failed:
        raise MemoryError("max_pool2d: no memory for its scratch space")


def max_pool2d_indices(object sizes, argmax, indices):
    """indices (int64) = place in the plane of the winners in argmax (int32)."""
    cdef pooling p
    cdef Py_buffer va, vi
    cdef int failed
    p.g = pool_sizes(sizes)
    hold(argmax, &va, False)
    hold(indices, &vi, True)
    p.argmax, p.x = image_of(&va), image_of(&vi)
    with nogil:
        failed = runtime.run(
            indices_task, &p, p.g.n * p.g.c, 0,
            4.0 * p.g.n * p.g.c * p.g.out_h * p.g.out_w)
    PyBuffer_Release(&va)
    PyBuffer_Release(&vi)
    if failed:
        raise MemoryError("max_pool2d: no memory for its scratch space")


def max_pool2d_backward(object sizes, grad_y, argmax, grad_x):
    """grad_x: the winner gets the whole error; argmax is uint8, uint16 or int64."""
    cdef pooling p
    cdef Py_buffer vg, va, vx
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average = False
    hold(grad_y, &vg, False)
    hold(argmax, &va, False)
    hold(grad_x, &vx, True)
    p.y, p.argmax, p.x = image_of(&vg), image_of(&va), image_of(&vx)
    with nogil:
        if p.argmax.itemsize == 8:
            failed = runtime.run(
                scatter_task, &p, p.g.n * p.g.c, 0,
                4.0 * p.g.n * p.g.c * p.g.h * p.g.w)
        else:
            failed = run_backward(&p)
    PyBuffer_Release(&vg)
    PyBuffer_Release(&va)
    PyBuffer_Release(&vx)
    if failed:
        raise MemoryError("max_pool2d_backward: no memory for its scratch space")


def avg_pool2d(object sizes, x, y, bint count_include_pad, isize divisor_override):
    """y = sum of each window / divisor; divisor_override 0 means none."""
    cdef pooling p
    cdef Py_buffer vx, vy
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average = True
    p.include_pad, p.divisor_override = count_include_pad, divisor_override
    hold(x, &vx, False)
    hold(y, &vy, True)
    p.x, p.y = image_of(&vx), image_of(&vy)
    p.argmax.data = NULL
    with nogil:
        failed = run_forward(&p)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vy)
    if failed:
        raise MemoryError("avg_pool2d: no memory for its scratch space")


def avg_pool2d_backward(
    object sizes, grad_y, grad_x, bint count_include_pad, isize divisor_override
):
    """grad_x: every pixel of a window gets its share of the error."""
    cdef pooling p
    cdef Py_buffer vg, vx
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average = True
    p.include_pad, p.divisor_override = count_include_pad, divisor_override
    hold(grad_y, &vg, False)
    hold(grad_x, &vx, True)
    p.y, p.x = image_of(&vg), image_of(&vx)
    p.argmax.data = NULL
    with nogil:
        failed = run_backward(&p)
    PyBuffer_Release(&vg)
    PyBuffer_Release(&vx)
    if failed:
        raise MemoryError("avg_pool2d_backward: no memory for its scratch space")
