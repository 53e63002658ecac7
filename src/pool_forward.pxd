# Pooling forward: maximum (and its place) or mean of each window.

from geometry cimport ceil_div, image, pixel, pool_geometry
from kernels cimport cnn_window, isize
from libc.string cimport memset
from pooling cimport (
    LARGE_PLANE, column_divisor, inside, pooling, row_divisor, span,
)


cdef inline void pool_pixels(
    const pooling *p, isize n, isize i, isize j, isize pixels
) noexcept nogil:
    """Channels last: `pixels` outputs of row i from column j on, which have windows of
    one shape; all channels."""
    cdef const pool_geometry *g = &p.g
    cdef isize top = i * g.stride_h - g.top, left = j * g.stride_w - g.left
    cdef span rows = inside(top, g.dilation_h, g.r, g.h)
    cdef span cols = inside(left, g.dilation_w, g.s, g.w)
    cdef cnn_window w
    cdef const char *x = pixel(
        &p.x, n, 0, top + rows.first * g.dilation_h, left + cols.first * g.dilation_w)
    cdef char *argmax = NULL
    w.count, w.lane, w.first = g.c, 1, NULL
    w.rows, w.cols = rows.last - rows.first, cols.last - cols.first
    w.row_step = g.dilation_h * p.x.step_h
    w.col_step = g.dilation_w * p.x.step_w
    w.code, w.code_row = rows.first * g.s + cols.first, g.s
    w.runs, w.x_run, w.y_run = pixels, g.stride_w * p.x.step_w, p.y.step_w
    w.code_run = p.argmax.step_w
    if p.average:
        p.kernels.sum_window(
            pixel(&p.y, n, 0, i, j), x, &w, row_divisor(p, i) * column_divisor(p, j),
            NULL)
        return
    if p.argmax.data != NULL:
        argmax = pixel(&p.argmax, n, 0, i, j)
    p.kernels.max_window(
        pixel(&p.y, n, 0, i, j), argmax, <int> p.argmax.itemsize, x, &w)


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


cdef inline void pool_row(const pooling *p, isize n, isize i) noexcept nogil:
    """Channels last: one row, whole windows in one run."""
    cdef const pool_geometry *g = &p.g
    cdef isize j
    cdef span whole = whole_windows(
        g.left, g.dilation_w, g.s, g.stride_w, g.w, g.out_w)
    for j in range(whole.first):
        pool_pixels(p, n, i, j, 1)
    if whole.last > whole.first:
        pool_pixels(p, n, i, whole.first, whole.last - whole.first)
    for j in range(whole.last, g.out_w):
        pool_pixels(p, n, i, j, 1)


cdef inline isize forward_pitch(const pooling *p) noexcept nogil:
    """Columns of a padded row: what the windows of all output columns touch."""
    cdef const pool_geometry *g = &p.g
    return (g.out_w - 1) * g.stride_w + g.dilation_w * (g.s - 1) + 1


cdef inline bint needs_copy(const pooling *p) noexcept nogil:
    """Whether windows reach beyond the row, or the row has gaps."""
    return (
        p.g.left > 0 or forward_pitch(p) - p.g.left > p.g.w or p.x.step_w != 1)


cdef inline void copy_row(
    const pooling *p, isize n, isize c, isize y, char *to
) noexcept nogil:
    """Row y of the plane, with -inf (max) or 0 (mean) around it."""
    cdef isize size = p.x.itemsize, pitch = forward_pitch(p), left = p.g.left
    cdef isize used = min(p.g.w, pitch - left)
    cdef double fill = 0.0 if p.average else -float_inf
    p.kernels.fill_row(to, fill, left)
    p.kernels.copy(
        to + left * size, 1, 1, pixel(&p.x, n, c, y, 0), p.x.step_w, 1, used, 1)
    p.kernels.fill_row(to + (left + used) * size, fill, pitch - left - used)


cdef extern from "<math.h>":
    double float_inf "INFINITY"


