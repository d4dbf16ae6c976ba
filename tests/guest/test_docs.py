"""The man page, docs/run.md and the program's own help name the same options, verbs and statuses."""

import re
import shutil
import subprocess

import pytest

from lodge import ROOT, lodge

MAN = ROOT / "man" / "lodge.1"
RUN_MD = ROOT / "docs" / "run.md"


def run_help():
    done = lodge("run", "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def options(text):
    """What a line of the help begins with; --help itself is not listed there."""
    return set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)) | {"--help"}


def man_items():
    """What the man page's lists have entries for: option --x is written `Fl -x`."""
    lines = re.findall(r"^\.It (.*)", MAN.read_text(), re.MULTILINE)
    return [re.sub(r"^Fl -", "--", line) for line in lines]


def statuses():
    """The numbers of enum vmm_exit."""
    text = (ROOT / "vmm" / "run.h").read_text()
    return re.findall(r"^\s*VMM_EXIT_\w+ = (\d+),", text, re.MULTILINE)


def test_options_in_the_man_page():
    items = {item.split()[0] for item in man_items() if item.startswith("--")}
    assert items == options(run_help())


def test_options_in_the_document():
    rows = set(re.findall(r"^\| `(--[a-z-]+)", RUN_MD.read_text(), re.MULTILINE))
    assert rows == options(run_help())


@pytest.mark.parametrize("option, page", [("--disk", "disks.md"), ("--net", "networks.md")])
def test_keys_are_documented(option, page):
    """Those that the program names to who gets one wrong."""
    said = lodge("run", "--kernel", "x", option, "user,frobnicate=1").stderr
    keys = re.findall(r"[a-z][a-z0-9-]+", said.partition("there are ")[2].replace(", and with user", "").replace(" and ", " "))
    item = re.search(r"^\.It Fl %s (.*?)^\.It Fl" % option[1:], MAN.read_text(), re.MULTILINE | re.DOTALL)[1]
    assert len(keys) > 5
    for key in keys:
        assert re.search(r"^\.Cm %s\b" % key, item, re.MULTILINE), "%s: not in the man page" % key
        assert re.search(r"`%s\b" % key, (ROOT / "docs" / page).read_text()), "%s: not in docs/%s" % (key, page)


def test_verbs_in_the_man_page():
    verbs = re.findall(r"^  (\w+) ", lodge("help").stdout, re.MULTILINE)
    assert "run" in verbs
    for verb in verbs:
        assert "Cm " + verb in man_items(), verb


def test_statuses_are_documented():
    assert "100" in statuses()
    for number in statuses():
        shown = "128 + N" if number == "128" else number
        assert shown in man_items(), "%s: not in the man page" % shown
        assert "\n| %s |" % shown in RUN_MD.read_text(), "%s: not in docs/run.md" % shown
        assert re.search(r"\b%s\b" % re.escape(shown), run_help()), "%s: not in --help" % shown


def test_findings_of_doctor_are_documented():
    text = RUN_MD.read_text()
    names = re.findall(r'add\(report, "(\w+)"', (ROOT / "host" / "doctor.c").read_text())
    assert "kvm" in names
    for name in names:
        assert "`%s`" % name in text, name


def test_man_page_is_well_formed():
    if not shutil.which("groff"):
        pytest.skip("NOT CHECKED: the man page's form (no groff)")
    done = subprocess.run(["groff", "-mandoc", "-ww", "-Tutf8", "-z", MAN], check=False,
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_links_of_the_documents_lead_somewhere():
    documents = list(ROOT.glob("*.md")) + list(ROOT.glob("docs/*.md"))
    assert RUN_MD in documents
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), "%s: %s" % (document.name, target)
