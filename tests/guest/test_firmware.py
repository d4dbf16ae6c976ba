"""Stock firmware of Debian's packages seabios and ovmf starts in place of a kernel."""

import json
import pathlib
import re
import socket
import struct
import subprocess
import time
import zlib

import pytest

from lodge import PATIENCE, PROGRAM, lodge
from test_debian import ENV, debian  # noqa: F401

BIOS = pathlib.Path("/usr/share/seabios/bios-256k.bin")
UEFI = pathlib.Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
GUID = "12345678-1234-1234-1234-123456789abc"


def need(path, package):
    if not path.exists():
        pytest.skip("NOT CHECKED: firmware %s is not installed (package %s)" % (path, package))


@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_bios_finds_nothing_to_boot(console, engine, tmp_path):
    need(BIOS, "seabios")
    log = tmp_path / "log"
    machine = console(PROGRAM, "run", "--engine", engine, "--firmware", "bios", "--cpus", "2",
                      "--net", "none", "--firmware-log", log)
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
    machine = console(PROGRAM, "run", "--engine", "jit", "--firmware", "uefi", "--net", "none")
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
    assert "no multiple of 4 KiB" in done.stderr
    done = lodge("run", "--firmware", "bios", "--kernel", path)
    assert done.returncode == 2
    assert "leave out --kernel" in done.stderr
    done = lodge("run", "--firmware", tmp_path / "none")
    assert done.returncode == 1
    assert "none" in done.stderr


class Vnc:
    """As much of a VNC client as it takes to look and to type."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30 * PATIENCE)
        self.socket.connect(str(path))
        assert self.get(12) == b"RFB 003.008\n"
        self.socket.sendall(b"RFB 003.008\n")
        assert self.get(2) == b"\1\1"
        self.socket.sendall(b"\1")
        assert self.get(4) == bytes(4)
        self.socket.sendall(b"\1")
        self.width, self.height = struct.unpack(">HH", self.get(4))
        self.get(16)
        self.get(struct.unpack(">I", self.get(4))[0])
        self.socket.sendall(struct.pack(">BxHii", 2, 2, 0, -223))
        self.picture = {}

    def get(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the server hung up"
            data += more
        return data

    def look(self):
        """Takes one update of everything; the lines of the picture, 4 bytes a pixel."""
        self.socket.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, 4096, 4096))
        lines = [bytearray(4 * self.width) for _ in range(self.height)]
        _, count = struct.unpack(">HH", self.get(4))
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.get(12))
            if encoding == -223:
                self.width, self.height = width, height
                return self.look()
            for line in range(y, y + height):
                lines[line][4 * x:4 * (x + width)] = self.get(4 * width)
        return [bytes(line) for line in lines]

    def type(self, text):
        for letter in text:
            shift = letter in "A?"
            if shift:
                self.key(0xffe1, 1)
            for down in (1, 0):
                self.key({"\r": 0xff0d}.get(letter, ord(letter)), down)
            if shift:
                self.key(0xffe1, 0)
            time.sleep(0.1)

    def key(self, keysym, down):
        self.socket.sendall(struct.pack(">BBxxI", 4, down, keysym))


def wait_for(path):
    deadline = time.monotonic() + 30 * PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, "no " + str(path)
        time.sleep(0.05)


def png_lines(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT")
    size = struct.unpack(">I", data[start - 4:start])[0]
    raw = zlib.decompress(data[start + 4:start + 4 + size])
    assert len(raw) == height * (1 + 3 * width)
    return [raw[1 + line * (1 + 3 * width):(line + 1) * (1 + 3 * width)] for line in range(height)]


def test_screen_and_keyboard_by_vnc(console, tmp_path):
    """OVMF's shell on the graphics card, used by its keyboard; what VNC shows is what the screenshot has."""
    need(UEFI, "ovmf")
    vnc, shot = tmp_path / "vnc", tmp_path / "shot.png"
    machine = console(PROGRAM, "run", "--engine", "jit", "--firmware", "uefi", "--net", "none",
                      "--vnc", "unix:%s" % vnc, "--screenshot", shot)
    wait_for(vnc)
    client = Vnc(vnc)
    machine.expect("ESC", 120)  # the shell is on both consoles
    client.type("\r")
    machine.expect("Shell>", 60)
    client.type("echo aA?\r")
    machine.expect("\naA\\?", 60)
    lines = client.look()
    assert client.width >= 640 and len(lines) >= 400
    ink = sum(pixel not in (0, 0xff) for line in lines for pixel in line)
    assert any(line.count(0) != len(line) for line in lines), ink
    machine.send("\x01x")
    assert machine.wait() == 103
    shown = png_lines(shot)
    assert len(shown) == len(lines)
    differ = sum(bytes(line[4 * x + c] for x in range(client.width) for c in (2, 1, 0)) != other
                 for line, other in zip(lines, shown))
    assert differ <= 20, "%d lines differ" % differ  # the cursor blinks
    assert not vnc.exists()


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """package("memtest86+") is the folder with the files of that package of Debian's, which is not installed."""
    known = {}

    def files(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("package")
            done = subprocess.run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name], cwd=folder,
                                  capture_output=True, text=True, check=False)
            packages = list(folder.glob("*.deb"))
            if not packages:
                pytest.skip("NOT CHECKED: %s (it cannot be downloaded: %s)" % (name, done.stderr.strip()))
            subprocess.run(["dpkg-deb", "-x", packages[0], folder / "root"], check=True)
            known[name] = folder / "root"
        return known[name]

    return files


