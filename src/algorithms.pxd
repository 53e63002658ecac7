# Which algorithm a convolution gets, from its geometry alone.

from boxes cimport tap_list
from columns cimport FEW_PIXELS
from correlate cimport (
    COLUMNS, DEPTHWISE, DEPTHWISE_PLANES, DIRECT, PLANES, WINOGRAD, correlation,
)
from depthwise cimport has_pairs, is_along_channels
from direct cimport PANEL_BYTES
from geometry cimport ceil_div, image
from kernels cimport cnn_kernels, cnn_runtime, cnn_winograd, isize
from turned cimport is_turned
from weight_gradient cimport gradient_of_weight
from winograd_patches cimport (
    count_patches, phases_across, phases_down, points_of, products_of, shares_of,
)
from winograd_weights cimport (
    WEIGHT_BYTES, is_fused, is_streamed, rows_of_tiles, winograd_panel_bytes,
)


cdef enum:
    MANY_BYTES = 512 << 10              # transformed weights that fill the caches


cdef inline bint has_shares(
    const cnn_kernels *kernels, const tap_list *taps, isize channels
) noexcept nogil:
    """Whether minimal filtering knows the stride."""
    if taps.sy == 1 and taps.sx == 1:
        return True
    # the channels of all shares lie side by side: whole vectors
    return (
        taps.sy == 2 and taps.sx == 2 and taps.rows > 2
        and taps.count > 2 * taps.rows and channels % kernels.lanes == 0
        and phases_down(taps) == 1 and phases_across(taps) == 1)


