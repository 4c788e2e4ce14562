"""Shows a person how requests and the session are: a notice, a line, a busy state.

They observe the table of requests and the link, and print in cells: as text, and not as a display,
since a console can take only text away again. A console shows text when its line ends, and not
before; and it looks at what a cell prints only once that is busy.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.local.proxy.request_queries import remote_cells, shows_output
from remoter_kernel.local.proxy.sockets import notice_text
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.plain_text import plain_text
from remoter_kernel.protocol.requests import BUSY, Request, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remoter_kernel.local.launch.launcher import SessionInfo
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.requests import Requests

BUSY_WITHIN = 0.02  # seconds; a kernel that is near has long begun
NOTICE_AFTER = 0.4  # seconds: most cuts are mended before anyone could read it
ERASE = "\x1b[1A\x1b[2K\r"  # in a terminal: the line above the cursor
NO_REMOTE = notice_text(
    "No remote is configured: this kernel runs on this machine, as you. "
    "`remoter add NAME HOST` adds one."
)
WEEK = 6 * 24 * 3600.0  # seconds within which the name of a day says which


@dataclass
class EarlyBusy:
    """Says of a console's cell that it is busy, before the remote kernel can have said so itself.

    The Jupyter console gives a cell 50 ms for its first message. After that it takes the idle of
    the request before it (is this complete?) for the cell's: it prints no output until the cell
    ends, and never shows an input request.
    """

    reactor: Reactor
    replies: ReplySender
    _console_client: list[bytes] = field(default_factory=list)  # who has sent that request last

    def on_move(self, request: Request, before: Stage) -> None:
        """If this is the cell that a console has asked about, it should begin."""
        if before is not Stage.RECEIVED or not request.identities:
            return
        if request.type == "is_complete_request":
            # A notebook's page never asks this: its cells are left alone.
            self._console_client = request.identities
        elif request.is_cell and not request.is_over and self._console_client == request.identities:
            self._console_client = []
            self.reactor.call_later(BUSY_WITHIN, partial(self._send_busy, request))

    def _send_busy(self, request: Request) -> None:
        if request.is_open and BUSY not in request.states:
            self.replies.send_state(request, BUSY)


@dataclass
class WaitingNotices:
    """Says in cells that wait for the link that it is down; takes that away when it is not."""

    reactor: Reactor
    replies: ReplySender
    requests: Requests
    link: Link
    remote_name: Callable[[], str]
    _timers: dict[Request, Timer] = field(default_factory=dict)  # of cells that may have to say so
    _shown_in: list[Request] = field(default_factory=list)

    def on_move(self, request: Request, _before: Stage) -> None:
        """A cell that was queued while the link is down is to say so."""
        if request.stage is Stage.QUEUED:
            self._show_soon([request])

    def on_link_state(self) -> None:
        """Show the notices, or take them away."""
        if self.link.state in {LinkState.UP, LinkState.FAILED}:
            self._clear()
        else:
            self._show_soon(self.requests.at(Stage.QUEUED, Stage.SENT))

    def show_slow_host(self, sentence: str) -> None:
        """Say in the first cell that waits why the way there takes long."""
        waiting = self.requests.at(Stage.QUEUED, Stage.SENT)
        text = notice_text(f"{self.remote_name()}: {sentence}")
        show_in_first(self.replies, (each for each in waiting if not each.is_here), text)

    def _show_soon(self, requests: Iterable[Request]) -> None:
        # A first login takes its time, and is no link that was lost.
        if self.link.state in {LinkState.UP, LinkState.FAILED} or not self.link.ever_connected:
            return
        for request in requests:
            if shows_output(request) and not request.is_here and request not in self._timers:
                self.replies.send_state(request, BUSY)  # for consoles, see `EarlyBusy`
                show = partial(self._show, request)
                # Kept after it was shown, too: one notice for each cell.
                self._timers[request] = self.reactor.call_later(NOTICE_AFTER, show)

    def _show(self, request: Request) -> None:
        if not request.is_over:
            self._shown_in.append(request)
            text = f"Waiting for the link to {self.remote_name()} …\n"
            self.replies.write(request.header, text, "stdout")

    def _clear(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        shown_in, self._shown_in = self._shown_in, []
        for request in shown_in:
            # A terminal erases a line; a page drops what the cell has shown so far. Each passes
            # over what the other one needs.
            self.replies.write(request.header, ERASE, "stdout")
            self.replies.publish("clear_output", {"wait": False}, request.header)


@dataclass
class FirstCellNotice:
    """A line that a person is told once, above the first output of a cell that shows anything."""

    replies: ReplySender
    requests: Requests
    may_show: Callable[[], bool]
    line: str = ""

    def on_move(self, request: Request, _before: Stage) -> None:
        """Show it in a cell that is on its way."""
        if self.line and request.stage is Stage.QUEUED and self.may_show():
            self._show_in([request])

    def on_link_state(self) -> None:
        """Show it in a cell that waits, if it may be shown by now."""
        if self.line and self.may_show():
            self._show_in(remote_cells(self.requests))

    def _show_in(self, requests: Iterable[Request]) -> None:
        if show_in_first(self.replies, requests, self.line):
            self.line = ""


@dataclass
class SessionBanner(FirstCellNotice):
    """Tells which session it is, and its notices: once, however often the link comes back."""

    _seen_sessions: set[str] = field(default_factory=set)  # their ids
    _session_info: SessionInfo | None = None

    def on_session(self, address: SessionInfo, notebook: str, *, is_busy: bool) -> None:
        """Note which session it is, and whether a cell is running there."""
        if address.session not in self._seen_sessions:
            self._seen_sessions.add(address.session)
            if address.begun:
                self.line = joined_text(address, notebook, time.time(), is_busy=is_busy)
            else:
                self.line = other_sessions_text(address, notebook)
        if address is not self._session_info:  # each login brings another one, with its notices
            self._session_info = address
            self.line += notice_text(*address.notices)


def show_in_first(replies: ReplySender, requests: Iterable[Request], text: str) -> bool:
    """Print text in the first of these that shows anything; return whether there is one."""
    cell = next((each for each in requests if shows_output(each)), None)
    if cell is not None:
        replies.send_state(cell, BUSY)  # a console looks at a cell only once that is busy
        replies.write(cell.header, text)
    return cell is not None


# The texts (pure) -----------------------------------------------------------------------------


def joined_text(address: SessionInfo, notebook: str, now: float, *, is_busy: bool) -> str:
    """Tell that this is the session that the notebook had before; `now`: seconds since 1970."""
    # By the clock of this machine, as the person reads it.
    days = "%a" if now - address.begun < WEEK else "%Y-%m-%d"
    begun = time.strftime(f"{days} %H:%M", time.localtime(address.begun))
    running = " A cell is still running there." if is_busy else ""
    return notice_text(
        f"Joined session {address.session} of this notebook, begun {begun}.{running} "
        f"What came meanwhile: %remoter outputs, or remoter outputs {address.session} "
        f"--into {_shell_quoted(Path(notebook).name)}"
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
        several = f"Sessions {', '.join(own[:-1])} and {own[-1]} of this notebook are"
        which = f"Session {own[0]} of this notebook is" if len(own) == 1 else several
    elif moved:
        own = [moved[0]["session"]]
        file = Path(moved[0].get("notebook", "")).name
        which = f"Session {own[0]} has cells of this notebook, as {file}, and is"
    else:
        return ""
    return notice_text(f"{which} there, too: remoter attach {own[0]}")
