"""The CPU model: what a stock kernel makes of it, and what --cpu takes and refuses (docs/cpu.md)."""

import json
import re

import pytest

from lodge import BOOT_S, lodge

LOOK = ("for f in /sys/devices/system/cpu/vulnerabilities/*; do echo \"<${f##*/}> $(cat $f)\"; done; "
        "echo \"<clock> $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)\"; "
        "grep -E -m1 '^flags' /proc/cpuinfo; grep -E -m1 '^bugs' /proc/cpuinfo; dmesg")

# What makes system calls, page faults and context switches cheap, and time readable without an exit.
FAST = set("pcid invpcid x2apic tsc_deadline_timer fsgsbase erms fsrm rdtscp constant_tsc nonstop_tsc "
           "pge nx pdpe1gb arch_capabilities hypervisor".split())

# What each has that a mitigation would be turned on for, were it not told better.
IDENTITIES = {
    "this host": "max",
    "Skylake, Intel's worst": "max,vendor=intel,family=6,model=85,stepping=4",
    "Zen 3": "max,vendor=amd,family=25,model=1,stepping=1",
}
MORE_IDENTITIES = {
    "Skylake client": "max,vendor=intel,family=6,model=94,stepping=3",
    "Haswell": "max,vendor=intel,family=6,model=63,stepping=2",
    "Ice Lake": "max,vendor=intel,family=6,model=106,stepping=6",
    "Sapphire Rapids": "max,vendor=intel,family=6,model=143,stepping=8",
    "Zen 1": "max,vendor=amd,family=23,model=1,stepping=2",
    "Zen 4": "max,vendor=amd,family=25,model=17,stepping=1",
    "Bulldozer": "max,vendor=amd,family=21,model=2,stepping=0",
}


class Look:
    """What the guest said of its processor."""

    def __init__(self, text):
        text = text.replace("\r", "")
        self.vulnerabilities = dict(re.findall(r"^<(\w+)> (.*)$", text, re.MULTILINE))
        self.clock = self.vulnerabilities.pop("clock")
        self.flags = set(re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)[1].split())
        self.log = text


def look(boot, cpu, variant="cloud", engine="interp"):
    machine = boot("--engine", engine, "--cpu", cpu, command=LOOK, variant=variant)
    assert machine.wait(BOOT_S) == 0, machine.text[-3000:]
    return Look(machine.text)


def check_nothing_is_mitigated(seen):
    assert len(seen.vulnerabilities) > 10, seen.vulnerabilities
    for name, state in seen.vulnerabilities.items():
        if name == "spectre_v1":
            # Fences after a range check: the kernel always does that, and they cost nothing here.
            assert state.startswith("Mitigation: usercopy/swapgs"), state
        elif name == "spectre_v2":
            # One bit that is set once, at boot.
            assert state.startswith("Mitigation: Enhanced / Automatic IBRS"), state
            assert not re.search("(?i)retpoline|RSB filling|loop|vulnerable|always|forced", state), state
        elif name == "srbds":
            assert state in ("Not affected", "Mitigation: TSX disabled"), state
        else:
            assert state == "Not affected", "%s: %s" % (name, state)
    assert "pti" not in seen.flags
    for words in ("page tables isolation: enabled", "Filling RSB", "SW BHB clearing", "WARNING",
                  "Call Trace", "unchecked MSR", "microcode, it is vulnerable"):
        assert words not in seen.log, words


def check_fast(seen):
    assert FAST <= seen.flags, FAST - seen.flags
    for words in ("Hypervisor detected: KVM", "kvm-clock: Using msrs", "x2apic enabled",
                  "TSC deadline timer available", "Switched to clocksource kvm-clock"):
        assert words in seen.log, words
    assert seen.clock in ("tsc", "kvm-clock")


@pytest.mark.parametrize("cpu", IDENTITIES.values(), ids=IDENTITIES)
def test_a_stock_kernel_mitigates_nothing(boot, cpu):
    seen = look(boot, cpu)
    check_nothing_is_mitigated(seen)
    check_fast(seen)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", MORE_IDENTITIES.values(), ids=MORE_IDENTITIES)
def test_a_stock_kernel_mitigates_nothing_elsewhere(boot, cpu):
    check_nothing_is_mitigated(look(boot, cpu))


@pytest.mark.slow
def test_the_standard_kernel_mitigates_nothing(boot):
    check_nothing_is_mitigated(look(boot, "max", variant="standard"))


def test_jit_shows_the_same_machine(boot):
    seen = look(boot, "max", engine="jit")
    check_nothing_is_mitigated(seen)
    check_fast(seen)
    assert models("jit") == models("interp")


