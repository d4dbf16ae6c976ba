#!/usr/bin/python3
"""The same program natively, under Lodge's engines and under QEMU's translator: what do engines cost?

    bench/engines.py [--quick] [--rounds N] [--engines LIST] [--only LIST] [--json] [--write]

The program is bench/engines/*.c; docs/benchmarks.md says what is measured and how."""

import argparse
import datetime
import glob
import json
import math
import os
import pathlib
import platform
import re
import select
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))  # a test loads this file

import common  # noqa: E402
from common import ROOT  # noqa: E402
from lodge import PROGRAM, dev  # noqa: E402

WORK = ROOT / "build" / "bench"
SOURCES = ROOT / "bench" / "engines"
TEXTS = "/usr/share/common-licenses"
ENGINES = ["native", "jit", "interp", "tcg"]
MEMORY_MIB = 1024
BOOT_LIMIT_S = 120
RUN_LIMIT_S = 400
IDLE_S = 3
# Linux measures the time stamp counter under QEMU's translator badly on a busy host: it then stops, or
# falls back to a clock of 250 Hz. So all guests are told its rate, which is the host's under all engines.
CMDLINE = "console=ttyS0 quiet loglevel=2 panic=-1 tsc=reliable tsc_early_khz=%s"
COMPILE = ["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-fno-tree-vectorize", "-ffp-contract=off",
           "-Wall", "-Wextra", "-Wshadow", "-Wvla", "-static", "-pthread"]
LINK = ["-lsqlite3", "-lz", "-lm", "-Wl,--no-warnings"]
OWN_PATH = re.compile(r"(%s|%s)[^ ]*/" % (re.escape(str(ROOT)), re.escape(str(pathlib.Path.home()))))
USER_GROUPS = ("compute", "memory", "vector")


def say(text):
    print("engines: " + text, file=sys.stderr, flush=True)


# --- what is run -----------------------------------------------------------------------------------


def newer(target, sources):
    return not target.exists() or any(
        os.stat(source).st_mtime > target.stat().st_mtime for source in sources)


def make_program():
    WORK.mkdir(parents=True, exist_ok=True)
    program, sources = WORK / "program", sorted(SOURCES.glob("*.c"))
    if newer(program, sources + [SOURCES / "bench.h"]):
        say("compiling bench/engines/*.c")
        subprocess.run([*COMPILE, "-I", ROOT, *sources, "-o", program, *LINK], check=True)
    return program


def make_text():
    """A text that every Debian has: its licences."""
    files = [name for name in sorted(glob.glob(TEXTS + "/*")) if not os.path.islink(name)]
    if not files:
        sys.exit("engines: no texts in %s to compress (Debian's base-files)" % TEXTS)
    text = WORK / "text"
    text.write_bytes(b"".join(pathlib.Path(name).read_bytes() for name in files))
    return text


def make_initrd(program, text):
    initrd = WORK / "initramfs.cpio"
    subprocess.run([ROOT / "tools" / "initramfs", "add", initrd, "init=%s" % program,
                    "bench/text=%s" % text], check=True)
    return initrd


def is_tmpfs(folder):
    done = subprocess.run(["stat", "--file-system", "--format=%T", folder], check=False,
                          capture_output=True, text=True)
    return done.stdout.strip() == "tmpfs"


