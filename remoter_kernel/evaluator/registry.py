"""The sessions of this user: one folder each, with a few JSON files; alive if the port answers.

Only the host that a session runs on may judge whether it is dead: a home can be shared
between machines, and another machine's process numbers mean nothing here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel import logs
from remoter_kernel.errors import RemoterError
from remoter_kernel.evaluator.folders import is_owned_by_user, sessions_folder
from remoter_kernel.evaluator.named_lock import hold, remove_stale_locks
from remoter_kernel.evaluator.processes import (
    boot_id,
    describe_exit,
    is_running,
    pid_namespace,
    started_at,
)
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER_WITHIN = 2.0  # seconds
AMEND_WITHIN = 1.0  # seconds that another process may take to change the same file
AMENDED_WITHIN = 0.5  # seconds that the evaluator's loop waits for its own disk
KEEP_ENDED = 14 * 24 * 3600.0  # seconds
KEEP_BYTES = 4 * 1024**3  # of what ended sessions leave
_log = logging.getLogger(__name__)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of ours; one that is missing or torn is empty."""
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return words if isinstance(words, dict) else {}


def write_json(path: Path, words: dict[str, Any]) -> None:
    """Write a file of ours so that it is seen whole or not at all; mode 0600."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")  # two processes may write at once
    handle = os.open(str(beside), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(words, file)
        beside.replace(path)
    except OSError:
        beside.unlink()  # it would take the room that was missing
        raise


def whole_number(value: object) -> int:
    """Read a number in a file of ours, which another version or a bad disk may have written."""
    return value if isinstance(value, int) else 0


class Session:
    """One session's folder and what its files say."""

    def __init__(self, folder: Path) -> None:
        """The folder's name is the session's id."""
        self.folder = folder
        self.id = folder.name

    @classmethod
    def create(cls, about: dict[str, Any]) -> Session:
        """Make a folder with an id of its own; mode 0700."""
        sessions_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            folder = sessions_folder() / secrets.token_hex(3)  # short: people type it
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                break
        session = cls(folder)
        (folder / "keys").mkdir(mode=0o700)
        session.write("session.json", about)
        return session

    def read(self, name: str) -> dict[str, Any]:
        """Read one of its JSON files."""
        return read_json(self.folder / name)

    def write(self, name: str, words: dict[str, Any]) -> None:
        """Write one of its JSON files."""
        write_json(self.folder / name, words)

    def write_endpoint(self, port: int, public_key: str) -> None:
        """Say which process answers for this session, and where."""
        pid = os.getpid()
        words = {
            "host": socket.gethostname(),
            "boot": boot_id(),
            "pids": pid_namespace(),
            "pid": pid,
            "started": started_at(pid),
            "port": port,
            "public_key": public_key,
        }
        self.write("door.json", words)

    def update(self, **words: Any) -> None:
        """Change what session.json says; the evaluator and launches may want to at once."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, RemoterError):  # better unlocked than not at all
                stack.enter_context(hold(f"about-{self.id}", AMEND_WITHIN))
            self.write("session.json", {**self.read("session.json"), **words})

    def authorize_key(self, client_key: str, kernel_id: str = "") -> None:
        """Admit the proxy with this public key (Z85), and note which Jupyter kernel it is."""
        path = self.folder / "keys" / client_key.encode().hex()
        path.touch(mode=0o600)
        if kernel_id:
            path.write_text(kernel_id, encoding="utf-8")

    def authorized_kernels(self) -> set[str]:
        """Return the Jupyter kernels whose proxies were ever admitted, as far as they said."""
        found = set()
        for path in (self.folder / "keys").glob("*"):
            with contextlib.suppress(OSError, ValueError):
                found.add(path.read_text(encoding="utf-8"))
        return found - {""}

    def is_authorized(self, client_key: bytes) -> bool:
        """Was this public key (Z85) registered through a login?"""
        return (self.folder / "keys" / client_key.hex()).exists()

    def authorized_keys(self) -> set[bytes]:
        """Return all public keys (Z85) that were registered so far."""
        found = set()
        for path in (self.folder / "keys").glob("*"):
            with contextlib.suppress(ValueError):  # what else is there is no key of ours
                found.add(bytes.fromhex(path.name))
        return found

    def previous_kernel_ids(self) -> list[Any]:
        """Return the Jupyter kernels that this session had before the one that it has now."""
        before = self.read("session.json").get("kernels_before")
        return before if isinstance(before, list) else []

    def mark_ended(self, why: str, *, died: float = 0.0) -> None:
        """Note that this session has ended, and why: no launch joins it any more.

        `died`: when, in seconds since 1970, if that was long before this was noticed.
        """
        _log.info("Session %s ends: %s", self.id, why.partition("\n")[0])
        # Without room: that none of its processes runs says it, too.
        with logs.noting(_log, "its end is not written", OSError):
            self.update(ended=time.time(), died=died or time.time(), why=why)

    def remove_keys(self) -> None:
        """Remove the keys of clients and kernel, and what push and pull left; the journal stays."""
        for path in (self.folder / "connection.json", *(self.folder / "keys").glob("*")):
            path.unlink(missing_ok=True)
        for folder in self.folder.glob("carried-*"):  # a cut has kept a proxy from removing it
            shutil.rmtree(folder, ignore_errors=True)

    def is_evaluator_running(self) -> bool:
        """Does its evaluator run here, whether it answers or not?"""
        return self._is_running("door.json")

    def is_kernel_running(self) -> bool:
        """Does its kernel run here, with an evaluator or without?"""
        return self._is_running("child.json")

    def _is_running(self, name: str) -> bool:
        about = self.read(name)
        is_there = is_running(whole_number(about.get("pid")), str(about.get("started", "")))
        return is_there and self.is_of_this_boot()

    def death_reason(self) -> tuple[str, float]:
        """Return why nothing of it runs any more, and when it left its last trace."""
        exit_words = self.read("exit.json")
        last = max(
            (_modified_at(self.folder / name) for name in ("journal", "exit.json")), default=0
        )
        if not self.is_of_this_boot():
            return "The machine was restarted.", _modified_at(self.folder / "journal")
        if exit_words:
            return (
                f"Its evaluator was killed, and its kernel ended: {describe_exit(exit_words)}",
                last,
            )
        return "Its evaluator and its kernel were killed.", last

    def is_of_this_boot(self) -> bool:
        """Does this session belong to this machine, as it was started last?

        A machine may get another name meanwhile. Its containers have its boot id, too, and other
        process numbers. Where no boot id is known (macOS), the name decides.
        """
        listener, boot = self.read("door.json"), boot_id()
        if not listener or listener.get("boot") != boot:
            return False
        has_its_pids = bool(boot and listener.get("pids")) and listener["pids"] == pid_namespace()
        return has_its_pids or listener.get("host") == socket.gethostname()

    def is_of_this_host(self) -> bool:
        """May this host judge it? It has begun here, perhaps before a restart of the machine."""
        return self.is_of_this_boot() or self.read("door.json").get("host") == socket.gethostname()

    def is_alive(self) -> bool:
        """Does its evaluator run here and answer?"""
        listener = self.read("door.json")
        if self.read("session.json").get("ended") or not self.is_evaluator_running():
            return False
        try:
            port = whole_number(listener.get("port"))  # a bad file may have one above 65535
            with socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN):
                return True
        except (OSError, OverflowError):
            return False


class ServedSession(Session):
    """The session of this evaluator, whose loop must not touch a disk: it may hang."""

    def __init__(self, folder: Path, call: Callable[[Callable[[], None]], None]) -> None:
        """`call` makes a call in the loop's thread."""
        super().__init__(folder)
        self.about = self.read("session.json")
        self._disk = Worker("session", call)

    def update(self, **words: Any) -> None:
        """Change what session.json says, in a thread; wait for it, but not for a disk that hangs.

        The client gets its acknowledgement then, and may ask a login for this session at once.
        """
        self.about.update(words)
        is_done = threading.Event()

        def write() -> None:
            try:
                Session.update(self, **words)
            finally:
                is_done.set()

        self._disk.submit(write)
        is_done.wait(AMENDED_WITHIN)

    def close(self) -> None:
        """Wait until all is written."""
        self._disk.close()


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def all_sessions() -> Iterator[Session]:
    """Yield every session of ours whose folder is there, the newest first."""
    try:
        found = list(sessions_folder().iterdir())
    except OSError:
        return
    for path in sorted(filter(is_owned_by_user, found), key=_modified_at, reverse=True):
        yield Session(path)


