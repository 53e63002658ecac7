# cython: language_level=3
"""Kernel set in use, number of threads, and how tasks run on them."""

import os
import threading

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport parallel

from kernels cimport (
    CNN_INTERRUPTED, CNN_NO_MEMORY, CNN_RUNTIME, cnn_begin, cnn_clock, cnn_cpu_features,
    cnn_end, cnn_enter, cnn_give, cnn_guest, cnn_interrupted, cnn_is_fork_child,
    cnn_kernel_sets, cnn_leave, cnn_runtime, cnn_scratch_held, cnn_take,
    cnn_task, cnn_team, cnn_team_pays, cnn_team_took, cnn_watch_forks, cnn_work,
    cnn_work_shared, isize,
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
    #define omp_get_thread_num() 0
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
    int omp_get_thread_num() nogil
    int PyErr_CheckSignals() noexcept
    unsigned long cnn_thread_ident "PyThread_get_thread_ident"() nogil

# Below this many multiply-adds (about 15 us on one core) a team of threads costs
# more than it brings.
cdef double SERIAL_WORK = 0.5e6

# Whether calls may take fewer threads than they were given, where those do not pay.
cdef bint dynamic = os.environ.get("OMP_DYNAMIC", "").strip().lower() != "false"

cdef cnn_runtime runtime

# Python handles signals in this thread alone.
cdef unsigned long main_thread


cdef int ask() noexcept nogil:
    """Let Python handle the signals that have come; 1 if a handler raised."""
    with gil:
        return PyErr_CheckSignals() != 0


def set_main_thread(unsigned long ident):
    """Ident of the thread that handles signals; after a fork, the child's own."""
    global main_thread
    main_thread = ident


cdef int run(
    cnn_task task, void *job, isize tasks, size_t scratch, double work
) noexcept nogil:
    return run_tasks(task, job, tasks, scratch, work, True)


cdef int finish(
    cnn_task task, void *job, isize tasks, size_t scratch, double work
) noexcept nogil:
    return run_tasks(task, job, tasks, scratch, work, False)


cdef int run_tasks(
    cnn_task task, void *job, isize tasks, size_t scratch, double work, bint may_stop
) noexcept nogil:
    """Run tasks 0 .. tasks-1; which thread runs which never changes a result."""
    cdef int threads = runtime.threads, flush = runtime.flush, stop = 0
    cdef long long begin = 0
    cdef cnn_team team
    cdef void *memory = NULL
    cdef cnn_guest outer
    cdef int (*asker)() noexcept nogil
    asker = NULL
    if tasks < threads:
        threads = <int> tasks
    if threads > 1 and (
        work < SERIAL_WORK or omp_in_parallel() or cnn_is_fork_child()
    ):
        threads = 1
    if threads > 1:
        threads = min(threads, omp_get_max_threads())
        begin = cnn_clock()
        if dynamic and not cnn_team_pays(work, begin):
            threads = 1
    if may_stop and cnn_thread_ident() == main_thread:
        asker = &ask
    if threads <= 1:
        memory = cnn_take(scratch)
        if memory == NULL:
            return CNN_NO_MEMORY
        outer = cnn_begin(&stop, asker, flush)
        cnn_work(task, job, tasks, <char *> memory)
        cnn_end(outer)
        cnn_give(memory)
        return CNN_INTERRUPTED if stop else 0
    team.next, team.tasks, team.worked = 0, tasks, 0
    with parallel(num_threads=threads):
        # handed out one by one: a core that is busy elsewhere delays one task only;
        # a thread without memory leaves them to the others
        memory = cnn_take(scratch)
        if memory != NULL:
            if omp_get_thread_num() == 0:
                outer = cnn_begin(&stop, asker, flush)
            else:
                outer = cnn_begin(&stop, NULL, flush)
            cnn_work_shared(&team, task, job, <char *> memory)
            cnn_end(outer)
            cnn_give(memory)
    if stop:
        return CNN_INTERRUPTED
    cnn_team_took(work, begin, cnn_clock(), team.worked)
    return CNN_NO_MEMORY if team.next < tasks else 0


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


def team_pays(double work, long long now):
    """Whether calls of this many multiply-adds use threads at this time."""
    return cnn_team_pays(work, now)


def team_took(double work, long long begin, long long end, long long worked):
    """Tell what a call took with threads, and how long they worked in all (ns)."""
    cnn_team_took(work, begin, end, worked)


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


def get_flush():
    return bool(runtime.flush)


def set_flush(bint flush):
    runtime.flush = flush


main_thread = threading.main_thread().ident
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: set_main_thread(threading.get_ident()))
runtime.enter = cnn_enter
runtime.leave = cnn_leave
runtime.interrupted = cnn_interrupted
runtime.flush = 0
runtime.strict = 0
runtime.run = run
runtime.finish = finish
runtime.take = cnn_take
runtime.give = cnn_give
runtime.threads = 1
use_kernel_set(os.environ.get("CNN_EXT_ISA") or kernel_sets()[0])
cnn_watch_forks()
# the name `runtime` in the module's dictionary is what CNN_RUNTIME says
globals()["runtime"] = PyCapsule_New(&runtime, CNN_RUNTIME, NULL)