def test_without_the_promises_it_would_mitigate(boot):
    """That the checks above can fail: Skylake as it was."""
    seen = look(boot, "max,vendor=intel,family=6,model=85,stepping=4,-arch_capabilities")
    assert seen.vulnerabilities["meltdown"] == "Mitigation: PTI"
    assert "pti" in seen.flags
    with pytest.raises(AssertionError):
        check_nothing_is_mitigated(seen)


# --- --cpu ----------------------------------------------------------------------------------------

def models(engine):
    """What `--cpu help --json` says: name -> flags, for those that can be given."""
    done = lodge("run", "--cpu", "help", "--json", "--engine", engine)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["engine"] == engine and told["default"] == "max"
    return {m["name"]: set(m["flags"]) for m in told["models"] if m["error"] is None}


def test_a_baseline_is_what_the_guest_sees(boot):
    told = models("interp")
    seen = look(boot, "x86-64-v2,+pcid,-x2apic")
    check_nothing_is_mitigated(seen)
    # Linux shows two flags for one of these, and takes PREFETCHW for granted on AMD's.
    wanted = (told["x86-64-v2"] | {"pcid", "constant_tsc"}) - {"x2apic"}
    assert wanted <= seen.flags, wanted - seen.flags
    surplus = (seen.flags - wanted - {"3dnowprefetch"}) & told["max"]
    assert not surplus, surplus
    assert "x2apic enabled" not in seen.log


def test_models_build_on_each_other():
    told = models("interp")
    assert told["x86-64-v1"] <= told["host"] <= told["max"]
    for poorer, richer in (("x86-64-v1", "x86-64-v2"), ("x86-64-v2", "x86-64-v3")):
        if richer not in told:
            pytest.skip("NOT CHECKED: %s (this host cannot give it)" % richer)
        assert told[poorer] < told[richer]


def test_kvm_gives_no_more_than_the_interpreter():
    done = lodge("run", "--cpu", "help", "--json", "--engine", "kvm")
    if done.returncode:
        pytest.skip("NOT CHECKED: KVM's CPU models (no usable /dev/kvm)")
    kvm, interp = models("kvm"), models("interp")
    assert "max" in kvm
    for name, flags in kvm.items():
        assert flags <= interp[name], flags - interp[name]
        if name.startswith("x86-64"):
            # A baseline that KVM gives is the same machine, but for what the host's KVM keeps to itself.
            assert interp[name] - flags <= {"nonstop_tsc", "tsc_adjust", "tsc_deadline_timer", "xsaveerptr",
                                            "topoext", "arch_capabilities"}, interp[name] - flags


def test_help_is_for_people_too():
    done = lodge("run", "--cpu", "help", "--engine", "interp")
    assert done.returncode == 0 and done.stderr == ""
    for word in ("x86-64-v1", "x86-64-v2", "x86-64-v3", "host", "max (default)", "pcid", "smap"):
        assert word in done.stdout, word
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("cpu, words, status", [
    ("486", ("'486'", "x86-64-v3", "host"), 2),
    ("", ("''", "x86-64-v3"), 2),
    ("max,+avx9", ("'avx9'", "avx2", "pcid"), 2),
    ("max,avx", ("'avx'", "+FLAG"), 2),
    ("max,-sse2", ("'sse2'",), 2),
    ("max,vendor=via", ("'via'", "intel"), 2),
    ("max,+smap", ("'smap'", "--cpu help"), 1),
    ("max,+\x1b[2J", ("no CPU flag",), 2),
])
@pytest.mark.sanitize
def test_bad_cpu(kernel, cpu, words, status):
    done = lodge("run", "--kernel", kernel(), "--engine", "interp", "--cpu", cpu)
    assert done.returncode == status, done.stderr
    assert done.stdout == "" and "\x1b" not in done.stderr
    assert done.stderr.startswith("lodge: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_json_goes_with_help(kernel):
    done = lodge("run", "--kernel", kernel(), "--json")
    assert done.returncode == 2 and "--cpu help" in done.stderr


def test_kvm_tells_the_truth_of_who_it_is(kernel):
    done = lodge("run", "--kernel", kernel(), "--engine", "kvm", "--cpu", "max,vendor=intel")
    assert done.returncode == 1, done.stderr
    if "can't be used here" in done.stderr:
        pytest.skip("NOT CHECKED: KVM's refusal of another vendor (no usable /dev/kvm)")
    assert "vendor" in done.stderr and done.stderr.count("\n") == 1
