"""A lock on this machine's own disk: held until every process that has it lets go, or ends.

Never in a home: machines share homes, and flock over NFS locks one machine only, or hangs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from remoter_kernel.errors import RemoterError
from remoter_kernel.evaluator.folders import (
    is_owned_by_user,
    locks_folder,
    no_locks_error,
    remove_locks_folder_if_empty,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TRY_EVERY = 0.02  # seconds


@contextlib.contextmanager
def hold(name: str, seconds: float, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold a lock, if it can be had within some seconds; what is yielded says whether it is."""
    lock = NamedLock(name)
    is_held = lock.acquire(seconds, unless)
    try:
        yield is_held
    finally:
        if is_held:
            lock.release()


class NamedLock:
    """One lock by its name; its file is there while a process holds it or waits for it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._path = Path()
        self._file = -1

    def acquire(self, seconds: float, unless: Callable[[], bool] = lambda: False) -> bool:
        """Take it, or give up after some seconds, or once there is no need for it."""
        limit = time.monotonic() + seconds
        while not self._try_acquire():
            if unless() or time.monotonic() > limit:
                return False
            time.sleep(TRY_EVERY)
        return True

    def pass_to_child(self) -> None:
        """Let go here; a child process that was forked meanwhile goes on to hold it."""
        os.close(self._file)  # without LOCK_UN: that would let go for the child, too

    def release(self) -> None:
        """Let go for all, and leave nothing behind."""
        with contextlib.suppress(OSError):
            self._path.unlink()  # while it is held: else another process could hold it by now
            remove_locks_folder_if_empty(self._path.parent)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        os.close(self._file)

    def _try_acquire(self) -> bool:
        self._path = locks_folder() / f"{self._name}.lock"
        try:
            file = os.open(str(self._path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            return False  # the last one has just removed the folder
        except OSError as error:
            why = f"{self._path.parent}: {error.strerror}"
            raise no_locks_error(why) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder removes the file before it lets go: then this one is of no use any more.
            is_the_file = os.path.samestat(os.fstat(file), self._path.stat())
            if is_the_file and is_owned_by_user(self._path.parent):
                self._file = file
                return True
        except OSError:
            pass  # it is held, or its file was removed while we opened it
        os.close(file)
        return False


def remove_stale_locks() -> None:
    """Remove the files of locks that nobody holds: their owners were killed."""
    with contextlib.suppress(OSError, RemoterError):  # it can wait
        folder = locks_folder()
        for path in folder.glob("*.lock"):
            with hold(path.stem, 0.0):
                pass  # to release it removes its file
        remove_locks_folder_if_empty(folder)
