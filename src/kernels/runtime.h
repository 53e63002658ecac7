/* What the compiled modules share at run time: the kernel set in use, the number of
 * threads, and the one way to run tasks on them. cnn_ext._runtime owns it; the
 * others import it as a capsule. */
#ifndef CNN_EXT_RUNTIME_H
#define CNN_EXT_RUNTIME_H

#include "table.h"

/* One task of a pass. It owns `scratch` while it runs. */
typedef void (*cnn_task)(void *job, isize task, char *scratch);

typedef struct {
    const cnn_kernel_set *set;
    int threads;
    int strict; /* direct sums only */
    /* Runs every task once, in any order; `work` estimates the multiply-adds (or
       elements moved) of them all. 0, or -1 if scratch memory ran out. */
    int (*run)(cnn_task, void *job, isize tasks, size_t scratch, double work);
    /* Scratch memory, aligned to 64 bytes and kept for the next call. */
    void *(*take)(size_t bytes);
    void (*give)(void *scratch);
} cnn_runtime;

#define CNN_RUNTIME "cnn_ext._runtime.runtime"

void *cnn_take(size_t bytes);
void cnn_give(void *scratch);
size_t cnn_scratch_held(void);
void cnn_watch_forks(void);
int cnn_is_fork_child(void);

#endif
