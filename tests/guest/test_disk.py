"""Disks under stock kernels: file systems, root file systems, full hosts, and the monitor killed in mid-write."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from disks import LOAD, TOOLS, find_program, make_ext4, make_tools, module_files
from lodge import BOOT_S, PROGRAM, PROMPT, lodge

MIB = 1 << 20


@pytest.fixture(scope="session")
def modules():
    return module_files()


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    """The image of an ext4 file system with the programs that make, check and load disks."""
    missing = [name for name in TOOLS if not find_program(name)]
    if missing:
        pytest.skip("NOT CHECKED: disks in guests (no %s)" % ", ".join(missing))
    return make_tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def start(boot, modules, tools):
    """start("--engine", "jit", "--disk", ...): a guest in which vda has the tools, at /tools; others follow."""

    def begin(*options, **more):
        machine = boot("--net", "none", "--disk", "%s,format=raw,readonly" % tools, *options, files=modules,
                       **more)
        machine.expect(PROMPT, BOOT_S)
        assert "BAD" not in machine.run(LOAD)
        machine.run("mkdir -p /tools /mnt; mount -o ro /dev/vda /tools; for d in dev proc sys tmp; do"
                    " mount --bind /$d /tools/$d 2>/dev/null; done; mount -t tmpfs tmp /tools/tmp;"
                    " t() { n=$1; shift; chroot /tools /bin/$n \"$@\"; }")
        return machine

    return begin


def finish(machine):
    log = machine.run("dmesg | grep -iE 'vd[a-z].*error|EXT4-fs.*error|I/O error|Buffer I/O'")
    assert "rror" not in log, log
    machine.send("poweroff -f\n")
    assert machine.wait(60) == 0


def succeeds(machine, line, seconds=60):
    """Runs a line that has to end well; returns its output."""
    said = machine.run("( %s ); echo status=$?" % line, seconds)
    assert "status=0" in said, said
    return said


def sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def make_image(tmp_path, kind, size, name="disk"):
    """(path, what --disk wants)"""
    path = tmp_path / ("%s.%s" % (name, kind))
    if kind == "raw":
        sparse(path, size)
    elif not shutil.which("qemu-img"):
        pytest.skip("NOT CHECKED: a qcow2 disk in a guest (no qemu-img)")
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(size)], check=True)
    return path, "%s,format=%s" % (path, kind)


def check_image(path, killed=False):
    """No metadata are wrong, and nothing has leaked. Killed: that can be, if it was just between two writes. Returns
    whether the image is perfect."""
    if path.suffix != ".qcow2":
        return True
    done = subprocess.run(["qemu-img", "check", "-f", "qcow2", path], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 or (killed and done.returncode == 3), done.stdout + done.stderr
    assert killed or '"dirty": false' in lodge("disk", "info", "--json", path).stdout
    return done.returncode == 0


def to_raw(path, tmp_path):
    if path.suffix == ".raw":
        return path
    raw = tmp_path / "converted"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw


@pytest.mark.parametrize("engine, kind, more", [
    ("jit", "raw", ""), ("jit", "qcow2", ""), ("jit", "raw", "cache=none"), ("jit", "qcow2", "cache=none"),
    ("jit", "raw", "aio=threads"), ("jit", "qcow2", "cache=writethrough"), ("interp", "raw", "cache=unsafe")])
def test_file_system(start, tmp_path, engine, kind, more):
    path, spec = make_image(tmp_path, kind, 256 * MIB)
    machine = start("--engine", engine, "--disk", spec + "," + (more or "readonly=off"))
    succeeds(machine, "t mke2fs -q -t ext4 /dev/vdb", 120)
    succeeds(machine, "mount /dev/vdb /mnt")
    succeeds(machine, "cp -r /bin /lib /mnt && for i in $(seq 200); do echo $i > /mnt/file$i; done && head -c 20000000"
             " /dev/urandom > /mnt/random && find /mnt -type f | sort | xargs md5sum > /tmp/sums", 300)
    succeeds(machine, "umount /mnt && echo 3 > /proc/sys/vm/drop_caches && mount /dev/vdb /mnt")
    succeeds(machine, "md5sum -c /tmp/sums | grep -v OK$; md5sum -c -s /tmp/sums", 120)
    succeeds(machine, "umount /mnt && t e2fsck -fn /dev/vdb", 120)
    finish(machine)
    check_image(path)
    done = subprocess.run([find_program("e2fsck"), "-fn", to_raw(path, tmp_path)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout


ROOT_INIT = """#!/bin/sh
mount -t proc proc /proc
echo "root: $(grep ' / ' /proc/mounts)"
echo written > /new-file && sync
echo ROOT-IS-UP $(cat /new-file)
poweroff -f
"""
FIRST_INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
%s
mkdir /new
mount -t ext4 /dev/vda /new
exec switch_root /new /sbin/init
""" % LOAD


