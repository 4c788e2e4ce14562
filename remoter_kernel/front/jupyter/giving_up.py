"""What becomes of requests when the link does not come back by itself.

What never left this side is answered with the reason. What may be running there is not touched,
unless its session is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.errors import NoSuchSession, RemoterError, TooLarge
from remoter_kernel.front.jupyter.notices import is_cell
from remoter_kernel.front.questions import NeedsPerson

if TYPE_CHECKING:
    from remoter_kernel.front.jupyter.asker import Asker
    from remoter_kernel.front.jupyter.first_words import FirstWords
    from remoter_kernel.front.jupyter.mouth import Mouth, Route
    from remoter_kernel.front.session.link import Link

RUN_A_CELL = "Run a cell to be asked."


class GivingUp:
    """Answers in the far kernel's place."""

    def __init__(
        self,
        link: Link,
        mouth: Mouth,
        asker: Asker,
        first_words: FirstWords,
        routes: dict[str, Route],
    ) -> None:
        """Remember; `routes` are the requests without a reply, by their ids."""
        self.ending: Route | None = None  # the last that got its reply: its idle comes separately
        self._link = link
        self._mouth = mouth
        self._asker = asker
        self._first_words = first_words
        self._routes = routes

    def pass_on(self, route: Route) -> bool:
        """Say a request to the session; one that cannot be carried is answered here: False."""
        try:
            route.number = self._link.say(route.channel, list(route.parts))
        except TooLarge as error:
            self._mouth.refuse(route, error)
            return False
        self._routes[route.header.get("msg_id", "")] = route
        return True

    def answer(self, error: RemoterError, *, is_over: bool, is_asked: bool) -> None:
        """Answer what will not be answered from there.

        `is_over`: nothing of the session will ever come; `is_asked`: are there clients that
        allow questions? One that never does (nbclient) has nobody who would run another cell.
        """
        if isinstance(error, NeedsPerson):
            if self._asker.has_somebody():  # a cell was run while nobody could be asked
                self._link.wake()
                return
            self._put_off(error, is_asked=is_asked)
            error.advice = " ".join([error.advice.removesuffix(RUN_A_CELL), RUN_A_CELL]).strip()
        is_over |= isinstance(error, NoSuchSession)
        for asker, route in list(self._routes.items()):
            was_withdrawn = self._link.withdraw(route.channel, route.number)
            if was_withdrawn or is_over or not self._link.has_met:
                del self._routes[asker]
                self._mouth.answer_error(route, error)
            elif is_cell(route):  # it may be running there, and does not say so any more
                self._tell(route, str(error))
        if is_over and self.ending:  # its idle may never have come, and will not any more
            self._mouth.publish("status", {"execution_state": "idle"}, self.ending.header)
            self.ending = None

    def _put_off(self, error: RemoterError, *, is_asked: bool) -> None:
        """Nobody can be asked for now: end what need not wait."""
        for asker, route in list(self._routes.items()):
            is_unsaid = self._link.withdraw(route.channel, route.number)
            if is_unsaid and self._first_words.answer(route, is_kept=not self._link.has_met):
                del self._routes[asker]
            elif is_unsaid or not is_asked:
                del self._routes[asker]
                self._mouth.answer_error(route, error)
            elif is_cell(route):
                where = f"{error.remote}: " if error.remote else ""
                self._tell(route, f"{where}{error.what} Run a cell to be asked.")

    def _tell(self, route: Route, sentence: str) -> None:
        words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
        self._mouth.publish("stream", words, route.header)
