"""Linear maps of one row, (1, C) -> (1, K): forward beside its two backwards.

The weights (K, C) are read once, so that packing them, as convolutions do, would cost
as much as all the sums: these passes take a quarter of the time.
All arrays are contiguous; Python has checked them.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer

from geometry cimport Py_buffer, PyBuffer_Release, ceil_div, hold
from kernels cimport (
    check, CNN_LINEAR, CNN_RELU, CNN_RUNTIME, cnn_kernels, cnn_runtime, cnn_task, isize,
    kernels_for,
)

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)

cdef enum:
    TASK_ELEMENTS = 65536
    TASK_COLUMNS = 1024


cdef struct row_map:
    const cnn_kernels *kernels
    isize rows, cols                    # K and C, of the weights
    isize rows_per_task
    char *to
    const char *a
    const char *b
    const char *bias
    int activation


cdef void dots_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const row_map *p = <const row_map *> job
    cdef isize k = task * p.rows_per_task, size = p.kernels.itemsize
    cdef const char *bias = p.bias
    if bias != NULL:
        bias += k * size
    p.kernels.row_dots(
        p.to + k * size, p.a, p.b + k * p.cols * size, min(p.rows_per_task, p.rows - k),
        p.cols, bias, p.activation)


cdef void times_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const row_map *p = <const row_map *> job
    cdef isize c = task * TASK_COLUMNS, size = p.kernels.itemsize
    p.kernels.row_times(
        p.to + c * size, p.a, p.b + c * size, p.rows, p.cols,
        min(TASK_COLUMNS, p.cols - c))


cdef void outer_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const row_map *p = <const row_map *> job
    cdef isize k = task * p.rows_per_task, size = p.kernels.itemsize
    p.kernels.row_outer(
        p.to + k * p.cols * size, p.a + k * size, p.b,
        min(p.rows_per_task, p.rows - k), p.cols)


cdef int run(
    row_map *p, cnn_task task, object to, object a, object b, object bias,
    object weight,
) except -1:
    """Split the weights' rows, or their columns where sums go over rows."""
    cdef Py_buffer vt, va, vb, vc
    cdef isize tasks
    cdef int failed
    p.rows, p.cols = weight.shape
    hold(to, &vt, True)
    hold(a, &va, False)
    hold(b, &vb, False)
    p.bias = NULL
    if bias is not None:
        hold(bias, &vc, False)
        p.bias = <const char *> vc.buf
    p.to = <char *> vt.buf
    p.a = <const char *> va.buf
    p.b = <const char *> vb.buf
    p.kernels = kernels_for(runtime, vt.itemsize)
    p.rows_per_task = max(1, TASK_ELEMENTS // p.cols)
    tasks = ceil_div(p.rows, p.rows_per_task)
    if task == times_task:
        tasks = ceil_div(p.cols, TASK_COLUMNS)
    with nogil:
        failed = runtime.run(task, p, tasks, 0, <double> p.rows * p.cols)
    PyBuffer_Release(&vt)
    PyBuffer_Release(&va)
    PyBuffer_Release(&vb)
    if bias is not None:
        PyBuffer_Release(&vc)
    return check(failed, "linear")


def forward(x, weight, bias, y, bint relu=False):
    """y[k] = bias[k] + sum over c of weight[k,c] x[c]; bias may be None."""
    cdef row_map p
    p.activation = CNN_RELU if relu else CNN_LINEAR
    run(&p, dots_task, y, x, weight, bias, weight)


def backward_input(grad_y, weight, grad_x):
    """grad_x[c] = sum over k of grad_y[k] weight[k,c]."""
    cdef row_map p
    run(&p, times_task, grad_x, grad_y, weight, None, weight)


def backward_weight(grad_y, x, grad_weight):
    """grad_weight[k,c] = grad_y[k] x[c]."""
    cdef row_map p
    run(&p, outer_task, grad_weight, grad_y, x, None, grad_weight)
