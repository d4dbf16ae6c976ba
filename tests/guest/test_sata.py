"""A SATA disk and a CD-ROM under a stock kernel, whose ahci driver knows nothing of us."""

import hashlib
import pathlib
import random

import pytest

from lodge import BOOT_S, PROMPT, dev

MODULES = ["ahci", "sd_mod", "sr_mod"]
MIB = 1 << 20


@pytest.fixture(scope="session")
def modules():
    """The modules and those that they need, in the order to load them in."""
    tree = pathlib.Path(dev("kernel", "standard", "--modules"))
    found = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    order = []

    def add(name):
        if name in order or name not in found:
            return
        data = found[name].read_bytes()
        start = data.find(b"\0depends=")
        for other in data[start + 9:data.index(b"\0", start + 9)].decode().split(","):
            add(other.replace("-", "_"))
        order.append(name)

    for name in MODULES:
        add(name)
    assert set(MODULES) <= set(order)
    return {"mod/%02d-%s.ko" % (number, name): found[name] for number, name in enumerate(order)}


def test_disk_and_cdrom(boot, modules, tmp_path):
    disk, cd = tmp_path / "disk", tmp_path / "cd.iso"
    noise = random.Random(1)
    content = noise.randbytes(8 * MIB)
    cd.write_bytes(content)
    disk.write_bytes(content[::-1] + bytes(56 * MIB))
    machine = boot("--engine", "jit", "--cpus", "2", "--net", "none", "--disk", "%s,format=raw,as=sata,serial=ABC" % disk,
                   "--disk", "%s,format=raw,as=cdrom" % cd, variant="standard", files=modules)
    machine.expect(PROMPT, BOOT_S)
    assert "BAD" not in machine.run("for m in /mod/*.ko; do insmod $m || echo BAD; done", 60)
    machine.run("while ! [ -e /sys/block/sda -a -e /sys/block/sr0 ]; do sleep 0.2; done", 60)
    machine.run("for b in sda sr0; do mknod /dev/$b b $(tr : ' ' </sys/block/$b/dev); done")
    assert machine.run("cat /sys/block/sda/size").strip() == str(64 * MIB // 512)
    assert machine.run("cat /sys/block/sda/device/queue_depth").strip() in ("31", "32")
    assert hashlib.md5(content).hexdigest() in machine.run("md5sum /dev/sr0", 60)
    assert hashlib.md5(content[::-1]).hexdigest() in machine.run("head -c %d /dev/sda | md5sum" % len(content), 60)
    # Written with several at work, past the cache, and found in the file.
    for part in range(4):
        machine.run("dd if=/dev/sr0 of=/dev/sda bs=64k skip=%d seek=%d count=32 conv=notrunc & " % (
            part * 32, 256 + part * 32), 60)
    machine.run("wait; sync; echo 3 >/proc/sys/vm/drop_caches", 60)
    assert hashlib.md5(content).hexdigest() in machine.run("dd if=/dev/sda bs=64k skip=256 count=128 | md5sum", 60)
    assert "error" not in machine.run("dmesg | grep -i -E 'ata[0-9].*(error|fail|timeout|exception)'").split("\n")[0]
    machine.send("poweroff -f\n")
    assert machine.wait(60) == 0
    data = disk.read_bytes()
    assert data[16 * MIB:24 * MIB] == content
    assert data[:8 * MIB] == content[::-1]
