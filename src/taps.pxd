# The taps of a forward pass, or of a phase of its adjoint, as tables of integers.

from boxes cimport tap_list
from geometry cimport conv_geometry
from kernels cimport isize
from libc.stdlib cimport malloc


cdef struct tap_tables:
    isize *memory
    isize *dy
    isize *dx
    isize *row
    isize *row_dy
    isize *order


cdef inline int make_tables(tap_tables *t, isize taps) noexcept nogil:
    t.memory = <isize *> malloc(5 * max(taps, 1) * sizeof(isize))
    if t.memory == NULL:
        return -1
    t.dy = t.memory
    t.dx = t.dy + taps
    t.row = t.dx + taps
    t.row_dy = t.row + taps
    t.order = t.row_dy + taps
    return 0


cdef inline void list_taps(
    tap_list *taps, tap_tables *t, const conv_geometry *g,
    isize phase_y, isize phase_x, bint backward,
) noexcept nogil:
    """List the taps of a forward pass, or of one phase of its adjoint.

    Forward: dy = r*dilation - top. Backward, for the input rows phase, phase +
    stride, ...: the outputs at dy = (phase + top - r*dilation) / stride, if whole.
    """
    cdef isize r, s, q, rr, ss, up, left, count = 0, in_row = 0, rows = 0
    cdef bint side_by_side = True
    for q in range(g.r * g.s):
        t.order[q] = -1
    for rr in range(g.r):
        # backwards r gives rising dy
        r = g.r - 1 - rr if backward else rr
        up = r * g.dilation_h - g.top
        if backward:
            up = phase_y - up
            if up % g.stride_h:
                continue
            up //= g.stride_h
        in_row = 0
        for ss in range(g.s):
            s = g.s - 1 - ss if backward else ss
            left = s * g.dilation_w - g.left
            if backward:
                left = phase_x - left
                if left % g.stride_w:
                    continue
                left //= g.stride_w
            t.dy[count] = up
            t.dx[count] = left
            t.row[count] = rows
            t.order[r * g.s + s] = count
            if in_row > 0 and left != t.dx[count - 1] + 1:
                side_by_side = False
            in_row += 1
            count += 1
        if in_row > 0:
            t.row_dy[rows] = up
            rows += 1
    taps.count, taps.rows = count, rows
    taps.wide = count // rows if rows > 0 and side_by_side else 1
    taps.dy, taps.dx, taps.row, taps.row_dy = t.dy, t.dx, t.row, t.row_dy
    taps.dy_min = taps.dy_max = taps.dx_min = taps.dx_max = 0
    if count > 0:
        taps.dy_min, taps.dy_max = t.dy[0], t.dy[count - 1]
        taps.dx_min, taps.dx_max = t.dx[0], t.dx[count - 1]
    taps.sy = taps.sx = 1
    if not backward:
        taps.sy, taps.sx = g.stride_h, g.stride_w
