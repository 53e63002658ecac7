# Pooling backward. Max pooling gives the pixel that won a window the window's whole
# error; average pooling gives every pixel of the window its share.

from geometry cimport ceil_div, image, pixel, pool_geometry
from kernels cimport cnn_share, isize
from libc.stdint cimport int64_t, uint8_t, uint16_t
from libc.string cimport memset
from pooling cimport LARGE_PLANE, column_divisor, pooling, row_divisor, stopped


cdef inline isize windows_of(
    isize at, isize before, isize dilation, isize taps, isize stride, isize outs,
    isize *window, isize *tap,
) noexcept nogil:
    """The windows that hold pixel `at` of one axis, rising, each with its tap."""
    cdef isize q, start, count = 0
    for q in range(taps - 1, -1, -1):
        start = at + before - q * dilation
        if start >= 0 and start % stride == 0 and start // stride < outs:
            window[count] = start // stride
            tap[count] = q
            count += 1
    return count


cdef inline isize most_windows(isize taps, isize stride, isize dilation) noexcept nogil:
    return taps if dilation > 1 else ceil_div(taps, stride)


# --- channels last: gather, each pixel of grad_x written once ----------------------


cdef inline isize gather_scratch(const pooling *p) noexcept nogil:
    cdef const pool_geometry *g = &p.g
    cdef isize across = most_windows(g.s, g.stride_w, g.dilation_w)
    cdef isize down = most_windows(g.r, g.stride_h, g.dilation_h)
    return (
        across * down * <isize> sizeof(cnn_share)
        + (2 * down + g.w * (2 * across + 1)) * <isize> sizeof(isize))


cdef inline void gather_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize n = task // p.tasks_per_plane
    cdef isize y0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize across = most_windows(g.s, g.stride_w, g.dilation_w)
    cdef isize down = most_windows(g.r, g.stride_h, g.dilation_h)
    cdef cnn_share *share = <cnn_share *> scratch
    cdef isize *i_of = <isize *> (share + across * down)
    cdef isize *r_of = i_of + down
    cdef isize *columns = r_of + down   # for each x: count, windows, taps
    cdef isize *at
    cdef isize x, y, i, j, rows, shares
    for x in range(g.w):
        at = columns + x * (2 * across + 1)
        at[0] = windows_of(x, g.left, g.dilation_w, g.s, g.stride_w, g.out_w,
                           at + 1, at + 1 + across)
    for y in range(y0, min(y0 + p.rows_per_task, g.h)):
        rows = windows_of(y, g.top, g.dilation_h, g.r, g.stride_h, g.out_h, i_of, r_of)
        for x in range(g.w):
            at = columns + x * (2 * across + 1)
            shares = 0
            for i in range(rows):
                for j in range(at[0]):
                    share[shares].at = i_of[i] * p.y.step_h + at[1 + j] * p.y.step_w
                    share[shares].code = r_of[i] * g.s + at[1 + across + j]
                    if p.average:
                        share[shares].scale = 1.0 / (
                            row_divisor(p, i_of[i]) * column_divisor(p, at[1 + j]))
                    shares += 1
            if p.average:
                p.kernels.sum_backward(
                    pixel(&p.x, n, 0, y, x), g.c, pixel(&p.y, n, 0, 0, 0), share,
                    shares)
            else:
                p.kernels.max_backward(
                    pixel(&p.x, n, 0, y, x), g.c, pixel(&p.y, n, 0, 0, 0),
                    pixel(&p.argmax, n, 0, 0, 0), <int> p.argmax.itemsize, share,
                    shares)


# --- planes ------------------------------------------------------------------------


cdef inline void clear_plane(const pooling *p, isize n, isize c) noexcept nogil:
    cdef isize y, x
    for y in range(p.g.h):
        if stopped(p, y, p.g.w):
            return
        if p.x.step_w == 1:
            memset(pixel(&p.x, n, c, y, 0), 0, p.g.w * p.x.itemsize)
            continue
        for x in range(p.g.w):
            memset(pixel(&p.x, n, c, y, x), 0, p.x.itemsize)


