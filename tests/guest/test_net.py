"""The network of a stock guest: user mode, forwards, switches, taps and passt, with programs at both ends that count
or compare what came. Servers are on this host's loopback, so no route outward is needed."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time

import pytest

from lodge import BOOT_S, PATIENCE, PROGRAM, PROMPT, dev, lodge
from netguest import MODULES, net_guest_files

BLOB_BYTES = 100 << 20

# How the guest loads its driver: as it likes; with no offloads of its own.
PLAIN, NO_OFFLOADS = "", "csum=0 gso=0"


@pytest.fixture(scope="session")
def net_files(tmp_path_factory):
    files = net_guest_files(tmp_path_factory.mktemp("net"))
    if not files:
        pytest.skip("NOT CHECKED: networks in guests (no iperf3)")
    return files


def load(machine, parameters=PLAIN):
    machine.expect(PROMPT, BOOT_S)
    for name in MODULES:
        extra = parameters if name == "virtio_net" else ""
        machine.run("insmod /mod/%s.ko %s" % (name, extra), 60)
    machine.run("ip link set lo up")


def lease(machine, card="eth0"):
    """Gets an address by DHCP; returns it."""
    machine.run("ip link set %s up" % card)
    machine.run("udhcpc -i %s -s /lodge/lease -n -q -t 10 -T 1" % card, 60)
    text = machine.run("ip -4 addr show %s" % card)
    found = re.search(r"inet ([\d.]+)/", text)
    assert found, machine.text
    return found[1]


@pytest.fixture
def guest(boot, net_files):
    """guest("--net", "user") is a machine whose one card has its address by DHCP."""

    def start(*options, parameters=PLAIN, engine="jit", address=True):
        machine = boot("--engine", engine, *options, files=net_files)
        load(machine, parameters)
        if address:
            lease(machine)
        return machine

    return start


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def both_free():
    """A port that is free for TCP and for UDP."""
    for _ in range(100):
        port = free_port()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no free port")


@contextlib.contextmanager
def iperf_server(*prefix):
    port = free_port()
    with subprocess.Popen([*prefix, "iperf3", "-s", "-p", str(port), "-B", "127.0.0.1"],
                          stdout=subprocess.DEVNULL) as server:
        time.sleep(0.5)
        try:
            yield port
        finally:
            server.kill()


class Blob:
    """Bytes served to who connects to .port; what comes to .sink is kept."""

    def __init__(self):
        self.bytes = os.urandom(1 << 20) * (BLOB_BYTES >> 20)
        self.md5 = hashlib.md5(self.bytes).hexdigest()
        self.got, self.came = None, threading.Event()
        blob = self

        class Give(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(blob.bytes)

        class Take(socketserver.BaseRequestHandler):
            def handle(self):
                total = hashlib.md5()
                while part := self.request.recv(1 << 20):
                    total.update(part)
                blob.got = total.hexdigest()
                blob.came.set()

        self.servers = [socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind) for kind in (Give, Take)]
        self.port, self.sink = (server.server_address[1] for server in self.servers)
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def blob():
    made = Blob()
    yield made
    made.close()


def iperf(machine, where, *options, seconds=60):
    """Runs iperf3 in the guest; returns its report. Between two clients a server does not listen for a moment."""
    time.sleep(PATIENCE)
    text = machine.run("iperf3 -J -c %s %s" % (where, " ".join(map(str, options))), seconds)
    report = json.loads(text[text.index("{"):])
    assert "error" not in report, report["error"]
    return report["end"]


def check_iperf(machine, where, *options, count=200 << 20):
    """Both directions, and what was sent is what came."""
    for direction in ([], ["-R"]):
        end = iperf(machine, where, "-n", count, *options, *direction)
        sent, came = end["sum_sent"]["bytes"], end["sum_received"]["bytes"]
        assert sent >= count and sent - came < 16 << 20, (direction, sent, came)


def check_blob(machine, blob, host="10.0.2.2"):
    got = machine.run("nc %s %d </dev/null | tee /tmp/blob | md5sum" % (host, blob.port), 120)
    assert got.split()[0] == blob.md5
    machine.run("nc %s %d </tmp/blob" % (host, blob.sink), 120)
    assert blob.came.wait(30 * PATIENCE) and blob.got == blob.md5


def finish(machine):
    log = machine.run("dmesg | grep -iE 'virtio_net|eth0|hw csum|transmit queue'")
    for word in ("bad", "checksum", "timed out", "error"):
        assert word not in log.lower(), log
    machine.send("poweroff -f\n")
    assert machine.wait(30) == 0


# ---- Intel's card ----

@pytest.mark.parametrize("offloads", ["on", "off"])
def test_e1000(boot, net_files, blob, offloads):
    """The standard kernel's e1000 driver, with its segmentation and checksums and without."""
    tree = pathlib.Path(dev("kernel", "standard", "--modules"))
    files = {name: path for name, path in net_files.items() if not name.startswith("mod/")}
    files["mod/e1000.ko"] = next(tree.rglob("e1000.ko"))
    machine = boot("--engine", "jit", "--cpus", 2, "--net", "user,card=e1000,mac=52:54:00:12:34:77",
                   variant="standard", files=files)
    machine.expect(PROMPT, BOOT_S)
    machine.run("insmod /mod/e1000.ko; ip link set lo up", 60)
    assert "52:54:00:12:34:77" in machine.run("ip link show eth0")
    if offloads == "off":
        machine.run("ip link set eth0 gso_max_segs 1")
    lease(machine)
    check_blob(machine, blob)
    with iperf_server() as port:
        check_iperf(machine, "10.0.2.2", "-p", port, count=50 << 20)
    counts = machine.run("cat /sys/class/net/eth0/statistics/rx_errors /sys/class/net/eth0/statistics/tx_errors")
    assert counts.split() == ["0", "0"]
    machine.run("ip link set eth0 down; ip link set eth0 up; ip addr flush dev eth0")
    lease(machine)
    finish(machine)


