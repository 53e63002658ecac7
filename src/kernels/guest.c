/* Manners inside of somebody else's process: the CPU's floating-point state of every
 * thread is as the kernels need it while they run and as it was when they are done;
 * and a long call stops where Python has a signal to handle. */
#include <stddef.h>
#if defined(_WIN32)
#include <windows.h>
#else
#include <time.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif
#include "runtime.h"

/* Rounding to nearest, nothing trapped; subnormals as IEEE says, or zeros in and out.
 * The same in all threads: the same bits whoever computes. The state holds the flags
 * of past exceptions too, so that they come back as they were. */
unsigned long long cnn_enter(int flush)
{
#if defined(__x86_64__) || defined(_M_X64)
    unsigned before = _mm_getcsr();
    _mm_setcsr(flush ? 0x1f80 | 0x8040 : 0x1f80);
    return before;
#elif defined(__aarch64__) || defined(_M_ARM64)
    unsigned long long control, flags, now = flush ? 1ull << 24 : 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(flags));
    __asm__ volatile("msr fpcr, %0" : : "r"(now));
    return control | flags << 32;
#else
    (void)flush;
    return 0;
#endif
}

void cnn_leave(unsigned long long before)
{
#if defined(__x86_64__) || defined(_M_X64)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__) || defined(_M_ARM64)
    __asm__ volatile("msr fpcr, %0" : : "r"(before & 0xffffffffull));
    __asm__ volatile("msr fpsr, %0" : : "r"(before >> 32));
#else
    (void)before;
#endif
}

/* A clock that is cheap to read; a few milliseconds do not matter. */
static double seconds(void)
{
#if defined(_WIN32)
    return GetTickCount64() * 1e-3;
#else
    struct timespec t;
#if defined(CLOCK_MONOTONIC_COARSE)
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
#endif
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}

/* Asking takes the interpreter's lock: not more often than this, in seconds. */
#define PATIENCE 0.05

static _Thread_local cnn_guest current; /* what this thread works for */
static _Thread_local double looked, asked;

cnn_guest cnn_begin(int *stop, int (*ask)(void), int flush)
{
    cnn_guest outer = current;
    current.stop = stop;
    current.ask = ask;
    current.flush = flush;
    current.before = cnn_enter(flush);
    return outer;
}

void cnn_end(cnn_guest outer)
{
    cnn_leave(current.before);
    current = outer;
}

/* A signal's handler is the caller's code and may call operators itself. */
static void ask_python(void)
{
    cnn_guest own = current;
    cnn_leave(own.before);
    current = (cnn_guest){0};
    int raised = own.ask();
    current = own;
    current.before = cnn_enter(own.flush);
    if (raised) __atomic_store_n(own.stop, 1, __ATOMIC_RELAXED);
}

int cnn_interrupted(void)
{
    int *stop = current.stop;
    if (!stop) return 0;
    if (current.ask) {
        double now = seconds();
        looked = now;
        if (now > asked + PATIENCE && !__atomic_load_n(stop, __ATOMIC_RELAXED)) {
            asked = now;
            ask_python();
        }
    }
    return __atomic_load_n(stop, __ATOMIC_RELAXED);
}

/* Where tasks are short, to look at the clock before each would cost more than they. */
void cnn_work(cnn_task task, void *job, isize tasks, char *scratch)
{
    isize i = 0, some = 1;
    double last = -1;
    while (i < tasks && !cnn_interrupted()) {
        if (looked < last + 1e-3 && some < 64) some *= 2;
        last = looked;
        isize end = tasks - i < some ? tasks : i + some;
        for (; i < end; i++) task(job, i, scratch);
    }
}
