"""Virtio devices of every machine, with the drivers of stock kernels: over PCI with message-signalled
interrupts and with lines."""

import pathlib
import subprocess

import pytest

from lodge import BOOT_S, PROGRAM, PROMPT, dev

# In the order in which they are to be loaded.
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "virtio_mmio", "virtio-rng", "virtio_blk"]
LOAD = "for m in %s; do insmod /mod/$m.ko || exit 1; done" % " ".join(MODULES)


@pytest.fixture(scope="session")
def virtio_modules():
    tree = dev("kernel", "cloud", "--modules")
    done = subprocess.run(["find", tree, "-name", "virtio*.ko"], check=True, capture_output=True, text=True)
    found = {path.rsplit("/", 1)[1]: path for path in done.stdout.split()}
    return {"mod/%s.ko" % name: found["%s.ko" % name] for name in MODULES}


def interrupts(machine):
    """How many each device of virtio has had, by the line's text in /proc/interrupts."""
    counts = {}
    for line in machine.run("grep virtio /proc/interrupts").splitlines():
        words = line.split()
        number = sum(int(word) for word in words[1:] if word.isdigit())
        counts[" ".join(word for word in words[1:] if not word.isdigit())] = number
    return counts


def check_rng(machine):
    assert machine.run("cat /sys/class/misc/hw_random/rng_current").strip() == "virtio_rng.0"
    first, second = (machine.run("head -c 4096 /dev/hwrng | md5sum").split()[0] for _ in range(2))
    assert first != second
    assert machine.run("head -c 200000 /dev/hwrng | wc -c").strip() == "200000"
    # Bytes, not zeros: gzip finds nothing to spare.
    assert int(machine.run("head -c 20000 /dev/hwrng | gzip -c | wc -c")) > 19000
    assert any(count > 10 for count in interrupts(machine).values())


def start(boot, modules, *options, cmdline=""):
    machine = boot("--net", "none", "--balloon", "off", *options, files=modules, cmdline=cmdline)
    machine.expect(PROMPT, BOOT_S)
    machine.run("stty cols 200 2>/dev/null; " + LOAD, 60)
    return machine


def finish(machine):
    log = machine.run("dmesg | grep -iE 'virtio|pci 0000.*(fail|conflict|no space|error)'")
    for word in ("fail", "conflict", "no space", "error"):
        assert word not in log.lower(), log
    machine.send("poweroff -f\n")
    assert machine.wait(30) == 0


@pytest.mark.parametrize("engine, cpus", [("jit", 1), ("jit", 4), ("interp", 1)])
def test_rng(boot, virtio_modules, engine, cpus):
    machine = start(boot, virtio_modules, "--engine", engine, "--cpus", cpus)
    assert "MSI" in " ".join(interrupts(machine)), interrupts(machine)
    check_rng(machine)
    finish(machine)


@pytest.mark.parametrize("cmdline", ["pci=nomsi", "pci=nocrs", "pci=nocrs,nomsi", "pci=conf1"])
def test_other_ways_to_pci(boot, virtio_modules, cmdline):
    """Lines in place of messages; without ACPI's word on the windows; without the memory window."""
    machine = start(boot, virtio_modules, "--engine", "jit", cmdline=cmdline)
    lines = " ".join(interrupts(machine))
    assert ("MSI" in lines) == ("nomsi" not in cmdline), lines
    check_rng(machine)
    finish(machine)


QUEUES = ["pci", "split", "split,noevent", "noevent", "noindirect", "split,noevent,noindirect"]


@pytest.mark.parametrize("switches", QUEUES)
def test_queues(boot, virtio_modules, switches):
    """What the driver took: bit 34 packed, 29 event indexes, 28 indirect tables, 32 version 1."""
    machine = start(boot, virtio_modules, "--engine", "jit", "--virtio", switches)
    features = machine.run("cat /sys/bus/virtio/devices/virtio0/features").strip()
    assert features[32] == "1"
    assert (features[34] == "1") == ("split" not in switches)
    assert (features[29] == "1") == ("noevent" not in switches)
    assert (features[28] == "1") == ("noindirect" not in switches)
    check_rng(machine)
    finish(machine)


