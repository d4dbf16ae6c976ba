"""`lodge disk` against QEMU's programs: what one of them writes the other reads, checks and respects."""

import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import time

import pytest

from lodge import PROGRAM, ROOT, lodge

pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-img"),
    reason="NOT CHECKED: disk images against QEMU's (no qemu-utils)")

MIB = 1 << 20
SIZE = 24 * MIB


def qemu_img(*args):
    done = subprocess.run(["qemu-img", *map(str, args)], check=False, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, "qemu-img %s: %s%s" % (args, done.stdout, done.stderr)
    return done.stdout


def qemu_io(image, *commands):
    args = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", *args, str(image)], check=False, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr


def disk(*args, status=0):
    done = lodge("disk", *map(str, args), seconds=120)
    assert done.returncode == status, "lodge disk %s: %d\n%s%s" % (
        args, done.returncode, done.stdout, done.stderr)
    return done.stdout if status == 0 else done.stderr


def sound(image):
    """Both programs find nothing wrong."""
    qemu_img("check", "-q", image)
    report = json.loads(disk("check", "--json", image))
    assert report["errors"] == 0 and report["leaks"] == 0


def same(left, right, left_format=None):
    assert disk("compare", left, right) == "the same\n"
    qemu_img("compare", *(["-f", left_format] if left_format else []), left, right)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A disk with text, noise, zeros and holes."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    noise = random.Random(5)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for at, length in ((0, 700000), (5 * MIB + 1024, 300000), (9 * MIB, MIB), (SIZE - 4096, 4096)):
            file.seek(at)
            file.write(noise.randbytes(length))
        file.seek(12 * MIB)
        file.write(b"words and words and more of them\n" * 60000)
        file.seek(16 * MIB)
        file.write(bytes(2 * MIB))
    return path


SHAPES = [
    "cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M",
    "compat=0.10", "refcount_bits=1", "refcount_bits=2,cluster_size=1k", "refcount_bits=8",
    "refcount_bits=64,cluster_size=512", "lazy_refcounts=on", "compression_type=zstd",
    "preallocation=metadata", "extended_l2=on,cluster_size=64k",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_reads_what_qemu_writes(raw, tmp_path, shape, packed):
    if packed and "preallocation" in shape:
        return
    image = tmp_path / "q.qcow2"
    qemu_img("convert", *(["-c"] if packed else []), "-O", "qcow2", "-o", shape, raw, image)
    assert disk("compare", raw, image) == "the same\n"
    report = json.loads(disk("check", "--json", image))
    assert report["errors"] == 0 and report["leaks"] == 0


OURS = [
    ["--cluster", "512B"], ["--cluster", "4K"], [], ["--cluster", "2M"], ["--qcow2-version", "2"],
    ["--refcount-bits", "1"], ["--refcount-bits", "64", "--cluster", "512B"],
    ["--lazy-refcounts"], ["--compression", "zstd"],
]


@pytest.mark.parametrize("options", OURS, ids=lambda o: "".join(o) or "default")
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_qemu_reads_what_we_write(raw, tmp_path, options, packed):
    image = tmp_path / "l.qcow2"
    disk("convert", *options, *(["-c"] if packed else []), raw, image)
    sound(image)
    same(raw, image, "raw")
    if packed:
        # Large clusters, and clusters that can't be shared, save nothing in length.
        assert os.path.getsize(image) < 5 * MIB or "2M" in options or "1" in options
    back = tmp_path / "back.raw"
    disk("convert", "--to", "raw", image, back)
    same(raw, back, "raw")
    assert os.stat(back).st_blocks * 512 <= 5 * MIB


def test_chain(raw, tmp_path):
    """raw <- QEMU's <- ours <- QEMU's; relative names; then commit and rebase."""
    base = tmp_path / "base.raw"
    shutil.copy(raw, base)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", tmp_path / "a.qcow2")
    qemu_io(tmp_path / "a.qcow2", "write -P 7 1M 300k", "write -z 9M 128k", "discard 2M 64k")
    disk("clone", tmp_path / "a.qcow2", tmp_path / "b.qcow2")
    assert disk("compare", tmp_path / "a.qcow2", tmp_path / "b.qcow2") == "the same\n"
    qemu_io(tmp_path / "b.qcow2", "write -P 8 1M 5k", "write -P 9 20M 70k")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "b.qcow2", "-o", "compat=0.10",
             tmp_path / "c.qcow2")
    qemu_io(tmp_path / "c.qcow2", "write -P 10 1030k 1k")
    flat = tmp_path / "flat.raw"
    qemu_img("convert", "-O", "raw", tmp_path / "c.qcow2", flat)
    same(flat, tmp_path / "c.qcow2", "raw")
    assert {run["depth"] for run in json.loads(disk("map", "--json", tmp_path / "c.qcow2"))} >= {0, 1, 2, 3}
    # What differs moves into b; c then shows the same.
    disk("commit", tmp_path / "c.qcow2")
    sound(tmp_path / "b.qcow2")
    sound(tmp_path / "c.qcow2")
    same(flat, tmp_path / "b.qcow2", "raw")
    same(flat, tmp_path / "c.qcow2", "raw")
    # b on the raw base directly, then on nothing.
    disk("rebase", tmp_path / "b.qcow2", "base.raw")
    os.rename(tmp_path / "a.qcow2", tmp_path / "gone")
    same(flat, tmp_path / "b.qcow2", "raw")
    disk("rebase", tmp_path / "b.qcow2")
    os.rename(base, tmp_path / "gone-too")
    same(flat, tmp_path / "b.qcow2", "raw")
    sound(tmp_path / "b.qcow2")


@pytest.mark.parametrize("shape", ["cluster_size=512", "cluster_size=64k", "compat=0.10",
                                   "cluster_size=4k,lazy_refcounts=on"])
def test_snapshots(raw, tmp_path, shape):
    """Snapshots of both kinds in one image, applied and deleted by the other program."""
    image = tmp_path / "s.qcow2"
    qemu_img("convert", "-O", "qcow2", "-o", shape, raw, image)
    qemu_img("snapshot", "-c", "theirs", image)
    qemu_io(image, "write -P 3 1M 400k", "discard 12M 1M")
    disk("snapshot", "create", image, "ours")
    sound(image)
    shown = tmp_path / "ours.raw"
    qemu_img("convert", "-O", "raw", image, shown)
    qemu_io(image, "write -P 4 0 2M")
    names = [entry["name"] for entry in json.loads(disk("snapshot", "list", "--json", image))]
    assert names == ["theirs", "ours"]
    disk("snapshot", "apply", image, "theirs")
    sound(image)
    same(raw, image, "raw")
    qemu_img("snapshot", "-a", "ours", image)
    same(shown, image, "raw")
    disk("snapshot", "delete", image, "theirs")
    sound(image)
    same(shown, image, "raw")
    qemu_img("snapshot", "-d", "ours", image)
    sound(image)
    same(shown, image, "raw")


def test_resize(raw, tmp_path):
    for packed in ([], ["-c"]):
        image, copy = tmp_path / "r.qcow2", tmp_path / "r.raw"
        shutil.copy(raw, copy)
        disk("convert", "--cluster", "512B", "--replace", *packed, raw, image)
        for size in (SIZE + 333 * 512, SIZE // 2 + 512, SIZE * 3):
            disk("resize", "--shrink", image, "%dB" % size)
            os.truncate(copy, size)
            sound(image)
            same(copy, image, "raw")
    assert "--shrink" in disk("resize", image, "1M", status=2)


def test_a_longer_backing_file_stays_hidden(raw, tmp_path):
    image = tmp_path / "short.qcow2"
    disk("clone", raw, image, "1M")
    disk("resize", image, "16M")
    copy = tmp_path / "copy.raw"
    shutil.copy(raw, copy)
    os.truncate(copy, MIB)
    os.truncate(copy, 16 * MIB)
    same(copy, image, "raw")


def test_damage_is_found_and_mended(raw, tmp_path):
    image = tmp_path / "d.qcow2"
    disk("convert", raw, image)
    with open(image, "r+b") as file:
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * 6)
        file.write(b"\0\0\0\0\0\3")
    disk("check", image, status=3)
    assert subprocess.run(["qemu-img", "check", "-q", image], check=False).returncode == 2
    disk("check", "--repair", image)
    sound(image)
    same(raw, image, "raw")
    # All counts lost.
    with open(image, "r+b") as file:
        file.seek(table)
        file.write(bytes(8))
    disk("check", image, status=3)
    disk("check", "--repair", image)
    sound(image)
    same(raw, image, "raw")


def test_refusals(raw, tmp_path):
    image = tmp_path / "e.qcow2"
    disk("create", image, "16M")
    with open(image, "r+b") as file:
        file.seek(35)
        file.write(b"\2")
    assert "encrypted" in disk("compare", image, raw, status=1)
    image.unlink()
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=%s" % (tmp_path / "data"), image, "16M")
    assert "data file" in disk("compare", image, raw, status=1)
    image.unlink()
    disk("clone", raw, image)
    assert "refused" in disk("compare", "--backings", "refuse", image, raw, status=1)
    assert "own directory" in disk("compare", "--backings", "beside", image, raw, status=1)
    disk("rebase", "--metadata-only", "--backing-format", "qcow2", image, image)
    assert "own backing" in disk("compare", image, raw, status=1)
    assert "FIFO" not in disk("info", "/dev/null", status=1)


def test_locks(raw, tmp_path):
    """One writer, or readers; with QEMU's programs on either side."""
    image = tmp_path / "lock.qcow2"
    disk("convert", raw, image)
    other = subprocess.Popen(["qemu-io", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        other.stdin.write("read 0 512\n")
        other.stdin.flush()
        while "read 512" not in other.stdout.readline():
            pass
        said = disk("snapshot", "create", image, "x", status=1)
        assert "in use by process %d (qemu-io)" % other.pid in said
        disk("compare", raw, image, status=1)
        disk("compare", "--unlocked", raw, image)
    finally:
        other.communicate("quit\n", timeout=20)
    disk("snapshot", "create", image, "x")
    # The other way round: a conversion that takes long enough holds its source and its target.
    target = tmp_path / "target.qcow2"
    ours = subprocess.Popen([PROGRAM, "disk", "convert", "-c", "--quiet", raw, target])
    refused = None
    while ours.poll() is None and refused is None:
        if target.exists():
            done = subprocess.run(["qemu-io", "-c", "write 0 512", target], check=False,
                                  capture_output=True, text=True, timeout=20)
            if ours.poll() is None:
                refused = "lock" in done.stdout + done.stderr
    assert ours.wait() == 0
    if refused is None:
        pytest.skip("NOT CHECKED: that QEMU respects our lock (the conversion was too quick)")
    assert refused


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("number, ignored", [(signal.SIGINT, False), (signal.SIGHUP, False), (signal.SIGHUP, True)])
def test_interrupted_conversion_leaves_nothing(tmp_path, there, number, ignored):
    """Half an image looks like a whole one, and what it replaced is gone. nohup's child goes on."""
    source = tmp_path / "big.raw"
    with open(source, "wb") as file:
        for _ in range(60):
            file.write(random.Random(1).randbytes(MIB))
    target = tmp_path / "t.qcow2"
    if there:
        target.write_bytes(b"")
    ours = subprocess.Popen([PROGRAM, "disk", "convert", "-c", "--replace", source, target],
                            stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: ignored and signal.signal(number, signal.SIG_IGN))
    while (not target.exists() or target.stat().st_size == 0) and ours.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    ours.send_signal(number)
    said = ours.communicate(timeout=60)[1]
    if ignored:
        assert ours.returncode == 0 and said == "" and target.exists()
        return
    if ours.returncode == 0:
        pytest.skip("NOT CHECKED: an interrupted conversion (it was too quick)")
    assert ours.returncode == 1 and said == "lodge: interrupted\n"
    assert not target.exists()


def hostile(path, snapshots, entries, tables, full):
    """So many snapshots with one L1 table, which leads to the L2 tables in turn; those are full of one cluster, or empty."""
    cluster = 1 << 16
    record = struct.pack(">QIHHIIQIIQQ2s6x", 3 * cluster, entries, 1, 1, 0, 0, 0, 0, 16, 0, 1 << 30, b"1n")
    list_at = 3 + -(-entries * 8 // cluster)
    first = list_at + -(-len(record) * snapshots // cluster)
    with open(path, "wb") as file:
        file.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, 1 << 30, 0, entries, 3 * cluster,
                               cluster, 1, snapshots, list_at * cluster, 0, 0, 0, 4, 104))
        file.seek(cluster)
        file.write(struct.pack(">Q", 2 * cluster))
        file.seek(3 * cluster)
        file.write(b"".join(struct.pack(">Q", (first + i % tables) * cluster) for i in range(entries)))
        file.seek(list_at * cluster)
        file.write(record * snapshots)
        if full:
            file.seek(first * cluster)
            file.write(struct.pack(">Q", (first + tables) * cluster) * (cluster // 8 * tables))
        file.truncate((first + tables + 1) * cluster)


def test_check_of_many_snapshots(tmp_path):
    """Whatever leads to a table, it is read once: here that would be 320000 times."""
    image = tmp_path / "h.qcow2"
    hostile(image, 20000, 512, 16, True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = lodge("disk", "check", "--json", image, seconds=100)
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    report = json.loads(done.stdout)
    assert done.returncode == 3 and report["allocated_clusters"] == 512 * 8192
    assert took < 5, took


@pytest.mark.parametrize("repair", [False, True])
def test_interrupted_check(tmp_path, repair):
    image = tmp_path / "h.qcow2"
    hostile(image, 65535, 32768, 32768, False)
    ours = subprocess.Popen([PROGRAM, "disk", "check", *(["--repair"] if repair else []), image], stderr=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, text=True)
    time.sleep(1)
    ours.send_signal(signal.SIGINT)
    assert ours.communicate(timeout=20)[1] == "lodge: interrupted\n" and ours.returncode == 1
    assert json.loads(disk("info", "--json", image))["dirty"] == repair


def test_what_is_there_is_replaced_only_if_asked(raw, tmp_path):
    image = tmp_path / "i.qcow2"
    disk("create", image, "16M")
    was = image.read_bytes()
    for args in (["create", image, "8M"], ["clone", raw, image], ["convert", raw, image]):
        assert "--replace" in disk(*args, status=1)
        assert image.read_bytes() == was
    disk("create", "--replace", image, "8M")
    assert json.loads(disk("info", "--json", image))["size_bytes"] == 8 * MIB


def keys(said):
    if isinstance(said, list):
        return {key for one in said for key in keys(one)}
    return {*said, *(key for one in said.values() for key in keys(one))} if isinstance(said, dict) else set()


def test_json_keys(raw, tmp_path):
    """All of lodge's own are spelled one way, and docs/disk-images.md tells of each of these."""
    image, other = tmp_path / "i.qcow2", tmp_path / "o.qcow2"
    disk("create", image, "16M")
    disk("snapshot", "create", image, "one")
    disk("convert", raw, other)
    texts = [disk("info", "--json", image), disk("check", "--json", image), disk("map", "--json", other),
             disk("snapshot", "list", "--json", image), lodge("disk", "compare", "--json", image, other).stdout]
    found = [keys(json.loads(text)) for text in texts]
    assert all(found)
    told = (ROOT / "docs" / "disk-images.md").read_text()
    for key in set().union(*found):
        assert re.fullmatch("[a-z][a-z0-9_]*", key) and "`%s`" % key in told, key
    for args in (("doctor",), ("image", "list"), ("machine", "list"), ("run", "--kernel", "x", "--cpu", "help")):
        for key in keys(json.loads(lodge(*args, "--json").stdout)):
            assert re.fullmatch("[a-z][a-z0-9_]*", key), key


def test_names_in_an_image_stay_away_from_the_terminal(tmp_path):
    """They are whoever's made it; and JSON is UTF-8."""
    image = tmp_path / "i.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", os.fsdecode(b"/x\x1b[2J\xff\xc3\xa9"), "-F", "raw", image, "1M")
    done = subprocess.run([PROGRAM, "disk", "info", image], check=True, capture_output=True, timeout=20)
    assert b"/x?[2J" in done.stdout and b"\x1b" not in done.stdout
    done = subprocess.run([PROGRAM, "disk", "info", "--json", image], check=True, capture_output=True, timeout=20)
    assert json.loads(done.stdout.decode())["backing"] == "/x\x1b[2J\ufffd\xe9"


def test_comparison_for_programs(raw, tmp_path):
    other = tmp_path / "other.raw"
    other.write_bytes(raw.read_bytes()[:MIB + 5] + b"?" + raw.read_bytes()[MIB + 6:])
    assert json.loads(disk("compare", "--json", raw, raw)) == {"same": True}
    done = lodge("disk", "compare", "--json", raw, other)
    assert done.returncode == 1 and json.loads(done.stdout) == {"same": False, "offset_bytes": MIB + 5}


def test_full_host(tmp_path):
    """A file system with no room: one clear line, and what is there is sound."""
    if os.geteuid():
        pytest.skip("NOT CHECKED: a full host file system (not root)")
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "none", where], check=True)
    try:
        source = tmp_path / "s.raw"
        source.write_bytes(random.Random(2).randbytes(8 * MIB))
        said = disk("convert", source, where / "t.qcow2", status=1)
        assert "No space left" in said
        assert not (where / "t.qcow2").exists()
        disk("clone", source, where / "c.qcow2")
        sound(where / "c.qcow2")
    finally:
        subprocess.run(["umount", where], check=True)
