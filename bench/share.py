#!/usr/bin/python3
"""A shared directory in a guest under the translator, against the same directory on the host:
bench/share.py [DIRECTORY] (default: a new one in the current directory; its file system is what is measured).

The best of a few rounds counts. The guest runs this very script by the host's Python, from the host's root shared
read-only."""

import mmap
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

SIZE = 256 << 20
CHUNK = 1 << 20


def drop_caches():
    if os.environ.get("IN_GUEST"):
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def best_s(work, rounds, before):
    best = None
    for _ in range(rounds):
        if before:
            before()
        begun = time.perf_counter()
        work()
        took = time.perf_counter() - begun
        best = took if best is None else min(best, took)
    return best


def us(name, count, work, rounds=5, before=None):
    print("%-34s %9.1f us" % (name, best_s(work, rounds, before) / count * 1e6), flush=True)


def mb(name, work, rounds=5, before=None):
    print("%-34s %9.0f MB/s" % (name, SIZE / best_s(work, rounds, before) / 1e6), flush=True)


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
    us("create and close", 300, create, 8, unlink)
    us("unlink", 300, unlink, 8, create)


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
    mb("write, a new file", write, 5, lambda: os.ftruncate(fd, 0))
    mb("write again", write)
    mb("read, not in the guest's cache", read, 5, drop_caches)
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
    us("list and stat, a file", 3000, walk, 3, drop_caches)
    us("list and stat again, a file", 3000, walk, 3)
    for folder in range(50):
        shutil.rmtree("tree%d" % folder)


def measure(directory):
    os.chdir(directory)
    requests()
    throughput()
    trees()


def guest(directory):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "guest"))
    from lodge import PROGRAM, ROOT, dev
    from test_share import HOST, LOAD, find_modules

    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        (place / "env").write_text("in=none\nout=pipe\n")
        (place / "command").write_text(LOAD + "mount -t virtiofs mnt /mnt && " + HOST +
                                       "IN_GUEST=1 chroot /host /usr/bin/python3 -B /tmp/program --here /mnt\n")
        files = {**find_modules(), "lodge/program": __file__, "lodge/env": place / "env",
                 "lodge/command": place / "command"}
        subprocess.run([ROOT / "tools" / "initramfs", "add", place / "own", *("%s=%s" % file for file in files.items())],
                       check=True)
        (place / "whole").write_bytes(pathlib.Path(dev("initrd", "cloud")).read_bytes() +
                                      (place / "own").read_bytes())
        subprocess.run([PROGRAM, "run", "--engine", "jit", "--memory", "1500M", "--kernel", dev("kernel", "cloud"),
                        "--initrd", place / "whole", "--cmdline", "console=ttyS0 panic=-1 quiet", "--share",
                        "%s:/mnt" % directory, "--share", "/:/host,ro"], stdin=subprocess.DEVNULL, check=True)


def main(arguments):
    if arguments[:1] == ["--here"]:
        measure(arguments[1])
        return
    parent = arguments[0] if arguments else "."
    with tempfile.TemporaryDirectory(dir=parent, prefix="share-") as directory:
        print("-- guest", flush=True)
        guest(os.path.abspath(directory))
        print("-- host", flush=True)
        subprocess.run([sys.executable, "-B", os.path.abspath(__file__), "--here", directory], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
