"""What a cell shows while it waits for a link that is down: a short line that goes away.

Text without a newline: a console, too, can take it away again, which it cannot do with
a display.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.wire.reactor import Reactor, Timer

AFTER = 0.4  # seconds: most cuts are mended before anyone could read it
ERASE = "\r\x1b[K"  # in a terminal: from the beginning of the line, all of it


class Notices:
    """The cells that wait, and those of them that say so."""

    def __init__(
        self, reactor: Reactor, publish: Callable[[str, dict[str, Any], dict[str, Any]], None]
    ) -> None:
        """Remember; `publish(kind, content, header)` says something under a request."""
        self._reactor = reactor
        self._publish = publish
        self._waiting: dict[str, Timer] = {}  # by message id
        self._shown: dict[str, dict[str, Any]] = {}  # headers, by message id

    def add(self, header: dict[str, Any], text: str) -> None:
        """Let the cell of this request say that it waits, if it still does after a moment."""
        name = str(header.get("msg_id", ""))
        self._waiting[name] = self._reactor.later(AFTER, partial(self._show, header, text))

    def clear(self) -> None:
        """Take all notices away: the link is there, or will not come by itself."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        shown, self._shown = self._shown, {}
        for header in shown.values():
            self._publish("stream", {"name": "stdout", "text": ERASE}, header)
            self._publish("clear_output", {"wait": False}, header)

    def _show(self, header: dict[str, Any], text: str) -> None:
        self._shown[str(header.get("msg_id", ""))] = header
        self._publish("stream", {"name": "stdout", "text": text}, header)
