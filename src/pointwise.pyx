"""Activations, element by element: each forward beside its backward.

Arrays have one shape and one dense memory order, which Python has checked.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer

from geometry cimport Py_buffer, PyBuffer_Release, ceil_div, hold
from kernels cimport CNN_RUNTIME, check, cnn_kernels, cnn_runtime, isize, kernels_for

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)

cdef enum:
    TASK_ELEMENTS = 32768

cdef enum kind:
    RELU
    RELU_BACKWARD
    QUADRATIC_BACKWARD


cdef struct pointwise:
    const cnn_kernels *kernels
    kind what
    isize count
    char *to
    const char *x                       # or grad_y
    const char *y
    double a, b, c


cdef void pointwise_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const pointwise *p = <const pointwise *> job
    cdef isize first = task * TASK_ELEMENTS, at = first * p.kernels.itemsize
    cdef isize count = min(TASK_ELEMENTS, p.count - first)
    if p.what == RELU:
        p.kernels.relu(p.to + at, p.x + at, count)
    elif p.what == RELU_BACKWARD:
        p.kernels.relu_backward(p.to + at, p.x + at, p.y + at, count)
    else:
        p.kernels.quadratic_backward(
            p.to + at, p.x + at, p.y + at, count, p.a, p.b, p.c)


cdef int run(pointwise *p, object to, object x, object y) except -1:
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
            pointwise_task, p, ceil_div(p.count, TASK_ELEMENTS), 0, 2.0 * p.count)
    PyBuffer_Release(&vt)
    PyBuffer_Release(&vx)
    PyBuffer_Release(&vy)
    check(failed, "activation")
    return 0


def relu(x, y):
    """y = max(x, 0)."""
    cdef pointwise p
    p.what = RELU
    run(&p, y, x, x)


def relu_backward(grad_y, y, grad_x):
    """grad_x = grad_y where y > 0, else 0."""
    cdef pointwise p
    p.what = RELU_BACKWARD
    run(&p, grad_x, grad_y, y)


def quadratic_backward(grad_y, y, grad_x, double a, double b, double c):
    """grad_x = grad_y * (a + b*y + c*y^2)."""
    cdef pointwise p
    p.what = QUADRATIC_BACKWARD
    p.a, p.b, p.c = a, b, c
    run(&p, grad_x, grad_y, y)
