"""Files of this person alone: written beside, synced, renamed; nobody else may read them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_private_folder(folder: Path) -> Path:
    """Make `folder` (0700) where it is missing; one that exists keeps its mode."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_private(path: Path, text: str) -> None:
    """Replace the file at `path` (0600) in one step: a reader sees the old or the new, whole.

    A symbolic link stays one: its target is what is replaced.
    """
    path = path.resolve()
    make_private_folder(path.parent)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def holding_lock(path: Path) -> Iterator[None]:
    """Be the only one at work on `path`, as long as all ask with this function."""
    path = path.resolve()
    make_private_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
