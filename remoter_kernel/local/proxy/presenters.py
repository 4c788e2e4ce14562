"""Shows a person how requests and the session are: a notice, a line, a busy state.

They observe the table of requests and the link, and speak in cells.

Text, and not a display: a console, too, can take it away again. A console shows text when
its line ends, and not before. It hears a cell only once that is busy.

What a person hears once of the session they have got: a line above the first cell's output. It
stays there. Cells that show nothing (silent ones) do not use it up.
"""

from __future__ import annotations

import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.local.proxy.request_queries import remote_cells, shows_output
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.plain_text import plain_text
from remoter_kernel.protocol.requests import BUSY, Request, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remoter_kernel.local.launch.launcher import SessionInfo
    from remoter_kernel.local.proxy.replies import Publish
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.requests import Requests

BUSY_WITHIN = 0.02  # seconds; a kernel that is near has long begun
NOTICE_AFTER = 0.4  # seconds: most cuts are mended before anyone could read it
ERASE = "\x1b[1A\x1b[2K\r"  # in a terminal: the line above the cursor
NO_REMOTE = (
    "[remoter] No remote is configured: this kernel runs on this machine, as you. "
    "`remoter add NAME HOST` adds one.\n"
)

WEEK = 6 * 24 * 3600.0  # seconds within which the name of a day says which


class EarlyBusy:
    """Says of a console's cell that it is busy, before the far kernel can have said so itself.

    The Jupyter console gives a cell 50 ms for its first sign of life. After that the end of the
    question before it (is this complete?) counts as the cell's: no output is shown until its end,
    and what it asks is never seen.
    """

    def __init__(self, reactor: Reactor, publish: Publish) -> None:
        self._reactor = reactor
        self._publish = publish
        self._console_client: list[bytes] = []  # who has asked last whether a cell is complete

    def on_move(self, request: Request, before: Stage) -> None:
        """A request has come: if it is the cell that a console has asked about, it should begin."""
        if before is not Stage.RECEIVED or not request.identities:
            return
        if request.type == "is_complete_request":
            self._console_client = request.identities
        elif request.is_cell and not request.is_over and self._console_client == request.identities:
            self._console_client = []
            self._reactor.call_later(BUSY_WITHIN, partial(self._send_busy, request))

    def _send_busy(self, request: Request) -> None:
        if request.is_open and BUSY not in request.states:
            self._publish("status", {"execution_state": BUSY}, request.header)


class WaitingNotices:
    """Says in cells that have not got to the far side that the link is down; takes it away."""

    def __init__(
        self,
        reactor: Reactor,
        publish: Publish,
        requests: Requests,
        link: Link,
        name: Callable[[], str],
    ) -> None:
        """`name` is the remote's."""
        self._reactor = reactor
        self._publish = publish
        self._requests = requests
        self._link = link
        self._name = name
        self._timers: dict[Request, Timer] = {}  # of cells that may have to say so
        self._shown: list[Request] = []  # cells that have said so

    def on_move(self, request: Request, _before: Stage) -> None:
        """Let a cell say so that was queued while the link is down."""
        if request.stage is Stage.QUEUED:
            self._show_soon([request])

    def on_link_state(self) -> None:
        """Let cells that have not got to the far side say so, or say so no more."""
        if self._link.state in {LinkState.UP, LinkState.FAILED}:
            self._clear()
        else:
            self._show_soon(self._requests.at(Stage.QUEUED, Stage.SENT))

    def show_slow_host(self, sentence: str) -> None:
        """Say in the first cell that waits why the way there takes long."""
        waiting = self._requests.at(Stage.QUEUED, Stage.SENT)
        cell = next((each for each in waiting if shows_output(each) and not each.is_here), None)
        if cell is not None:
            text = f"[remoter] {self._name()}: {sentence}\n"
            self._publish("status", {"execution_state": BUSY}, cell.header)
            self._publish("stream", {"name": "stderr", "text": text}, cell.header)

    def _show_soon(self, requests: Iterable[Request]) -> None:
        if self._link.state in {LinkState.UP, LinkState.FAILED} or not self._link.ever_connected:
            return
        for request in requests:
            if shows_output(request) and not request.is_here and request not in self._timers:
                # A console that has heard nothing of its cell takes the end of the question
                # before it (is this complete?) for the cell's, and looks at outputs no more.
                self._publish("status", {"execution_state": BUSY}, request.header)
                show = partial(self._show, request)
                self._timers[request] = self._reactor.call_later(NOTICE_AFTER, show)

    def _show(self, request: Request) -> None:
        if not request.is_over:
            self._shown.append(request)
            text = f"Waiting for the link to {self._name()} …\n"
            self._publish("stream", {"name": "stdout", "text": text}, request.header)

    def _clear(self) -> None:
        """Take all notices away: the link is there, or will not come by itself."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        shown, self._shown = self._shown, []
        for request in shown:
            self._publish("stream", {"name": "stdout", "text": ERASE}, request.header)
            self._publish("clear_output", {"wait": False}, request.header)


class RunsLocallyNotice:
    """Says, once and before it runs, that a cell runs on this machine for want of a remote."""

    def __init__(self, publish: Publish, requests: Requests, is_here: Callable[[], bool]) -> None:
        """`is_here`: is it so that there is no remote?"""
        self._publish = publish
        self._requests = requests
        self._is_here = is_here
        self._is_shown = False

    def on_move(self, request: Request, _before: Stage) -> None:
        """A cell is on its way."""
        if request.stage is Stage.QUEUED:
            self._show_in([request])

    def on_link_state(self) -> None:
        """It may be known only now that there is no remote."""
        self._show_in(remote_cells(self._requests))

    def _show_in(self, requests: Iterable[Request]) -> None:
        """Say it in the first of these that may show something."""
        if self._is_shown or not self._is_here():
            return
        cell = next((each for each in requests if shows_output(each)), None)
        if cell is not None:
            self._is_shown = True
            self._publish("status", {"execution_state": BUSY}, cell.header)
            self._publish("stream", {"name": "stderr", "text": NO_REMOTE}, cell.header)


class FirstCellNotice:
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
