# cython: language_level=3
"""Kernel set in use, number of threads, and how tasks run on them."""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport parallel, prange

from kernels cimport (
    CNN_RUNTIME, cnn_cpu_features, cnn_give, cnn_is_fork_child, cnn_kernel_sets,
    cnn_runtime, cnn_scratch_held, cnn_take, cnn_task, cnn_watch_forks, isize,
)

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define CNN_OPENMP _OPENMP
    #else
    #define CNN_OPENMP 0
    #define omp_get_max_threads() 1
    #define omp_in_parallel() 0
    #endif
    #ifdef CNN_EXT_DEBUG
    #define CNN_DEBUG 1
    #else
    #define CNN_DEBUG 0
    #endif
    """
    int CNN_OPENMP
    int CNN_DEBUG
    int omp_get_max_threads() nogil
    int omp_in_parallel() nogil

# Below this many multiply-adds (about 15 us on one core) a team of threads costs
# more than it brings.
cdef double SERIAL_WORK = 0.5e6

cdef cnn_runtime runtime


cdef int run(
    cnn_task task, void *job, isize tasks, size_t scratch, double work
) noexcept nogil:
    """Run tasks 0 .. tasks-1; which thread runs which never changes a result."""
    cdef isize i
    cdef int threads = runtime.threads
    cdef int failed = 0
    cdef void *memory = NULL
    if tasks < threads:
        threads = <int> tasks
    if threads > 1 and (
        work < SERIAL_WORK or omp_in_parallel() or cnn_is_fork_child()
    ):
        threads = 1
    if threads > 1 and omp_get_max_threads() < threads:
        threads = omp_get_max_threads()
    if threads <= 1:
        memory = cnn_take(scratch)
        if memory == NULL:
            return -1
        for i in range(tasks):
            task(job, i, <char *> memory)
        cnn_give(memory)
        return 0
    with parallel(num_threads=threads):
        memory = cnn_take(scratch)
        # handed out one by one: a core that is busy elsewhere delays one task only
        for i in prange(tasks, schedule="dynamic", chunksize=1):
            if memory != NULL:
                task(job, i, <char *> memory)
            else:
                failed += 1
        cnn_give(memory)
    return -1 if failed else 0


def kernel_sets():
    """Names of the kernel sets that this CPU runs, best first."""
    cdef int i = 0
    names = []
    while cnn_kernel_sets[i] != NULL:
        if cnn_kernel_sets[i].supported():
            names.append(cnn_kernel_sets[i].name.decode())
        i += 1
    return names


def kernel_set():
    """Name of the kernel set in use."""
    return runtime.set.name.decode()


def use_kernel_set(name):
    """Use another kernel set from the next call on (no call may be under way)."""
    cdef int i = 0
    known = kernel_sets()
    if name not in known:
        raise ValueError(
            f"CNN_EXT_ISA: kernel set {name!r} does not run here; this build and CPU "
            f"have {', '.join(known)}"
        )
    while cnn_kernel_sets[i].name.decode() != name:
        i += 1
    runtime.set = cnn_kernel_sets[i]


def cpu_features():
    return cnn_cpu_features().decode()


def openmp_version():
    """OpenMP's date of specification, 0 if built without."""
    return CNN_OPENMP


def is_debug_build():
    return bool(CNN_DEBUG)


def scratch_held():
    """Bytes of scratch memory that are kept for the next call."""
    return cnn_scratch_held()


def address(buffer):
    """Where the memory of `buffer` begins."""
    cdef Py_buffer view
    cdef size_t start
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    start = <size_t> view.buf
    PyBuffer_Release(&view)
    return start


def get_threads():
    return runtime.threads


def set_threads(int threads):
    runtime.threads = threads


def get_strict():
    return bool(runtime.strict)


def set_strict(bint strict):
    runtime.strict = strict


runtime.strict = 0
runtime.run = run
runtime.take = cnn_take
runtime.give = cnn_give
runtime.threads = 1
use_kernel_set(os.environ.get("CNN_EXT_ISA") or kernel_sets()[0])
cnn_watch_forks()
# the name `runtime` in the module's dictionary is what CNN_RUNTIME says
globals()["runtime"] = PyCapsule_New(&runtime, CNN_RUNTIME, NULL)
