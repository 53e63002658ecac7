# The gradient of the bias: the sum of grad_y over images and pixels.

from geometry cimport ceil_div, image, pixel
from kernels cimport cnn_kernels, cnn_runtime, isize, kernels_for
from libc.string cimport memset

# Pixels that are summed at a stretch, before an interrupt is looked for.
cdef enum:
    STRETCH = 1 << 20


# Each task owns some channels and adds image by image, row by row.
cdef struct channel_sum:
    const cnn_kernels *kernels
    image src
    char *dst
    isize some
    int (*interrupted)() noexcept nogil


cdef inline void sum_channels_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const channel_sum *s = <const channel_sum *> job
    cdef isize size = s.kernels.itemsize
    cdef isize c0 = task * s.some, channels = min(s.some, s.src.c - c0)
    cdef isize n, y, x, rows = s.src.h, cols = s.src.w, passed = 0
    cdef char *dst = s.dst + c0 * size
    if s.src.step_h == s.src.w * s.src.step_w:  # without gaps: one long row
        cols *= rows
        rows = 1
    memset(dst, 0, channels * size)
    for n in range(s.src.n):
        memset(scratch, 0, channels * size)
        for y in range(rows):
            for x in range(ceil_div(cols, STRETCH)):
                passed += min(cols, STRETCH)
                if passed > STRETCH:
                    passed = 0
                    if s.interrupted():
                        return
                s.kernels.sum_rows(
                    scratch, pixel(&s.src, n, c0, y, x * STRETCH), s.src.step_c,
                    s.src.step_w, channels, min(cols - x * STRETCH, STRETCH))
        s.kernels.sum_rows(dst, scratch, 1, 0, channels, 1)


cdef inline int sum_channels(
    const cnn_runtime *runtime, image src, char *dst
) noexcept nogil:
    cdef channel_sum s
    s.kernels = kernels_for(runtime, src.itemsize)
    s.src, s.dst = src, dst
    s.interrupted = runtime.interrupted
    s.some = 4 * s.kernels.lanes
    if src.step_c != 1:
        s.some = max(1, src.c // 8)
    return runtime.run(
        sum_channels_task, &s, ceil_div(src.c, s.some), s.some * src.itemsize,
        <double> src.n * src.c * src.h * src.w)
