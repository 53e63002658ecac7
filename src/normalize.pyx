"""Batch normalisation: forward in training and in inference, and backward.

Arrays (N, C, H, W) have one dtype and one dense memory order, channels last or planes,
which Python has checked. `stats` is float64 (5, C): mean, variance (biased), inverse
= 1 / sqrt(variance + eps), and scale and shift of y = scale * x + shift.

activation: 0 none, 1 ReLU, 2 ReLU6.
"""

from cnn_ext import _runtime

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport sqrt

from kernels cimport (
    CNN_LINEAR, CNN_RUNTIME, check, cnn_error, cnn_runtime, isize, kernels_for,
)
from normalization cimport (
    BLOCK_ELEMENTS, STREAM_BYTES, LINE, MEAN, VARIANCE, INVERSE, SCALE, SHIFT, STATS,
    lay_out, normalization, real, release, set_real, take, views,
)

cdef const cnn_runtime *runtime = <const cnn_runtime *> PyCapsule_GetPointer(
    _runtime.runtime, CNN_RUNTIME)


# -- statistics ----------------------------------------------------------------------

cdef isize stats_scratch(const normalization *p) noexcept nogil:
    return 3 * p.c * p.kernels.itemsize if p.channels_last else 0


cdef void moments_task(void *job, isize task, char *scratch) noexcept nogil:
    """Channels last: some rows. mean and sum of squared distances of every channel."""
    cdef const normalization *p = <const normalization *> job
    # the last rows first: a convolution has just written them, and the pass that
    # follows begins with what this one reads last
    task = p.tasks - 1 - task
    cdef double *mean = p.parts + 2 * p.c * task
    cdef isize first = task * p.rows_per_task, at = first, c
    cdef isize last = min(p.rows, first + p.rows_per_task)
    for c in range(2 * p.c):
        mean[c] = 0
    while at < last:
        p.kernels.moments(
            mean, mean + p.c, p.x + at * p.c * p.kernels.itemsize,
            min(p.rows_per_block, last - at), p.c, 1, at - first, scratch)
        at += p.rows_per_block


cdef void channel_moments_task(void *job, isize c, char *scratch) noexcept nogil:
    """Planes: one channel, in all images."""
    cdef const normalization *p = <const normalization *> job
    cdef isize n, at, count
    p.parts[c] = p.parts[p.c + c] = 0
    for n in range(p.n):
        at = 0
        while at < p.pixels:
            count = min(BLOCK_ELEMENTS, p.pixels - at)
            p.kernels.moments(
                p.parts + c, p.parts + p.c + c,
                p.x + ((n * p.c + c) * p.pixels + at) * p.kernels.itemsize,
                1, count, 0, n * p.pixels + at, scratch)
            at += count


cdef void join_parts(const normalization *p) noexcept nogil:
    """The moments of all tasks, in their order, in the first one's place."""
    cdef double *mean = p.parts
    cdef double *square = p.parts + p.c
    cdef const double *more
    cdef double before, rows, delta
    cdef isize task, c
    for task in range(1, p.tasks):
        more = p.parts + 2 * p.c * task
        before = task * p.rows_per_task
        rows = min(p.rows_per_task, p.rows - task * p.rows_per_task)
        for c in range(p.c):
            delta = more[c] - mean[c]
            mean[c] += delta * (rows / (before + rows))
            square[c] += more[p.c + c] + delta * delta * (
                before * rows / (before + rows))


cdef int statistics(normalization *p) noexcept nogil:
    """Mean and sum of squared distances of each channel, at p.parts."""
    cdef double work = 4.0 * p.rows * p.cols
    if not p.channels_last:
        return runtime.run(channel_moments_task, p, p.c, 0, work)
    if runtime.run(moments_task, p, p.tasks, stats_scratch(p), work):
        return -1
    join_parts(p)
    return 0


# -- forward -------------------------------------------------------------------------