# ---- user mode ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("engine, cpus", [
    ("jit", 1), ("jit", 4), pytest.param("interp", 1, marks=pytest.mark.slow)])
def test_user(guest, engine, cpus):
    """With no option at all there is a network: address, route, name server, IPv6."""
    machine = guest("--cpus", cpus, engine=engine)
    assert "default via 10.0.2.2" in machine.run("ip route")
    assert "inet 10.0.2.15/24" in machine.run("ip addr show eth0")
    assert "nameserver 10.0.2.3" in machine.run("cat /etc/resolv.conf")
    assert " 0% packet loss" in machine.run("ping -c 3 10.0.2.2")
    machine.run("for i in 1 2 3 4 5 6 7 8 9; do ip -6 addr show eth0 | grep fec0 && break; sleep 1; done", 30)
    assert "fec0::" in machine.run("ip -6 addr show eth0")
    assert " 0% packet loss" in machine.run("ping -c 2 -6 fec0::2")
    finish(machine)


@pytest.mark.parametrize("mtu, parameters", [
    (1500, PLAIN), (1500, NO_OFFLOADS), pytest.param(9000, PLAIN, marks=pytest.mark.slow),
    pytest.param(65520, PLAIN, marks=pytest.mark.slow), pytest.param(65520, NO_OFFLOADS, marks=pytest.mark.slow)])
def test_bytes_both_ways(guest, blob, mtu, parameters):
    """100 MB each way come as they were sent; with other MTUs, and with nothing left to the card."""
    machine = guest("--net", "user,mtu=%d" % mtu, parameters=parameters)
    assert "mtu %d " % mtu in machine.run("ip link show eth0")
    check_blob(machine, blob)
    with iperf_server() as port:
        check_iperf(machine, "10.0.2.2", "-p", port)
        check_iperf(machine, "10.0.2.2", "-p", port, "-P", 4, count=50 << 20)
    finish(machine)


def test_ipv6(guest):
    """TCP over IPv6 to the host's ::1."""
    machine = guest()
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("NOT CHECKED: IPv6 through user networking (this host has no ::1)")
        port = probe.getsockname()[1]
    machine.run("for i in 1 2 3 4 5 6 7 8 9; do ip -6 addr show eth0 | grep fec0 && break; sleep 1; done", 30)
    machine.run("sleep 3")
    with subprocess.Popen(["iperf3", "-s", "-p", str(port), "-B", "::1"], stdout=subprocess.DEVNULL) as server:
        time.sleep(0.5)
        check_iperf(machine, "fec0::2", "-p", port, "-6")
        server.kill()
    finish(machine)


def check_udp(end):
    """At 2 Mbit/s the host's socket holds what comes while a busy host lets the machine wait."""
    assert end["packets"] > 60 and end["lost_percent"] < 5, end


