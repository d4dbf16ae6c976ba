"""Real programs in a stock guest under the translator and the interpreter: what unit tests do not think of.

The programs are Debian's, unpacked beside the guest's first root (tools/packages, "guest" and "compiler");
what runs is in tests/guest/programs. A guest's computation is compared with the same one on the host's
processor."""

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

# The stock kernels, and the architecture of the programs in them.
CLOUD, I386 = ("cloud", "amd64"), ("i386", "i386")
ENGINES = ["jit", "interp"]
# Python's tests of its own modules. The second group takes the interpreter too long.
MODULES = "test_math test_thread test_mmap test_select test_fork1"
MORE_MODULES = ("test_int test_struct test_json test_threading test_re test_zlib test_hashlib test_float "
                "test_decimal test_signal test_subprocess test_generators")
SOURCE_ROOMS = ["base", "memory", "device"]


def name_of(value):
    """Of a test's parameter."""
    return value[0] if isinstance(value, tuple) else str(value).split(" ", maxsplit=1)[0]


def packages(kind):
    lines = (ROOT / "tools" / "packages").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith(kind + " ")]


def bootstrap(path, architecture, kind, *options):
    return subprocess.run(["mmdebstrap", "--quiet", "--variant=extract", *options,
                           "--architectures=" + architecture, "--aptopt=Acquire::Retries \"3\"",
                           "--include=" + ",".join(packages(kind)), "bookworm", path],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          timeout=900)


def make_root(path, architecture, kind):
    """A folder with the programs (of that kind in tools/packages) and all that they need."""
    if os.getuid() != 0 or not shutil.which("mmdebstrap"):
        pytest.skip("NOT CHECKED: real programs in a guest (it takes root and mmdebstrap)")
    made = bootstrap(path, architecture, kind)
    if made.returncode:
        # Mirrors change the lists of updates while we read them, those of the release never.
        warnings.warn("%s programs without Debian's updates: %s"
                      % (architecture, made.stderr.strip()[-300:]))
        shutil.rmtree(path, ignore_errors=True)
        made = bootstrap(path, architecture, kind, "--setup-hook=" + RELEASE_ONLY)
    if made.returncode:
        pytest.skip("NOT CHECKED: real programs in a guest (mmdebstrap: %s)"
                    % made.stderr.strip()[-300:])
    for name in ("dev", "proc", "sys", "tmp", "root", "source"):
        (path / name).mkdir(exist_ok=True)
    if kind == "compiler":
        for room in SOURCE_ROOMS:
            shutil.copytree(ROOT / room, path / "source" / room)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """roots("amd64", "guest") is the path of a root, and beside it is the same as root.cpio."""
    made, folders = {}, []

    def path(architecture, kind):
        if (architecture, kind) not in made:
            folders.append(tmp_path_factory.mktemp("programs"))
            root = folders[-1] / "root"
            make_root(root, architecture, kind)
            subprocess.run([ROOT / "tools" / "initramfs", "tree", root.parent / "root.cpio",
                            "programs", root], check=True)
            made[architecture, kind] = root
        return made[architecture, kind]

    yield path
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run(kernel, initrd, roots, tmp_path):
    """run("jit", "compute", cpus, seconds) is what that script printed in a guest; it must end well.
    words: the script's arguments."""

    def start(engine, script, cpus, seconds, system=CLOUD, kind="guest", words=""):
        variant, architecture = system
        text = tmp_path / "script"
        text.write_text("set -- %s\n%s" % (words, (PROGRAMS / script).read_text()))
        own = initrd((PROGRAMS / "enter").read_text(), {"lodge/script": text}, variant)
        archive = roots(architecture, kind).parent / "root.cpio"
        done = lodge("run", "--engine", engine, "--memory", "2G", "--cpus", cpus,
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
@pytest.mark.parametrize("system", [CLOUD, I386], ids=name_of)
@pytest.mark.parametrize("engine", ENGINES)
def test_results_are_those_of_this_processor(roots, run, engine, system):
    wanted = on_this_processor(roots(system[1], "guest"), "compute")
    assert wanted.count("\n") > 70
    assert run(engine, "compute", 2, 300, system).splitlines() == wanted.splitlines()


@pytest.mark.parametrize("cpus, system", [(2, CLOUD), (4, CLOUD), (2, I386)], ids=name_of)
def test_a_parallel_compilation(roots, run, cpus, system):
    wanted = on_this_processor(roots(system[1], "compiler"), "compile")
    assert wanted.count(".o\n") >= 20
    assert "make: status 0" in wanted or system == I386
    assert "program: status 7" in wanted
    assert run("jit", "compile", cpus, 400, system, "compiler").splitlines() == wanted.splitlines()


@pytest.mark.parametrize("engine, cpus, system", [
    ("jit", 1, CLOUD), ("jit", 2, CLOUD), ("jit", 4, CLOUD), ("jit", 2, I386),
    ("interp", 1, CLOUD), ("interp", 4, CLOUD)], ids=name_of)
def test_stress(run, engine, cpus, system):
    assert run(engine, "stress", cpus, 400, system).count("status 0") == 8


@pytest.mark.parametrize("engine, cpus, system, modules", [
    ("jit", 2, CLOUD, MODULES + " " + MORE_MODULES), ("jit", 4, CLOUD, MODULES + " " + MORE_MODULES),
    ("jit", 2, I386, MODULES + " " + MORE_MODULES), ("interp", 4, CLOUD, MODULES)], ids=name_of)
def test_python_modules(run, engine, cpus, system, modules):
    printed = run(engine, "python", cpus, 600, system, words=modules)
    assert printed.count("status 0") == len(modules.split())


@pytest.mark.parametrize("engine", ENGINES)
def test_processors_leave_and_return(run, engine):
    run(engine, "hotplug", 4, 120)
