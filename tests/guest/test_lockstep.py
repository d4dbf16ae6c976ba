"""A stock kernel on two engines in step (docs/lockstep.md): the same after every slice, or the place is shown."""

import os
import pathlib
import re
import subprocess

import pytest

from lodge import PATIENCE, PROGRAM

LOCKSTEP = pathlib.Path(PROGRAM).parent / "tests" / "lockstep" / "lockstep"
CMDLINE = "console=ttyS0 panic=-1"
# (first engine, second, more options). The first holds the interpreter against itself in other blocks; an odd slice
# puts interrupts elsewhere.
PAIRS = {
    "interp-1": ("interp", "interp:block=1", []),
    "jit": ("jit", "interp", []),
    "jit-odd": ("jit", "interp", ["--slice", "777"]),
    "jit-lazy": ("jit:lazy", "interp", []),
    "jit-1": ("jit:block=1", "interp", []),
}


def engines():
    done = subprocess.run([LOCKSTEP, "--kernel", os.devnull, "--a", "jit"], capture_output=True, text=True,
                          check=False)
    return ["interp"] + ([] if "no engine" in done.stderr else ["jit"])


@pytest.fixture(params=PAIRS)
def pair(request):
    first, second, more = PAIRS[request.param]
    if first.split(":")[0] not in engines():
        pytest.skip("NOT CHECKED: %s against %s (there is no such engine)" % (first, second))
    return ["--a", first, "--b", second, *more]


def run(*args, seconds=120):
    return subprocess.run([LOCKSTEP, *map(str, args)], capture_output=True, text=True, check=False,
                          errors="replace", timeout=seconds * PATIENCE)


def test_the_first_of_a_boot(pair, kernel, base_initrd):
    done = run("--kernel", kernel(), "--initrd", base_initrd(), "--cmdline", CMDLINE, *pair,
               "--limit", 60000000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"the same for 60000\d\d\d instructions", done.stdout), done.stdout


@pytest.mark.slow
def test_a_boot_to_power_off(pair, kernel, initrd):
    command = "ls -lR / | md5sum; cat /proc/interrupts; dd if=/dev/urandom bs=64k count=8 | sha256sum; poweroff -f"
    done = run("--kernel", kernel(), "--initrd", initrd(command), "--cmdline", CMDLINE, *pair,
               "--console", seconds=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "the same for" in done.stdout and "the guest powered off" in done.stdout, done.stdout[-8000:]


@pytest.mark.parametrize("what, place, piece, shown", [
    ("20000", 20000, 1, "rflags: "),
    ("3000500:0x3000123", 3000500, 1000, "memory at 3000120, byte 3:"),
])
def test_a_difference_is_found(what, place, piece, shown, kernel):
    """The second machine is changed behind one instruction, and that one is named."""
    done = run("--kernel", kernel(), "--cmdline", CMDLINE, "--a", "interp", "--b", "interp:block=3",
               "--limit", 4000 * piece + 40000, "--slice", piece, "--damage", what)
    assert done.returncode == 1, done.stdout + done.stderr
    assert shown in done.stdout
    found = done.stdout.split("step by step: ")[1]
    assert "differ between instruction %d and %d:" % (place - 1, place) in found, found
    last = re.findall(r"^  [> ] +(\d+)  [0-9a-f]{16}  \w+", found, re.MULTILINE)[-1]
    assert int(last) == place - 1


def test_options_are_checked():
    assert run().returncode == 2
    done = run("--kernel", os.devnull)
    assert done.returncode == 2 and "/dev/null" in done.stderr
    done = run("--kernel", os.devnull, "--a", "nothing")
    assert done.returncode == 2 and "no engine 'nothing'" in done.stderr
