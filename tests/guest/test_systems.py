"""Other systems than Linux: Xen with a Linux on it, GNU Mach; started by us, and by GRUB under SeaBIOS."""

import subprocess
import time

import pytest

from lodge import PROGRAM, PROMPT
from test_firmware import BIOS, need, package  # noqa: F401


def use_dom0(machine):
    """Linux on Xen, to its shell and off."""
    machine.expect(r"Xen version 4\.", 60)
    machine.expect("Run /init", 120)
    machine.expect(PROMPT, 60)
    assert machine.run("cat /sys/hypervisor/type").strip() == "xen"
    assert machine.run("cat /sys/hypervisor/uuid").strip() == "00000000-0000-0000-0000-000000000000"  # domain 0
    machine.send("poweroff -f\n")
    machine.expect("Entering ACPI S5", 60)
    assert machine.wait() == 0


def xen(console, kernel, initrd, *options):
    return console(PROGRAM, "run", "--memory", "512", "--kernel", kernel("xen"),
                   "--cmdline", "console=com1 com1=115200 dom0_mem=256M",
                   "--module", "%s console=hvc0" % kernel("standard"),
                   "--initrd", initrd(variant="standard"), *options)


def test_xen_and_a_linux_on_it(console, kernel, initrd):
    """A hypervisor, whose first guest's kernel runs in ring 3; a multiboot kernel with modules."""
    machine = xen(console, kernel, initrd, "--engine", "jit", "--cpus", "2")
    machine.expect("Brought up 2 CPUs", 60)
    machine.place = 0
    use_dom0(machine)


@pytest.mark.slow
def test_xen_under_the_interpreter(console, kernel, initrd):
    use_dom0(xen(console, kernel, initrd, "--engine", "interp"))


def test_mach_starts(console, kernel):
    """GNU Mach, to where it misses the servers that make a system of it."""
    machine = console(PROGRAM, "run", "--engine", "jit", "--memory", "128", "--kernel", kernel("mach"),
                      "--cmdline", "console=com0", "--on-reboot", "exit")
    machine.expect(r"GNU Mach 1\.", 60)
    machine.expect("RTC time is 20", 60)
    machine.expect("No bootstrap code loaded", 30)
    assert machine.wait() == 100  # it panics, and starts again


class Grub:
    """GRUB from its rescue CD, under SeaBIOS, on the serial port."""

    def __init__(self, console, package, disk, *options):  # noqa: F811
        need(BIOS, "seabios")
        iso = package("grub-rescue-pc") / "usr" / "lib" / "grub-rescue" / "grub-rescue-cdrom.iso"
        self.machine = console(PROGRAM, "run", "--engine", "jit", "--firmware", "bios", "--memory", "512",
                               "--net", "none", "--disk", "%s,format=raw,as=cdrom" % iso,
                               "--disk", "%s,format=raw,as=sata" % disk, *options)
        self.machine.expect("automatically in", 60)

    def configfile(self, name):
        self.machine.send("c")
        self.machine.expect("ESC at any time exits", 30)
        self.machine.expect("> ", 30)
        for letter in "configfile (hd0)/%s\r" % name:
            self.machine.send(letter)
            time.sleep(0.1)  # the BIOS keeps 15 keys


@pytest.fixture
def disk(tmp_path):
    """disk({name: bytes or path}) is a file system on a whole disk."""

    def make(files):
        tree = tmp_path / "tree"
        tree.mkdir()
        for name, content in files.items():
            if isinstance(content, bytes):
                (tree / name).write_bytes(content)
            else:
                (tree / name).symlink_to(content)
        image = tmp_path / "disk.img"
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-rL", tree, copy], check=True)
        subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", copy, image, "64M"], check=True)
        return image

    return make


@pytest.mark.slow
def test_grub_starts_mach(console, kernel, package, disk):  # noqa: F811
    """Its AHCI driver knows only the PIC: interrupts go where SeaBIOS routed them."""
    image = disk({"mach": kernel("mach"), "m": b"multiboot (hd0)/mach console=com0\nboot\n"})
    grub = Grub(console, package, image, "--on-reboot", "exit")
    grub.configfile("m")
    machine = grub.machine
    machine.expect(r"GNU Mach 1\.", 60)
    machine.expect(r"AHCI SATA 00:1f.2 BAR 0x[0-9a-f]+ IRQ 10", 30)
    machine.expect(r"sd\d: LODGE CD-ROM", 60)
    machine.expect(r"sd\d: LODGE DISK, 64MB", 60)
    machine.expect(r"sd\d: unknown partition table", 60)
    machine.expect("No bootstrap code loaded", 60)
    assert machine.wait() == 100


@pytest.mark.slow
def test_grub_starts_xen(console, kernel, initrd, package, disk):  # noqa: F811
    image = disk({"xen": kernel("xen"), "linux": kernel("standard"), "initrd": initrd(variant="standard"),
                  "x": b"multiboot (hd0)/xen placeholder console=com1 com1=115200 dom0_mem=256M\n"
                       b"module (hd0)/linux placeholder console=hvc0\nmodule (hd0)/initrd\nboot\n"})
    grub = Grub(console, package, image)
    grub.configfile("x")
    use_dom0(grub.machine)
