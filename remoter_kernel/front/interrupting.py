"""Carries Jupyter's interrupt to what it is meant for: a question, a cell here, or one there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from remoter_kernel.wire.frames import Channel, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remoter_kernel.front.asker import Asker
    from remoter_kernel.front.link import Link
    from remoter_kernel.front.mouth import Route
    from remoter_kernel.front.turns import Turns
    from remoter_kernel.wire.reactor import Reactor, Timer

HOLD = 0.15  # seconds


class Interrupting:
    """What an interrupt ends."""

    def __init__(
        self,
        reactor: Reactor,
        link: Link,
        asker: Asker,
        turns: Turns,
        cells: Callable[[], Iterable[Route]],
    ) -> None:
        """Remember; `cells` are those there without a reply, the first of which runs."""
        self._reactor = reactor
        self._link = link
        self._asker = asker
        self._turns = turns
        self._cells = cells
        self._held: Timer | None = None

    def interrupt(self, *, is_held: bool) -> None:
        """Interrupt at once; held: wait whether a shutdown follows, which lets all go on."""
        is_here = self._turns.interrupt()  # both: it may be what has asked
        if self._asker.call_off() or is_here:
            return
        cells = [str(cell.header.get("msg_id", "")) for cell in self._cells()]
        if self._link.pacer:
            self._link.pacer.interrupt(*cells[:1])
        if is_held:
            self._held = self._reactor.later(HOLD, partial(self._order, cells))
        else:
            self._order(cells)

    def drop(self) -> None:
        """Let the one that is held not be carried out: Jupyter sends one before each shutdown."""
        if self._held:
            self._held.cancel()

    def _order(self, cells: list[str]) -> None:
        self._link.say(Channel.ORDER, [to_json({"order": "interrupt", "cells": cells})])
