"""Convolution: the forward pass beside its three backward passes.

Every function takes the sizes of a ConvGeometry and arrays that Python has checked,
and overwrites its result. Weights and biases are contiguous.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from algorithms cimport choose, choose_gradient
from channel_sums cimport sum_channels
from columns_adjoint cimport (
    adjoint_space_of, adjoint_task, few_errors, gradient_of_input, plan_adjoint,
)
from correlate cimport (
    COLUMNS, DEPTHWISE, DEPTHWISE_PLANES, DIRECT, DOTS, GROUPED, PLANES, WINOGRAD,
    correlation,
)
from depthwise cimport correlate_depthwise, is_along_channels
from depthwise_planes cimport correlate_plane_phases, is_phased_planes
from forward cimport MAX_LINKS, chain, forward_of, run_chain, run_forward
from geometry cimport (
    Py_buffer, PyBuffer_Release, conv_geometry, conv_sizes, hold, image, image_of,
    pixel,
)
from kernels cimport (
    CNN_LINEAR, CNN_RUNTIME, check, cnn_runtime, isize, kernels_for,
)
from passes cimport correlate, prepare, prepared_bytes, weight_gradient
from tap_sums cimport run_tap_sums, taps_are_summed
from taps cimport list_taps, make_tables, tap_tables
from weight_gradient cimport (
    exchange, exchange_pays, gradient_of_weight, join_rows,
)

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)


cdef correlation backward_of(
    const conv_geometry *g, tap_tables *tables, image grad_y, const char *weight,
    image grad_x, isize py, isize px,
) noexcept nogil:
    """The phase of grad_x's rows py, py + stride, ... and columns px, ..."""
    cdef correlation c
    list_taps(&c.taps, tables, g, py, px, True)
    c.src, c.dst = grad_y, grad_x
    c.dst.data += grad_x.itemsize * (py * grad_x.step_h + px * grad_x.step_w)
    c.dst.h = (g.h - py + g.stride_h - 1) // g.stride_h
    c.dst.w = (g.w - px + g.stride_w - 1) // g.stride_w
    c.dst.step_h *= g.stride_h
    c.dst.step_w *= g.stride_w
    c.groups, c.depth, c.outs = g.groups, g.k // g.groups, g.c // g.groups
    c.weight, c.weight_taps, c.order = weight, g.r * g.s, tables.order
    c.transposed = True
    c.bias, c.activation, c.prepared, c.stays = NULL, CNN_LINEAR, NULL, False
    c.kernels = kernels_for(runtime, grad_x.itemsize)
    c.block = c.kernels.lanes * c.kernels.vectors
    return c


