"""The console: what the guest prints reaches its reader whole, what is typed reaches the guest whole,
and neither a slow reader nor none keeps Lodge from ending. The guests are in tiny/."""

import hashlib
import os
import random
import signal
import subprocess
import termios
import time

import pytest

from lodge import BOOT_S, PATIENCE, PROGRAM, PROMPT
from test_hostile_guest import tiny  # noqa: F401


def test_what_a_line_prints_is_told_from_what_others_do(console):
    """Of the tests' own reader: a line that is typed while the shell is busy. (A shell that edits its lines echoes
    such a line once more; one that does not has its prompts behind it.)"""
    shell = console("/bin/sh", "-i", env={"PS1": "lodge:# "})
    shell.expect(PROMPT)
    shell.send("sleep 0.5; echo before\n")
    assert shell.run("echo $((6 * 7))") == "42\n"
    assert shell.run("echo more; false") == "more\n"


def start(path, *options, **more):
    return subprocess.Popen([PROGRAM, "run", "--engine", "interp", "--memory", "64M", "--kernel", path,
                             *options], stderr=subprocess.PIPE, **more)


@pytest.fixture
def stuck(tiny):  # noqa: F811
    """Lodge whose guest has printed all that a reader who reads nothing lets it."""
    process = start(tiny("shout"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    time.sleep(1)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_reader_who_sleeps_does_not_keep_it_alive(stuck, number):
    stuck.send_signal(number)
    assert stuck.wait(5 * PATIENCE) == 128 + number


def test_a_reader_who_goes_away_does_not_end_it(stuck):
    stuck.stdout.close()
    time.sleep(0.5)
    assert stuck.poll() is None
    stuck.send_signal(signal.SIGTERM)
    assert stuck.wait(5 * PATIENCE) == 128 + signal.SIGTERM


def test_ctrl_a_x_ends_it_though_the_terminal_is_full(console, tiny):  # noqa: F811
    machine = console(PROGRAM, "run", "--engine", "interp", "--kernel", tiny("shout"))
    machine.wait_until(machine.is_raw, "no raw mode")
    time.sleep(1)
    machine.send("\x01x")
    deadline = time.monotonic() + 5 * PATIENCE
    while machine.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert machine.process.poll() == 103
    assert machine.terminal() == machine.settings


def test_raw_again_after_a_stop(console, tiny):  # noqa: F811
    machine = console(PROGRAM, "run", "--engine", "interp", "--kernel", tiny("echo"))
    machine.wait_until(machine.is_raw, "no raw mode")
    for _ in range(3):
        machine.kill(signal.SIGSTOP)
        os.waitid(os.P_PID, machine.process.pid, os.WSTOPPED)
        # What a shell does with its terminal.
        termios.tcsetattr(machine.slave, termios.TCSANOW, machine.settings)
        machine.kill(signal.SIGCONT)
        machine.wait_until(machine.is_raw, "not raw again")
    machine.send("\x01x")
    assert machine.wait() == 103
    assert machine.terminal() == machine.settings


def test_a_full_disk_is_told_and_survived(tiny):  # noqa: F811
    with open("/dev/full", "wb") as full:
        process = start(tiny("echo"), stdin=subprocess.PIPE, stdout=full)
        _, told = process.communicate(b"hello.", 20 * PATIENCE)
    assert process.returncode == 42
    assert told == b"lodge: console: the guest's output is lost: No space left on device\n"


def test_closed_descriptors(tiny):  # noqa: F811
    """What Lodge opens must not come to stand in for its standard input and output."""
    path = tiny("echo")
    for closing in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(["bash", "-c", "printf ab. | %s run --engine interp --kernel %s %s; exit "
                               "${PIPESTATUS[1]}" % (PROGRAM, path, closing)],
                              timeout=20 * PATIENCE, check=False, capture_output=True)
        assert done.returncode == 42, closing
        assert done.stdout in (b"", b"ab.") and done.stderr == b"", closing


def test_version_that_cannot_be_printed():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PROGRAM, "version"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"lodge: ") and done.stderr.count(b"\n") == 1


def test_input_waits_out_a_reset(tiny):  # noqa: F811
    """Each comma makes a new machine; nothing that was typed meanwhile is lost, but for what the port
    held that was reset: one byte."""
    text = "".join("%d,_" % i for i in range(20)) + "x" * 3000 + ".not this"
    process = start(tiny("echo"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, told = process.communicate(text.encode(), 60 * PATIENCE)
    assert process.returncode == 42, told
    assert out.decode().replace("_", "") == text[:text.index(".") + 1].replace("_", "")


def descriptors_and_kib(process):
    status = open("/proc/%d/status" % process.pid).read()
    return (len(os.listdir("/proc/%d/fd" % process.pid)), int(status.split("VmRSS:")[1].split()[0]),
            int(status.split("Threads:")[1].split()[0]))


def test_resets_leak_nothing(tiny):  # noqa: F811
    process = start(tiny("echo"), "--cpus", "4", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    seen = []
    for _ in range(4):
        process.stdin.write(b",_,_,_,_,_,_,_,_a")
        process.stdin.flush()
        while process.stdout.read(1) != b"a":
            pass
        seen.append(descriptors_and_kib(process))
    process.communicate(b".", 20 * PATIENCE)
    assert process.returncode == 42
    assert len({one[0] for one in seen}) == 1 and len({one[2] for one in seen}) == 1, seen
    assert seen[-1][1] < seen[0][1] + 2048, seen


def test_a_lot_in_and_out(boot):
    """100 KB pasted into a file of the guest, and printed again."""
    machine = boot("--engine", "interp")
    machine.expect(PROMPT, BOOT_S)
    source = random.Random(1)
    lines = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=79)) for _ in range(1250)]
    text = "\n".join(lines) + "\n"
    machine.send("stty -echo; echo rea''dy; cat > /tmp/in; stty echo; md5sum < /tmp/in\n")
    machine.expect("ready")
    for i in range(0, len(text), 4000):
        machine.send(text[i:i + 4000])
    machine.send("\x04")
    assert machine.expect("([0-9a-f]{32})  -", 60)[1] == hashlib.md5(text.encode()).hexdigest()
    machine.expect(PROMPT)
    assert machine.run("cat /tmp/in", 60) == text
    machine.send("exit\n")
    assert machine.wait(30) == 0
