"""A whole Debian: built, booted by name, used, kept, seeded by cloud-init.

The image is kept in ~/.cache/lodge/test-images and built anew when what makes it changes."""

import base64
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time

import pytest

from lodge import PATIENCE, PROGRAM, ROOT, Console, lodge
from test_kvm import HOST_PROMPT, NO_XSAVE, kvm_host, peer  # noqa: F401

pytestmark = pytest.mark.slow

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))) / "lodge" / "test-images"
ENV = dict(os.environ, XDG_DATA_HOME=str(CACHE), TERM="xterm")
MACHINES = CACHE / "lodge" / "machines"
APT_LISTS = "/var/lib/apt/lists"
LOGIN_S = 150
# What a mirror that is a snapshot needs.
APT = "apt-get -q -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false "


def recipe():
    """A digest of what decides what is in the image."""
    names = ("host/debian/setup.sh", "host/image_debian.c", "host/image_build.c", "host/image_disk.c",
             "host/image_esp.c", "host/image_fs.c")
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()


@pytest.fixture(scope="session")
def debian():
    """The image's name."""
    stamp = CACHE / "recipe"
    if not shutil.which("mmdebstrap"):
        pytest.skip("NOT CHECKED: a whole Debian (no mmdebstrap)")
    if not stamp.exists() or stamp.read_text() != recipe():
        lists = sorted(os.listdir(APT_LISTS))
        done = lodge("image", "build", "debian", "--replace", seconds=900, env=ENV)
        if done.returncode and "apt-get update" in done.stderr:
            pytest.skip("NOT CHECKED: a whole Debian (it cannot be downloaded: %s)" % done.stderr)
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(APT_LISTS)) == lists  # the host's apt is not touched
        stamp.write_text(recipe())
    return "debian"


class Guest(Console):
    """A machine with a Debian, and a shell in it that is easy to talk to."""

    def __init__(self, *options, engine="jit"):
        super().__init__([PROGRAM, "run", "--engine", engine, *options], env=ENV)
        self.login()

    def login(self):
        self.expect(r"root@[\w-]+:~# ", LOGIN_S)
        self.send("export SYSTEMD_PAGER= PS1='lodge'':/# '; stty cols 1000; bind 'set enable-bracketed-paste off'\n")
        self.expect(r"lodge:/# ")
        self.expect(r"lodge:/# ") if "lodge:/# " in self.text[self.place:] else None

    def power_off(self):
        self.send("systemctl poweroff\n")
        assert self.wait(90) == 0

    def check(self, line, seconds=60):
        """Runs a line that has to succeed."""
        out = self.run(line + "; echo status=$?", seconds)
        if "status=0" not in out:
            self.fail("%s: %s" % (line, out))
        return out.replace("status=0", "").strip()


@pytest.fixture
def guest(debian):
    """guest("debian", "--name", "x") is one at its shell; killed if it still runs at the end."""
    there = []

    def start(*options, **more):
        there.append(Guest(*options, **more))
        return there[-1]

    yield start
    for one in there:
        one.close()


@pytest.fixture
def named(debian):
    """The name of a machine that is not there yet, and will not be afterwards."""
    name = "test-%d" % os.getpid()
    lodge("machine", "remove", name, env=ENV)
    yield name
    lodge("machine", "remove", name, env=ENV)


def test_to_a_login_and_off(guest):
    machine = guest("debian")
    assert machine.check("systemctl is-system-running --wait", 120) == "running"
    assert machine.check("passwd -S root").split()[1] == "L"
    assert machine.check("hostname") == "debian"
    assert machine.check("cut -d' ' -f1,2 /sys/class/tty/console/active") != ""
    assert "10.0.2.15" in machine.check("ip -br -4 address show scope global")
    machine.power_off()
    assert [name for name in os.listdir(MACHINES) if name.startswith(".")] == []


def test_temporary_machines_leave_nothing(guest):
    machine = guest("debian")
    machine.check("echo here >/root/note; sync")
    machine.process.kill()
    machine.process.wait()
    assert len([name for name in os.listdir(MACHINES) if name.startswith(".run-")]) == 1
    machine = guest("debian")  # takes the killed one's away
    assert len([name for name in os.listdir(MACHINES) if name.startswith(".run-")]) == 1
    assert machine.check("ls /root") == ""
    machine.power_off()
    assert [name for name in os.listdir(MACHINES) if name.startswith(".")] == []