class Engines:
    """Knows the command line for each engine."""

    def __init__(self):
        self.program, self.text = make_program(), make_text()
        self.initrd = make_initrd(self.program, self.text)
        self.kernel = None
        self.cmdline = CMDLINE % output_of(self.program, "--tsc-khz")
        self.folder = "/dev/shm" if is_tmpfs("/dev/shm") else tempfile.gettempdir()
        if not is_tmpfs(self.folder):
            say("WARNING: no tmpfs found here, so native file work is on another file system")

    def missing(self, engine):
        """Why this engine cannot run, or None."""
        if engine == "native":
            return None
        if engine == "tcg":
            return None if shutil.which("qemu-system-x86_64") else \
                "no qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)"
        done = subprocess.run([PROGRAM, "run", "--engine", engine, "--kernel", "/dev/null"],
                              check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.stderr.strip() if done.returncode == 2 else None

    def command(self, engine, words, cpus=1, options=()):
        words = ["--cpus=%d" % cpus, *words]
        if engine == "native":
            return [self.program, "--folder=" + self.folder, "--text=%s" % self.text, *words]
        self.kernel = self.kernel or dev("kernel", "cloud")
        guest = ["-initrd", self.initrd, "-append", " ".join([self.cmdline, "--", *words])]
        if engine == "tcg":
            return ["qemu-system-x86_64", "-M", "microvm", "-accel",
                    "tcg" if cpus == 1 else "tcg,thread=multi", "-cpu", "max",
                    "-smp", str(cpus), "-m", "%dM" % MEMORY_MIB, "-nodefaults", "-no-user-config",
                    "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", self.kernel,
                    *guest]
        return [PROGRAM, "run", "--engine", engine, "--cpus", str(cpus),
                "--memory", "%dM" % MEMORY_MIB, "--on-reboot", "exit", *options,
                "--kernel", self.kernel, "--initrd", self.initrd, "--cmdline", guest[-1]]

    def workloads(self):
        """name -> (group, CPUs), in the program's order."""
        done = subprocess.run([self.program, "--list"], check=True, capture_output=True, text=True)
        rows = [line.split() for line in done.stdout.splitlines()]
        return {name: (group, int(cpus)) for name, group, cpus in rows}


# --- one run ---------------------------------------------------------------------------------------


class Run:
    """Starts a command and reads what the program in it prints.

    results: name -> nanoseconds, or a text that says why there are none. boot_ns: from the start to
    the first line of the program."""

    def __init__(self, command):
        self.results, self.boot_ns, self.failure = {}, None, None
        self.seen, self.clocks, self.rest = [], {}, b""
        self.errors = tempfile.TemporaryFile()
        self.begun = time.monotonic_ns()
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=self.errors)

    def read_until(self, word, seconds):
        """Reads until the program has printed that; sets failure if it does not come."""
        deadline = time.monotonic() + seconds
        while word not in self.clocks and not self.failure:
            left = deadline - time.monotonic()
            ready = select.select([self.process.stdout], [], [], max(left, 0))[0]
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            now = time.monotonic_ns()
            if not data:
                self.failure = "no '%s' in %d s" % (word, seconds) if not ready else \
                    "ended with status %d before '%s'" % (self.process.wait(), word)
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                self._line(line.decode("utf-8", "replace").strip(), now)

    def _line(self, line, now):
        self.seen.append(line)
        match = re.match(r"bench (\w+) (.+)$", line)
        if not match:
            return
        name, value = match[1], match[2]
        if name in ("begin", "end"):
            self.clocks[name] = (int(value), now)
            if name == "begin":
                self.boot_ns = now - self.begun
        else:
            number = re.fullmatch(r"[0-9.]+", value)
            self.results[name] = float(value) if number else value

    def close(self):
        """Waits a little for its own end."""
        try:
            self.process.wait(10 if not self.failure else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.seek(0)
        self.seen += self.errors.read().decode("utf-8", "replace").splitlines()[-10:]
        self.errors.close()

    def check_clock(self):
        """The guest's clock must agree with ours, or its times mean nothing."""
        guest, host = (self.clocks["end"][i] - self.clocks["begin"][i] for i in (0, 1))
        if abs(guest - host) > 0.03 * host + 100e6:
            self.failure = "its clock counted %.2f s in %.2f s" % (guest / 1e9, host / 1e9)
            self.results = {name: self.failure for name in self.results}


def run_program(command):
    run = Run(command)
    try:
        run.read_until("begin", BOOT_LIMIT_S)
        run.read_until("end", RUN_LIMIT_S)
        if not run.failure:
            run.check_clock()
    finally:
        run.close()
    return run


def resident(pid):
    """Resident KiB of a process: (guest RAM, everything else with page tables).

    Both Lodge and QEMU keep guest RAM out of forked children: the flag `dc` tells those mappings."""
    ram = ram_size = other = 0
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", pathlib.Path("/proc/%d/smaps" % pid).read_text(),
                       flags=re.MULTILINE)
    for entry in entries[1:]:
        # Code made at run time is mapped twice, to write and to execute: the same pages, counted once.
        kind = "Pss" if "/dev/zero" in entry.splitlines()[0] else "Rss"
        size, rss = (int(re.search(r"^%s: +(\d+)" % name, entry, re.MULTILINE)[1])
                     for name in ("Size", kind))
        if " dc" in re.search(r"^VmFlags:.*", entry, re.MULTILINE)[0]:
            ram, ram_size = ram + rss, ram_size + size
        else:
            other += rss
    if not 0.9 * MEMORY_MIB <= ram_size / 1024 <= 1.1 * MEMORY_MIB:
        raise ValueError("mappings of guest RAM have %d KiB" % ram_size)
    status = pathlib.Path("/proc/%d/status" % pid).read_text()
    return ram, other + int(re.search(r"^VmPTE:\s+(\d+)", status, re.MULTILINE)[1])


