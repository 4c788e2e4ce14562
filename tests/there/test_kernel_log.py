"""What a kernel's processes print by themselves takes no more room than a bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from remoter_kernel.evaluator import kernel_log
from remoter_kernel.evaluator.kernel_log import HEAD, MOST, NEWEST, KernelLog, trim_middle

if TYPE_CHECKING:
    from pathlib import Path

LINE = b"x" * 99 + b"\n"
WARDEN = "from remoter_kernel.evaluator import warden; warden.main()"
FLOOD = """
import os, time
os.write(1, b"how it began\\n")
chunk, most = (b"x" * 1023 + b"\\n") * 5120, 0
for _ in range(60):
    os.write(1, chunk)
    most = max(most, os.fstat(1).st_size)
    time.sleep(0.02)
os.write(1, b"it took %d\\n" % most)
"""


def fill(path: Path, size: int) -> None:
    with path.open("ab") as file:
        file.write(LINE * (size // len(LINE)))


def test_the_beginning_and_the_newest_stay(tmp_path: Path):
    """Between them stands how much is left out; who writes meanwhile goes on at the end."""
    path = tmp_path / "kernel.log"
    path.write_bytes(b"how it began\n")
    with path.open("ab", buffering=0) as writer:
        fill(path, MOST)
        writer.write(b"how it went\n")
        trim_middle(path, MOST)
        writer.write(b"how it ended\n")
    said = path.read_bytes()
    assert said.startswith(b"how it began\n")
    assert said.endswith(b"how it went\nhow it ended\n")
    assert b"bytes or more are left out.]" in said
    assert HEAD + NEWEST - 200 < len(said) < HEAD + NEWEST + 200


def test_a_short_one_is_left_alone(tmp_path: Path):
    """Not a byte is lost without need."""
    path = tmp_path / "kernel.log"
    fill(path, MOST // 2)
    before = path.read_bytes()
    trim_middle(path, MOST)
    assert path.read_bytes() == before


def test_last_words_are_of_this_kernel_and_read_no_more_than_they_need(tmp_path, monkeypatch):
    """Whatever those before it have said, and however much that was."""
    log = KernelLog(tmp_path)
    log.begin()
    assert log.tail(12) == ""
    fill(log.path, MOST)
    assert len(log.tail(12)) <= 4000
    log.begin()
    assert log.tail(12) == ""
    with log.path.open("ab") as file:
        file.write(b"one\ntwo\nthree\n")
    assert log.tail(2) == "two\nthree"
    monkeypatch.setattr(kernel_log, "MOST_READ", 6)
    assert log.tail(12) == "three"


def test_last_words_after_the_middle_was_taken_out(tmp_path: Path):
    """The file is shorter than it was when this kernel began, and its end is this kernel's."""
    log = KernelLog(tmp_path)
    fill(log.path, MOST - 2 * NEWEST)
    log.begin()
    fill(log.path, 2 * NEWEST)
    with log.path.open("ab") as file:
        file.write(b"last\n")
    trim_middle(log.path, NEWEST + HEAD + 100)
    assert log.tail(1) == "last"


def test_a_kernel_that_prints_without_end_takes_a_bounded_disk(tmp_path: Path):
    """300 MB through a real warden: how it began and how it ended is known afterwards."""
    log = tmp_path / "kernel.log"
    wish = {
        "argv": [sys.executable, "-c", FLOOD],
        "env": dict(os.environ),
        "cwd": "/",
        "umask": 0o077,
        "folder": str(tmp_path),
        "log": str(log),
    }
    words = [sys.executable, "-c", WARDEN]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as warden:
        out, _ = warden.communicate(json.dumps(wish).encode() + b"\n", timeout=60)
    assert json.loads(out.splitlines()[-1])["status"] == 0
    said = log.read_bytes()
    assert len(said) <= MOST
    assert said.startswith(b"how it began\n")
    took = int(said.rpartition(b"it took ")[2])
    assert took < 200e6
