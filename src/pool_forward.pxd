# Pooling forward: maximum (and its place) or mean of each window.

from geometry cimport ceil_div, image, pixel, pool_geometry
from kernels cimport cnn_window, isize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memmove, memset
from pooling cimport (
    LARGE_PLANE, column_divisor, columns_touched, forward_rows, inside, moved,
    planes_of, pooling, row_divisor, rows_touched, span, stream_rows, whole_windows,
)

# Bytes of the rows that a batch copies, or keeps: they stay in the first-level cache.
# Bytes of images whose rows are asked for a batch ahead (1x16x3000x2000, 3x3 stride 2:
# 9.1 GB/s without, 12.6 with). Bytes of the rows that one window keeps, at most. Pixels of
# planes that are no longer turned for their maxima.
cdef enum:
    BATCH_BYTES = 20 << 10
    FETCHED_BYTES = 1 << 20
    KEPT_BYTES = 1 << 20
    TURNED_PIXELS = 512


cdef inline bint fetches(const pooling *p) noexcept nogil:
    """Whether rows are to be asked for before their turn: not those of small images."""
    return p.x.step_n * p.x.itemsize >= FETCHED_BYTES


cdef inline isize rows_ahead(const pooling *p, isize outs) noexcept nogil:
    """Elements from the first row of `outs` output rows to the next ones' new rows."""
    return p.x.step_h * (outs * p.g.stride_h + max(
        0, rows_touched(&p.g, 1) - p.g.stride_h))


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
    w.ahead, w.fetched, w.fetch_step = 0, 0, p.x.step_h
    if fetches(p):
        w.ahead, w.fetched = rows_ahead(p, 1), g.stride_h
    if p.average:
        p.kernels.sum_window(
            pixel(&p.y, n, 0, i, j), x, &w, row_divisor(p, i) * column_divisor(p, j))
        return
    if p.argmax.data != NULL:
        argmax = pixel(&p.argmax, n, 0, i, j)
    p.kernels.max_window(
        pixel(&p.y, n, 0, i, j), argmax, <int> p.argmax.itemsize, x, &w)


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


# --- planes -------------------------------------------------------------------------
#
# Windows that overlap from row to row share what is kept of a row of pixels: it is
# reduced along the windows' columns once, then the kept rows along the windows' rows.
# Of equal maxima the first of a row, then of the rows, is first in row-major order.