BLUE = bytes((0xaa, 0, 0, 0))  # as VNC tells it: blue, green, red, nothing


class Memtest:
    """What memtest86+ 6 has on its screen of 80x25 characters, 9x16 dots each."""

    def __init__(self, lines):
        self.lines = lines

    def cell(self, column, row):
        return [line[4 * 9 * column:4 * 9 * (column + 1)] for line in self.lines[16 * row:16 * (row + 1)]]

    def is_there(self):
        return len(self.lines) == 400 and self.lines[160:190] == [BLUE * 720] * 30  # above a banner

    def is_without_errors(self):
        """Errors: 0, one digit that looks like the hours' 0 of the time."""
        blank = [BLUE * 9] * 16
        return (self.cell(68, 8) == self.cell(51, 7) != blank
                and self.cell(67, 8) == self.cell(69, 8) == blank)

    def passes(self):
        """Whether the digit of `Pass:` is no longer 0."""
        return self.cell(51, 8) not in (self.cell(51, 7), [BLUE * 9] * 16)


@pytest.mark.slow
def test_memtest_passes_from_a_cdrom(console, package, tmp_path):
    """SeaBIOS and GRUB start it; one pass over a small machine's memory, of which 160 seconds are waiting."""
    need(BIOS, "seabios")
    vnc = tmp_path / "vnc"
    iso = package("memtest86+") / "usr" / "lib" / "memtest86+" / "memtest86+x64.iso"
    machine = console(PROGRAM, "run", "--engine", "jit", "--firmware", "bios", "--memory", "32", "--net", "none",
                      "--disk", "%s,format=raw,as=cdrom" % iso, "--vnc", "unix:%s" % vnc)
    wait_for(vnc)
    client = Vnc(vnc)

    def shows(what):
        screen = Memtest(client.look())
        return screen.is_there() and what(screen)

    machine.wait_until(lambda: shows(Memtest.is_without_errors), "memtest does not start", 60)
    machine.wait_until(lambda: time.sleep(1) or shows(Memtest.passes), "no pass", 400)
    assert shows(Memtest.is_without_errors)
    machine.send("\x01x")
    assert machine.wait() == 103


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_memtest_passes(console, package, engine):
    """One pass over the smallest machine's memory, told on its serial console; 160 seconds of it are waiting."""
    machine = console(PROGRAM, "run", "--engine", engine, "--memory", "16", "--net", "none", "--rng", "off",
                      "--balloon", "off", "--keep-packed",
                      "--kernel", package("memtest86+") / "boot" / "memtest86+x64.bin",
                      "--cmdline", "console=ttyS0,115200")
    machine.expect("Memtest86", 60)
    machine.expect("Pass: *1 ", 400)
    assert not re.search("Errors: *[1-9]", machine.text)
    machine.send("\x01x")
    assert machine.wait() == 103


@pytest.mark.slow
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_firmware_boots_debian(console, debian, firmware, tmp_path):  # noqa: F811
    need(BIOS if firmware == "bios" else UEFI, "seabios" if firmware == "bios" else "ovmf")
    disk = json.loads(lodge("image", "show", debian, "--json", env=ENV).stdout)["disk"]
    clone = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", disk, clone], check=True)
    clone.chmod(0o600)
    machine = console(PROGRAM, "run", "--engine", "jit", "--firmware", firmware, "--memory", "1024", "--disk",
                      "%s,format=raw" % clone)
    machine.expect(r"root@debian:~# ", 300)
    machine.send("[ -d /sys/firmware/efi ] && echo firm''ware=uefi || echo firm''ware=bios\n")
    machine.expect("firmware=" + firmware)
    if firmware == "uefi":
        # What an operating system keeps there outlives a reboot.
        machine.send("printf '\\7\\0\\0\\0lasting' > /sys/firmware/efi/efivars/Lodge-%s && reboot\n" % GUID)
        machine.expect("automatic login", 300)
        machine.expect(r"root@debian:~# ", 60)
        machine.send("echo fo''und=$(tail -c7 /sys/firmware/efi/efivars/Lodge-%s)\n" % GUID)
        machine.expect("found=lasting")
    machine.send("poweroff\n")
    assert machine.wait(120) == 0
