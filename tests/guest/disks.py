"""What a stock guest needs to use disks: modules of its kernel, and an image with programs of the host."""

import os
import re
import shutil
import subprocess

from lodge import dev

MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "virtio_mmio", "virtio_blk"]
LOAD = "for m in %s; do insmod /mod/$m.ko || echo BAD; done" % " ".join(MODULES)
TOOLS = ["fio", "mke2fs", "e2fsck"]


def module_files():
    """name in the guest -> path here"""
    done = subprocess.run(["find", dev("kernel", "cloud", "--modules"), "-name", "virtio*.ko"], check=True,
                          capture_output=True, text=True)
    found = {path.rsplit("/", 1)[1]: path for path in done.stdout.split()}
    return {"mod/%s.ko" % name: found["%s.ko" % name] for name in MODULES}


def find_program(name):
    return shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")


def copy_program(path, root):
    """Into a root's /bin, with the libraries that it wants."""
    done = subprocess.run(["ldd", path], check=True, capture_output=True, text=True)
    shutil.copy(path, root / "bin")
    for name in re.findall(r"(/\S+\.so\S*)", done.stdout):
        to = root / name.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.exists():
            shutil.copy(name, to)


def make_ext4(image, tree, size):
    subprocess.run([find_program("mke2fs"), "-q", "-t", "ext4", "-d", tree, "-E", "root_owner=0:0", image,
                    str(size // 1024)], check=True, stdout=subprocess.DEVNULL)


def make_tools(folder):
    """The image of an ext4 file system with the programs that make, check and load disks."""
    root, image = folder / "root", folder / "tools.img"
    for name in ("dev", "proc", "sys", "tmp", "bin"):
        (root / name).mkdir(parents=True)
    for name in TOOLS:
        copy_program(find_program(name), root)
    shutil.copy(find_program("busybox"), root / "bin" / "busybox")
    os.symlink("busybox", root / "bin" / "sh")
    make_ext4(image, root, 200 << 20)
    shutil.rmtree(root)
    return image
