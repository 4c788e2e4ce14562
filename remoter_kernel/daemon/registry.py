"""Which sessions live on this host: one folder each, alive if it answers.

Only the host that a session runs on may judge whether it is dead: a home can be shared
between machines, and another machine's process numbers mean nothing here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_WITHIN = 2.0  # seconds
KEEP_ENDED = 14 * 24 * 3600.0  # seconds


def sessions_folder() -> Path:
    """Return where the sessions of this user are kept."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - keeps "~" when there is no home
    return Path(data) / "remoter-kernel" / "sessions"


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of ours; one that is missing or torn is empty."""
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return words if isinstance(words, dict) else {}


def write_json(path: Path, words: dict[str, Any]) -> None:
    """Write a file of ours so that it is seen whole or not at all; mode 0600."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(str(beside), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(words, file)
    beside.replace(path)


def boot_id() -> str:
    """Return what changes when this machine starts anew; empty where nothing says it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def started_at(pid: int) -> str:
    """Return when a process began, in words that only need to be compared; empty: no process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    asked = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()


class Session:
    """One session's folder and what it says."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder; its name is the session's id."""
        self.folder = folder
        self.id = folder.name

    @classmethod
    def create(cls, about: dict[str, Any]) -> Session:
        """Make a folder with an id of its own; mode 0700."""
        sessions_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            folder = sessions_folder() / secrets.token_hex(3)
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
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

    def claim(self, port: int, public_key: str) -> None:
        """Say which process answers for this session, and where."""
        pid = os.getpid()
        words = {
            "host": socket.gethostname(),
            "boot": boot_id(),
            "pid": pid,
            "started": started_at(pid),
            "port": port,
            "public_key": public_key,
        }
        self.write("door.json", words)

    def admit(self, client_key: str) -> None:
        """Let the front with this public key (Z85) in."""
        (self.folder / "keys" / client_key.encode().hex()).touch(mode=0o600)

    def admits(self, client_key: bytes) -> bool:
        """Was this public key (Z85) registered through a login?"""
        return (self.folder / "keys" / client_key.hex()).exists()

    def end(self, why: str) -> None:
        """Note that this session has ended, when and why: nobody joins it any more."""
        self.write("session.json", {**self.read("session.json"), "ended": time.time(), "why": why})

    def forget_keys(self) -> None:
        """Remove what let fronts and the evaluator in; the journal stays."""
        for path in (self.folder / "connection.json", *(self.folder / "keys").glob("*")):
            path.unlink(missing_ok=True)

    def is_here(self) -> bool:
        """Does this session belong to this host, as it was started last?"""
        door = self.read("door.json")
        return (door.get("host"), door.get("boot")) == (socket.gethostname(), boot_id())

    def is_alive(self) -> bool:
        """Does its evaluator run here and answer?"""
        door = self.read("door.json")
        if not (door and self.is_here()) or self.read("session.json").get("ended"):
            return False
        if started_at(int(door["pid"])) != door["started"]:
            return False
        try:
            with socket.create_connection(("127.0.0.1", int(door["port"])), ANSWER_WITHIN):
                return True
        except OSError:
            return False


def all_sessions() -> Iterator[Session]:
    """Yield every session whose folder is there, the newest first."""
    try:
        folders = [path for path in sessions_folder().iterdir() if path.is_dir()]
    except OSError:
        return
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        yield Session(folder)


def sweep() -> None:
    """Remove what is left of sessions that ended long ago."""
    for session in all_sessions():
        ended = session.read("session.json").get("ended")
        if ended and time.time() - float(ended) > KEEP_ENDED:
            shutil.rmtree(session.folder, ignore_errors=True)


def find_session(kernel_id: str, session_id: str = "") -> Session | None:
    """Find the living session with this id or, without one, of this Jupyter kernel."""
    for session in all_sessions():
        is_meant = (
            session.id == session_id
            if session_id
            else bool(kernel_id) and session.read("session.json").get("kernel_id") == kernel_id
        )
        if is_meant and session.is_alive():
            return session
    return None
