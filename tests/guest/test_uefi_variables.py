"""What UEFI firmware keeps in its flash lasts: over a reset, a kill and a new start, for the machine that it belongs to."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

from lodge import PATIENCE, PROGRAM, lodge
from test_firmware import GUID, UEFI, need
from test_image import image, tar  # noqa: F401

TINY = pathlib.Path(__file__).resolve().parent / "tiny"
TEMPLATE = pathlib.Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.fixture(scope="module")
def firmware(tmp_path_factory):
    """tiny/flash.S, as an image that ends at 4 GiB."""
    out = tmp_path_factory.mktemp("firmware") / "flash"
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie",
                    "-Wl,-N,-Ttext=0xfffff000,--build-id=none,--no-warn-rwx-segments,--oformat=binary",
                    "-o", out, TINY / "flash.S"], check=True)
    return out


def volume(path):
    data = bytearray(b"\xff" * 16384)
    data[40:44] = b"_FVH"
    data[0x3000:0x3100] = bytes(0x100)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("engine", ["jit", "interp", "kvm"])
def test_flash(firmware, tmp_path, engine):
    """Programs, erases, resets twice; and starts again with what it left."""
    if engine == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("NOT CHECKED: flash under KVM (no /dev/kvm that can be opened)")
    variables = volume(tmp_path / "vars")
    for _ in range(2):
        done = lodge("run", "--engine", engine, "--net", "none", "--firmware", firmware, "--uefi-vars", variables,
                     "--stats")
        assert done.returncode == 42, done.stderr
        if engine == "kvm":  # it has the image and the flash as memory, or each instruction would be emulated
            assert sum(map(int, re.findall(r"(\d+) emulated", done.stderr))) < 10, done.stderr
        data = variables.read_bytes()
        assert len(data) == 16384 and data[40:44] == b"_FVH" and data[0x100] == 0xfc
        assert data[0x2fff:0x3010] == b"\xff" * 5 + b"lasting!" + b"\xff" * 4
        assert data[0x3010:] == b"\xff" * (16384 - 0x3010)


def test_refused(firmware, tmp_path):
    def run(*args):
        return lodge("run", "--net", "none", *args)

    for args in (["--firmware", "bios"], ["--kernel", "/dev/null"], []):
        done = run(*args, "--uefi-vars", tmp_path / "x")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    done = run("--firmware", firmware, "--uefi-vars", tmp_path / "x")
    assert done.returncode == 1 and "x: No such file" in done.stderr
    variables = volume(tmp_path / "vars")
    with open(variables, "r+b") as file:
        file.truncate(16383)
    done = run("--firmware", firmware, "--uefi-vars", variables)
    assert done.returncode == 1 and "16383 bytes are no multiple of 4 KiB" in done.stderr
    variables.write_bytes(b"somebody's own" * 4096)
    done = run("--firmware", firmware, "--uefi-vars", variables)
    assert done.returncode == 1 and "no firmware volume" in done.stderr
    assert variables.read_bytes() == b"somebody's own" * 4096
    need(UEFI, "ovmf")
    done = run("--firmware", "uefi", "--uefi-vars", volume(variables))
    assert done.returncode == 1 and "16 KiB of UEFI variables, and the firmware wants the 528 KiB" in done.stderr
    done = run("--firmware", "uefi", "--uefi-vars", tmp_path / "none" / "x")
    assert done.returncode == 1 and "none/x" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["vars"]


def test_a_machine_keeps_its_own(console, image, tmp_path):  # noqa: F811
    need(UEFI, "ovmf")
    source = tar(tmp_path / "root.tar", [("etc/motd", b"hello")])
    assert image("build", "--from-tar", source, "--name", "mine", "--size", "128M").returncode == 0
    machines = image.folder.parent / "machines"
    kept = machines / "kept" / "uefi-vars.fd"

    def start(*args):
        machine = console(PROGRAM, "run", *args, "--engine", "jit", "--firmware", "uefi", "--net", "none",
                          env=image.env)
        machine.expect("BdsDxe", 60)
        return machine

    machine = start("mine", "--name", "kept")
    done = lodge("run", "--firmware", "uefi", "--net", "none", "--uefi-vars", kept)
    assert done.returncode == 1 and "is in use by" in done.stderr
    machine.process.kill()
    machine.wait()
    first = kept.read_bytes()
    assert len(first) == TEMPLATE.stat().st_size and first != TEMPLATE.read_bytes()
    assert "BootOrder".encode("utf-16-le") in first
    # A copy has no effect on it, and it goes with its machine only.
    shutil.copy(kept, tmp_path / "copy")
    machine = start("--name", "kept", "--uefi-vars", tmp_path / "copy")
    machine.send("\x01x")
    assert machine.wait() == 103
    assert kept.read_bytes() == first
    assert lodge("machine", "remove", "kept", env=image.env).returncode == 0
    # Without a name nothing is left.
    machine = start("mine")
    machine.send("\x01x")
    assert machine.wait() == 103
    assert os.listdir(machines) == []


class Shell:
    """OVMF's."""

    def __init__(self, machine):
        self.machine = machine
        self.enter()

    def enter(self):
        self.machine.expect("in 5 seconds", 120)
        time.sleep(0.2)
        self.machine.send("\x1b")
        self.machine.expect("Shell>", 60)

    def run(self, line):
        self.machine.send(line + "\r")
        before = self.machine.place
        self.machine.expect(r"\nShell>|\n\x1b[^\n]*Shell>", 30)
        return self.machine.text[before:self.machine.place]

    def is_set(self):
        return "4C 6F 64 67 65" in self.run("setvar Lasts -guid %s" % GUID)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_variables_last(console, engine, tmp_path):
    need(UEFI, "ovmf")

    def start(*args):
        return Shell(console(PROGRAM, "run", "--engine", engine, "--firmware", "uefi", "--net", "none", *args))

    variables = tmp_path / "vars"
    for args in ([], ["--uefi-vars", variables]):
        shell = start(*args)
        assert not shell.is_set()
        shell.run("setvar Lasts -guid %s -nv -bs =4c6f646765" % GUID)
        shell.machine.send("reset\r")
        shell.enter()
        assert shell.is_set()
        shell.machine.process.send_signal(signal.SIGKILL)
        shell.machine.wait()
    shell = start("--uefi-vars", variables)
    assert shell.is_set()
    shell.machine.send("reset -s\r")
    assert shell.machine.wait(60 * PATIENCE) == 0
    assert not start().is_set()
