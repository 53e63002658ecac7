/* What the typed Cython passes see of the micro-kernels: one table of function
 * pointers per element type, one pair of tables per instruction set.
 *
 * Sizes and steps are counted in elements. Pointers are untyped here, so that a
 * pass is written once for float and double; each kernel knows its own type. */
#ifndef CNN_EXT_TABLE_H
#define CNN_EXT_TABLE_H

#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t isize;

#define CACHE_LINE 64

/* what a tile starts from; a bias is for each column, or for each row */
enum { CNN_ZERO, CNN_ADD, CNN_BIAS, CNN_BIAS_ROWS };
/* what a pass ends with; tiles know the first two */
enum { CNN_LINEAR, CNN_RELU, CNN_RELU6 };
/* the passes element by element */
enum {
    CNN_ACT_RELU,
    CNN_ACT_RELU6,
    CNN_ACT_LEAKY,
    CNN_ACT_ELU,
    CNN_ACT_SIGMOID,
    CNN_ACT_TANH,
    CNN_ACT_SILU,
    CNN_ACT_HARDSWISH,
    CNN_ACT_GELU,
    CNN_ACTIVATIONS
};

/* C[rows x cols] = start + sum over batches b and k < depth of A_b(i, k) B_b(k, j)
 *
 * A is addressed by mr row pointers, B is rows of vectors as they lie. */
typedef struct {
    isize rows, cols;         /* what is stored: at most mr x vectors * lanes */
    isize batches, depth;
    const void *const *a;     /* mr row pointers; every one must be readable */
    isize a_next;             /* from batch to batch: pointers to go on by, */
    const isize *a_at;        /* and elements to go on by for each, or NULL */
    isize a_from;             /* after this many at first */
    isize a_step;             /* from k to k + 1 */
    const void *b;
    isize b_move, b_step;     /* from batch to batch, from k to k + 1 */
    void *const *c;           /* mr pointers too: rows may lie anywhere */
    isize c_move;             /* elements from each of them to column 0 */
    const void *bias;         /* a value per column, vectors * lanes readable; or per
                                 row, `rows` readable */
    int start, activation;
    const void *next;         /* where lies what will be read next, or NULL: a line is */
    isize next_step;          /* asked for at each step of the first batch, bytes apart */
    void *keep;               /* keeping tiles: rows of B are copied to it, side by side */
    isize next_lines;         /* flat tiles of 2 vectors and more: so many by each; even
                                 ones: by all */
    isize a_row, c_row;       /* even tiles: elements from row to row of A, of C; */
    int c_far;                /* whether C's lines come from memory */
} cnn_tile;

/* The same for whole tiles, whose rows lie at constant distances from a[0] and c[0]: any
 * number of them, `rows` at a time; one batch. */
typedef struct {
    isize rows;
    void (*run)(const cnn_tile *);
} cnn_even_kernel;

/* The same for any number of rows, `rows` at a time and at last `rest` at most (0: no
 * such kernel); one batch of `depth` steps, a_at has elements to go on by for each of
 * them, and rows of B are as wide as the tile. As many pointers are read as whole
 * tiles have. */
typedef struct {
    isize rows;
    void (*run)(const cnn_tile *);
    isize rest;
    void (*run_rest)(const cnn_tile *);
} cnn_flat_kernel;

/* C[rows x cols] = start + sum over k < depth of A(i, k) B(k, j), B's rows being
 * pixels of planes: row k begins at b + at[k]. Whole vectors are stored. */
typedef struct {
    isize rows, depth;
    const void *a;            /* row i begins at a + i * a_step */
    isize a_step;
    const void *b;
    const isize *at;
    void *c;
    isize c_step;
    const void *bias;         /* a value per row */
    int start, activation;
    const void *next;         /* where the sums will be copied to, whose lines are */
    isize next_step;          /* asked for: row i from next + i * next_step; or NULL */
} cnn_plane_tile;

typedef struct {
    isize rows, vectors;
    void (*run)(const cnn_plane_tile *);
} cnn_plane_kernel;

/* C[rows x cols] += sum over positions p of A(i, p) B(j, p), B(j, 0) at b + at[j];
 * positions are whole vectors, all of them readable. */
