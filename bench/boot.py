#!/usr/bin/python3
"""Seconds from the start of the program to a shell of stock kernels."""

import sys
import time

import common
from lodge import PROMPT, PROGRAM, Console, dev

WANTED_S = {("interp", "cloud", 1): 30}


def boot_s(engine, variant, cpus):
    begun = time.monotonic()
    machine = Console([PROGRAM, "run", "--engine", engine, "--cpus", cpus, "--kernel",
                       dev("kernel", variant), "--initrd", dev("initrd", variant),
                       "--cmdline", "console=ttyS0 panic=-1"])
    try:
        machine.expect(PROMPT, 300)
        took = time.monotonic() - begun
        machine.send("exit\n")
        machine.wait(60)
    finally:
        machine.close()
    return took


def main(engines):
    failed = False
    for engine in engines:
        for variant, cpus in (("cloud", 1), ("cloud", 4), ("standard", 1)):
            dev("kernel", variant)
            took = boot_s(engine, variant, cpus)
            wanted = WANTED_S.get((engine, variant, cpus))
            verdict = "" if wanted is None else \
                ", wanted under %d: %s" % (wanted, "ok" if took < wanted else "TOO SLOW")
            failed |= wanted is not None and took >= wanted
            print("%-6s %-8s kernel, %d CPU: %6.2f s to a shell%s" % (engine, variant, cpus, took, verdict),
                  flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(common.engines("boot", __doc__)))
