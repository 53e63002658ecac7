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
    LOSS = 2, /* a loss weighs as much as two gains */
    MANY = 6, /* three losses in a row */
    SHORT = 20 /* times a call's own: the first rest */
};
#define LONG 50000000ll /* nanoseconds: rests do not grow beyond this */

/* Of calls of 2^i multiply-adds. Several callers may race: then an entry is lost. */
static struct {
    long long until; /* when a team is tried again */
    long long rest;
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
    long long rest = LOAD(sizes[i].rest), least = SHORT * (end - begin);
    if (end - begin <= worked) {
        if (losses == 0) return;
        STORE(sizes[i].losses, losses - 1);
        if (losses == 1) STORE(sizes[i].rest, 0);
        return;
    }
    losses += LOSS;
    if (losses < MANY) {
        STORE(sizes[i].losses, losses);
        return;
    }
    rest = rest < LONG / 2 ? 2 * rest : LONG;
    if (rest < least) rest = least;
    STORE(sizes[i].rest, rest);
    STORE(sizes[i].until, end + rest);
    STORE(sizes[i].losses, MANY - LOSS); /* one more loss is enough */
}
