# Where the rows of direct tiles lie: the pixels of a box in the order in which tiles
# take them, what each reads, and where each result goes.

from boxes cimport box, tap_list
from correlate cimport correlation
from geometry cimport ceil_div, pixel
from kernels cimport isize


# A box's pixels in the order in which tiles take them: row by row, or column by
# column where the kernel is wider than high (c.by_columns).
cdef struct pixel_order:
    isize lines, run                    # `lines` times `run` pixels
    isize line_i, line_j, step_i, step_j


cdef inline pixel_order order_of(const correlation *c, const box *where) noexcept nogil:
    cdef pixel_order o
    o.lines, o.run = where.i1 - where.i0, where.j1 - where.j0
    o.line_i, o.line_j, o.step_i, o.step_j = 1, 0, 0, 1
    if c.by_columns:
        o.lines, o.run = o.run, o.lines
        o.line_i, o.line_j, o.step_i, o.step_j = 0, 1, 1, 0
    return o


# Where a pixel of a box lies: its image, its line in it and its place in the line.
cdef struct place:
    isize n, u, v


cdef inline void go_on(const pixel_order *o, place *at, isize count) noexcept nogil:
    """Go on by `count` pixels; a few steps take less time than a division."""
    at.v += count
    while at.v >= o.run:
        at.v -= o.run
        at.u += 1
    while at.u >= o.lines:
        at.u -= o.lines
        at.n += 1


cdef inline bint joins(
    const pixel_order *o, const box *where, const void *const *rows, isize step
) noexcept nogil:
    """Whether a box's rows lie `step` bytes apart, from line to line and image, too."""
    cdef isize image = o.lines * o.run
    cdef const char *first = <const char *> rows[0]
    return (
        (o.lines == 1 or <const char *> rows[o.run] == first + o.run * step)
        and (where.n1 - where.n0 == 1
             or <const char *> rows[image] == first + image * step))


# What a tile's pixels reach in the source.
cdef struct tile_reach:
    place begin
    isize first, count                  # runs of taps: the others meet padding alone
    bint inside                         # no tap of any pixel meets padding
    bint every                          # no run may be left out of any of its pixels


cdef inline tile_reach reach_of(
    const correlation *c, const box *where, const pixel_order *o,
    const place *begin, const place *end,
) noexcept nogil:
    """The reach of the pixels of a box from `begin` to `end`, with both."""
    cdef const tap_list *taps = &c.taps
    cdef isize u0 = begin.u, u1 = end.u, v0 = begin.v, v1 = end.v, last
    cdef isize y0, y1, x0, x1           # source pixels of the kernel's origin
    cdef bint single = taps.rows == 1   # then columns rise as rows do elsewhere
    cdef tile_reach r
    if begin.n != end.n:
        u0, u1 = 0, o.lines - 1
    if u0 != u1 or begin.n != end.n:
        v0, v1 = 0, o.run - 1
    y0 = (where.i0 + u0 * o.line_i + v0 * o.step_i) * taps.sy
    y1 = (where.i0 + u1 * o.line_i + v1 * o.step_i) * taps.sy
    x0 = (where.j0 + u0 * o.line_j + v0 * o.step_j) * taps.sx
    x1 = (where.j0 + u1 * o.line_j + v1 * o.step_j) * taps.sx
    cdef bint high = y0 + taps.dy_min >= 0 and y1 + taps.dy_max < c.src.h
    cdef bint wide = x0 + taps.dx_min >= 0 and x1 + taps.dx_max < c.src.w
    r.inside, r.every = high and wide, high and (wide or not single)
    r.begin = begin[0]
    r.first, r.count = 0, taps.count
    if r.inside:
        return r
    last = taps.count
    while r.first < last and (
            y1 + taps.dy[r.first] < 0 or single and x1 + taps.dx[r.first] < 0):
        r.first += 1
    while last > r.first and (
            y0 + taps.dy[last - 1] >= c.src.h
            or single and x0 + taps.dx[last - 1] >= c.src.w):
        last -= 1
    r.count = last - r.first
    return r


# The columns of taps that some output in columns [j0, j1) does not find in the padding.
cdef struct tap_columns:
    isize all, first, count


