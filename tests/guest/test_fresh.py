"""The README's two commands, in a minimal Debian 12 that holds nothing else of ours.

It is what finds a missing package, a file that was never committed, a path of the author's machine.
The tree is a fresh clone of the committed state."""

import os
import shutil
import subprocess

import pytest

from lodge import PATIENCE, ROOT

# The root has its own /proc, and devices without /dev/kvm. The first argument is its path.
ENTER = """
set -e
mount -t proc proc "$0/proc"
mount -t tmpfs tmp "$0/dev"
mkdir "$0/dev/pts" "$0/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$0/dev/pts"
ln -s pts/ptmx "$0/dev/ptmx"
ln -s /proc/self/fd "$0/dev/fd"
for node in null zero full random urandom tty; do
	touch "$0/dev/$node"
	mount --bind "/dev/$node" "$0/dev/$node"
done
exec chroot "$0" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=linux \
	sh -c "cd /root/lodge && $1"
"""


def in_root(root, command, seconds):
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child",
                           "sh", "-c", ENTER, root, command],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
                          timeout=seconds * PATIENCE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    if os.getuid() != 0:
        pytest.skip("NOT CHECKED: the README in a minimal root (it takes root to make one)")
    if not shutil.which("mmdebstrap"):
        pytest.skip("NOT CHECKED: the README in a minimal root (no mmdebstrap)")
    here = tmp_path_factory.mktemp("fresh")
    path = here / "root"
    made = subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", path],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          timeout=900)
    if made.returncode:
        pytest.skip("NOT CHECKED: the README in a minimal root (mmdebstrap: %s)"
                    % made.stderr.strip()[-300:])
    # How this host reaches the network is no part of what is tested.
    shutil.copy("/etc/resolv.conf", path / "etc" / "resolv.conf")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", "--", ROOT, path / "root" / "lodge"],
                   check=True)
    # The clone belongs to whoever runs the test; nothing may depend on git being there.
    shutil.rmtree(path / "root" / "lodge" / ".git")
    yield path
    shutil.rmtree(here, ignore_errors=True)


@pytest.mark.slow
def test_readme_run(root):
    done = in_root(root, "./dev run -- 'uname -sr; exit 9'", 900)
    assert done.returncode == 9, done.stdout[-6000:]
    assert "cloud-amd64" in done.stdout


@pytest.mark.slow
def test_readme_run_again_is_quick(root):
    """All the host's work of a second run, with a guest that is refused at once."""
    done = in_root(root, "start=$(date +%s%N); ./dev run --memory 0 -- true;"
                         " echo took $((($(date +%s%N) - start) / 1000000)) ms", 60)
    assert "installing" not in done.stdout and "downloading" not in done.stdout, done.stdout
    assert int(done.stdout.split("took ")[1].split()[0]) < 1000, done.stdout


@pytest.mark.slow
def test_readme_test(root):
    done = in_root(root, "./dev test", 1800)
    last = done.stdout.rstrip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-12000:]
    assert " passed, 0 failed" in last


@pytest.mark.slow
def test_without_root_one_line_says_what_is_missing(root):
    """In a copy where nothing was installed, as an ordinary user."""
    # busybox is what this root got from us; taking its record away is the same as not having it.
    done = in_root(root, "sed -i 's/busybox-static /no-such-package /' tools/packages && "
                         "chmod -R go+rX /root && setpriv --reuid=65534 --clear-groups ./dev run; "
                         "status=$?; sed -i 's/no-such-package /busybox-static /' tools/packages; "
                         "exit $status", 60)
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1] == \
        "apt-get install -y --no-install-recommends no-such-package"
