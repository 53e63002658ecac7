# Depthwise convolution of channels-last arrays: one channel in, one out, a group.
# Lanes are channels. A task takes some channels of a box, copies their band and walks
# along its rows; the gradient of the weights beside the sum itself.

from boxes cimport (
    band, band_elements, band_of, band_offset, box, box_at, boxes, cut, fill_band,
    halve,
)
from correlate cimport aligned, clear_behind, correlation
from geometry cimport ceil_div, pixel
from kernels cimport cnn_kernels, isize
from libc.string cimport memset
from weight_gradient cimport gradient_of_weight, gradient_part, part_of, partial_sums

cdef enum:
    SOME_CHANNELS = 64
    BAND_BYTES = 192 << 10


cdef inline isize depthwise_space(const correlation *c) noexcept nogil:
    return aligned(
        (band_elements(&c.grid, &c.around) + c.kernels.lanes) * c.kernels.itemsize)


cdef inline void depthwise_pack(correlation *c) noexcept nogil:
    """weight[channel][tap] -> panel[some channels][tap][channel], offsets of taps."""
    cdef isize taps = c.weight_taps, size = c.kernels.itemsize, g, t, channels
    for g in range(0, ceil_div(c.groups, c.gang)):
        channels = min(c.gang, c.groups - g * c.gang)
        for t in range(taps):
            if c.order[t] >= 0:
                c.kernels.copy(
                    c.panels + size * (
                        g * c.gang * c.taps.count + c.order[t] * channels), 1, 1,
                    c.weight + size * (g * c.gang * taps + t), taps, 1, channels, 1)
    for t in range(c.taps.count):
        c.to[t] = band_offset(&c.around, &c.taps, t)


cdef inline void depthwise_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const correlation *c = <const correlation *> job
    cdef isize size = c.kernels.itemsize, i
    cdef isize gangs = ceil_div(c.groups, c.gang)
    cdef isize channel = task % gangs * c.gang
    cdef isize channels = min(c.gang, c.groups - channel)
    cdef box where = box_at(&c.grid, task // gangs)
    fill_band(scratch, &c.around, &where, &c.taps, c.kernels, &c.src, channel, channels)
    clear_behind(scratch, band_elements(&c.grid, &c.around), c.kernels)
    for i in range(where.i1 - where.i0):
        c.kernels.depthwise(
            pixel(&c.dst, where.n0, channel, where.i0 + i, where.j0), c.dst.step_w,
            scratch + i * c.taps.sy * c.around.row_step * size,
            c.taps.sx * c.around.channels, c.to, c.taps.count,
            c.panels + channel * c.taps.count * size, channels, where.j1 - where.j0,
            NULL if c.bias == NULL else c.bias_panels + channel * size,
            c.activation)


cdef inline void plan_depthwise(correlation *c) noexcept nogil:
    c.gang = min(c.groups, SOME_CHANNELS)
    c.depth_now = 1
    c.grid = cut(1, c.dst.h, c.dst.w, 1024)
    c.grid.n = c.grid.count_n = c.dst.n
    c.around = band_of(&c.grid, &c.taps, c.gang)
    while band_elements(&c.grid, &c.around) * c.kernels.itemsize > BAND_BYTES:
        if not halve(&c.grid, 16):
            if c.gang == 1:
                break
            c.gang = ceil_div(c.gang, 2)
        c.around = band_of(&c.grid, &c.taps, c.gang)


# --- gradient of the weights -----------------------------------------------------


cdef inline isize depthwise_gradient_space(
    const gradient_of_weight *w
) noexcept nogil:
    cdef band around = band_of(&w.grid, &w.taps, w.some_channels)
    cdef isize size = w.kernels.itemsize
    return aligned(w.part_size * size) + aligned(w.taps.count * 8) + aligned(
        (band_elements(&w.grid, &around) + w.kernels.lanes) * size)


cdef inline void depthwise_gradient_task(
    void *job, isize task, char *scratch
) noexcept nogil:
    cdef const gradient_of_weight *w = <const gradient_of_weight *> job
    cdef isize size = w.kernels.itemsize, b, i, t
    cdef gradient_part part = part_of(w, task)
    cdef band around = band_of(&w.grid, &w.taps, part.channels)
    cdef char *sums = scratch
    cdef isize *at = <isize *> (scratch + aligned(w.part_size * size))
    cdef char *pixels = <char *> at + aligned(w.taps.count * 8)
    cdef box where
    if w.chunks > 1:
        sums = partial_sums(w, task)
    memset(sums, 0, w.taps.count * part.channels * size)
    for t in range(w.taps.count):
        at[t] = band_offset(&around, &w.taps, t)
    for b in range(part.chunk * boxes(&w.grid) // w.chunks,
                   (part.chunk + 1) * boxes(&w.grid) // w.chunks):
        if w.interrupted():
            return
        where = box_at(&w.grid, b)
        fill_band(pixels, &around, &where, &w.taps, w.kernels, &w.x, part.channel0,
                  part.channels)
        clear_behind(pixels, band_elements(&w.grid, &around), w.kernels)
        for i in range(where.i1 - where.i0):
            w.kernels.depthwise_gradient(
                sums,
                pixel(&w.grad_y, where.n0, part.channel0, where.i0 + i, where.j0),
                w.grad_y.step_w, pixels + i * w.taps.sy * around.row_step * size,
                w.taps.sx * around.channels, at, w.taps.count, part.channels,
                where.j1 - where.j0)
    if w.chunks == 1:
        store_depthwise(w, &part, sums)


cdef inline void store_depthwise(
    const gradient_of_weight *w, const gradient_part *p, const char *sums
) noexcept nogil:
    """sums[tap][channel] -> grad_weight[channel][tap]."""
    cdef isize taps = w.taps.count
    w.kernels.copy(
        w.grad_weight + p.channel0 * taps * w.kernels.itemsize, 1, taps,
        sums, p.channels, 1, taps, p.channels)


cdef inline void plan_depthwise_gradient(gradient_of_weight *w) noexcept nogil:
    cdef band around
    # all channels are one group's here: a part is some of them
    w.channels, w.groups = w.groups, 1
    w.some_channels, w.some_filters = min(w.channels, SOME_CHANNELS), 1
    w.grid = cut(1, w.grad_y.h, w.grad_y.w, 1024)
    w.grid.n = w.grid.count_n = w.grad_y.n
    around = band_of(&w.grid, &w.taps, w.some_channels)
    while band_elements(&w.grid, &around) * w.kernels.itemsize > BAND_BYTES:
        if not halve(&w.grid, 16):
            if w.some_channels == 1:
                break
            w.some_channels = ceil_div(w.some_channels, 2)
        around = band_of(&w.grid, &w.taps, w.some_channels)
    w.part_size = w.some_channels * w.taps.count
