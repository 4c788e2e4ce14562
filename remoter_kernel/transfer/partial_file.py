"""One file while it is received: beside its place, under another name until it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import ProtocolError
from remoter_kernel.transfer.framed_stream import ASK_FROM, FileTrouble, TroubleCode
from remoter_kernel.transfer.plan import trouble_from_os
from remoter_kernel.transfer.safe_paths import partial_name

if TYPE_CHECKING:
    from remoter_kernel.transfer.framed_stream import FileEntry

READ_AT_ONCE = 1024 * 1024  # bytes
ZEROS = bytes(1024 * 1024)
FLAGS: int = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
MAKES: int = os.O_CREAT | os.O_EXCL
NO_LINK: int = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
ALONE_WITHIN = 20.0  # seconds: an end that receives nothing gives up within SILENT_FOR (15)
TRY_EVERY = 0.1  # seconds
_mask_lock = threading.Lock()


class PartialFile:
    """A file that is being received to `place`; what has arrived stays when the transfer is cut."""

    def __init__(self, place: str, entry: FileEntry, mask: int) -> None:
        """`find_resumable` or `open_at` opens it. `mask` is the umask."""
        self.place = place
        self.entry = entry
        self._mask = mask
        self._folder, self._name = os.path.split(place)
        self._path = os.path.join(
            self._folder, partial_name(os.path.basename(entry.path), entry.size, entry.mtime)
        )
        self._file = -1
        self._is_locked = False  # is what bears the part's name ours, to rename or to remove?
        self._position = 0
        self._digest: Any = hashlib.sha256()
        self._is_same = False  # is the whole file in its place already?

    def find_resumable(self) -> tuple[int, str]:
        """Return how many bytes of it are there, and their checksum; (0, ""): none."""
        self._check_place()
        with contextlib.suppress(OSError):
            about = os.lstat(self.place)
            if stat.S_ISREG(about.st_mode) and (about.st_size, about.st_mtime_ns) == (
                self.entry.size,
                self.entry.mtime,
            ):
                self._is_same = True
                with open(self.place, "rb", buffering=0, opener=_no_link) as file:
                    return self._read(file.fileno())
        try:
            os.lstat(self._path)
        except OSError:
            return 0, ""
        self._open()
        return self._read(self._file)

    def _read(self, file: int) -> tuple[int, str]:
        self._position, self._digest = 0, hashlib.sha256()
        while data := os.read(file, READ_AT_ONCE):
            self._digest.update(data)
            self._position += len(data)
        return self._position, self._digest.hexdigest()

    def open_at(self, at: int) -> None:
        """Let bytes follow from this position: the end of what was found, or 0."""
        if at and at != self._position:
            raise ProtocolError(f"{at} bytes of {self._position} are to be kept.")
        if at and self._is_same:  # no byte follows
            return
        if not at:
            self._is_same = False
            self._position, self._digest = 0, hashlib.sha256()
        if self._file < 0:
            self._check_place()
            self._open()
        os.lseek(self._file, self._position, os.SEEK_SET)
        os.ftruncate(self._file, self._position)

    def _check_place(self) -> None:
        """Raise FileTrouble where no file can be put: before its bytes come, not after."""
        try:
            kind = os.lstat(self.place).st_mode
        except OSError:
            return
        if stat.S_ISDIR(kind):
            raise FileTrouble(self.place, "a folder is in its place", TroubleCode.IS_FOLDER)
        if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
            raise FileTrouble(self.place, "what is in its place is no file", TroubleCode.OTHER)

    def _open(self) -> None:
        """Open and lock the part: the end of a transfer that was cut may not know that yet."""
        until = time.monotonic() + ALONE_WITHIN
        while True:
            self._file = self._open_or_create()
            if self._file >= 0 and _try_lock(self._file) and self._is_still_named():
                self._is_locked = True
                return
            self._close()
            if time.monotonic() > until:
                raise FileTrouble(self.place, "another transfer is receiving it just now")
            time.sleep(TRY_EVERY)

    def _open_or_create(self) -> int:
        """Open a new part, or the one that a transfer has left; -1: it was renamed just now."""
        with contextlib.suppress(FileExistsError):
            return os.open(self._path, FLAGS | MAKES | NO_LINK, 0o600)
        try:
            self._make_writable()
            file = os.open(self._path, FLAGS | NO_LINK)
        except FileNotFoundError:
            return -1
        try:
            self._check_own(file)
        except FileTrouble:
            os.close(file)
            return self._replace_foreign()
        return file

    def _replace_foreign(self) -> int:
        """Put a part of our own in the place of one that others own or have linked, if possible.

        Some network file systems show another owner for what we write; or an attacker made it.
        """
        with contextlib.suppress(OSError):
            os.unlink(self._path)
            return os.open(self._path, FLAGS | MAKES | NO_LINK, 0o600)
        reason = "this is in the way, and is no file that is yours alone"
        raise FileTrouble(self._path, reason, TroubleCode.IS_FILE)

    def _make_writable(self) -> None:
        """Make a part writable again whose transfer was killed after `chmod`, before `rename`."""
        if os.name != "posix" or os.access(self._path, os.W_OK):  # no modes are set there
            return
        with open(self._path, "rb", opener=_no_link) as file:
            self._check_own(file.fileno())
            if _try_lock(file.fileno()):  # else that transfer lives
                os.fchmod(file.fileno(), 0o600)

    def _check_own(self, file: int) -> None:
        """Raise FileTrouble if somebody else could write into what is open, or it is no file."""
        about = os.fstat(file)
        is_ours = os.name != "posix" or about.st_uid == os.geteuid()
        if not (stat.S_ISREG(about.st_mode) and is_ours and about.st_nlink <= 1):
            reason = "this is in the way, and is no file that is yours alone"
            raise FileTrouble(self._path, reason, TroubleCode.IS_FILE)

    def _is_still_named(self) -> bool:
        """Has the open file the part's name still? Whoever had the lock may have renamed it."""
        try:
            return os.path.samestat(os.fstat(self._file), os.lstat(self._path))
        except OSError:
            return False

    def write(self, data: memoryview) -> None:
        """Write what came; zeros are left out, so that a sparse file stays sparse."""
        if self._position + len(data) > self.entry.size or self._is_same:
            raise ProtocolError(f"More came of {self.entry.path} than there is.")
        self._digest.update(data)
        # The ends are looked at first: most data is told from zeros by one of them.
        if not data[0] and not data[-1] and bytes(data) == ZEROS[: len(data)]:
            self._position += len(data)
            os.lseek(self._file, self._position, os.SEEK_SET)
            return
        while data:
            written = os.write(self._file, data)
            data = data[written:]
            self._position += written  # and not more: on a full disk this much is there

    def finish(self, digest: str) -> None:
        """Give the file its name, if its checksum is `digest`."""
        if self._position != self.entry.size or self._digest.hexdigest() != digest:
            self.discard()
            reason = "it arrived damaged: its checksum is another one"
            raise FileTrouble(self.place, reason, TroubleCode.DAMAGED)
        if self._is_same:
            set_mode_and_time(self.place, self.entry, self._mask, mode_of(self.place))
        else:
            os.ftruncate(self._file, self._position)  # zeros at its end were never written
            if os.name != "posix":  # Windows renames nothing that is open, and has no locks here
                self._close()
            set_mode_and_time(self._path, self.entry, self._mask, mode_of(self.place))
            try:
                os.replace(self._path, self.place)
            except OSError as error:
                raise trouble_from_os(error, self.place) from None
            self._is_locked = False
            self._close()  # not before: who waits for the lock must find the name gone

    def keep_for_resume(self) -> None:
        """Leave what is there to the next try, unless it is too small to be asked for."""
        if self._file < 0:
            return
        if self.entry.size < ASK_FROM or not self._position:
            self.discard()
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._position)
        self._is_locked = False
        self._close()

    def discard(self) -> None:
        """Remove the part, if this transfer has its lock: else it is another's."""
        if os.name != "posix":  # Windows removes nothing that is open
            self._close()
        if self._is_locked:
            self._is_locked = False
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | NO_LINK)


