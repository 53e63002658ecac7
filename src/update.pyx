"""Optimisers' steps, and clipping: all parameters of a model in one call.

Arrays are C-contiguous and of one dtype a parameter, which Python has checked.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdlib cimport free, malloc

from geometry cimport Py_buffer, PyBuffer_Release, ceil_div, hold
from kernels cimport (
    check, CNN_ADAM, CNN_RMSPROP, CNN_RUNTIME, CNN_SGD, cnn_kernels, cnn_runtime, isize,
    kernels_for,
)

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)

cdef enum:
    TASK_ELEMENTS = 16384
    KEPT = 3                            # arrays beside a parameter, at most
    RULE = 8                            # numbers of a rule, at most

SGD, ADAM, RMSPROP = CNN_SGD, CNN_ADAM, CNN_RMSPROP


# One parameter: its arrays, its rule, and the first of its tasks.
cdef struct part:
    const cnn_kernels *kernels
    char *p
    const char *g
    char *kept[KEPT]
    isize count, first_task
    double rule[RULE]


cdef enum task_kind:
    UPDATE
    SQUARES
    SCALE
    CLIP


cdef struct updating:
    task_kind what
    int rule
    isize count
    part *parts
    Py_buffer *views
    isize held
    isize tasks
    double value                        # factor, limit
    double *sums


cdef isize part_of(const updating *u, isize task) noexcept nogil:
    """The last part that begins at or before a task."""
    cdef isize low = 0, high = u.count - 1, middle
    while low < high:
        middle = (low + high + 1) // 2
        if u.parts[middle].first_task <= task:
            low = middle
        else:
            high = middle - 1
    return low


cdef void update_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const updating *u = <const updating *> job
    cdef const part *q = &u.parts[part_of(u, task)]
    cdef isize first = (task - q.first_task) * TASK_ELEMENTS
    cdef isize count = min(TASK_ELEMENTS, q.count - first), i
    cdef isize at = first * q.kernels.itemsize
    cdef void *kept[KEPT]
    if u.what == SQUARES:
        u.sums[task] = q.kernels.sum_squares(q.p + at, count)
    elif u.what == SCALE:
        q.kernels.scale_by(q.p + at, count, u.value)
    elif u.what == CLIP:
        q.kernels.clip(q.p + at, count, u.value)
    else:
        for i in range(KEPT):
            kept[i] = NULL if q.kept[i] == NULL else q.kept[i] + at
        q.kernels.update[u.rule](q.p + at, q.g + at, kept, count, q.rule)


cdef int begin(updating *u, isize count) except -1:
    u.count = u.held = u.tasks = 0
    u.sums = NULL
    u.parts = <part *> malloc(
        (count + 1) * (sizeof(part) + (2 + KEPT) * sizeof(Py_buffer)))
    if u.parts == NULL:
        raise MemoryError("no memory for the table of parameters")
    u.views = <Py_buffer *> (u.parts + count + 1)
    return 0


cdef char *take(updating *u, object array, bint writable) except? NULL:
    if array is None:
        return NULL
    hold(array, &u.views[u.held], writable)
    u.held += 1
    return <char *> u.views[u.held - 1].buf


cdef part *add_part(updating *u, object array, bint writable) except NULL:
    cdef part *q = &u.parts[u.count]
    cdef isize i
    q.p = take(u, array, writable)
    q.kernels = kernels_for(runtime, u.views[u.held - 1].itemsize)
    q.count = u.views[u.held - 1].len // u.views[u.held - 1].itemsize
    q.first_task = u.tasks
    q.g = NULL
    for i in range(KEPT):
        q.kept[i] = NULL
    u.tasks += ceil_div(q.count, TASK_ELEMENTS)
    if q.count:  # one without elements has no task
        u.count += 1
    return q


cdef int end(updating *u) except -1:
    while u.held:
        u.held -= 1
        PyBuffer_Release(&u.views[u.held])
    free(u.parts)
    free(u.sums)
    return 0


cdef int run(updating *u, double work) except -1:
    cdef int failed
    cdef isize i
    cdef double total = 0
    for i in range(u.count):
        total += u.parts[i].count
    with nogil:
        failed = runtime.finish(update_task, u, u.tasks, 0, work * total)
    return check(failed, "update")


def step(int rule, list values, list grads, list kept, list numbers):
    """One step of every parameter.

    kept: a tuple a parameter, of the arrays beside it, or None: for SGD the velocity;
    ADAM first and second moment; RMSPROP square, mean, velocity.
    numbers: a tuple a parameter, the rule's numbers as kernels/update.h reads them.
    """
    cdef updating u
    cdef part *q
    cdef isize i, k
    u.what, u.rule = UPDATE, rule
    begin(&u, len(values))
    try:
        for i in range(len(values)):
            q = add_part(&u, values[i], True)
            q.g = take(&u, grads[i], False)
            for k in range(len(<tuple> kept[i])):
                q.kept[k] = take(&u, (<tuple> kept[i])[k], True)
            for k in range(len(<tuple> numbers[i])):
                q.rule[k] = (<tuple> numbers[i])[k]
        run(&u, 4.0)
    finally:
        end(&u)


def sum_squares(list arrays):
    """Sum of the squares of all elements, in double and in one order."""
    cdef updating u
    cdef isize i
    cdef double total = 0
    u.what = SQUARES
    begin(&u, len(arrays))
    try:
        for i in range(len(arrays)):
            add_part(&u, arrays[i], False)
        u.sums = <double *> malloc((u.tasks + 1) * sizeof(double))
        if u.sums == NULL:
            raise MemoryError("no memory for the sums")
        run(&u, 2.0)
        for i in range(u.tasks):
            total += u.sums[i]
    finally:
        end(&u)
    return total


cdef int change(task_kind what, list arrays, double value) except -1:
    cdef updating u
    cdef isize i
    u.what, u.value = what, value
    begin(&u, len(arrays))
    try:
        for i in range(len(arrays)):
            add_part(&u, arrays[i], True)
        run(&u, 2.0)
    finally:
        end(&u)
    return 0


def scale(list arrays, double factor):
    """array *= factor, each."""
    change(SCALE, arrays, factor)


def clip(list arrays, double limit):
    """Every element into -limit .. limit; NaN stays NaN."""
    change(CLIP, arrays, limit)
