/* Preloaded into a server or the product: what a power cut, a full disk and a wrong clock do.
 *
 * VF_SHIM_CONTROL names a file that the test maps, too; it holds four int64:
 *   [0] nanoseconds added to the wall clock     [1] 1: writes below VF_SHIM_WATCH meet a full disk
 *   [2] 1: writes below VF_SHIM_WATCH are noted so that they can be undone     [3] unused
 * VF_SHIM_JOURNAL names a directory with one file of notes for each inode, `<inode>.undo`, and one
 * that says up to where they are on disk for sure, `<inode>.mark`: the length of the notes when an
 * fsync that succeeded began. A power cut is SIGKILL and then undoing, newest first, what is noted
 * beyond the mark. (SIGKILL alone keeps the page cache, and with it every write nobody fsynced.)
 *
 * Not undone, so taken for durable at once: creating, renaming, truncating and deleting files.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

struct note { int64_t offset, length, old_length, old_size; };

static volatile int64_t *control;
static const char *watch, *journal;

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("VF_SHIM_CONTROL");
    /* Copies: servers that show a title in ps write over their environment. */
    watch = getenv("VF_SHIM_WATCH") ? strdup(getenv("VF_SHIM_WATCH")) : NULL;
    journal = getenv("VF_SHIM_JOURNAL") ? strdup(getenv("VF_SHIM_JOURNAL")) : NULL;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, 4 * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) control = map;
    close(fd);
}

static int is_on(int index) { return control && control[index]; }

/* Whether a descriptor is a regular file below the watched directory. */
static int is_watched(int fd, struct stat *found) {
    char link[64], path[4096];
    if (!watch || fstat(fd, found) || !S_ISREG(found->st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t prefix = strlen(watch);
    return length > (ssize_t)prefix && !strncmp(path, watch, prefix) && path[prefix] == '/';
}

static int open_notes(const struct stat *found, const char *kind) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%llu.%s", journal, (unsigned long long)found->st_ino, kind);
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

/* Note what a write is about to replace. */
static void note_write(int fd, const struct stat *found, off_t offset, size_t length) {
    static const char nothing[1];
    struct note head = {offset, (int64_t)length, 0, found->st_size};
    int64_t behind = found->st_size - offset;
    if (behind > 0) head.old_length = behind < (int64_t)length ? behind : (int64_t)length;
    char *old = head.old_length ? malloc((size_t)head.old_length) : (char *)nothing;
    if (!old) abort();
    for (int64_t at = 0; at < head.old_length;) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        /* The descriptor may be write-only. */
        int reader = open(link, O_RDONLY | O_CLOEXEC);
        if (reader < 0) abort();
        ssize_t got = pread(reader, old + at, (size_t)(head.old_length - at), offset + at);
        close(reader);
        if (got <= 0) { head.old_length = at; break; }
        at += got;
    }
    struct iovec parts[2] = {{&head, sizeof head}, {old, (size_t)head.old_length}};
    int notes = open_notes(found, "undo");
    if (notes < 0 || syscall(SYS_writev, notes, parts, 2) < (long)sizeof head) abort();
    close(notes);
    if (head.old_length) free(old);
}

/* Called before each write. Returns how many bytes the disk takes, -1 when it is full. */
static ssize_t prepare(int fd, off_t offset, size_t length) {
    struct stat found;
    if (!is_on(1) && !is_on(2)) return (ssize_t)length;
    int saved = errno;
    int watched = is_watched(fd, &found);
    if (!watched) { errno = saved; return (ssize_t)length; }
    if (is_on(1)) {
        /* The last bytes that fit, then nothing more: a torn write. */
        static __thread int torn;
        if (length > 1 && !torn) { torn = 1; length /= 2; }
        else { torn = 0; errno = ENOSPC; return -1; }
    }
    if (is_on(2) && journal) {
        if (offset < 0)
            offset = fcntl(fd, F_GETFL) & O_APPEND ? found.st_size : lseek(fd, 0, SEEK_CUR);
        note_write(fd, &found, offset, length);
    }
    errno = saved;
    return (ssize_t)length;
}

ssize_t write(int fd, const void *data, size_t length) {
    ssize_t taken = prepare(fd, -1, length);
    return taken < 0 ? -1 : syscall(SYS_write, fd, data, (size_t)taken);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    ssize_t taken = prepare(fd, offset, length);
    return taken < 0 ? -1 : syscall(SYS_pwrite64, fd, data, (size_t)taken, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return pwrite(fd, data, length, offset);
}

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    size_t length = total(parts, count);
    ssize_t taken = prepare(fd, -1, length);
    if (taken < 0) return -1;
    if ((size_t)taken < length) { errno = ENOSPC; return -1; }
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    size_t length = total(parts, count);
    ssize_t taken = prepare(fd, offset, length);
    if (taken < 0) return -1;
    if ((size_t)taken < length) { errno = ENOSPC; return -1; }
    return REAL(pwritev)(fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return pwritev(fd, parts, count, offset);
}

int posix_fallocate(int fd, off_t offset, off_t length) {
    struct stat found;
    if (is_on(1) && is_watched(fd, &found)) return ENOSPC;
    return REAL(posix_fallocate)(fd, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    return posix_fallocate(fd, offset, length);
}

/* What is noted when a successful fsync begins is on disk when it returns. */
static int synced(int fd, long call) {
    struct stat found, notes;
    char line[32];
    int noted = -1, marked = 0;
    if (is_on(2) && journal && is_watched(fd, &found)) {
        noted = open_notes(&found, "undo");
        if (noted >= 0 && !fstat(noted, &notes))
            marked = snprintf(line, sizeof line, "%lld\n", (long long)notes.st_size);
    }
    int status = (int)syscall(call, fd);
    int saved = errno;
    if (!status && marked) {
        int mark = open_notes(&found, "mark");
        if (mark < 0 || syscall(SYS_write, mark, line, (size_t)marked) != marked) abort();
        close(mark);
    }
    if (noted >= 0) close(noted);
    errno = saved;
    return status;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static void shift(struct timespec *at) {
    if (!control || !control[0]) return;
    int64_t now = at->tv_sec * 1000000000LL + at->tv_nsec + control[0];
    at->tv_sec = now / 1000000000LL;
    at->tv_nsec = now % 1000000000LL;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static __typeof__(&clock_gettime) next;
    if (!next) next = REAL(clock_gettime);
    int status = next(clock, at);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) shift(at);
    return status;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
