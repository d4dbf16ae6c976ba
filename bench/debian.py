#!/usr/bin/python3
"""Seconds from the start of the program to a shell in the Debian that `lodge image build debian` makes: Lodge's
translator against QEMU's, with the same kernel, disk and network card, in turn.

The image is built if it is not there."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import common
from lodge import PROGRAM, Console, lodge

WANTED = 2  # times as fast
SHELL = r"root@debian:~# "
ROOT_OFFSET = 34 << 20  # of the file system in the image


def boot_s(args):
    begun = time.monotonic()
    machine = Console(args)
    try:
        machine.expect(SHELL, 300)
        took = time.monotonic() - begun
        machine.send("poweroff -f\n")
        machine.wait(60)
    finally:
        machine.close()
    return took


def debugfs(disk, command):
    return subprocess.run(["/sbin/debugfs", "-R", command, "%s?offset=%d" % (disk, ROOT_OFFSET)], check=True,
                          capture_output=True, text=True).stdout


def qemu(record, folder):
    """QEMU with the kernel from inside the image, so that neither runs firmware."""
    for name in ("vmlinuz", "initrd.img"):
        target = debugfs(record["disk"], "stat /" + name).split('Fast link dest: "')[1].split('"')[0]
        debugfs(record["disk"], "dump /%s %s/%s" % (target, folder, name))
    return ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1G", "-nographic", "-no-reboot",
            "-kernel", folder + "/vmlinuz", "-initrd", folder + "/initrd.img",
            "-append", "root=%s ro quiet console=tty0 console=ttyS0,115200" % record["root"],
            "-drive", "file=%s,format=raw,if=virtio,snapshot=on" % record["disk"],
            "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci"]


def image():
    shown = lodge("image", "show", "debian", "--json")
    if shown.returncode:
        lodge("image", "build", "debian", seconds=900)
        shown = lodge("image", "show", "debian", "--json")
    if shown.returncode:
        raise SystemExit("NOT MEASURED: a Debian's boot (%s)" % shown.stderr.strip())
    return json.loads(shown.stdout)


def main():
    options, load = common.parser("debian", __doc__).parse_args(), os.getloadavg()[0]
    common.need("a Debian's boot", ["debugfs", "qemu-system-x86_64"])
    took, record = {"jit": [], "tcg": []}, image()
    with tempfile.TemporaryDirectory() as folder:
        other = qemu(record, folder)
        for _ in range(options.rounds):
            took["jit"].append(boot_s([PROGRAM, "run", "debian", "--engine", "jit"]))
            took["tcg"].append(boot_s(other))
            print("jit %.2f s, TCG %.2f s" % (took["jit"][-1], took["tcg"][-1]), file=sys.stderr, flush=True)
    jit, tcg = (statistics.median(took[who]) for who in ("jit", "tcg"))
    text = common.table(["", "lodge jit", "QEMU tcg", "tcg / jit"],
                        [["Debian to a shell", "%.2f s" % jit, "%.2f s" % tcg, "%.2f" % (tcg / jit)]])
    text += "\nWanted: tcg / jit at least %d. Medians of %d rounds; %s.\n" % (WANTED, options.rounds,
                                                                          common.circumstances(load))
    print(text)
    if options.write:
        common.write_document("debian", "images.md", text, "Boot against QEMU's translator")
    return 0 if tcg / jit >= WANTED else 1


if __name__ == "__main__":
    os.environ.setdefault("TERM", "xterm")
    sys.exit(main())
