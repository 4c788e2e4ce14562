"""What a person sees while a cell waits: busy at once, a line that the link is down, where it runs.

They observe the table of requests and the link, and speak in cells.

Text, and not a display: a console, too, can take it away again. A console shows text when
its line ends, and not before. It hears a cell only once that is busy.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from remoter_kernel.local.proxy.request_queries import remote_cells, shows_output
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.requests import BUSY, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remoter_kernel.local.proxy.replies import Publish
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.requests import Request, Requests

BUSY_WITHIN = 0.02  # seconds; a kernel that is near has long begun
NOTICE_AFTER = 0.4  # seconds: most cuts are mended before anyone could read it
ERASE = "\x1b[1A\x1b[2K\r"  # in a terminal: the line above the cursor
NO_REMOTE = (
    "[remoter] No remote is configured: this kernel runs on this machine, as you. "
    "`remoter add NAME HOST` adds one.\n"
)


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


class NoRemoteNotice:
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
