/* A disk that can fail, between a program and the files of one directory: preload it (LD_PRELOAD).
 *
 *   DISK_DIR    the directory; other files are left alone, and so are shared-memory files (-shm)
 *   DISK_FAIL   this sync of such a file, counted from 1, fails with EIO
 *   DISK_CUT    at this sync the power is cut: of what no sync has covered each sector is as it was or as it was written, by
 *               chance, and the process ends with 9
 *   DISK_SEED   the chance
 *   DISK_COUNT  a file into which the number of syncs is written when the process ends in order
 *
 * Not modelled: that the name of a new file is lost, since its directory was not synced.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define SECTOR 512

/* What a write, or a truncation, has replaced. */
struct undo {
    struct undo *older;
    char *path;       /* opened anew at the cut: to close a duplicate of a descriptor would give up the program's locks */
    ino_t inode;
    off64_t at, size; /* where; and how long the file was */
    size_t len;       /* in bytes, of which `had` were there */
    size_t had;
    unsigned char *bytes;
};

static struct undo *newest;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long syncs;
static unsigned long long chance;

static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_ftruncate)(int, off64_t);
static int (*real_sync)(int);

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

__attribute__((constructor)) static void begin(void) {
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_sync = dlsym(RTLD_NEXT, "fdatasync");
    chance = 0x9e3779b97f4a7c15ULL * (unsigned long long)(number("DISK_SEED") + 1);
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("DISK_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld", syncs);
        fclose(file);
    }
}

static int coin(void) {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (chance >> 33) & 1;
}

static const char *path_of(int fd) {
    static _Thread_local char path[PATH_MAX];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    path[len > 0 ? len : 0] = 0;
    return path;
}

static int is_ours(int fd) {
    const char *dir = getenv("DISK_DIR"), *path = path_of(fd);
    return dir && strncmp(path, dir, strlen(dir)) == 0 && !strstr(path, "-shm");
}

static void remember(int fd, size_t len, off64_t at) {
    struct stat64 stat;
    if (fstat64(fd, &stat) != 0 || !S_ISREG(stat.st_mode)) return;
    struct undo *undo = calloc(1, sizeof *undo);
    *undo = (struct undo){newest, strdup(path_of(fd)), stat.st_ino, at, stat.st_size, len, 0, calloc(1, len + 1)};
    ssize_t had = pread64(fd, undo->bytes, len, at);
    undo->had = had > 0 ? (size_t)had : 0;
    newest = undo;
}

/* A sector whose newest content was kept: what older writes have replaced there does not come back. */
struct kept {
    struct kept *next;
    ino_t inode;
    off64_t sector;
};

static void cut(void) {
    struct kept *kept = NULL;
    for (struct undo *undo = newest; undo; undo = undo->older) {
        off64_t longest = 0;
        struct stat64 now;
        int fd = open(undo->path, O_RDWR);
        /* Another file may have the name by now. */
        if (fd < 0 || fstat64(fd, &now) != 0 || now.st_ino != undo->inode) continue;
        off64_t end = undo->at + (off64_t)undo->len;
        for (off64_t sector = undo->at / SECTOR; sector * SECTOR < end; sector++) {
            struct kept *it = kept;
            while (it && (it->inode != undo->inode || it->sector != sector)) it = it->next;
            off64_t from = sector * SECTOR > undo->at ? sector * SECTOR : undo->at;
            off64_t to = (sector + 1) * SECTOR < end ? (sector + 1) * SECTOR : end;
            if (it || coin()) {
                if (!it) {
                    it = malloc(sizeof *it);
                    *it = (struct kept){kept, undo->inode, sector};
                    kept = it;
                }
                if (to > longest) longest = to;
            } else {
                real_pwrite(fd, undo->bytes + (from - undo->at), (size_t)(to - from), from);
            }
        }
        /* What was behind the end is gone, unless something of it was kept. */
        struct stat64 stat;
        if (fstat64(fd, &stat) == 0 && stat.st_size > undo->size && longest <= undo->size) {
            int others = 0;
            for (struct kept *it = kept; it; it = it->next)
                others |= it->inode == undo->inode && (it->sector + 1) * SECTOR > undo->size;
            if (!others) real_ftruncate(fd, undo->size);
        }
    }
    _exit(9);
}

/* Under the lock: 0 when the sync may be done. */
static int before_sync(int fd) {
    syncs++;
    if (syncs == number("DISK_CUT")) cut();
    if (syncs == number("DISK_FAIL")) {
        errno = EIO;
        return -1;
    }
    struct stat64 stat;
    if (fstat64(fd, &stat) != 0) return 0;
    for (struct undo **place = &newest; *place;) {
        struct undo *undo = *place;
        if (undo->inode == stat.st_ino) {
            *place = undo->older;
            free(undo->path);
            free(undo->bytes);
            free(undo);
        } else {
            place = &undo->older;
        }
    }
    return 0;
}

static int sync_file(int fd) {
    if (!is_ours(fd)) return real_sync(fd);
    pthread_mutex_lock(&mutex);
    int refused = before_sync(fd);
    pthread_mutex_unlock(&mutex);
    /* A real sync would add nothing: this process dies, and the system goes on. */
    return refused;
}

int fdatasync(int fd) { return sync_file(fd); }
int fsync(int fd) { return sync_file(fd); }

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    if (!is_ours(fd)) return real_pwrite(fd, bytes, len, at);
    pthread_mutex_lock(&mutex);
    remember(fd, len, at);
    ssize_t written = real_pwrite(fd, bytes, len, at);
    pthread_mutex_unlock(&mutex);
    return written;
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return pwrite64(fd, bytes, len, at); }

ssize_t write(int fd, const void *bytes, size_t len) {
    if (!is_ours(fd)) return real_write(fd, bytes, len);
    pthread_mutex_lock(&mutex);
    remember(fd, len, lseek64(fd, 0, SEEK_CUR));
    ssize_t written = real_write(fd, bytes, len);
    pthread_mutex_unlock(&mutex);
    return written;
}

int ftruncate64(int fd, off64_t size) {
    if (!is_ours(fd)) return real_ftruncate(fd, size);
    pthread_mutex_lock(&mutex);
    struct stat64 stat;
    if (fstat64(fd, &stat) == 0 && stat.st_size > size) remember(fd, (size_t)(stat.st_size - size), size);
    int done = real_ftruncate(fd, size);
    pthread_mutex_unlock(&mutex);
    return done;
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
