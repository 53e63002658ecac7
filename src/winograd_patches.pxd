# The patches of minimal filtering: how many pixels they have, how they cover an image,
# and where they lie in it.
#
# A dilated kernel is an undilated one for each phase of the pixels: rows y0, y0 +
# dilation, ... and columns x0, x0 + dilation, ... Rows of a phase are taken for an
# image of their own. The phases of the columns stay together, so that copies run along
# rows: a patch is wide enough for all of them, and there is one for each.
#
# A kernel with stride 2 is the sum of four with stride 1, each for an image of every
# other pixel (a share of the source) and with every other tap. Their channels are summed
# together: the shares of a patch are transformed by themselves, then they are 4 times
# as many channels. Of 3 taps the second share has one, the first: transformed it is zero
# at the point infinity, where that share is left out.

from boxes cimport band, box, box_grid, cut, fill_band, tap_list
from geometry cimport ceil_div, image, pixel
from kernels cimport cnn_inside, cnn_kernels, cnn_winograd, isize


cdef inline isize points_of(const cnn_winograd *f) noexcept nogil:
    return f.rows * f.cols


cdef inline isize shares_of(const tap_list *taps) noexcept nogil:
    """Images of every other pixel; their taps are a kernel each."""
    return taps.sy * taps.sx


cdef inline isize share_row(const tap_list *taps, isize share) noexcept nogil:
    """The first row of a share. Shares that are left out together lie together."""
    return share // 2


cdef inline isize share_col(const tap_list *taps, isize share) noexcept nogil:
    return taps.sx > 1 and share in (0, 3)


cdef inline isize rows_left_out(const tap_list *taps) noexcept nogil:
    """1 if shares of odd rows are zero at infinity, else 0."""
    return taps.rows % taps.sy


cdef inline isize cols_left_out(const tap_list *taps) noexcept nogil:
    return taps.count // taps.rows % taps.sx


# The shares that are multiplied at a point.
cdef struct share_range:
    isize first, count


cdef inline share_range shares_at(
    const tap_list *taps, const cnn_winograd *f, isize point
) noexcept nogil:
    cdef share_range r
    cdef isize end = shares_of(taps)
    r.first = 0
    if point // f.cols == f.rows - 1 and rows_left_out(taps):
        end = 2
    if point % f.cols == f.cols - 1 and cols_left_out(taps):
        r.first, end = 1, min(end, 3)
    r.count = end - r.first
    return r


cdef inline isize products_of(
    const tap_list *taps, const cnn_winograd *f
) noexcept nogil:
    """Products of a patch for each channel and filter."""
    return (
        (f.rows * taps.sy - rows_left_out(taps))
        * (f.cols * taps.sx - cols_left_out(taps)))


cdef inline isize summed_at_once(
    const cnn_winograd *f, const tap_list *taps
) noexcept nogil:
    """Channels that are summed one after the other.

    A longer sum is cut: it would exceed what set_precision promises. Errors of 512
    channels as one sum and so, of the norm: 8 points along both axes, 3x3, 8.5e-6 and
    3.8e-6; 7 points 6.8e-6 and 3.6e-6. (10 points, 1x7 of 256 channels: 3.0e-6.) Of
    fewer points any number of channels is summed; but with stride 2 the shares count
    (6 points along both axes, 3x3 of 512 channels, 6.0e-6 as one sum).
    """
    cdef isize points = points_of(f)
    if points == 10:
        return 256
    if points == 36 and shares_of(taps) > 1:
        return 512
    return 96 if points == 64 else 128 if points == 49 else 1 << 30


cdef inline isize phases_down(const tap_list *taps) noexcept nogil:
    """The dilation of the rows."""
    if taps.rows == 1:
        return 1
    return (taps.dy_max - taps.dy_min) // (taps.rows - 1)


cdef inline isize phases_across(const tap_list *taps) noexcept nogil:
    """The dilation of the columns."""
    if taps.count == taps.rows:
        return 1
    return (taps.dx_max - taps.dx_min) // (taps.count // taps.rows - 1)


