#!/usr/bin/python3
"""TCP through user networking, by the translator and by QEMU's (TCG) with the same guest, the same iperf3 and the same
server on this host's loopback, in turn: bench/net.py [ROUNDS] [SECONDS] (default: 3 rounds, 5 seconds each way).

Wanted is at least twice QEMU's throughput in each direction."""

import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "guest"))

from lodge import PROGRAM, dev  # noqa: E402
from netguest import UP, net_guest_files  # noqa: E402

WANTED = 2
DIRECTIONS = {"out": "", "in": "-R"}


def make_initrd(folder, command):
    files = net_guest_files(folder)
    if not files:
        sys.exit("bench/net: there is no iperf3 (the package of that name has it)")
    (folder / "command").write_text(command)
    (folder / "env").write_text("in=none\nout=pipe\n")
    files.update({"lodge/command": folder / "command", "lodge/env": folder / "env"})
    subprocess.run([ROOT / "tools" / "initramfs", "add", folder / "own",
                    *("%s=%s" % item for item in files.items())], check=True)
    whole = folder / "initrd"
    whole.write_bytes(pathlib.Path(dev("initrd", "cloud")).read_bytes() + (folder / "own").read_bytes())
    return whole


def measure(args):
    """Gbit/s that came through, each way."""
    done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
                          timeout=300)
    found = {}
    for way in DIRECTIONS:
        report = re.search(r"BEGIN %s\r?\n(.*?)END" % way, done.stdout, re.DOTALL)
        if not report:
            sys.exit("bench/net: %s\n%s\n%s" % (args[0], done.stdout[-3000:], done.stderr))
        found[way] = json.loads(report[1])["end"]["sum_received"]["bits_per_second"] / 1e9
    return found


def main(rounds, seconds):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = UP + " >/dev/null 2>&1\n" + "".join(
        "echo BEGIN %s; iperf3 -J -c 10.0.2.2 -p %d -t %d %s; echo END\n" % (way, port, seconds, option)
        for way, option in DIRECTIONS.items())
    results = {"jit": [], "tcg": []}
    with tempfile.TemporaryDirectory() as name, \
            subprocess.Popen(["iperf3", "-s", "-p", str(port), "-B", "127.0.0.1"],
                             stdout=subprocess.DEVNULL) as server:
        time.sleep(0.5)
        kernel, initrd = dev("kernel", "cloud"), make_initrd(pathlib.Path(name), command)
        cmdline = "console=ttyS0 panic=-1 quiet"
        programs = {
            "jit": [PROGRAM, "run", "--engine", "jit", "--on-reboot", "exit", "--kernel", kernel, "--initrd",
                    str(initrd), "--cmdline", cmdline, "--memory", "512M"],
            # The guest's way to end is ours alone: QEMU has the same exit port, if told.
            "tcg": ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512M", "-nographic", "-no-reboot",
                    "-kernel", kernel, "-initrd", str(initrd), "-append", cmdline, "-netdev", "user,id=n", "-device",
                    "virtio-net-pci,netdev=n,romfile=", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"],
        }
        try:
            for _ in range(rounds):
                for who, args in programs.items():
                    results[who].append(measure(args))
                print("  ".join("%s %s %.2f Gbit/s" % (who, way, results[who][-1][way])
                                for who in programs for way in DIRECTIONS), flush=True)
        finally:
            server.kill()
    failed = 0
    for way in DIRECTIONS:
        ours, theirs = (statistics.median(one[way] for one in results[who]) for who in ("jit", "tcg"))
        ok = ours >= WANTED * theirs
        failed |= not ok
        print("TCP %s the guest: jit %.2f Gbit/s, TCG %.2f Gbit/s: %.1f times, wanted %d: %s"
              % ({"out": "out of", "in": "into"}[way], ours, theirs, ours / theirs, WANTED, "ok" if ok else "MISSED"))
    return failed


if __name__ == "__main__":
    os.environ.setdefault("TERM", "xterm")
    sys.exit(main(*(int(word) for word in (sys.argv[1:] + ["3", "5"][len(sys.argv) - 1:])[:2])))