def test_a_package_from_the_network(guest):
    machine = guest("debian")
    if "status=0" not in machine.run("getent hosts deb.debian.org; echo status=$?"):
        pytest.skip("NOT CHECKED: packages in the guest (no name service here)")
    machine.check(APT + "update", 180)
    machine.check("DEBIAN_FRONTEND=noninteractive " + APT + "install -y hello", 180)
    assert machine.check("hello") == "Hello, world!"
    machine.power_off()


def test_a_share_is_mounted(guest, tmp_path):
    (tmp_path / "from-host").write_text("hello from the host\n")
    machine = guest("debian", "--share", "%s:/mnt" % tmp_path, "--share", "%s:/srv/read:ro".replace(":ro", ",ro") % tmp_path)
    assert machine.check("cat /mnt/from-host") == "hello from the host"
    machine.check("cp -r /etc/systemd /mnt/copy && echo hello from the guest >/mnt/from-guest && sync")
    assert (tmp_path / "from-guest").read_text() == "hello from the guest\n"
    assert (tmp_path / "copy" / "system.conf").exists()
    assert machine.check("cat /srv/read/from-guest") == "hello from the guest"
    assert "status=1" in machine.run("touch /srv/read/x; echo status=$?")
    machine.power_off()


def test_a_name_keeps_the_machine(guest, named):
    machine = guest("debian", "--name", named)
    assert machine.check("hostname") == named
    machine.check("echo kept >/root/note; sync")
    assert named in lodge("machine", "list", env=ENV).stdout
    second = lodge("run", "--name", named, env=ENV)
    assert second.returncode == 1 and "in use" in second.stderr, second.stderr
    assert lodge("machine", "remove", named, env=ENV).returncode == 1
    # The guest's reboot is a new life of the same machine.
    machine.send("reboot\n")
    machine.login()
    assert machine.check("cat /root/note") == "kept"
    machine.check("echo more >>/root/note")
    machine.power_off()
    machine = guest("--name", named)
    assert machine.check("cat /root/note").split() == ["kept", "more"]
    machine.power_off()
    other = lodge("run", "other", "--name", named, env=ENV)
    assert other.returncode == 1 and "made from 'debian'" in other.stderr
    assert lodge("machine", "remove", named, env=ENV).returncode == 0
    gone = lodge("run", "--name", named, env=ENV)
    assert gone.returncode == 1 and "no machine" in gone.stderr


def test_a_kernel_that_was_installed_is_booted(guest, named):
    """The kernel is looked for on the machine's own disk, not kept from when the image was built."""
    machine = guest("debian", "--name", named)
    machine.check("cd /boot && cp vmlinuz-* vmlinuz-new && cp initrd.img-* initrd-new")
    machine.check("sed -i 's,/vmlinuz,/boot/vmlinuz-new,; s,/initrd.img,/boot/initrd-new,; s,quiet,quiet tried=new,' "
                  "/boot/grub/grub.cfg && mv /vmlinuz /gone && mv /initrd.img /gone-too && sync")
    machine.send("reboot\n")
    machine.login()
    assert "tried=new" in machine.check("cat /proc/cmdline")
    machine.power_off()


USER_DATA = """#cloud-config
hostname: seeded
users:
  - name: ann
    shell: /bin/bash
    sudo: ALL=(ALL) NOPASSWD:ALL
    ssh_authorized_keys: [ "%s" ]
runcmd:
  - [ sh, -c, "echo ran >>/root/ran" ]
"""


