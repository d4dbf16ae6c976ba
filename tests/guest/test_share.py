"""Directories shared with the guest by virtiofs, with the driver of a stock kernel. Where a test wants more programs
than the first guest has, it shares the host's root read-only and runs the host's own from there."""

import hashlib
import os
import pathlib
import random
import shutil
import stat
import subprocess
import tempfile
import time

import pytest

from lodge import BOOT_S, PROGRAM, PROMPT, ROOT, dev, lodge

MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_mmio",
           "fuse", "virtiofs"]
LOAD = "for m in %s; do insmod /mod/$m.ko || exit 1; done; mkdir -p /mnt /host; " % " ".join(MODULES)
HOST = ("mount -t virtiofs host /host && mount --bind /mnt /host/mnt && mount --bind /proc /host/proc && "
        "mount --bind /dev /host/dev && mount -t tmpfs tmp /host/tmp && cp /lodge/program /host/tmp/ && ")


def find_modules():
    tree = dev("kernel", "cloud", "--modules")
    found = {}
    for folder, _, names in os.walk(tree):
        found.update({name: os.path.join(folder, name) for name in names})
    return {"mod/%s.ko" % name: found["%s.ko" % name] for name in MODULES}


@pytest.fixture(scope="session")
def modules():
    return find_modules()


@pytest.fixture
def share(tmp_path):
    """What is shared; beside it lies a secret."""
    (tmp_path / "secret").write_text("not for guests")
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def run(boot, modules):
    """run(command, options...): what the guest printed, all of which is there with no mishap."""

    def start(command, *options, seconds=120, files=None, status=0, engine="jit"):
        guest = boot("--engine", engine, *options, command=LOAD + "echo BEG''IN; " + command, cmdline="quiet",
                     files={**modules, **(files or {})})
        assert guest.wait(BOOT_S + seconds) == status, guest.text
        return guest.text.replace("\r", "").partition("BEGIN\n")[2]

    return start


@pytest.fixture
def shell(boot, modules):
    """shell(options...) is a guest with a shell and the share in /mnt."""

    def start(*options, mount="mount -t virtiofs mnt /mnt"):
        guest = boot("--engine", "jit", *options, files=modules)
        guest.expect(PROMPT, BOOT_S)
        guest.run(LOAD + mount)
        return guest

    return start


def need_host_python():
    if not os.path.exists("/usr/bin/python3"):
        pytest.skip("NOT CHECKED: programs of the host in the guest (no /usr/bin/python3)")


def checks(run, target, *names, options=(), status=0, place="/mnt", engine="jit", cpus=2):
    need_host_python()
    command = (HOST + "chroot /host /usr/bin/python3 -B /tmp/program %s %s" % (place, " ".join(names)))
    printed = run("mount -t virtiofs mnt /mnt && " + command, "--share", "%s:/mnt%s" % target, "--share",
                  "/:/host,ro", "--memory", "1G", "--cpus", cpus, *options, seconds=600, status=status, engine=engine,
                  files={"lodge/program": ROOT / "tests" / "guest" / "programs" / "share"})
    assert "BAD" not in printed, printed
    for line in printed.splitlines():
        if line.startswith("NOT CHECKED"):
            print(line)
    return printed


# ---- what a file system owes its users ----

@pytest.mark.parametrize("cache, engine, cpus, options", [
    ("auto", "jit", 2, ()), ("always", "jit", 2, ()),
    pytest.param("auto", "jit", 1, ("--virtio", "mmio,split,noevent,noindirect"), marks=pytest.mark.slow)])
def test_checks(run, share, cache, engine, cpus, options):
    printed = checks(run, (share, ",cache=" + cache), options=options, engine=engine, cpus=cpus)
    assert printed.count("ok ") == 17, printed
    assert (share.parent / "secret").read_text() == "not for guests"


@pytest.mark.slow
def test_without_cache(run, share):
    """All but shared mappings, which Linux has for such files from 6.6 on."""
    names = "create modes times links outside rename unlinked sizes direct directory special locks many".split()
    assert checks(run, (share, ",cache=none"), *names).count("ok ") == len(names)


def test_full(run, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", place], capture_output=True,
                      check=False).returncode:
        pytest.skip("NOT CHECKED: a full file system (no permission to mount a small one)")
    try:
        assert "ok full" in checks(run, (place, ""), "full")
        assert (place / "a").read_bytes() == b"again"
    finally:
        subprocess.run(["umount", place], check=True)


