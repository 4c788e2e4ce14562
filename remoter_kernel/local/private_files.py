"""Files that only this person may read: each write goes to a new file, is synced, then renamed.

And the logs of local processes: one file each, in the state folder; old ones are removed.

A file is named by what its process is, its remote, when it began (UTC) and its number:
`proxy-NAME-20260102T030405-678.log`. One that is full goes on as `….log.1`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import platformdirs

from remoter_kernel import logs
from remoter_kernel.errors import BadConfiguration, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION = "remoter-kernel"
STATE_VARIABLE = "REMOTER_STATE"  # names another folder than the person's state folder

KEPT_FOR = 14 * 24 * 3600.0  # seconds after the process has written its last line
MOST_KEPT = 20  # of processes that have ended, of each kind
LONGEST_NAME = 60  # characters of a remote's name
_NAME = re.compile(r"(proxy|keeper|command)-(?:(.+)-)?(\d{8}T\d{6})-(\d+)\.log")


class CannotWrite(Usage):
    """A file of ours on this machine cannot be written: a full disk, a read-only folder."""


def state_folder() -> Path:
    """Where local state is kept: REMOTER_STATE, else the person's state folder."""
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
        path = path.resolve()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Beside it: a rename from another disk would be a copy, which a crash leaves half done.
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave the new name with no content
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Let only one process at a time work on `path`, as long as all of them use this function."""
    with _naming_file(path):
        path = path.resolve()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file of its own: `path` itself is replaced, and a lock on the old one says nothing.
        lock = path.with_name(f".{path.name}.lock")
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with _naming_file(lock):
            _lock(handle)
        yield
    finally:
        os.close(handle)  # gives the lock back, too


def try_lock(handle: int, *, is_shared: bool = False) -> bool:
    """Lock an open file, unless another process has; closing it, or ending, gives it back.

    Several may share a lock, but not on Windows.
    """
    try:
        _lock(handle, is_shared=is_shared, waits=False)
    except (BlockingIOError, PermissionError):  # the latter on Windows
        return False
    return True


def _lock(handle: int, *, is_shared: bool = False, waits: bool = True) -> None:
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - Windows alone has it

        msvcrt.locking(handle, msvcrt.LK_LOCK if waits else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # noqa: PLC0415 - Windows alone has it not

        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        fcntl.flock(handle, kind if waits else kind | fcntl.LOCK_NB)


class LogOf(NamedTuple):
    """A file, and whose it is."""

    path: Path
    kind: str
    remote: str  # "": the default one, or none
    pid: int
    changed: float  # seconds since 1970

    @property
    def is_open(self) -> bool:
        """Does its process run? It may be that of another one by now."""
        import psutil  # noqa: PLC0415 - a process that begins need not wait for it

        return bool(psutil.pid_exists(self.pid))

    @property
    def files(self) -> tuple[Path, Path]:
        """What it has been written to, the older file first."""
        return self.path.with_name(f"{self.path.name}.1"), self.path

    def text(self) -> str:
        """Return all that is kept of it."""
        found = ""
        for path in self.files:
            with contextlib.suppress(OSError):
                if path.is_file():  # what is none may let us wait for ever
                    found += path.read_text(encoding="utf-8", errors="replace")
        return found


def begin_log_file(kind: str, remote: str | None = None) -> None:
    """Log what this process does: a "proxy", a "keeper", or a "command"."""
    clock = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    # A name may hold what no file's name can, or be a path.
    about = re.sub(r"[^a-z0-9._-]", "_", remote or "")[:LONGEST_NAME]
    name = "-".join(filter(None, (kind, about, clock, str(os.getpid()))))
    logs.open_log(folder() / f"{name}.log", logs.wanted(), chores=clear_old)


def folder() -> Path:
    """Return where they are."""
    return state_folder() / "logs"


def log_files() -> list[LogOf]:
    """List the logs that there are, the one with the latest line first."""
    found = []
    for path in folder().glob("*.log"):
        named = _NAME.fullmatch(path.name)
        with contextlib.suppress(OSError):  # another process was quicker to remove it
            if named:
                kind, remote, _, pid = named.groups()
                found.append(LogOf(path, kind, remote or "", int(pid), path.stat().st_mtime))
    return sorted(found, key=lambda log: log.changed, reverse=True)


def clear_old() -> None:
    """Remove logs of processes that have ended: old ones, and what is more than enough."""
    kept = {"proxy": 0, "keeper": 0, "command": 0}
    for log in log_files():
        if log.is_open:  # it may write on
            continue
        kept[log.kind] += 1
        if kept[log.kind] > MOST_KEPT or time.time() - log.changed > KEPT_FOR:
            for path in log.files:
                with contextlib.suppress(OSError):
                    path.unlink()