def test_root(boot, modules, tmp_path):
    tree = tmp_path / "tree"
    for name in ("bin", "sbin", "dev", "proc"):
        (tree / name).mkdir(parents=True)
    shutil.copy(find_program("busybox"), tree / "bin" / "busybox")
    for name in ("sh", "mount", "grep", "cat", "sync", "poweroff", "echo"):
        os.symlink("busybox", tree / "bin" / name)
    (tree / "sbin" / "init").write_text(ROOT_INIT)
    (tree / "sbin" / "init").chmod(0o755)
    first = tmp_path / "init"
    first.write_text(FIRST_INIT)
    first.chmod(0o755)
    make_ext4(tmp_path / "root.img", tree, 64 * MIB)
    machine = boot("--engine", "jit", "--disk", tmp_path / "root.img", files={"init": first, **modules})
    machine.expect(r"root: /dev/vda / ext4 rw", BOOT_S)
    machine.expect("ROOT-IS-UP written")
    assert machine.wait(30) == 0


def test_readonly(start, tmp_path):
    path, spec = make_image(tmp_path, "raw", 16 * MIB)
    before = path.read_bytes()
    machine = start("--engine", "jit", "--disk", spec + ",readonly,serial=a-serial-number")
    assert machine.run("cat /sys/block/vdb/ro").strip() == "1"
    assert machine.run("cat /sys/block/vdb/serial").strip().startswith("a-serial-number")
    assert "status=0" not in machine.run("dd if=/dev/zero of=/dev/vdb bs=4096 count=1; echo status=$?")
    finish(machine)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_discard(start, tmp_path, kind):
    path, spec = make_image(tmp_path, kind, 128 * MIB)
    machine = start("--engine", "jit", "--disk", spec)
    succeeds(machine, "dd if=/dev/urandom of=/dev/vdb bs=1M count=64 conv=fsync", 120)
    full = path.stat().st_blocks * 512
    assert full >= 64 * MIB
    succeeds(machine, "t mke2fs -q -t ext4 -E discard /dev/vdb && mount /dev/vdb /mnt && fstrim /mnt; sync", 120)
    finish(machine)
    assert path.stat().st_blocks * 512 < full / 4
    check_image(path)


@pytest.fixture
def small_host(tmp_path):
    """A folder on a file system of 16 MiB, and a function that gives it more."""
    if os.getuid() != 0:
        pytest.skip("NOT CHECKED: a host without room (mounting takes root)")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "small", folder], check=False).returncode:
        pytest.skip("NOT CHECKED: a host without room (no tmpfs can be mounted)")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=256M", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_full_host_pauses(start, small_host, kind):
    folder, give_more = small_host
    path, spec = make_image(folder, kind, 64 * MIB)
    machine = start("--engine", "jit", "--disk", spec)
    succeeds(machine, "head -c 40000000 /dev/urandom > /tmp/data; md5sum < /tmp/data > /tmp/sum; cat /tmp/sum")
    machine.send("dd if=/tmp/data of=/dev/vdb bs=1M conv=fsync; echo status=$?\n")
    machine.expect("no room left on the host: the machine waits", 60)
    before = len(machine.text)
    time.sleep(3)
    assert "status=0" not in machine.text[before:]
    give_more()
    machine.expect("the machine goes on", 30)
    machine.expect("status=0", 60)
    machine.expect(PROMPT)
    succeeds(machine, "echo 3 > /proc/sys/vm/drop_caches; test \"$(head -c 40000000 /dev/vdb | md5sum)\" = \"$(cat /tmp/sum)\"")
    finish(machine)
    check_image(path)


def test_full_host_ended(start, small_host):
    """A machine that waits can be ended."""
    _, spec = make_image(small_host[0], "raw", 64 * MIB)
    machine = start("--engine", "jit", "--disk", spec)
    machine.send("dd if=/dev/urandom of=/dev/vdb bs=1M count=40 conv=fsync\n")
    machine.expect("the machine waits", 60)
    machine.kill()
    assert machine.wait(20) == 128 + signal.SIGTERM


def test_full_host_reports(start, small_host):
    _, spec = make_image(small_host[0], "raw", 64 * MIB)
    machine = start("--engine", "jit", "--disk", spec + ",on-error=report")
    assert "status=0" not in machine.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=40 conv=fsync; echo status=$?", 60)
    assert "the machine waits" not in machine.text
    machine.send("poweroff -f\n")
    assert machine.wait(60) == 0