typedef struct {
    isize rows, cols, positions;
    const void *a;
    isize a_step;
    const void *b;
    const isize *at;
    void *c;
    isize c_step;
} cnn_dot_tile;

typedef struct {
    isize rows, cols;
    void (*run)(const cnn_dot_tile *);
} cnn_dot_kernel;

/* Lines of memory to fetch ahead of time: rows of `row` runs of `run` lines. */
typedef struct {
    const char *at;
    isize left;               /* lines in all */
    isize run, of_run;        /* lines of a run; what is left of this one */
    isize jump;               /* bytes from a run's end to the next one */
    isize row, of_row, row_jump;
} cnn_lines;

/* C[rows x cols] = (C) + sum over batches and k < depth of A(i, k) B(k, j), B and C
 * rows of vectors. Rows of A that lie side by side (a_row = 1) are read up to the next
 * even one; they are operands at constant distances from one pointer. */
typedef struct {
    isize rows, cols, batches, depth;
    const void *a;
    isize a_row, a_move, a_step;   /* from row to row, batch to batch, k to k + 1 */
    const void *b;
    isize b_move, b_step;
    void *c;
    isize c_step;
    int start;
    cnn_lines *next;
} cnn_gradient_tile;

typedef struct {
    isize rows;
    void (*run[2])(const cnn_gradient_tile *);  /* [vectors - 1] */
} cnn_gradient_kernel;

/* Pixels of rows first <= Y < end += sums of taps that lie in rows [row0, row1). */
#define CNN_TAPS_NOW 64
typedef struct {
    isize taps;               /* at most CNN_TAPS_NOW, down[] rising */
    const isize *down, *across;   /* the tap's sum for row Y, column q is that of row
                                     Y - down, column q - across: */
    const isize *at;          /* of row row0, element at + q */
    isize row0, row1, cols;   /* sums of one tap; a vector before and behind is readable */
    isize first, end, width;  /* width: columns of to, whose vectors are whole */
    isize channels, channel_step;
    const void *sums;
    void *to;
    isize to_row, to_channel;
} cnn_tap_rows;

/* The outputs that a grouped block makes at most: so many pointers a tap are enough. */
#define CNN_GROUPED_SOME 14
/* The filters of a tile of dots at most. */
#define CNN_DOT_FILTERS 3

/* Outputs [first, last) of a row, pixels of `channels` channels side by side. */
typedef struct {
    isize rows, cols;         /* of taps */
    const void *const *x;     /* for each row of taps its source row, column 0 */
    const isize *dx;          /* for each column of taps output 0's source column */
    const isize *tap;         /* [row][col]: element of the tap's weights */
    isize stride, width;      /* columns from output to output, columns there are */
    isize x_step, y_step;     /* elements from pixel to pixel */
    isize channels, first, last;
    /* grouped: channels of a group, a power of 2; taps of its weights; `channels`
       zeros; room for pointers */
    isize depth, taps;
    const void *zeros;
    const void **look;
    /* dots: column 0 of the row that the next outputs will read first, or NULL */
    const void *next;
    /* depthwise: elements from the last row of taps, and from the row of outputs, to
       those that are asked for meanwhile; or 0 */
    isize x_ahead, y_ahead;
} cnn_depthwise;

/* rows x cols outputs of one plane; CNN_PLANE_HIGH rows are made at a time, so that x has as
 * many rows as that takes, and each row whole vectors from every tap's column on. */
#define CNN_PLANE_HIGH 4
typedef struct {
    isize rows, cols;
    isize tap_rows, tap_cols;
    const isize *down;        /* for each row of taps output 0's row of x */
    const isize *at;          /* for each column of taps output 0's element in its row */
    const isize *tap;         /* [row][col]: which weight */
    isize stride, pitch;      /* rows of x from output row to output row; elements */
    const void *x;
    isize y_step;             /* elements from output row to output row */
} cnn_depthwise_plane;

