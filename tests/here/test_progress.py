"""How far a long thing is: lines on stderr and, only at a terminal, a bar that goes away."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pexpect

from remoter_kernel.local.transfer.transfer_progress import (
    TransferProgress,
    progress_html,
    progress_line,
)

PROGRAM = """
from remoter_kernel.cli.progress import StderrProgress
with StderrProgress() as progress:
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


FILES = """
import click
from remoter_kernel.cli.progress import TransferProgressBar
from remoter_kernel.local.transfer.transfer_progress import TransferProgress
journey = TransferProgress(is_put=True, remote="box", all_size=4_000_000, all_files=3)
with TransferProgressBar() as travelling:
    for part in range(1, 5):
        journey.size, journey.files = part * 1_000_000, part - 1
        journey.recent, journey.recent_seconds = journey.size, part / 2
        travelling.on_progress(journey)
    journey.note = "the link was lost, try 1 of 8"
    travelling.on_progress(journey)
click.echo("3 files to box", err=True)
"""


def test_files_on_their_way_are_told_in_lines_without_a_terminal():
    """Not each step; but what one has to know, and what came of it."""
    ran = subprocess.run([sys.executable, "-c", FILES], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    lost, end = ran.stderr.splitlines()
    assert lost.endswith("the link was lost, try 1 of 8")
    assert end == "3 files to box"


def test_files_on_their_way_move_a_bar_at_a_terminal():
    """Amounts, rate, and the time that is left."""
    terminal = pexpect.spawn(
        sys.executable, ["-c", FILES], timeout=30, encoding="utf-8", dimensions=(24, 200)
    )
    with contextlib.closing(terminal):
        terminal.expect(r"to box: 3.8 MiB of 3.8 MiB, 3 of 3 files, 100 %, the link was lost")
        terminal.expect("3 files to box")
        terminal.expect(pexpect.EOF)


def test_how_far_it_is_in_words():
    """Half of it in two seconds: two are left."""
    journey = TransferProgress(
        is_put=False, remote="box", size=500 * 1024, all_size=1000 * 1024, all_files=1
    )
    journey.recent, journey.recent_seconds = 500 * 1024, 2.0
    assert (
        progress_line(journey) == "from box: 500.0 KiB of 1000.0 KiB, 50 %, 250.0 KiB/s, 0:02 left"
    )
    assert "<b>" not in progress_html(TransferProgress(is_put=True, remote="<b>"))