cdef inline void pool_rows(
    const pooling *p, isize n, isize c, isize i0, isize i1, char *scratch
) noexcept nogil:
    """Planes: output rows [i0, i1) of one channel, each as one run."""
    cdef const pool_geometry *g = &p.g
    cdef isize size = p.x.itemsize, pitch = forward_pitch(p)
    cdef isize y0 = max(0, i0 * g.stride_h - g.top), y, i, top
    cdef isize y1 = min(g.h, (i1 - 1) * g.stride_h - g.top
                        + g.dilation_h * (g.r - 1) + 1)
    cdef isize row = pitch, run
    cdef bint copied = needs_copy(p)
    cdef span rows, whole = whole_windows(
        g.top, g.dilation_h, g.r, g.stride_h, g.h, g.out_h)
    cdef cnn_window w
    cdef const char *x
    cdef char *argmax = NULL
    if copied:
        for y in range(y0, y1):
            copy_row(p, n, c, y, scratch + (y - y0) * pitch * size)
    else:
        row = p.x.step_h
    w.count, w.lane, w.cols = g.out_w, g.stride_w, g.s
    w.first = p.first
    w.col_step, w.code_row = g.dilation_w, g.s
    w.row_step, w.x_run = g.dilation_h * row, g.stride_h * row
    w.y_run, w.code_run = p.y.step_h, p.argmax.step_h
    i = i0
    while i < i1:
        # rows whose windows have all their rows go in one run
        run = 1
        if i >= whole.first and i < whole.last:
            run = min(whole.last, i1) - i
        w.runs = run
        top = i * g.stride_h - g.top
        rows = inside(top, g.dilation_h, g.r, g.h)
        w.rows = rows.last - rows.first
        w.code = rows.first * g.s
        y = top + rows.first * g.dilation_h
        if copied:
            x = scratch + (y - y0) * pitch * size
        else:
            x = pixel(&p.x, n, c, y, 0)
        if p.average:
            p.kernels.sum_window(
                pixel(&p.y, n, c, i, 0), x, &w, row_divisor(p, i), p.divisors)
        else:
            if p.argmax.data != NULL:
                argmax = pixel(&p.argmax, n, c, i, 0)
            p.kernels.max_window(
                pixel(&p.y, n, c, i, 0), argmax, <int> p.argmax.itemsize, x, &w)
        i += run


cdef inline isize forward_scratch(const pooling *p) noexcept nogil:
    cdef const pool_geometry *g = &p.g
    cdef isize rows = (p.rows_per_task - 1) * g.stride_h + g.dilation_h * (g.r - 1) + 1
    if p.channels_last or not needs_copy(p):
        return 0
    return rows * forward_pitch(p) * p.x.itemsize


cdef inline void forward_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize plane = task // p.tasks_per_plane, i
    cdef isize i0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize i1 = min(i0 + p.rows_per_task, g.out_h)
    if not p.channels_last:
        pool_rows(p, plane // g.c, plane % g.c, i0, i1, scratch)
        return
    for i in range(i0, i1):
        pool_row(p, plane, i)


cdef inline void large_plane(
    const pooling *p, isize n, isize c, char *sum
) noexcept nogil:
    """Mean of one large plane, by stretches."""
    cdef isize pixels = p.g.h * p.g.w, at
    cdef double divisor = row_divisor(p, 0) * column_divisor(p, 0)
    memset(sum, 0, sizeof(double))
    for at in range(ceil_div(pixels, LARGE_PLANE)):
        if p.interrupted():
            return
        p.kernels.sum_rows(
            sum, pixel(&p.x, n, c, 0, 0) + at * LARGE_PLANE * p.x.itemsize, 0, 1, 1,
            min(pixels - at * LARGE_PLANE, LARGE_PLANE))
    if p.x.itemsize == 4:
        (<float *> pixel(&p.y, n, c, 0, 0))[0] = (
            (<float *> sum)[0] / <float> divisor)
    else:
        (<double *> pixel(&p.y, n, c, 0, 0))[0] = (<double *> sum)[0] / divisor


cdef inline void whole_plane_task(void *job, isize task, char *scratch) noexcept nogil:
    """Mean of planes without gaps that one window covers whole."""
    cdef const pooling *p = <const pooling *> job
    cdef isize n = task // p.tasks_per_plane
    cdef isize c0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize channels = min(p.rows_per_task, p.g.c - c0)
    if p.g.h * p.g.w > LARGE_PLANE:
        large_plane(p, n, c0, scratch)
        return
    p.kernels.mean_rows(
        pixel(&p.y, n, c0, 0, 0), p.y.step_c, pixel(&p.x, n, c0, 0, 0), p.x.step_c,
        channels, p.g.h * p.g.w, row_divisor(p, 0) * column_divisor(p, 0))
