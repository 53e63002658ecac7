# Pooling backward. Max pooling gives the pixel that won a window the window's whole
# error; average pooling gives every pixel of the window its share.

from geometry cimport ceil_div, image, pixel, pool_geometry
from kernels cimport cnn_gather, cnn_scatter, cnn_share, isize
from libc.stdint cimport int64_t
from libc.string cimport memset
from pooling cimport (
    LARGE_PLANE, SENT_BYTES, axis, column_divisor, columns_touched, error_rows,
    most_windows, moved, place, planes_of, pooling, row_divisor, rows_bytes,
    rows_touched, span, stopped, stream_rows, whole_windows,
)

# Planes whose errors max_scatter sends out in turn, if they stay in the first-level
# cache.
cdef enum:
    SIDES = 4
    NEAR_BYTES = 32 << 10

# --- gather: each pixel of grad_x is written once ----------------------------------


cdef inline isize gather_scratch(const pooling *p) noexcept nogil:
    return (
        most_windows(&p.down) * most_windows(&p.across) * <isize> sizeof(cnn_share)
        + 63) // 64 * 64


cdef inline isize gathered_bytes(const pooling *p) noexcept nogil:
    """Scratch of a task, with the rows that it streams away."""
    return p.errors.total + (rows_bytes(&p.x, p.rows_per_task) if p.streamed else 0)


cdef inline isize list_shares(
    const pooling *p, const place *row, const place *column, cnn_share *share
) noexcept nogil:
    """Channels last: what reaches a pixel, windows in row-major order."""
    cdef isize a, b, i, j, shares = 0
    for a in range(row.count):
        i = row.window + a * p.down.window_step
        for b in range(column.count):
            j = column.window + b * p.across.window_step
            share[shares].at = i * p.y.step_h + j * p.y.step_w
            share[shares].code = (
                (row.tap - a * p.down.tap_step) * p.g.s
                + column.tap - b * p.across.tap_step)
            if p.average:
                share[shares].scale = 1.0 / (row_divisor(p, i) * column_divisor(p, j))
            shares += 1
    return shares


cdef inline void gather_pixels(
    const pooling *p, isize n, isize y0, isize y1, char *scratch
) noexcept nogil:
    """Channels last: some rows, the pixels of a row that lie alike in one run."""
    cdef const pool_geometry *g = &p.g
    cdef isize x, y, phase, shares
    cdef const place *column
    cdef cnn_gather q
    q.count, q.phases, q.share, q.shares = g.c, 1, <cnn_share *> scratch, &shares
    q.x_run, q.y_run = g.stride_w * p.x.step_w, p.y.step_w
    for y in range(y0, y1):
        for phase in range(min(g.stride_w, g.w)):
            x = phase
            while x < g.w:
                column = p.column + x
                shares = list_shares(p, p.row + y, column, <cnn_share *> scratch)
                q.runs = column.run
                if p.average:
                    p.kernels.sum_backward(
                        pixel(&p.x, n, 0, y, x), pixel(&p.y, n, 0, 0, 0), &q)
                else:
                    p.kernels.max_backward(
                        pixel(&p.x, n, 0, y, x), pixel(&p.y, n, 0, 0, 0),
                        pixel(&p.argmax, n, 0, 0, 0), <int> p.argmax.itemsize, &q)
                x += column.run * g.stride_w


cdef inline isize phases_of(const pooling *p) noexcept nogil:
    """Phases of a row's pixels that have shares of their own."""
    return min(p.g.stride_w, p.g.w)


