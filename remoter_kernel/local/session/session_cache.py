"""Which sessions were seen last on each remote: for shell completion, which must not log in.

A shell may put these words on its command line: what is no session id is not written, and
not read either, for another version may have written it.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.config.remotes import state_folder
from remoter_kernel.local.config.remotes_toml import is_name
from remoter_kernel.local.private_files import CannotWrite, write_private_file
from remoter_kernel.plain_text import is_session_id, plain_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FIELDS = ("id", "state", "notebook", "script")
MOST_SESSIONS = 100  # of one remote, the newest
# Raised for a file that is gone, torn by a full disk, or not ours.
UNUSABLE_FILE = (OSError, ValueError, AttributeError, TypeError, RecursionError)


def store_sessions(remote: str, sessions: Iterable[dict[str, Any]]) -> None:
    """Keep what a remote has answered about its sessions."""
    kept = [{key: each.get(key) or "" for key in FIELDS} for each in sessions]
    kept = [each for each in kept if is_session_id(each["id"])][:MOST_SESSIONS]
    if is_name(remote) and kept != load_sessions().get(remote, []):
        with contextlib.suppress(CannotWrite):  # completion then offers less
            write_private_file(_sessions_cache() / f"{remote}.json", json.dumps(kept))


def add_session(remote: str, session: str, script: str = "") -> None:
    """Add a session that has just begun."""
    known = [each for each in load_sessions().get(remote, []) if each["id"] != session]
    store_sessions(remote, [{"id": session, "script": script}, *known])


def discard_sessions(remote: str) -> None:
    """Forget the sessions of a remote."""
    (_sessions_cache() / f"{remote}.json").unlink(missing_ok=True)


def load_sessions() -> dict[str, list[dict[str, str]]]:
    """Return what was seen, by remote."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(_sessions_cache().glob("*.json")):
        with contextlib.suppress(*UNUSABLE_FILE):
            sessions = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem] = [
                {key: plain_text(each.get(key, "")) for key in FIELDS}
                for each in sessions
                if is_session_id(each.get("id"))
            ]
    return found


def _sessions_cache() -> Path:
    return state_folder() / "sessions"
