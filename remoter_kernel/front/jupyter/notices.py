"""What the front itself tells in a cell: that it waits for the link, or runs on this machine.

Text, and not a display: a console, too, can take it away again. A console shows text when
its line ends, and not before.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from remoter_kernel.front.session.link import State
from remoter_kernel.wire.messages import content_of, is_unseen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.front.session.link import Link
    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor, Timer

AFTER = 0.4  # seconds: most cuts are mended before anyone could read it
ERASE = "\x1b[1A\x1b[2K\r"  # in a terminal: the line above the cursor
NO_REMOTE = (
    "[remoter] No remote is configured: this kernel runs on this machine, as you. "
    "`remoter add NAME HOST` adds one.\n"
)


class Asked(Protocol):
    """A request that has no reply yet."""

    header: dict[str, Any]
    parts: Sequence[Bytes]
    number: int  # in the link's outbox


class Notices:
    """The cells that wait, and those of them that say so."""

    def __init__(
        self,
        reactor: Reactor,
        publish: Callable[[str, dict[str, Any], dict[str, Any]], None],
        name: Callable[[], str],
    ) -> None:
        """Remember; `publish(kind, content, header)` speaks in a cell, `name` is the remote's."""
        self._reactor = reactor
        self._publish = publish
        self._name = name
        self._waiting: dict[str, Timer] = {}  # by message id
        self._shown: dict[str, dict[str, Any]] = {}  # headers, by message id

    def look(self, link: Link, requests: Iterable[Asked]) -> None:
        """Let cells that have not got to the far side say so, or say so no more."""
        if link.state in {State.UP, State.FAILED}:
            self._clear()
        elif link.has_met:
            for request in requests:
                if is_cell(request) and link.holds(request.number):
                    self._add(request.header)

    def _add(self, header: dict[str, Any]) -> None:
        """Let a cell say that it waits, if it still does after a moment."""
        name = str(header.get("msg_id", ""))
        if name not in self._waiting:
            # A console that has heard nothing of its cell takes the end of the question
            # before it (is this complete?) for the cell's, and looks at outputs no more.
            self._publish("status", {"execution_state": "busy"}, header)
            self._waiting[name] = self._reactor.later(AFTER, partial(self._show, name, header))

    def _show(self, name: str, header: dict[str, Any]) -> None:
        self._shown[name] = header
        text = f"Waiting for the link to {self._name()} …\n"
        self._publish("stream", {"name": "stdout", "text": text}, header)

    def _clear(self) -> None:
        """Take all notices away: the link is there, or will not come by itself."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        shown, self._shown = self._shown, {}
        for header in shown.values():
            self._publish("stream", {"name": "stdout", "text": ERASE}, header)
            self._publish("clear_output", {"wait": False}, header)


class NoRemote:
    """Says, once and before it runs, that a cell runs on this machine for want of a remote."""

    def __init__(self, publish: Callable[[str, dict[str, Any], dict[str, Any]], None]) -> None:
        """Remember; `publish(kind, content, header)` speaks in a cell."""
        self._publish = publish
        self._is_told = False

    def tell(self, requests: Iterable[Asked]) -> None:
        """Say it in the first of these that is a cell."""
        header = next((each.header for each in requests if is_cell(each)), None)
        if header is not None and not self._is_told:
            self._is_told = True
            # A console hears a cell only once that is busy.
            self._publish("status", {"execution_state": "busy"}, header)
            self._publish("stream", {"name": "stderr", "text": NO_REMOTE}, header)


def is_cell(request: Asked) -> bool:
    """Is this a cell that may show something?"""
    is_asked_to_run = request.header.get("msg_type") == "execute_request"
    return is_asked_to_run and not is_unseen(content_of(request.parts))
