# Extern declarations of the kernel tables and of the shared runtime. The tables in
# use, `runtime.set.f32` and `.f64`, are the only float/double branch.

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

ctypedef ptrdiff_t isize

cdef extern from "table.h" nogil:
    cdef enum:
        CACHE_LINE
    cdef enum:
        CNN_ZERO
        CNN_ADD
        CNN_BIAS
        CNN_BIAS_ROWS
    cdef enum:
        CNN_LINEAR
        CNN_RELU
        CNN_RELU6
    cdef enum:
        CNN_ACT_RELU
        CNN_ACTIVATIONS
    cdef enum:
        CNN_SGD
        CNN_ADAM
        CNN_RMSPROP

    ctypedef struct cnn_cross_entropy:
        const double *weights
        double keep, share, all_shares, factor
        int64_t ignored

    ctypedef struct cnn_error:
        const void *grad_y
        const void *more
        const void *ended
        void *error

    ctypedef struct cnn_tile:
        isize rows, cols, batches, depth
        const void *const *a
        isize a_next, a_from, a_step
        const isize *a_at
        const void *b
        isize b_move, b_step
        void *const *c
        isize c_move
        const void *bias
        int start, activation
        const void *next
        isize next_step, next_lines
        void *keep
        isize a_row, c_row
        int c_far

    ctypedef struct cnn_depthwise:
        isize rows, cols
        const void *const *x
        const isize *dx
        const isize *tap
        isize stride, width, x_step, y_step, channels, first, last
        isize depth, taps
        const void *zeros
        const void **look
        const void *next
        isize x_ahead, y_ahead

    cdef enum:
        CNN_GROUPED_SOME
        CNN_PLANE_HIGH

    ctypedef struct cnn_depthwise_plane:
        isize rows, cols, tap_rows, tap_cols
        const isize *down
        const isize *at
        const isize *tap
        isize stride, pitch
        const void *x
        isize y_step

    ctypedef struct cnn_window:
        isize count, lane, rows, cols, row_step, col_step, code, code_row
        const void *first
        isize runs, x_run, y_run, code_run, ahead, fetched, fetch_step

    ctypedef struct cnn_share:
        isize at, code
        double scale

    ctypedef struct cnn_gather:
        isize count, phases, there
        const cnn_share *share
        const isize *shares
        isize runs, x_run, y_run

    ctypedef struct cnn_scatter:
        isize count, runs, sides
        const isize *at
        isize taps, dilation_h, dilation_w, high, wide
        isize x_step, x_run, y_run, code_run, x_side, y_side, code_side
        int checked
        isize rows, cols, y, x, step, down, across

    ctypedef void (*tile_kernel)(const cnn_tile *) noexcept nogil

    ctypedef struct cnn_inside:
        isize row0, row1, col0, col1

    ctypedef struct cnn_flat_kernel:
        isize rows
        tile_kernel run
        isize rest
        tile_kernel run_rest

    ctypedef struct cnn_even_kernel:
        isize rows
        tile_kernel run

    ctypedef struct cnn_winograd:
        isize rows, cols, out_rows, out_cols, tap_rows, tap_cols
        void (*input)(
            void *, isize, const void *, isize, isize, isize, const cnn_inside *
        ) noexcept nogil
        void (*weight)(void *, isize, const void *const *, isize) noexcept nogil
        void (*output)(
            void *, isize, isize, isize, isize, isize, const void *, isize,
            const void *, int) noexcept nogil
        void (*error)(
            void *, isize, const void *, isize, isize, isize) noexcept nogil
        void (*gradient)(void *const *, const void *, isize, isize) noexcept nogil

    ctypedef struct cnn_plane_tile:
        isize rows, depth
        const void *a
        isize a_step
        const void *b
        const isize *at
        void *c
        isize c_step
        const void *bias
        int start, activation
        const void *next
        isize next_step

    ctypedef struct cnn_plane_kernel:
        isize rows, vectors
        void (*run)(const cnn_plane_tile *) noexcept nogil

    ctypedef struct cnn_dot_tile:
        isize rows, cols, positions
        const void *a
        isize a_step
        const void *b
        const isize *at
        void *c
        isize c_step

    ctypedef struct cnn_dot_kernel:
        isize rows, cols
        void (*run)(const cnn_dot_tile *) noexcept nogil

    cdef enum:
        CNN_TAPS_NOW

    ctypedef struct cnn_tap_rows:
        isize taps
        const isize *down
        const isize *across
        const isize *at
        isize row0, row1, cols, first, end, width, channels, channel_step
        const void *sums
        void *to
        isize to_row, to_channel

    ctypedef struct cnn_lines:
        const char *at
        isize left, run, of_run, jump, row, of_row, row_jump

    ctypedef struct cnn_gradient_tile:
        isize rows, cols, batches, depth
        const void *a
        isize a_row, a_move, a_step
        const void *b
        isize b_move, b_step
        void *c
        isize c_step
        int start
        cnn_lines *next

    ctypedef struct cnn_gradient_kernel:
        isize rows
        void (*run[2])(const cnn_gradient_tile *) noexcept nogil

    ctypedef struct cnn_kernels:
        isize itemsize, lanes, mr, vectors
        const tile_kernel *tile
        const tile_kernel *half_tile
        tile_kernel low_tile
        isize low_rows
        tile_kernel keeping_tile, keeping_low_tile
        const cnn_flat_kernel *flat_tile
        const cnn_even_kernel *even_tile
        void (*transpose)(
            void *, isize, const void *, isize, isize, isize) noexcept nogil
        void (*copy)(
            void *, isize, isize, const void *, isize, isize, isize, isize
        ) noexcept nogil
        void (*pack)(
            void *, const isize *, isize, const void *, isize, isize, isize
        ) noexcept nogil
        void (*sum_parts)(void *, const void *, isize, isize, isize) noexcept nogil
        void (*sum_rows)(
            void *, const void *, isize, isize, isize, isize) noexcept nogil
        const cnn_plane_kernel *plane_tile
        const cnn_dot_kernel *dot_tile
        const cnn_gradient_kernel *gradient_tile
        isize gradient_rows[2]
        isize gradient_single
        void (*depthwise)(
            const cnn_depthwise *, void *, const void *, const void *, int
        ) noexcept nogil
        void (*grouped)(
            const cnn_depthwise *, void *, const void *, const void *, int
        ) noexcept nogil
        void (*grouped_weights)(
            void *, const void *, isize, isize, isize, int) noexcept nogil
        void (*dots)(
            const cnn_depthwise *, void *, const void *, const void *, int
        ) noexcept nogil
        void (*dots_weights)(
            void *, const void *, isize, isize, isize, int) noexcept nogil
        void (*depthwise_gradient)(
            const cnn_depthwise *, void *, const void *) noexcept nogil
        void (*depthwise_plane)(
            const cnn_depthwise_plane *, void *, const void *, const void *, int
        ) noexcept nogil
        void (*depthwise_plane_gradient)(
            const cnn_depthwise_plane *, void *, const void *) noexcept nogil
        void (*put_phases)(
            void *, isize, const void *, isize, isize, isize, isize, isize, isize
        ) noexcept nogil
        void (*take_columns)(
            void *, isize, const void *, isize, isize, isize, isize) noexcept nogil
        const cnn_winograd *const *winograd
        void (**activation)(
            void *, const void *, isize, double, double) noexcept nogil
        void (**delta)(
            void *, const void *, const void *, isize, double, double, double
        ) noexcept nogil
        void (*add)(
            void *, const void *, const void *, isize, int) noexcept nogil
        void (*moments)(
            double *, double *, const void *, isize, isize, int, isize, void *
        ) noexcept nogil
        void (*normalize)(
            void *, const void *, const void *, const void *, const void *, isize,
            isize, int, int, int) noexcept nogil
        void (*error_sums)(
            double *, double *, const cnn_error *, const void *, const void *,
            const void *, const void *, isize, isize, int, int, void *) noexcept nogil
        void (*normalize_backward)(
            void *, const void *, const void *, const void *, isize, isize, isize, int,
            int) noexcept nogil
        void (**update)(
            void *, const void *, void **, isize, const double *) noexcept nogil
        double (*sum_squares)(const void *, isize) noexcept nogil
        void (*scale_by)(void *, isize, double) noexcept nogil
        void (*clip)(void *, isize, double) noexcept nogil
        void (*cross_entropy)(
            void *, void *, const void *, const int64_t *, isize, isize,
            const cnn_cross_entropy *) noexcept nogil
        void (*row_dots)(
            void *, const void *, const void *, isize, isize, const void *, int
        ) noexcept nogil
        void (*row_times)(
            void *, const void *, const void *, isize, isize, isize) noexcept nogil
        void (*row_outer)(
            void *, const void *, const void *, isize, isize) noexcept nogil
        void (*max_window)(
            void *, void *, int, const void *, const cnn_window *) noexcept nogil
        void (*max_plane)(
            void *, void *, int, const void *, const void *, const cnn_window *
        ) noexcept nogil
        void (*sum_window)(
            void *, const void *, const cnn_window *, double) noexcept nogil
        void (*sum_plane)(
            void *, const void *, const cnn_window *, double, const void *
        ) noexcept nogil
        void (*max_backward)(
            void *, const void *, const void *, int, const cnn_gather *
        ) noexcept nogil
        void (*max_scatter)(
            void *, const void *, const void *, int, const cnn_scatter *
        ) noexcept nogil
        void (*sum_backward)(
            void *, const void *, const cnn_gather *) noexcept nogil
        void (*copy_rows)(
            void *, isize, const void *, isize, isize, isize) noexcept nogil
        void (*scale_row)(
            void *, const void *, isize, double, const void *) noexcept nogil
        void (*sum_spread)(
            void *, isize, isize, isize, const void *, double, const void *
        ) noexcept nogil
        void (*add_row)(void *, const void *, isize) noexcept nogil
        void (*tap_rows)(const cnn_tap_rows *) noexcept nogil
        void (*fill_row)(void *, double, isize) noexcept nogil
        void (*mean_rows)(
            void *, isize, const void *, isize, isize, isize, double) noexcept nogil
        void (*stream)(void *, const void *, isize) noexcept nogil

    ctypedef struct cnn_kernel_set:
        const char *name
        int (*supported)() noexcept nogil
        const cnn_kernels *f32
        const cnn_kernels *f64

    const cnn_kernel_set *cnn_kernel_sets[]
    const char *cnn_cpu_features()

