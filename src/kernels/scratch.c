/* Scratch memory: blocks that go back to a small pool instead of to the system, so
 * that a steady loop of calls neither allocates nor faults pages in. */
#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#include <sched.h>
#endif
#include "runtime.h"

#define SLOTS 64
#define ALIGN 64

typedef union {
    size_t size;
    char pad[ALIGN];
} header;

static header *pool[SLOTS];
static volatile char busy;
static int fork_child;

static void lock(void)
{
    while (__atomic_test_and_set(&busy, __ATOMIC_ACQUIRE)) {
#if defined(_WIN32)
        SwitchToThread();
#else
        sched_yield();
#endif
    }
}

static void unlock(void) { __atomic_clear(&busy, __ATOMIC_RELEASE); }

static header *new_block(size_t size)
{
    void *block = NULL;
    if (size > (size_t)-1 / 2) return NULL;
#if defined(_WIN32)
    block = _aligned_malloc(size + sizeof(header), ALIGN);
#else
    if (posix_memalign(&block, ALIGN, size + sizeof(header))) return NULL;
#endif
    if (block) ((header *)block)->size = size;
    return block;
}

static void free_block(header *block)
{
#if defined(_WIN32)
    _aligned_free(block);
#else
    free(block);
#endif
}

void *cnn_take(size_t size)
{
    /* the smallest block that fits; else one that is too small makes room */
    header *found = NULL;
    int best = -1, fits = 0;
    size = size < 4096 ? 4096 : (size + 4095) / 4096 * 4096;
    lock();
    for (int i = 0; i < SLOTS; i++) {
        if (!pool[i]) continue;
        int enough = pool[i]->size >= size;
        if (best < 0 || (enough && (!fits || pool[i]->size < pool[best]->size)) ||
            (!enough && !fits && pool[i]->size > pool[best]->size)) {
            best = i;
            fits = fits || enough;
        }
    }
    if (best >= 0) {
        found = pool[best];
        pool[best] = NULL;
    }
    unlock();
    if (found && !fits) {
        free_block(found);
        found = NULL;
    }
    if (!found) found = new_block(size);
    return found ? found + 1 : NULL;
}

void cnn_give(void *scratch)
{
    if (!scratch) return;
    header *block = (header *)scratch - 1;
    lock();
    for (int i = 0; i < SLOTS && block; i++)
        if (!pool[i]) {
            pool[i] = block;
            block = NULL;
        }
    unlock();
    if (block) free_block(block);
}

size_t cnn_scratch_held(void)
{
    size_t held = 0;
    lock();
    for (int i = 0; i < SLOTS; i++)
        if (pool[i]) held += pool[i]->size;
    unlock();
    return held;
}

/* A child of fork has one thread: another one of the parent may have held the lock,
 * and OpenMP's team is gone. */
static void in_child(void)
{
    fork_child = 1;
    unlock();
}

void cnn_watch_forks(void)
{
#if !defined(_WIN32)
    static int watched;
    if (!watched) pthread_atfork(NULL, NULL, in_child);
    watched = 1;
#else
    (void)in_child;
#endif
}

int cnn_is_fork_child(void) { return fork_child; }
