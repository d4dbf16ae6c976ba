"""A machine whose kernel is read from inside its disk."""

import os
import signal

from lodge import PROGRAM
from test_image import image, tar  # noqa: F401


def test_kernel_from_inside_a_disk(image, console, kernel, initrd, tmp_path):  # noqa: F811
    """A disk with a stock kernel and a menu: no --kernel. It is looked for anew when the guest has reset."""
    menu = (b"set default=0\nmenuentry 'Linux' {\n  linux /boot/k root=/dev/none panic=-1 from=disk\n"
            b"  initrd /boot/i\n}\n")
    with open(kernel(), "rb") as file:
        packed = file.read()
    with open(initrd("cat /proc/cmdline; reboot -f"), "rb") as file:
        ram_disk = file.read()
    source = tar(tmp_path / "root.tar", [("boot/k", packed), ("boot/i", ram_disk), ("boot/grub/grub.cfg", menu)])
    assert image("build", "--from-tar", source, "--name", "mine", "--size", "512M").returncode == 0
    machine = console(PROGRAM, "run", "mine", "--append", "more=words", env=image.env)
    for _ in range(2):
        machine.expect(r"root=/dev/none panic=-1 from=disk console=ttyS0 lodge.tty=24x80\S* more=words", 60)
    machine.kill(signal.SIGTERM)
    assert machine.wait() == 128 + signal.SIGTERM
    assert os.listdir(image.folder.parent / "machines") == []