/* `count` neighbouring outputs, each over a window of rows x cols pixels. */
typedef struct {
    isize count, lane;        /* x advances by `lane` from output to output */
    isize rows, cols;
    isize row_step, col_step; /* in x, from one pixel of the window to the next */
    isize code, code_row;     /* position of the first pixel, of the next row's */
    const void *first;        /* added to code for each output, where it is not NULL:
                                 integers of the element's size */
    isize runs;               /* all of that so many times, */
    isize x_run, y_run, code_run;   /* each so many elements (codes) further */
    isize ahead;              /* elements from a pixel to what is to be fetched meanwhile, */
    isize fetched, fetch_step;      /* of so many rows, so far apart */
} cnn_window;

/* One gradient that reaches an input pixel, from the window `at` elements on. */
typedef struct {
    isize at, code;
    double scale;
} cnn_share;

/* `count` neighbouring windows, `runs` times, in each of `sides` planes, whose errors go
 * out to their winners among rows x cols pixels. */
typedef struct {
    isize count, runs, sides;
    const isize *at;          /* for each code, elements from its window's corner */
    isize taps;               /* positions in a row of a window */
    isize dilation_h, dilation_w;
    isize high, wide;         /* rows and columns that a window spans */
    isize x_step;             /* elements of grad_x from window to window, */
    isize x_run, y_run, code_run;      /* from run to run, */
    isize x_side, y_side, code_side;   /* from plane to plane */
    int checked;              /* whether a winner may lie outside */
    isize rows, cols;
    isize y, x;               /* corner of the first window, */
    isize step;               /* columns from window to window, */
    isize down, across;       /* rows and columns from run to run */
} cnn_scatter;

/* How a softmax and its cross-entropy are weighted. */
typedef struct {
    const double *weights;    /* of each class, or NULL */
    double keep;              /* 1 - smoothing */
    double share;             /* smoothing / classes: what every class gets */
    double all_shares;        /* its sum over the classes, weighted */
    double factor;            /* on the gradient */
    int64_t ignored;
} cnn_cross_entropy;

/* The error of a normalisation: grad_y, plus `more` if it is there. Where `error` is
 * there, the sum is stored in it, stopped where the activation of `ended` was flat;
 * `error` may be any of the others. */
typedef struct {
    const void *grad_y, *more, *ended;
    void *error;
} cnn_error;

enum { CNN_SGD, CNN_ADAM, CNN_RMSPROP, CNN_UPDATES };

/* `count` neighbouring pixels, `runs` times, and what reaches them. With phases, every
 * phases-th of them has the same shares; `there` is how many such pixels have any. */
typedef struct {
    isize count, phases, there;
    const cnn_share *share;
    const isize *shares;      /* for each phase */
    isize runs, x_run, y_run; /* elements from run to run */
} cnn_gather;

/* The pixels of a patch that the image has; zeros stand for the others. */
typedef struct {
    isize row0, row1, col0, col1;
} cnn_inside;

/* Winograd's minimal filtering: out_rows x out_cols outputs of a kernel of tap_rows x
 * tap_cols taps from patches of rows x cols pixels (or one row, or one column).
 *
 * Each function handles one patch (or one channel of weights); `step` is the
 * distance in memory between the rows * cols transformed values. */
typedef struct {
    isize rows, cols, out_rows, out_cols, tap_rows, tap_cols;
    /* values = B^T patch B, for `channels` channels (rounded up to whole vectors);
       inside is NULL where the image has the whole patch */
    void (*input)(void *values, isize step, const void *patch, isize row_step,
                  isize col_step, isize channels, const cnn_inside *inside);
    /* values = G weight G^T; taps[i] is the tap's row of `width` weights */
    void (*weight)(void *values, isize step, const void *const *taps, isize width);
    /* y = A^T values A + bias: the first rows x cols of the outputs are stored */
    void (*output)(void *y, isize row_step, isize col_step, isize rows, isize cols,
                   isize channels, const void *values, isize step, const void *bias,
                   int activation);
    /* values = A grad_y A^T, the adjoint of output */
    void (*error)(void *values, isize step, const void *grad_y, isize row_step,
                  isize col_step, isize channels);
    /* taps[i] (+)= G^T values G, the adjoint of weight */
    void (*gradient)(void *const *taps, const void *values, isize step, isize width);
} cnn_winograd;