def test_cloud_init(guest, named, tmp_path):
    for program in ("ssh", "ssh-keygen"):
        if not shutil.which(program):
            pytest.skip("NOT CHECKED: cloud-init with a login by SSH (no %s)" % program)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=20)
    seed = tmp_path / "user-data.yaml"
    seed.write_text(USER_DATA % key.with_suffix(".pub").read_text().strip())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    machine = guest("debian", "--name", named, "--cloud-init", seed, "--forward", "%d:22" % port)
    assert "done" in machine.check("cloud-init status --wait", 180)
    assert machine.check("hostname") == "seeded"
    assert machine.check("cat /root/ran") == "ran"
    ssh = ["ssh", "-i", key, "-p", str(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
           "-o", "BatchMode=yes", "ann@127.0.0.1", "sudo id -u; hostname"]
    done = subprocess.run(ssh, capture_output=True, text=True, check=False, timeout=60 * PATIENCE)
    assert done.stdout.split() == ["0", "seeded"], done.stderr
    machine.power_off()
    # It ran once, and the machine stays what it was made.
    machine = guest("--name", named)
    machine.check("cloud-init status --wait", 180)
    assert machine.check("cat /root/ran; hostname; id -un ann").split() == ["ran", "seeded", "ann"]
    machine.power_off()


@pytest.mark.parametrize("text,word", [("users: []\n", "#cloud-config"), (None, "No such file")])
def test_bad_seeds(debian, tmp_path, text, word):
    seed = tmp_path / "seed"
    if text:
        seed.write_text(text)
    done = lodge("run", "debian", "--cloud-init", seed, env=ENV)
    assert done.returncode == 1 and word in done.stderr
    assert [name for name in os.listdir(MACHINES) if name.startswith(".")] == []


# On the guest: asks the host for its time, many times; the quickest answer says how the clocks differ.
ASK = """
import socket, sys, time
s = socket.create_connection(("10.0.2.2", int(sys.argv[1])))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
best = (1 << 62, 0)
for i in range(400):
    t = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    s.sendall(b"?")
    host = int(s.recv(32))
    u = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    best = min(best, (u - t, (t + u) // 2 - host))
    time.sleep(0.005)
print("offset", best[1], "in", best[0])
"""


def serve_time(listener):
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with peer:
            while peer.recv(1):
                peer.sendall(b"%32d" % time.clock_gettime_ns(time.CLOCK_MONOTONIC))


def test_the_clock_does_not_drift(guest):
    minutes = 3
    machine = guest("debian")
    machine.check("systemctl is-system-running --wait", 120)
    machine.check("systemctl stop systemd-timesyncd")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve_time, args=(listener,), daemon=True).start()
        machine.check("echo %s | base64 -d >ask.py" % base64.b64encode(ASK.encode()).decode())

        def offset_ns():
            words = machine.check("python3 ask.py %d" % listener.getsockname()[1], 120).split()
            return int(words[words.index("offset") + 1])

        first, begun = offset_ns(), time.monotonic()
        time.sleep(minutes * 60)
        drift_ms = (offset_ns() - first) / 1e6 / ((time.monotonic() - begun) / 60)
    print("drift: %.3f ms a minute" % drift_ms)
    assert abs(drift_ms) < 1
    # And the time of day is the host's.
    assert abs(float(machine.check("date +%s.%N")) - time.time()) < 2
    machine.power_off()


def test_records(debian):
    record = json.loads(lodge("image", "show", "debian", "--json", env=ENV).stdout)
    assert record["kind"] == "debian" and record["source"] == "bookworm" and record["used_bytes"] < 1 << 30


# ---- under KVM ----

# On the guest: records of a block each, told when they are lasting; the host is asked to kill when there are some.
RECORDS = """
import os
log = os.open("/data/log", os.O_RDWR | os.O_CREAT)
i = 0
while True:
    i += 1
    os.pwrite(log, b"%4096d" % i, i % 300 * 4096)
    os.fsync(log)
    print("ACK-%d-" % i, flush=True)
    if i == 150:
        os.close(os.open("/mnt/kill", os.O_CREAT))
"""
COMPARE = """
import sys
acked = int(sys.argv[1])
log = open("/data/log", "rb").read()
lost = []
for i in range(max(1, acked - 299), acked + 1):
    found = log[i % 300 * 4096:][:4096]
    if len(found) < 4096 or int(found) < i:
        lost.append((i, found[-12:]))
print("lost:", lost)
sys.exit(bool(lost))
"""
LOAD = ("(while true; do dd if=/dev/urandom of=%s/load bs=64k count=300 conv=fsync; "
        "dd if=/dev/zero of=%s/more bs=4k count=200 oflag=dsync; done >/dev/null 2>&1 &)")


def make_repository(folder):
    """Name on the host -> path here: a package, and the index that apt wants."""
    tree = folder / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr" / "bin").mkdir(parents=True)
    control = "Package: lodge-test\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n" \
              "Depends: coreutils\nDescription: a package for a test\n"
    (tree / "DEBIAN" / "control").write_text(control)
    script = tree / "usr" / "bin" / "lodge-test"
    script.write_text("#!/bin/sh\nsha256sum </usr/share/lodge-test\n")
    script.chmod(0o755)
    (tree / "usr" / "share").mkdir()
    (tree / "usr" / "share" / "lodge-test").write_bytes(os.urandom(1 << 20))
    package = folder / "lodge-test_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, package], check=True, capture_output=True)
    data = package.read_bytes()
    index = folder / "Packages"
    index.write_text(control + "Filename: ./%s\nSize: %d\nSHA256: %s\n"
                     % (package.name, len(data), hashlib.sha256(data).hexdigest()))
    whole = hashlib.sha256((tree / "usr" / "share" / "lodge-test").read_bytes()).hexdigest()
    return {"srv/" + package.name: package, "srv/Packages": index}, whole


