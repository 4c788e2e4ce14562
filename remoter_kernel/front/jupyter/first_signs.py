"""Tells a cell's client that it is being dealt with, before the far kernel can have said so.

The Jupyter console gives a cell 50 ms for its first sign of life. After that the end of the
question before it (is this complete?) counts as the cell's: no output is shown until its end,
and what it asks is never seen.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.wire.messages import PARENT, header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor, Timer

WITHIN = 0.02  # seconds; a kernel that is near has long begun


class FirstSigns:
    """The cells of consoles of which nothing was heard yet."""

    def __init__(
        self,
        reactor: Reactor,
        publish: Callable[[str, dict[str, Any], dict[str, Any]], None],
        has_reply: Callable[[str], bool],
    ) -> None:
        """Remember; `publish(kind, content, header)` speaks in a cell.

        `has_reply`: is a cell over, by its message id, on whichever side it was?
        """
        self._reactor = reactor
        self._publish = publish
        self._has_reply = has_reply
        self._console: list[bytes] = []  # who has asked last whether a cell is complete
        self._awaited: dict[str, Timer] = {}  # by message id

    def note_question(self, client: list[bytes]) -> None:
        """A client has asked whether its next cell is complete."""
        self._console = client

    def expect(self, client: list[bytes], header: dict[str, Any]) -> None:
        """A cell has come: if it is what a console has asked about, it should begin."""
        if client == self._console:
            self._console = []
            name = str(header.get("msg_id", ""))
            self._awaited[name] = self._reactor.later(WITHIN, partial(self._say, name, header))

    def hear(self, parts: Sequence[Bytes]) -> None:
        """Look at a message to all: is it the sign?"""
        if self._awaited:
            timer = self._awaited.pop(str(header_of(parts[PARENT]).get("msg_id", "")), None)
            if timer:
                timer.cancel()

    def _say(self, name: str, header: dict[str, Any]) -> None:
        if self._awaited.pop(name, None) and not self._has_reply(name):
            self._publish("status", {"execution_state": "busy"}, header)