cdef extern from "runtime.h" nogil:
    ctypedef void (*cnn_task)(void *, isize, char *) noexcept nogil

    ctypedef struct cnn_runtime:
        const cnn_kernel_set *set
        int threads
        int strict
        int flush
        int (*run)(cnn_task, void *, isize, size_t, double) noexcept nogil
        int (*finish)(cnn_task, void *, isize, size_t, double) noexcept nogil
        void *(*take)(size_t) noexcept nogil
        void (*give)(void *) noexcept nogil
        unsigned long long (*enter)(int) noexcept nogil
        void (*leave)(unsigned long long) noexcept nogil
        int (*interrupted)() noexcept nogil

    cdef enum:
        CNN_NO_MEMORY
        CNN_INTERRUPTED

    ctypedef struct cnn_guest:
        pass

    const char *CNN_RUNTIME
    void *cnn_take(size_t)
    void cnn_give(void *)
    size_t cnn_scratch_held()
    void cnn_watch_forks()
    int cnn_is_fork_child()
    unsigned long long cnn_enter(int)
    void cnn_leave(unsigned long long)
    cnn_guest cnn_begin(int *, int (*)() noexcept nogil, int)
    void cnn_end(cnn_guest)
    int cnn_interrupted()
    void cnn_work(cnn_task, void *, isize, char *)

    ctypedef struct cnn_team:
        isize next, tasks
        long long worked

    void cnn_work_shared(cnn_team *, cnn_task, void *, char *)
    long long cnn_clock()
    bint cnn_team_pays(double, long long)
    void cnn_team_took(double, long long, long long, long long)