def test_readonly(run, share):
    (share / "file").write_text("as it was")
    before = os.stat(share / "file")
    assert "ok readonly" in checks(run, (share, ",ro"), "readonly")
    after = os.stat(share / "file")
    assert (share / "file").read_text() == "as it was"
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    assert os.listdir(share) == ["file"]


def test_without_root(console, kernel, modules, initrd):
    """All of it by a user who has no privileges, where root runs the tests."""
    need_host_python()
    place = pathlib.Path(tempfile.mkdtemp(prefix="lodge-share-"))
    prefix = []
    try:
        command = (LOAD + "mount -t virtiofs mnt /mnt && " + HOST + "chroot /host /usr/bin/python3 -B /tmp/program /mnt")
        files = {**modules, "lodge/program": ROOT / "tests" / "guest" / "programs" / "share"}
        (place / "in").mkdir()
        for name, path in (("kernel", kernel()), ("initrd", initrd(command, files)), ("lodge", PROGRAM)):
            shutil.copy(path, place / name)
        if os.geteuid() == 0:
            prefix = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"]
            place.chmod(0o755)
            os.chown(place / "in", 65533, 65533)
        guest = console(*prefix, place / "lodge", "run", "--kernel", place / "kernel", "--initrd", place / "initrd",
                        "--cmdline", "console=ttyS0 panic=-1 quiet", "--share", "%s:/mnt" % (place / "in"), "--share",
                        "/:/host,ro", "--engine", "jit", "--memory", "1G", "--cpus", 2)
        assert guest.wait(BOOT_S + 300) == 0, guest.text
        assert guest.text.count("ok ") == 17, guest.text
        owners = {os.lstat(os.path.join(folder, name)).st_uid for folder, names, more in os.walk(place / "in")
                  for name in names + more}
        assert owners == {65533 if prefix else os.geteuid()}
    finally:
        shutil.rmtree(place)


# ---- trees ----

def make_tree(top, count):
    """Files of all sizes in nested directories, links, and names that shells dislike."""
    dice = random.Random(count)
    folders = [top / "tree"]
    folders[0].mkdir()
    for n in range(count):
        folder = dice.choice(folders)
        kind = dice.randrange(20)
        if kind == 0:
            folders.append(folder / ("dir %d" % n))
            folders[-1].mkdir(mode=0o750)
        elif kind == 1:
            (folder / ("link%d" % n)).symlink_to("../" * dice.randrange(5) + "file\u00e9%d" % n)
        else:
            path = folder / ("%s%d" % (dice.choice(["file", "-x ", "\u00e9\u00e8", "n" * 200]), n))
            path.write_bytes(dice.randbytes(dice.choice([0, 1, 100, 4095, 4096, 5000, 40000])))
            path.chmod(dice.choice([0o644, 0o600, 0o755]))
            if kind == 2:
                os.link(path, str(path) + ".hard")


def summary(top):
    """Of everything there: kind, mode, link or digest, and how many names it has."""
    found = {}
    for folder, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            what = stat.S_IFMT(info.st_mode)
            if what == stat.S_IFREG:
                with open(path, "rb") as file:
                    what = hashlib.sha256(file.read()).hexdigest()
            elif what == stat.S_IFLNK:
                what = os.readlink(path)
            found[os.path.relpath(path, top)] = (what, stat.S_IMODE(info.st_mode),
                                                 info.st_nlink if stat.S_ISREG(info.st_mode) else 0)
    return found


def test_tree(run, share):
    """10,000 files out of the share, into the guest's memory, and back into another share."""
    make_tree(share, 10000)
    back = share.parent / "back"
    back.mkdir()
    expected = summary(share)
    assert len(expected) > 10000
    printed = run("mount -t virtiofs mnt /mnt && mount -t virtiofs host /host && "
                  "find /mnt | wc -l && tar -C /mnt -cf - tree | tar -C /tmp -xf - && "
                  "cd /mnt && find . -type f -print0 | sort -z | xargs -0 md5sum | md5sum && "
                  "cd /tmp && find ./tree -type f -print0 | sort -z | xargs -0 md5sum | md5sum && "
                  "tar -C /tmp -cf - tree | tar -C /host -xf - && sync && df -k /mnt | tail -1",
                  "--share", "%s:/mnt,ro" % share, "--share", "%s:/host" % back, "--memory", "1G", seconds=300)
    lines = printed.splitlines()
    assert int(lines[0]) == len(expected) + 1
    assert lines[1] == lines[2]
    assert summary(back) == expected
    assert int(lines[3].split()[1]) == os.statvfs(share).f_blocks * os.statvfs(share).f_frsize // 1024


