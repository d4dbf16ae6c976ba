"""The smaller virtio devices with the drivers of stock kernels: console ports, balloon, vsock, persistent memory."""

import fcntl
import hashlib
import os
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest

from lodge import BOOT_S, PATIENCE, PROGRAM, PROMPT, ROOT, dev, lodge

BASE = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_mmio"]
VSOCK = ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"]
PMEM = ["libnvdimm", "nd_btt", "nd_pmem", "nd_virtio", "virtio_pmem"]
SECONDS = 60


@pytest.fixture(scope="session")
def modules():
    """modules("virtio_console", ...): files for the guest, and the line that loads them."""
    known = {}

    def find(*names, variant="cloud"):
        if variant not in known:
            tree = dev("kernel", variant, "--modules")
            done = subprocess.run(["find", tree, "-name", "*.ko"], check=True, capture_output=True, text=True)
            known[variant] = {path.rsplit("/", 1)[1][:-3].replace("-", "_"): path
                              for path in done.stdout.split()}
        wanted = [name for name in [*BASE, *names] if name in known[variant]]
        files = {"mod/%s.ko" % name: known[variant][name] for name in wanted}
        return files, "for m in %s; do insmod /mod/$m.ko || echo no $m; done" % " ".join(wanted)

    return find


@pytest.fixture
def guest(boot, modules):
    """guest(modules, options...): a booted guest with those modules loaded."""

    def start(names, *options, engine="jit", memory="256M", files=None, variant="cloud", cmdline=""):
        found, load = modules(*names, variant=variant)
        machine = boot("--engine", engine, "--memory", memory, *options, files={**found, **(files or {})},
                       variant=variant, cmdline=cmdline)
        machine.expect(PROMPT, BOOT_S)
        assert "no " not in machine.run("stty cols 200; " + load, 60)
        return machine

    return start


def finish(machine):
    machine.send("poweroff -f\n")
    assert machine.wait(30) == 0