def test_full_host_while_a_reset_waits(boot, modules, small_host, tmp_path):
    """A processor waits in a reset over MMIO for a slow request of another disk, as the machine is to pause."""
    if not shutil.which("nbdkit") or subprocess.run(["nbdkit", "--filter=delay", "memory", "1M", "--dump-plugin"],
                                                    capture_output=True, check=False).returncode:
        pytest.skip("NOT CHECKED: a reset that waits (no nbdkit, or none with its delay filter)")
    folder, give_more = small_host
    _, spec = make_image(folder, "raw", 64 * MIB)
    server = subprocess.Popen(["nbdkit", "--exit-with-parent", "-f", "-U", tmp_path / "socket", "--filter=delay",
                               "memory", "16M", "wdelay=4"])
    while not (tmp_path / "socket").exists():
        time.sleep(0.05)
    try:
        machine = boot("--engine", "jit", "--cpus", 2, "--net", "none", "--virtio", "mmio", "--disk", spec, "--disk",
                       "nbd+unix:///?socket=%s,format=raw" % (tmp_path / "socket"), files=modules, cmdline="iomem=relaxed")
        machine.expect(PROMPT, BOOT_S)
        assert "BAD" not in machine.run(LOAD)
        machine.run("name=$(basename $(dirname $(readlink -f /sys/block/vdb/device))); at=$(grep $name /proc/iomem |"
                    " head -n 1 | sed 's/^ */0x/; s/-.*//'); dd if=/dev/urandom of=/tmp/data bs=1M count=40")
        assert machine.run("devmem $at 32").strip() == "0x74726976"
        machine.send("dd if=/dev/zero of=/dev/vdb bs=4096 count=1 oflag=direct & sleep 1; devmem $((at + 0x70)) 32 0 & "
                     "sleep 0.5; dd if=/tmp/data of=/dev/vda bs=1M conv=fsync; echo status=$?\n")
        machine.expect("no room left on the host: the machine waits", 60)
        give_more()
        machine.expect("the machine goes on", 30)
        machine.expect("status=0", 60)
        machine.kill()
        assert machine.wait(20) == 128 + signal.SIGTERM
    finally:
        server.kill()
        server.wait()


FIO = ("t fio --name=v --filename=/dev/vdb --ioengine=libaio --direct=1 --rw=randrw --bsrange=%(sector)s-128k --iodepth=16"
       " --verify=crc32c --verify_fatal=1 --verify_backlog=256 --numjobs=4 --size=48M --offset_increment=48M"
       " --blockalign=%(sector)s --fsync=64 --group_reporting --output-format=terse")


@pytest.mark.parametrize("engine, cpus, kind, more", [
    ("jit", 4, "raw", "readonly=off"), ("jit", 4, "qcow2", "readonly=off"), ("jit", 1, "raw", "cache=none"),
    ("jit", 2, "qcow2", "aio=threads")])
def test_fio_verifies(start, tmp_path, engine, cpus, kind, more):
    path, spec = make_image(tmp_path, kind, 256 * MIB)
    machine = start("--engine", engine, "--cpus", cpus, "--memory", "1G", "--disk", spec + "," + more)
    assert machine.run("ls /sys/block/vdb/mq | wc -l").strip() == str(cpus)
    sector = machine.run("cat /sys/block/vdb/queue/logical_block_size").strip()
    assert sector == "512" or ("none" in more and sector == "4096")
    said = succeeds(machine, FIO % {"sector": sector}, 400)
    assert "verify: bad" not in said, said
    finish(machine)
    check_image(path)


# Each record is a block of its own, and told when its fsync has ended.
WRITER = """
i=%d
while true; do
	i=$((i + 1))
	printf '%%4096d' $i > /tmp/record
	dd if=/tmp/record of=/mnt/log bs=4096 seek=$((i %% 2000)) conv=notrunc,fsync 2>/dev/null || break
	echo "ACK-$i-"
done
"""
LOAD_WRITER = ("t fio --name=l --filename=/dev/vdc --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=8"
	" --time_based --runtime=1000 --size=200M --fsync=16 > /dev/null 2>&1 &")


