"""Asks the person in the cell that waits, through Jupyter's own input box.

A login runs in a thread and may take as long as a person does; all else of the front goes on.
Where no cell waits that may be asked in, nobody is asked: the next one that is run asks.
"""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.front.jupyter.first_words import is_own_code
from remoter_kernel.front.questions import (
    NeedsPerson,
    NotAnswered,
    Prompt,
    Trust,
    about_host_key,
    asked_by,
)
from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import PARENT, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.front.jupyter.mouth import Mouth, Route
    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor

TRIES = 3  # at a word that is neither yes, nor once, nor no


class _Asked(NamedTuple):
    """A question that waits for its answer."""

    route: Route
    answer: queue.SimpleQueue[str | NotAnswered | NeedsPerson]
    name: str  # of the message that asked


class Asker:
    """Whom a login may ask (see `Questions`): whoever has run a cell that waits for it."""

    def __init__(
        self, reactor: Reactor, mouth: Mouth, routes: Callable[[], Iterable[Route]]
    ) -> None:
        """Remember; `routes` lists the requests without a reply, the oldest first."""
        self._reactor = reactor
        self._mouth = mouth
        self._routes = routes
        self._asked: _Asked | None = None
        self._names: set[str] = set()  # of all messages that asked
        self._busy: set[str] = set()  # cells that were told to be at work
        self._turn = threading.Lock()  # there is one input box

    # --- from the login's thread, or that of a cell which is answered here ---

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> Trust:
        """Ask whether a host's key is the right one."""
        text = f"{about_host_key(host, kind, fingerprint)} yes, once (do not remember it) or no:"
        for _ in range(TRIES):
            said = self._ask(text, is_hidden=False).strip().lower()
            if said in {each.value for each in Trust}:
                return Trust(said)
        return Trust.NO

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Ask what a server, or a key, wants to know."""
        texts = [f"{asked_by(host)}{prompt.text.strip()}" for prompt in prompts]
        if instruction and not texts:  # touch the token, say: nothing is to be typed
            self._reactor.call(partial(self._tell, f"{asked_by(host)}{instruction}"))
        elif instruction:
            texts[0] = f"{instruction}\n{texts[0]}"
        return [
            self._ask(text, is_hidden=not prompt.is_shown)
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def _tell(self, text: str) -> None:
        route = self._find()
        if route:
            words = {"name": "stderr", "text": f"{text}\n"}
            self._mouth.publish("stream", words, route.header)

    def has_somebody(self) -> bool:
        """Is there a cell that waits, and in which one may ask?"""
        return self._find() is not None

    def ask_in(self, cell: Route, text: str) -> str:
        """Ask in this very cell, which has said that it is at work; a RemoterError: no answer."""
        if not may_ask_in(cell):
            raise NeedsPerson("nobody can be asked in this cell.")
        self._busy.add(str(cell.header.get("msg_id", "")))
        return self._ask(text, is_hidden=False, cell=cell)

    def _ask(self, text: str, *, is_hidden: bool, cell: Route | None = None) -> str:
        answer: queue.SimpleQueue[str | NotAnswered | NeedsPerson] = queue.SimpleQueue()
        begin = partial(self._begin, f"{text} ", answer, is_hidden=is_hidden, cell=cell)
        with self._turn:
            self._reactor.call(begin)
            said = answer.get()
        if isinstance(said, str):
            return said
        raise said

    # --- from the front's thread ---

    def _find(self) -> Route | None:
        return next((route for route in list(self._routes()) if may_ask_in(route)), None)

    def _begin(
        self,
        text: str,
        answer: queue.SimpleQueue[str | NotAnswered | NeedsPerson],
        *,
        is_hidden: bool,
        cell: Route | None,
    ) -> None:
        route = cell or self._find()
        if route is None:
            message = "the login has a question, and no cell is waiting in which to ask it."
            answer.put(NeedsPerson(message, "Run a cell to be asked."))
            return
        name = str(route.header.get("msg_id", ""))
        if name not in self._busy:
            self._busy.add(name)
            self._mouth.publish("status", {"execution_state": "busy"}, route.header)
        asked = self._mouth.ask(route, {"prompt": text, "password": is_hidden})
        self._names.add(asked)
        self._asked = _Asked(route, answer, asked)

    @property
    def is_asking(self) -> bool:
        """Is a person being waited for?"""
        return self._asked is not None

    def hear(self, parts: Sequence[Bytes]) -> bool:
        """Take what was typed, if it was asked for here.

        A cell may have asked something itself before the link was lost: what answers that is
        not for the login. What comes late is for nobody. Not every client says which question
        it answers.
        """
        asked = self._asked
        parent = header_of(parts[PARENT]).get("msg_id")
        if asked is None or (
            parent and parent not in {asked.name, asked.route.header.get("msg_id")}
        ):
            return parent in self._names
        self._asked = None
        asked.answer.put(str(content_of(parts).get("value", "")))
        return True

    def call_off(self) -> bool:
        """Let a question go unanswered: the person has interrupted. False: there was none."""
        asked, self._asked = self._asked, None
        if asked is None:
            return False
        message = "the question of the login was not answered."
        asked.answer.put(NotAnswered(message, "Run a cell to be asked again."))
        return True


def may_ask_in(route: Route) -> bool:
    """Is this a cell of a person who can be asked?"""
    if route.channel is not Channel.SHELL or route.header.get("msg_type") != "execute_request":
        return False
    content: dict[str, Any] = content_of(route.parts)
    can_answer = content.get("allow_stdin", True) and not content.get("silent")
    return bool(can_answer) and not is_own_code(content)
