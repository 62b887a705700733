/* Preloaded into a process: lets the n-th of its calls of one kind fail, as a full disk, a bad one,
 * a process with too many open files or a machine without memory would have it. Calls are counted
 * from `fail_arm` on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define LARGE (32 << 10) /* allocations from this size on are counted */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

enum { NOTHING, FILES, MEMORY };
static int kind, error, lasting;
static long count, nth;
static const char *below = "/results"; /* only files with this in their path are counted */

/* Fail the `n`-th call of a kind with `e`; and all later ones where `l`. 0: fail none, count. */
void fail_arm(int k, long n, int e, int l) { nth = n, error = e, lasting = l, count = 0, kind = k; }
long fail_count(void) { return count; }

static int fails(int k) {
    if (kind != k) return 0;
    long i = __sync_add_and_fetch(&count, 1);
    if (!nth || (lasting ? i < nth : i != nth)) return 0;
    errno = k == MEMORY ? ENOMEM : error;
    return 1;
}

static int ours(const char *path) {
    return kind == FILES && path && (strstr(path, below) || !strncmp(path, below + 1, strlen(below) - 1));
}

static int mine(int fd) {
    char name[32], path[4096];
    if (kind != FILES) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return ours(path);
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = dlsym(RTLD_NEXT, #name)
#define BY_FD(type, name, declared, given) \
    type name declared { NEXT(name); if (mine(fd) && fails(FILES)) return -1; return next given; }
#define BY_PATH(name, declared, given) \
    int name declared { NEXT(name); if (ours(path) && fails(FILES)) return -1; return next given; }

BY_FD(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n))
BY_FD(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
BY_FD(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
BY_FD(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
BY_FD(int, fsync, (int fd), (fd))
BY_FD(int, fdatasync, (int fd), (fd))
BY_FD(int, ftruncate, (int fd, off_t n), (fd, n))
BY_FD(int, ftruncate64, (int fd, off64_t n), (fd, n))
BY_PATH(mkdir, (const char *path, mode_t m), (path, m))
BY_PATH(mkdirat, (int d, const char *path, mode_t m), (d, path, m))
BY_PATH(rename, (const char *from, const char *path), (from, path))
BY_PATH(renameat, (int d, const char *from, int e, const char *path), (d, from, e, path))
BY_PATH(link, (const char *from, const char *path), (from, path))
BY_PATH(linkat, (int d, const char *from, int e, const char *path, int f), (d, from, e, path, f))
BY_PATH(symlink, (const char *from, const char *path), (from, path))
BY_PATH(symlinkat, (const char *from, int e, const char *path), (from, e, path))

#define OPENS(name, declared, given) \
    int name declared { \
        NEXT(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT) && ours(path) && fails(FILES)) return -1; \
        return next given; \
    }

OPENS(open, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat, (int d, const char *path, int flags, ...), (d, path, flags, mode))
OPENS(openat64, (int d, const char *path, int flags, ...), (d, path, flags, mode))

void *malloc(size_t n) { return n >= LARGE && fails(MEMORY) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t m) {
    return n * m >= LARGE && fails(MEMORY) ? NULL : __libc_calloc(n, m);
}
void *realloc(void *p, size_t n) {
    return n >= LARGE && fails(MEMORY) ? NULL : __libc_realloc(p, n);
}
void *memalign(size_t a, size_t n) {
    return n >= LARGE && fails(MEMORY) ? NULL : __libc_memalign(a, n);
}
void *aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
    int before = errno;
    void *made = memalign(a, n);
    errno = before;
    if (!made) return ENOMEM;
    *p = made;
    return 0;
}
void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t o) {
    if (flags & MAP_ANONYMOUS && n >= LARGE && fails(MEMORY)) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, o);
}
void *mmap64(void *at, size_t n, int prot, int flags, int fd, off64_t o) {
    return mmap(at, n, prot, flags, fd, o);
}