def _try_lock(file: int) -> bool:
    """Lock an open file, unless another process has; closing it gives the lock back."""
    if os.name != "posix":
        return True
    import fcntl  # noqa: PLC0415 - Windows has it not

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network disks know no locks
        pass
    return True


def mode_of(path: str) -> int | None:
    """Return the mode of what is there; None if nothing is, or a link."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    return None if stat.S_ISLNK(mode) else stat.S_IMODE(mode)


def set_mode_and_time(path: str, entry: FileEntry, mask: int, before: int | None = None) -> None:
    """Set the sender's mode and time, as far as this file system has such.

    `before`: the mode of what was in its place.
    """
    if os.name == "posix":
        with contextlib.suppress(OSError):
            mode = wanted_mode(entry, mask, before)
            if entry.kind == "folder":  # setgid and sticky are the receiver's, and stay
                mode |= os.stat(path).st_mode & (stat.S_ISGID | stat.S_ISVTX)
            os.chmod(path, mode)
    with contextlib.suppress(OSError, OverflowError):
        os.utime(path, ns=(entry.mtime, entry.mtime))


def wanted_mode(entry: FileEntry, mask: int, before: int | None = None) -> int:
    """Return the mode to set: no more than the sender's, nor than the umask allows.

    Nor is it open to others where what was there before was not; but it may become executable
    for those who could read it.
    """
    usual = 0o777 if entry.kind == "folder" else 0o666  # if the sender's system has no modes
    mode = (usual if entry.mode is None else entry.mode) & ~mask
    if before is not None:
        mode &= 0o700 | before | (before & 0o444) >> 2
    return mode


def read_umask() -> int:
    """Return the umask. It can only be read by setting it: 0o077 harms no other thread's file."""
    with _mask_lock:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask
