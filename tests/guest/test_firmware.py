"""Stock firmware of Debian's packages seabios and ovmf starts in place of a kernel."""

import pathlib

import pytest

from lodge import PROGRAM, lodge

BIOS = pathlib.Path("/usr/share/seabios/bios-256k.bin")
UEFI = pathlib.Path("/usr/share/ovmf/OVMF.fd")


def need(path, package):
    if not path.exists():
        pytest.skip("NOT CHECKED: firmware %s is not installed (package %s)" % (path, package))


@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_bios_finds_nothing_to_boot(console, engine, tmp_path):
    need(BIOS, "seabios")
    log = tmp_path / "log"
    machine = console(PROGRAM, "run", "--engine", engine, "--firmware", "bios", "--cpus", "2",
                      "--firmware-log", log)
    machine.expect("SeaBIOS \\(version", 60)
    machine.expect("No bootable device", 60)
    machine.send("\x01x")
    assert machine.wait() == 103
    text = log.read_text()
    assert "Found 2 cpu(s)" in text
    assert "via xsdt" in text, text  # it found our FADT in the tables it moved
    assert "Unable to unlock ram" not in text


def test_uefi_reaches_its_shell(console):
    need(UEFI, "ovmf")
    machine = console(PROGRAM, "run", "--engine", "jit", "--firmware", "uefi")
    machine.expect("UEFI Interactive Shell", 120)
    machine.expect("ESC", 30)
    machine.send("\x1b")
    machine.expect("Shell>", 60)
    machine.send("memmap\r")
    machine.expect("BS_Code", 30)
    machine.expect("Shell>", 30)
    machine.send("reset -s\r")
    assert machine.wait(60) == 0


def test_what_is_no_firmware_is_refused(tmp_path):
    path = tmp_path / "no-firmware"
    path.write_bytes(b"x" * 1000)
    done = lodge("run", "--firmware", path)
    assert done.returncode == 1
    assert "no multiple of 64 KiB" in done.stderr
    done = lodge("run", "--firmware", "bios", "--kernel", path)
    assert done.returncode == 2
    assert "leave out --kernel" in done.stderr
    done = lodge("run", "--firmware", tmp_path / "none")
    assert done.returncode == 1
    assert "none" in done.stderr
