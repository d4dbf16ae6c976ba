"""Stock Debian kernels, to a shell and to power-off."""

import os
import subprocess

import pytest

from lodge import BOOT_S, PROGRAM, PROMPT, ROOT, dev


def shell(boot, *options, **more):
    machine = boot(*options, **more)
    machine.expect(PROMPT, BOOT_S)
    return machine


def power_off(machine):
    machine.send("exit\n")
    assert machine.wait(30) == 0


def each(engines, cpus, slow=()):
    """Parameters: every engine with every number of processors; those with a number of `slow` only with --all."""
    return pytest.mark.parametrize("engine, cpus", [
        pytest.param(engine, count, marks=pytest.mark.slow if count in slow else ())
        for engine in engines for count in cpus])


@each(["interp", "jit"], [1, 2, 4], slow=[2])
def test_cloud_kernel_to_a_shell(boot, engine, cpus):
    machine = shell(boot, "--engine", engine, "--cpus", cpus)
    assert machine.run("nproc").strip() == str(cpus)
    assert machine.run("uname -r").strip().endswith("cloud-amd64")
    assert machine.run("echo $((6 * 7))").strip() == "42"
    power_off(machine)


def test_memory_is_what_was_asked_for(boot):
    machine = shell(boot, "--engine", "interp", "--memory", "384M")
    kib = int(machine.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert 300 << 10 < kib < 384 << 10
    power_off(machine)


def test_keys_reach_the_guest(boot):
    """Ctrl-C goes to the guest's program and not to Lodge."""
    machine = shell(boot, "--engine", "interp")
    # While the shell edits a line it takes Ctrl-C for itself, so wait until the program runs.
    machine.send("echo run''ning; sleep 1000\n")
    machine.expect("\nrunning")
    machine.send("\x03")
    machine.expect(PROMPT, 30)
    machine.send("echo status=$?\n")
    machine.expect(r"status=130\s")
    machine.expect(PROMPT)
    power_off(machine)


@pytest.mark.slow
@each(["interp", "jit"], [1, 2, 4])
def test_standard_kernel_to_a_shell(boot, engine, cpus):
    machine = shell(boot, "--engine", engine, "--cpus", cpus, variant="standard")
    assert machine.run("nproc").strip() == str(cpus)
    power_off(machine)


@pytest.mark.slow
@each(["interp", "jit"], [1, 2, 4])
def test_32_bit_kernel_to_a_shell(boot, engine, cpus):
    machine = shell(boot, "--engine", engine, "--cpus", cpus, variant="i386")
    assert machine.run("uname -m").strip() == "i686"
    assert machine.run("nproc").strip() == str(cpus)
    power_off(machine)


@pytest.mark.slow
def test_cloud_kernel_under_sanitizers(console, kernel, initrd):
    program = ROOT / "build-asan" / "lodge"
    if not os.path.exists(program) or str(program) == PROGRAM:
        pytest.skip("NOT CHECKED: a whole guest under the sanitizers (no build-asan/lodge)")
    machine = console(program, "run", "--engine", "interp", "--kernel", kernel(), "--cpus", 2,
                      "--initrd", initrd("nproc; poweroff -f"), "--cmdline", "console=ttyS0 panic=-1",
                      env=dict(os.environ, UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1"))
    assert machine.wait(10 * BOOT_S) == 0, machine.text[-6000:]
    assert "runtime error" not in machine.text and "AddressSanitizer" not in machine.text


@pytest.mark.slow
def test_cloud_kernel_under_thread_sanitizer(console, kernel, initrd):
    """Without the self-tests of the kernel's ciphers: they take long, and the vCPUs share nothing in them."""
    program = ROOT / "build-tsan" / "lodge"
    if not os.path.exists(program):
        pytest.skip("NOT CHECKED: races in a whole guest (no build-tsan/lodge)")
    options = "suppressions=%s" % (ROOT / "tests" / "tsan.supp")
    machine = console(program, "run", "--engine", "interp", "--kernel", kernel(), "--cpus", 4,
                      "--initrd", initrd("nproc; poweroff -f"),
                      "--cmdline", "console=ttyS0 panic=-1 cryptomgr.notests",
                      env=dict(os.environ, TSAN_OPTIONS=options))
    status = machine.wait(20 * BOOT_S)
    if "unexpected memory mapping" in machine.text:
        pytest.skip("NOT CHECKED: races in a whole guest (the sanitizer cannot live with this host's ASLR)")
    reports = machine.text.partition("WARNING: ThreadSanitizer")
    assert status == 0 and not reports[1], (reports[1] + reports[2] or machine.text)[:6000]


def test_a_panic_is_reported(boot):
    """The kernel's own pvpanic driver tells; without it a panic shows only on the console."""
    tree = dev("kernel", "cloud", "--modules")
    done = subprocess.run(["find", tree, "-name", "pvpanic*.ko"], check=True, capture_output=True,
                          text=True)
    modules = {"mod/" + path.rsplit("/", 1)[1]: path for path in done.stdout.split()}
    assert {"mod/pvpanic.ko", "mod/pvpanic-mmio.ko"} <= set(modules), modules
    machine = boot("--engine", "interp", files=modules)
    machine.expect(PROMPT, BOOT_S)
    machine.send("insmod /mod/pvpanic.ko; insmod /mod/pvpanic-mmio.ko; echo c > /proc/sysrq-trigger\n")
    assert machine.wait(60) == 101
    assert "panicked" in machine.text