def check_records(machine, acked):
    """Each block holds the last record that was told to be in it, or a later one."""
    wanted = {number % 2000: number for number in acked}
    said = machine.run("for k in $(seq 0 1999); do dd if=/mnt/log bs=4096 skip=$k count=1 2>/dev/null |"
                       " tr -d ' \\0' | sed \"s/^/R$k=/\"; echo; done", 120)
    found = {int(k): int(n) for k, n in re.findall(r"R(\d+)=(\d+)", said)}
    lost = {k: (n, found.get(k)) for k, n in wanted.items() if found.get(k, 0) < n}
    assert not lost, "lost: block: (told, found) %s" % lost


@pytest.mark.parametrize("kind, more, rounds", [
    ("qcow2", "readonly=off", 3), ("raw", "cache=none", 2),
    *(pytest.param(kind, more, 10, marks=pytest.mark.slow) for kind in ("qcow2", "raw")
      for more in ("aio=io_uring", "aio=threads", "cache=none"))])
def test_killed_while_writing(start, tmp_path, kind, more, rounds):
    """kill -9 of the monitor: what a guest was told to be lasting is there, and the image's metadata are right."""
    path, spec = make_image(tmp_path, kind, 256 * MIB)
    other, other_spec = make_image(tmp_path, kind, 256 * MIB, "load")
    chance, acked, perfect = random.Random(20261121), [], []
    for turn in range(rounds + 1):
        machine = start("--engine", "jit", "--cpus", 2, "--disk", spec + "," + more, "--disk", other_spec + "," + more)
        for image in path, other:  # opened again, and not yet written to
            if kind == "qcow2":
                done = lodge("disk", "check", "--unlocked", image)
                assert done.returncode == 0, done.stdout + done.stderr
        if turn == 0:
            succeeds(machine, "t mke2fs -q -t ext4 /dev/vdb; sync")
        succeeds(machine, "mount /dev/vdb /mnt")
        if acked:
            check_records(machine, acked)
        if turn == rounds:
            succeeds(machine, "umount /mnt && t e2fsck -fn /dev/vdb", 120)
            finish(machine)
            break
        machine.run(LOAD_WRITER)
        start_at = acked[-1] + 1000 if acked else 0
        machine.send("cat > /tmp/writer << 'END'\n%sEND\nsh /tmp/writer\n" % (WRITER % start_at))
        machine.expect(r"ACK-%d-" % (start_at + 10), 60)
        deadline = time.monotonic() + 1 + 2 * chance.random()
        while time.monotonic() < deadline:
            machine._read(0.01)
        machine.kill(signal.SIGKILL)
        machine.wait()
        acked += [int(number) for number in re.findall(r"ACK-(\d+)-", machine.text) if int(number) > start_at]
        perfect += [check_image(path, killed=True), check_image(other, killed=True)]
    print("killed: %d of %d images were perfect as they were" % (sum(perfect), len(perfect)))


def test_nbd(start, tmp_path):
    """Network storage whose server is killed and started again in the middle."""
    if not shutil.which("nbdkit"):
        pytest.skip("NOT CHECKED: NBD in a guest (no nbdkit)")
    image, socket = sparse(tmp_path / "export", 128 * MIB), tmp_path / "socket"

    def serve():
        if socket.exists():
            socket.unlink()
        return subprocess.Popen(["nbdkit", "--exit-with-parent", "-f", "-U", socket, "file", image])

    server = serve()
    while not socket.exists():
        time.sleep(0.05)
    try:
        machine = start("--engine", "jit", "--disk", "nbd+unix:///?socket=%s,format=raw" % socket)
        succeeds(machine, "t mke2fs -q -t ext4 /dev/vdb && mount /dev/vdb /mnt", 120)
        machine.send("head -c 30000000 /dev/urandom > /tmp/data; cp /tmp/data /mnt/a; cp /tmp/data /mnt/b; sync; echo done=$?\n")
        time.sleep(1)
        server.kill()
        server.wait()
        time.sleep(0.5)
        server = serve()
        machine.expect("done=0", 60)
        machine.expect(PROMPT)
        succeeds(machine, "umount /mnt && echo 3 > /proc/sys/vm/drop_caches && mount /dev/vdb /mnt &&"
                 " cmp /tmp/data /mnt/a && cmp /tmp/data /mnt/b && umount /mnt && t e2fsck -fn /dev/vdb", 120)
        finish(machine)
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def stopped_server(tmp_path):
    """An NBD server that can be stopped: it stays connected and says nothing. Its URI, and what stops it and lets it go on."""
    if not shutil.which("nbdkit"):
        pytest.skip("NOT CHECKED: an NBD server that does not answer (no nbdkit)")
    socket = tmp_path / "socket"
    server = subprocess.Popen(["nbdkit", "--exit-with-parent", "-f", "-U", socket, "memory", "16M"])
    while not socket.exists():
        time.sleep(0.05)

    def stop(on):
        server.send_signal(signal.SIGSTOP if on else signal.SIGCONT)
        if on:
            os.waitpid(server.pid, os.WUNTRACED)

    yield "nbd+unix:///?socket=%s" % socket, stop
    server.kill()
    server.wait()


