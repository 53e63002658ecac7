/* The threads of one call: how they share its tasks, and whether they pay.
 *
 * Where another process keeps a core busy, the thread that is to run there comes late,
 * and a short call waits for it longer than it would have taken alone. A call that took
 * longer than its threads worked in all has lost by them; when that happens again and
 * again, calls of that size stay in one thread for a while. Results have the same bits
 * for any number of threads, so that only time depends on it. */
#if defined(_WIN32)
#include <windows.h>
#else
#include <time.h>
#endif
#include "runtime.h"

#define LOAD(from) __atomic_load_n(&(from), __ATOMIC_RELAXED)
#define STORE(to, value) __atomic_store_n(&(to), value, __ATOMIC_RELAXED)

/* Nanoseconds that have passed, and those that this thread was running. */
#if defined(_WIN32)
long long cnn_clock(void)
{
    LARGE_INTEGER ticks, second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&second);
    return (long long)((double)ticks.QuadPart * 1e9 / (double)second.QuadPart);
}

static long long running(void) { return cnn_clock(); }
#else
static long long read_clock(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

long long cnn_clock(void) { return read_clock(CLOCK_MONOTONIC); }

static long long running(void) { return read_clock(CLOCK_THREAD_CPUTIME_ID); }
#endif

void cnn_work_shared(cnn_team *team, cnn_task task, void *job, char *scratch)
{
    long long begin = running();
    while (!cnn_interrupted()) {
        isize i = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED);
        if (i >= team->tasks) break;
        task(job, i, scratch);
    }
    __atomic_fetch_add(&team->worked, running() - begin, __ATOMIC_RELAXED);
}

enum {
    SIZES = 64,
    LOSS = 2,  /* a loss weighs as much as two gains */
    MANY = 8,  /* four losses in a row */
    CALLS = 20 /* a rest is as long as so many of the calls */
};
/* In nanoseconds: the system needs a while to give threads cores of their own; a rest,
 * at least. */
#define PATIENCE 4000000ll
#define REST 50000000ll

/* Of calls of 2^i multiply-adds. Several callers may race: then an entry is lost. */
static struct {
    long long since; /* when the losses began */
    long long until; /* when a team is tried again */
    int losses;
} sizes[SIZES];

static int size_of(double work)
{
    int size = 0;
    for (; work >= 2 && size < SIZES - 1; size++) work /= 2;
    return size;
}

int cnn_team_pays(double work, long long now)
{
    return now >= LOAD(sizes[size_of(work)].until);
}

void cnn_team_took(double work, long long begin, long long end, long long worked)
{
    int i = size_of(work), losses = LOAD(sizes[i].losses);
    long long rest = CALLS * (end - begin);
    if (end - begin <= worked) {
        if (losses > 0) STORE(sizes[i].losses, losses - 1);
        return;
    }
    if (losses == 0) STORE(sizes[i].since, begin);
    if (losses < MANY) losses += LOSS;
    if (losses >= MANY && end - LOAD(sizes[i].since) >= PATIENCE) {
        STORE(sizes[i].until, end + (rest > REST ? rest : REST));
        losses = 0;
    }
    STORE(sizes[i].losses, losses);
}
