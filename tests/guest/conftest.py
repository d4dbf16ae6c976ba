"""Fixtures: stock kernels, initramfs images, machines that are cleaned up after the test."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from lodge import PROGRAM, ROOT, Console, dev  # noqa: E402


def pytest_sessionstart(session):
    # Started in a shell's background they are ignored, and by all programs that are started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not os.path.exists(PROGRAM):
        pytest.exit("no %s: ./dev build makes it" % PROGRAM, returncode=3)


@pytest.fixture(scope="session")
def kernel():
    """kernel("cloud") is the path of a stock kernel; downloaded once and kept."""
    known = {}

    def path(variant="cloud"):
        if variant not in known:
            try:
                known[variant] = dev("kernel", variant)
            except subprocess.CalledProcessError:
                pytest.skip("NOT CHECKED: kernel '%s' cannot be had (no network?)" % variant)
        return known[variant]

    return path


@pytest.fixture(scope="session")
def base_initrd():
    """base_initrd("cloud") is the path of the initramfs of ./dev run for that kernel."""
    known = {}

    def path(variant="cloud"):
        if variant not in known:
            known[variant] = dev("initrd", variant)
        return known[variant]

    return path


@pytest.fixture
def initrd(base_initrd, tmp_path):
    """initrd(command=..., files={...}) makes an initramfs whose session runs the command, and ends
    with its exit status; with no command it is a shell. files: name in the guest -> path here."""
    count = iter(range(1000))

    def make(command=None, files=None, variant="cloud"):
        here = tmp_path / ("initrd%d" % next(count))
        here.mkdir()
        # A terminal so wide that no echoed line is broken.
        (here / "env").write_text("size='rows 50 cols 1000'\n" + ("in=none\n" if command else ""))
        added = {"lodge/env": here / "env", **(files or {})}
        if command:
            (here / "command").write_text(command + "\n")
            added["lodge/command"] = here / "command"
        specs = ["%s=%s" % item for item in added.items()]
        subprocess.run([ROOT / "tools" / "initramfs", "add", here / "own", *specs], check=True)
        whole = here / "whole"
        base = pathlib.Path(base_initrd(variant)).read_bytes()
        whole.write_bytes(base + (here / "own").read_bytes())
        return whole

    return make


@pytest.fixture
def console():
    """console(args...) starts a program on a terminal; what still runs at the end is killed."""
    open_ones = []

    def start(*args, **more):
        started = Console(args, **more)
        open_ones.append(started)
        return started

    yield start
    for one in open_ones:
        one.close()


@pytest.fixture
def boot(console, kernel, initrd):
    """boot("--cpus", 4, variant="standard", command="true") starts a stock guest on a terminal."""

    def start(*options, variant="cloud", command=None, files=None, cmdline=""):
        return console(PROGRAM, "run", "--kernel", kernel(variant),
                       "--initrd", initrd(command, files, variant),
                       "--cmdline", ("console=ttyS0 panic=-1 " + cmdline).strip(), *options)

    return start
