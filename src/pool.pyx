"""Pooling: max and average, each forward beside its backward.

A pooling layer is a transfer function without weights. Max pooling gives the pixel
that won a window the window's whole error; average pooling gives every pixel of the
window its share.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

from geometry cimport (
    Py_buffer, PyBuffer_Release, ceil_div, even_share, hold, image_of, pixel, pool_geometry,
    pool_sizes,
)
from kernels cimport CNN_RUNTIME, check, cnn_runtime, isize, kernels_for
from pool_backward cimport (
    fill_plane_task, gather_scratch, gather_task, gathered_bytes, plan_planes,
    plan_sending, scatter_indices_task, send_task,
)
from pool_forward cimport (
    forward_task, plan_forward, whole_maxima_scratch, whole_maxima_task, whole_plane_task,
)
from pooling cimport (
    axis_of, column_divisor, find_places, inside, most_windows, place, planes_of,
    pooling, row_divisor, rows_bytes, set_integer, set_real, stopped, streams,
)

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)

# Elements that a task makes, about; terms of an element that make a task smaller, and
# where windows share no rows (7x7 of 8x2048x7x7 would be one task); windows of a pixel
# whose shares a gather adds up, at most; rows of a task whose windows reach into others,
# in heights of a window, at least; bytes that a gather copies.
cdef enum:
    TASK_ELEMENTS = 16384
    MANY_TERMS = 64
    OWN_TERMS = 16
    FEW_SHARES = 32
    HEIGHTS = 8
    ERRORS_BYTES = 2 << 20


cdef void indices_task(void *job, isize task, char *scratch) noexcept nogil:
    """Flat indices in the plane from positions in the window."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize n = task // g.c, c = task % g.c, i, j
    cdef int64_t code, y, x
    for i in range(g.out_h):
        if stopped(p, i, g.out_w):
            return
        for j in range(g.out_w):
            code = (<const int32_t *> pixel(&p.argmax, n, c, i, j))[0]
            y = i * g.stride_h - g.top + code // g.s * g.dilation_h
            x = j * g.stride_w - g.left + code % g.s * g.dilation_w
            y = min(max(y, 0), g.h - 1)  # a window without any pixel
            x = min(max(x, 0), g.w - 1)
            (<int64_t *> pixel(&p.x, n, c, i, j))[0] = y * g.w + x


cdef int make_tables(pooling *p, bint backward) noexcept nogil:
    """For each output column the code of its first pixel and its divisor; for each
    code its offset in the plane; for each pixel's row and column its windows."""
    cdef const pool_geometry *g = &p.g
    cdef isize i, codes = 0, places = 0
    cdef double divisor
    cdef double *rows
    cdef double *cols
    cdef unsigned long long state
    if backward:
        places = g.h + g.w
        if not p.average and p.argmax.itemsize < 8:
            codes = g.r * g.s
    p.tables = malloc(
        places * sizeof(place)
        + (codes + 2 * g.s + min(g.stride_w, g.w)) * sizeof(isize)
        + (g.out_h + 3 * g.out_w) * sizeof(double))
    if p.tables == NULL:
        return -1
    p.row = <place *> p.tables
    p.column = p.row + g.h
    p.winner = <isize *> (p.row + places)
    p.columns = p.winner + codes
    rows = <double *> (p.columns + 2 * g.s + min(g.stride_w, g.w))
    cols = rows + g.out_h
    p.divisors = <char *> (cols + g.out_w)
    p.first = p.divisors + g.out_w * sizeof(double)
    state = runtime.enter(runtime.flush)
    for i in range(g.out_h):
        rows[i] = row_divisor(p, i) if p.average else 1.0
    for i in range(g.out_w):
        cols[i] = divisor = column_divisor(p, i) if p.average else 1.0
        set_real(p.divisors, p.x.itemsize, i, 1.0 / divisor if backward else divisor)
        set_integer(p.first, p.x.itemsize, i, inside(
            i * g.stride_w - g.left, g.dilation_w, g.s, g.w).first)
    if backward:
        p.down = axis_of(g.h, g.top, g.dilation_h, g.r, g.stride_h, g.out_h)
        p.across = axis_of(g.w, g.left, g.dilation_w, g.s, g.stride_w, g.out_w)
        find_places(&p.down, p.row, rows)
        find_places(&p.across, p.column, cols)
    runtime.leave(state)
    return 0


