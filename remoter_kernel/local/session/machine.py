"""This machine as sessions know it: its id, which proxies live on it, and when it was asleep.

A proxy holds the lock of a file for as long as it lives, whatever its link does; however it
ends, the system frees the lock at once. So sessions tell a closed lid from a crash.

No system tells all programs that it wakes up. But the monotonic clock of most stands still while
they sleep, and then every timer is late by the wall clock: `SuspendDetector` looks for that.

A client that ends a kernel and starts another at once means: restart it (VS Code). No message
tells that from closing a notebook and opening it again; the time between the two does, and
the process that has started both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes import state_folder
from remoter_kernel.local.private_files import CannotWrite, file_lock, try_lock, write_private_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from remoter_kernel.protocol.reactor import Reactor

_ID = re.compile(r"[0-9a-f]{24}")

POLL_EVERY = 2.0  # seconds
SUSPENDED_FOR = 3.0  # seconds that are missing; a busy machine is late by less

_PARENT = os.environ.get("JPY_PARENT_PID", "")  # set by jupyter_client's LocalProvisioner
_FIRST_PARENT = os.getppid()  # once that process has ended, a child gets another parent

RESTART_WITHIN = 5.0  # seconds from a proxy's end to the start of the next
KEPT_FOR = 3600.0  # seconds; far more than RESTART_WITHIN


def machine_id() -> str:
    """Return the id by which sessions know this machine and person; "" where none can be kept.

    It is made once, at random: a host name is neither unique nor lasting.
    """
    path = state_folder() / "laptop"
    try:
        if known := _read_id(path):
            return known
        with file_lock(path):  # two proxies that start together must agree on one id
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
    """A locked file that shows that a proxy lives: `acquire` it, and `release` it at the end."""

    def __init__(self, kernel_id: str) -> None:
        self._kernel_id = kernel_id
        self._path = _locks_folder()
        self._file = -1

    def acquire(self) -> bool:
        """Make and lock the file; False where this machine's files cannot be locked (some NFS)."""
        folder = _locks_folder()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # `live_kernel_ids` of another proxy may remove the file before it is locked.
            while self._file < 0:
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
        """Unlock and remove the file."""
        if self._file >= 0:
            os.close(self._file)  # first: Windows removes no file that is open
            self._file = -1
            _remove_lock(self._path)


def live_kernel_ids() -> set[str]:
    """Return the kernel ids of the proxies that live here; remove the files of dead ones."""
    living = set()
    for path in _locks_folder().glob("*-*"):
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        except OSError:
            living.add(_kernel_id_of(path))  # nobody can say that it is dead
            continue
        try:
            # Shared: two that look at once must not take each other for a living proxy.
            is_dead = try_lock(file, is_shared=True)
            # Removed while locked: a proxy that is about to lock it sees that, and makes another.
            if is_dead:
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


class SuspendDetector:
    """Calls back after this machine was asleep, or this process stopped for a while."""

    def __init__(
        self,
        reactor: Reactor,
        on_resume: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is the wall's, in seconds."""
        self._reactor = reactor
        self._on_resume = on_resume
        self._clock = clock
        self._due = 0.0

    def start(self) -> None:
        """Compare the clock with the timers from now on."""
        self._due = self._clock() + POLL_EVERY
        self._reactor.call_later(POLL_EVERY, self._poll)

    def _poll(self) -> None:
        # A clock that was set, forwards or back, looks the same; to probe the link once too
        # often does no harm.
        was_away = abs(self._clock() - self._due) > SUSPENDED_FOR
        self.start()
        if was_away:
            self._on_resume()


def has_pid() -> bool:
    """Was this process started by a Jupyter that wants its kernels to end with it?"""
    return _PARENT.isdigit()


def can_watch() -> bool:
    """Should this process end with the one that started it?

    VS Code does not name itself, but holds the other end of its kernels' stdin. Whoever starts a
    kernel by hand to stay there gives it none, or a terminal.
    """
    return has_pid() or (sys.platform != "win32" and _is_pipe(0))


def _is_pipe(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def has_exited() -> bool:
    """Has that process ended?"""
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415 - Windows alone needs it

        has_ended = 0  # WAIT_OBJECT_0; on Windows JPY_PARENT_PID holds a handle, not a number
        return bool(ctypes.windll.kernel32.WaitForSingleObject(int(_PARENT), 0) == has_ended)
    return os.getppid() != _FIRST_PARENT


class ProxyExitRecord(NamedTuple):
    """A proxy that was ended without a shutdown_request: which kernel, and of which session."""

    kernel_id: str
    session: str


def record_exit(remote: str, notebook: str, departure: ProxyExitRecord) -> None:
    """Leave a note of this proxy's end; without it, a restart looks like a new notebook."""
    try:
        write_private_file(_marker_path(remote, notebook), json.dumps(departure._asdict()))
    except (OSError, CannotWrite):
        return
    _remove_old()


def previous_exit(remote: str, notebook: str, started: float) -> ProxyExitRecord | None:
    """Return the proxy in whose place this one was `started` (seconds since 1970), if any."""
    sign = _marker_path(remote, notebook)
    try:
        left = sign.stat().st_mtime
        words = json.loads(sign.read_text(encoding="utf-8"))
        sign.unlink()
        departure = ProxyExitRecord(str(words["kernel_id"]), str(words["session"]))
        is_close = -1.0 < started - left < RESTART_WITHIN
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return departure if is_close else None


def _marker_path(remote: str, notebook: str) -> Path:
    # With the parent: two editors may have the same notebook open.
    who = json.dumps([os.getppid(), remote, notebook])
    return _markers_folder() / f"{hashlib.sha256(who.encode()).hexdigest()[:24]}.json"


def _markers_folder() -> Path:
    return state_folder() / "left"


def _remove_old() -> None:
    for sign in _markers_folder().glob("*.json"):
        try:
            if time.time() - sign.stat().st_mtime > KEPT_FOR:
                sign.unlink()
        except OSError:  # another proxy was quicker
            continue