class Inside:
    """A Debian in a machine on that host, by the host's console."""

    def __init__(self, host):
        self.host = host

    def run(self):
        """A new monitor; its process's number is in /monitor."""
        self.host.send("rm -f /shared/kill; sh -c 'echo $$ >/monitor; exec lodge run /dev/nvme0n1 --engine kvm "
                       "--memory 768M --disk /work.qcow2 --share /shared:/mnt "
                       "--append \"systemd.default_timeout_start_sec=900s "
                       "systemd.default_device_timeout_sec=900s\"'; echo lodge-status=$?\n")
        self.host.expect("lodge-status=.*\n")  # the echo of that line
        self.login()

    def login(self):
        if self.host.expect(r"root@debian:~# |%s" % HOST_PROMPT, 8 * LOGIN_S)[0] == HOST_PROMPT:
            self.host.fail("the guest ended before there was a shell")
        self.host.send("export SYSTEMD_PAGER= PS1='lodge'':/# '; stty cols 1000; "
                       "bind 'set enable-bracketed-paste off'\n")
        self.host.expect(r"lodge:/# ", 60)
        self.host.expect(r"lodge:/# ", 60) if "lodge:/# " in self.host.text[self.host.place:] else None

    def check(self, line, seconds=120):
        return Guest.check(self.host, line, seconds)

    def put(self, path, text):
        self.check("echo %s | base64 -d >%s" % (base64.b64encode(text.encode()).decode(), path))

    def ended(self, status):
        assert int(self.host.expect(r"lodge-status=(\d+)", 4 * LOGIN_S)[1]) == status
        self.host.expect(HOST_PROMPT, 60)

    def on_host(self, line, seconds=120):
        """Runs a line there that has to succeed, while no monitor runs."""
        self.host.send(line + "; echo host''-status=$?\n")
        before = self.host.place
        if self.host.expect(r"host-status=(\d+)", seconds)[1] != "0":
            self.host.fail(line)
        text = self.host.text[before:self.host.place]
        self.host.expect(HOST_PROMPT)
        return text


def used_by_kvm(inside, checksum):
    """Network up, bytes both ways, a package, a directory both ways."""
    inside.check("systemctl is-system-running --wait || { systemctl --failed --no-legend; journalctl -p err -b | "
                 "tail -n 20; false; }", 4 * LOGIN_S)
    assert inside.check("systemd-detect-virt") == "kvm"
    assert "cut here" not in inside.check("dmesg | grep -A 30 'cut here' || true")
    assert "10.0.2.15" in inside.check("ip -br -4 address show scope global")
    inside.check("head -c 8000000 /dev/urandom >blob; exec 3<>/dev/tcp/10.0.2.2/9000; (cat blob >&3 &); "
                 "head -c 8000000 <&3 | cmp - blob; exec 3>&-", 300)
    inside.check("echo 'deb [trusted=yes] http://10.0.2.2:8000/ ./' >one.list")
    apt = APT + "-o Dir::Etc::sourcelist=/root/one.list -o Dir::Etc::sourceparts=/dev/null "
    inside.check(apt + "update", 300)
    inside.check("DEBIAN_FRONTEND=noninteractive " + apt + "install -y lodge-test", 300)
    assert inside.check("lodge-test").split()[0] == checksum
    inside.check("cd /mnt && sha256sum -c sums && cp -r /etc/systemd . && (cd /etc && find systemd -type f | sort | "
                 "xargs sha256sum) >from-guest; sync; cd", 300)