# After a pass: nothing, or its exception. An interrupt's own is set already.
cdef inline int check(int failed, str what) except -1:
    if failed == CNN_INTERRUPTED:
        return -1
    if failed:
        raise MemoryError(f"{what}: no memory for its scratch space")
    return 0


cdef inline void run_tile(
    const cnn_kernels *kernels, const cnn_tile *q, isize width
) noexcept nogil:
    """The tile kernel for `width` columns; the last rows may be half a tile."""
    if 2 * q.rows <= kernels.mr:
        kernels.half_tile[width // kernels.lanes - 1](q)
    else:
        kernels.tile[width // kernels.lanes - 1](q)


cdef inline void run_even(
    const cnn_kernels *kernels, cnn_tile *q, isize width
) noexcept nogil:
    """Rows at constant distances: whole tiles at once, the others by their pointers."""
    cdef const cnn_even_kernel *even = kernels.even_tile + (width // kernels.lanes - 1)
    cdef const void *const *a = q.a
    cdef void *const *c = q.c
    cdef isize rows = q.rows, done = rows // even.rows * even.rows
    if done > 0:
        q.rows = done
        even.run(q)
        q.next = NULL
    while done < rows:
        q.a, q.c, q.rows = a + done, c + done, rows - done
        if width == 3 * kernels.lanes:
            kernels.low_tile(q)
        else:
            q.rows = min(q.rows, kernels.mr)
            run_tile(kernels, q, width)
        done += q.rows
    q.a, q.c, q.rows = a, c, rows


cdef inline const cnn_kernels *kernels_for(
    const cnn_runtime *runtime, isize itemsize
) noexcept nogil:
    return runtime.set.f32 if itemsize == 4 else runtime.set.f64
