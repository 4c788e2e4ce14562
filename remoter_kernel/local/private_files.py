"""Files of this person alone: written beside, synced, renamed; nobody else may read them."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from remoter_kernel.errors import BadConfiguration, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator


APPLICATION = "remoter-kernel"
STATE_VARIABLE = "REMOTER_STATE"  # names another folder than the person's state folder


class CannotWrite(Usage):
    """This side's own files cannot be written: a full disk, a read-only folder."""


def state_folder() -> Path:
    """Where this side keeps what it has seen: REMOTER_STATE, else the person's state folder."""
    named = os.environ.get(STATE_VARIABLE)
    with requiring_home():
        return Path(named).expanduser() if named else platformdirs.user_state_path(APPLICATION)


@contextlib.contextmanager
def requiring_home() -> Iterator[None]:
    """Say it where there is no home: HOME is not set, and the system knows no such user."""
    try:
        yield
    except RuntimeError as err:
        if os.path.expanduser("~") != "~":  # noqa: PTH111 - Path.home() would raise
            raise
        who = f" (number {os.getuid()})" if os.name == "posix" else ""
        raise BadConfiguration(
            f"this machine knows no home of the user here{who}, and HOME is not set.",
            "Set HOME to a folder of yours, then try again.",
        ) from err


@contextlib.contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise CannotWrite(
            f"{path} cannot be written: {err.strerror or err}.",
            "See to its folder's permissions and to free space.",
        ) from err


def write_private_file(path: Path, text: str) -> None:
    """Replace the file at `path` (0600) in one step: a reader sees the old or the new, whole.

    A symbolic link stays one: its target is what is replaced. A missing folder is made (0700).
    """
    with _naming_file(path):
        _replace_file(path.resolve(), text)


def _replace_file(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
def file_lock(path: Path) -> Iterator[None]:
    """Be the only one at work on `path`, as long as all ask with this function."""
    with _naming_file(path):
        path = path.resolve()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with _naming_file(lock):
            _wait_for_lock(handle)
        yield
    finally:
        os.close(handle)  # gives the lock back, too


def try_lock(handle: int, *, is_shared: bool = False) -> bool:
    """Lock an open file, unless another process has; closing it, or ending, gives it back.

    Several may share a lock, but not on Windows.
    """
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 - Windows alone has it

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415 - Windows alone has it not

            fcntl.flock(handle, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on Windows
        return False
    return True


def _wait_for_lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - Windows alone has it

        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
    else:
        import fcntl  # noqa: PLC0415 - Windows alone has it not

        fcntl.flock(handle, fcntl.LOCK_EX)
