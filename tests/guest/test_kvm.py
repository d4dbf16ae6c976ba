"""The KVM engine on hardware semantics: inside QEMU's own emulation of an AMD processor, whose
kvm-amd module gives a /dev/kvm that behaves as a real one does (this machine's may be missing, or may
emulate ring 0). The outer machine is a stock kernel too; Lodge is copied into it with its libraries."""

import os
import re
import shutil
import subprocess

import pytest

import test_share
from lodge import BOOT_S, PROGRAM, PROMPT, ROOT, dev

pytestmark = pytest.mark.slow

HOST_PROMPT = "kvm-host# "
NO_XSAVE = "EPYC,-xsave"


def libraries(program=PROGRAM):
    """Guest name -> path here, of what the program is linked with."""
    done = subprocess.run(["ldd", program], check=True, capture_output=True, text=True)
    paths = re.findall(r"(/\S+) \(0x", done.stdout)
    return {path.lstrip("/"): path for path in paths}


def modules():
    tree = dev("kernel", "cloud", "--modules")
    done = subprocess.run(["find", tree, "-name", "irqbypass.ko", "-o", "-name", "kvm.ko",
                           "-o", "-name", "kvm-amd.ko"], check=True, capture_output=True, text=True)
    assert len(done.stdout.split()) == 3, done.stdout
    return {"kvm/" + path.rsplit("/", 1)[1]: path for path in done.stdout.split()}


@pytest.fixture(scope="session")
def peer(tmp_path_factory):
    """A program for that host: peer.c."""
    out = tmp_path_factory.mktemp("peer") / "peer"
    subprocess.run(["gcc", "-O2", "-static", "-o", out, ROOT / "tests" / "guest" / "peer.c"], check=True)
    return out