cdef inline const cnn_winograd *filtering(
    const cnn_runtime *runtime, const cnn_kernels *kernels, const tap_list *taps,
    isize channels, isize filters, const image *dst, bint packed, bint of_weights,
) noexcept nogil:
    """The minimal filtering that pays for this geometry; NULL for the direct sum.

    Winograd saves products (1 of 4 stays for 3x3, 4 or 9 of 25 for 5x5, 9 of 25 for 2x2,
    4 of 9 for 1x3, 2 of 5 for 1x5, 5 of 14 for 1x7, 4 of 7 for 1x2) and pays with
    transforms of pixels and of weights.
    It is for dense kernels with stride 1, any dilation, or stride 2, and for float32.
    """
    cdef const cnn_winograd *const *at = kernels.winograd
    cdef const cnn_winograd *f
    cdef const cnn_winograd *best = NULL
    # products for a pair of channel and filter
    cdef isize direct = dst.n * dst.h * dst.w * taps.count, products, values
    cdef isize across = phases_across(taps), least = direct
    cdef isize cost, patches, points, empty, weights
    cdef isize all_channels = channels * shares_of(taps)
    cdef bint streamed
    if at == NULL or runtime.strict or not has_shares(kernels, taps, channels):
        return NULL
    if of_weights and taps.sy != 1:
        return NULL
    if channels < 16 or filters < 16:
        return NULL
    # GFLOP/s of 64 and 128 channels: 158 and 160, by Winograd 135 and 178
    if of_weights and taps.count == 2 and min(channels, filters) < 128:
        return NULL
    if not of_weights and dst.n * dst.h * dst.w <= FEW_PIXELS:
        least = 7 * direct // 5     # tiles for few pixels stay half empty
    while at[0] != NULL:
        f = at[0]
        at += 1
        if (f.tap_rows != ceil_div(taps.rows, taps.sy)
                or f.tap_cols != ceil_div(taps.count // taps.rows, taps.sx)):
            continue
        # sums of shares are 4 times as long, and err more: no more points than 36
        if shares_of(taps) > 1 and points_of(f) > 36:
            continue
        patches = count_patches(f, taps, dst)
        values, points = points_of(f) * patches, points_of(f) * shares_of(taps)
        products = products_of(taps, f) * patches
        weights = points * channels * filters * kernels.itemsize
        # phases with few pixels fill patches badly, and copies of them are mostly zeros
        if across > 1 or phases_down(taps) > 1:
            if 2 * products > direct or across > 2 * kernels.mr:
                continue
        # In products: to transform a value of a patch and back costs about 12 (1x7 of
        # 16 channels takes 1.3 times the direct sum's time, 1x5 of 32 channels 0.7
        # times); a value of a weight 32, or 64 through memory, whence tiles get it more
        # slowly, too (3x3 256->256 with 128 patches 0.8 times); in the gradient of
        # weights 20 (512->512 with 8 patches 1.1 times, 16 patches 0.8 times). A task
        # that transforms its weights pays 9, and 19 to pack each of them (256->256 with
        # 4 patches 1.1 times, 8 patches 0.7 times), or 8 for those packed beforehand;
        # values made beforehand are read for 4 (0.7 times with 4 patches). There few
        # patches are rounded up to the rows of tiles. With stride 2 few patches gain
        # less (64->128, 49 patches 0.97 times), and many that read weights from memory
        # more, as V stays in the second-level cache; weights made beforehand are read
        # for more (128->256, 128 patches 1.2 times). Weights too large for the caches
        # are read again for each few patches (256->256: 288 patches 1.1 times, 144 made
        # beforehand 1.3 times).
        # Whole numbers: the caller's floating-point state is left alone.
        cost = products + 12 * values // channels
        cost += 12 * values * shares_of(taps) // filters
        # More points fill tiles and caches less well, all the more where many weights
        # are read: F(6x6, 3x3) leaves 0.8 of the products of F(4x4, 3x3) on large maps
        # and takes 0.87 of the time of 16->16 and 16->32, but as long of 64->64 (1.07 in
        # gradients of 64->32); F(5x5, 3x3) leaves as many of 28x28 and takes 1.15 of the
        # time of 128->128.
        if points > 36 and shares_of(taps) == 1:
            cost += products * (points - 36) // (
                60 if of_weights or weights > MANY_BYTES else 112)
        empty = (rows_of_tiles(kernels, patches) - patches) * points
        streamed = is_streamed(f, all_channels, filters, kernels.itemsize)
        if not of_weights and is_fused(
                f, patches, all_channels, filters, kernels.itemsize, packed):
            cost += 6 * empty // 5 + products * (2 if taps.sy > 1 else 1) // 5
            cost += 8 * points if packed else 9 * points + 19 * taps.count
        elif packed:
            cost += empty + 4 * points
            if streamed and taps.sy > 1:
                cost += 2 * products // 5
        elif of_weights and streamed:
            cost += 3 * products // 10 + 20 * points
        elif patches < kernels.mr:  # tiles of the products would stay half empty
            continue
        elif streamed:
            cost += products * (1 if taps.sy > 1 else 2) // 5 + 64 * points
        else:
            cost += 32 * points
        if taps.sy > 1 and weights > WEIGHT_BYTES:
            cost += products // 5
        if cost < least:
            best, least = f, cost
    return best


cdef inline int choose(const cnn_runtime *runtime, correlation *c) noexcept nogil:
    """Choose the algorithm of a correlation from its geometry."""
    cdef isize few = min(c.depth, c.outs), empty
    c.turned = c.copied = False
    c.winograd = filtering(
        runtime, c.kernels, &c.taps, c.depth, c.outs, &c.dst, c.stays, False)
    if c.winograd != NULL:
        c.fused = is_fused(
            c.winograd, count_patches(c.winograd, &c.taps, &c.dst),
            shares_of(&c.taps) * c.depth, c.outs, c.kernels.itemsize, c.stays)
        if winograd_panel_bytes(c) <= WEIGHT_BYTES:
            return WINOGRAD
    if is_along_channels(c):
        return c.algorithm
    if c.taps.count == 0:
        return DIRECT
    if is_turned(c):
        c.turned = True
        return DIRECT
    # rows of outputs that lie together (not the phases of a strided gradient)
    if has_pairs(c) and c.src.step_w == 1 and c.dst.step_w == 1:
        return DEPTHWISE_PLANES
    if (c.outs >= 16 and not c.transposed and c.dst.n * c.dst.h * c.dst.w <= FEW_PIXELS
            and c.depth * c.outs * c.taps.count >= 1 << 16):
        return COLUMNS
    # vectors of filters would stay half empty (channels-last GFLOP/s by planes and
    # directly: 3x3 8->12 72 and 69, 8->15 71 and 86; 1x1 16->6 17 and 18, 64->12 40 and
    # 68); or few channels, and the result would have to be turned to planes
    empty = 16
    if c.groups == 1 and c.src.step_c == 1 and c.dst.step_c == 1 and c.depth >= 8:
        empty = 0 if c.weight_taps == 1 else 13
    if c.outs < empty or (few < 16 and c.dst.step_c != 1):
        return PLANES
    # one tap does not pay for turning large planes to channels-last and back, nor if
    # every other column is stored (gradient of 1x1, stride 2: 5 to 12 % less time)
    if (c.taps.count == 1 and c.src.step_w == 1
            and c.dst.step_w <= (2 if c.weight_taps == 1 else c.taps.sx)
            and c.dst.n * c.dst.h * c.dst.w >= 256
            and c.depth * c.outs * c.kernels.itemsize <= PANEL_BYTES):
        return COLUMNS
    return DIRECT


cdef inline int choose_gradient(
    const cnn_runtime *runtime, gradient_of_weight *w
) noexcept nogil:
    """Choose the algorithm of a weights' gradient from its geometry."""
    cdef isize size = w.kernels.itemsize, few
    w.winograd = filtering(
        runtime, w.kernels, &w.taps, w.channels, w.filters, &w.grad_y, False,
        True)
    # one vector of filters, and of channels: the transforms cost what they save
    # (GFLOP/s by Winograd and direct: 3x3 16->16 142 and 148, 5x5 123 and 163, but
    # 3x3 16->32 191 and 156)
    if w.winograd != NULL and max(w.channels, w.filters) > w.kernels.lanes:
        return WINOGRAD
    if w.channels == 1 and w.filters == 1 and w.groups > 1:
        if w.x.step_c == 1 and w.grad_y.step_c == 1:
            return DEPTHWISE
        # the widest vectors stay half empty along the rows of small planes (7x7 float32
        # 10 to 20 % slower than PLANES); narrower ones gain there too
        if (w.x.step_w == 1 and w.grad_y.step_w == 1 and (
                w.kernels.lanes * size < 64 or w.grad_y.h * w.grad_y.w * size >= 512)):
            return DEPTHWISE_PLANES
    # vectors of filters would stay half empty (after the exchange with channels), and
    # planes would have to be turned; GFLOP/s direct and by planes: 5x5 1->6 29 and 47,
    # but 3->32 127 and 74; channels-last 3x3 8->8 59 and 30, 12->12 101 and 47
    few = 16 if w.x.step_c != 1 else 8
    return PLANES if w.filters < few else DIRECT
