"""How far a long thing is: lines on stderr and, only at a terminal, a bar that goes away."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pexpect

PROGRAM = """
from remoter_kernel.cli.progress import OnStderr
with OnStderr() as progress:
    progress.step("Collecting")
    progress.sending(2, 4_000_000)
    for _ in range(8):
        progress.sent(500_000)
    progress.step("Installing")
    progress.sending(0, 0)
"""


def test_without_a_terminal_there_are_plain_lines_on_stderr():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        "Collecting",
        "Sending 2 files, 4.0 MB",
        "Installing",
        "Everything has been sent before",
    ]


def test_at_a_terminal_a_bar_moves():
    terminal = pexpect.spawn(
        sys.executable, ["-c", PROGRAM], timeout=30, encoding="utf-8", dimensions=(24, 100)
    )
    with contextlib.closing(terminal):
        terminal.expect_exact("Sending 2 files, 4.0 MB")
        terminal.expect_exact("/4.0 MB")
        terminal.expect_exact("Installing")
        terminal.expect(pexpect.EOF)