def idle_memory(command):
    """MiB of (guest RAM touched, overhead) of a machine that has booted and sleeps."""
    run = Run(command)
    try:
        run.read_until("begin", BOOT_LIMIT_S)
        if run.failure:
            return None
        time.sleep(IDLE_S)
        return tuple(kib / 1024 for kib in resident(run.process.pid))
    except (OSError, ValueError) as problem:
        say("no figure of idle memory: %s" % problem)
        return None
    finally:
        run.process.kill()
        run.close()


# --- all runs --------------------------------------------------------------------------------------


class Measurement:
    """values: engine -> name -> list of nanoseconds; errors: lines for people."""

    def __init__(self, engines, names, options):
        self.engines, self.names, self.options = engines, names, options
        self.values = {name: {} for name in names}
        self.idle, self.errors, self.skipped = {}, [], []
        self.workloads = engines.workloads()
        only = options.only.split(",") if options.only else [*self.workloads, "boot", "idle"]
        unknown = set(only) - set(self.workloads) - {"boot", "idle"}
        if unknown:
            sys.exit("engines: no workload " + ", ".join(sorted(unknown)))
        self.wanted = [name for name in self.workloads if name in only]
        self.extra = [name for name in ("boot", "idle") if name in only]

    def _add(self, engine, name, value):
        if isinstance(value, float):
            self.values[engine].setdefault(name, []).append(value)
        elif value.startswith("skip"):
            self.skipped.append("%s, %s: %s" % (engine, name, value))
        else:
            self.errors.append("%s, %s: %s" % (engine, name, value))
            say("ERROR: " + self.errors[-1])

    def _machine(self, engine, cpus, words, wanted, options=()):
        begun = time.monotonic()
        run = run_program(self.engines.command(engine, words, cpus, options))
        say("%-6s %d CPU: %.1f s" % (engine, cpus, time.monotonic() - begun))
        if run.failure:
            self.errors.append("%s, %d CPU: %s" % (engine, cpus, run.failure))
            say("ERROR: " + self.errors[-1])
            print("\n".join(run.seen[-15:]), file=sys.stderr)
        for name in wanted:
            self._add(engine, name, run.results.get(name, "error no result"))
        return run

    def _boot(self, engine, name, run):
        if run.boot_ns and engine != "native":
            self._add(engine, name, float(run.boot_ns))

    def round(self, number):
        """All engines once. Another is first in each round."""
        turn = number % len(self.names)
        for engine in self.names[turn:] + self.names[:turn]:
            if engine == "interp" and number >= self.options.interp_rounds and len(self.names) > 1:
                continue
            for cpus in (1, 2):
                wanted = [name for name in self.wanted if self.workloads[name][1] == cpus]
                if not wanted and not (cpus == 1 and self.extra and engine != "native"):
                    continue
                words = ["--target-ms=%d" % self.options.target_ms]
                words.append("--only=" + ",".join(wanted) if wanted else "--boot")
                if len(wanted) == sum(row[1] == cpus for row in self.workloads.values()):
                    words.pop()
                run = self._machine(engine, cpus, words, wanted)
                if cpus == 1 and "boot" in self.extra:
                    self._boot(engine, "boot", run)
            if "boot" in self.extra and engine not in ("native", "tcg"):
                run = self._machine(engine, 1, ["--boot"], [], ["--keep-packed"])
                self._boot(engine, "boot_packed", run)

    def measure_idle(self):
        for engine in self.names:
            if engine != "native" and "idle" in self.extra:
                self.idle[engine] = idle_memory(self.engines.command(engine, ["--idle"]))

    def median(self, engine, name):
        values = self.values.get(engine, {}).get(name)
        return statistics.median(values) if values else None

    def ratio(self, slow, fast, name):
        """How many times longer `slow` takes. TCG unpacks its kernel itself, always."""
        slow_name = "boot" if name == "boot_packed" and slow == "tcg" else name
        slow_ns, fast_ns = self.median(slow, slow_name), self.median(fast, name)
        return slow_ns / fast_ns if slow_ns and fast_ns else None

    def mean_ratio(self, slow, fast, groups):
        """Geometric mean over workloads of those groups, and how many they are."""
        ratios = [self.ratio(slow, fast, name) for name in self.wanted
                  if self.workloads[name][0] in groups]
        ratios = [ratio for ratio in ratios if ratio]
        return (math.exp(statistics.fmean(map(math.log, ratios))), len(ratios)) if ratios else None

    def widest(self):
        """The workload whose rounds differ most: (largest by smallest, engine, name)."""
        spreads = [(max(values) / min(values), engine, name)
                   for engine, rows in self.values.items() for name, values in rows.items()]
        return max(spreads) if spreads else None


