"""Softmax and cross-entropy: the loss of rows of logits and its gradient, in one."""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t

from geometry cimport Py_buffer, PyBuffer_Release, ceil_div, hold
from kernels cimport (
    check, CNN_RUNTIME, cnn_cross_entropy, cnn_kernels, cnn_runtime, isize, kernels_for,
)

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)

cdef enum:
    TASK_ELEMENTS = 4096


cdef struct loss_rows:
    const cnn_kernels *kernels
    cnn_cross_entropy how
    isize rows, classes, rows_per_task
    const char *y
    const int64_t *labels
    char *grad_y
    char *losses


cdef void loss_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const loss_rows *p = <const loss_rows *> job
    cdef isize row = task * p.rows_per_task, size = p.kernels.itemsize
    p.kernels.cross_entropy(
        p.grad_y + row * p.classes * size, p.losses + row * size,
        p.y + row * p.classes * size, p.labels + row,
        min(p.rows_per_task, p.rows - row), p.classes, &p.how)


cdef isize first_wrong(const loss_rows *p) noexcept nogil:
    """The first label that is none, or -1."""
    cdef isize i
    for i in range(p.rows):
        if p.labels[i] != p.how.ignored and not 0 <= p.labels[i] < p.classes:
            return i
    return -1


cdef double weight_of_all(const loss_rows *p) noexcept nogil:
    """Sum of the labels' weights: what a mean divides by."""
    cdef isize i
    cdef double total = 0
    for i in range(p.rows):
        if p.labels[i] != p.how.ignored:
            total += 1 if p.how.weights == NULL else p.how.weights[p.labels[i]]
    return total


cdef double sum_of(const loss_rows *p) noexcept nogil:
    cdef isize i
    cdef double total = 0
    for i in range(p.rows):
        if p.kernels.itemsize == 4:
            total += (<float *> p.losses)[i]
        else:
            total += (<double *> p.losses)[i]
    return total


def cross_entropy(
    y, labels, weights, double smoothing, int64_t ignored, bint mean, grad_y, losses
):
    """Fill grad_y (rows, classes) and losses (rows,).

    labels are int64, weights float64 (classes,) or None. With `mean` the gradient is
    divided by the sum of the labels' weights.

    Returns (sum of the losses, sum of the labels' weights), or None if there is a
    label out of range: then nothing has been written.
    """
    cdef loss_rows p
    cdef Py_buffer vy, vl, vw, vg, vs
    cdef isize k
    cdef double total = 0, divisor = 0, all_weights
    cdef bint wrong
    cdef int failed = 0
    hold(y, &vy, False)
    hold(labels, &vl, False)
    hold(grad_y, &vg, True)
    hold(losses, &vs, True)
    p.how.weights = NULL
    if weights is not None:
        hold(weights, &vw, False)
        p.how.weights = <const double *> vw.buf
    p.kernels = kernels_for(runtime, vy.itemsize)
    p.rows, p.classes = vy.shape[0], vy.shape[1]
    p.y, p.labels = <const char *> vy.buf, <const int64_t *> vl.buf
    p.grad_y, p.losses = <char *> vg.buf, <char *> vs.buf
    p.rows_per_task = max(1, TASK_ELEMENTS // max(1, p.classes))
    p.how.ignored = ignored
    with nogil:
        p.how.keep = 1 - smoothing
        p.how.share = smoothing / p.classes
        all_weights = p.classes
        if p.how.weights != NULL:
            all_weights = 0
            for k in range(p.classes):
                all_weights += p.how.weights[k]
        p.how.all_shares = p.how.share * all_weights
        wrong = first_wrong(&p) >= 0
        if not wrong:
            divisor = weight_of_all(&p)
            p.how.factor = 1
            if mean:
                p.how.factor = 1 / divisor if divisor else 0
            failed = runtime.run(
                loss_task, &p, ceil_div(p.rows, p.rows_per_task), 0,
                30.0 * p.rows * p.classes)
            total = sum_of(&p)
    PyBuffer_Release(&vy)
    PyBuffer_Release(&vl)
    PyBuffer_Release(&vg)
    PyBuffer_Release(&vs)
    if weights is not None:
        PyBuffer_Release(&vw)
    check(failed, "cross entropy")
    return None if wrong else (total, divisor)
