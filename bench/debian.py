#!/usr/bin/python3
"""Seconds from the start of the program to a shell in the Debian that `lodge image build debian` makes, by the
translator and by QEMU's (TCG) with the same kernel, disk and network card: bench/debian.py [ROUNDS] (default: 3)."""

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "guest"))

from lodge import PROGRAM, Console, lodge  # noqa: E402

WANTED = 2  # times as fast
SHELL = r"root@debian:~# "


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


def qemu(record, folder):
    """QEMU with the kernel from inside the image, so that neither runs firmware."""
    import subprocess
    offset = 34 << 20
    for name in ("vmlinuz", "initrd.img"):
        link = subprocess.run(["/sbin/debugfs", "-R", "stat /" + name, "%s?offset=%d" % (record["disk"], offset)],
                              check=True, capture_output=True, text=True).stdout
        target = link.split('Fast link dest: "')[1].split('"')[0]
        subprocess.run(["/sbin/debugfs", "-R", "dump /%s %s/%s" % (target, folder, name),
                        "%s?offset=%d" % (record["disk"], offset)], check=True, capture_output=True)
    return ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1G", "-nographic", "-no-reboot",
            "-kernel", folder + "/vmlinuz", "-initrd", folder + "/initrd.img",
            "-append", "root=%s ro quiet console=tty0 console=ttyS0,115200" % record["root"],
            "-drive", "file=%s,format=raw,if=virtio,snapshot=on" % record["disk"],
            "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci"]


def main(rounds):
    shown = lodge("image", "show", "debian", "--json")
    if shown.returncode:
        lodge("image", "build", "debian", seconds=900)
        shown = lodge("image", "show", "debian", "--json")
    record = json.loads(shown.stdout)
    took = {"jit": [], "tcg": []}
    with tempfile.TemporaryDirectory() as folder:
        other = qemu(record, folder)
        for _ in range(rounds):
            took["jit"].append(boot_s([PROGRAM, "run", "debian", "--engine", "jit"]))
            took["tcg"].append(boot_s(other))
            print("jit %.2f s, TCG %.2f s" % (took["jit"][-1], took["tcg"][-1]), flush=True)
    times = statistics.median(took["tcg"]) / statistics.median(took["jit"])
    print("boot of Debian to a shell: jit %.2f s, TCG %.2f s: %.2f times as fast, wanted %d: %s"
          % (statistics.median(took["jit"]), statistics.median(took["tcg"]), times, WANTED,
             "ok" if times >= WANTED else "MISSED"))
    return 0 if times >= WANTED else 1


if __name__ == "__main__":
    os.environ.setdefault("TERM", "xterm")
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