@pytest.mark.parametrize("engine, switches", [("jit", "mmio"), ("jit", "mmio,split"), ("interp", "mmio")])
def test_mmio(boot, virtio_modules, engine, switches):
    """A machine without PCI, whose devices ACPI announces."""
    machine = start(boot, virtio_modules, "--engine", engine, "--virtio", switches)
    assert machine.run("ls /sys/bus/pci/devices | wc -l").strip() == "0"
    assert "LNRO0005" in machine.run("ls /sys/bus/acpi/devices")
    check_rng(machine)
    finish(machine)


def test_reload(boot, virtio_modules):
    """The drivers come and go: resets, queues in other places."""
    for switches in ("pci", "mmio"):
        machine = start(boot, virtio_modules, "--engine", "jit", "--virtio", switches)
        check_rng(machine)
        said = machine.run("for i in $(seq 20); do rmmod virtio_rng virtio_pci && insmod /mod/virtio_pci.ko &&"
                           " insmod /mod/virtio-rng.ko && head -c 100 /dev/hwrng > /dev/null || echo BAD; done",
                           60)
        assert "BAD" not in said
        check_rng(machine)
        finish(machine)


def test_without_rng(boot, virtio_modules):
    machine = start(boot, virtio_modules, "--engine", "jit", "--rng", "off")
    assert machine.run("ls /sys/bus/virtio/devices | wc -l").strip() == "0"
    finish(machine)


PLUG = pathlib.Path(PROGRAM).parent / "tests" / "guest" / "plug"
HOTPLUG = r"""
mkdir -p /tmp; %s
wait_for() { n=0; until eval "$1"; do n=$((n+1)); [ $n -gt 300 ] && { echo "NEVER: $1"; poweroff -f; }; sleep 0.1; done; }
count() { ls /sys/bus/virtio/devices | wc -l; }
echo; echo "ports $(ls /sys/bus/pci/slots | tr '\n' ' ')"
for round in 1 2 3; do
    echo "@plug hot0"
    wait_for '[ $(count) = 1 ]'
    echo "@plug hot1"
    wait_for '[ $(count) = 2 ]'
    wait_for 'grep -q virtio_rng /sys/class/misc/hw_random/rng_current'
    echo; echo "bytes $(head -c 1000 /dev/hwrng | wc -c)"
    echo "@plug hot2"
    echo "@unplug hot0"
    wait_for '[ $(count) = 1 ]'
    echo; echo "still $(head -c 1000 /dev/hwrng | wc -c)"
    # The other one is thrown out by the guest itself.
    for s in /sys/bus/pci/slots/*; do [ "$(cat $s/adapter)$(cat $s/power)" = 11 ] && echo 0 > $s/power; done
    wait_for '[ $(count) = 0 ]'
    echo "@unplug hot1"
    sleep 1
    echo; echo "round $round"
done
dmesg | grep -iE "hotplug|pciehp|pci_bus" | tail -30
poweroff -f
""" % LOAD


@pytest.mark.slow
@pytest.mark.parametrize("engine, cmdline", [("jit", ""), ("jit", "pci=nomsi pcie_ports=native"), ("interp", "")])
def test_hotplug(console, kernel, initrd, virtio_modules, engine, cmdline):
    """Entropy devices come and go in the slots of root ports."""
    command = initrd(HOTPLUG, virtio_modules)
    machine = console(PLUG, engine, kernel(), command, "console=ttyS0 panic=-1 " + cmdline)
    assert machine.wait(120) == 0, machine.text[-4000:]
    text = machine.text.replace("\r", "")
    assert "NEVER" not in text, text[-4000:]
    assert text.count("bytes 1000") == text.count("still 1000") == 3, text[-6000:]
    for line, times in [("@@plug hot0: done", 3), ("@@plug hot1: done", 3), ("@@unplug hot0: done", 3),
                        ("@@unplug hot1: done", 3), ("@@plug hot2: all 2 ports are taken", 3)]:
        assert text.count(line) == times, (line, text[-6000:])
    assert "round 3" in text
