"""This machine as sessions know it: an id of its own, and which fronts live on it.

A front holds the lock of a file for as long as it lives, whatever its link does; however
it ends, the lock is free at once. So a lid that is closed is told from a crash.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes import state_folder
from remoter_kernel.local.private_files import file_lock, try_lock, write_private_file

if TYPE_CHECKING:
    from pathlib import Path

_ID = re.compile(r"[0-9a-f]{24}")


def machine_id() -> str:
    """Return what sessions know this machine and person by; made once, at random.

    Empty where that cannot be kept.
    """
    path = state_folder() / "laptop"
    try:
        if known := _read_id(path):
            return known
        with file_lock(path):
            known = _read_id(path)
            if not known:
                write_private_file(path, known := secrets.token_hex(12))
            return known
    except (OSError, RemoterError):
        return ""


def _read_id(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    return text if _ID.fullmatch(text) else ""


class LivenessLock:
    """A front's sign that it lives; `acquire` it, and `release` it at the end."""

    def __init__(self, kernel_id: str) -> None:
        """Remember whose front it is."""
        self._kernel_id = kernel_id
        self._path = _locks_folder()
        self._file = -1

    def acquire(self) -> bool:
        """Show the sign; False where this machine's files cannot be locked."""
        folder = _locks_folder()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while self._file < 0:  # who looks for dead ones may have removed it in between
                self._path = folder / f"{self._kernel_id}-{secrets.token_hex(4)}"
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                if try_lock(file) and self._path.exists():
                    self._file = file
                else:
                    os.close(file)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Take the sign away."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            _remove_lock(self._path)


def live_kernel_ids() -> set[str]:
    """Return the kernel ids of the fronts that live on this machine; signs of dead ones go."""
    living = set()
    for path in _locks_folder().glob("*-*"):
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        except OSError:
            living.add(_kernel_id_of(path))  # as far as anyone can say
            continue
        try:
            is_dead = try_lock(file, is_shared=True)
            if is_dead:  # while it is locked: a front that is just coming makes another one
                _remove_lock(path)
        except OSError:
            is_dead = False
        finally:
            os.close(file)
        if is_dead:
            _remove_lock(path)  # Windows removes no file that is open
        else:
            living.add(_kernel_id_of(path))
    return living


def _remove_lock(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _kernel_id_of(path: Path) -> str:
    return path.name.partition("-")[0]


def _locks_folder() -> Path:
    return state_folder() / "fronts"
