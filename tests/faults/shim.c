/* Counts a process's file-changing calls below one path prefix, in all its threads and children, and at the Nth dies,
 * fails or tears. Loaded by LD_PRELOAD; inert until the environment arms it:
 *   TBF_ROOT    prefix of the paths that count
 *   TBF_AT      N from 1; 0 only counts
 *   TBF_ACTION  kill | tear (half of a write, then kill) | an errno as a number
 *   TBF_STICKY  1: every counted call from the Nth on fails, too
 *   TBF_OPS     letters of the calls that count: c reate, w rite, s ync, r ename, l ink, u nlink, m kdir, d rmdir
 *   TBF_COUNT   a file of 16 bytes, mapped by all processes: the counter, and the letter of the call that was hit
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static const char *root, *ops;
static long at, action; /* action: errno, or one of the two below */
enum { KILL = -1, TEAR = -2 };
static int sticky;
static _Atomic long *counter;

__attribute__((constructor)) void fault_arm(void) {
    const char *file = getenv("TBF_COUNT"), *what = getenv("TBF_ACTION"), *given = getenv("TBF_ROOT");
    if (!given || !file) return;
    int descriptor = open(file, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    counter = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    at = atol(getenv("TBF_AT") ? getenv("TBF_AT") : "0");
    ops = strdup(getenv("TBF_OPS") ? getenv("TBF_OPS") : "cwsrlumd");
    sticky = getenv("TBF_STICKY") != NULL;
    action = !what || !strcmp(what, "kill") ? KILL : !strcmp(what, "tear") ? TEAR : atol(what);
    root = strdup(given);
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

/* 0: go on; 1: fail with errno; 2: tear. */
static int fault(char op, const char *path) {
    if (!root || !path || strncmp(path, root, strlen(root)) || !strchr(ops, op)) return 0;
    long number = atomic_fetch_add(counter, 1) + 1;
    if (!at || number < at || (number > at && !sticky)) return 0;
    counter[1] = op;
    if (action == KILL || (action == TEAR && op != 'w')) die();
    if (action == TEAR) return 2;
    errno = (int)action;
    return 1;
}

static int fault_fd(char op, int descriptor) {
    char link[64], path[4096];
    if (!root) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fault(op, path);
}

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        REAL(name);                                                  \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;  \
        va_end(rest);                                                \
        if ((flags & O_CREAT) && fault('c', path)) return -1;        \
        return real(path, flags, mode);                              \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                 \
    int name(int folder, const char *path, int flags, ...) {         \
        REAL(name);                                                  \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;  \
        va_end(rest);                                                \
        if ((flags & O_CREAT) && fault('c', path)) return -1;        \
        return real(folder, path, flags, mode);                      \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    int found = fault_fd('w', descriptor);
    if (found == 1) return -1;
    if (found == 2) {
        real(descriptor, data, size / 2);
        die();
    }
    return real(descriptor, data, size);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(writev);
    int found = fault_fd('w', descriptor);
    if (found == 1) return -1;
    if (found == 2) {
        real(descriptor, parts, (count + 1) / 2);
        die();
    }
    return real(descriptor, parts, count);
}

#define ON_FD(name)                                                     \
    int name(int descriptor) {                                          \
        REAL(name);                                                     \
        return fault_fd('s', descriptor) ? -1 : real(descriptor);       \
    }
ON_FD(fsync)
ON_FD(fdatasync)

#define ON_PATH(op, name, parameters, path, arguments)                  \
    int name parameters {                                               \
        REAL(name);                                                     \
        return fault(op, path) ? -1 : real arguments;                   \
    }
ON_PATH('r', rename, (const char *a, const char *b), b, (a, b))
ON_PATH('r', renameat, (int f, const char *a, int g, const char *b), b, (f, a, g, b))
ON_PATH('r', renameat2, (int f, const char *a, int g, const char *b, unsigned int flags), b, (f, a, g, b, flags))
ON_PATH('l', link, (const char *a, const char *b), b, (a, b))
ON_PATH('l', linkat, (int f, const char *a, int g, const char *b, int flags), b, (f, a, g, b, flags))
ON_PATH('u', unlink, (const char *path), path, (path))
ON_PATH('u', unlinkat, (int f, const char *path, int flags), path, (f, path, flags))
ON_PATH('m', mkdir, (const char *path, mode_t mode), path, (path, mode))
ON_PATH('m', mkdirat, (int f, const char *path, mode_t mode), path, (f, path, mode))
ON_PATH('d', rmdir, (const char *path), path, (path))
