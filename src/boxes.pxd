# How the pixels of a pass are cut into tasks: boxes of whole images, or of rows of
# one image, or of columns of one row. The cut depends on the shape alone.

from geometry cimport ceil_div, even_share, image, pixel
from kernels cimport cnn_kernels, isize
from libc.string cimport memset


cdef struct box_grid:
    isize n, rows, cols                 # of the outputs that are cut
    isize box_n, box_h, box_w           # a box is at most this
    isize count_n, count_h, count_w


cdef struct box:
    isize n0, n1, i0, i1, j0, j1


cdef inline box_grid cut(
    isize n, isize rows, isize cols, isize pixels
) noexcept nogil:
    """Cut into boxes of about `pixels` outputs."""
    cdef box_grid grid
    grid.n, grid.rows, grid.cols = n, rows, cols
    grid.box_n, grid.box_h, grid.box_w = 1, rows, cols
    if rows * cols <= pixels:
        grid.box_n = even_share(n, max(1, pixels // (rows * cols)))
    elif cols <= pixels:
        grid.box_h = even_share(rows, pixels // cols)
    else:
        grid.box_h = 1
        grid.box_w = even_share(cols, pixels)
    count(&grid)
    return grid


cdef inline void count(box_grid *grid) noexcept nogil:
    grid.count_n = ceil_div(grid.n, grid.box_n)
    grid.count_h = ceil_div(grid.rows, grid.box_h)
    grid.count_w = ceil_div(grid.cols, grid.box_w)


cdef inline bint halve(box_grid *grid, isize least) noexcept nogil:
    """Make boxes about half as large; False where they have `least` outputs."""
    if grid.box_n * grid.box_h * grid.box_w <= least:
        return False
    if grid.box_n > 1:
        grid.box_n = ceil_div(grid.box_n, 2)
    elif grid.box_h > 1:
        grid.box_h = ceil_div(grid.box_h, 2)
    else:
        grid.box_w = ceil_div(grid.box_w, 2)
    count(grid)
    return True


cdef inline isize boxes(const box_grid *grid) noexcept nogil:
    return grid.count_n * grid.count_h * grid.count_w


cdef inline isize box_pixels(const box_grid *grid) noexcept nogil:
    return grid.box_n * grid.box_h * grid.box_w


cdef inline box box_at(const box_grid *grid, isize index) noexcept nogil:
    cdef box b
    b.j0 = index % grid.count_w * grid.box_w
    index //= grid.count_w
    b.i0 = index % grid.count_h * grid.box_h
    b.n0 = index // grid.count_h * grid.box_n
    b.j1 = min(b.j0 + grid.box_w, grid.cols)
    b.i1 = min(b.i0 + grid.box_h, grid.rows)
    b.n1 = min(b.n0 + grid.box_n, grid.n)
    return b


# The kernel's taps: source pixel (i*sy + dy, j*sx + dx) for output (i, j). Taps are
# sorted by rows; `wide` of them that lie side by side make one run.
cdef struct tap_list:
    isize count, wide, rows             # rows: distinct dy
    const isize *dy
    const isize *dx
    const isize *row                    # which of the distinct dy
    const isize *row_dy
    isize dy_min, dy_max, dx_min, dx_max
    isize sy, sx


cdef inline bint meets_padding(
    const tap_list *taps, const image *src, const image *dst
) noexcept nogil:
    """Whether a tap of some output of dst lies outside of src."""
    return (
        taps.dy_min < 0 or taps.dx_min < 0
        or (dst.h - 1) * taps.sy + taps.dy_max >= src.h
        or (dst.w - 1) * taps.sx + taps.dx_max >= src.w)


# The source pixels of a box, channels last, zeros where the image ends.
cdef struct band:
    isize rows, cols, channels          # of one image of the box
    isize row_step, image_step          # in elements
    bint single                         # boxes have one row: only its taps' rows


cdef inline band band_of(
    const box_grid *grid, const tap_list *taps, isize channels
) noexcept nogil:
    cdef band b
    b.single = grid.box_h == 1 and taps.rows <= taps.dy_max - taps.dy_min
    b.rows = taps.rows
    if not b.single:
        b.rows = (grid.box_h - 1) * taps.sy + taps.dy_max - taps.dy_min + 1
    b.cols = (grid.box_w - 1) * taps.sx + taps.dx_max - taps.dx_min + 1
    b.channels = channels
    b.row_step = b.cols * channels
    b.image_step = b.rows * b.row_step
    return b


cdef inline isize band_elements(
    const box_grid *grid, const band *b
) noexcept nogil:
    return grid.box_n * b.image_step


cdef inline isize band_offset(
    const band *b, const tap_list *taps, isize tap
) noexcept nogil:
    """Element of the band where tap `tap` of the box's first output lies."""
    cdef isize row = taps.row[tap] if b.single else taps.dy[tap] - taps.dy_min
    return row * b.row_step + (taps.dx[tap] - taps.dx_min) * b.channels


cdef inline void fill_band(
    char *to, const band *b, const box *where, const tap_list *taps,
    const cnn_kernels *kernels, const image *src, isize channel, isize channels,
) noexcept nogil:
    """Copy channels [channel, channel + channels) of a box's source pixels."""
    cdef isize size = kernels.itemsize
    cdef isize n, q, y, x0, x1, first, rows
    cdef char *row
    rows = b.rows
    if not b.single:
        rows = (where.i1 - where.i0 - 1) * taps.sy + taps.dy_max - taps.dy_min + 1
    first = where.j0 * taps.sx + taps.dx_min
    x1 = (where.j1 - 1) * taps.sx + taps.dx_max + 1 - first
    x1 = min(x1, src.w - first)
    x0 = max(0, -first)
    for n in range(where.n0, where.n1):
        row = to + (n - where.n0) * b.image_step * size
        for q in range(rows):
            y = where.i0 * taps.sy + (taps.row_dy[q] if b.single else taps.dy_min + q)
            if y < 0 or y >= src.h or x1 <= x0:
                memset(row, 0, b.row_step * size)
            else:
                if x0 > 0:
                    memset(row, 0, x0 * b.channels * size)
                kernels.copy(
                    row + x0 * b.channels * size, b.channels, 1,
                    pixel(src, n, channel, y, first + x0), src.step_w, src.step_c,
                    x1 - x0, channels,
                )
                if x1 < b.cols:
                    memset(
                        row + x1 * b.channels * size, 0,
                        (b.cols - x1) * b.channels * size,
                    )
            row += b.row_step * size