def test_nbd_silent(boot, modules, stopped_server):
    """The server says nothing any more: the guest is told in time, and a reset over MMIO comes to an end."""
    uri, stop = stopped_server
    machine = boot("--engine", "jit", "--net", "none", "--virtio", "mmio", "--disk",
                   uri + ",format=raw,timeout=2", files=modules, cmdline="iomem=relaxed")
    machine.expect(PROMPT, BOOT_S)
    assert "BAD" not in machine.run(LOAD)
    machine.run("name=$(basename $(dirname $(readlink -f /sys/block/vda/device))); at=$(grep $name /proc/iomem |"
                " head -n 1 | sed 's/^ */0x/; s/-.*//')")
    assert machine.run("devmem $at 32").strip() == "0x74726976"
    stop(True)
    machine.send("dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct; echo status=$?\n")
    machine.expect("requests fail until there is one", 30)
    machine.expect("status=1", 30)
    stop(False)
    while "status=0" not in machine.run("dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct; echo status=$?"):
        time.sleep(0.5)
    stop(True)
    machine.send("dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct & sleep 1; devmem $((at + 0x70)) 32 0; echo reset=$?\n")
    machine.expect("reset=0", 30)
    machine.kill()
    machine.wait(20)


def test_nbd_silent_pauses(boot, modules, stopped_server):
    uri, stop = stopped_server
    machine = boot("--engine", "jit", "--net", "none", "--disk", uri + ",format=raw,timeout=1,on-error=pause", files=modules)
    machine.expect(PROMPT, BOOT_S)
    assert "BAD" not in machine.run(LOAD)
    machine.run("dd if=/dev/urandom of=/tmp/data bs=64k count=16")
    stop(True)
    machine.send("dd if=/tmp/data of=/dev/vda bs=64k conv=fsync; echo status=$?\n")
    machine.expect("the machine waits", 30)
    stop(False)
    machine.expect("the machine goes on", 30)
    machine.expect("status=0", 30)
    machine.expect(PROMPT)
    assert "same" in machine.run("echo 3 > /proc/sys/vm/drop_caches; cmp -n 1048576 /tmp/data /dev/vda && echo same")
    machine.kill()
    machine.wait(20)


def test_nbd_no_greeting(kernel, stopped_server):
    uri, stop = stopped_server
    stop(True)
    done = lodge("run", "--kernel", kernel(), "--disk", uri + ",timeout=1")
    assert done.returncode == 1 and "can't connect to %s: no answer for 1 s" % uri in done.stderr, done.stderr


def test_two_machines(tmp_path, kernel, console):
    """An image is one machine's."""
    path, spec = make_image(tmp_path, "raw", 16 * MIB)
    first = console(PROGRAM, "run", "--engine", "jit", "--kernel", kernel(), "--disk", spec)
    first.expect("Linux version", BOOT_S)
    second = lodge("run", "--engine", "jit", "--kernel", kernel(), "--disk", spec)
    assert second.returncode == 1
    assert str(path) in second.stderr and len(second.stderr.strip().splitlines()) == 1, second.stderr
    first.kill()
    first.wait()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_one_image_twice(kernel, tmp_path, kind):
    path, spec = make_image(tmp_path, kind, 16 * MIB)
    done = lodge("run", "--kernel", kernel(), "--disk", spec, "--disk", spec)
    assert done.returncode == 1 and "%s is named twice" % path in done.stderr, done.stderr


@pytest.mark.parametrize("value, words", [
    ("", "name of an image"), ("x,cache=fast", "give writeback, none, writethrough or unsafe"),
    ("x,serial=123456789012345678901", "at most 20"), ("x,queues=0", "1 to 16"), ("x,nothing", "wants a value"),
    ("x,timeout=5", "NBD"), ("nbd://x/,timeout=-1", "0 (none) to 86400"), ("x,some=thing", "no key 'some'"), ("x,format=vmdk", "raw or qcow2")])
def test_bad_options(value, words):
    done = lodge("run", "--kernel", "k", "--disk", value)
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_no_such_image(kernel, tmp_path):
    done = lodge("run", "--kernel", kernel(), "--disk", tmp_path / "a,,b")
    assert done.returncode == 1 and "%s/a,b" % tmp_path in done.stderr, done.stderr