def test_udp(guest):
    """Datagrams small and large, both ways: hardly any is lost at a rate that both ends can keep."""
    machine = guest()
    with iperf_server() as port:
        for options in (["-l", 1000], ["-l", 1000, "-R"], ["-l", 8000], ["-l", 8000, "-R"]):
            check_udp(iperf(machine, "10.0.2.2", "-p", port, "-u", "-b", "2M", "-t", 3, *options)["sum"])
    finish(machine)


def test_forward(guest):
    """Ports of the host's for TCP and UDP, while the guest also goes out."""
    port, other = both_free(), free_port()
    machine = guest("--forward", "%d:5201" % port, "--forward", "udp:%d:5201" % port,
                    "--forward", "127.0.0.1:%d:7777" % other)
    machine.run("iperf3 -s -D; sleep 1")

    def client(*options):
        # Between two clients the server does not listen for a moment.
        time.sleep(2 * PATIENCE)
        done = subprocess.run(["iperf3", "-J", "-c", "127.0.0.1", "-p", str(port), *options], capture_output=True,
                              text=True, check=False, timeout=60 * PATIENCE)
        report = json.loads(done.stdout)
        assert "error" not in report, report["error"]
        return report["end"]

    for direction in ([], ["-R"]):
        end = client("-n", str(200 << 20), *direction)
        assert end["sum_received"]["bytes"] >= 184 << 20
        check_udp(client("-u", "-b", "2M", "-t", "3", "-l", "1000", *direction)["sum"])
    # Many short connections, one after the other: all answered.
    machine.run("(nc -ll -p 7777 -e cat &) ; sleep 1")
    for number in range(50):
        with socket.create_connection(("127.0.0.1", other), timeout=10 * PATIENCE) as connection:
            connection.sendall(b"number %d\n" % number)
            assert connection.recv(100) == b"number %d\n" % number
    finish(machine)


def test_dns(console, kernel, initrd, net_files, tmp_path):
    """The guest's name server is the host's, whatever that is."""
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False,
                                          capture_output=True).returncode:
        pytest.skip("NOT CHECKED: DNS through user networking (it takes root to give the host another name server)")
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.77\n")

    def answer(server):
        while True:
            try:
                query, where = server.recvfrom(2000)
            except OSError:
                return
            # One A record, 192.0.2.99, for whatever was asked.
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\x63"
            if query[-4:-2] != b"\0\1":
                server.sendto(query[:2] + b"\x81\x80\0\1\0\0\0\0\0\0" + query[12:], where)
            else:
                server.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + record, where)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.77", 53))
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        machine = console("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', conf,
                           PROGRAM, "run", "--engine", "jit", "--kernel", kernel(), "--initrd",
                           initrd(None, net_files), "--cmdline", "console=ttyS0 panic=-1")
        load(machine)
        lease(machine)
        assert "192.0.2.99" in machine.run("nslookup somewhere.example 10.0.2.3")
        finish(machine)


def test_isolated_and_no_host(guest):
    """What the guest shall not reach it does not."""
    with iperf_server() as port:
        for what in ("isolated", "no-host"):
            machine = guest("--net", "user," + what)
            text = machine.run("nc -w 3 10.0.2.2 %d </dev/null; echo status=$?" % port, 20)
            assert "status=1" in text
            machine.send("poweroff -f\n")
            assert machine.wait(30) == 0
        machine = guest("--net", "user,no-ipv6")
        assert "status=0" in machine.run("nc -w 3 10.0.2.2 %d </dev/null; echo status=$?" % port, 20)
        assert "fec0" not in machine.run("sleep 3; ip -6 addr show eth0")
        finish(machine)


def test_again_after_a_reset(guest, blob):
    """The back end stays while the machine is made anew; its forwards too."""
    port = free_port()
    machine = guest("--forward", "%d:7777" % port)
    for _ in range(2):
        check_blob(machine, blob)
        machine.run("(nc -ll -p 7777 -e cat &) ; sleep 1")
        with socket.create_connection(("127.0.0.1", port), timeout=10 * PATIENCE) as connection:
            connection.sendall(b"hello\n")
            assert connection.recv(100) == b"hello\n"
        machine.send("reboot -f\n")
        load(machine)
        lease(machine)
    finish(machine)