cdef inline void add_error(
    const pooling *p, isize n, isize c, isize y, isize x, const char *error
) noexcept nogil:
    """grad_x[y, x] += error, if the image has that pixel."""
    cdef char *to
    if y < 0 or y >= p.g.h or x < 0 or x >= p.g.w:
        return
    to = pixel(&p.x, n, c, y, x)
    if p.x.itemsize == 4:
        (<float *> to)[0] += (<const float *> error)[0]
    else:
        (<double *> to)[0] += (<const double *> error)[0]


cdef inline isize code_at(const pooling *p, isize n, isize c, isize i, isize j) noexcept nogil:
    cdef const char *code = pixel(&p.argmax, n, c, i, j)
    if p.argmax.itemsize == 1:
        return (<const uint8_t *> code)[0]
    return (<const uint16_t *> code)[0]


cdef inline void scatter_checked(
    const pooling *p, isize n, isize c, isize i, isize j0, isize j1
) noexcept nogil:
    """Errors of windows that reach beyond the image: a position may lie outside."""
    cdef const pool_geometry *g = &p.g
    cdef isize j, code
    for j in range(j0, j1):
        code = code_at(p, n, c, i, j)
        add_error(
            p, n, c, i * g.stride_h - g.top + code // g.s * g.dilation_h,
            j * g.stride_w - g.left + code % g.s * g.dilation_w,
            pixel(&p.y, n, c, i, j))


cdef inline void scatter_task(void *job, isize task, char *scratch) noexcept nogil:
    """Max, from positions in windows: each error goes to its winner."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize n = task // g.c, c = task % g.c, i, top, j0, j1
    cdef isize down = g.dilation_h * (g.r - 1), across = g.dilation_w * (g.s - 1)
    clear_plane(p, n, c)
    # columns whose windows lie inside of the row: no winner can lie outside
    j0 = min(ceil_div(g.left, g.stride_w), g.out_w)
    j1 = j0
    if g.w + g.left > across:
        j1 = max(j0, min((g.w + g.left - across - 1) // g.stride_w + 1, g.out_w))
    for i in range(g.out_h):
        if stopped(p, i, g.out_w):
            return
        top = i * g.stride_h - g.top
        if top >= 0 and top + down < g.h and j1 > j0:
            p.kernels.max_scatter(
                pixel(&p.x, n, c, top, j0 * g.stride_w - g.left),
                g.stride_w * p.x.step_w, j1 - j0, pixel(&p.y, n, c, i, j0),
                pixel(&p.argmax, n, c, i, j0), <int> p.argmax.itemsize, p.offset)
            scatter_checked(p, n, c, i, 0, j0)
            scatter_checked(p, n, c, i, j1, g.out_w)
        else:
            scatter_checked(p, n, c, i, 0, g.out_w)


cdef inline void scatter_indices_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    """Max, from flat indices in the plane."""
    cdef const pooling *p = <const pooling *> job
    cdef isize n = task // p.g.c, c = task % p.g.c, i, j
    cdef int64_t at
    clear_plane(p, n, c)
    for i in range(p.g.out_h):
        if stopped(p, i, p.g.out_w):
            return
        for j in range(p.g.out_w):
            at = (<const int64_t *> pixel(&p.argmax, n, c, i, j))[0]
            if at >= 0:
                add_error(p, n, c, at // p.g.w, at % p.g.w, pixel(&p.y, n, c, i, j))


cdef inline isize shift_pitch(const pooling *p) noexcept nogil:
    """Columns of a padded row of errors: all that pixels of a row look at."""
    return p.g.w + p.g.dilation_w * (p.g.s - 1)


cdef inline isize shift_scratch(const pooling *p) noexcept nogil:
    cdef const pool_geometry *g = &p.g
    return (
        g.r * g.s * <isize> sizeof(cnn_share) + 2 * g.r * <isize> sizeof(isize)
        + g.out_h * shift_pitch(p) * (p.x.itemsize + p.argmax.itemsize))


cdef inline void shift_task(void *job, isize task, char *scratch) noexcept nogil:
    """Max with stride_w = 1: a row of grad_x gathers from shifted rows of errors."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize n = task // g.c, c = task % g.c, size = p.x.itemsize
    cdef isize codes = p.argmax.itemsize, pitch = shift_pitch(p)
    cdef isize across = g.dilation_w * (g.s - 1), i, y, s, rows, shares
    # column q of a padded row is window q - before; others have no error
    cdef isize before = max(0, across - g.left), skip = max(0, g.left - across)
    cdef isize used = min(g.out_w - skip, pitch - before)
    cdef cnn_share *share = <cnn_share *> scratch
    cdef isize *i_of = <isize *> (share + g.r * g.s)
    cdef isize *r_of = i_of + g.r
    cdef char *errors = <char *> (r_of + g.r)
    cdef char *places = errors + g.out_h * pitch * size
    memset(errors, 0, g.out_h * pitch * (size + codes))
    for i in range(g.out_h):
        p.kernels.copy(
            errors + (i * pitch + before) * size, 1, 1,
            pixel(&p.y, n, c, i, skip), 1, 1, used, 1)
        for s in range(used * codes):
            (places + (i * pitch + before) * codes)[s] = pixel(
                &p.argmax, n, c, i, skip)[s]
    for y in range(g.h):
        rows = windows_of(y, g.top, g.dilation_h, g.r, g.stride_h, g.out_h, i_of, r_of)
        shares = 0
        for i in range(rows):
            for s in range(g.s - 1, -1, -1):
                # pixel x meets window x + left - s*dilation
                share[shares].at = (
                    i_of[i] * pitch + g.left - skip - s * g.dilation_w + before)
                share[shares].code = r_of[i] * g.s + s
                shares += 1
        p.kernels.max_backward(
            pixel(&p.x, n, c, y, 0), g.w, errors, places, <int> codes, share, shares)


