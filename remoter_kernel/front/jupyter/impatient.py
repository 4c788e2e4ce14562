"""Questions that a person waits for while typing, and a far side that is not there yet."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from remoter_kernel.front.jupyter import answers
from remoter_kernel.wire.messages import content_of

if TYPE_CHECKING:
    from remoter_kernel.front.jupyter.mouth import Mouth, Route
    from remoter_kernel.wire.reactor import Reactor

ANSWER_WITHIN = 0.7  # seconds: jupyter console gives a question one, and mistakes a late answer


class Impatient:
    """Those that wait for the far side; an empty answer is better for them than a late one."""

    def __init__(self, reactor: Reactor, mouth: Mouth) -> None:
        """Remember."""
        self._reactor = reactor
        self._mouth = mouth
        self._held: list[Route] = []

    def hold(self, route: Route) -> None:
        """Let one wait, for a moment."""
        self._held.append(route)
        self._reactor.later(ANSWER_WITHIN, partial(self._answer, route))

    def take(self) -> list[Route]:
        """Return what waits still, once: now it can be answered there."""
        held, self._held = self._held, []
        return held

    def answer_empty(self, route: Route) -> None:
        """Answer with nothing, which harms nobody; where there is no such answer, not at all."""
        kind = str(route.header.get("msg_type", ""))
        empty = answers.empty_reply(kind, content_of(route.parts))
        if empty:
            self._mouth.reply(route, empty)

    def _answer(self, route: Route) -> None:
        if route in self._held:
            self._held.remove(route)
            self.answer_empty(route)