@pytest.fixture
def kvm_host(console, kernel, initrd):
    """kvm_host({name: path}) is a shell on a machine with a /dev/kvm, the files and Lodge. more: QEMU's options.

    cpu: QEMU 7.2 does not let KVM have XSETBV, so that a Linux in there finds leaf 0xd at odds with its XCR0, says so
    at length and does without AVX. One that must boot without a warning is given NO_XSAVE."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("NOT CHECKED: the KVM engine (no qemu-system-x86_64 to have a /dev/kvm in)")

    def start(files, cpus=2, more=(), cpu="EPYC", memory=1536):
        inside = {"bin/lodge": PROGRAM, **libraries(), **modules(), **files}
        host = console("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", cpu, "-m", memory,
                       "-smp", cpus, "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
                       "-kernel", kernel(), "-initrd", initrd(files=inside),
                       "-append", "console=ttyS0 panic=-1", *more)
        host.expect(PROMPT, BOOT_S)
        host.send("cd /kvm; insmod irqbypass.ko; insmod kvm.ko; insmod kvm-amd.ko; cd; "
                  "test -c /dev/kvm; echo have-kvm=$?; PS1='%s'\n" % HOST_PROMPT)
        host.expect("have-kvm=0", 30)
        host.expect(HOST_PROMPT)
        return host

    return start


@pytest.mark.parametrize("variant", ["cloud", "standard"])
@pytest.mark.parametrize("cpus", [1, 4])
def test_stock_kernel_under_kvm(kvm_host, kernel, base_initrd, variant, cpus):
    host = kvm_host({"guest/kernel": kernel(variant), "guest/initrd": base_initrd(variant)})
    host.send("lodge run --engine kvm --cpus %d --memory 256M --kernel /guest/kernel "
              "--initrd /guest/initrd --cmdline 'console=ttyS0 panic=-1'; echo lodge-status=$?\n" % cpus)
    host.expect("lodge-status=.*\n")  # the echo of that line
    if host.expect("%s|%s" % (PROMPT, HOST_PROMPT), 2 * BOOT_S)[0] == HOST_PROMPT:
        host.fail("the guest ended before there was a shell")
    assert host.run("nproc", 60).strip() == str(cpus)
    assert "KVM" in host.run("dmesg | grep -i 'hypervisor detected'", 60)
    host.send("exit\n")
    assert host.expect(r"lodge-status=(\d+)", 60)[1] == "0"


def test_share_under_kvm(kvm_host, kernel, initrd):
    """A directory of that host in a guest: doorbells and message-signalled interrupts by way of KVM."""
    command = test_share.LOAD + ("mount -t virtiofs mnt /mnt && head -c 5000000 /dev/urandom > /mnt/data && sync && "
                                 "cd /mnt && md5sum data > sums && ls -la && mkdir d && mv sums d && poweroff -f")
    host = kvm_host({"guest/kernel": kernel(), "guest/initrd": initrd(command, test_share.find_modules())})
    host.send("mkdir /shared; lodge run --engine kvm --memory 256M --share /shared:/mnt --kernel /guest/kernel "
              "--initrd /guest/initrd --cmdline 'console=ttyS0 panic=-1 quiet'; echo lodge-status=$?\n")
    host.expect("lodge-status=.*\n")  # the echo of that line
    assert host.expect(r"lodge-status=(\d+)", 3 * BOOT_S)[1] == "0"
    host.expect(HOST_PROMPT)
    host.send("cd /shared && md5sum -c d/sums; echo sums-status=$?\n")
    host.expect("sums-status=.*\n")
    assert host.expect(r"sums-status=(\d+)")[1] == "0"


def test_engine_units(kvm_host):
    """The unit tests of the engines, on a KVM that runs ring 0 on the processor."""
    files = {}
    for name in ("test_engine", "test_engine_state"):
        path = os.path.join(os.path.dirname(PROGRAM), "tests", "unit", name)
        if not os.path.exists(path):
            pytest.skip("NOT CHECKED: the engines' unit tests on a real KVM (no %s)" % path)
        files.update({"bin/" + name: path, **libraries(path)})
    host = kvm_host(files)
    for test in ("test_engine kvm", "test_engine_state kvm", "test_engine_state switch"):
        host.send("%s; echo unit-status=$?\n" % test)
        host.expect("unit-status=.*\n")  # the echo of that line
        if host.expect(r"unit-status=(\d+)", 120)[1] != "0":
            host.fail(test + " failed")
        host.expect(HOST_PROMPT)


def test_ring0_snippets(kvm_host):
    """Random ring-0 code, interpreted and under a KVM that runs ring 0 on the processor: docs/differential.md.
    Always the same cases: what QEMU does wrong is known for these. LODGE_RING0_SEED takes others."""
    path = os.path.join(os.path.dirname(PROGRAM), "tests", "ring0", "ring0")
    if not os.path.exists(path):
        pytest.skip("NOT CHECKED: ring-0 code under a real KVM (no %s)" % path)
    host = kvm_host({"bin/ring0": path, **libraries(path)}, cpus=1)
    host.send("ring0 --seed %d --count 30000; echo ring0-status=$?\n"
              % int(os.environ.get("LODGE_RING0_SEED", "2")))
    host.expect("ring0-status=.*\n")  # the echo of that line
    before = host.place
    status = host.expect(r"ring0-status=(\d+)", 600)[1]
    print(host.text[before:host.place])
    assert status == "0", host.text[before:]
    compared = re.search(r": (\d+) of \d+ cases compared", host.text[before:])
    assert compared and int(compared[1]) > 25000, host.text[before:]


def test_doctor_finds_kvm(kvm_host):
    """... and measures that it runs ring 0 on the processor, which is why auto takes it."""
    host = kvm_host({})
    host.send("lodge doctor; echo doctor-status=$?\n")
    host.expect("doctor-status=.*\n")
    before = host.place
    assert host.expect(r"doctor-status=(\d+)", 60)[1] == "0"
    assert re.search(r"kvm +native", host.text[before:]), host.text[before:]
    assert "auto takes: kvm" in host.text[before:], host.text[before:]
