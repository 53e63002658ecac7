# The weights of minimal filtering, and what becomes of them: a panel of transformed
# weights (U) for each block, in memory; or panels of weights that the tasks transform.
# What the choice of an algorithm asks.

from correlate cimport correlation, pack_bias, panel, width_of
from geometry cimport ceil_div
from kernels cimport cnn_kernels, cnn_winograd, isize
from libc.string cimport memset
from winograd_patches cimport (
    points_of, share_col, share_range, share_row, shares_at, shares_of,
)

cdef enum:
    # of a pass, in bytes: transformed weights; V, where tasks transform the weights
    WEIGHT_BYTES = 16 << 20
    FUSED_BYTES = 10 << 20
    FUSED_PATCHES = 128
    MOST_WIDE = 64                      # floats of a panel's row
    FUSED_VALUES = 128 * 36             # of a channel


cdef inline bint is_streamed(
    const cnn_winograd *f, isize depth, isize outs, isize size
) noexcept nogil:
    """Whether the transformed weights are more than the second-level cache holds."""
    return points_of(f) * depth * outs * size > 1 << 20


cdef inline bint is_fused(
    const cnn_winograd *f, isize patches, isize depth, isize outs, isize size,
    bint packed,
) noexcept nogil:
    """Whether the tasks transform the weights that they multiply.

    GFLOP/s so and with U in memory, 3x3, AVX-512, one thread: 256->256 with 16 patches
    234 and 124, 64 patches 300 and 265, 128 patches 280 and 277, 196 patches of 128->128
    320 and 336; 512->512 with 16 patches 240 and 135, 128 patches 312 and 171. U that was
    made beforehand is faster (256->256 with 4 patches 144 and 115, 64 patches 340 and
    315), but may be too large (512->512 with 16 patches 270 and 270, in 4 times the
    memory). More points are for fewer patches (64 points, 100 patches: 372 and 408).
    """
    cdef isize weights = points_of(f) * depth * outs * size
    return (
        is_streamed(f, depth, outs, size) and patches <= FUSED_PATCHES
        and patches * points_of(f) <= FUSED_VALUES
        and patches * points_of(f) * depth * size <= FUSED_BYTES
        and (not packed or weights > WEIGHT_BYTES))


cdef inline isize low_rows(const cnn_kernels *kernels, isize patches) noexcept nogil:
    """Rows that low, wide tiles compute for so many patches."""
    return ceil_div(patches, kernels.low_rows) * kernels.low_rows


cdef inline isize high_rows(const cnn_kernels *kernels, isize patches) noexcept nogil:
    """Rows that high tiles compute; the last one may be half a tile."""
    cdef isize mr = kernels.mr, rest = patches % mr
    return patches - rest + (
        mr if 2 * rest > mr else mr // 2 if rest > 0 else 0)


cdef inline bint low_tiles_pay(
    const cnn_kernels *kernels, isize patches
) noexcept nogil:
    return 103 * low_rows(kernels, patches) < 100 * high_rows(kernels, patches)


cdef inline isize rows_of_tiles(
    const cnn_kernels *kernels, isize patches
) noexcept nogil:
    if low_tiles_pay(kernels, patches):
        return low_rows(kernels, patches)
    return high_rows(kernels, patches)


cdef inline isize winograd_panel_bytes(const correlation *c) noexcept nogil:
    """Bytes of a block's panel: transformed weights, or those to be transformed."""
    cdef isize each = points_of(c.winograd) * shares_of(&c.taps)
    if c.fused:
        each = c.taps.count
    return each * c.depth * c.block * c.kernels.itemsize


cdef inline isize winograd_pack_bytes(const correlation *c) noexcept nogil:
    if c.fused:
        return 0
    return c.taps.count * c.depth * c.block * c.kernels.itemsize


cdef inline const char *point_of_panel(
    const correlation *c, isize group, isize block, isize point
) noexcept nogil:
    """The transformed weights of a block at one point, of the shares that it has."""
    cdef isize at = point * shares_of(&c.taps)
    at += shares_at(&c.taps, c.winograd, point).first
    return panel(c, group, block) + c.kernels.itemsize * (
        at * c.depth * width_of(c, block))


cdef inline void order_of_taps(correlation *c) noexcept nogil:
    """c.to[...]: row of each weight in a panel [d][t][m]."""
    cdef isize t, d
    for d in range(1 if c.transposed else c.depth):
        for t in range(c.weight_taps):
            c.to[d * c.weight_taps + t] = (
                d * c.taps.count + c.order[t] if c.order[t] >= 0 else -1)


cdef inline void pack_taps(
    const correlation *c, isize group, isize block, isize first, isize channels,
    char *to,
) noexcept nogil:
    """weight[m, d, t] -> to[d][t][m] for some channels of one group and block."""
    cdef isize size = c.kernels.itemsize, taps = c.weight_taps
    cdef isize width = width_of(c, block), m = block * c.block, d
    cdef isize outs = min(c.outs - m, width)
    if not c.transposed:
        c.kernels.pack(
            to, c.to, width,
            c.weight + size * taps * ((group * c.outs + m) * c.depth + first),
            taps * c.depth, outs, taps * channels)
        return
    for d in range(channels):
        c.kernels.pack(
            to + d * c.taps.count * width * size, c.to, width,
            c.weight + size * taps * (
                (group * c.depth + first + d) * c.outs + m),
            taps, outs, taps)


cdef inline void transform_taps(
    const correlation *c, isize channels, isize width, const char *packed, char *to,
    isize step,
) noexcept nogil:
    """packed[d][t][m] -> U[point][share][d][m], the points `step` elements apart."""
    cdef const cnn_winograd *f = c.winograd
    cdef isize line = width * c.kernels.itemsize, cols = c.taps.count // c.taps.rows
    cdef isize share, d, t, row, col
    cdef const void *taps[25]
    cdef float zeros[MOST_WIDE]
    memset(zeros, 0, sizeof(zeros))
    for share in range(shares_of(&c.taps)):
        for d in range(channels):
            for t in range(f.tap_rows * f.tap_cols):
                row = t // f.tap_cols * c.taps.sy + share_row(&c.taps, share)
                col = t % f.tap_cols * c.taps.sx + share_col(&c.taps, share)
                taps[t] = zeros
                if row < c.taps.rows and col < cols:
                    taps[t] = packed + (d * c.taps.count + row * cols + col) * line
            f.weight(to + d * line, step, taps, width)
        to += channels * line


cdef inline void winograd_pack_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    """Fill the panel of one group and block: weights, transformed or to be so."""
    cdef const correlation *c = <const correlation *> job
    cdef isize group = c.group0 + task // (c.block1 - c.block0)
    cdef isize block = c.block0 + task % (c.block1 - c.block0)
    cdef isize width = width_of(c, block)
    cdef char *to = panel(c, group, block)
    pack_bias(c, group, block)
    if c.fused:
        if c.stays:
            pack_taps(c, group, block, 0, c.depth, to)
        return
    pack_taps(c, group, block, 0, c.depth, scratch)
    transform_taps(
        c, c.depth, width, scratch, to, shares_of(&c.taps) * c.depth * width)