cdef int run_phases(
    const conv_geometry *g, image grad_y, const char *weight, image grad_x,
    int algorithm,
) noexcept nogil:
    """All phases in one pass: their pixels are neighbours."""
    cdef isize down = min(g.stride_h, g.h), across = min(g.stride_w, g.w), p
    cdef isize made = 0
    cdef int failed = -1
    cdef tap_tables *tables = <tap_tables *> malloc(
        down * across * (sizeof(tap_tables) + sizeof(correlation)))
    cdef correlation *phase = <correlation *> (tables + down * across)
    if tables == NULL:
        return -1
    while made < down * across and not make_tables(tables + made, g.r * g.s):
        phase[made] = backward_of(
            g, tables + made, grad_y, weight, grad_x, made // across, made % across)
        phase[made].algorithm = algorithm
        made += 1
    if made == down * across:
        if algorithm == DEPTHWISE_PLANES:
            failed = correlate_plane_phases(
                runtime, phase, down, across, grad_x.step_h)
        else:
            failed = correlate_depthwise(runtime, phase, down, across, NULL)
    for p in range(made):
        free(tables[p].memory)
    free(tables)
    return failed


cdef gradient_of_input gradient_from(
    const conv_geometry *g, tap_tables *tables, image grad_y, const char *weight,
    image grad_x,
) noexcept nogil:
    cdef gradient_of_input a
    list_taps(&a.taps, tables, g, 0, 0, False)
    a.grad_y, a.grad_x, a.weight = grad_y, grad_x, weight
    a.groups, a.channels, a.filters = g.groups, g.c // g.groups, g.k // g.groups
    a.kernels = kernels_for(runtime, grad_x.itemsize)
    plan_adjoint(&a)
    return a


cdef bint is_filtered(correlation *c) noexcept nogil:
    """Whether the gradient of the input is one correlation by minimal filtering."""
    return c.taps.count == c.weight_taps and choose(runtime, c) == WINOGRAD


cdef bint is_dense(const image *i) noexcept nogil:
    """Whether each image's values lie side by side, in either memory order."""
    return i.step_h == i.w * i.step_w and (
        i.step_c == 1 and i.step_w == i.c
        or i.step_w == 1 and i.step_c == i.h * i.step_h)


cdef void clear_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const image *i = <const image *> job
    memset(pixel(i, task, 0, 0, 0), 0, i.c * i.h * i.w * i.itemsize)


cdef int run_backward_input(
    const conv_geometry *g, image grad_y, const char *weight, image grad_x
) noexcept nogil:
    """Each of the stride_h * stride_w phases of grad_x is a plain correlation."""
    cdef tap_tables tables
    cdef correlation c
    cdef gradient_of_input a
    cdef isize down = min(g.stride_h, g.h), across = min(g.stride_w, g.w), phase
    cdef bint cleared
    cdef int failed = 0
    if make_tables(&tables, g.r * g.s):
        return -1
    c = backward_of(g, &tables, grad_y, weight, grad_x, 0, 0)
    if few_errors(g, c.kernels) and not is_filtered(&c):
        a = gradient_from(g, &tables, grad_y, weight, grad_x)
        failed = runtime.run(
            adjoint_task, &a, a.groups * a.parts, adjoint_space_of(&a).total,
            <double> a.groups * a.filters * a.channels * g.r * g.s
            * grad_y.n * grad_y.h * grad_y.w)
        free(tables.memory)
        return failed
    if (taps_are_summed(g, c.kernels, grad_y.step_c == 1)
            and not is_filtered(&c)):
        list_taps(&c.taps, &tables, g, 0, 0, False)
        failed = run_tap_sums(
            runtime, c.kernels, g, &c.taps, grad_y, weight, grad_x)
        free(tables.memory)
        return failed
    if g.n > 0 and (
            is_phased_planes(&c, g.stride_h, g.stride_w) or is_along_channels(&c)):
        free(tables.memory)
        return run_phases(g, grad_y, weight, grad_x, c.algorithm)
    # more phases than taps: some have none (1x1, stride 2: planes 60 to 100 GFLOP/s)
    cleared = down * across > g.r * g.s and is_dense(&grad_x)
    if cleared:
        failed = runtime.run(
            clear_task, &grad_x, g.n, 0, <double> g.n * g.c * g.h * g.w)
    for phase in range(down * across):
        if failed:
            break
        if phase > 0:
            c = backward_of(g, &tables, grad_y, weight, grad_x,
                            phase // across, phase % across)
        if c.taps.count > 0 or not cleared:
            failed = correlate(runtime, &c)
    free(tables.memory)
    return failed


cdef gradient_of_weight gradient_of(
    const conv_geometry *g, tap_tables *tables, image grad_y, image x,
    char *grad_weight,
) noexcept nogil:
    cdef gradient_of_weight w
    list_taps(&w.taps, tables, g, 0, 0, False)
    w.x, w.grad_y, w.grad_weight = x, grad_y, grad_weight
    w.interrupted = runtime.interrupted
    w.groups, w.channels, w.filters = g.groups, g.c // g.groups, g.k // g.groups
    w.exchanged = False
    join_rows(&w)
    if exchange_pays(&w):
        exchange(&w)
        list_taps(&w.taps, tables, g, 0, 0, True)
    return w


cdef int run_backward_weight(
    const conv_geometry *g, image grad_y, image x, char *grad_weight
) noexcept nogil:
    cdef tap_tables tables
    cdef gradient_of_weight w
    cdef int failed
    if make_tables(&tables, g.r * g.s):
        return -1
    w = gradient_of(g, &tables, grad_y, x, grad_weight)
    failed = weight_gradient(runtime, &w)
    free(tables.memory)
    return failed


def conv2d(object sizes, x, weight, bias, y, int activation=CNN_LINEAR, prepared=None):
    """y[n,k] = bias[k] + sum over c, r, s of weight[k,c,r,s] * x[n,c] shifted.

    activation: 0, 1 (ReLU) or 2 (ReLU6). `prepared` is what prepare_conv2d made of
    weight and bias, or None.
    """
    cdef conv_geometry g = conv_sizes(sizes)
    cdef Py_buffer vx, vw, vb, vy, vp
    cdef const char *b = NULL
    cdef char *p = NULL
    cdef int failed
    hold(x, &vx, False)
    hold(weight, &vw, False)
    hold(y, &vy, True)
    if bias is not None:
        hold(bias, &vb, False)
        b = <const char *> vb.buf
    if prepared is not None:
        hold(prepared, &vp, False)
        p = <char *> vp.buf
    with nogil:
        failed = run_forward(
            runtime, &g, image_of(&vx), <const char *> vw.buf, b, image_of(&vy),
            activation, p)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vw)
    PyBuffer_Release(&vy)
    if bias is not None:
        PyBuffer_Release(&vb)
    if prepared is not None:
        PyBuffer_Release(&vp)
    check(failed, "conv2d")


def conv2d_chain(tuple links, x, y, residual=None, int activation=CNN_LINEAR):
    """Convolutions one after the other, by tasks of some images each.

    links: for each the arguments (sizes, weight, bias, activation, prepared) of `conv2d`
    and `prepare_conv2d`, for as many images as a task takes, a divisor of x's; what is
    between them lies channels-last. Then y += residual, which lies as y, densely, and the
    activation.
    """
    cdef chain w
    cdef Py_buffer views[3 * MAX_LINKS + 3]
    cdef int count = 0, failed, k
    w.runtime, w.count, w.activation = runtime, <int> len(links), activation
    w.residual = NULL
    if not 0 < w.count <= MAX_LINKS:
        raise ValueError(f"a chain has 1 to {MAX_LINKS} links, got {w.count}")
    try:
        hold(x, &views[count], False)
        w.x = image_of(&views[count])
        count += 1
        hold(y, &views[count], True)
        w.y = image_of(&views[count])
        count += 1
        if residual is not None:
            hold(residual, &views[count], False)
            w.residual = <const char *> views[count].buf
            count += 1
        for k in range(w.count):
            sizes, weight, bias, end, prepared = links[k]
            w.links[k].sizes, w.links[k].activation = conv_sizes(sizes), end
            w.links[k].bias = w.links[k].prepared = NULL
            hold(weight, &views[count], False)
            w.links[k].weight = <const char *> views[count].buf
            count += 1
            if bias is not None:
                hold(bias, &views[count], False)
                w.links[k].bias = <const char *> views[count].buf
                count += 1
            if prepared is not None:
                hold(prepared, &views[count], False)
                w.links[k].prepared = <char *> views[count].buf
                count += 1
        with nogil:
            failed = run_chain(&w)
    finally:
        for k in range(count):
            PyBuffer_Release(&views[k])
    check(failed, "conv2d_chain")


def prepare_conv2d(
    object sizes, weight, bias, bint x_last, bint y_last, prepared=None
):
    """Pack weight and bias for conv2d; with None, return the bytes that this takes.

    x_last, y_last: whether x and y will lie channels-last.
    `prepared` is a buffer of that size, aligned to 64 bytes. 0 bytes: this geometry
    uses weights as they lie.
    """
    cdef conv_geometry g = conv_sizes(sizes)
    cdef tap_tables tables
    cdef Py_buffer vw, vb, vp
    cdef correlation c
    cdef isize size = 0
    cdef int failed = 0
    check(make_tables(&tables, g.r * g.s), "prepare_conv2d")
    hold(weight, &vw, False)
    c = forward_of(
        &g, &tables,
        dense_image(vw.itemsize, g.n, g.c, g.h, g.w, x_last),
        <const char *> vw.buf, NULL,
        dense_image(vw.itemsize, g.n, g.k, g.out_h, g.out_w, y_last),
        CNN_LINEAR)
    c.stays = True
    if prepared is None:
        size = prepared_bytes(runtime, &c)
    else:
        hold(prepared, &vp, True)
        c.prepared = <char *> vp.buf
        if bias is not None:
            hold(bias, &vb, False)
            c.bias = <const char *> vb.buf
        with nogil:
            failed = prepare(runtime, &c)
        PyBuffer_Release(&vp)
        if bias is not None:
            PyBuffer_Release(&vb)
    PyBuffer_Release(&vw)
    free(tables.memory)
    check(failed, "prepare_conv2d")
    return size


def conv2d_backward_input(object sizes, grad_y, weight, grad_x):
    """grad_x: the adjoint of conv2d in x."""
    cdef conv_geometry g = conv_sizes(sizes)
    cdef Py_buffer vg, vw, vx
    cdef int failed
    hold(grad_y, &vg, False)
    hold(weight, &vw, False)
    hold(grad_x, &vx, True)
    with nogil:
        failed = run_backward_input(
            &g, image_of(&vg), <const char *> vw.buf, image_of(&vx))
    PyBuffer_Release(&vg)
    PyBuffer_Release(&vw)
    PyBuffer_Release(&vx)
    check(failed, "conv2d_backward_input")


def conv2d_backward_weight(object sizes, grad_y, x, grad_weight):
    """grad_weight[k,c,r,s] = sum over images and pixels of grad_y * x shifted."""
    cdef conv_geometry g = conv_sizes(sizes)
    cdef Py_buffer vg, vx, vw
    cdef int failed
    hold(grad_y, &vg, False)
    hold(x, &vx, False)
    hold(grad_weight, &vw, True)
    with nogil:
        failed = run_backward_weight(
            &g, image_of(&vg), image_of(&vx), <char *> vw.buf)
    PyBuffer_Release(&vg)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vw)
    check(failed, "conv2d_backward_weight")


