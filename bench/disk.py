#!/usr/bin/python3
"""Disk speed in a stock guest: Lodge's translator against QEMU's, and what the host's file gives.

    ./dev bench disk [--rounds N] [--seconds S] [--cache MODE] [--size MIB] [--write]

One kernel, initramfs and image for both; fio in the guest with O_DIRECT (past the guest's page cache), the image on
the host with the cache mode named. The rounds alternate. --write puts the table into docs/benchmarks.md."""

import argparse
import datetime
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

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "guest"))

from disks import LOAD, TOOLS, find_program, make_tools, module_files  # noqa: E402
from lodge import PROGRAM, dev  # noqa: E402

# fio's name, block, requests at once -> what for people, unit.
JOBS = [
    ("read", "1M", 4, "sequential read", "MiB/s"),
    ("write", "1M", 4, "sequential write", "MiB/s"),
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
    (folder / "command").write_text(IN_GUEST % {"load": LOAD, "jobs": "\n".join(lines)})
    (folder / "env").write_text("in=none\n")
    specs = ["%s=%s" % item for item in module_files().items()]
    subprocess.run([ROOT / "tools" / "initramfs", "add", folder / "own", "lodge/env=%s" % (folder / "env"),
                    "lodge/command=%s" % (folder / "command"), *specs], check=True)
    whole = folder / "initrd"
    whole.write_bytes(pathlib.Path(dev("initrd", "cloud")).read_bytes() + (folder / "own").read_bytes())
    return whole


def commands(folder, initrd, options):
    kernel, cmdline = dev("kernel", "cloud"), "console=ttyS0 panic=-1 quiet"
    tools, disk = folder / "tools.img", folder / "disk.img"
    qemu_drive = "if=none,format=raw,cache=%s" % options.cache
    return {
        "jit": [PROGRAM, "run", "--engine", "jit", "--net", "none", "--kernel", kernel, "--initrd", initrd, "--cmdline",
                cmdline, "--disk", "%s,format=raw,readonly" % tools, "--disk",
                "%s,format=raw,cache=%s" % (disk, options.cache)],
        "tcg": ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512", "-nographic",
                "-nodefaults", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append",
                cmdline, "-drive", "file=%s,id=t,if=none,format=raw,readonly=on" % tools, "-device",
                "virtio-blk-pci,drive=t", "-drive", "file=%s,id=d,%s" % (disk, qemu_drive), "-device",
                "virtio-blk-pci,drive=d"],
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
        done = subprocess.run(fio(job, folder / "disk.img", options, "io_uring", int(options.cache == "none")), check=True,
                              capture_output=True, text=True)
        found[i] = rate(job, done.stdout)
    return found


def table(results, options, load):
    median = {name: {i: statistics.median(r[i] for r in rounds) for i in range(len(JOBS))}
              for name, rounds in results.items()}
    lines = ["| | unit | lodge jit | QEMU tcg | jit / tcg | host file | jit / host |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for i, job in enumerate(JOBS):
        jit, tcg, host = (median[name][i] for name in ("jit", "tcg", "host"))
        lines.append("| %s | %s | %.0f | %.0f | %.2f | %.0f | %.2f |" % (job[3], job[4], jit, tcg, jit / tcg, host, jit / host))
    lines += ["", "Wanted: jit / tcg at least %.1f. Image: raw, %d MiB, cache=%s; medians of %d rounds of %d s; %s; load"
              " average %.1f before, %.1f after." % (WANTED, options.size, options.cache, options.rounds, options.seconds,
                                                    datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
                                                    load, os.getloadavg()[0])]
    worst = min(median["jit"][i] / median["tcg"][i] for i in range(len(JOBS)))
    return "\n".join(lines) + "\n", worst


BEGIN, END = "<!-- bench disk -->\n", "<!-- end of bench disk -->\n"


def write_document(text):
    path = ROOT / "docs" / "benchmarks.md"
    old = path.read_text()
    if BEGIN in old:
        head, rest = old.split(BEGIN, 1)
        old = head + BEGIN + "\n" + text + "\n" + END + rest.split(END, 1)[1]
    else:
        old = "%s\n## Disks\n`./dev bench disk --write` makes this table.\n\n%s\n%s\n%s" % (old.rstrip() + "\n", BEGIN, text, END)
    path.write_text(old)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--cache", default="writeback", choices=["writeback", "none", "writethrough", "unsafe"])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    missing = [name for name in TOOLS + ["qemu-system-x86_64"] if not find_program(name)]
    if missing:
        raise SystemExit("NOT MEASURED: disks (no %s)" % ", ".join(missing))
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
        text, worst = table(results, options, load)
    finally:
        shutil.rmtree(folder)
    print(text)
    if options.write:
        write_document(text)
    return 0 if worst >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