def collect_garbage() -> None:
    """Remove what is left of sessions that ended long ago, or that is too much."""
    remove_stale_locks()
    kept = 0
    for session in all_sessions():  # the newest first: what is too much, is old
        try:
            kept += _collect(session, kept)
        except Exception as error:  # noqa: BLE001, PERF203 - one odd folder is no reason to leave the others
            _log.warning("Session %s was not swept: %s", session.id, logs.reason(error))


def _collect(session: Session, kept: int) -> int:
    """Note the end of a session that has died; remove one that ended; return its size in bytes.

    `kept`: the bytes of those that ended later.
    """
    about = session.read("session.json")
    is_of_this_host = session.is_of_this_host()
    if not about.get("ended"):
        if is_of_this_host and not (session.is_evaluator_running() or session.is_kernel_running()):
            why, died = session.death_reason()
            session.mark_ended(why, died=died)
        return 0
    size = 0
    if is_of_this_host:
        size = sum(path.stat().st_size for path in session.folder.glob("*") if path.is_file())
    is_too_much = is_of_this_host and kept + size > KEEP_BYTES
    if time.time() - float(about["ended"]) > KEEP_ENDED or is_too_much:
        shutil.rmtree(session.folder, ignore_errors=True)
    return size


def find_sessions(kernel_id: str, session_id: str = "") -> Iterator[Session]:
    """Yield the session with this id or, without one, those of this Jupyter kernel."""
    for session in all_sessions():
        about = session.read("session.json")
        is_of_kernel = bool(kernel_id) and about.get("kernel_id") == kernel_id
        is_meant = session.id == session_id if session_id else is_of_kernel
        if is_meant and not about.get("ended"):
            yield session