def noise(seed, count):
    """Bytes that compress to nothing, the same for a seed."""
    return b"".join(hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(count // 32))


def connected(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS * PATIENCE)
    client.connect(str(path))
    return client


def receive(client, count):
    parts = []
    while count:
        part = client.recv(min(count, 65536))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# ---- ports ----


def test_ports(guest, tmp_path):
    """Two ports: names, and megabytes both ways with a reader and a writer that are slow."""
    machine = guest(["virtio_console"], "--port", "name=org.one,path=%s/1" % tmp_path,
                    "--port", "name=org.two,path=%s/2,x" % tmp_path, "--cpus", 2)
    # The driver has done its part; the names come when the device has said them.
    assert machine.run("until [ $(cat /sys/class/virtio-ports/*/name | wc -l) = 2 ]; do sleep 0.1; done 2>/dev/null; "
                       "cat /sys/class/virtio-ports/*/name").split() == ["org.one", "org.two"]
    names = machine.run("grep -l org.one /sys/class/virtio-ports/*/name").split("/")
    port = "/dev/" + names[4]
    client = connected(tmp_path / "1")
    data = noise(1, 4 << 20)
    # In the guest: read all of it, say what it was, send it back.
    machine.send("head -c %d %s > /tmp/data; md5sum < /tmp/data; cat /tmp/data > %s; echo se''nt\n"
                 % (len(data), port, port))
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    machine.expect(hashlib.md5(data).hexdigest(), SECONDS)
    sender.join()
    time.sleep(1)  # nobody reads: the guest waits, and so does what it wrote
    assert receive(client, len(data)) == data
    machine.expect("sent", SECONDS)
    machine.expect(PROMPT)
    # The next one who connects; the guest hears of it.
    client.close()
    client = connected(tmp_path / "1")
    # Open all the time: Linux drops what comes to a port that nobody has open.
    machine.send("exec 3<>%s; echo again >&3; head -n 1 <&3; exec 3>&-\n" % port)
    assert receive(client, 6) == b"again\n"
    client.sendall(b"and back\n")
    machine.expect(r"and back\s", SECONDS)
    machine.expect(PROMPT)
    assert os.stat(tmp_path / "1").st_mode & 0o777 == 0o600
    finish(machine)
    assert not os.path.exists(tmp_path / "1")
    assert os.listdir(tmp_path).count("2,x") == 0


def test_console(console, kernel, initrd, modules):
    """The machine's console on hvc0: what is typed gets there, all that is printed comes here, and the size of the
    terminal is followed."""
    files, load = modules("virtio_console")
    machine = console(PROGRAM, "run", "--engine", "jit", "--kernel", kernel(), "--console", "virtio", "--initrd",
                      initrd(command=load + "; while ! echo begun >/dev/hvc0; do sleep 0.1; done; setsid -c sh -l </dev/hvc0 >/dev/hvc0 2>&1",
                             files=files), "--cmdline", "console=ttyS0 panic=-1", size=(33, 111))
    machine.expect(PROMPT, BOOT_S)
    assert machine.run("tty").strip() == "/dev/hvc0"
    machine.wait_until(lambda: "33 111" in machine.run("stty size"), "the guest's terminal has another size", 10)
    fcntl.ioctl(machine.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    machine.wait_until(lambda: "40 120" in machine.run("stty size"), "the guest's terminal has the old size", 10)
    text = machine.run("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done | tee /tmp/all; "
                       "md5sum </tmp/all", 120)
    lines = ["line %d" % i for i in range(20000)]
    assert text.splitlines()[:20000] == lines
    assert hashlib.md5(("\n".join(lines) + "\n").encode()).hexdigest() in text
    machine.send("/lib/lodge/exit 42\n")
    assert machine.wait(30) == 42


# ---- vsock ----


@pytest.fixture(scope="session")
def vsock_program(tmp_path_factory):
    """A program for the guest: vsock.c."""
    out = tmp_path_factory.mktemp("vsock") / "vsock"
    subprocess.run(["gcc", "-O2", "-static", "-o", out, ROOT / "tests" / "guest" / "vsock.c"], check=True)
    return out


@pytest.fixture
def vsock_guest(guest, vsock_program, tmp_path):
    def start(*options, **more):
        return guest(VSOCK, "--vsock", "%s/v,cid=52" % tmp_path, *options, files={"bin/vsock": vsock_program}, **more)

    return start


def listener(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1024)
    server.settimeout(SECONDS * PATIENCE)
    return server


def call(path, port):
    """Connects to a port of the guest's."""
    client = connected(path)
    client.sendall(b"CONNECT %d\n" % port)
    line = b""
    while not line.endswith(b"\n"):
        byte = client.recv(1)
        if not byte:
            return None, line
        line += byte
    return client, line


def send_all(client, data):
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("engine, cpus", [("jit", 1), ("jit", 2), pytest.param("interp", 1, marks=pytest.mark.slow)])
def test_vsock(vsock_guest, tmp_path, engine, cpus):
    """Megabytes both ways at once, from connections that either side opens; half-closed; refused."""
    size = (8 if engine == "jit" else 2) << 20
    up, down = noise(1, size), noise(2, size)
    machine = vsock_guest("--cpus", cpus, engine=engine)
    # The guest connects.
    server = listener(tmp_path / "v_1234")
    machine.send("head -c %d /dev/urandom > /tmp/up; vsock connect 2 1234 < /tmp/up > /tmp/down; "
                 "cat /tmp/up /tmp/down | md5sum\n" % size)
    client, _ = server.accept()
    client.settimeout(SECONDS * PATIENCE)
    sender = threading.Thread(target=send_all, args=(client, down))
    sender.start()
    got = receive(client, size + 1)
    sender.join()
    assert len(got) == size
    machine.expect(hashlib.md5(got + down).hexdigest(), SECONDS)
    client.close()
    # The host connects.
    machine.send("vsock listen 99 < /tmp/up > /tmp/down; md5sum < /tmp/down\n")
    machine.expect("listening")
    client, line = call(tmp_path / "v", 99)
    assert line.startswith(b"OK ") and int(line[3:]) >= 1024
    sender = threading.Thread(target=send_all, args=(client, up))
    sender.start()
    assert receive(client, size + 1) == got
    sender.join()
    machine.expect(hashlib.md5(up).hexdigest(), SECONDS)
    # Nobody there, on either side.
    assert call(tmp_path / "v", 98) == (None, b"")
    assert "connect: Connection reset by peer" in machine.run("vsock connect 2 77")
    assert "connect: Connection reset by peer" in machine.run("vsock connect 2 98 2>&1")
    finish(machine)
    assert not os.path.exists(tmp_path / "v")


def test_vsock_slow_readers(vsock_guest, tmp_path):
    """Who does not read holds up who writes to him, and nobody else."""
    machine = vsock_guest("--cpus", 2)
    server = listener(tmp_path / "v_1")
    machine.send("dd if=/dev/zero bs=65536 count=64 2>/dev/null | vsock connect 2 1 >/dev/null &\n")
    slow, _ = server.accept()
    time.sleep(1)
    machine.send("\necho fast | vsock connect 2 1\n")
    fast, _ = server.accept()
    fast.settimeout(SECONDS * PATIENCE)
    assert receive(fast, 100) == b"fast\n"
    fast.sendall(b"an answer\n")
    fast.close()
    machine.expect(r"an answer\s", SECONDS)
    slow.settimeout(SECONDS * PATIENCE)
    assert receive(slow, 64 * 65536 + 1) == b"\0" * (64 * 65536)
    slow.close()
    # A reader in the guest that waits: what the host writes waits at its end.
    machine.send("\nvsock listen 5 </dev/null | (until [ -e /tmp/go ]; do sleep 0.1; done; md5sum) &\n")
    machine.expect("listening")
    client, _ = call(tmp_path / "v", 5)
    data = noise(3, 4 << 20)
    client.settimeout(1)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < len(data):
            sent += client.send(data[sent:sent + 65536])
    assert sent < len(data) / 2
    machine.run("touch /tmp/go")
    client.settimeout(SECONDS * PATIENCE)
    client.sendall(data[sent:])
    client.close()
    machine.expect(hashlib.md5(data).hexdigest(), SECONDS)
    finish(machine)


def test_vsock_many(vsock_guest, tmp_path):
    """Hundreds of connections at once."""
    machine = vsock_guest()
    server = listener(tmp_path / "v_7")
    count = 300

    def answer(client):
        line = b""
        while not line.endswith(b"\n"):
            line += client.recv(100)
        client.sendall(line[5:])
        client.close()

    def serve():
        for _ in range(count):
            client, _ = server.accept()
            client.settimeout(SECONDS * PATIENCE)
            threading.Thread(target=answer, args=(client,)).start()

    thread = threading.Thread(target=serve)
    thread.start()
    assert "%d answered" % count in machine.run("ulimit -n 4096; vsock many 2 7 %d" % count, SECONDS)
    thread.join()
    finish(machine)


def test_vsock_reloaded(vsock_guest, tmp_path, vsock_program):
    """The driver goes away and comes again: who is connected is hung up on, and may connect again."""
    machine = vsock_guest()
    machine.send("vsock listen 5 </dev/zero >/dev/null\n")
    machine.expect("listening")
    client, _ = call(tmp_path / "v", 5)
    assert receive(client, 100000) == b"\0" * 100000
    machine.send("\x03")
    machine.expect(PROMPT)
    machine.send("vsock listen 5 </dev/null | md5sum & sleep 1; "
                 "until rmmod vmw_vsock_virtio_transport; do sleep 0.2; done; insmod /mod/vmw_vsock_virtio_transport.ko; echo relo''aded\n")
    machine.expect("reloaded", SECONDS)
    machine.send("\nvsock listen 6 </dev/null\n")
    machine.expect("listening.*listening|listening", SECONDS)
    while True:
        client, line = call(tmp_path / "v", 6)
        if client:
            break
        time.sleep(0.2)
    client.sendall(b"in the next life\n")
    client.close()
    machine.expect("in the next life", SECONDS)
    finish(machine)


# ---- persistent memory ----


@pytest.fixture
def ext4_image(tmp_path):
    """An ext4 file system of 64 MiB, with a megabyte of noise in the file `noise`."""
    path, content = tmp_path / "image", tmp_path / "content"
    content.mkdir()
    (content / "noise").write_bytes(noise(5, 32 << 20))
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", "-b", "4096", "-d", content, path, "64M"], check=True)
    return path


def pss_kib(pid, path):
    """Resident and proportional KiB of the mappings of that file."""
    rss = pss = 0
    inside = False
    for line in open("/proc/%d/smaps" % pid, encoding="utf-8"):
        if not line.split(":")[0].istitle() and "-" in line.split()[0]:
            inside = line.rstrip().endswith(str(path))
        elif inside and line.startswith("Rss:"):
            rss += int(line.split()[1])
        elif inside and line.startswith("Pss:"):
            pss += int(line.split()[1])
    return rss, pss


def mount_pmem(machine, options):
    machine.run("mkdir -p /mnt; while [ ! -b /dev/pmem0 ]; do sleep 0.1; done", SECONDS)
    said = machine.run("mount -t ext4 -o %s /dev/pmem0 /mnt; grep pmem0 /proc/mounts" % options, SECONDS)
    assert "/dev/pmem0 /mnt ext4 %s" % options.split(",")[0] in said, said


@pytest.mark.parametrize("engine", ["jit", pytest.param("interp", marks=pytest.mark.slow)])
def test_pmem(guest, ext4_image, engine):
    """Written through DAX, synced: it is in the file, and there again for the next machine."""
    machine = guest(PMEM, "--pmem", ext4_image, engine=engine)
    mount_pmem(machine, "rw,dax")
    assert "dax=always" in machine.run("grep pmem0 /proc/mounts") or "dax" in machine.run("dmesg | grep -i dax")
    assert hashlib.md5(noise(5, 32 << 20)).hexdigest() in machine.run("md5sum < /mnt/noise", SECONDS)
    machine.run("head -c 3000000 /dev/urandom > /mnt/new; sync; umount /mnt; mount -o dax /dev/pmem0 /mnt", SECONDS)
    total = machine.run("md5sum < /mnt/new", SECONDS).split()[0]
    machine.run("sync; umount /mnt", SECONDS)
    machine.kill(9)
    machine.wait()
    checked = subprocess.run(["/sbin/e2fsck", "-fn", ext4_image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    out = subprocess.run(["/sbin/debugfs", "-R", "cat new", ext4_image], capture_output=True, check=True).stdout
    assert hashlib.md5(out).hexdigest() == total


def test_pmem_shared_by_machines(guest, ext4_image):
    """Two machines, one copy in the host's memory; what one of them writes is its own."""
    before = hashlib.md5(ext4_image.read_bytes()).hexdigest()
    machines = [guest(PMEM, "--pmem", "%s,%s" % (ext4_image, mode)) for mode in ("cow", "ro")]
    mount_pmem(machines[0], "rw,dax")
    mount_pmem(machines[1], "ro,dax")
    for machine in machines:
        assert hashlib.md5(noise(5, 32 << 20)).hexdigest() in machine.run("md5sum < /mnt/noise", SECONDS)
    for machine in machines:
        rss, pss = pss_kib(machine.process.pid, ext4_image)
        print("rss %d KiB, pss %d KiB" % (rss, pss))
        assert rss > 32 << 10 and pss < rss * 0.6, (rss, pss)
    machines[0].run("echo mine > /mnt/mine; sync", SECONDS)
    assert "mine" in machines[0].run("cat /mnt/mine")
    # What is written to a read-only one is dropped.
    machines[1].run("umount /mnt; dd if=/dev/zero of=/dev/pmem0 bs=4096 count=1 oflag=direct 2>/dev/null; sync", SECONDS)
    for machine in machines:
        finish(machine)
    assert hashlib.md5(ext4_image.read_bytes()).hexdigest() == before


def test_pmem_copies_outlive_a_reboot(guest, ext4_image):
    machine = guest(PMEM, "--pmem", "%s,cow" % ext4_image)
    mount_pmem(machine, "rw,dax")
    machine.run("echo kept > /mnt/kept; umount /mnt", SECONDS)
    machine.send("reboot -f\n")
    machine.expect(PROMPT, BOOT_S)
    machine.run("for m in %s; do insmod /mod/$m.ko; done" % " ".join([*BASE, *PMEM]), SECONDS)
    mount_pmem(machine, "rw,dax")
    assert "kept" in machine.run("cat /mnt/kept")
    finish(machine)


# ---- balloon ----


def rss_mib(machine):
    status = open("/proc/%d/smaps_rollup" % machine.process.pid, encoding="utf-8").read()
    return int(status.split("Rss:")[1].split()[0]) >> 10


def test_free_memory_goes_back(guest):
    """A guest that used much and freed it does not keep the host's memory."""
    machine = guest(["virtio_balloon"], memory="512M")
    before = rss_mib(machine)
    machine.run("mkdir -p /t; mount -t tmpfs -o size=300M t /t; head -c 250000000 /dev/zero > /t/a; sync", SECONDS)
    used = rss_mib(machine)
    machine.run("rm /t/a")
    machine.wait_until(lambda: rss_mib(machine) < before + 60, "it keeps %d MiB of %d" % (rss_mib(machine), used), 40)
    print("%d MiB at first, %d MiB used, %d MiB at last" % (before, used, rss_mib(machine)))
    assert used > before + 200
    # It is there again when it is wanted.
    assert machine.run("head -c 200000000 /dev/urandom > /t/b; md5sum /t/b > /t/s; md5sum -c /t/s", SECONDS).strip() == "/t/b: OK"
    finish(machine)


def test_without_balloon(guest):
    machine = guest(["virtio_balloon"], "--balloon", "off", memory="512M")
    machine.run("mkdir -p /t; mount -t tmpfs -o size=300M t /t; head -c 250000000 /dev/zero > /t/a; sync", SECONDS)
    used = rss_mib(machine)
    machine.run("rm /t/a; sleep 5")
    assert rss_mib(machine) > used - 20
    finish(machine)


def test_balloon(guest):
    """The guest gives away what it is asked for, and takes it again rather than kill a program."""
    machine = guest(["virtio_balloon"], "--balloon", "200M", memory="512M")

    def free_mib():
        return int(machine.run("grep MemFree /proc/meminfo").split()[1]) >> 10

    def inflated():
        return int(machine.run("grep balloon_inflate /proc/vmstat").split()[1])

    machine.wait_until(lambda: inflated() >= 200 << 8, "the guest keeps its memory", 30)
    assert inflated() == 200 << 8 and free_mib() < 260
    machine.run("mkdir -p /t; mount -t tmpfs -o size=400M t /t; head -c 330000000 /dev/zero > /t/a; sync", SECONDS)
    assert machine.run("wc -c < /t/a").strip() == "330000000"
    assert int(machine.run("grep balloon_deflate /proc/vmstat").split()[1]) > 10 << 8
    assert "Out of memory" not in machine.run("dmesg")
    finish(machine)


# ---- the watchdog ----


@pytest.fixture
def watched(guest, modules):
    """watched(action, line, options...): a guest that pats its watchdog for a while, and then runs the line."""

    def start(action, line, *options):
        files = modules("watchdog", "i6300esb", variant="standard")[0]
        machine = guest([], "--watchdog", action, *options, variant="standard",
                        files={name: path for name, path in files.items() if "virtio" not in name})
        patted(machine, line)
        return machine

    return start


def patted(machine, line):
    machine.run("insmod /mod/watchdog.ko; insmod /mod/i6300esb.ko heartbeat=3; ls /dev/watchdog")
    assert "i6300" in machine.run("cat /sys/class/watchdog/watchdog0/identity; dmesg | grep -i i6300")
    machine.run("exec 9>/dev/watchdog; for i in $(seq 50); do echo >&9; sleep 0.1; done; echo ali''ve")
    machine.send(line + "\n")


@pytest.mark.parametrize("action, end", [("reset", 100), ("poweroff", 0)])
def test_watchdog(watched, action, end):
    machine = watched(action, "sleep 60", "--on-reboot", "exit")
    assert machine.wait(30) == end
    assert "the guest no longer answers" in machine.text


def test_watchdog_pauses(watched, tmp_path):
    """And once more, when the user has let the machine go on and the guest has started it again."""
    control = tmp_path / "control"
    machine = watched("pause", "while true; do for i in $(seq 18); do echo tick; sleep 0.2; done; echo V >&9; exec 9>&-; "
                      "exec 9>/dev/watchdog; echo again; done", "--control", control)
    machine.expect("the machine is paused", 30)
    deadline = time.monotonic() + 30 * PATIENCE
    while machine._read(2):  # what was on its way; then nothing, though there was a tick every 0.2 seconds
        assert time.monotonic() < deadline
    assert "paused (watchdog)" in lodge("machine", "status", control).stdout
    assert lodge("machine", "resume", control).returncode == 0
    machine.expect("again\r", 30)
    machine.wait_until(lambda: "paused (watchdog)" in lodge("machine", "status", control).stdout, "no second pause")
    machine.kill()
    assert machine.wait(10) == 128 + 15


def test_watchdog_only_says_so(watched):
    machine = watched("none", "sleep 6; echo still he''re")
    machine.expect("nothing is done", 30)
    machine.expect("still here", 30)
    finish(machine)