cdef inline isize terms(isize count, bint own) noexcept nogil:
    """Where an element has many terms, tasks have fewer elements."""
    return max(1, count // (OWN_TERMS if own else MANY_TERMS))


cdef void share_rows(pooling *p, isize rows, isize elements) noexcept nogil:
    """Cut `rows` rows of `elements` each into tasks of about TASK_ELEMENTS."""
    p.rows_per_task = max(1, min(rows, TASK_ELEMENTS // max(1, elements)))
    p.rows_per_task = ceil_div(rows, ceil_div(rows, p.rows_per_task))
    p.tasks_per_plane = ceil_div(rows, p.rows_per_task)


cdef isize tasks_of(pooling *p, isize planes, isize elements) noexcept nogil:
    """Share out planes of `elements`, of which rows are shared out: small ones together.

    Returns how many tasks that makes.
    """
    p.planes_per_task = 1
    if p.tasks_per_plane == 1:
        p.planes_per_task = even_share(planes, max(1, TASK_ELEMENTS // max(1, elements)))
    return ceil_div(planes, p.planes_per_task) * p.tasks_per_plane


cdef bint one_window(const pooling *p) noexcept nogil:
    """Whether one window covers each plane whole, and planes have no gaps."""
    cdef const pool_geometry *g = &p.g
    return (
        not p.channels_last and g.out_h == 1 and g.out_w == 1
        and g.top == 0 and g.left == 0 and g.r >= g.h and g.s >= g.w
        and g.dilation_h == 1 and g.dilation_w == 1
        and p.x.step_w == 1 and p.x.step_h == g.w)


cdef bint whole_planes(const pooling *p) noexcept nogil:
    """Whether each maximum is that of a whole plane.

    8x2048x7x7: 0.2 ms so, 7 by windows of their own; 8x64x56x56 0.27 and 14.
    """
    return (
        one_window(p) and p.y.step_c == 1
        and (p.argmax.data == NULL or p.argmax.step_c == 1))


cdef int run_forward(pooling *p) noexcept nogil:
    cdef const pool_geometry *g = &p.g
    cdef double work = 2.0 * g.n * g.c * g.h * g.w
    cdef isize row, scratch
    cdef int failed
    p.kernels = kernels_for(runtime, p.x.itemsize)
    p.interrupted = runtime.interrupted
    p.channels_last = p.x.step_c == 1 and p.y.step_c == 1
    if p.average and one_window(p):
        share_rows(p, g.c, g.h * g.w)
        return runtime.run(
            whole_plane_task, p, g.n * p.tasks_per_plane, 0, work)
    if not p.average and whole_planes(p):
        share_rows(p, g.c, g.h * g.w)
        return runtime.run(
            whole_maxima_task, p, g.n * p.tasks_per_plane, whole_maxima_scratch(p), work)
    if make_tables(p, False):
        return -1
    row = g.out_w * (g.c if p.channels_last else 1) * terms(
        g.r * g.s, g.out_h == 1 or g.stride_h >= g.r)
    share_rows(p, g.out_h, row)
    p.forward.total = 0
    if not p.channels_last:
        plan_forward(p)
    scratch = p.forward.total
    p.streamed = streams(p, &p.y)
    if p.streamed:
        scratch += rows_bytes(&p.y, p.rows_per_task)
    failed = runtime.run(
        forward_task, p, tasks_of(p, planes_of(p), g.out_h * row), scratch, work)
    free(p.tables)
    return failed


cdef isize windows_of_pixel(const pooling *p) noexcept nogil:
    return most_windows(&p.down) * most_windows(&p.across)


cdef int run_backward(pooling *p) noexcept nogil:
    """Choose how the errors travel back, and send them."""
    cdef const pool_geometry *g = &p.g
    cdef double work = 2.0 * g.n * g.c * g.h * g.w
    cdef isize row
    cdef int failed
    p.kernels = kernels_for(runtime, p.x.itemsize)
    p.interrupted = runtime.interrupted
    p.channels_last = False
    if not p.average and p.argmax.itemsize == 8:
        return runtime.run(scatter_indices_task, p, g.n * g.c, 0, work)
    p.channels_last = p.x.step_c == 1 and p.y.step_c == 1
    if p.average and one_window(p):
        share_rows(p, g.c, g.h * g.w)
        return runtime.run(fill_plane_task, p, g.n * p.tasks_per_plane, 0, work)
    if make_tables(p, True):
        return -1
    row = g.w * (g.c if p.channels_last else 1)
    share_rows(p, g.h, row * terms(windows_of_pixel(p), False))
    if gathers(p):
        p.streamed = streams(p, &p.x)
        row *= terms(windows_of_pixel(p), False)
        failed = runtime.run(
            gather_task, p, tasks_of(p, planes_of(p), g.h * row), gathered_bytes(p), work)
    else:
        # what reaches into another task's rows is met twice
        p.rows_per_task = min(g.h, max(
            TASK_ELEMENTS // row, HEIGHTS * (1 + g.dilation_h * (g.r - 1))))
        p.tasks_per_plane = ceil_div(g.h, p.rows_per_task)
        plan_sending(p)
        failed = runtime.run(
            send_task, p, tasks_of(p, planes_of(p), g.h * row), p.errors.total, work)
    free(p.tables)
    return failed


cdef bint gathers(pooling *p) noexcept nogil:
    """Whether pixels gather their errors, or errors go out to their pixels.

    A gather's time grows with the windows of a pixel over the lanes of a vector; what
    sends errors to their winners takes about 1 ns an error (float32, AVX-512: 4x64x28x28
    with stride 1, gather and this, 5x5 437 and 194 us in planes, 204 and 257 us channels
    last; 7x7 793 and 201, 542 and 239; 4x64x56x56, 3x3 with stride 3 in planes, whose
    phases would be stored number by number, 807 and 198).
    """
    if p.channels_last:
        p.errors.total = gather_scratch(p)
        return p.average or windows_of_pixel(p) <= 2 * p.kernels.lanes
    plan_planes(p, p.columns)
    if p.x.step_w != 1 or p.y.step_w != 1 or p.errors.total > ERRORS_BYTES:
        return False
    if p.average:
        return windows_of_pixel(p) <= FEW_SHARES and p.g.stride_w <= 4
    return p.g.stride_w <= 2 and 4 * windows_of_pixel(p) <= 3 * p.kernels.lanes


def max_pool2d(object sizes, x, y, argmax, bint fresh=False):
    """y = the first maximum of each window; argmax (or None) = its position."""
    cdef pooling p
    cdef Py_buffer vx, vy, va
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average, p.fresh = False, fresh
    hold(x, &vx, False)
    hold(y, &vy, True)
    p.x, p.y = image_of(&vx), image_of(&vy)
    p.argmax = p.y
    p.argmax.data, p.argmax.itemsize = NULL, 0
    if argmax is not None:
        hold(argmax, &va, True)
        p.argmax = image_of(&va)
    with nogil:
        failed = run_forward(&p)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vy)
    if argmax is not None:
        PyBuffer_Release(&va)
    check(failed, "max_pool2d")


def max_pool2d_indices(object sizes, argmax, indices):
    """indices (int64) = place in the plane of the winners in argmax (int32)."""
    cdef pooling p
    cdef Py_buffer va, vi
    cdef int failed
    p.g = pool_sizes(sizes)
    hold(argmax, &va, False)
    hold(indices, &vi, True)
    p.argmax, p.x = image_of(&va), image_of(&vi)
    p.interrupted = runtime.interrupted
    with nogil:
        failed = runtime.run(
            indices_task, &p, p.g.n * p.g.c, 0,
            4.0 * p.g.n * p.g.c * p.g.out_h * p.g.out_w)
    PyBuffer_Release(&va)
    PyBuffer_Release(&vi)
    check(failed, "max_pool2d")


def max_pool2d_backward(
    object sizes, grad_y, argmax, grad_x, bint fresh=False
):
    """grad_x: the winner gets the whole error; argmax is uint8, uint16 or int64."""
    cdef pooling p
    cdef Py_buffer vg, va, vx
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average, p.fresh = False, fresh
    hold(grad_y, &vg, False)
    hold(argmax, &va, False)
    hold(grad_x, &vx, True)
    p.y, p.argmax, p.x = image_of(&vg), image_of(&va), image_of(&vx)
    with nogil:
        failed = run_backward(&p)
    PyBuffer_Release(&vg)
    PyBuffer_Release(&va)
    PyBuffer_Release(&vx)
    check(failed, "max_pool2d_backward")


def avg_pool2d(
    object sizes, x, y, bint count_include_pad, isize divisor_override,
    bint fresh=False
):
    """y = sum of each window / divisor; divisor_override 0 means none."""
    cdef pooling p
    cdef Py_buffer vx, vy
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average, p.fresh = True, fresh
    p.include_pad, p.divisor_override = count_include_pad, divisor_override
    hold(x, &vx, False)
    hold(y, &vy, True)
    p.x, p.y = image_of(&vx), image_of(&vy)
    p.argmax = p.y
    p.argmax.data, p.argmax.itemsize = NULL, 0
    with nogil:
        failed = run_forward(&p)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vy)
    check(failed, "avg_pool2d")


def avg_pool2d_backward(
    object sizes, grad_y, grad_x, bint count_include_pad, isize divisor_override,
    bint fresh=False
):
    """grad_x: every pixel of a window gets its share of the error."""
    cdef pooling p
    cdef Py_buffer vg, vx
    cdef int failed
    p.g = pool_sizes(sizes)
    p.average, p.fresh = True, fresh
    p.include_pad, p.divisor_override = count_include_pad, divisor_override
    hold(grad_y, &vg, False)
    hold(grad_x, &vx, True)
    p.y, p.x = image_of(&vg), image_of(&vx)
    p.argmax = p.y
    p.argmax.data, p.argmax.itemsize = NULL, 0
    with nogil:
        failed = run_backward(&p)
    PyBuffer_Release(&vg)
    PyBuffer_Release(&vx)
    check(failed, "avg_pool2d_backward")