typedef struct {
    isize itemsize, lanes, mr, vectors;   /* a tile is mr x (vectors * lanes) */
    void (*const *tile)(const cnn_tile *);     /* [vectors - 1] */
    void (*const *half_tile)(const cnn_tile *); /* the same for mr / 2 rows at most */
    void (*low_tile)(const cnn_tile *);         /* the same for low_rows, 3 vectors */
    isize low_rows;
    void (*keeping_tile)(const cnn_tile *);     /* tile[1] that copies B, */
    void (*keeping_low_tile)(const cnn_tile *); /* and low_tile */
    const cnn_flat_kernel *flat_tile;           /* [vectors - 1], up to 4 */
    const cnn_even_kernel *even_tile;           /* [vectors - 1], up to 3 */

    /* dst[j * dst_step + i] = src[i * src_step + j], i < rows, j < cols */
    void (*transpose)(void *dst, isize dst_step, const void *src, isize src_step,
                      isize rows, isize cols);
    /* the same with any step between the elements of src and of dst */
    void (*copy)(void *dst, isize dst_row, isize dst_col, const void *src,
                 isize src_row, isize src_col, isize rows, isize cols);
    /* dst[to[j] * width + i] = src[i * src_step + j], skipping to[j] < 0; i < rows, zero
       from there to `width` */
    void (*pack)(void *dst, const isize *to, isize width, const void *src,
                 isize src_step, isize rows, isize cols);
    /* dst[i] = parts[i] + parts[i + step] + ..., pairwise */
    void (*sum_parts)(void *dst, const void *parts, isize step, isize count,
                      isize size);
    /* dst[k] += sum of `count` elements of src[k * src_step ...] */
    void (*sum_rows)(void *dst, const void *src, isize src_row, isize src_col,
                     isize rows, isize cols);

    const cnn_plane_kernel *plane_tile;   /* by rising rows, ends with rows = 0 */
    const cnn_dot_kernel *dot_tile;       /* for few rows, then for more */
    const cnn_gradient_kernel *gradient_tile;  /* of 2, 4, ... rows */
    isize gradient_rows[2];               /* at most, of one vector and of two */
    isize gradient_single;                /* rows from which one will do; 0: none */
    /* y[first ...] = bias + sum over taps of x * weight; whole vectors of weight and
       bias are read */
    void (*depthwise)(const cnn_depthwise *, void *y, const void *weight,
                      const void *bias, int activation);
    /* the same with `depth` channels in and out a group: weight lies by
       [vector of channels][tap][j]: to each channel from channel ^ j */
    void (*grouped)(const cnn_depthwise *, void *y, const void *weight,
                    const void *bias, int activation);
    void (*grouped_weights)(void *dst, const void *src, isize channels, isize depth,
                            isize taps, int transposed);
    /* the same from `depth` channels, a vector of them or more, to `channels` filters;
       weights of tap t are found by t */
    void (*dots)(const cnn_depthwise *, void *y, const void *weight, const void *bias,
                 int activation);
    void (*dots_weights)(void *dst, const void *src, isize filters, isize depth,
                         isize taps, int transposed);
    /* sums[tap] += sum over the row of grad_y * x; whole vectors of sums */
    void (*depthwise_gradient)(const cnn_depthwise *, void *sums,
                               const void *grad_y);
    /* the same for the rows of a plane; sums are a vector for each tap */
    void (*depthwise_plane)(const cnn_depthwise_plane *, void *y, const void *weight,
                            const void *bias, int activation);
    void (*depthwise_plane_gradient)(const cnn_depthwise_plane *, void *sums,
                                     const void *grad_y);
    /* dst[i * dst_row + j], i < rows, j < cols, from down * across phases: of phase
       (i % down, j % across) row i / down, column j / across; whole vectors are read */
    void (*put_phases)(void *dst, isize dst_row, const void *src, isize src_row,
                       isize phase_step, isize down, isize across, isize rows,
                       isize cols);
    /* dst[i * dst_row + j] = src[i * src_row + j * stride]; vectors behind the last
       column are overwritten with zeros */
    void (*take_columns)(void *dst, isize dst_row, const void *src, isize src_row,
                         isize stride, isize rows, isize cols);
    const cnn_winograd *const *winograd;  /* ends with NULL; or is NULL */

    /* by CNN_ACT_...; y may be x, grad_x may be grad_y or kept, which is y, or x where
       the delta is no function of y */
    void (*const *activation)(void *y, const void *x, isize count, double a, double b);
    void (*const *delta)(void *grad_x, const void *grad_y, const void *kept,
                         isize count, double a, double b, double c);
    void (*add)(void *y, const void *a, const void *b, isize count, int activation);
    void (*moments)(double *mean, double *square, const void *x, isize rows,
                    isize cols, int each, isize before, void *scratch);
    void (*normalize)(void *y, const void *x, const void *residual, const void *a,
                      const void *b, isize rows, isize cols, int each, int activation,
                      int stream);
    void (*error_sums)(double *sums, double *products, const cnn_error *of,
                       const void *x, const void *mean, const void *a, const void *b,
                       isize rows, isize cols, int each, int activation, void *scratch);
    void (*normalize_backward)(void *grad_x, const void *grad_y, const void *x,
                               const void *of, isize step, isize rows, isize cols,
                               int each, int activation);
    /* an optimiser's step on `count` elements: p, g and what is kept beside p */
    void (*const *update)(void *p, const void *g, void *const *kept, isize count,
                          const double *rule);
    double (*sum_squares)(const void *x, isize count);
    void (*scale_by)(void *x, isize count, double factor);
    void (*clip)(void *x, isize count, double limit);
    void (*cross_entropy)(void *grad_y, void *losses, const void *y,
                          const int64_t *labels, isize rows, isize classes,
                          const cnn_cross_entropy *);
    /* linear maps of one row: see row.h */
    void (*row_dots)(void *y, const void *x, const void *weight, isize rows,
                     isize cols, const void *bias, int activation);
    void (*row_times)(void *grad_x, const void *grad_y, const void *weight,
                      isize rows, isize step, isize cols);
    void (*row_outer)(void *grad_weight, const void *grad_y, const void *x,
                      isize rows, isize cols);
    void (*max_window)(void *y, void *argmax, int argmax_size, const void *x,
                       const cnn_window *);
    void (*max_plane)(void *y, void *argmax, int argmax_size, const void *x,
                      const void *kept, const cnn_window *);
    void (*sum_window)(void *y, const void *x, const cnn_window *, double divisor);
    void (*sum_plane)(void *y, const void *x, const cnn_window *, double divisor,
                      const void *lanes);
    void (*max_backward)(void *grad_x, const void *grad_y, const void *argmax,
                         int argmax_size, const cnn_gather *);
    void (*max_scatter)(void *grad_x, const void *grad_y, const void *argmax,
                        int argmax_size, const cnn_scatter *);
    void (*sum_backward)(void *grad_x, const void *grad_y, const cnn_gather *);
    void (*copy_rows)(void *dst, isize dst_row, const void *src, isize src_row,
                      isize rows, isize bytes);   /* all in bytes */
    void (*scale_row)(void *dst, const void *src, isize count, double scale,
                      const void *scales);
    void (*sum_spread)(void *row, isize step, isize cols, isize count,
                       const void *grad_y, double scale, const void *scales);
    void (*add_row)(void *dst, const void *src, isize count);
    void (*tap_rows)(const cnn_tap_rows *);
    void (*fill_row)(void *dst, double value, isize count);
    /* dst[i * dst_step] = sum of `cols` elements from src[i * src_row] / divisor */
    void (*mean_rows)(void *dst, isize dst_step, const void *src, isize src_row,
                      isize rows, isize cols, double divisor);
    /* a copy that does not go through the caches; NULL where there is none */
    void (*stream)(void *dst, const void *src, isize bytes);
} cnn_kernels;

typedef struct {
    const char *name;
    int (*supported)(void);
    const cnn_kernels *f32, *f64;
} cnn_kernel_set;

/* Best first, ends with NULL. */
extern const cnn_kernel_set *const cnn_kernel_sets[];

/* The CPU's features that any of our kernel sets asks for, as words. */
const char *cnn_cpu_features(void);

#endif