# --- what it says ----------------------------------------------------------------------------------


def number_text(value):
    if value is None:
        return "-"
    return "%.0f" % value if value >= 1000 else "%.4g" % value


def ratio_text(value):
    return "-" if value is None else "%.2f" % value


def subject_of(names):
    """The engine that the ratios are about."""
    others = [name for name in names if name not in ("native", "tcg")]
    return "jit" if "jit" in others or not others else others[0]


def table(measurement):
    names, subject = measurement.names, subject_of(measurement.names)
    head = ["workload", *names, "tcg/" + subject, subject + "/native"]
    lines = ["| %s |" % " | ".join(head), "| --- |" + " ---: |" * (len(head) - 1)]
    rows = measurement.wanted + ["boot", "boot_packed"] * ("boot" in measurement.extra)
    for name in rows:
        if not any(measurement.median(engine, name) for engine in names):
            continue
        cells = [name] + [number_text(measurement.median(engine, name)) for engine in names]
        cells.append(ratio_text(measurement.ratio("tcg", subject, name)))
        cells.append(ratio_text(measurement.ratio(subject, "native", name)))
        lines.append("| %s |" % " | ".join(cells))
    return lines


MEANS = [("all workloads, 1 vCPU", ("compute", "memory", "vector", "kernel", "program")),
         ("user-mode compute", USER_GROUPS), ("general registers, scalar floating point", ("compute",)),
         ("memory", ("memory",)), ("vectors", ("vector",)), ("kernel", ("kernel",)),
         ("whole programs", ("program",)), ("2 vCPUs", ("threads",))]


def means(measurement):
    subject = subject_of(measurement.names)
    lines = ["| geometric mean | workloads | tcg/%s | %s/native |" % (subject, subject),
             "| --- | ---: | ---: | ---: |"]
    for title, groups in MEANS:
        pair = [measurement.mean_ratio("tcg", subject, groups),
                measurement.mean_ratio(subject, "native", groups)]
        if any(pair):
            count = max(mean[1] for mean in pair if mean)
            lines.append("| %s | %d | %s |" % (title, count, " | ".join(
                ratio_text(mean and mean[0]) for mean in pair)))
    return lines if len(lines) > 2 else []


def idle_lines(measurement):
    return ["- %s, idle: %.1f MiB beyond %.1f MiB of guest memory in use" % (engine, pair[1], pair[0])
            for engine, pair in measurement.idle.items() if pair]


def worst(measurement, names):
    """The smallest of the ratios tcg/jit of these workloads, and whose it is."""
    ratios = [(measurement.ratio("tcg", "jit", name), name) for name in names]
    ratios = [pair for pair in ratios if pair[0]]
    return min(ratios) if ratios else None


def goals(measurement):
    """(what is wanted, what was found, is it reached) for all that was measured."""
    def of_group(group):
        return [name for name in measurement.wanted if measurement.workloads[name][0] == group]

    found = []

    def at_least(title, pair, wanted):
        if pair:
            found.append(("%s: tcg/jit at least %g" % (title, wanted),
                          "%.2f (%s)" % pair, pair[0] >= wanted))

    mean = measurement.mean_ratio("tcg", "jit", MEANS[0][1])
    at_least("geometric mean of all", mean and (mean[0], "%d workloads" % mean[1]), 4)
    single = [name for name in measurement.wanted if measurement.workloads[name][1] == 1]
    at_least("each workload", worst(measurement, [n for n in single if n != "register_loop"]), 1)
    at_least("register loop", worst(measurement, ["register_loop"]), 0.95)
    # The worst is named beside it: code that the host itself runs less than 20 times as fast as TCG does
    # cannot be more than that.
    vectors, slowest = measurement.mean_ratio("tcg", "jit", ("vector",)), worst(measurement, of_group("vector"))
    at_least("vectors, geometric mean",
             vectors and (vectors[0], "%d workloads; least %.1f, %s" % (vectors[1], *slowest)), 20)
    at_least("system calls and page faults",
             worst(measurement, ["syscall_getpid", "syscall_read", "page_faults"]), 2)
    at_least("fork and exec", worst(measurement, ["fork_exec"]), 2.5)
    at_least("boot to init", worst(measurement, ["boot"]), 2)
    user = measurement.mean_ratio("jit", "native", USER_GROUPS)
    if user:
        found.append(("user-mode compute: jit/native at most 2.1",
                      "%.2f (%d workloads)" % user, user[0] <= 2.1))
    idle = measurement.idle.get("jit")
    if idle:
        found.append(("idle overhead of jit under 64 MiB", "%.1f MiB" % idle[1], idle[1] < 64))
    return found