cdef void normalize_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const normalization *p = <const normalization *> job
    cdef isize size = p.kernels.itemsize, row = task * p.rows_per_task, at, c
    cdef isize last = min(p.rows, row + p.rows_per_task)
    cdef const char *a = p.coefficients + p.step * size
    cdef const char *b = a + p.step * size
    cdef const char *residual = NULL
    if p.channels_last:
        at = row * p.c * size
        if p.residual != NULL:
            residual = p.residual + at
        p.kernels.normalize(
            p.y + at, p.x + at, residual, a, b, (last - row) // p.side, p.step, 1,
            p.activation, p.stream)
        return
    for row in range(row, last):
        at, c = row * p.pixels * size, row % p.c
        if p.residual != NULL:
            residual = p.residual + at
        p.kernels.normalize(
            p.y + at, p.x + at, residual, a + c * size, b + c * size, 1, p.pixels, 0,
            p.activation, p.stream)


cdef bint streams(const normalization *p) noexcept nogil:
    """Whether y, not in place and of whole lines, is too large to stay in a cache."""
    cdef isize size = p.kernels.itemsize
    cdef isize row = size * (p.step if p.channels_last else p.cols)
    return (
        p.rows * p.cols * size >= STREAM_BYTES and row % LINE == 0
        and <size_t> p.y % LINE == 0 and p.y != p.x and p.y != p.residual)


cdef void set_side(
    const normalization *p, char *to, isize which, isize c, double value
) noexcept nogil:
    """One coefficient of a channel, for every pixel that goes with it."""
    cdef isize i
    for i in range(p.side):
        set_real(to, p.kernels.itemsize, which * p.step + i * p.c + c, value)


cdef void set_coefficients(
    const normalization *p, const double *stats, char *to
) noexcept nogil:
    """mean, scale and shift in the precision of the arrays."""
    cdef isize c
    for c in range(p.c):
        set_side(p, to, 0, c, stats[MEAN * p.c + c])
        set_side(p, to, 1, c, stats[SCALE * p.c + c])
        set_side(p, to, 2, c, stats[SHIFT * p.c + c])


cdef void set_scale(
    const normalization *p, double *stats, const char *weight, const char *bias,
    double eps
) noexcept nogil:
    """inverse, scale, shift from mean, variance, gain and bias."""
    cdef isize c, size = p.kernels.itemsize
    cdef double scale
    for c in range(p.c):
        scale = 1 / sqrt(stats[VARIANCE * p.c + c] + eps)
        stats[INVERSE * p.c + c] = scale
        if weight != NULL:
            scale *= real(weight, size, c)
        if size == 4:  # so that shift fits what x is multiplied by
            scale = <float> scale
        stats[SCALE * p.c + c] = scale
        stats[SHIFT * p.c + c] = -stats[MEAN * p.c + c] * scale
        if bias != NULL:
            stats[SHIFT * p.c + c] += real(bias, size, c)


cdef int run_train(
    normalization *p, double *stats, const char *weight, const char *bias, double eps
) noexcept nogil:
    cdef double count = <double> p.n * p.pixels
    cdef isize c, parts = max(1, p.tasks) * 2 * p.c * sizeof(double)
    cdef char *memory = <char *> runtime.take(
        parts + 3 * p.step * p.kernels.itemsize)
    cdef int failed
    if memory == NULL:
        return -1
    p.parts = <double *> memory
    failed = statistics(p)
    for c in range(p.c):
        stats[MEAN * p.c + c] = p.parts[c]
        stats[VARIANCE * p.c + c] = p.parts[p.c + c] / count
    set_scale(p, stats, weight, bias, eps)
    set_coefficients(p, stats, memory + parts)
    p.coefficients, p.stream = memory + parts, streams(p)
    if not failed:
        failed = runtime.run(
            normalize_task, p, p.tasks, 0, 2.0 * p.rows * p.cols)
    runtime.give(memory)
    return failed