def test_none_and_many(guest):
    machine = guest("--net", "none", address=False)
    assert machine.run("ls /sys/class/net").split() == ["lo"]
    machine.send("poweroff -f\n")
    assert machine.wait(30) == 0
    machine = guest("--net", "user,mac=52:54:00:aa:bb:cc,queues=3", "--net", "user", "--cpus", 4)
    lease(machine, "eth1")
    assert "52:54:00:aa:bb:cc" in machine.run("ip link show eth0")
    assert "52:54:00:12:34:57" in machine.run("ip link show eth1")
    assert len(machine.run("ls -d /sys/class/net/eth0/queues/rx-*").split()) == 3
    finish(machine)


# ---- switches ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def lan(guest, tmp_path_factory, monkeypatch):
    """lan(N) is machine N of a switch, with address 192.168.50.N."""
    folder = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))

    def start(number, *options, parameters=PLAIN):
        machine = guest("--net", "switch=lan", *options, address=False, parameters=parameters)
        machine.run("ip addr add 192.168.50.%d/24 dev eth0; ip link set eth0 up" % number)
        return machine

    start.folder = folder / "lodge"
    return start


def reaches(machine, number):
    return " 0% packet loss" in machine.run("ping -c 3 192.168.50.%d" % number)


def test_switch(lan):
    """Two machines find each other, a third joins, one is killed, another comes; streams and bytes between them."""
    one, two = lan(1), lan(2, "--cpus", 2)
    assert reaches(one, 2) and reaches(two, 1)
    two.run("iperf3 -s -D; sleep 1")
    check_iperf(one, "192.168.50.2")
    three = lan(3, parameters=NO_OFFLOADS)
    assert reaches(three, 1) and reaches(two, 3)
    check_iperf(three, "192.168.50.2")
    three.run("head -c 100000000 /dev/urandom >/tmp/blob; (nc -l -p 99 -e cat /tmp/blob &); sleep 1", 60)
    want = three.run("md5sum /tmp/blob", 60).split()[0]
    assert one.run("nc 192.168.50.3 99 </dev/null | md5sum", 60).split()[0] == want
    one.kill(9)
    assert one.wait(10) == -9
    assert reaches(three, 2) and reaches(two, 3)
    one = lan(1)
    assert reaches(one, 2) and reaches(one, 3) and reaches(two, 1)
    for machine in (one, two, three):
        finish(machine)
    # Nothing is left behind, not even of the one that was killed.
    assert list(lan.folder.iterdir()) == []


def test_switches_are_apart(lan, guest):
    one, other = lan(1), guest("--net", "switch=another", address=False)
    other.run("ip addr add 192.168.50.2/24 dev eth0; ip link set eth0 up")
    assert not reaches(one, 2)
    for machine in (one, other):
        finish(machine)


# ---- taps, bridges, passt ----------------------------------------------------------------------------------------------

IN_NAMESPACE = ["unshare", "-n", "sh", "-c"]


def in_namespace(script, what):
    """How to run lodge in a network namespace of its own, after the script; skips where that can't be."""
    if os.getuid() != 0:
        pytest.skip("NOT CHECKED: %s (it takes root)" % what)
    tried = subprocess.run([*IN_NAMESPACE, "set -e; ip link set lo up; " + script], capture_output=True, text=True,
                           check=False)
    if tried.returncode:
        pytest.skip("NOT CHECKED: %s (%s)" % (what, tried.stderr.strip()[-200:]))
    return [*IN_NAMESPACE, "set -e; ip link set lo up; %s; (iperf3 -s -p 5999 >/dev/null &) ; exec \"$0\" \"$@\"" % script]


@pytest.mark.parametrize("kind, script", [
    ("tap=tap7", "ip tuntap add dev tap7 mode tap; ip addr add 192.168.77.1/24 dev tap7; ip link set tap7 up"),
    ("tap=tap8,mtu=9000", "ip tuntap add dev tap8 mode tap multi_queue; ip addr add 192.168.77.1/24 dev tap8"),
    ("bridge=br7", "ip link add br7 type bridge; ip addr add 192.168.77.1/24 dev br7; ip link set br7 up"),
])
def test_tap(console, kernel, initrd, net_files, kind, script):
    """A tap that was made for us, one of several queues, and one of our own on a bridge."""
    prefix = in_namespace(script, "--net %s" % kind)
    machine = console(*prefix, PROGRAM, "run", "--engine", "jit", "--net", kind, "--kernel", kernel(), "--initrd",
                       initrd(None, net_files), "--cmdline", "console=ttyS0 panic=-1")
    load(machine)
    machine.run("ip addr add 192.168.77.2/24 dev eth0; ip link set eth0 up; sleep 1")
    if "9000" in kind:
        assert "mtu 9000 " in machine.run("ip link show eth0")
    assert " 0% packet loss" in machine.run("ping -c 3 192.168.77.1")
    check_iperf(machine, "192.168.77.1", "-p", 5999)
    check_udp(iperf(machine, "192.168.77.1", "-p", 5999, "-u", "-b", "2M", "-t", 3, "-l", 1000)["sum"])
    finish(machine)