cdef inline box_grid cut_patches(
    const cnn_winograd *f, const tap_list *taps, const image *dst, isize patches
) noexcept nogil:
    """Cut the outputs into boxes of about this many patches."""
    cdef isize down = phases_down(taps), across = phases_across(taps)
    return cut(
        dst.n * down, ceil_div(ceil_div(dst.h, down), f.out_rows),
        ceil_div(dst.w, f.out_cols * across), max(1, patches // across))


cdef inline isize along(isize size, isize dilation, isize outputs) noexcept nogil:
    """Patches of `outputs` along one side of an image, in all phases."""
    cdef isize longer = size % dilation
    return (
        longer * ceil_div(ceil_div(size, dilation), outputs)
        + (dilation - longer) * ceil_div(size // dilation, outputs))


cdef inline isize count_patches(
    const cnn_winograd *f, const tap_list *taps, const image *dst
) noexcept nogil:
    return (
        dst.n * along(dst.h, phases_down(taps), f.out_rows)
        * along(dst.w, phases_across(taps), f.out_cols))


cdef inline tap_list rectangle(
    isize rows, isize cols, isize y, isize x, isize step_y, isize step_x
) noexcept nogil:
    """Pixels side by side, as taps: the first at (y, x), moved by the steps."""
    cdef tap_list taps
    taps.rows, taps.wide, taps.count = rows, cols, rows * cols
    taps.dy = taps.dx = taps.row = taps.row_dy = NULL
    taps.dy_min, taps.dy_max = y, y + rows - 1
    taps.dx_min, taps.dx_max = x, x + cols - 1
    taps.sy, taps.sx = step_y, step_x
    return taps


cdef inline tap_list patch_taps(
    const tap_list *taps, const cnn_winograd *f
) noexcept nogil:
    """The pixels of the patches of all phases of columns."""
    cdef isize across = phases_across(taps)
    return rectangle(f.rows * taps.sy, f.cols * across * taps.sx, taps.dy_min,
                     taps.dx_min, f.out_rows * taps.sy, f.out_cols * across * taps.sx)


cdef inline tap_list error_taps(
    const tap_list *taps, const cnn_winograd *f
) noexcept nogil:
    """The errors of the patches of all phases of columns."""
    cdef isize wide = f.out_cols * phases_across(taps)
    return rectangle(f.out_rows, wide, 0, 0, f.out_rows, wide)


# The rows of a phase of one image; row i of dst needs rows i + dy, ... of src.
cdef struct phase:
    image src, dst
    isize dy


cdef inline isize take_every(
    char **data, isize *count, isize *step, isize size, isize first, isize every
) noexcept nogil:
    """See pixels first, first + every, ... alone; return where `first` is then."""
    cdef isize at = (first % every + every) % every
    data[0] += at * step[0] * size
    count[0] = max(0, ceil_div(count[0] - at, every))
    step[0] *= every
    return (first - at) // every


cdef inline phase phase_of(
    const image *src, const image *dst, const tap_list *taps, isize index
) noexcept nogil:
    cdef phase p
    cdef isize down = phases_down(taps), n = index // down, first = index % down
    p.src, p.dst = src[0], dst[0]
    p.src.n = p.dst.n = 1
    p.src.data, p.dst.data = pixel(src, n, 0, 0, 0), pixel(dst, n, 0, 0, 0)
    take_every(&p.dst.data, &p.dst.h, &p.dst.step_h, dst.itemsize, first, down)
    p.dy = take_every(
        &p.src.data, &p.src.h, &p.src.step_h, src.itemsize, first + taps.dy_min, down)
    return p


cdef inline void fill_phase(
    char *to, const band *b, const box *where, tap_list *patch, isize dy,
    const cnn_kernels *kernels, const image *src, isize channel, isize channels,
) noexcept nogil:
    """Copy what the patches of a box need of one phase, in its place in the band."""
    cdef box one = where[0]
    one.n0, one.n1 = 0, 1
    patch.dy_max += dy - patch.dy_min
    patch.dy_min = dy
    fill_band(to, b, &one, patch, kernels, src, channel, channels)


cdef inline cnn_inside inside_of(
    const image *src, isize row, isize col, isize down, isize across
) noexcept nogil:
    """What an image has of the patch at row and col, of every `down`-th row."""
    cdef cnn_inside there
    there.row0 = ceil_div(-row, down) if row < 0 else 0
    there.row1 = ceil_div(src.h - row, down) if row < src.h else 0
    there.col0 = ceil_div(-col, across) if col < 0 else 0
    there.col1 = ceil_div(src.w - col, across) if col < src.w else 0
    return there
