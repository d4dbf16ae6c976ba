"""Real programs in a stock guest under the interpreter: what unit tests do not think of.

The programs are Debian's, unpacked beside the guest's first root (tools/packages, "guest"); what runs
is in tests/guest/programs. A guest's computation is compared with the same one on the host's processor."""

import os
import pathlib
import shutil
import subprocess
import warnings

import pytest

from lodge import PATIENCE, ROOT, lodge

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"
RELEASE_ONLY = r"""sed -i '/-\(security\|updates\) /d' "$1/etc/apt/sources.list" """
ON_THE_HOST = """
set -e
mount -t tmpfs tmp "$0/tmp"
mount -t proc proc "$0/proc"
mount --bind /dev "$0/dev"
exec chroot "$0" env -i HOME=/root LC_ALL=C TMPDIR=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/bin/bash -c 'cd /tmp && eval "$1"' bash "$1"
"""

pytestmark = pytest.mark.slow


def guest_packages():
    lines = (ROOT / "tools" / "packages").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("guest ")]


def bootstrap(path, architecture, *options):
    return subprocess.run(["mmdebstrap", "--quiet", "--variant=extract", *options,
                           "--architectures=" + architecture, "--aptopt=Acquire::Retries \"3\"",
                           "--include=" + ",".join(guest_packages()), "bookworm", path],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          timeout=900)


def make_root(path, architecture):
    """A folder with the programs and all that they need."""
    if os.getuid() != 0 or not shutil.which("mmdebstrap"):
        pytest.skip("NOT CHECKED: real programs in a guest (it takes root and mmdebstrap)")
    made = bootstrap(path, architecture)
    if made.returncode:
        # Mirrors change the lists of updates while we read them, those of the release never.
        warnings.warn("%s programs without Debian's updates: %s"
                      % (architecture, made.stderr.strip()[-300:]))
        shutil.rmtree(path, ignore_errors=True)
        made = bootstrap(path, architecture, "--setup-hook=" + RELEASE_ONLY)
    if made.returncode:
        pytest.skip("NOT CHECKED: real programs in a guest (mmdebstrap: %s)"
                    % made.stderr.strip()[-300:])
    for name in ("dev", "proc", "sys", "tmp", "root"):
        (path / name).mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """roots("amd64") is the path of a root, and beside it is the same as root.cpio."""
    made, folders = {}, []

    def path(architecture):
        if architecture not in made:
            folders.append(tmp_path_factory.mktemp("programs"))
            root = folders[-1] / "root"
            make_root(root, architecture)
            subprocess.run([ROOT / "tools" / "initramfs", "tree", root.parent / "root.cpio",
                            "programs", root], check=True)
            made[architecture] = root
        return made[architecture]

    yield path
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["interp", "jit"])
def run(request, kernel, initrd, roots):
    """run("compute", cpus, seconds) is what that script printed in a guest; it must end well."""

    def start(script, cpus, seconds, variant="cloud", architecture="amd64"):
        own = initrd((PROGRAMS / "enter").read_text(), {"lodge/script": PROGRAMS / script}, variant)
        archive = roots(architecture).parent / "root.cpio"
        done = lodge("run", "--engine", request.param, "--memory", "1G", "--cpus", cpus,
                     "--on-reboot", "exit", "--kernel", kernel(variant), "--initrd", own,
                     "--initrd", archive, "--cmdline", "console=ttyS0 panic=-1 quiet",
                     seconds=seconds)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr
        # The exit status says that it ended; this, that its output is whole.
        text = done.stdout.replace("\r", "")
        assert "BEGIN\n" in text and "END\n" in text, text[-8000:]
        return text.split("BEGIN\n", 1)[1].rsplit("END\n", 1)[0]

    return start


def on_this_processor(root, script):
    done = subprocess.run(["unshare", "--mount", "sh", "-c", ON_THE_HOST,
                           root, (PROGRAMS / script).read_text()],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False, timeout=120 * PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# 32-bit programs compute with the x87, 64-bit ones with SSE and AVX.
@pytest.mark.parametrize("variant, architecture", [("cloud", "amd64"), ("i386", "i386")])
def test_results_are_those_of_this_processor(roots, run, variant, architecture):
    wanted = on_this_processor(roots(architecture), "compute")
    assert wanted.count("\n") > 70
    assert run("compute", 2, 300, variant, architecture).splitlines() == wanted.splitlines()


@pytest.mark.parametrize("cpus", [1, 4])
def test_stress(run, cpus):
    assert run("stress", cpus, 400).count("status 0") == 8


def test_python_modules(run):
    assert run("python", 4, 300).count("status 0") == 5


def test_processors_leave_and_return(run):
    run("hotplug", 4, 120)
