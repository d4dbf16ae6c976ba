"""Guests that do what no system would: Lodge lives, stays small, and ends when told to.

The guests are in tiny/, one assembler file each, booted by multiboot."""

import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from lodge import PATIENCE, Running, lodge

TINY = pathlib.Path(__file__).resolve().parent / "tiny"
ALIVE = 42


@pytest.fixture
def tiny(tmp_path):
    """tiny("halt") is the path of that guest's kernel; noise: bytes that `noise` runs."""

    def build(name, noise=b"\xf4"):
        (tmp_path / "noise").write_bytes(noise)
        out = tmp_path / name
        subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie",
                        "-Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments",
                        '-DNOISE="%s"' % (tmp_path / "noise"), "-o", out, TINY / (name + ".S")],
                       check=True)
        return out

    return build


@pytest.fixture(params=["interp", "jit", "kvm"])
def engine(request):
    if request.param == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("NOT CHECKED: hostile guests under KVM (/dev/kvm is missing or not permitted)")
    return request.param


def run(path, *options, engine="interp", seconds=30):
    return lodge("run", "--engine", engine, "--memory", "64M", "--kernel", path, "--on-reboot", "exit",
                 *options, seconds=seconds)


def check_lives(done):
    assert done.returncode == ALIVE, "status %d\n%s%s" % (done.returncode, done.stdout, done.stderr)


def check_ended(done):
    """Whatever became of the guest: Lodge itself ended in an orderly way and was not chatty."""
    assert done.returncode >= 0, "killed by signal %d\n%s" % (-done.returncode, done.stderr)
    assert len(done.stderr) < 4096, done.stderr[:4096]


def test_exit(tiny, engine):
    check_lives(run(tiny("exit"), engine=engine))


def test_triple_fault_ends_the_machine(tiny, engine):
    done = run(tiny("triple_fault"), engine=engine)
    check_ended(done)
    assert done.returncode != 0


@pytest.mark.sanitize
@pytest.mark.parametrize("name", ["jump_nowhere", "jump_device", "jump_top"])
def test_jump_into_nothing(tiny, name):
    done = run(tiny(name))
    check_ended(done)
    assert done.returncode != 0


@pytest.mark.sanitize
@pytest.mark.parametrize("name", ["ports", "holes", "string_wrap", "msrs", "self_modify"])
def test_hammering_is_survived(tiny, name):
    done = run(tiny(name), seconds=120)
    check_ended(done)
    check_lives(done)


def test_deadlines_go_by_the_tsc_the_guest_set(tiny):
    check_lives(run(tiny("tsc_deadline")))


def test_four_processors_share_one_fate(tiny):
    check_lives(run(tiny("exit"), "--cpus", 4))


def running(path, engine):
    return Running("run", "--engine", engine, "--memory", "64M", "--kernel", path)


@pytest.mark.parametrize("name", ["spin", "halt"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_busy_or_dead_guest_can_be_ended(tiny, engine, name, number):
    with running(tiny(name), engine) as machine:
        time.sleep(1)
        machine.check_alive()
        machine.process.send_signal(number)
        assert machine.process.wait(5 * PATIENCE) != 0


def test_a_sleeping_guest_costs_nothing(tiny, engine):
    with running(tiny("halt"), engine) as machine:
        time.sleep(1)
        before = machine.cpu_seconds()
        time.sleep(2)
        machine.check_alive()
        assert machine.cpu_seconds() - before < 0.2


@pytest.mark.parametrize("name", ["hammer", "distinct"])
def test_hammering_does_not_bloat(tiny, name):
    """Four times the time, the same memory."""
    with running(tiny(name), "interp") as machine:
        time.sleep(1)
        first = machine.resident_kib()
        time.sleep(3)
        machine.check_alive()
        print("resident: %d KiB, then %d" % (first, machine.resident_kib()))
        assert machine.resident_kib() < first + 8192


@pytest.mark.sanitize
@pytest.mark.parametrize("seed", range(8))
def test_noise_as_code(tiny, seed):
    """Random bytes as code, with no IDT: nearly all end in a triple fault, a few run on."""
    source = random.Random(seed)
    path = tiny("noise", source.randbytes(65536))
    try:
        check_ended(run(path, seconds=2))
    except subprocess.TimeoutExpired as still_running:
        assert len(still_running.stderr or b"") < 4096
