"""The logs of this side's processes: one file each, in the state folder; old ones go.

A file is named by what its process is, its remote, when it began (UTC) and its number:
`proxy-NAME-20260102T030405-678.log`. One that is full goes on as `….log.1`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from remoter_kernel import logs
from remoter_kernel.local.private_files import state_folder

if TYPE_CHECKING:
    from pathlib import Path

KEPT_FOR = 14 * 24 * 3600.0  # seconds after the process has written its last line
MOST_KEPT = 20  # of processes that have ended, of each kind
LONGEST_NAME = 60  # characters of a remote's name
_NAME = re.compile(r"(proxy|keeper|command)-(?:(.+)-)?(\d{8}T\d{6})-(\d+)\.log")


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

    def text(self) -> str:
        """Return all that is kept of it."""
        found = ""
        for path in (self.path.with_name(f"{self.path.name}.1"), self.path):
            with contextlib.suppress(OSError):
                if path.is_file():  # what is none may let us wait for ever
                    found += path.read_text(encoding="utf-8", errors="replace")
        return found


def begin_log_file(kind: str, remote: str | None = None) -> None:
    """Log what this process does: a "proxy", a "keeper", or a "command"."""
    clock = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
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
        if log.is_open:
            continue
        kept[log.kind] += 1
        if kept[log.kind] > MOST_KEPT or time.time() - log.changed > KEPT_FOR:
            for path in (log.path, log.path.with_name(f"{log.path.name}.1")):
                with contextlib.suppress(OSError):
                    path.unlink()