def train(
    x, weight, bias, y, stats, double eps, int activation=0, residual=None
):
    """y = activation(scale * x + shift (+ residual)), by the batch's own statistics.

    stats is filled. y may be x where x is not needed for the backward pass.
    """
    cdef normalization p
    cdef views held
    cdef char *gain
    cdef char *offset
    cdef double *of
    cdef int failed
    held.count = 0
    p.activation = activation
    try:
        p.x = take(&held, x, False)
        lay_out(&p, kernels_for(runtime, held.view[0].itemsize), &held.view[0])
        p.y = take(&held, y, True)
        p.residual = take(&held, residual, False)
        gain, offset = take(&held, weight, False), take(&held, bias, False)
        of = <double *> take(&held, stats, True)
        with nogil:
            failed = run_train(&p, of, gain, offset, eps)
    finally:
        release(&held)
    check(failed, "batch normalisation")


def infer(
    x, mean, variance, weight, bias, y, double eps, int activation=0, residual=None
):
    """y = activation(scale * x + shift (+ residual)), by given statistics.

    y may be x, or residual.
    """
    cdef normalization p
    cdef views held
    cdef char *middle
    cdef char *square
    cdef char *gain
    cdef char *offset
    cdef isize size, c
    cdef double *stats
    cdef int failed = 0
    held.count = 0
    p.activation = activation
    try:
        p.x = take(&held, x, False)
        lay_out(&p, kernels_for(runtime, held.view[0].itemsize), &held.view[0])
        p.y = take(&held, y, True)
        p.residual = take(&held, residual, False)
        middle, square = take(&held, mean, False), take(&held, variance, False)
        gain, offset = take(&held, weight, False), take(&held, bias, False)
        size = p.kernels.itemsize
        with nogil:
            stats = <double *> runtime.take(
                p.c * STATS * sizeof(double) + 3 * p.step * size)
            if stats == NULL:
                failed = -1
            else:
                for c in range(p.c):
                    stats[MEAN * p.c + c] = real(middle, size, c)
                    stats[VARIANCE * p.c + c] = real(square, size, c)
                set_scale(&p, stats, gain, offset, eps)
                p.coefficients = <char *> (stats + STATS * p.c)
                set_coefficients(&p, stats, <char *> (stats + STATS * p.c))
                p.stream = streams(&p)
                failed = runtime.run(
                    normalize_task, &p, p.tasks, 0, 2.0 * p.rows * p.cols)
                runtime.give(stats)
    finally:
        release(&held)
    check(failed, "batch normalisation")


# -- backward ------------------------------------------------------------------------

cdef cnn_error error_from(const normalization *p, isize first) noexcept nogil:
    """Where the error comes from, and goes to, from element `first` on."""
    cdef cnn_error e = p.error
    cdef isize at = first * p.kernels.itemsize
    e.grad_y = <const char *> e.grad_y + at
    if e.more != NULL:
        e.more = <const char *> e.more + at
    if e.ended != NULL:
        e.ended = <const char *> e.ended + at
    if e.error != NULL:
        e.error = <char *> e.error + at
    return e


cdef void error_task(void *job, isize task, char *scratch) noexcept nogil:
    """Channels last: sums of the errors, and of errors times x - mean."""
    cdef const normalization *p = <const normalization *> job
    task = p.tasks - 1 - task           # the last rows first, as in moments_task
    cdef isize size = p.kernels.itemsize, at = task * p.rows_per_task, c
    cdef isize last = min(p.rows, at + p.rows_per_task)
    cdef double *sums = p.parts + 2 * p.c * task
    cdef const char *mean = p.coefficients
    cdef cnn_error error
    for c in range(2 * p.c):
        sums[c] = 0
    while at < last:
        error = error_from(p, at * p.c)
        p.kernels.error_sums(
            sums, sums + p.c, &error, p.x + at * p.c * size,
            mean, mean + p.step * size, mean + 2 * p.step * size,
            min(p.rows_per_block, last - at), p.c, 1, p.activation, scratch)
        at += p.rows_per_block


