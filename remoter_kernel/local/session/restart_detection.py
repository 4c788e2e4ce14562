"""A client that ends a kernel and starts another at once means: restart it (VS Code).

Nothing in what it says tells that from closing a notebook and opening it again; the time
between the two does, and who has started both.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from remoter_kernel.local.config.remotes import state_folder
from remoter_kernel.local.private_files import CannotWrite, write_private_file

if TYPE_CHECKING:
    from pathlib import Path

RESTART_WITHIN = 5.0  # seconds from a front's end to the start of the next
KEPT_FOR = 3600.0  # seconds; what is older is of no use to anyone


class ProxyExit(NamedTuple):
    """A front that was ended without a word: which kernel it was, and of which session."""

    kernel_id: str
    session: str


def record_exit(remote: str, notebook: str, departure: ProxyExit) -> None:
    """Leave a sign of this front's end; one that cannot be left is no trouble."""
    try:
        write_private_file(_marker_path(remote, notebook), json.dumps(departure._asdict()))
    except (OSError, CannotWrite):
        return
    _remove_old()


def previous_exit(remote: str, notebook: str, started: float) -> ProxyExit | None:
    """Return the front that this one, `started` at that time (since 1970), was started for."""
    sign = _marker_path(remote, notebook)
    try:
        left = sign.stat().st_mtime
        words = json.loads(sign.read_text(encoding="utf-8"))
        sign.unlink()
        departure = ProxyExit(str(words["kernel_id"]), str(words["session"]))
        is_close = -1.0 < started - left < RESTART_WITHIN
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return departure if is_close else None


def _marker_path(remote: str, notebook: str) -> Path:
    who = json.dumps([os.getppid(), remote, notebook])
    return _markers_folder() / f"{hashlib.sha256(who.encode()).hexdigest()[:24]}.json"


def _markers_folder() -> Path:
    return state_folder() / "left"


def _remove_old() -> None:
    for sign in _markers_folder().glob("*.json"):
        try:
            if time.time() - sign.stat().st_mtime > KEPT_FOR:
                sign.unlink()
        except OSError:  # another front was quicker
            continue