cdef inline tap_columns columns_of(
    const correlation *c, isize j0, isize j1
) noexcept nogil:
    cdef const tap_list *taps = &c.taps
    cdef tap_columns k
    k.all = taps.count // max(1, taps.rows)
    k.first, k.count = 0, k.all
    if taps.rows < 2:                   # one row of taps: see reach_of
        return k
    while k.count > 0 and (j1 - 1) * taps.sx + taps.dx[k.first] < 0:
        k.first += 1
        k.count -= 1
    while k.count > 0 and j0 * taps.sx + taps.dx[k.first + k.count - 1] >= c.src.w:
        k.count -= 1
    return k


cdef inline void point_at_source(
    const correlation *c, const box *where, const pixel_order *o, isize group,
    const void **a, const char *band,
) noexcept nogil:
    """Fill a[pixel]: where its taps are counted from, in the band or in src."""
    cdef const tap_list *taps = &c.taps
    cdef isize size = c.kernels.itemsize, n, u, p = 0, _v
    cdef isize row_step, col_step, step
    cdef const char *image
    cdef const char *base
    if c.banded:
        row_step = taps.sy * c.around.row_step * size
        col_step = taps.sx * c.around.channels * size
    else:
        row_step = taps.sy * c.src.step_h * size
        col_step = taps.sx * c.src.step_w * size
    step = o.step_i * row_step + o.step_j * col_step
    for n in range(where.n0, where.n1):
        if c.banded:
            image = band + size * (n - where.n0) * c.around.image_step
        else:
            image = pixel(&c.src, n, group * c.depth + c.depth0,
                          where.i0 * taps.sy, where.j0 * taps.sx)
        for u in range(o.lines):
            base = image + u * (o.line_i * row_step + o.line_j * col_step)
            for _v in range(o.run):
                a[p] = base
                base += step
                p += 1
    for u in range(ceil_div(p, c.tile_rows) * c.tile_rows - p):
        a[p + u] = a[p - 1]             # rows that nobody will store


cdef inline void point_around(
    const correlation *c, const box *where, const pixel_order *o, place at,
    isize count, const void *const *a, const void **to, const char *zeros,
) noexcept nogil:
    """Fill to[run][row] for `count` pixels from `at` on, with zeros for padding."""
    cdef const tap_list *taps = &c.taps
    cdef isize mr = c.tile_rows, runs = taps.count, t, y, x, lane, offset
    cdef isize each = c.depth_now if c.flat else 1
    for t in range(runs):
        offset = c.to[t * each] * c.kernels.itemsize
        for lane in range(mr):
            to[t * mr + lane] = <const char *> a[lane] + offset
    lane = 0
    while lane < count:
        y = (where.i0 + at.u * o.line_i + at.v * o.step_i) * taps.sy
        x = (where.j0 + at.u * o.line_j + at.v * o.step_j) * taps.sx
        while lane < count and at.v < o.run:
            if (y + taps.dy_min < 0 or y + taps.dy_max >= c.src.h
                    or x + taps.dx_min < 0 or x + taps.dx_max >= c.src.w):
                for t in range(runs):
                    if not (0 <= y + taps.dy[t] < c.src.h
                            and 0 <= x + taps.dx[t] < c.src.w):
                        to[t * mr + lane] = zeros
            y += o.step_i * taps.sy
            x += o.step_j * taps.sx
            at.v += 1
            lane += 1
        go_on(o, &at, 0)
    for lane in range(count, mr):       # rows that nobody will store
        for t in range(runs):
            to[t * mr + lane] = zeros


cdef inline void point_at_result(
    const correlation *c, const box *where, const pixel_order *o, isize group,
    void **to, char *tile,
) noexcept nogil:
    """Fill to[pixel]: where each row of C begins, in dst or in the scratch tile."""
    cdef isize n, u, p = 0, _v, size = c.dst.itemsize
    cdef isize row_step, col_step, step
    cdef char *image = tile
    cdef char *row
    if c.direct:
        row_step, col_step = c.dst.step_h * size, c.dst.step_w * size
    else:
        col_step = c.block * size
        row_step = col_step * (where.j1 - where.j0)
    step = o.step_i * row_step + o.step_j * col_step
    for n in range(where.n0, where.n1):
        if c.direct:
            image = pixel(&c.dst, n, group * c.outs, where.i0, where.j0)
        for u in range(o.lines):
            row = image + u * (o.line_i * row_step + o.line_j * col_step)
            for _v in range(o.run):
                to[p] = row
                row += step
                p += 1
        if not c.direct:
            image += o.lines * o.run * col_step
    for u in range(ceil_div(p, c.tile_rows) * c.tile_rows - p):
        to[p + u] = to[p - 1]
