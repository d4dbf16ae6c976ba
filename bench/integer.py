#!/usr/bin/python3
"""Guest instructions a second on an integer loop.

The guest is bare: 32-bit protected mode, no paging, one processor. Two lengths of the same loop are
timed and subtracted, so that start and end do not count."""

import pathlib
import subprocess
import sys
import tempfile
import time

from common import ROOT, engines
from lodge import PROGRAM

INSTRUCTIONS_A_TURN = 10
WANTED = {"interp": 50e6}
SOURCE = """
#include "tiny.h"
	mov $TURNS, %ecx
	mov $0x12345678, %eax
	xor %ebx, %ebx
1:	mov %eax, %edx
	shl $5, %edx
	xor %edx, %eax
	add %ecx, %eax
	mov %eax, (buffer)
	add (buffer), %ebx
	rol $7, %ebx
	lea 3(%eax,%ebx), %eax
	dec %ecx
	jnz 1b
	DONE 0
	.align 64
buffer:	.long 0
"""


def build(folder, turns):
    source, out = folder / "loop.S", folder / ("loop%d" % turns)
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-DTURNS=%d" % turns,
                    "-I", ROOT / "tests" / "guest" / "tiny",
                    "-Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments", "-o", out, source],
                   check=True)
    return out


def seconds(kernel, engine):
    """The best of three."""
    times = []
    for _ in range(3):
        begun = time.monotonic()
        subprocess.run([PROGRAM, "run", "--engine", engine, "--memory", "64M",
                        "--kernel", kernel], check=True, stdin=subprocess.DEVNULL, timeout=300)
        times.append(time.monotonic() - begun)
    return min(times)


def main(names):
    failed = False
    with tempfile.TemporaryDirectory() as name:
        short, long = 1_000_000, 11_000_000
        kernels = [build(pathlib.Path(name), turns) for turns in (short, long)]
        for engine in names:
            took = seconds(kernels[1], engine) - seconds(kernels[0], engine)
            rate = (long - short) * INSTRUCTIONS_A_TURN / took
            wanted = WANTED.get(engine)
            verdict = "" if wanted is None else \
                ", wanted at least %.0f: %s" % (wanted / 1e6, "ok" if rate >= wanted else "TOO SLOW")
            failed |= wanted is not None and rate < wanted
            print("%-6s %8.1f million instructions a second%s" % (engine, rate / 1e6, verdict))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(engines("integer", __doc__)))
