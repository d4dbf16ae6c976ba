"""What the benchmarks share: the options that all have, a stock guest that runs one command, and how a report gets into
a document."""

import argparse
import datetime
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "guest"))

from lodge import PROGRAM, dev  # noqa: E402

CMDLINE = "console=ttyS0 panic=-1 quiet"
END = "<!-- end -->\n"
ENGINES = ["kvm", "jit", "interp"]


def parser(name, description, rounds=3):
    """With --rounds and --write."""
    made = argparse.ArgumentParser(prog="./dev bench " + name, description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=positive, default=rounds, metavar="N",
                      help="how often each is measured (default: %(default)s)")
    made.add_argument("--write", action="store_true", help="put the report into its document (docs/benchmarks.md)")
    return made


def engines(name, description):
    """For what measures engines one by one: which the command line names."""
    made = argparse.ArgumentParser(prog="./dev bench " + name, description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("engine", nargs="*", default=["interp"], help="kvm, jit or interp (default)")
    chosen = made.parse_args().engine
    for word in chosen:
        if word not in ENGINES:
            made.error("no engine '%s'" % word)
    return chosen


def positive(word):
    number = int(word)
    if number < 1:
        raise ValueError(word)
    return number


def need(what, programs):
    """Without them there is nothing to measure."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in programs if not shutil.which(name, path=path)]
    if missing:
        raise SystemExit("NOT MEASURED: %s (no %s)" % (what, ", ".join(missing)))


def make_initrd(folder, command, files, env="in=none\nout=pipe\n"):
    """./dev run's, with a command to run and more files: name in the guest -> path."""
    folder = pathlib.Path(folder)
    (folder / "command").write_text(command)
    (folder / "env").write_text(env)
    files = {**files, "lodge/command": folder / "command", "lodge/env": folder / "env"}
    subprocess.run([ROOT / "tools" / "initramfs", "add", folder / "own", *("%s=%s" % item for item in files.items())],
                   check=True)
    whole = folder / "initrd"
    whole.write_bytes(pathlib.Path(dev("initrd", "cloud")).read_bytes() + (folder / "own").read_bytes())
    return whole


def lodge_command(initrd, *options, engine="jit"):
    return [PROGRAM, "run", "--engine", engine, "--memory", "512M", "--kernel", dev("kernel", "cloud"), "--initrd", initrd,
            "--cmdline", CMDLINE, *options]


def qemu_command(initrd, *options):
    """QEMU's translator with the same guest."""
    return ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512", "-nographic", "-nodefaults",
            "-serial", "stdio", "-no-reboot", "-kernel", dev("kernel", "cloud"), "-initrd", initrd, "-append", CMDLINE,
            *options]


def table(head, rows):
    lines = ["| %s |" % " | ".join(head), "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| %s |" % " | ".join(row) for row in rows]) + "\n"


def circumstances(load):
    """load: os.getloadavg()[0] before it all."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return "%s; load average %.1f before, %.1f after" % (now, load, os.getloadavg()[0])


def write_document(name, document, text, title=None):
    """Between the marks of `name` in docs/DOCUMENT; where there are none, in a section of its own at the end."""
    path = ROOT / "docs" / document
    begin, old = "<!-- made by ./dev bench %s --write -->\n" % name, path.read_text()
    if begin not in old:
        if not title:
            raise SystemExit("%s has no '%s'" % (path.relative_to(ROOT), begin.strip()))
        old += "\n## %s\n%s%s" % (title, begin, END)
    head, rest = old.split(begin, 1)
    path.write_text(head + begin + text + END + rest.split(END, 1)[1])
    print("%s: wrote %s" % (name, path.relative_to(ROOT)), file=sys.stderr)