cdef inline void plan_forward(pooling *p) noexcept nogil:
    """What the tasks in planes copy and keep, and where in their scratch memory."""
    cdef const pool_geometry *g = &p.g
    cdef forward_rows *f = &p.forward
    cdef isize lanes = p.kernels.lanes, row, size = p.x.itemsize
    cdef isize tall = min(g.h, rows_touched(g, 1))
    f.coded = p.argmax.data != NULL
    f.used = min(g.w, columns_touched(g) - g.left)
    # windows reach beyond the row, or the row has gaps; copies begin cache lines
    f.copied = g.left > 0 or columns_touched(g) > g.w or p.x.step_w != 1
    f.lead = ceil_div(g.left, lanes) * lanes
    f.pitch = ceil_div(f.lead - g.left + columns_touched(g), lanes) * lanes
    f.width = ceil_div(g.out_w, lanes) * lanes
    row = f.width * size * (2 if f.coded else 1)
    f.kept = g.out_h > 1 and g.stride_h < rows_touched(g, 1) and tall * row < KEPT_BYTES
    row = max(row if f.kept else 0, f.pitch * size)
    f.batch = max(1, min(
        p.rows_per_task,
        (BATCH_BYTES // row - rows_touched(g, 1)) // g.stride_h + 1))
    f.values = f.codes = f.total = 0
    if f.copied:
        f.values = rows_touched(g, f.batch) * f.pitch * size
        f.values = f.codes = f.total = (f.values + 63) // 64 * 64
    if f.kept:
        f.codes = f.total = f.values + rows_touched(g, f.batch) * f.width * size
        if f.coded:
            f.total += f.codes - f.values


cdef extern from "<math.h>":
    double float_inf "INFINITY"


cdef inline void copy_pixels(
    const pooling *p, isize n, isize c, isize y0, isize y1, char *to
) noexcept nogil:
    """Rows [y0, y1) of the plane, into rows with room at both ends."""
    cdef isize size = p.x.itemsize
    to += p.forward.lead * size
    if p.x.step_w == 1:
        p.kernels.copy_rows(
            to, p.forward.pitch * size, pixel(&p.x, n, c, y0, 0), p.x.step_h * size,
            y1 - y0, p.forward.used * size)
    else:
        p.kernels.copy(
            to, p.forward.pitch, 1, pixel(&p.x, n, c, y0, 0), p.x.step_h,
            p.x.step_w, y1 - y0, p.forward.used)


cdef inline void pool_batch(
    const pooling *p, isize n, isize c, isize i0, isize i1, isize made, char *scratch
) noexcept nogil:
    """Output rows [i0, i1) of one channel; those before `made` are kept already."""
    cdef const pool_geometry *g = &p.g
    cdef const forward_rows *f = &p.forward
    cdef isize size = p.x.itemsize, base = i0 * g.stride_h - g.top
    cdef isize y0 = max(0, base, made), y, i, run
    cdef isize y1 = min(g.h, base + rows_touched(g, i1 - i0))
    cdef isize row = f.pitch, top, first = y0
    cdef span rows, whole = whole_windows(
        g.top, g.dilation_h, g.r, g.stride_h, g.h, g.out_h)
    cdef const char *x = scratch + (f.lead - g.left) * size
    cdef const char *kept = NULL
    cdef char *argmax = NULL
    cdef cnn_window w
    if not f.copied:
        x, row = pixel(&p.x, n, c, y0, 0), p.x.step_h
    elif y1 > y0:
        copy_pixels(p, n, c, y0, y1, scratch)
    w.count, w.lane, w.cols, w.col_step = g.out_w, g.stride_w, g.s, g.dilation_w
    w.first, w.code_row = p.first, g.s
    w.ahead, w.fetched, w.fetch_step = 0, 0, 0
    if not f.copied and fetches(p):
        w.ahead, w.fetched, w.fetch_step = rows_ahead(p, i1 - i0), g.stride_h, row
    if f.kept:
        # only rows that are new: the others were asked for by the batch before
        w.ahead, w.fetched = (i1 - i0) * g.stride_h * p.x.step_h, min(1, w.fetched)
        w.rows, w.row_step, w.code = 1, 0, 0
        w.runs, w.x_run, w.y_run, w.code_run = y1 - y0, row, f.width, f.width
        if p.average:
            p.kernels.sum_plane(
                scratch + f.values + (y0 - base) * f.width * size, x, &w, 1, NULL)
        else:
            p.kernels.max_plane(
                scratch + f.values + (y0 - base) * f.width * size,
                scratch + f.codes + (y0 - base) * f.width * size if f.coded else NULL,
                <int> size, x, NULL, &w)
        w.lane = w.cols = 1
        w.fetched = 0
        first, row, x = base, f.width, scratch + f.values
    w.row_step, w.x_run = g.dilation_h * row, g.stride_h * row
    w.y_run, w.code_run = p.y.step_h, p.argmax.step_h
    i = i0
    while i < i1:
        # rows whose windows have all their rows go in one run
        run = 1
        if i >= whole.first and i < whole.last:
            run = min(whole.last, i1) - i
        top = i * g.stride_h - g.top
        rows = inside(top, g.dilation_h, g.r, g.h)
        w.runs, w.rows, w.code = run, rows.last - rows.first, rows.first * g.s
        y = (top + rows.first * g.dilation_h - first) * row * size
        if p.average:
            p.kernels.sum_plane(
                pixel(&p.y, n, c, i, 0), x + y, &w, row_divisor(p, i), p.divisors)
        else:
            if f.coded:
                argmax = pixel(&p.argmax, n, c, i, 0)
                if f.kept:
                    kept = scratch + f.codes + y if w.rows > 0 else NULL
            p.kernels.max_plane(
                pixel(&p.y, n, c, i, 0), argmax, <int> p.argmax.itemsize, x + y, kept,
                &w)
        i += run


cdef inline void pool_rows(
    const pooling *p, isize n, isize c, isize i0, isize i1, char *scratch
) noexcept nogil:
    """Output rows [i0, i1) of one channel, by batches."""
    cdef const pool_geometry *g = &p.g
    cdef const forward_rows *f = &p.forward
    cdef isize row = f.width * p.x.itemsize, i, end, shared, made = 0, used
    while i0 < i1:
        end = min(i0 + f.batch, i1)
        pool_batch(p, n, c, i0, end, made, scratch)
        if f.kept and end < i1:
            # rows that the next batch begins with
            i = (end - i0) * g.stride_h
            used = rows_touched(g, end - i0)
            shared = max(0, used - i)
            made = i0 * g.stride_h - g.top + used
            memmove(
                scratch + f.values, scratch + f.values + i * row, shared * row)
            if f.coded:
                memmove(scratch + f.codes, scratch + f.codes + i * row, shared * row)
        i0 = end


cdef inline void forward_rows_of(
    const pooling *p, isize plane, isize i0, isize i1, char *scratch
) noexcept nogil:
    cdef const pool_geometry *g = &p.g
    cdef isize i
    if not p.channels_last:
        pool_rows(p, plane // g.c, plane % g.c, i0, i1, scratch)
        return
    for i in range(i0, i1):
        pool_row(p, plane, i)


cdef inline void forward_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize plane = task // p.tasks_per_plane * p.planes_per_task
    cdef isize end = min(plane + p.planes_per_task, planes_of(p)), n, c
    cdef isize i0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize i1 = min(i0 + p.rows_per_task, g.out_h)
    cdef pooling there
    cdef char *rows = scratch + p.forward.total
    if not p.channels_last and p.forward.copied:
        # around pixels lies what never wins, or adds nothing
        p.kernels.fill_row(
            scratch, 0.0 if p.average else -float_inf,
            rows_touched(g, p.forward.batch) * p.forward.pitch)
    if not p.streamed:
        for plane in range(plane, end):
            forward_rows_of(p, plane, i0, i1, scratch)
        return
    there = p[0]
    for plane in range(plane, end):
        n, c = plane, 0
        if not p.channels_last:
            n, c = plane // g.c, plane % g.c
        there.y.data = moved(&p.y, n, c, i0, rows)
        forward_rows_of(&there, plane, i0, i1, scratch)
        stream_rows(p, &p.y, &there.y, n, c, i0, i1)


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


# --- maxima of whole planes ---------------------------------------------------------
#
# One output a plane. Small planes are turned, so that lanes are planes; each lane of a
# large one takes the maximum of every so many pixels, and these are compared one by one.


cdef inline isize whole_lanes(const pooling *p) noexcept nogil:
    return 4 * p.kernels.lanes


cdef inline isize whole_maxima_scratch(const pooling *p) noexcept nogil:
    cdef isize pixels = p.g.h * p.g.w
    return whole_lanes(p) * p.x.itemsize * (2 if pixels >= TURNED_PIXELS else pixels)


cdef inline cnn_window whole_window(const pooling *p, isize count, isize steps) noexcept nogil:
    """`steps` rows of whole_lanes, of which `count` are compared."""
    cdef cnn_window w
    w.count, w.lane, w.first = count, 1, NULL
    w.rows, w.cols, w.row_step, w.col_step = 1, steps, 0, whole_lanes(p)
    w.code = w.code_row = 0
    w.runs, w.x_run, w.y_run, w.code_run = 1, 0, 0, 0
    w.ahead, w.fetched, w.fetch_step = 0, 0, 0
    return w


cdef inline void turned_maxima(
    const pooling *p, isize n, isize c0, isize planes, char *scratch
) noexcept nogil:
    """Maxima of some small planes."""
    cdef const pool_geometry *g = &p.g
    cdef isize some = whole_lanes(p)
    cdef cnn_window w = whole_window(p, planes, g.w)
    w.rows, w.row_step, w.code_row = g.h, g.w * some, g.s
    p.kernels.copy(
        scratch, 1, some, pixel(&p.x, n, c0, 0, 0), p.x.step_c, 1, planes, g.h * g.w)
    p.kernels.max_window(
        pixel(&p.y, n, c0, 0, 0),
        NULL if p.argmax.data == NULL else pixel(&p.argmax, n, c0, 0, 0),
        <int> p.argmax.itemsize, scratch, &w)


cdef inline void compare(
    double value, isize at, double *best, isize *winner
) noexcept nogil:
    """The first of equal ones wins, and NaN, the last one."""
    if value != value:
        if best[0] == best[0] or at > winner[0]:
            best[0], winner[0] = value, at
    elif value > best[0] or value == best[0] and at < winner[0]:
        best[0], winner[0] = value, at


cdef inline double number(const char *p, isize itemsize, isize i) noexcept nogil:
    return (<const float *> p)[i] if itemsize == 4 else (<const double *> p)[i]


cdef inline void large_maximum(
    const pooling *p, isize n, isize c, char *scratch
) noexcept nogil:
    """The maximum of one large plane."""
    cdef isize some = whole_lanes(p), size = p.x.itemsize, i, at
    cdef isize pixels = p.g.h * p.g.w, steps = pixels // some, winner = 0
    cdef cnn_window w = whole_window(p, some, steps)
    cdef const char *x = pixel(&p.x, n, c, 0, 0)
    cdef char *codes = scratch + some * size
    cdef double best = -float_inf
    # places even where nobody asks: of equal zeros, and of NaNs, they tell which
    p.kernels.max_window(scratch, codes, <int> size, x, &w)
    for i in range(some):
        at = i + some * (
            (<const int32_t *> codes)[i] if size == 4 else (<const int64_t *> codes)[i])
        compare(number(scratch, size, i), at, &best, &winner)
    for i in range(steps * some, pixels):
        compare(number(x, size, i), i, &best, &winner)
    scratch = pixel(&p.y, n, c, 0, 0)
    memcpy(scratch, x + winner * size, size)
    if p.argmax.data != NULL:
        winner = winner // p.g.w * p.g.s + winner % p.g.w
        scratch = pixel(&p.argmax, n, c, 0, 0)
        if p.argmax.itemsize == 1:
            (<uint8_t *> scratch)[0] = <uint8_t> winner
        elif p.argmax.itemsize == 2:
            (<uint16_t *> scratch)[0] = <uint16_t> winner
        else:
            (<int32_t *> scratch)[0] = <int32_t> winner


cdef inline void whole_maxima_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pooling *p = <const pooling *> job
    cdef isize n = task // p.tasks_per_plane, some = whole_lanes(p)
    cdef isize c = task % p.tasks_per_plane * p.rows_per_task
    cdef isize end = min(c + p.rows_per_task, p.g.c)
    if p.g.h * p.g.w >= TURNED_PIXELS:
        for c in range(c, end):
            large_maximum(p, n, c, scratch)
        return
    while c < end:
        turned_maxima(p, n, c, min(some, end - c), scratch)
        c += some