def test_git(run, share):
    if not os.path.exists("/usr/bin/git"):
        pytest.skip("NOT CHECKED: git in a share (no /usr/bin/git)")
    script = share.parent / "script"
    script.write_text("""set -e
export HOME=/tmp PATH=/usr/bin:/bin GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
cd /mnt; git init -q one; cd one
for i in $(seq 300); do mkdir -p d$((i % 7)); seq $i > d$((i % 7))/f$i; done
git add -A; git commit -qm first
git mv d1 e1; for i in $(seq 2 7 300); do echo more >> d2/f$i; done; git commit -qam second
git gc -q; git fsck --strict; cd ..; git clone -q one two; diff -r -x .git one two
git -C two status --short | wc -l; git -C two log --oneline | wc -l
""")
    printed = run("mount -t virtiofs mnt /mnt && " + HOST + "chroot /host /bin/bash /tmp/program",
                  "--share", "%s:/mnt" % share, "--share", "/:/host,ro", "--memory", "1G", seconds=300,
                  files={"lodge/program": script})
    assert printed.splitlines()[-2:] == ["0", "2"], printed
    done = subprocess.run(["git", "-c", "safe.directory=*", "-C", share / "two", "status", "--short"], check=True,
                          capture_output=True, text=True)
    assert done.stdout == ""
    subprocess.run(["git", "-c", "safe.directory=*", "-C", share / "one", "fsck", "--strict"], check=True,
                   capture_output=True)


# ---- both sides at once ----

