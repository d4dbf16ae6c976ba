"""Consoles that nobody reads, or that somebody floods: Lodge stays small and ends when told to."""

import os
import pathlib
import resource
import signal
import subprocess
import time

import pytest

from lodge import PATIENCE, PROGRAM, Running

TINY = pathlib.Path(__file__).resolve().parent / "tiny"
ENDED = 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    def build(name):
        out = tmp_path_factory.mktemp("tiny") / name
        subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie",
                        "-Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments",
                        "-o", out, TINY / (name + ".S")], check=True)
        return out

    return build


class Machine(Running):
    def __init__(self, kernel, **streams):
        super().__init__("run", "--engine", "interp", "--memory", "64M", "--kernel", kernel, **streams)

    def check_small(self):
        time.sleep(0.5)
        first = self.resident_kib()
        time.sleep(2)
        self.check_alive()
        assert self.resident_kib() < first + 8192

    def check_ends(self):
        self.check_alive()
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(5 * PATIENCE) == ENDED
        print("ended in %.0f ms" % (1000 * (time.monotonic() - begun)))
        assert self.process.stderr.read() == b""


@pytest.fixture
def pipe():
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


def test_descriptors(tiny):
    """A guest may open many connections and files: Lodge takes as many descriptors as it may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = ["prlimit", "--nofile=256:%d" % hard, "--", PROGRAM]
    with Machine(tiny("shout"), program=few, stdout=subprocess.PIPE) as machine:
        machine.process.stdout.read(1)
        line = next(line for line in machine.proc("limits").splitlines() if line.startswith("Max open files"))
        assert line.split()[3:5] == [str(hard)] * 2
        machine.check_alive()


def test_a_console_that_nobody_reads(tiny, pipe):
    with Machine(tiny("shout"), stdout=pipe[1]) as machine:
        machine.check_small()
        machine.check_ends()


def test_a_console_that_does_not_block_costs_nothing_when_full(tiny, pipe):
    os.set_blocking(pipe[1], False)
    with Machine(tiny("shout"), stdout=pipe[1]) as machine:
        time.sleep(1)
        before = machine.cpu_seconds()
        time.sleep(1)
        assert machine.cpu_seconds() - before < 0.2
        machine.check_ends()


def test_a_console_that_is_read_late(tiny, pipe):
    """What the pipe did not take at once is not lost."""
    with Machine(tiny("shout"), stdout=pipe[1]) as machine:
        time.sleep(1)
        total = 0
        while total < 1000000:
            data = os.read(pipe[0], 65536)
            assert data.strip(b"x") == b""
            total += len(data)
        machine.check_ends()


def test_a_console_whose_reader_went_away(tiny):
    reader, writer = os.pipe()
    with Machine(tiny("shout"), stdout=writer) as machine:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        machine.check_small()
        machine.check_ends()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_descriptors(tiny, closed):
    """A closed stdout must not become the number of some other file that the console then goes to."""
    def close():
        for fd in closed:
            os.close(fd)

    with Machine(tiny("shout"), preexec_fn=close) as machine:
        machine.check_small()
        links = {fd: os.readlink("/proc/%d/fd/%d" % (machine.process.pid, fd)) for fd in closed}
        assert set(links.values()) == {"/dev/null"}, links
        machine.check_ends()


@pytest.mark.parametrize("guest", ["halt", "spin"])
def test_input_that_does_not_end(tiny, guest):
    with open("/dev/zero", "rb") as zero, Machine(tiny(guest), stdin=zero) as machine:
        machine.check_small()
        machine.check_ends()
