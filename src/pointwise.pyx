"""Element by element: activations, each forward beside its backward; sums; copies.

Arrays have one shape, one dtype and one dense memory order, which Python has checked.
An output may be an input.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer

from geometry cimport (
    Py_buffer, PyBuffer_Release, ceil_div, hold, image, image_of, pixel,
)
from kernels cimport CNN_RUNTIME, check, cnn_kernels, cnn_runtime, isize, kernels_for

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)

cdef enum:
    TASK_ELEMENTS = 32768

#: In the order of enum CNN_ACT_... of kernels/table.h.
KINDS = {
    name: number for number, name in enumerate(
        ("relu", "relu6", "leaky", "elu", "sigmoid", "tanh", "silu", "hardswish",
         "gelu"))
}

cdef enum task_kind:
    ACTIVATION
    DELTA
    ADD


cdef struct pointwise:
    const cnn_kernels *kernels
    task_kind what
    int kind                            # of activation
    isize count
    char *to
    const char *x                       # or grad_y
    const char *y
    double a, b, c


cdef void pointwise_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pointwise *p = <const pointwise *> job
    cdef isize first = task * TASK_ELEMENTS, at = first * p.kernels.itemsize
    cdef isize count = min(TASK_ELEMENTS, p.count - first)
    if p.what == ACTIVATION:
        p.kernels.activation[p.kind](p.to + at, p.x + at, count, p.a, p.b)
    elif p.what == DELTA:
        p.kernels.delta[p.kind](p.to + at, p.x + at, p.y + at, count, p.a, p.b, p.c)
    else:
        p.kernels.add(p.to + at, p.x + at, p.y + at, count, p.kind)


cdef int run(pointwise *p, object to, object x, object y, double work) except -1:
    """`work`: about what an element costs, in multiply-adds."""
    cdef Py_buffer vt, vx, vy
    cdef int failed
    hold(to, &vt, True)
    hold(x, &vx, False)
    hold(y, &vy, False)
    p.to, p.x, p.y = <char *> vt.buf, <char *> vx.buf, <char *> vy.buf
    p.count = vt.len // vt.itemsize
    p.kernels = kernels_for(runtime, vt.itemsize)
    with nogil:
        failed = runtime.run(
            pointwise_task, p, ceil_div(p.count, TASK_ELEMENTS), 0, work * p.count)
    PyBuffer_Release(&vt)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vy)
    check(failed, "activation")
    return 0


def activate(int kind, x, y, double a=0, double b=0):
    """y = the activation of x; a is a slope, an alpha, or y = a tanh(b x)."""
    cdef pointwise p
    p.what, p.kind = ACTIVATION, kind
    p.a, p.b = a, b
    run(&p, y, x, x, 2.0 if kind < 3 else 10.0)


def delta(int kind, grad_y, kept, grad_x, double a=0, double b=0, double c=0):
    """grad_x from grad_y and y, or x where the delta is no function of y."""
    cdef pointwise p
    p.what, p.kind = DELTA, kind
    p.a, p.b, p.c = a, b, c
    run(&p, grad_x, grad_y, kept, 2.0 if kind < 6 else 10.0)


def add(a, b, y, int activation=0):
    """y = a + b, then nothing (0), ReLU (1) or ReLU6 (2)."""
    cdef pointwise p
    p.what, p.kind = ADD, activation
    run(&p, y, a, b, 2.0)


cdef struct copying:
    const cnn_kernels *kernels
    image src, dst
    isize images_per_task


cdef void copy_task(void *job, isize task, char *scratch) noexcept nogil:
    """Rows of one image: channels x columns, in blocks that are turned if need be."""
    cdef const copying *p = <const copying *> job
    cdef const image *s = &p.src
    cdef const image *d = &p.dst
    cdef isize n, y
    cdef bint joined = (
        s.step_h == s.w * s.step_w and d.step_h == d.w * d.step_w)
    for n in range(task * p.images_per_task, min(s.n, (task + 1) * p.images_per_task)):
        if joined:
            p.kernels.copy(
                pixel(d, n, 0, 0, 0), d.step_c, d.step_w, pixel(s, n, 0, 0, 0),
                s.step_c, s.step_w, s.c, s.h * s.w)
            continue
        for y in range(s.h):
            p.kernels.copy(
                pixel(d, n, 0, y, 0), d.step_c, d.step_w, pixel(s, n, 0, y, 0),
                s.step_c, s.step_w, s.c, s.w)


def copy(src, dst):
    """dst = src: images (N, C, H, W) in any two memory orders."""
    cdef copying p
    cdef Py_buffer vs, vd
    cdef isize count
    cdef int failed
    hold(src, &vs, False)
    hold(dst, &vd, True)
    p.src, p.dst = image_of(&vs), image_of(&vd)
    p.kernels = kernels_for(runtime, vs.itemsize)
    count = vs.len // vs.itemsize
    p.images_per_task = max(1, TASK_ELEMENTS * p.src.n // max(count, 1))
    with nogil:
        failed = runtime.run(
            copy_task, &p, ceil_div(p.src.n, p.images_per_task) if count else 0, 0,
            2.0 * count)
    PyBuffer_Release(&vs)
    PyBuffer_Release(&vd)
    check(failed, "copy")
