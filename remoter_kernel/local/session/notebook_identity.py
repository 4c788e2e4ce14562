"""What a front says of itself when it asks for a session: which notebook it is for, and where."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.config.remotes import state_folder
from remoter_kernel.local.private_files import CannotWrite, file_lock
from remoter_kernel.local.session.machine import live_kernel_ids
from remoter_kernel.local.session.notebook_path import cell_fingerprints, is_notebook_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LOCK_DIGITS = 2  # hex digits: that many files at most, however many notebooks there are


@dataclass(frozen=True)
class NotebookIdentity:
    """The words of a wish that may lead to the session of a notebook."""

    notebook: str = ""
    machine: str = ""  # empty: nobody could tell later whether this front lives

    @contextlib.contextmanager
    def request_fields(self) -> Iterator[dict[str, Any]]:
        """Lend the words; until they are given back, no other front claims for this notebook.

        Which fronts live is only true for a moment: two that looked at once would both join.
        """
        words: dict[str, Any] = {"notebook": self.notebook, "laptop": self.machine}
        with contextlib.ExitStack() as turn:
            if self.machine and is_notebook_file(self.notebook):
                with contextlib.suppress(OSError, CannotWrite):
                    turn.enter_context(file_lock(self._lock_path()))
                    words["cells"] = cell_fingerprints(Path(self.notebook))
                    words["fronts"] = tuple(sorted(live_kernel_ids()))
            yield words

    def _lock_path(self) -> Path:
        name = hashlib.sha256(self.notebook.encode()).hexdigest()[:LOCK_DIGITS]
        return state_folder() / "turns" / name


def mark_local_files(others: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Say of each session whether its notebook's file is on this machine. Waits for disks."""
    return tuple(
        {**each, "is_file_here": _may_exist(str(each.get("notebook", "")))} for each in others
    )


def _may_exist(path: str) -> bool:
    """Is there such a file? No other machine is asked because one there says so."""
    if path.startswith(("\\\\", "//")):  # a share of Windows, where a login would be tried
        return True
    try:
        return Path(path).exists()
    except OSError:  # longer than a path can be
        return False
