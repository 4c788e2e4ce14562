"""What a kernel and its subprocesses print to their stdout and stderr: a file with a bound.

They write to the file themselves, without a pipe to us: what they start may outlive all of ours.
Where the file has grown beyond its bound, its middle goes: the head tells how the kernel began,
the tail what is new.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from pathlib import Path

NAME = "kernel.log"  # in the session's folder
MOST = 4 * 1024 * 1024  # bytes of the file, and what is written between two looks
HEAD = 256 * 1024  # bytes that stay of its beginning
NEWEST = 1024 * 1024  # bytes that stay of its end
LOOK_EVERY = 0.25  # seconds, while it grows slowly or not at all
LOOK_SOON = 0.02  # seconds, while it grows quickly
END_WITHIN = 1.0  # seconds for the last look
MOST_READ = 64 * 1024  # bytes that are searched for last words
MOST_LAST_WORDS = 4000  # characters


class LogTrimmer:
    """Keeps the file within its bound while its kernel runs, in a thread of the warden."""

    def __init__(self, path: Path) -> None:
        """Begin to look."""
        self._path = path
        self._has_ended = threading.Event()
        self._thread = Thread(self._trim_periodically, name="kernel log")
        self._thread.start()

    def stop(self) -> None:
        """Look once more, but do not wait for a disk that hangs."""
        self._has_ended.set()
        self._thread.join(END_WITHIN)

    def _trim_periodically(self) -> None:
        size, patience = size_of(self._path), LOOK_EVERY
        has_ended = False
        while not has_ended:
            has_ended = self._has_ended.wait(patience)
            before, size = size, size_of(self._path)
            patience = LOOK_SOON if size - before > MOST // 8 else LOOK_EVERY
            with contextlib.suppress(OSError):  # no room, or no disk for now: the next look may
                trim_middle(self._path, MOST)


def trim_middle(path: Path, most: int) -> None:
    """Take the middle out of a file with more bytes than `most`.

    What the kernel writes between the read and the truncation goes, too: its file has no lock.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            return
        file.seek(size - NEWEST)
        newest = file.read(NEWEST).partition(b"\n")[2]
        file.truncate(HEAD)
    left_out = f"\n[Here {size - HEAD - len(newest)} bytes or more are left out.]\n".encode()
    with path.open("ab") as file:  # O_APPEND, as the kernel has it: neither overwrites the other
        file.write(left_out + newest)


def size_of(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class KernelLog:
    """The file of one session, in which one kernel after the other begins."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the session's."""
        self.path = folder / NAME
        self._begin = 0  # bytes that kernels before this one have printed

    def begin(self) -> None:
        """Note that another kernel begins: what is there is of those before it.

        It gets so much room that after the next trim the whole tail is its own.
        """
        with contextlib.suppress(OSError):
            trim_middle(self.path, MOST - 2 * NEWEST)
        self._begin = size_of(self.path)

    def tail(self, lines: int) -> str:
        """Return the end of what this kernel printed."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begin = self._begin if self._begin <= size else 0  # else it was trimmed meanwhile
                file.seek(max(begin, size - MOST_READ))
                printed = file.read(MOST_READ)
        except OSError:
            return ""
        text = printed.decode("utf-8", "replace")
        return "\n".join(text.strip().splitlines()[-lines:])[-MOST_LAST_WORDS:]
