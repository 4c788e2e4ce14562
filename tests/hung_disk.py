"""A folder on a disk that can be made to hang, as a network disk does whose server is away.

Processes with `environment` wait in whatever they ask of the system that concerns the folder, for
as long as it hangs; Python lets its other threads go on meanwhile, as with a real disk.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRAPPER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <dirent.h>

static int hangs(void) {
    const char *flag = getenv("HUNG_DISK_FLAG");
    return flag && syscall(SYS_faccessat, AT_FDCWD, flag, F_OK) == 0;
}

static void wait_until_back(const char *path) {
    const char *folder = getenv("HUNG_DISK");
    int kept = errno;
    if (path && folder && strncmp(path, folder, strlen(folder)) == 0)
        while (hangs()) {
            struct timespec moment = {0, 20000000};
            syscall(SYS_nanosleep, &moment, NULL);
        }
    errno = kept;
}

static void wait_for_path(int at, const char *path) {
    (void)at;
    int kept = errno;
    if (hangs()) wait_until_back(path);
    errno = kept;
}

static void wait_for_file(int file) {
    char link[64], path[4096];
    int kept = errno;
    if (hangs()) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
        if (size > 0) { path[size] = 0; wait_until_back(path); }
    }
    errno = kept;
}

#define REAL(name) \
    static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON_PATH(type, name, path, words, values) \
    type name words { REAL(name); wait_for_path(AT_FDCWD, path); return real values; }
#define ON_FILE(type, name, file, words, values) \
    type name words { REAL(name); wait_for_file(file); return real values; }
#define MODE va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest)

int open(const char *p, int flags, ...)
    { MODE; REAL(open); wait_for_path(AT_FDCWD, p); return real(p, flags, mode); }
int open64(const char *p, int flags, ...)
    { MODE; REAL(open64); wait_for_path(AT_FDCWD, p); return real(p, flags, mode); }
int openat(int d, const char *p, int flags, ...)
    { MODE; REAL(openat); wait_for_path(d, p); return real(d, p, flags, mode); }
int openat64(int d, const char *p, int flags, ...)
    { MODE; REAL(openat64); wait_for_path(d, p); return real(d, p, flags, mode); }
ON_PATH(FILE *, fopen, p, (const char *p, const char *m), (p, m))
ON_PATH(FILE *, fopen64, p, (const char *p, const char *m), (p, m))
ON_PATH(DIR *, opendir, p, (const char *p), (p))
ON_PATH(int, stat, p, (const char *p, struct stat *s), (p, s))
ON_PATH(int, lstat, p, (const char *p, struct stat *s), (p, s))
ON_PATH(int, stat64, p, (const char *p, struct stat64 *s), (p, s))
ON_PATH(int, lstat64, p, (const char *p, struct stat64 *s), (p, s))
ON_PATH(int, fstatat, p, (int d, const char *p, struct stat *s, int f), (d, p, s, f))
ON_PATH(int, fstatat64, p, (int d, const char *p, struct stat64 *s, int f), (d, p, s, f))
ON_PATH(int, access, p, (const char *p, int m), (p, m))
ON_PATH(int, mkdir, p, (const char *p, mode_t m), (p, m))
ON_PATH(int, mkdirat, p, (int d, const char *p, mode_t m), (d, p, m))
ON_PATH(int, rename, p, (const char *p, const char *t), (p, t))
ON_PATH(int, renameat, p, (int d, const char *p, int e, const char *t), (d, p, e, t))
ON_PATH(int, unlink, p, (const char *p), (p))
ON_PATH(int, unlinkat, p, (int d, const char *p, int f), (d, p, f))
ON_PATH(int, rmdir, p, (const char *p), (p))
ON_PATH(ssize_t, readlink, p, (const char *p, char *b, size_t n), (p, b, n))
ON_FILE(int, fstat, f, (int f, struct stat *s), (f, s))
ON_FILE(int, fstat64, f, (int f, struct stat64 *s), (f, s))
ON_FILE(ssize_t, read, f, (int f, void *b, size_t n), (f, b, n))
ON_FILE(ssize_t, write, f, (int f, const void *b, size_t n), (f, b, n))
ON_FILE(ssize_t, pread, f, (int f, void *b, size_t n, off_t o), (f, b, n, o))
ON_FILE(ssize_t, pread64, f, (int f, void *b, size_t n, off64_t o), (f, b, n, o))
ON_FILE(int, ftruncate, f, (int f, off_t n), (f, n))
ON_FILE(int, ftruncate64, f, (int f, off64_t n), (f, n))
"""


class HungDisk:
    """A folder on such a disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "disk"
        self._flag = folder / "hangs"
        self._library = folder / "hung_disk.so"
        self.folder.mkdir()

    def build(self) -> None:
        """Make what the processes are wrapped in."""
        source = self._library.with_suffix(".c")
        source.write_text(WRAPPER)
        options = ("-shared", "-fPIC", "-O1", "-w")
        command = ["gcc", *options, "-o", str(self._library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        self._library.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process wait for this disk."""
        words = {
            "HUNG_DISK": self.folder,
            "HUNG_DISK_FLAG": self._flag,
            "LD_PRELOAD": self._library,
        }
        return {name: str(path) for name, path in words.items()}

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Let it hang for a while."""
        self._flag.touch()
        try:
            yield
        finally:
            self._flag.unlink()