def test_passt(console, kernel, initrd, net_files):
    """The guest has the host's address; what goes to the router's reaches the host's loopback."""
    if not shutil.which("passt"):
        pytest.skip("NOT CHECKED: --net passt (it is not installed)")
    # A host with a route outward, which leads nowhere.
    prefix = in_namespace("ip tuntap add dev out mode tap; ip link set out up; ip addr add 192.0.2.10/24 dev out; "
                          "ip route add default via 192.0.2.1", "--net passt")
    machine = console(*prefix, PROGRAM, "run", "--engine", "jit", "--net", "passt", "--forward", "5301:5201",
                       "--kernel", kernel(), "--initrd", initrd(None, net_files), "--cmdline",
                       "console=ttyS0 panic=-1")
    machine.expect(PROMPT + r"|could not start", BOOT_S)
    if "could not start" in machine.text:
        pytest.skip("NOT CHECKED: --net passt (it does not start here: %s)" % machine.text.strip()[-300:])
    machine.place = 0
    load(machine)
    assert lease(machine) == "192.0.2.10"
    assert "mtu 65520 " in machine.run("ip link show eth0")
    check_iperf(machine, "192.0.2.1", "-p", 5999)
    finish(machine)


# ---- what is refused ---------------------------------------------------------------------------------------------------

def refused(*options, kernel="/dev/null"):
    done = lodge("run", "--kernel", kernel, *options)
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("options, words", [
    (["--net", "nonsense"], "switch=NAME and none"),
    (["--net", "tap"], "a tap device"),
    (["--net", "tap=0123456789abcdef"], "can't be the name"),
    (["--net", "switch=../x"], "can't be the name"),
    (["--net", "switch="], "the name of a switch"),
    (["--net", "user=x"], "has no name"),
    (["--net", "user,mac=01:00:00:00:00:01"], "first byte must be even"),
    (["--net", "user,mac=52:54:00:12:34"], "no MAC address"),
    (["--net", "user,mtu=100"], "576 to 65520"),
    (["--net", "user,queues=0"], "1 to 16"),
    (["--net", "passt,isolated"], "--net user only"),
    (["--net", "user,strange"], "knows no 'strange'"),
    (["--net", "none", "--net", "user"], "goes with no other"),
    (["--net", "user"] * 9, "more than 8"),
    (["--forward", "80"], "is no port"),
    (["--forward", "0:80"], "is no port"),
    (["--forward", "8080:65536"], "is no port"),
    (["--forward", "localhost:8080:80"], "no IPv4 address"),
    (["--net", "none", "--forward", "8080:80"], "needs --net user"),
    (["--net", "switch=lan", "--forward", "8080:80"], "needs --net user"),
])
def test_refused_options(options, words):
    status, text = refused(*options)
    assert status == 2 and words in text, text


def test_port_is_taken(kernel):
    """The message says by whom."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        status, text = refused("--forward", "%d:80" % port, kernel=kernel())
    assert status == 1 and "port %d of this host is taken by" % port in text, text
    assert "process %d" % os.getpid() in text, text


def test_no_permission(kernel):
    """Who may not have a tap is told what to ask for."""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("NOT CHECKED: a tap without permission (it takes root to lose it)")
    if subprocess.run([*drop, PROGRAM, "version"], check=False, capture_output=True).returncode:
        pytest.skip("NOT CHECKED: a tap without permission (user nobody cannot read this tree)")
    done = subprocess.run([*drop, PROGRAM, "run", "--kernel", kernel(), "--net", "tap=tap0"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False, timeout=20 * PATIENCE)
    assert done.returncode == 1
    assert "administrator" in done.stderr, done.stderr