def goal_lines(measurement):
    lines = ["| wanted | found | |", "| --- | --- | --- |"]
    lines += ["| %s | %s | %s |" % (what, value, "reached" if ok else "**MISSED**")
              for what, value, ok in goals(measurement)]
    return lines if len(lines) > 2 else ["No goal can be judged without jit, tcg and native."]


def output_of(*command):
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else "unknown"


def machine_text():
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    return "%s, %d processors, Linux %s" % (model[1] if model else platform.machine(),
                                            len(os.sched_getaffinity(0)), platform.release())


def facts(measurement, load):
    """What a reader needs to judge or repeat the figures: name -> text."""
    engines = measurement.engines
    lines = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "host": machine_text(),
        "load": "load average %.1f before, %.1f after" % (load, os.getloadavg()[0]),
        "Lodge": output_of("git", "describe", "--always", "--dirty"),
        "guest": os.path.basename(os.path.realpath(engines.kernel)) if engines.kernel else "none",
        "compiler": output_of("gcc", "--version"),
        "rounds": "%d (interp: at most %d), each of %d ms a workload" % (
            measurement.options.rounds, measurement.options.interp_rounds,
            measurement.options.target_ms),
    }
    if "tcg" in measurement.names:
        lines["QEMU"] = output_of("qemu-system-x86_64", "--version")
    widest = measurement.widest()
    if widest and measurement.options.rounds > 1:
        lines["spread"] = "the rounds of a workload differ by a factor of %.2f at most (%s, %s)" % widest
    return lines


def command_lines(measurement):
    """One command line an engine, with no path of this machine."""
    for name in measurement.names:
        words = measurement.engines.command(name, [])
        yield "    " + shlex.join(OWN_PATH.sub("", str(word)) for word in words)


def report(measurement, load):
    lines = ["- %s: %s" % pair for pair in facts(measurement, load).items()]
    lines += idle_lines(measurement)
    lines += ["", "Nanoseconds an operation, medians of the rounds.", "", *table(measurement), "",
              *means(measurement), "", *goal_lines(measurement)]
    lines += ["", "The command lines:", "", *command_lines(measurement)]
    for title, what in (("Skipped", measurement.skipped), ("Errors", measurement.errors)):
        if what:
            lines += ["", title + ":", "", *["- " + line for line in sorted(set(what))]]
    return "\n".join(lines)


def as_json(measurement, load):
    return json.dumps({"facts": facts(measurement, load), "nanoseconds": measurement.values,
                       "idle_mib": measurement.idle, "errors": measurement.errors,
                       "skipped": measurement.skipped,
                       "goals": [{"wanted": a, "found": b, "reached": c}
                                 for a, b, c in goals(measurement)]}, indent=1)


def parse(args):
    parser = argparse.ArgumentParser(prog="./dev bench engines", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=common.positive, default=3, help="how often all engines run in turn")
    parser.add_argument("--interp-rounds", type=int, default=1, help="the same for interp (default 1)")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s; also kvm")
    parser.add_argument("--only", default="", help="workloads, by comma; also boot and idle")
    parser.add_argument("--target-ms", type=int, default=300, help="time for each workload")
    parser.add_argument("--quick", action="store_true", help="one round of 60 ms a workload")
    parser.add_argument("--json", action="store_true", help="all values, for programs")
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.md")
    options = parser.parse_args(args)
    if options.quick:
        options.rounds, options.target_ms = 1, 60
    return options


def main(args):
    options, load = parse(args), os.getloadavg()[0]
    engines, names = Engines(), []
    for name in options.engines.split(","):
        problem = engines.missing(name)
        if problem:
            say("SKIPPED: engine %s: %s" % (name, problem))
        else:
            names.append(name)
    measurement = Measurement(engines, names, options)
    measurement.skipped += ["engine %s: not there" % name for name in options.engines.split(",")
                            if name not in names]
    for number in range(options.rounds):
        say("round %d of %d" % (number + 1, options.rounds))
        measurement.round(number)
    measurement.measure_idle()
    print(as_json(measurement, load) if options.json else report(measurement, load))
    if options.write:
        common.write_document("engines", "benchmarks.md", report(measurement, load) + "\n")
    return 1 if measurement.errors or not all(ok for _, _, ok in goals(measurement)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
