"""Starts the program under test and talks to the guest on its console.

Everything here has a time limit, and a failure shows the whole console. LODGE_PROGRAM names another
program than build/lodge; LODGE_PATIENCE multiplies every time limit (for slow builds or machines).
"""

import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("LODGE_PROGRAM", str(ROOT / "build" / "lodge"))
PATIENCE = float(os.environ.get("LODGE_PATIENCE", "1"))
BOOT_S = 120
PROMPT = r"lodge:[^\n]*# "


def dev(*args, seconds=600):
    """What ./dev prints, e.g. dev("kernel", "cloud") is the path of that kernel."""
    done = subprocess.run([ROOT / "dev", *args], check=True, stdout=subprocess.PIPE, text=True,
                          timeout=seconds * PATIENCE)
    return done.stdout.strip()


def lodge(*args, seconds=20, **more):
    """Runs the program without a terminal, to its end."""
    more.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True, check=False,
                          errors="replace", timeout=seconds * PATIENCE, **more)


class Running:
    """The program without a terminal, in a `with`; killed at its end."""

    def __init__(self, *args, program=(PROGRAM,), **streams):
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams}
        self.process = subprocess.Popen([*program, *map(str, args)], stderr=subprocess.PIPE, **streams)

    def proc(self, name):
        return pathlib.Path("/proc/%d/%s" % (self.process.pid, name)).read_text()

    def cpu_seconds(self):
        fields = self.proc("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_kib(self):
        return next(int(line.split()[1]) for line in self.proc("status").splitlines()
                    if line.startswith("VmRSS:"))

    def check_alive(self):
        assert self.process.poll() is None, self.process.stderr.read()

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


class Console:
    """The program on a terminal of its own.

    text is everything seen so far; expect() searches on from where the last one ended."""

    def __init__(self, args, size=(24, 80), **more):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.settings = self.terminal()
        self.args = [str(arg) for arg in args]
        self.text = ""
        self.place = 0
        self.lines = 0
        self.begun = time.monotonic()
        self.process = subprocess.Popen(self.args, stdin=self.slave, stdout=self.slave,
                                        stderr=self.slave, start_new_session=True,
                                        preexec_fn=self._own_terminal, **more)

    def _own_terminal(self):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def terminal(self):
        """The terminal's settings now."""
        return termios.tcgetattr(self.slave)

    def is_raw(self):
        return not self.terminal()[3] & termios.ICANON

    def fail(self, why):
        age = time.monotonic() - self.begun
        raise AssertionError("%s (after %.1f s)\n$ %s\n%s\n[end of the console]"
                             % (why, age, " ".join(self.args), self.text))

    def _read(self, seconds):
        """Takes what comes within that time; False if nothing did."""
        ready, _, _ = select.select([self.master], [], [], max(seconds, 0))
        if not ready:
            return False
        self.text += os.read(self.master, 65536).decode("utf-8", "replace")
        return True

    def expect(self, pattern, seconds=30):
        """Waits until the guest has printed it; returns the match."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            match = re.search(pattern, self.text[self.place:])
            if match:
                self.place += match.end()
                return match
            ended = self.process.poll() is not None
            if self._read(0 if ended else min(0.5, deadline - time.monotonic())):
                continue
            if ended:
                self.fail("ended with status %d before %r came" % (self.process.returncode, pattern))
            if time.monotonic() > deadline:
                self.fail("no %r in %d s" % (pattern, seconds))

    def send(self, text):
        os.write(self.master, text.encode())

    def run(self, line, seconds=30):
        """Runs a line in the guest's shell; returns its output, without the echo of the line.

        The shell need not be ready: what is typed before it prints its prompt is echoed twice, and that prompt comes
        after the first echo. So the output begins where the line itself says so. The line sees a $? of 0."""
        self.lines += 1
        self.send("echo ru''n-%d; %s\n" % (self.lines, line))
        self.expect(r"run-%d\r*\n" % self.lines, seconds)
        before = self.place
        match = self.expect(PROMPT, seconds)
        return self.text[before:self.place - len(match[0])].replace("\r", "")

    def wait(self, seconds=30):
        """Waits for the end; returns the exit status (negative: the signal that ended it)."""
        deadline = time.monotonic() + seconds * PATIENCE
        while self.process.poll() is None:
            self._read(0.1)
            if time.monotonic() > deadline:
                self.fail("did not end in %d s" % seconds)
        while self._read(0):
            pass
        return self.process.returncode

    def wait_until(self, condition, why, seconds=30):
        deadline = time.monotonic() + seconds * PATIENCE
        while not condition():
            self._read(0.05)
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.fail(why)

    def kill(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)
