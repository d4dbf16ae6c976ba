#!/usr/bin/python3
"""File operations in a shared directory, in a guest under the translator and on the host.

The guest runs the same program (bench/share/program.py) by the host's Python, from the host's root shared read-only."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import common
from test_share import HOST, LOAD, find_modules

PYTHON = "/usr/bin/python3"
OPERATIONS = pathlib.Path(__file__).resolve().parent / "share" / "program.py"


def run(words):
    """What a measurement printed, which goes on to stderr: name -> value with its unit."""
    found = {}
    with subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          errors="replace") as process:
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            match = re.match(r"(\S.{33}) +([\d.]+ (us|MB/s))\s*$", line)
            if match:
                found[match[1].strip()] = match[2]
    if process.returncode or not found:
        raise SystemExit("bench/share: %s: status %d" % (words[0], process.returncode))
    return found


def measure_guest(directory, rounds):
    command = (LOAD + "mount -t virtiofs mnt /mnt && " + HOST +
               "IN_GUEST=1 chroot /host %s -B /tmp/program /mnt %d\n" % (PYTHON, rounds))
    with tempfile.TemporaryDirectory() as place:
        initrd = common.make_initrd(place, command, {**find_modules(), "lodge/program": OPERATIONS})
        return run(common.lodge_command(initrd, "--memory", "1500M", "--share", "%s:/mnt" % directory, "--share",
                                        "/:/host,ro"))


def main():
    parser = common.parser("share", __doc__, rounds=5)
    parser.add_argument("directory", nargs="?", default=".", help="whose file system is measured (default: this one)")
    options, load = parser.parse_args(), os.getloadavg()[0]
    common.need("shared directories", [PYTHON])
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="share-") as directory:
        directory = os.path.abspath(directory)
        guest = measure_guest(directory, options.rounds)
        host = run([PYTHON, "-B", OPERATIONS, directory, options.rounds])
    text = common.table(["", "guest", "host"], [[name, value, host.get(name, "")] for name, value in guest.items()])
    text += "\nThe best of %d rounds; %s.\n" % (options.rounds, common.circumstances(load))
    print(text)
    if options.write:
        common.write_document("share", "share.md", text)


if __name__ == "__main__":
    main()