def test_host_changes_are_seen(shell, share):
    (share / "a").write_text("first")
    guest = shell("--share", "%s:/mnt" % share)
    assert guest.run("cat /mnt/a; echo") == "first\n"
    # What the guest has not heard of is there at once; what it has, a second later.
    (share / "new").write_text("new")
    assert guest.run("cat /mnt/new; echo") == "new\n"
    (share / "a").write_text("second, and longer")
    time.sleep(1.2)
    assert guest.run("cat /mnt/a; echo") == "second, and longer\n"
    # By way of another file, as editors do it; of the same length and time.
    times = os.stat(share / "a")
    (share / "b").write_text("SECOND, AND LONGER")
    os.utime(share / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.rename(share / "b", share / "a")
    time.sleep(1.2)
    assert guest.run("cat /mnt/a; echo") == "SECOND, AND LONGER\n"
    os.unlink(share / "a")
    time.sleep(1.2)
    assert "No such file" in guest.run("cat /mnt/a")
    # A directory that the guest is in gets another name; and one that it knows becomes a link.
    (share / "d" / "e").mkdir(parents=True)
    (share / "d" / "e" / "f").write_text("deep")
    assert guest.run("cd /mnt/d/e; cat f; echo") == "deep\n"
    os.rename(share / "d", share / "d2")
    (share / "d").symlink_to("/proc")
    assert guest.run("cat ../e/f; echo") == "deep\n"
    time.sleep(1.2)
    assert guest.run("cat /mnt/d/sys/kernel/hostname; cat /mnt/d2/e/f; echo") == "lodge\ndeep\n"
    guest.send("cd /; poweroff -f\n")
    assert guest.wait() == 0


def test_links_stay_in_the_guest(shell, share):
    (share / "secret").symlink_to("../secret")
    (share / "absolute").symlink_to(share.parent / "secret")
    (share / "out").symlink_to("..")
    guest = shell("--share", "%s:/mnt" % share)
    for path in ("secret", "absolute", "out/secret", "../secret", "out/in/../secret"):
        assert "No such file" in guest.run("cat /mnt/%s" % path)
    guest.run("echo broken > /mnt/secret; echo broken > /mnt/absolute; chmod 777 /mnt/secret; rm -rf /mnt/out/*.*")
    assert guest.run("readlink /mnt/secret") == "../secret\n"
    assert (share.parent / "secret").read_text() == "not for guests"
    # What the guest wrote through the links is in the guest.
    assert guest.run("cat /secret") == "broken\n"
    guest.send("poweroff -f\n")
    assert guest.wait() == 0


def test_host_and_guest_write_one_log(shell, share):
    log = share / "log"
    log.write_bytes(b"")
    guest = shell("--share", "%s:/mnt" % share)
    guest.send("for i in $(seq 2000); do echo guest $i >> /mnt/log; done; echo done-$?\n")
    with open(log, "ab", buffering=0) as file:
        for number in range(2000):
            file.write(b"host %d\n" % number)
            if number % 20 == 0:
                time.sleep(0.005)
    guest.expect("done-0", 60)
    lines = log.read_text().splitlines()
    assert [line for line in lines if line[0] == "g"] == ["guest %d" % n for n in range(1, 2001)]
    assert [line for line in lines if line[0] == "h"] == ["host %d" % n for n in range(2000)]


# ---- lives ----

def test_reset_with_files_open(shell, share):
    guest = shell("--share", "%s:/mnt" % share)
    for life in range(3):
        guest.run("exec 3>/mnt/open%d; echo written >&3; (while true; do ls -lR /mnt; done) > /dev/null &" % life)
        guest.send("sleep 1; reboot -f\n")
        guest.expect(PROMPT, BOOT_S)
        guest.run(LOAD + "mount -t virtiofs mnt /mnt")
        assert guest.run("cat /mnt/open%d" % life) == "written\n"
    guest.send("poweroff -f\n")
    assert guest.wait() == 0


def test_mounts_and_drivers_come_and_go(shell, share):
    (share / "file").write_text("here")
    guest = shell("--share", "%s:/mnt" % share)
    printed = guest.run("umount /mnt; for i in $(seq 20); do mount -t virtiofs mnt /mnt && cat /mnt/file && "
                        "umount /mnt && rmmod virtiofs virtio_pci && insmod /mod/virtio_pci.ko && "
                        "insmod /mod/virtiofs.ko || echo BAD; done; echo", 60)
    assert printed == "here" * 20 + "\n"
    assert guest.run("mount -t virtiofs nothing /mnt || echo refused").endswith("refused\n")
    guest.send("poweroff -f\n")
    assert guest.wait() == 0


def test_owners(run, share):
    (share / "file").write_text("x")
    printed = run("mount -t virtiofs a-b-c /mnt && stat -c '%u %g' /mnt/file && su -s /bin/sh nobody -c 'id -u' ; "
                  "echo y > /mnt/mine && stat -c '%u %g' /mnt/mine",
                  "--share", "%s:/a/b//c/,uid=1000,gid=1001" % share)
    assert printed.splitlines()[0] == "1000 1001" and printed.splitlines()[-1] == "1000 1001", printed
    assert os.stat(share / "mine").st_uid == os.geteuid()


# ---- the option ----

@pytest.mark.parametrize("value, says", [
    ("/nowhere", "can't share '/nowhere': No such file or directory"),
    ("/dev/null", "can't share '/dev/null': Not a directory"),
])
def test_cannot_be_shared(value, says, kernel):
    done = lodge("run", "--kernel", kernel(), "--share", value)
    assert (done.returncode, done.stderr) == (1, "lodge: %s\n" % says)


@pytest.mark.parametrize("values, says", [
    (["/tmp:/"], "--share '/tmp:/': a directory can't be mounted on the guest's /"),
    (["/tmp:a/b"], "--share '/tmp:a/b': a tag has 1 to 36 bytes, and no / or space"),
    (["/tmp:"], "--share '/tmp:': a tag has 1 to 36 bytes, and no / or space"),
    ([":/mnt"], "--share ':/mnt': it names no directory"),
    (["/tmp:/a b"], "--share '/tmp:/a b': '/a b' is no mount point and no tag: it has a space, a quote or the like"),
    (["/tmp:/" + 37 * "x"], "--share '/tmp:/%s': '/%s' makes a tag of more than 36 bytes: give another with tag=NAME"
     % (37 * "x", 37 * "x")),
    (["/tmp,rw,wo"], "--share '/tmp,rw,wo': no option 'wo': there are ro, rw, uid=N, gid=N, ids=host, cache=WHAT and "
                     "tag=NAME"),
    (["/tmp,uid=x"], "--share '/tmp,uid=x': 'x' is no number of a user or group"),
    (["/tmp,cache=x"], "--share '/tmp,cache=x': no cache 'x': there are auto, none and always"),
    (["/tmp:/a", "/tmp:a"], "--share '/tmp:a': the tag 'a' is another's: give one with tag=NAME"),
    (["/tmp:%d" % n for n in range(17)], "more than 16 --share"),
])
def test_bad_options(values, says):
    done = lodge("run", "--kernel", "x", *[word for value in values for word in ("--share", value)])
    assert done.returncode == 2
    assert done.stderr == "lodge: %s\n" % says
