"""Where the sessions of a user are, and where the locks of this machine are.

Locks need a folder on this machine's own disk that no other user can enter, remove or create
before us. All processes of one user on one machine must use the same one, whatever other users
do: where the usual place is another user's, a new one is made, and remembered among the sessions
by a symbolic link, whose first writer wins.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError
from remoter_kernel.evaluator.processes import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterator


def data_folder() -> Path:
    """Return where all is that must not be lost; the XDG rules ignore a relative setting."""
    data = os.environ.get("XDG_DATA_HOME") or ""
    if not os.path.isabs(data):  # noqa: PTH117 - "" is none
        data = os.path.expanduser("~/.local/share")  # noqa: PTH111 - keeps "~" when there is no home
    return Path(data) / "remoter-kernel"


def sessions_folder() -> Path:
    """Return where the sessions of this user are kept."""
    return data_folder() / "sessions"


def is_owned_by_user(folder: Path) -> bool:
    """Is this a folder that belongs to this user? What other users put there is not for us."""
    try:
        about = folder.lstat()  # not stat: a link may lead to a folder of ours
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()


def locks_folder() -> Path:
    """Return the folder of this user's locks on this machine; make it if need be."""
    reminders = _reminders()
    known = filter(_is_private, _known_folders(reminders))
    return next(known, None) or _make_random_folder(len(reminders))


def remove_locks_folder_if_empty(folder: Path) -> None:
    """Remove the folder; `rmdir` fails while a lock is in it.

    One with a random name stays: its name is known by now, and another user could take it.
    """
    if folder != _last_folder(_reminders()):
        folder.rmdir()


def _known_folders(reminders: list[Path]) -> Iterator[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or ""
    if os.path.isdir(runtime) and os.access(runtime, os.W_OK):  # noqa: PTH112 - "" is none
        yield Path(runtime) / "remoter-kernel"
    remembered = _last_folder(reminders)
    if remembered:
        yield remembered
    yield Path(f"/tmp/remoter-{os.getuid()}")  # noqa: S108 - used only if it is ours alone


def _is_private(folder: Path) -> bool:
    """Is this folder, made now if it was missing, ours alone, and usable? A link never is."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    return (
        is_owned_by_user(folder)
        and not folder.lstat().st_mode & 0o077
        and _can_create_files(folder)
    )


def _can_create_files(folder: Path) -> bool:
    """Can there be one more file? An empty one needs an inode, and nothing else."""
    try:
        about = os.statvfs(folder)
    except OSError:
        return False
    has_place = about.f_favail > 0 or about.f_files == 0  # some file systems do not count them
    return has_place and os.access(folder, os.W_OK | os.X_OK)


def _make_random_folder(number: int) -> Path:
    """Make a folder with a name that nobody could guess, and remember it for this boot.

    `number`: how many links there were when none of the known places would do. If there is
    another one by now, another process was quicker.
    """
    folder = _new_folder()
    sessions_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _reminder(number).symlink_to(folder)  # atomic, also over NFS
    except OSError as error:
        folder.rmdir()
        if isinstance(error, FileExistsError):
            return locks_folder()
        raise
    return folder


def _new_folder() -> Path:
    tried = []
    for place in dict.fromkeys(("/tmp", os.environ.get("TMPDIR") or "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"remoter-{os.getuid()}-", dir=place))
        except OSError as error:
            tried.append(f"{place}: {error.strerror}")
            continue
        if _supports_locks(folder):
            return folder
        folder.rmdir()
        tried.append(f"{place}: its file system has no locks")
    raise no_locks_error("; ".join(tried))


def no_locks_error(why: str) -> RemoterError:
    """Say that nothing can be locked here; `why` names each place that was tried."""
    return RemoterError(
        f"{socket.gethostname()} has no place for locks ({why}).",
        "Set TMPDIR in the start-up files of your shell there to a folder on that machine's own "
        "disk in which you can write, or make room there.",
    )


def _supports_locks(folder: Path) -> bool:
    """Can files be locked there? Some file systems of clusters do not know it."""
    path = folder / "try.lock"
    try:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def _last_folder(reminders: list[Path]) -> Path | None:
    """Return the folder that was made last in this boot of this machine."""
    for reminder in reminders[-1:]:
        with contextlib.suppress(OSError):
            return reminder.readlink()
    return None


def _reminders() -> list[Path]:
    """List the links of this machine and boot, the oldest first; none is ever changed."""
    found: list[Path] = []
    while os.path.lexists(_reminder(len(found))):
        found.append(_reminder(len(found)))
    return found


def _reminder(number: int) -> Path:
    machine = boot_id() or socket.gethostname()  # the name may change, the boot does not
    mark = hashlib.sha256(machine.encode()).hexdigest()[:16]
    return sessions_folder() / f".locks-{mark}-{number}"
