"""What a person hears once of the session they have got: a line above the first cell's output.

It stays there. Cells that show nothing (silent ones) do not use it up.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.local.proxy.request_queries import shows_output
from remoter_kernel.plain_text import plain_text
from remoter_kernel.protocol.requests import BUSY, Request, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remoter_kernel.local.launch.launcher import SessionInfo
    from remoter_kernel.local.proxy.replies import Publish

WEEK = 6 * 24 * 3600.0  # seconds within which the name of a day says which


class SessionBanner:
    """A line, until it is told."""

    def __init__(self, publish: Publish, is_ready: Callable[[], bool]) -> None:
        """`is_ready`: is the far kernel there, as far as is known?"""
        self._publish = publish
        self._is_ready = is_ready
        self._seen_sessions: set[str] = set()  # sessions of which it was heard how they were found
        self._session_info: SessionInfo | None = None
        self._line = ""

    def on_session(self, address: SessionInfo, notebook: str, *, is_busy: bool) -> None:
        """Hear which session it is, and whether a cell is running there."""
        if address.session not in self._seen_sessions:
            self._seen_sessions.add(address.session)
            if address.begun:
                self._line = joined_text(address, notebook, time.time(), is_busy=is_busy)
            else:
                self._line = other_sessions_text(address, notebook)
        if address is not self._session_info:  # else they were told when the link was up before
            self._session_info = address
            self._line += "".join(f"[remoter] {notice}\n" for notice in address.notices)

    def on_move(self, request: Request, _before: Stage) -> None:
        """A cell is on its way to a kernel that is there."""
        if self._line and request.stage is Stage.QUEUED and self._is_ready():
            self.show_in([request])

    def show_in(self, requests: Iterable[Request]) -> None:
        """Say it in the first of these that is a cell."""
        cell = next((each for each in requests if shows_output(each)), None) if self._line else None
        if cell is not None:
            line, self._line = self._line, ""
            # A console hears a cell only once that is busy.
            self._publish("status", {"execution_state": BUSY}, cell.header)
            self._publish("stream", {"name": "stderr", "text": line}, cell.header)


def joined_text(address: SessionInfo, notebook: str, now: float, *, is_busy: bool) -> str:
    """Tell that this is the session that the notebook had before."""
    days = "%a" if now - address.begun < WEEK else "%Y-%m-%d"
    begun = time.strftime(f"{days} %H:%M", time.localtime(address.begun))
    running = " A cell is still running there." if is_busy else ""
    return (
        f"[remoter] Joined session {address.session} of this notebook, begun {begun}.{running} "
        f"What came meanwhile: %remoter outputs, or remoter outputs {address.session} "
        f"--into {_shell_quoted(Path(notebook).name)}\n"
    )


def _shell_quoted(name: str) -> str:
    """Write a file's name as a shell here takes it."""
    if not name.isprintable():
        return "NOTEBOOK.ipynb"
    return f'"{name}"' if sys.platform == "win32" and " " in name else shlex.quote(name)


def other_sessions_text(address: SessionInfo, notebook: str) -> str:
    """Tell of sessions that this one is not; of other notebooks only if their file is gone.

    Where it is there still, the notebook is a copy, and the session none of its business.
    """
    same = plain_text(notebook)  # as what comes from there is written
    own = [each["session"] for each in address.others if each.get("notebook") == same]
    moved = [
        each
        for each in address.others
        if each.get("notebook") != same and not each.get("is_file_here")
    ]
    if own:
        which = f"Session {own[0]} of this notebook is" if len(own) == 1 else _several_sessions(own)
    elif moved:
        own = [moved[0]["session"]]
        file = Path(moved[0].get("notebook", "")).name
        which = f"Session {own[0]} has cells of this notebook, as {file}, and is"
    else:
        return ""
    return f"[remoter] {which} there, too: remoter attach {own[0]}\n"


def _several_sessions(sessions: list[str]) -> str:
    return f"Sessions {', '.join(sessions[:-1])} and {sessions[-1]} of this notebook are"
