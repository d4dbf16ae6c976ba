"""./dev bench engines: that it measures, and that it notices what must not be measured."""

import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import pytest

from lodge import PATIENCE, ROOT

SCRIPT = ROOT / "bench" / "engines.py"


@pytest.fixture(scope="module")
def bench():
    """The script as a module."""
    if not pathlib.Path("/usr/include/sqlite3.h").exists():
        pytest.skip("NOT CHECKED: the benchmark of the engines (no libsqlite3-dev)")
    spec = importlib.util.spec_from_file_location("bench_engines", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(*options, seconds=120):
    done = subprocess.run([SCRIPT, "--rounds", "1", "--target-ms", "20", "--json", *options],
                          check=False, capture_output=True, text=True, timeout=seconds * PATIENCE)
    return done, json.loads(done.stdout)


@pytest.mark.parametrize("script", sorted(SCRIPT.parent.glob("*.py")), ids=lambda path: path.stem)
def test_each_says_how_it_is_called(script):
    done = subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("usage: ./dev bench %s " % script.stem) and done.stderr == ""
    wrong = subprocess.run([sys.executable, script, "--frobnicate"], check=False, capture_output=True, text=True,
                           timeout=60)
    assert wrong.returncode == 2 and "--frobnicate" in wrong.stderr and "Traceback" not in wrong.stderr
    assert script.stem in subprocess.run([ROOT / "dev", "bench", "--help"], check=True, capture_output=True, text=True,
                                         timeout=60).stdout
    assert "./dev bench %s" % script.stem in (ROOT / "docs" / "benchmarks.md").read_text()


def test_a_report_takes_the_place_of_the_last(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.common, "ROOT", tmp_path)
    page = tmp_path / "docs" / "x.md"
    page.parent.mkdir()
    page.write_text("# X\n")
    for text in ("one\n", "two\n"):
        bench.common.write_document("it", "x.md", text, "It")
    with pytest.raises(SystemExit):
        bench.common.write_document("other", "x.md", "three\n")
    assert page.read_text() == "# X\n\n## It\n<!-- made by ./dev bench it --write -->\ntwo\n<!-- end -->\n"


def test_every_workload_natively(bench):
    done, found = measure("--engines", "native")
    assert done.returncode == 0, done.stderr
    names = subprocess.run([bench.make_program(), "--list"], check=True, capture_output=True,
                           text=True).stdout.split()[::3]
    assert len(names) > 30
    skipped = "".join(found["skipped"])
    assert set(names) == {name for name in names
                          if name in found["nanoseconds"]["native"] or name in skipped}


def test_in_a_guest(bench, kernel):
    kernel("cloud")
    done, found = measure("--engines", "native,interp", "--only", "crc32,fork_exec,program_deflate",
                          seconds=200)
    assert done.returncode == 0, done.stderr
    for name in ("crc32", "fork_exec", "program_deflate"):
        assert found["nanoseconds"]["interp"][name][0] > 0


def test_idle_memory_is_less_than_all(bench, kernel):
    kernel("cloud")
    done, found = measure("--engines", "interp", "--only", "idle", seconds=300)
    assert done.returncode == 0, done.stderr
    ram, overhead = found["idle_mib"]["interp"]
    assert 20 < ram < 500 and 2 < overhead < 64


def test_an_engine_that_is_not_there(bench):
    done, found = measure("--engines", "native,nonsense", "--only", "crc32")
    assert "SKIPPED: engine nonsense" in done.stderr
    assert found["skipped"] == ["engine nonsense: not there"]


def test_a_wrong_answer_is_no_time(bench):
    run = bench.run_program([bench.make_program(), "--only=program_deflate", "--text=/nowhere",
                             "--target-ms=10"])
    assert "error the answer is" in run.results["program_deflate"]


def script(text):
    return ["sh", "-c", text]


def test_a_clock_that_lies(bench):
    run = bench.run_program(script("echo bench begin 0; echo bench x 1; sleep 0.2; echo bench end 9000000000"))
    assert "its clock counted 9.00 s" in run.failure
    assert run.results == {"x": run.failure}
    # An honest one: a busy host may sleep longer than it is asked to.
    run = bench.run_program(script("a=$(date +%s%N); echo bench begin $a; echo bench x 1; sleep 0.2; "
                                   "echo bench end $(date +%s%N)"))
    assert run.failure is None and run.results == {"x": 1.0}


def test_a_machine_that_ends_early(bench):
    run = bench.run_program(script("echo bench begin 0; echo bench x 1; echo sad >&2; exit 3"))
    assert run.failure == "ended with status 3 before 'end'"
    assert run.seen[-1] == "sad"


def test_means_and_goals(bench):
    measurement = bench.Measurement.__new__(bench.Measurement)
    measurement.workloads = {"a": ("compute", 1), "b": ("vector", 1), "c": ("threads", 2)}
    measurement.wanted, measurement.idle = list(measurement.workloads), {"jit": (90.0, 70.0)}
    measurement.values = {"native": {"a": [1.0], "b": [1.0], "c": [1.0]},
                          "jit": {"a": [9.0, 2.0, 1.0], "b": [2.0], "c": [5.0], "boot": [10.0]},
                          "tcg": {"a": [2.0], "b": [32.0], "c": [1.0], "boot": [20.0]}}
    mean, count = measurement.mean_ratio("tcg", "jit", bench.MEANS[0][1])
    assert count == 2 and math.isclose(mean, 4.0)
    assert math.isclose(measurement.ratio("tcg", "jit", "boot"), 2.0)
    verdicts = {what: ok for what, _, ok in bench.goals(measurement)}
    assert verdicts == {"geometric mean of all: tcg/jit at least 4": mean >= 4,
                        "each workload: tcg/jit at least 1": True,
                        "boot to init: tcg/jit at least 2": True,
                        "vectors, geometric mean: tcg/jit at least 20": False,
                        "user-mode compute: jit/native at most 2.1": True,
                        "idle overhead of jit under 64 MiB": False}
