"""Every virtio device, hot-plug and the watchdog under the KVM engine, on test_kvm.py's host: doorbells by ioeventfd,
interrupts by message and by line, over PCI and over MMIO, and drivers that are taken away and put back."""

import re

import pytest

from lodge import BOOT_S
from netguest import LEASE
from test_kvm import HOST_PROMPT, NO_XSAVE, kvm_host, libraries, peer  # noqa: F401
from test_virtio import HOTPLUG, PLUG, virtio_modules  # noqa: F401
from test_virtio_devices import PMEM, VSOCK, modules, vsock_program  # noqa: F401

pytestmark = pytest.mark.slow

MODULES = ["virtio_rng", "virtio_blk", "failover", "net_failover", "virtio_net", "virtio_console", "virtio_balloon",
           *VSOCK, "fuse", "virtiofs", *PMEM]
ROUND = ["rng", "blk", "net", "port", "vsock", "fs", "pmem"]

CHECKS = r"""
%(load)s
bytes=1500000; head -c $bytes /dev/urandom >/tmp/noise; mkdir -p /mnt
try() { n=0; until eval "$1"; do n=$((n+1)); [ $n -lt 300 ] || return 1; sleep 0.1; done; }
forget() { sync; echo 3 >/proc/sys/vm/drop_caches; }
rng() { [ $(head -c 20000 /dev/hwrng | gzip -c | wc -c) -gt 19000 ]; }
on_disk() {
	try "[ -b $1 ]" && dd if=/tmp/noise of=$1 bs=100k conv=fsync 2>/dev/null && forget || return 1
	head -c $bytes $1 | cmp - /tmp/noise
}
blk() { on_disk /dev/vda; }
pmem() { on_disk /dev/pmem0; }
net() {
	ip link set lo up; ip link set eth0 up
	udhcpc -i eth0 -s /lodge/lease -n -q -t 10 -T 2 >/dev/null 2>&1 || return 1
	nc 10.0.2.2 9000 </tmp/noise | head -c $bytes | cmp - /tmp/noise
}
port() {
	try 'at=$(grep -l org.one /sys/class/virtio-ports/*/name)' && at=/dev/$(echo $at | cut -d/ -f5) || return 1
	try '[ -c $at ]' && exec 8<>$at || return 1
	{ cat /tmp/noise >&8 & head -c $bytes <&8 | cmp - /tmp/noise; } && exec 8>&-
}
vsock_() {
	for i in 0 1 2 3 4 5 6 7 8 9; do
		dd if=/tmp/noise of=/tmp/part bs=60000 count=1 skip=$i 2>/dev/null
		vsock connect 2 1234 </tmp/part | cmp - /tmp/part || return 1
	done
}
fs() {
	mount -t virtiofs mnt /mnt && cp /tmp/noise /mnt/x && forget || return 1
	cmp /mnt/x /tmp/noise && rm /mnt/x && umount /mnt
}
balloon() { try '[ "$(grep balloon_inflate /proc/vmstat | cut -d" " -f2)" -ge 8192 ]'; }
check() { for c in rng blk net port vsock_ fs pmem; do $c && echo "ok $1 ${c%%_}" || echo "BAD $1 ${c%%_}"; done; }
echo; check first
balloon && echo "ok first balloon"
for l in /sys/bus/virtio/drivers/*/virtio*; do
	d=${l%%/*}; n=${l##*/}
	echo $n >$d/unbind && echo $n >$d/bind || echo "BAD rebind $l"
done
check again
balloon && echo "ok again balloon"
echo "devices $(ls /sys/bus/virtio/devices | wc -l)"; grep virtio /proc/interrupts | sed 's/^/irq /'
dmesg | grep -iE -A 20 'cut here|virtio.*(fail|error)|I/O error|irq .*nobody cared' | sed 's/^/BAD /'
"""
LODGE = ("lodge run --engine kvm --cpus 2 --memory 256M --kernel /guest/kernel --disk /disk.raw,format=raw "
         "--balloon 32M --port name=org.one,path=/tmp/port --vsock /tmp/vsock --share /shared:/mnt --pmem /pmem ")


@pytest.fixture
def host(kvm_host, kernel, initrd, modules, vsock_program, peer, virtio_modules, tmp_path):  # noqa: F811
    """That host with all that the guests here want, and its ends of their connections."""
    lease = tmp_path / "lease"
    lease.write_text(LEASE)
    lease.chmod(0o755)
    files, load = modules(*MODULES)
    guest = initrd(CHECKS % {"load": load}, {**files, "bin/vsock": vsock_program, "lodge/lease": lease})
    files = modules("watchdog", "i6300esb", variant="standard")[0]
    files = {name: path for name, path in files.items() if "virtio" not in name}
    bark = initrd("insmod /mod/watchdog.ko; insmod /mod/i6300esb.ko heartbeat=2; exec 9>/dev/watchdog; "
                  "for i in 1 2 3 4 5 6; do echo >&9; sleep 1; done; echo ali''ve; sleep 600", files, "standard")
    machine = kvm_host({"bin/peer": peer, "bin/plug": PLUG, **libraries(PLUG), "guest/kernel": kernel(),
                        "guest/initrd": guest, "guest/standard": kernel("standard"), "guest/bark": bark,
                        "guest/hot": initrd(HOTPLUG, virtio_modules)}, cpu=NO_XSAVE, memory=2048)
    machine.send("stty cols 1000; ip link set lo up; (peer echo tcp:9000 &); (peer echo unix:/tmp/vsock_1234 &); "
                 "mkdir /shared; truncate -s 16M /disk.raw /pmem; echo re''ady\n")
    machine.expect("ready")
    machine.expect(HOST_PROMPT)
    return machine


def run(host, line, seconds, status=0):  # noqa: F811
    """Runs a line there; returns what it printed."""
    host.send(line + "; echo line''-status=$?\n")
    before = host.place
    got = int(host.expect(r"line-status=(\d+)", seconds)[1])
    text = host.text[before:host.place].replace("\r", "")
    assert got == status, text
    host.expect(HOST_PROMPT)
    return text



def test_devices_under_kvm(host):
    for options, cmdline, kind in (("", "", "PCI-MSI"), ("", "pci=nomsi", "IO-APIC"), ("--virtio mmio", "", "IO-APIC"),
                                   ("--virtio mmio,split,noevent", "", "IO-APIC")):
        text = run(host, "rm -f /tmp/port; (peer echo to:/tmp/port &); %s %s --initrd /guest/initrd --cmdline "
                   "'console=ttyS0 panic=-1 quiet %s'" % (LODGE, options, cmdline), 3 * BOOT_S + 240)
        assert "BAD" not in text, text
        for turn in ("first", "again"):
            for name in [*ROUND, "balloon"]:
                assert "ok %s %s\n" % (turn, name) in text, text
        assert "devices 8" in text, text
        lines = re.findall(r"^irq (.*)$", text, re.M)
        assert lines and all(kind in line for line in lines), text
    text = run(host, "plug kvm /guest/kernel /guest/hot 'console=ttyS0 panic=-1'", 240)
    assert "NEVER" not in text and text.count("bytes 1000") == text.count("still 1000") == 3, text
    assert text.count("@@unplug hot0: done") == text.count("@@unplug hot1: done") == 3, text
    text = run(host, "lodge run --engine kvm --memory 256M --watchdog poweroff --kernel /guest/standard "
               "--initrd /guest/bark --cmdline 'console=ttyS0 panic=-1 quiet'", 3 * BOOT_S)
    assert "alive" in text and "the guest no longer answers" in text, text
