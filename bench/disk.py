#!/usr/bin/python3
"""Disk speed in a stock guest: Lodge's translator against QEMU's, and what the host's file gives.

One kernel, initramfs and image for both; fio in the guest with O_DIRECT (past the guest's page cache), the image on
the host with the cache mode named. The rounds alternate."""

import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading

import common
from disks import LOAD, TOOLS, make_tools, module_files

# fio's name, block, requests at once -> what for people, unit.
JOBS = [
    ("read", "1M", 4, "sequential read, 1M, 4 at a time", "MiB/s"),
    ("write", "1M", 4, "sequential write, 1M, 4 at a time", "MiB/s"),
    ("read", "128k", 4, "sequential read, 128K, 4 at a time", "MiB/s"),
    ("write", "128k", 4, "sequential write, 128K, 4 at a time", "MiB/s"),
    ("randread", "4k", 1, "4K random read, one at a time", "1/s"),
    ("randread", "4k", 16, "4K random read, 16 at a time", "1/s"),
    ("randwrite", "4k", 1, "4K random write, one at a time", "1/s"),
    ("randwrite", "4k", 16, "4K random write, 16 at a time", "1/s"),
]
WANTED = 2.0
IN_GUEST = """
%(load)s
mkdir /tools && mount -o ro /dev/vda /tools
for d in dev proc sys; do mount --bind /$d /tools/$d; done
mount -t tmpfs tmp /tools/tmp
%(jobs)s
echo ALL-DONE
poweroff -f
"""
COMMANDS_MAX_S = 600


def fio(job, target, options, engine="libaio", direct=1):
    name, block, depth = job[:3]
    return ["fio", "--name=b", "--filename=%s" % target, "--ioengine=%s" % engine, "--direct=%d" % direct, "--minimal",
            "--terse-version=3", "--time_based", "--runtime=%d" % options.seconds, "--size=%dM" % options.size,
            "--norandommap", "--randrepeat=0", "--rw=%s" % name, "--bs=%s" % block, "--iodepth=%d" % depth]


def rate(job, terse):
    """Of fio's terse line: MiB/s, or requests a second."""
    fields = terse.split(";")
    at = 6 if "read" in job[0] else 47
    return float(fields[at]) / 1024 if job[4] == "MiB/s" else float(fields[at + 1])


def make_initrd(folder, options):
    lines = ["chroot /tools /bin/%s | sed 's/^/RESULT-%d;/'" % (" ".join(fio(job, "/dev/vdb", options)), i)
             for i, job in enumerate(JOBS)]
    return common.make_initrd(folder, IN_GUEST % {"load": LOAD, "jobs": "\n".join(lines)}, module_files(), "in=none\n")


def commands(folder, initrd, options):
    tools, disk = folder / "tools.img", folder / "disk.img"
    return {
        "jit": common.lodge_command(initrd, "--net", "none", "--disk", "%s,format=raw,readonly" % tools, "--disk",
                                    "%s,format=raw,cache=%s" % (disk, options.cache)),
        "tcg": common.qemu_command(initrd, "-drive", "file=%s,id=t,if=none,format=raw,readonly=on" % tools, "-device",
                                   "virtio-blk-pci,drive=t", "-drive", "file=%s,id=d,if=none,format=raw,cache=%s"
                                   % (disk, options.cache), "-device", "virtio-blk-pci,drive=d"),
    }


def measure_guest(command):
    """Rates by job. It is ended when the last is there."""
    found = {}
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    timer = threading.Timer(COMMANDS_MAX_S, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            match = re.search(r"RESULT-(\d+);(3;fio.*)", line)
            if match:
                found[int(match[1])] = rate(JOBS[int(match[1])], match[2])
            if "ALL-DONE" in line:
                break
    finally:
        timer.cancel()
        process.send_signal(signal.SIGKILL)
        process.wait()
    if len(found) != len(JOBS):
        raise SystemExit("%s: only %d of %d jobs" % (command[0], len(found), len(JOBS)))
    return found


def measure_host(folder, options):
    found = {}
    for i, job in enumerate(JOBS):
        # With the page cache libaio is not asynchronous: io_uring is what a program would take.
        # It finds that as the guests find it: fio would empty it first.
        command = fio(job, folder / "disk.img", options, "io_uring", int(options.cache == "none")) + ["--invalidate=0"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[i] = rate(job, done.stdout)
    return found


def report(results, options, load):
    median = {name: {i: statistics.median(r[i] for r in rounds) for i in range(len(JOBS))}
              for name, rounds in results.items()}
    rows = []
    for i, job in enumerate(JOBS):
        jit, tcg, host = (median[name][i] for name in ("jit", "tcg", "host"))
        rows.append([job[3], job[4], "%.0f" % jit, "%.0f" % tcg, "%.2f" % (jit / tcg), "%.0f" % host, "%.2f" % (jit / host)])
    text = common.table(["", "unit", "lodge jit", "QEMU tcg", "jit / tcg", "host file", "jit / host"], rows)
    text += "\nWanted: jit / tcg at least %.1f. Image: raw, %d MiB, cache=%s; medians of %d rounds of %d s; %s.\n" % (
        WANTED, options.size, options.cache, options.rounds, options.seconds, common.circumstances(load))
    return text, min(median["jit"][i] / median["tcg"][i] for i in range(len(JOBS)))


def main():
    parser = common.parser("disk", __doc__)
    parser.add_argument("--seconds", type=common.positive, default=4, help="each job's (default: %(default)s)")
    parser.add_argument("--size", type=common.positive, default=512, metavar="MIB", help="the image's (default: %(default)s)")
    parser.add_argument("--cache", default="writeback", choices=["writeback", "none", "writethrough", "unsafe"])
    options = parser.parse_args()
    common.need("disks", TOOLS + ["qemu-system-x86_64"])
    folder = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp", prefix="lodge-bench-"))
    try:
        make_tools(folder)
        with open(folder / "disk.img", "wb") as file:
            for _ in range(options.size):
                file.write(os.urandom(1 << 20))
        both, load = commands(folder, make_initrd(folder, options), options), os.getloadavg()[0]
        results = {"jit": [], "tcg": [], "host": []}
        for _ in range(options.rounds):
            for name, command in both.items():
                results[name].append(measure_guest(command))
            results["host"].append(measure_host(folder, options))
        text, worst = report(results, options, load)
    finally:
        shutil.rmtree(folder)
    print(text)
    if options.write:
        common.write_document("disk", "benchmarks.md", text, "Disks")
    return 0 if worst >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