def conv2d_backward_bias(grad_y, grad_bias):
    """grad_bias[k] = sum of grad_y over images and pixels."""
    cdef Py_buffer vg, vb
    cdef int failed
    hold(grad_y, &vg, False)
    hold(grad_bias, &vb, True)
    with nogil:
        failed = sum_channels(runtime, image_of(&vg), <char *> vb.buf)
    PyBuffer_Release(&vg)
    PyBuffer_Release(&vb)
    check(failed, "conv2d_backward_bias")


cdef image dense_image(
    isize itemsize, isize n, isize c, isize h, isize w, bint channels_last
) noexcept nogil:
    """The sizes and steps of an array that is not there."""
    cdef image i
    i.data, i.itemsize = NULL, itemsize
    i.n, i.c, i.h, i.w = n, c, h, w
    i.step_n = c * h * w
    i.step_c, i.step_h, i.step_w = h * w, w, 1
    if channels_last:
        i.step_c, i.step_h, i.step_w = 1, w * c, c
    return i


def algorithms(object sizes, isize itemsize, bint channels_last):
    """Names of the algorithms of forward, backward_input and backward_weight."""
    cdef conv_geometry g = conv_sizes(sizes)
    cdef tap_tables tables
    cdef correlation c
    cdef gradient_of_weight w
    cdef image x = dense_image(itemsize, g.n, g.c, g.h, g.w, channels_last)
    cdef image y = dense_image(itemsize, g.n, g.k, g.out_h, g.out_w, channels_last)
    names = {
        DIRECT: "direct", PLANES: "planes", DEPTHWISE: "depthwise",
        WINOGRAD: "winograd", COLUMNS: "columns",
        DEPTHWISE_PLANES: "depthwise-planes", GROUPED: "grouped", DOTS: "dots",
    }
    check(make_tables(&tables, g.r * g.s), "explain_conv2d")
    c = forward_of(&g, &tables, x, NULL, NULL, y, CNN_LINEAR)
    c.kernels = kernels_for(runtime, itemsize)
    c.block = c.kernels.lanes * c.kernels.vectors
    forward = names[choose(runtime, &c)]
    c = backward_of(&g, &tables, y, NULL, x, 0, 0)
    backward_input = names[choose(runtime, &c)]
    if is_phased_planes(&c, g.stride_h, g.stride_w):
        backward_input = names[DEPTHWISE_PLANES]
    if not is_filtered(&c) and (
            few_errors(&g, c.kernels)
            or taps_are_summed(&g, c.kernels, channels_last)):
        backward_input = names[COLUMNS]
    w = gradient_of(&g, &tables, y, x, NULL)
    w.kernels = kernels_for(runtime, itemsize)
    backward_weight = names[choose_gradient(runtime, &w)]
    free(tables.memory)
    return forward, backward_input, backward_weight