cdef inline void plan_planes(pooling *p, isize *table) noexcept nogil:
    """What the tasks in planes copy, and for each phase of columns its windows (from
    the phase's first pixel on) and its taps, in `table`."""
    cdef const pool_geometry *g = &p.g
    cdef error_rows *e = &p.errors
    cdef isize phase, s, start, least = 0, count = 0
    p.columns, p.phase_columns = table, table + 2 * g.s
    for phase in range(phases_of(p)):
        p.phase_columns[phase] = 0
        for s in range(g.s - 1, -1, -1):
            start = phase + g.left - s * g.dilation_w
            if start % g.stride_w == 0:
                table[2 * count], table[2 * count + 1] = start // g.stride_w, s
                least = min(least, start // g.stride_w)
                p.phase_columns[phase] += 1
                count += 1
    # copies begin cache lines
    e.before = ceil_div(-least, p.kernels.lanes) * p.kernels.lanes
    e.copied = p.average or g.stride_w == 1
    for s in range(count):
        # windows side by side, from the first pixel on: errors are read where they lie
        e.copied = e.copied or table[2 * s] != 0
        table[2 * s] += e.before
    e.pitch = e.before + max(
        g.out_w, (g.stride_w - 1 + g.left) // g.stride_w
        + ceil_div(g.w, g.stride_w) + p.kernels.lanes)
    e.pitch = ceil_div(e.pitch, p.kernels.lanes) * p.kernels.lanes
    e.rows = min(g.out_h, 1 + ceil_div(
        p.rows_per_task - 1 + g.dilation_h * (g.r - 1), g.stride_h))
    e.counts = most_windows(&p.down) * g.s * <isize> sizeof(cnn_share)
    e.errors = (e.counts + phases_of(p) * <isize> sizeof(isize) + 63) // 64 * 64
    e.places = e.errors + e.rows * e.pitch * p.x.itemsize
    e.total = (e.places + e.rows * e.pitch * p.argmax.itemsize + 63) // 64 * 64


cdef inline void copy_errors(
    const pooling *p, isize n, isize c, isize i0, isize i1, char *scratch
) noexcept nogil:
    """Between zeros, so that every vector of a row can be read as it is."""
    cdef const pool_geometry *g = &p.g
    cdef const error_rows *e = &p.errors
    cdef isize size = p.x.itemsize, codes = p.argmax.itemsize, i
    cdef isize row = e.pitch * size
    cdef char *to = scratch + e.errors + e.before * size
    if p.average:
        for i in range(i0, i1):
            p.kernels.scale_row(
                to + (i - i0) * row, pixel(&p.y, n, c, i, 0), g.out_w,
                1.0 / row_divisor(p, i), p.divisors)
        return
    p.kernels.copy_rows(
        to, row, pixel(&p.y, n, c, i0, 0), p.y.step_h * size, i1 - i0, g.out_w * size)
    p.kernels.copy_rows(
        scratch + e.places + e.before * codes, e.pitch * codes,
        pixel(&p.argmax, n, c, i0, 0), p.argmax.step_h * codes, i1 - i0,
        g.out_w * codes)


cdef inline void gather_rows(
    const pooling *p, isize n, isize c, isize y0, isize y1, char *scratch
) noexcept nogil:
    """Planes: some rows of one channel, those that lie alike in one run."""
    cdef const pool_geometry *g = &p.g
    cdef isize i0 = g.out_h, i1 = 0
    cdef isize y, a, b, t, phase, shares, phases = phases_of(p)
    cdef const error_rows *e = &p.errors
    cdef cnn_share *share = <cnn_share *> scratch
    cdef isize *counts = <isize *> (scratch + e.counts)
    cdef const char *errors = scratch + e.errors
    cdef const char *places = scratch + e.places
    cdef const isize *column
    cdef const place *row
    cdef cnn_gather q
    for y in range(y0, y1):
        row = p.row + y
        if row.count > 0:
            i0 = min(i0, row.window)
            i1 = max(i1, row.window + (row.count - 1) * p.down.window_step + 1)
    q.count, q.phases, q.share, q.shares = g.w, phases, share, counts
    q.x_run, q.y_run, q.there = g.stride_h * p.x.step_h, e.pitch, e.pitch
    if not e.copied:
        q.y_run, q.there = p.y.step_h, g.out_w
        errors, places = pixel(&p.y, n, c, i0, 0), pixel(&p.argmax, n, c, i0, 0)
    elif i1 > i0:
        copy_errors(p, n, c, i0, i1, scratch)
    for phase in range(min(g.stride_h, y1 - y0)):
        y = y0 + phase
        while y < y1:
            row = p.row + y
            shares = 0
            column = p.columns
            for t in range(phases):
                counts[t] = row.count * p.phase_columns[t]
                for a in range(row.count):
                    for b in range(p.phase_columns[t]):
                        share[shares].at = column[2 * b] + q.y_run * (
                            row.window + a * p.down.window_step - i0)
                        share[shares].code = column[2 * b + 1] + g.s * (
                            row.tap - a * p.down.tap_step)
                        share[shares].scale = 1.0
                        shares += 1
                column += 2 * p.phase_columns[t]
            q.runs = min(row.run, ceil_div(y1 - y, g.stride_h))
            if p.average:
                p.kernels.sum_backward(pixel(&p.x, n, c, y, 0), errors, &q)
            else:
                p.kernels.max_backward(
                    pixel(&p.x, n, c, y, 0), errors, places,
                    <int> p.argmax.itemsize, &q)
            y += q.runs * g.stride_h


cdef inline void gather_task(void *job, isize task, char *scratch) noexcept nogil:
    """Some rows of a plane, of several small ones, or of an image channels-last."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize plane = task // p.tasks_per_plane * p.planes_per_task, n, c
    cdef isize y0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize y1 = min(y0 + p.rows_per_task, g.h)
    cdef pooling there = p[0]
    if not p.channels_last and p.errors.copied:
        memset(
            scratch + p.errors.errors, 0,
            p.errors.rows * p.errors.pitch * p.x.itemsize)
    for plane in range(plane, min(plane + p.planes_per_task, planes_of(p))):
        n, c = plane, 0
        if not p.channels_last:
            n, c = plane // g.c, plane % g.c
        if p.streamed:
            there.x.data = moved(&p.x, n, c, y0, scratch + p.errors.total)
        if p.channels_last:
            gather_pixels(&there, n, y0, y1, scratch)
        else:
            gather_rows(&there, n, c, y0, y1, scratch)
        if p.streamed:
            stream_rows(p, &p.x, &there.x, n, c, y0, y1)


# --- errors go out to their pixels --------------------------------------------------


cdef inline void clear_rows(
    const pooling *p, isize n, isize c, isize y0, isize y1
) noexcept nogil:
    cdef const image *x = &p.x
    cdef isize i, j, rows = y1 - y0, row = p.g.w * (p.g.c if p.channels_last else 1)
    if x.step_h == row:  # one row of all of them
        row *= rows
        rows = 1
    for i in range(y0, y0 + rows):
        if p.channels_last or x.step_w == 1:
            memset(pixel(x, n, c, i, 0), 0, row * x.itemsize)
            continue
        for j in range(p.g.w):
            memset(pixel(x, n, c, i, j), 0, x.itemsize)


cdef inline span windows_of_rows(const pooling *p, isize y0, isize y1) noexcept nogil:
    """Output rows whose windows span some of the rows [y0, y1) of pixels."""
    cdef const pool_geometry *g = &p.g
    cdef span result
    result.first = max(0, ceil_div(
        y0 + g.top - g.dilation_h * (g.r - 1), g.stride_h))
    result.last = max(result.first, min(
        g.out_h, (y1 - 1 + g.top) // g.stride_h + 1))
    return result


cdef inline void plan_sending(pooling *p) noexcept nogil:
    """Where the errors go: in planes to a copy with room for all of the windows, unless
    all lie inside; then where each code's winner lies."""
    cdef const pool_geometry *g = &p.g
    cdef error_rows *e = &p.errors
    cdef isize reach = g.dilation_h * (g.r - 1), code
    cdef isize step_h = p.x.step_h, step_w = p.x.step_w
    e.pitch = max(columns_touched(g), g.left + g.w)
    e.rows = p.rows_per_task + 2 * reach
    e.errors, e.total = 0, e.rows * e.pitch * SIDES * p.x.itemsize
    e.copied = not p.channels_last and e.total <= SENT_BYTES and (
        p.tasks_per_plane > 1 or g.top > 0 or g.left > 0
        or rows_touched(g, g.out_h) > g.h or columns_touched(g) > g.w)
    if p.average:
        e.copied, e.total = False, ((g.out_w - 1) * g.stride_w + g.s) * p.x.itemsize
        return
    if e.copied:
        step_h, step_w = e.pitch, 1
    else:
        e.total = 0
    if p.argmax.itemsize < 8:
        for code in range(g.r * g.s):
            p.winner[code] = (
                code // g.s * g.dilation_h * step_h + code % g.s * g.dilation_w * step_w)


cdef inline void scatter_rows(
    const pooling *p, isize n, isize c, isize planes, isize y0, isize y1, char *scratch
) noexcept nogil:
    """Max: the errors of some planes (or all, channels last) go to their winners, if
    those lie in the rows [y0, y1)."""
    cdef const pool_geometry *g = &p.g
    cdef const error_rows *e = &p.errors
    cdef span rows = windows_of_rows(p, y0, y1)
    cdef span whole = whole_windows(
        g.top + y0, g.dilation_h, g.r, g.stride_h, y1 - y0, g.out_h)
    cdef span inner = whole_windows(
        g.left, g.dilation_w, g.s, g.stride_w, g.w, g.out_w)
    cdef isize i = rows.first, y, side
    cdef char *to
    cdef cnn_scatter q
    q.at, q.taps, q.dilation_h, q.dilation_w = p.winner, g.s, g.dilation_h, g.dilation_w
    q.high, q.wide = 1 + g.dilation_h * (g.r - 1), 1 + g.dilation_w * (g.s - 1)
    q.checked = not e.copied and (
        whole.first > rows.first or whole.last < rows.last
        or inner.first > 0 or inner.last < g.out_w)
    q.rows, q.cols, q.x = y1 - y0, g.w, -g.left
    q.x_side, q.y_side, q.code_side = p.x.step_c, p.y.step_c, p.argmax.step_c
    if p.channels_last:
        q.sides, q.count, q.runs, q.x_step = 1, g.c, g.out_w, 1
        q.x_run, q.y_run = g.stride_w * p.x.step_w, p.y.step_w
        q.code_run = p.argmax.step_w
        q.step, q.down, q.across = 0, 0, g.stride_w
    else:
        q.sides, q.count, q.runs = planes, g.out_w, rows.last - i
        q.x_step, q.x_run = g.stride_w * p.x.step_w, g.stride_h * p.x.step_h
        q.y_run, q.code_run = p.y.step_h, p.argmax.step_h
        q.step, q.down, q.across = g.stride_w, g.stride_h, 0
    if e.copied:
        q.x_step, q.x_run = g.stride_w, g.stride_h * e.pitch
        y = max(0, y0 - (i * g.stride_h - g.top))  # rows of the copy before y0
        q.x_side = (y1 - y0 + y + max(
            0, (rows.last - 1) * g.stride_h - g.top + g.dilation_h * (g.r - 1) + 1 - y1
        )) * e.pitch
        memset(scratch, 0, planes * q.x_side * p.x.itemsize)
        scratch += y * e.pitch * p.x.itemsize  # row y0
    for i in range(i, rows.last):
        q.y = i * g.stride_h - g.top - y0
        if e.copied:
            to = scratch + q.y * e.pitch * p.x.itemsize
        else:
            to = pixel(&p.x, n, c, y0 + q.y, q.x)
        p.kernels.max_scatter(
            to, pixel(&p.y, n, c, i, 0), pixel(&p.argmax, n, c, i, 0),
            <int> p.argmax.itemsize, &q)
        if not p.channels_last or p.interrupted():
            break
    if e.copied:
        for side in range(planes):
            p.kernels.copy(
                pixel(&p.x, n, c + side, y0, 0), p.x.step_h, p.x.step_w,
                scratch + (side * q.x_side + g.left) * p.x.itemsize, e.pitch, 1,
                y1 - y0, g.w)


cdef inline void spread_rows(
    const pooling *p, isize n, isize c, isize y0, isize y1, char *scratch
) noexcept nogil:
    """Mean: a row of errors is spread over columns, then added to its windows' rows."""
    cdef const pool_geometry *g = &p.g
    cdef isize width = (g.out_w - 1) * g.stride_w + g.s, size = p.x.itemsize
    cdef isize used = min(g.w, width - g.left), i, top, y, x
    cdef span rows = windows_of_rows(p, y0, y1)
    for i in range(rows.first, rows.last):
        if stopped(p, i, (g.r + 1) * width):
            return
        top = i * g.stride_h - g.top
        memset(scratch, 0, width * size)
        p.kernels.sum_spread(
            scratch, g.stride_w, g.s, g.out_w, pixel(&p.y, n, c, i, 0),
            1.0 / row_divisor(p, i), p.divisors)
        for y in range(max(y0, top), min(y1, top + g.r)):
            if p.x.step_w == 1:
                p.kernels.add_row(
                    pixel(&p.x, n, c, y, 0), scratch + g.left * size, used)
            else:
                for x in range(used):
                    add_error(p, n, c, y, x, scratch + (g.left + x) * size)


cdef inline void send_task(void *job, isize task, char *scratch) noexcept nogil:
    """As gather_task; windows that reach into the rows of several tasks are met by
    each of them."""
    cdef const pooling *p = <const pooling *> job
    cdef const pool_geometry *g = &p.g
    cdef isize plane = task // p.tasks_per_plane * p.planes_per_task, n, c
    cdef isize y0 = task % p.tasks_per_plane * p.rows_per_task
    cdef isize y1 = min(y0 + p.rows_per_task, g.h)
    cdef isize end = min(plane + p.planes_per_task, planes_of(p)), planes, q
    while plane < end:
        n, c, planes = plane, 0, 1
        if not p.channels_last:
            n, c = plane // g.c, plane % g.c
            if p.errors.total <= NEAR_BYTES:
                planes = min(SIDES, min(end - plane, g.c - c))
        for q in range(planes):
            if not p.errors.copied:
                clear_rows(p, n, c + q, y0, y1)
            if p.average:
                spread_rows(p, n, c + q, y0, y1, scratch)
        if not p.average:
            scatter_rows(p, n, c, planes, y0, y1, scratch)
        plane += planes


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


cdef inline void scatter_indices_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    """Max, from flat indices in the plane."""
    cdef const pooling *p = <const pooling *> job
    cdef isize n = task // p.g.c, c = task % p.g.c, i, j
    cdef int64_t at
    clear_rows(p, n, c, 0, p.g.h)
    for i in range(p.g.out_h):
        if stopped(p, i, p.g.out_w):
            return
        for j in range(p.g.out_w):
            at = (<const int64_t *> pixel(&p.argmax, n, c, i, j))[0]
            if at >= 0:
                add_error(p, n, c, at // p.g.w, at % p.g.w, pixel(&p.y, n, c, i, j))


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
