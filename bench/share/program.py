#!/usr/bin/python3
"""What bench/share.py runs in the guest and on the host: program.py DIRECTORY ROUNDS measures file operations there."""

import mmap
import os
import pathlib
import shutil
import sys
import time

SIZE = 256 << 20
CHUNK = 1 << 20
ROUNDS = int(sys.argv[2])  # of which the best counts


def drop_caches():
    if os.environ.get("IN_GUEST"):
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def best_s(work, before):
    best = None
    for _ in range(ROUNDS):
        if before:
            before()
        begun = time.perf_counter()
        work()
        took = time.perf_counter() - begun
        best = took if best is None else min(best, took)
    return best


def us(name, count, work, before=None):
    print("%-34s %9.1f us" % (name, best_s(work, before) / count * 1e6), flush=True)


def mb(name, work, before=None):
    print("%-34s %9.0f MB/s" % (name, SIZE / best_s(work, before) / 1e6), flush=True)


def requests():
    def nothing():
        for number in range(3000):
            try:
                os.stat("none%d" % number)
            except OSError:
                pass

    def attribute():
        for _ in range(3000):
            try:
                os.getxattr("file", "user.none")
            except OSError:
                pass

    def open_close():
        for _ in range(3000):
            os.close(os.open("file", os.O_RDONLY))

    def create():
        for number in range(300):
            os.close(os.open("new%d" % number, os.O_RDWR | os.O_CREAT, 0o644))

    def unlink():
        for number in range(300):
            if os.path.exists("new%d" % number):
                os.unlink("new%d" % number)

    pathlib.Path("file").write_text("x")
    us("attribute that is not there", 3000, attribute)
    us("name that is not there", 3000, nothing)
    us("open and close", 3000, open_close)
    us("create and close", 300, create, unlink)
    us("unlink", 300, unlink, create)


def throughput():
    def write():
        for at in range(0, SIZE, CHUNK):
            os.pwrite(fd, buffer, at)

    def read():
        for at in range(0, SIZE, CHUNK):
            os.preadv(fd, [buffer], at)

    def read_pages():
        for number in range(3000):
            os.preadv(fd, [page], number * 7919 % (SIZE >> 12) << 12)

    buffer, page = mmap.mmap(-1, CHUNK), mmap.mmap(-1, 4096)
    buffer[:] = os.urandom(4096) * (CHUNK >> 12)
    fd = os.open("big", os.O_RDWR | os.O_CREAT)
    write()
    mb("write, a new file", write, lambda: os.ftruncate(fd, 0))
    mb("write again", write)
    mb("read, not in the guest's cache", read, drop_caches)
    mb("read, in the guest's cache", read)
    os.close(fd)
    if os.environ.get("IN_GUEST"):  # the host's would go to the disk
        fd = os.open("big", os.O_RDWR | os.O_DIRECT)
        mb("write, O_DIRECT", write)
        mb("read, O_DIRECT", read)
        us("read of 4 KiB, O_DIRECT", 3000, read_pages)
        os.close(fd)
    os.unlink("big")


def trees():
    def make():
        for folder in range(50):
            os.mkdir("tree%d" % folder)
            for number in range(60):
                pathlib.Path("tree%d/%d" % (folder, number)).write_bytes(b"x" * 1000)

    def walk():
        for folder in range(50):
            for name in os.listdir("tree%d" % folder):
                os.lstat("tree%d/%s" % (folder, name))

    make()
    us("list and stat, a file", 3000, walk, drop_caches)
    us("list and stat again, a file", 3000, walk)
    for folder in range(50):
        shutil.rmtree("tree%d" % folder)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    requests()
    throughput()
    trees()
