# The forward pass of a convolution, and of several that follow each other: a task takes
# some images through all of them, so that what is between stays in its caches.

from correlate cimport correlation
from geometry cimport conv_geometry, image
from kernels cimport CNN_LINEAR, cnn_runtime, isize, kernels_for
from libc.stdlib cimport free
from passes cimport correlate
from taps cimport list_taps, make_tables, tap_tables

cdef enum:
    MAX_LINKS = 8


cdef inline correlation forward_of(
    const conv_geometry *g, tap_tables *tables, image x, const char *weight,
    const char *bias, image y, int activation,
) noexcept nogil:
    cdef correlation c
    list_taps(&c.taps, tables, g, 0, 0, False)
    c.src, c.dst = x, y
    c.groups, c.depth, c.outs = g.groups, g.c // g.groups, g.k // g.groups
    c.weight, c.weight_taps, c.order = weight, g.r * g.s, tables.order
    c.transposed = False
    c.bias, c.activation, c.prepared, c.stays = bias, activation, NULL, False
    return c


cdef inline int run_forward(
    const cnn_runtime *runtime, const conv_geometry *g, image x, const char *weight,
    const char *bias, image y, int activation, char *prepared,
) noexcept nogil:
    cdef tap_tables tables
    cdef correlation c
    cdef int failed
    if make_tables(&tables, g.r * g.s):
        return -1
    c = forward_of(g, &tables, x, weight, bias, y, activation)
    c.prepared, c.stays = prepared, prepared != NULL
    failed = correlate(runtime, &c)
    free(tables.memory)
    return failed


# One convolution of a chain, of as many images as a task takes.
cdef struct link:
    conv_geometry sizes
    const char *weight
    const char *bias
    char *prepared
    int activation


# What is between the convolutions lies channels-last in two halves of a task's scratch
# memory. `residual`, in y's order, is added to y, then `activation`.
cdef struct chain:
    const cnn_runtime *runtime
    link links[MAX_LINKS]
    int count
    image x, y
    const char *residual
    int activation
    isize between                       # elements of one half
    int failed


cdef inline image between_links(const chain *w, int index, char *half) noexcept nogil:
    """What link `index` makes, in a half of the scratch memory."""
    cdef const conv_geometry *g = &w.links[index].sizes
    cdef image i
    i.data, i.itemsize = half, w.x.itemsize
    i.n, i.c, i.h, i.w = g.n, g.k, g.out_h, g.out_w
    i.step_c, i.step_w = 1, i.c
    i.step_h = i.w * i.step_w
    i.step_n = i.h * i.step_h
    return i


cdef inline image some_images(
    const image *all, isize first, isize count
) noexcept nogil:
    cdef image i = all[0]
    i.data += first * i.step_n * i.itemsize
    i.n = count
    return i


cdef inline void chain_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef chain *w = <chain *> job
    cdef isize n = w.links[0].sizes.n, size = w.x.itemsize, values
    cdef image src = some_images(&w.x, task * n, n), dst
    cdef const link *now
    cdef int k, failed
    if w.failed:
        return
    for k in range(w.count):
        now = &w.links[k]
        if k == w.count - 1:
            dst = some_images(&w.y, task * n, n)
        else:
            dst = between_links(w, k, scratch + k % 2 * w.between * size)
        failed = run_forward(
            w.runtime, &now.sizes, src, now.weight, now.bias, dst, now.activation,
            now.prepared)
        if failed:
            w.failed = failed
            return
        src = dst
    if w.residual != NULL:
        values = n * dst.step_n
        kernels_for(w.runtime, size).add(
            dst.data, dst.data, w.residual + task * values * size, values, w.activation)


cdef inline int run_chain(chain *w) noexcept nogil:
    """Run all links on all images; 0, or how it failed."""
    cdef const conv_geometry *g
    cdef double work = 0
    cdef int k, failed
    w.between, w.failed = 0, 0
    for k in range(w.count):
        g = &w.links[k].sizes
        if k < w.count - 1:
            w.between = max(w.between, g.n * g.k * g.out_h * g.out_w)
        work += <double> w.x.n * g.k * g.out_h * g.out_w * (g.c // g.groups * g.r * g.s)
    w.between = (w.between + 15) // 16 * 16
    failed = w.runtime.run(
        chain_task, w, w.x.n // w.links[0].sizes.n, 2 * w.between * w.x.itemsize, work)
    return w.failed if w.failed else failed
