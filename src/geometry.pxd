# The C structs that every pass shares.

from cpython.buffer cimport (
    PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.long cimport PyLong_AsSsize_t
from cpython.tuple cimport PyTuple_GetItem
from kernels cimport isize


# A batch of images in any memory order; steps are in elements.
cdef struct image:
    char *data
    isize itemsize
    isize n, c, h, w
    isize step_n, step_c, step_h, step_w


# The sizes of cnn_ext._geometry.ConvGeometry, in its order.
cdef struct conv_geometry:
    isize n, c, h, w, k, r, s
    isize stride_h, stride_w, dilation_h, dilation_w
    isize top, bottom, left, right, groups, out_h, out_w


# The sizes of cnn_ext._geometry.PoolGeometry, in its order.
cdef struct pool_geometry:
    isize n, c, h, w, r, s
    isize stride_h, stride_w, dilation_h, dilation_w
    isize top, bottom, left, right, out_h, out_w


# Sizes are read by index: unpacking a NamedTuple goes through its Python class, and
# took longer than all the rest of a small call.
cdef inline int read_sizes(object sizes, isize *to, isize count) except -1:
    cdef isize i
    for i in range(count):
        to[i] = PyLong_AsSsize_t(<object> PyTuple_GetItem(sizes, i))
    return 0


cdef inline conv_geometry conv_sizes(object sizes) except *:
    cdef conv_geometry g
    read_sizes(sizes, &g.n, sizeof(g) // sizeof(isize))
    return g


cdef inline pool_geometry pool_sizes(object sizes) except *:
    cdef pool_geometry g
    read_sizes(sizes, &g.n, sizeof(g) // sizeof(isize))
    return g


# A buffer held for as long as a pass runs. Python has validated the array.
cdef inline int hold(object array, Py_buffer *view, bint writable) except -1:
    PyObject_GetBuffer(
        array, view, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0)
    )
    return 0


# A matrix (N, C) is an image of one row, N pixels wide.
cdef inline image image_of(const Py_buffer *view) noexcept nogil:
    cdef image result
    result.data = <char *> view.buf
    result.itemsize = view.itemsize
    if view.ndim == 2:
        result.n, result.c, result.h, result.w = 1, view.shape[1], 1, view.shape[0]
        result.step_n = result.step_h = 0
        result.step_c = view.strides[1] // view.itemsize
        result.step_w = view.strides[0] // view.itemsize
        return result
    result.n, result.c = view.shape[0], view.shape[1]
    result.h, result.w = view.shape[2], view.shape[3]
    result.step_n = view.strides[0] // view.itemsize
    result.step_c = view.strides[1] // view.itemsize
    result.step_h = view.strides[2] // view.itemsize
    result.step_w = view.strides[3] // view.itemsize
    return result


cdef inline char *pixel(
    const image *images, isize n, isize c, isize y, isize x
) noexcept nogil:
    return images.data + images.itemsize * (
        n * images.step_n + c * images.step_c + y * images.step_h
        + x * images.step_w
    )


cdef inline isize ceil_div(isize a, isize b) noexcept nogil:
    return (a + b - 1) // b


# Sizes of `parts` nearly equal parts are at most this.
cdef inline isize even_share(isize total, isize at_most) noexcept nogil:
    return ceil_div(total, ceil_div(total, at_most)) if total > 0 else 1
