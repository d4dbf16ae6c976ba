"""What a person meets who makes a mistake: one clear line, a non-zero exit, the terminal intact."""

import os
import pty
import random
import signal
import subprocess
import termios
import time

import pytest

from lodge import BOOT_S, PATIENCE, PROGRAM, lodge


def check_refused(done, *words):
    """One line on stderr that names the program and holds the words; no crash, nothing on stdout."""
    assert done.returncode > 0, "status %d\n%s" % (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, "wanted one line, got:\n" + done.stderr
    assert lines[0].startswith("lodge: "), lines[0]
    for word in words:
        assert word in lines[0], "no %r in: %s" % (word, lines[0])
    assert done.stdout == ""


def spelled(value):
    """A test's name, from its options."""
    return " ".join(value) if isinstance(value, list) else ""


def test_version():
    done = lodge("version")
    assert done.returncode == 0
    assert done.stdout.startswith("lodge ")
    assert done.stdout.count("\n") == 1


def test_help_lists_the_verbs():
    done = lodge("help")
    assert done.returncode == 0
    for verb in ("run", "doctor", "version"):
        assert verb in done.stdout


@pytest.mark.parametrize("verb", ["run", "image", "machine", "disk", "doctor", "version"])
def test_help_of_each_verb(verb):
    """However it is asked for."""
    asked = [lodge(verb, "--help"), lodge(verb, "-h"), lodge("help", verb)]
    for done in asked:
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout == asked[0].stdout and done.stdout.startswith("usage: lodge " + verb)


def test_spellings_of_others():
    assert lodge("-h").stdout == lodge("--help").stdout == lodge("help").stdout != ""
    assert lodge("-V").stdout == lodge("--version").stdout == lodge("version").stdout != ""


@pytest.mark.parametrize("args, word", [
    (["help", "frobnicate"], "frobnicate"),
    (["help", "run", "disk"], "disk"),
    (["doctor", "--json", "frobnicate"], "frobnicate"),
    (["machine", "frobnicate"], "frobnicate"),
    (["machine", "list", "frobnicate"], "names"),
    (["machine", "list", "--frobnicate"], "frobnicate"),
    (["machine", "remove"], "names"),
    (["machine", "remove", "x", "--json"], "--json"),
    (["disk", "frobnicate"], "frobnicate"),
    (["disk", "info"], "takes 1 argument, but got 0"),
    (["disk", "create", "--to", "raw", "/nonexistent/x", "1M"], "takes no --to"),
    (["disk", "check", "--shrink", "/nonexistent/x"], "takes no --shrink"),
], ids=spelled)
def test_wrong_words(args, word):
    done = lodge(*args)
    check_refused(done, word)
    assert done.returncode == 2


def test_doctor_tells_of_this_host():
    done = lodge("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("kvm", "userfaultfd", "io_uring", "namespace", "tun"):
        assert word in done.stdout.lower()


def test_no_verb():
    assert lodge().returncode == 2


def test_unknown_verb():
    check_refused(lodge("frobnicate"), "frobnicate")


def test_bad_log_level():
    check_refused(lodge("version", env={"LODGE_LOG": "loud"}), "loud")


@pytest.fixture
def cloud(kernel):
    return kernel("cloud")


@pytest.mark.parametrize("options, word", [
    (["--frobnicate"], "frobnicate"),
    (["--memory"], "--memory"),
    (["--memory", "lots"], "lots"),
    (["--memory", "-512M"], "-512M"),
    (["--memory", "0"], "0"),
    (["--memory", "99999999999T"], "99999999999T"),
    (["--memory", "18446744073709551616"], "18446744073709551616"),
    (["--memory", "512Q"], "512Q"),
    (["--memory", ""], "memory"),
    (["--memory", "4K"], "memory"),
    (["--memory", "1M"], "memory"),
    (["--memory", "8M"], "memory"),
    (["--cpus", "0"], "0"),
    (["--cpus", "-1"], "-1"),
    (["--cpus", "many"], "many"),
    (["--cpus", "100000"], "100000"),
    (["--engine", "steam"], "steam"),
    (["--on-reboot", "maybe"], "maybe"),
    (["stray"], "stray"),
    (["--initrd", "/nonexistent/initrd"], "/nonexistent/initrd"),
    (["--initrd", "/"], "/"),
], ids=spelled)
@pytest.mark.sanitize
def test_bad_option(cloud, options, word):
    check_refused(lodge("run", "--kernel", cloud, *options), word)


@pytest.mark.parametrize("options, word", [
    ([], "kernel"),
    (["--kernel"], "--kernel"),
    (["--kernel", ""], "kernel"),
    (["--kernel", "/nonexistent/kernel"], "/nonexistent/kernel"),
    (["--kernel", "/"], "/"),
    (["--kernel", "/dev/null"], "/dev/null"),
], ids=spelled)
@pytest.mark.sanitize
def test_no_such_kernel(options, word):
    check_refused(lodge("run", *options), word)


@pytest.mark.parametrize("options, word, status", [
    (["--screenshot", "/nonexistent/x.png"], "/nonexistent/x.png", 1),
    (["--firmware-log", "/nonexistent/x"], "/nonexistent/x", 1),
    (["--balloon", "512M"], "512 MiB can't be given away", 2),
    (["--memory", "64M", "--balloon", "1T"], "of 64 MiB", 2),
    (["--forward", "8080:80", "--forward", "8081:80", "--forward", "127.0.0.1:8080:81"], "forwarded already", 2),
], ids=spelled)
def test_known_before_the_machine_runs(cloud, options, word, status):
    done = lodge("run", "--kernel", cloud, *options)
    check_refused(done, word)
    assert done.returncode == status


@pytest.mark.sanitize
def test_escape_codes_in_a_name_stay_away_from_the_terminal():
    done = lodge("run", "--kernel", "/nonexistent/\x1b[2J")
    check_refused(done, "/nonexistent/")
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("size", [1, 511, 512, 4096, 1 << 20])
@pytest.mark.parametrize("kind", ["zeros", "noise"])
@pytest.mark.sanitize
def test_garbage_kernel(tmp_path, kind, size):
    path = tmp_path / "kernel"
    path.write_bytes(bytes(size) if kind == "zeros" else random.Random(size).randbytes(size))
    check_refused(lodge("run", "--kernel", path), str(path))


# A signature behind the end of what boots may be missing; "all but 4096" cuts into what boots.
# 0x1f1 is where the boot protocol's header begins, 0x268 is after it.
@pytest.mark.parametrize("size", [0x1f0, 0x1f8, 0x210, 0x264, 0x1000, 0x8000, "half", "all but 4096"])
@pytest.mark.sanitize
def test_truncated_kernel(cloud, tmp_path, size):
    with open(cloud, "rb") as file:
        whole = file.read()
    length = {"half": len(whole) // 2, "all but 4096": len(whole) - 4096}.get(size, size)
    path = tmp_path / "kernel"
    path.write_bytes(whole[:length])
    check_refused(lodge("run", "--kernel", path), str(path))


def elf_header(phnum=1, phoff=64, entry=0x100000, phentsize=56):
    """A 64-bit x86 executable's header."""
    parts = [b"\x7fELF\x02\x01\x01" + bytes(9)]
    parts += [value.to_bytes(size, "little") for value, size in (
        (2, 2), (62, 2), (1, 4), (entry, 8), (phoff, 8), (0, 8), (0, 4), (64, 2), (phentsize, 2),
        (phnum, 2), (64, 2), (0, 2), (0, 2))]
    return b"".join(parts)


def elf_segment(offset, address, filesz, memsz):
    parts = [(1, 4), (7, 4), (offset, 8), (address, 8), (address, 8), (filesz, 8), (memsz, 8), (4096, 8)]
    return b"".join(value.to_bytes(size, "little") for value, size in parts)


TOP = (1 << 64) - 1


@pytest.mark.parametrize("image", [
    elf_header()[:20],
    elf_header(),
    elf_header(phnum=65535),
    elf_header(phoff=TOP - 8),
    elf_header(phentsize=1) + elf_segment(0, 0x100000, 64, 64),
    elf_header() + elf_segment(TOP - 100, 0x100000, 4096, 4096),
    elf_header() + elf_segment(0, TOP - 100, 64, 4096),
    elf_header() + elf_segment(0, 0x100000, 64, TOP),
    elf_header() + elf_segment(0, 0x100000, TOP, TOP),
    elf_header() + elf_segment(0, 0x100000, 100, 10),
    elf_header() + elf_segment(0, 1 << 40, 64, 64),
], ids=["cut", "no segments", "65535 segments", "headers past the end", "tiny headers",
        "offset wraps", "address wraps", "memory size wraps", "file size wraps",
        "file size over memory size", "outside memory"])
@pytest.mark.sanitize
def test_hostile_elf(tmp_path, image):
    path = tmp_path / "kernel"
    path.write_bytes(image)
    check_refused(lodge("run", "--kernel", path), str(path))


@pytest.mark.sanitize
def test_initrd_larger_than_memory(cloud, tmp_path):
    path = tmp_path / "initrd"
    with open(path, "wb") as file:
        file.truncate(200 << 20)
    check_refused(lodge("run", "--kernel", cloud, "--memory", "128M", "--initrd", path), "memory")


@pytest.mark.sanitize
def test_command_line_too_long(cloud):
    check_refused(lodge("run", "--kernel", cloud, "--cmdline", "x" * 10000), "command line")


@pytest.mark.parametrize("kind", ["garbage", "truncated"])
def test_bad_initrd_ends(cloud, base_initrd, tmp_path, kind):
    """The kernel finds that out, and panics: that ends the machine, and not with status 0."""
    path = tmp_path / "initrd"
    with open(base_initrd(), "rb") as file:
        whole = file.read()
    path.write_bytes(random.Random(1).randbytes(1 << 20) if kind == "garbage" else whole[:len(whole) // 3])
    done = lodge("run", "--kernel", cloud, "--initrd", path, "--cmdline", "console=ttyS0 panic=-1",
                 "--on-reboot", "exit", seconds=BOOT_S)
    assert done.returncode > 0, done.stdout + done.stderr
    assert "panic" in done.stdout


def test_kvm_without_permission(cloud, tmp_path):
    if not os.path.exists("/dev/kvm"):
        pytest.skip("NOT CHECKED: /dev/kvm without permission (this host has no /dev/kvm)")
    if os.getuid() != 0:
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            pytest.skip("NOT CHECKED: /dev/kvm without permission (it takes root to close it)")
        check_refused(lodge("run", "--engine", "kvm", "--kernel", cloud), "/dev/kvm")
        return
    probe = ["setpriv", "--reuid=65534", "--clear-groups", "test", "-x", PROGRAM, "-a", "-r", cloud]
    if subprocess.run(probe, check=False).returncode:
        pytest.skip("NOT CHECKED: /dev/kvm without permission (user nobody cannot read this tree)")
    closed = tmp_path / "closed"
    closed.touch(0o600)
    script = ('mount --bind "$0" /dev/kvm && '
              'exec setpriv --reuid=65534 --clear-groups "$1" run --engine kvm --kernel "$2"')
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script, closed, PROGRAM, cloud],
                          capture_output=True, text=True, check=False, timeout=20,
                          stdin=subprocess.DEVNULL)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("NOT CHECKED: /dev/kvm without permission (%s)" % done.stderr.strip())
    check_refused(done, "/dev/kvm")


def test_no_terminal_the_guest_runs_on(kernel, initrd):
    """With stdin at its end from the start, the machine still goes its way to power-off."""
    done = lodge("run", "--kernel", kernel(), "--initrd", initrd("echo still here; poweroff -f"),
                 "--cmdline", "console=ttyS0 quiet", seconds=BOOT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "still here" in done.stdout


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_exit_status_of_the_command(kernel, initrd, status):
    done = lodge("run", "--kernel", kernel(), "--initrd", initrd("echo last line; exit %d" % status),
                 "--cmdline", "console=ttyS0 quiet", seconds=BOOT_S)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("last line")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT,
                                    signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_terminal_is_restored_after_a_signal(boot, number):
    machine = boot()
    machine.wait_until(machine.is_raw, "the terminal never became raw", 10)
    machine.kill(number)
    assert machine.wait(10) != 0
    assert machine.terminal() == machine.settings


def test_terminal_is_restored_after_power_off(boot):
    machine = boot(command="poweroff -f")
    machine.wait_until(machine.is_raw, "the terminal never became raw", 10)
    assert machine.wait(BOOT_S) == 0
    assert machine.terminal() == machine.settings


@pytest.mark.sanitize
def test_terminal_is_restored_after_a_refusal(console, tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(bytes(4096))
    machine = console(PROGRAM, "run", "--kernel", path)
    assert machine.wait(10) > 0
    assert str(path) in machine.text
    assert machine.terminal() == machine.settings


def test_kill_9_gives_the_terminal_back(cloud):
    """The guardian process does that, where a shell holds the terminal after the program's end."""
    leader, master = pty.fork()
    if leader == 0:
        subprocess.run([PROGRAM, "run", "--engine", "interp", "--kernel", cloud], check=False)
        time.sleep(60)
        os._exit(0)

    def canonical():
        return bool(termios.tcgetattr(master)[3] & termios.ICANON)

    def wait_for(wanted):
        until = time.monotonic() + 20 * PATIENCE
        while canonical() != wanted and time.monotonic() < until:
            time.sleep(0.05)
        return canonical() == wanted

    try:
        assert wait_for(False), "the terminal never went raw"
        with open("/proc/%d/task/%d/children" % (leader, leader), encoding="ascii") as children:
            program = children.read().split()[0]
        os.kill(int(program), signal.SIGKILL)
        assert wait_for(True), "the terminal stayed raw"
    finally:
        os.kill(leader, signal.SIGKILL)
        os.waitpid(leader, 0)
        os.close(master)