cdef void channel_error_task(void *job, isize c, char *scratch) noexcept nogil:
    """Planes: the same for one channel, in all images."""
    cdef const normalization *p = <const normalization *> job
    cdef isize size = p.kernels.itemsize, n, at, count, place
    cdef const char *mean = p.coefficients + c * size
    cdef cnn_error error
    p.parts[c] = p.parts[p.c + c] = 0
    for n in range(p.n):
        at = 0
        while at < p.pixels:
            count = min(BLOCK_ELEMENTS, p.pixels - at)
            place = (n * p.c + c) * p.pixels + at
            error = error_from(p, place)
            p.kernels.error_sums(
                p.parts + c, p.parts + p.c + c, &error, p.x + place * size,
                mean, mean + p.step * size, mean + 2 * p.step * size, 1, count, 0,
                p.activation, scratch)
            at += count


cdef void grad_x_task(void *job, isize task, char *scratch) noexcept nogil:
    cdef const normalization *p = <const normalization *> job
    cdef isize size = p.kernels.itemsize, row = task * p.rows_per_task, at
    cdef isize last = min(p.rows, row + p.rows_per_task)
    if p.channels_last:
        at = row * p.c * size
        p.kernels.normalize_backward(
            p.y + at, p.grad_y + at, p.x + at, p.coefficients, p.step,
            (last - row) // p.side, p.step, 1, p.activation)
        return
    for row in range(row, last):
        at = row * p.pixels * size
        p.kernels.normalize_backward(
            p.y + at, p.grad_y + at, p.x + at, p.coefficients + row % p.c * size,
            p.step, 1, p.pixels, 0, p.activation)


cdef int run_backward(
    normalization *p, const double *stats, char *grad_weight, char *grad_bias
) noexcept nogil:
    cdef double count = <double> p.n * p.pixels, work = 4.0 * p.rows * p.cols
    cdef double inverse, level, product
    cdef isize size = p.kernels.itemsize, task, c
    cdef isize parts = max(1, p.tasks) * 2 * p.c * sizeof(double)
    cdef char *memory = <char *> runtime.take(parts + 5 * p.step * size)
    cdef char *of = memory + parts
    cdef int failed
    if memory == NULL:
        return -1
    p.parts, p.coefficients = <double *> memory, of
    set_coefficients(p, stats, of)
    if p.channels_last:
        failed = runtime.run(error_task, p, p.tasks, 2 * p.c * size, work)
        for task in range(1, p.tasks):
            for c in range(2 * p.c):
                p.parts[c] += p.parts[2 * p.c * task + c]
        if p.tasks == 0:
            for c in range(2 * p.c):
                p.parts[c] = 0
    else:
        failed = runtime.run(channel_error_task, p, p.c, 0, work)
    for c in range(p.c):
        inverse, level = stats[INVERSE * p.c + c], p.parts[c]
        # of x - mean with the mean as it is, not as the arrays' precision has it
        product = p.parts[p.c + c] + level * (
            real(of, size, c) - stats[MEAN * p.c + c])
        if grad_bias != NULL:
            set_real(grad_bias, size, c, level)
        if grad_weight != NULL:
            set_real(grad_weight, size, c, product * inverse)
        set_side(p, of, 3, c, level / count)
        set_side(p, of, 4, c, product * inverse * inverse / count)
    if p.error.error != NULL:
        p.activation = CNN_LINEAR       # what was made is stopped already
    if not failed and p.y != NULL:
        failed = runtime.run(grad_x_task, p, p.tasks, 0, work)
    runtime.give(memory)
    return failed


def backward(
    grad_y, x, stats, grad_x, grad_weight, grad_bias, int activation=0, error=None,
    y=None, more=None
):
    """The backward of `train`; grad_x, which may be grad_y, and the others may be None.

    Mean and variance depend on every x of a channel: with g the error behind the
    activation, grad_x = scale (g - mean(g) - (x - mean) inverse^2 mean(g (x - mean))).
    Where the activation was flat is worked out again, from x; with `error` from y, which
    had a residual: then g is written there, too. `more`, which needs `error`, is added
    to grad_y first.

    error may be grad_y, more or, without more, y; grad_x may be any of them, or x.
    """
    cdef normalization p
    cdef views held
    cdef char *gain
    cdef char *offset
    cdef double *of
    cdef int failed
    held.count = 0
    p.activation = activation
    try:
        p.x = take(&held, x, False)
        lay_out(&p, kernels_for(runtime, held.view[0].itemsize), &held.view[0])
        p.grad_y = take(&held, grad_y, False)
        p.error.grad_y, p.error.error = p.grad_y, take(&held, error, True)
        p.error.ended, p.error.more = take(&held, y, False), take(&held, more, False)
        if p.error.error != NULL:
            p.grad_y = <const char *> p.error.error
        p.y = take(&held, grad_x, True)
        gain, offset = take(&held, grad_weight, True), take(&held, grad_bias, True)
        of = <double *> take(&held, stats, False)
        with nogil:
            failed = run_backward(&p, of, gain, offset)
    finally:
        release(&held)
    check(failed, "batch normalisation")


# -- small things --------------------------------------------------------------------

def follow(
    stats, old_mean, old_variance, new_mean, new_variance, double momentum,
    double count
):
    """new = (1 - momentum) * old + momentum * the batch's, its variance unbiased."""
    cdef views held
    cdef double *of
    cdef char *mean
    cdef char *square
    cdef char *to_mean
    cdef char *to_square
    cdef double value
    cdef isize c, channels, size
    held.count = 0
    try:
        mean = take(&held, old_mean, False)
        channels, size = held.view[0].shape[0], held.view[0].itemsize
        square = take(&held, old_variance, False)
        to_mean = take(&held, new_mean, True)
        to_square = take(&held, new_variance, True)
        of = <double *> take(&held, stats, False)
        for c in range(channels):
            value = real(mean, size, c)
            value += momentum * (of[MEAN * channels + c] - value)
            set_real(to_mean, size, c, value)
            value = real(square, size, c)
            value += momentum * (
                of[VARIANCE * channels + c] * (count / (count - 1)) - value)
            set_real(to_square, size, c, value)
    finally:
        release(&held)


def fold(
    weight, bias, mean, variance, gain, offset, double eps, out_weight, out_bias
):
    """Weights and bias of one convolution that does what it and a normalisation do.

    weight, C-contiguous, begins with the axis of filters; bias, gain and offset may be
    None.
    """
    cdef views held
    cdef char *from_weight
    cdef char *from_bias
    cdef char *middle
    cdef char *square
    cdef char *scales
    cdef char *offsets
    cdef char *to_weight
    cdef char *to_bias
    cdef double scale, shift
    cdef isize k, i, filters, each, size
    held.count = 0
    try:
        from_weight = take(&held, weight, False)
        filters, size = held.view[0].shape[0], held.view[0].itemsize
        each = held.view[0].len // size // max(1, filters)
        to_weight = take(&held, out_weight, True)
        from_bias = take(&held, bias, False)
        middle, square = take(&held, mean, False), take(&held, variance, False)
        scales, offsets = take(&held, gain, False), take(&held, offset, False)
        to_bias = take(&held, out_bias, True)
        with nogil:
            for k in range(filters):
                scale = 1 / sqrt(real(square, size, k) + eps)
                if scales != NULL:
                    scale *= real(scales, size, k)
                shift = -real(middle, size, k)
                if from_bias != NULL:
                    shift += real(from_bias, size, k)
                shift *= scale
                if offsets != NULL:
                    shift += real(offsets, size, k)
                set_real(to_bias, size, k, shift)
                for i in range(k * each, (k + 1) * each):
                    set_real(to_weight, size, i, real(from_weight, size, i) * scale)
    finally:
        release(&held)