cdef inline isize spread_scratch(const pooling *p) noexcept nogil:
    return ((p.g.out_w - 1) * p.g.stride_w + p.g.s) * p.x.itemsize


cdef inline void spread_task(void *job, isize task, char *scratch) noexcept nogil:
    """Mean: spread a row of errors over columns, then add it to the window's rows."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize n = task // g.c, c = task % g.c, size = p.x.itemsize, i, y, x
    cdef isize top, width = (g.out_w - 1) * g.stride_w + g.s
    cdef isize used = min(g.w, width - g.left)
    clear_plane(p, n, c)
    for i in range(g.out_h):
        if stopped(p, i, (g.r + 1) * width):
            return
        top = i * g.stride_h - g.top
        memset(scratch, 0, width * size)
        p.kernels.sum_spread(
            scratch, g.stride_w, g.s, g.out_w, pixel(&p.y, n, c, i, 0),
            1.0 / row_divisor(p, i), p.divisors)
        for y in range(max(0, top), min(g.h, top + g.r)):
            if p.x.step_w == 1:
                p.kernels.add_row(
                    pixel(&p.x, n, c, y, 0), scratch + g.left * size, used)
            else:
                for x in range(used):
                    add_error(p, n, c, y, x, scratch + (g.left + x) * size)


cdef inline void fill_plane_task(void *job, isize task, char *scratch) noexcept nogil:
    """Mean of planes without gaps that one window covers whole."""
    cdef const pooling *p = <const pooling *> job
    cdef isize n = task // p.tasks_per_plane, c
    cdef isize c0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize pixels = p.g.h * p.g.w, at
    cdef double scale = 1.0 / (row_divisor(p, 0) * column_divisor(p, 0)), error
    cdef const char *from_
    for c in range(c0, min(c0 + p.rows_per_task, p.g.c)):
        from_ = pixel(&p.y, n, c, 0, 0)
        if p.x.itemsize == 4:
            error = (<const float *> from_)[0]
        else:
            error = (<const double *> from_)[0]
        for at in range(ceil_div(pixels, LARGE_PLANE)):
            if at > 0 and p.interrupted():
                return
            p.kernels.fill_row(
                pixel(&p.x, n, c, 0, 0) + at * LARGE_PLANE * p.x.itemsize,
                error * scale, min(pixels - at * LARGE_PLANE, LARGE_PLANE))
