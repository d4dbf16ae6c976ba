"""Stock kernels under the translator, each booted to a shell many times in a row: what goes wrong once in
a hundred starts is a race or a stale translation, and no single boot shows it.

LODGE_SOAK is how many times (50); the 32-bit kernel a fifth of that."""

import contextlib
import os
import re
import statistics
import time

import pytest

from lodge import BOOT_S, PROGRAM, PROMPT, Console

BOOTS = int(os.environ.get("LODGE_SOAK", "50"))
FAILURES = 5  # as many as are worth waiting for
COMPLAINTS = r"BUG:|WARNING:|Oops|stall|lockup|general protection|segfault|unstable|not syncing"

pytestmark = pytest.mark.slow


def boot_once(machine, cpus):
    """To a shell that answers, and to power-off. Returns the seconds to the shell."""
    begun = time.monotonic()
    machine.expect(PROMPT, BOOT_S)
    took = time.monotonic() - begun
    if machine.run("nproc").strip() != str(cpus):
        machine.fail("not all processors are there")
    machine.send("exit\n")
    if machine.wait(30) != 0:
        machine.fail("ended with status %d" % machine.process.returncode)
    complaint = re.search(COMPLAINTS, machine.text)
    if complaint:
        machine.fail("the kernel said %r" % complaint[0])
    return took


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("variant", ["cloud", "standard", "i386"])
def test_boots_in_a_row(kernel, initrd, capsys, variant, cpus):
    args = [PROGRAM, "run", "--engine", "jit", "--cpus", cpus, "--kernel", kernel(variant),
            "--initrd", initrd(variant=variant), "--cmdline", "console=ttyS0 panic=-1",
            "--on-reboot", "exit"]
    boots = BOOTS if variant != "i386" else -(-BOOTS // 5)
    times, failures = [], []
    for number in range(1, boots + 1):
        with contextlib.closing(Console(args)) as machine:
            try:
                times.append(boot_once(machine, cpus))
            except AssertionError as error:
                failures.append("boot %d: %s" % (number, error))
        if len(failures) == FAILURES:
            break
    with capsys.disabled():
        print("\n%d of %d boots of the %s kernel with %d vCPUs went wrong; to a shell in %s"
              % (len(failures), number, variant, cpus, summary(times)), flush=True)
    assert not failures, "\n\n".join(failures)


def summary(times):
    if not times:
        return "no time"
    return "%.2f to %.2f s, median %.2f" % (min(times), max(times), statistics.median(times))
