"""./dev run: what a caller's script sees of it."""

import subprocess

from lodge import BOOT_S, PATIENCE, ROOT


def test_a_command_in_a_pipe(kernel):
    """Output and status are the command's alone; it finds stdin at its end, whatever the caller's is."""
    kernel("cloud")
    done = subprocess.run([ROOT / "dev", "run", "--engine", "interp", "--", "cat; echo end; exit 5"],
                          input="typed\n", capture_output=True, text=True, check=False,
                          timeout=BOOT_S * PATIENCE)
    assert done.stdout == "end\n", done.stdout + done.stderr
    assert done.returncode == 5
