#!/usr/bin/python3
"""TCP through user networking: Lodge's translator against QEMU's.

The same guest, the same iperf3 and the same server on this host's loopback, in turn."""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import common
from netguest import UP, net_guest_files

WANTED = 2
DIRECTIONS = {"out": ("out of the guest", ""), "in": ("into the guest", "-R")}


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


def measure_all(options, port):
    """Program -> a result for each round."""
    command = UP + " >/dev/null 2>&1\n" + "".join(
        "echo BEGIN %s; iperf3 -J -c 10.0.2.2 -p %d -t %d %s; echo END\n" % (way, port, options.seconds, option)
        for way, (_, option) in DIRECTIONS.items())
    results = {"jit": [], "tcg": []}
    with tempfile.TemporaryDirectory() as folder:
        initrd = common.make_initrd(folder, command, net_guest_files(folder))
        programs = {
            "jit": common.lodge_command(initrd, "--on-reboot", "exit"),
            # The guest's way to end is ours alone: QEMU has the same exit port, if told.
            "tcg": common.qemu_command(initrd, "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile=",
                                       "-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        }
        for _ in range(options.rounds):
            for who, args in programs.items():
                results[who].append(measure(args))
            print("  ".join("%s %s %.2f Gbit/s" % (who, way, results[who][-1][way])
                            for who in programs for way in DIRECTIONS), file=sys.stderr, flush=True)
    return results


def report(results, options, load):
    rows, worst = [], None
    for way, (title, _) in DIRECTIONS.items():
        ours, theirs = (statistics.median(one[way] for one in results[who]) for who in ("jit", "tcg"))
        rows.append([title, "%.2f" % ours, "%.2f" % theirs, "%.1f" % (ours / theirs)])
        worst = min(worst or ours / theirs, ours / theirs)
    text = common.table(["TCP, Gbit/s", "lodge jit", "QEMU tcg", "jit / tcg"], rows)
    return text + "\nWanted: jit / tcg at least %d. Medians of %d rounds of %d s; %s.\n" % (
        WANTED, options.rounds, options.seconds, common.circumstances(load)), worst


def main():
    parser = common.parser("net", __doc__)
    parser.add_argument("--seconds", type=common.positive, default=5, help="each way in a round (default: %(default)s)")
    options, load = parser.parse_args(), os.getloadavg()[0]
    common.need("networks", ["iperf3", "qemu-system-x86_64"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(["iperf3", "-s", "-p", str(port), "-B", "127.0.0.1"], stdout=subprocess.DEVNULL) as server:
        try:
            time.sleep(0.5)
            results = measure_all(options, port)
        finally:
            server.kill()
    text, worst = report(results, options, load)
    print(text)
    if options.write:
        common.write_document("net", "networks.md", text)
    return 0 if worst >= WANTED else 1


if __name__ == "__main__":
    os.environ.setdefault("TERM", "xterm")
    sys.exit(main())
