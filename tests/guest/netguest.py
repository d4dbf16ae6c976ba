"""What a stock guest needs to use its network: drivers, iperf3 with its libraries, a script for the DHCP client. For
tests and benchmarks."""

import pathlib
import re
import shutil
import subprocess

from lodge import dev

# In the order in which they are to be loaded.
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "failover", "net_failover", "virtio_net"]
LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
[ -z "$router" ] || ip route add default via $router
[ -z "$mtu" ] || ip link set $interface mtu $mtu
[ -z "$dns" ] || echo "nameserver $dns" >/etc/resolv.conf
"""
# All of it in one line of shell.
UP = ("for m in %s; do insmod /mod/$m.ko || exit 1; done; ip link set lo up; ip link set eth0 up; "
      "udhcpc -i eth0 -s /lodge/lease -n -q -t 10 -T 1" % " ".join(MODULES))


def net_guest_files(folder):
    """Name in the guest -> path here; None: there is no iperf3. The folder is for what has to be made."""
    program = shutil.which("iperf3")
    if not program:
        return None
    tree = dev("kernel", "cloud", "--modules")
    found = {path.name: path for path in pathlib.Path(tree).rglob("*.ko")}
    files = {"mod/%s.ko" % name: found[name + ".ko"] for name in MODULES}
    libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in re.findall(r"/\S+", libraries):
        files[path[1:]] = path
    script = pathlib.Path(folder) / "lease"
    script.write_text(LEASE)
    script.chmod(0o755)
    return {**files, "usr/bin/iperf3": program, "lodge/lease": script}
