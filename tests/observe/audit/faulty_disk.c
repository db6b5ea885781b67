/* A disk that can fail, for one file. Loaded before libc (LD_PRELOAD).
 *
 * FAULT_FILE is the file. FAULT_CONTROL is read at each call: its first byte is 'e' (fsync fails with EIO),
 * 'n' (write fails with ENOSPC), 's' (writes are short, then fail) or anything else (all is well).
 * FAULT_SHADOW is what a power cut would leave: only what an fsync brought to the disk. As on Linux, a failed
 * fsync marks pages clean, so that what they held never gets there unless it is written again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_DIRTY 4096
static struct { off_t offset; size_t size; } dirty[MAX_DIRTY];
static int dirty_count;

static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

__attribute__((constructor)) static void find(void) {
    real_write = dlsym(RTLD_NEXT, "write");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
}

static int is_ours(int fd) {
    const char *path = getenv("FAULT_FILE");
    struct stat wanted, found;
    return path && stat(path, &wanted) == 0 && fstat(fd, &found) == 0 && wanted.st_ino == found.st_ino
        && wanted.st_dev == found.st_dev;
}

static char mode(void) {
    char byte = '-';
    int fd = open(getenv("FAULT_CONTROL"), O_RDONLY);
    if (fd >= 0) {
        if (read(fd, &byte, 1) != 1) byte = '-';
        close(fd);
    }
    return byte;
}

ssize_t write(int fd, const void *data, size_t size) {
    if (!is_ours(fd)) return real_write(fd, data, size);
    char now = mode();
    if (now == 'n' || (now == 's' && size < 64)) {
        errno = ENOSPC;
        return -1;
    }
    ssize_t written = real_write(fd, data, now == 's' ? size / 2 : size);
    if (written > 0) {
        if (dirty_count == MAX_DIRTY) abort();
        dirty[dirty_count].offset = lseek(fd, 0, SEEK_CUR) - written;
        dirty[dirty_count++].size = written;
    }
    return written;
}

static int sync_ours(int fd, int (*real)(int)) {
    if (!is_ours(fd)) return real(fd);
    if (mode() == 'e') {
        dirty_count = 0;
        errno = EIO;
        return -1;
    }
    int shadow = open(getenv("FAULT_SHADOW"), O_RDWR | O_CREAT, 0600);
    struct stat status;
    if (shadow < 0 || fstat(fd, &status) != 0) abort();
    for (int i = 0; i < dirty_count; i++) {
        char *part = malloc(dirty[i].size);
        ssize_t got = pread(fd, part, dirty[i].size, dirty[i].offset);
        if (got > 0 && pwrite(shadow, part, got, dirty[i].offset) != got) abort();
        free(part);
    }
    dirty_count = 0;
    if (ftruncate(shadow, status.st_size) != 0) abort();
    close(shadow);
    return real(fd);
}

int fsync(int fd) { return sync_ours(fd, real_fsync); }
int fdatasync(int fd) { return sync_ours(fd, real_fdatasync); }
