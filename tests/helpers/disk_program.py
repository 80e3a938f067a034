"""Writes a model on a disk that fails, again and again, each time a little later, until the model is whole.

python disk_program.py WRITER SOURCE DISK KEEP full       DISK becomes a tmpfs of a few pages, which grows
python disk_program.py WRITER SOURCE DISK KEEP NUMBER     writes in DISK fail with this errno, after some; under SHIM
python disk_program.py WRITER SOURCE DISK KEEP calm       nothing fails

Each failure must be an OutputError, which is printed, and leave nothing but an unfinished run. The result goes to KEEP.
"""

import ctypes
import hashlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from twofour.prune import PruneConfig, prune
from twofour.prune.errors import OutputError
from twofour.prune.label.convert import convert
from twofour.prune.model import demo_model

PAGES_KIB, CALLS, FIRST_KIB = 16, 3, 112  # so much further each attempt may come; where the first one begins

# From the call FAULT_AFTER on, what writes to a file below FAULT_BELOW fails with FAULT_NUMBER.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
static long left = -1;
static int number;
static char below[4096];
void fail_after(long calls, int with, const char *folder) {
    left = calls; number = with; snprintf(below, sizeof below, "%s/", folder);
}
static int fails(int file) {
    char link[64], path[4096];
    if (left < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path);
    if (length < (ssize_t)strlen(below) || strncmp(path, below, strlen(below))) return 0;
    if (left > 0) { left--; return 0; }
    errno = number;
    return 1;
}
#define CALL(type, name, declared, given) \
    type name declared { \
        static type (*real) declared; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        return fails(file) ? -1 : real given; \
    }
CALL(ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
CALL(ssize_t, writev, (int file, const struct iovec *parts, int count), (file, parts, count))
CALL(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
CALL(ssize_t, copy_file_range, (int in, off64_t *at, int file, off64_t *to, size_t size, unsigned flags),
     (in, at, file, to, size, flags))
CALL(ssize_t, sendfile64, (int file, int from, off64_t *at, size_t size), (file, from, at, size))
CALL(int, fsync, (int file), (file))
CALL(int, ftruncate64, (int file, off64_t size), (file, size))
"""


def demo(source: Path, out: Path) -> None:
    demo_model.SHA256 = hashlib.sha256(source.read_bytes()).hexdigest()  # the test's own wheel
    demo_model.make(out, source)


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "prune": lambda source, out: prune(source, out, PruneConfig(preset="fast", samples=4, length=32)),
    "convert": lambda source, out: convert(source, out, "dense"),
    "demo-model": demo,
}


def main(writer: str, source: Path, disk: Path, keep: Path, how: str) -> None:
    for attempt in itertools.count():
        make_worse(how, disk, attempt)
        try:
            WRITERS[writer](source, disk / "out")
            break
        except OutputError as error:
            left = sorted(path.name for path in disk.iterdir())
            assert left in ([], [".out.unfinished"] if writer == "prune" else []), left
            print(error)
    shutil.copytree(disk / "out", keep)
    print("left", sorted(path.name for path in disk.iterdir()))


def make_worse(how: str, disk: Path, attempt: int) -> None:
    if how == "full":
        size, known = f"size={FIRST_KIB + attempt * PAGES_KIB}k", ["remount"] if attempt else []
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([*known, size]), "tmpfs", disk], check=True)
    elif how != "calm":
        ctypes.CDLL(None).fail_after(ctypes.c_long(attempt * CALLS), int(how), str(disk).encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
