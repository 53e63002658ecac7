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
    int flush;  /* subnormals are zeros */
    /* Runs every task once, in any order; `work` estimates the multiply-adds (or
       elements moved) of them all. 0, or CNN_NO_MEMORY, or CNN_INTERRUPTED. */
    int (*run)(cnn_task, void *job, isize tasks, size_t scratch, double work);
    /* The same to the end, whatever signals come: for what must not stay half done. */
    int (*finish)(cnn_task, void *job, isize tasks, size_t scratch, double work);
    /* Scratch memory, aligned to 64 bytes and kept for the next call. */
    void *(*take)(size_t bytes);
    void (*give)(void *scratch);
    /* The CPU's floating-point state as results are defined by, and back. */
    unsigned long long (*enter)(int flush);
    void (*leave)(unsigned long long before);
    /* Whether the call under way is to stop: a long task looks now and then. */
    int (*interrupted)(void);
} cnn_runtime;

/* How a pass may fail; after an interrupt Python's exception is set. */
enum { CNN_NO_MEMORY = -1, CNN_INTERRUPTED = -2 };

#define CNN_RUNTIME "cnn_ext._runtime.runtime"

void *cnn_take(size_t bytes);
void cnn_give(void *scratch);
size_t cnn_scratch_held(void);
void cnn_watch_forks(void);
int cnn_is_fork_child(void);

unsigned long long cnn_enter(int flush);
void cnn_leave(unsigned long long before);

/* What a thread works for: one call, or nothing. */
typedef struct {
    int *stop;        /* the call's: set once, seen by its whole team */
    int (*ask)(void); /* in the thread that may ask Python; 1 if it is to stop */
    int flush;
    unsigned long long before; /* the caller's floating-point state */
} cnn_guest;

/* Begin work for a call; what is returned, the work outside of it, is for the end. */
cnn_guest cnn_begin(int *stop, int (*ask)(void), int flush);
void cnn_end(cnn_guest outer);
int cnn_interrupted(void);
/* All tasks in this thread, or those before an interrupt. */
void cnn_work(cnn_task task, void *job, isize tasks, char *scratch);

/* Tasks that several threads share. */
typedef struct {
    isize next, tasks;
    long long worked; /* nanoseconds, by all of them */
} cnn_team;

/* Tasks in this thread, one by one, as long as there are some. */
void cnn_work_shared(cnn_team *team, cnn_task task, void *job, char *scratch);

/* Nanoseconds, of a clock that never goes back. */
long long cnn_clock(void);
/* Whether threads are worth it now for a call of this size; what one took with them. */
int cnn_team_pays(double work, long long now);
void cnn_team_took(double work, long long begin, long long end, long long worked);

#endif