def test_under_kvm(debian, kvm_host, peer, tmp_path):  # noqa: F811
    """A Debian on a KVM that runs ring 0 on the processor: test_kvm.py's, whose NVMe disk is the image. Its boot is
    slow, so one serves all: what is done with it, a reboot, the monitor killed in mid-write, and what is found then."""
    files, checksum = make_repository(tmp_path)
    disk = json.loads(lodge("image", "show", debian, "--json", env=ENV).stdout)["disk"]
    host = kvm_host({"bin/peer": peer, **files}, cpu=NO_XSAVE, memory=2560,
                    more=["-drive", "file=%s,format=raw,if=none,id=d,snapshot=on" % disk,
                          "-device", "nvme,drive=d,serial=d"])
    inside = Inside(host)
    inside.on_host("stty cols 1000; ip link set lo up; httpd -p 127.0.0.1:8000 -h /srv; (peer echo tcp:9000 &); "
                   "(peer clock 9001 &); (while true; do test -e /shared/kill && sleep 2 && rm /shared/kill && "
                   "kill -9 $(cat /monitor); sleep 0.2; done >/dev/null 2>&1 &)")
    inside.on_host("lodge disk create /work.qcow2 400M && mkdir /shared && cd /shared && head -c 3000000 /dev/urandom "
                   ">from-host && sha256sum from-host >sums; cd")
    inside.run()
    inside.check("systemctl stop systemd-timesyncd")
    inside.put("ask.py", ASK)

    def offset_ns():
        words = inside.check("python3 ask.py 9001", 120).split()
        return int(words[words.index("offset") + 1]), int(words[words.index("in") + 1])

    first, begun = offset_ns(), time.monotonic()
    used_by_kvm(inside, checksum)
    time.sleep(max(0, 120 - (time.monotonic() - begun)))
    last, minutes = offset_ns(), (time.monotonic() - begun) / 60
    print("drift: %.3f ms a minute, over %.1f minutes; answers in %.3f and %.3f ms"
          % ((last[0] - first[0]) / 1e6 / minutes, minutes, first[1] / 1e6, last[1] / 1e6))
    assert abs(last[0] - first[0]) / 1e6 / minutes < 1
    inside.check("mkfs.ext4 -q /dev/vdb && mkdir /data && echo '/dev/vdb /data ext4 noauto 0 0' >>/etc/fstab")
    # A new life of the same monitor.
    host.send("reboot\n")
    inside.login()
    inside.check("mount /data")
    assert inside.check("lodge-test").split()[0] == checksum
    # The monitor is killed.
    inside.put("records.py", RECORDS)
    inside.put("compare.py", COMPARE)
    inside.check("sync")
    inside.check("; ".join(LOAD % (place, place) for place in ("/data", "/root")))
    before = host.place
    host.send("python3 records.py\n")
    inside.ended(137)
    acked = max(int(number) for number in re.findall(r"ACK-(\d+)-", host.text[before:]))
    assert acked > 100
    # Nothing is wrong in the image. Between two writes space may be lost, until the next opening.
    inside.on_host("lodge disk check /work.qcow2; s=$?; test $s = 0 -o $s = 4")
    inside.run()
    inside.check("mount /data")
    assert "(vdb): recovery complete" in inside.check("dmesg | grep EXT4-fs")
    print(inside.check("python3 compare.py %d" % acked))
    assert inside.check("lodge-test").split()[0] == checksum
    inside.check("umount /data && e2fsck -fn /dev/vdb", 300)
    assert "rror" not in inside.check("dmesg | grep -iE 'EXT4-fs.*error|I/O error' || true")
    host.send("systemctl poweroff\n")
    inside.ended(0)
    inside.on_host("lodge disk check /work.qcow2 && cd /shared && sha256sum -c -s from-guest && cd")


@pytest.mark.parametrize("firmware", ["seabios", "ovmf"])
def test_firmware_boots_it_elsewhere(debian, firmware):
    """The disk is one that any PC starts from: QEMU's."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("NOT CHECKED: the image under another machine (no qemu-system-x86_64)")
    more = []
    if firmware == "ovmf":
        if not os.path.exists("/usr/share/ovmf/OVMF.fd"):
            pytest.skip("NOT CHECKED: the image under OVMF (not installed)")
        more = ["-bios", "/usr/share/ovmf/OVMF.fd"]
    disk = json.loads(lodge("image", "show", "debian", "--json", env=ENV).stdout)["disk"]
    machine = Console(["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1G", "-nographic", *more,
                       "-drive", "file=%s,format=raw,if=virtio,snapshot=on" % disk])
    try:
        machine.expect(r"root@debian:~# ", 300)
        machine.send("poweroff\n")
        assert machine.wait(120) == 0
    finally:
        machine.close()
