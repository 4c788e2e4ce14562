"""Asks the person in the cell that waits, through Jupyter's own input box.

A login runs in a thread and may take as long as a person does; all else of the front goes on.
Where no cell waits that may be asked in, nobody is asked: the next one that is run asks.

Kernels ask, too (`input()`), and not every client says which question it answers. At such a
client one question is open at a time: ours waits for the answer to a kernel's, and a kernel's
for that to ours. So no answer is ever taken for one to another question.
"""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.front.jupyter.first_words import is_own_code
from remoter_kernel.front.jupyter.kernel_questions import KernelQuestions, Question, unlike_ours
from remoter_kernel.front.questions import (
    NeedsPerson,
    NotAnswered,
    Prompt,
    Trust,
    about_host_key,
    asked_by,
)
from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import HEADER, PARENT, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.front.jupyter.mouth import Mouth, Route
    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor

TRIES = 3  # at a word that is neither yes, nor once, nor no
ONE_AT_A_TIME = (
    "[remoter] There is a question to be asked here. First answer the one that is open, which "
    "code of this notebook has asked, or interrupt the kernel.\n"
)


class _Asked(NamedTuple):
    """A question that waits for its answer."""

    route: Route
    content: dict[str, Any]
    answer: queue.SimpleQueue[str | NotAnswered | NeedsPerson]
    name: str = ""  # of the message that asked; none: it has yet to be asked


class _HeldQuestion(NamedTuple):
    """A kernel's question that waits until ours has its answer."""

    question: Question
    parts: list[Bytes]
    send: Callable[[list[Bytes]], object]


class Asker:
    """Whom a login may ask (see `Questions`): whoever has run a cell that waits for it."""

    def __init__(
        self, reactor: Reactor, mouth: Mouth, routes: Callable[[], Iterable[Route]]
    ) -> None:
        """Remember; `routes` lists the requests without a reply, the oldest first."""
        self.remote_name: Callable[[], str] = lambda: "the remote"
        self._kernels = KernelQuestions()
        self._held: list[_HeldQuestion] = []
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
        self._asked = _Asked(route, {"prompt": text, "password": is_hidden}, answer)
        self._go_on()
        if not self._asked.name:
            words = {"name": "stderr", "text": ONE_AT_A_TIME}
            self._mouth.publish("stream", words, route.header)

    def _go_on(self) -> None:
        """Ask what has yet to be asked, as far as one question at a time lets it be."""
        asked = self._asked
        if asked and not asked.name and not self._kernels.keep_waiting(asked.route.identities):
            name = self._mouth.ask(asked.route, asked.content)
            self._names.add(name)
            self._asked = asked._replace(name=name)
        elif asked is None:
            held, self._held = self._held, []
            for each in held:
                self._pass_on(each)

    @property
    def is_asking(self) -> bool:
        """Is a person being waited for?"""
        return self._asked is not None

    def relay(
        self,
        route: Route,
        parts: list[Bytes],
        send: Callable[[list[Bytes]], object],
        answer: Callable[[list[Bytes]], object],
        *,
        is_here: bool = False,
    ) -> None:
        """Pass on what a kernel asks; `send` says it to the client, `answer` the reply to it.

        `is_here`: it is the kernel on this side.
        """
        name = str(header_of(parts[HEADER]).get("msg_id", ""))
        if name in self._names or self._kernels.has(name):  # as if it had none
            name = ""
        cell = str(route.header.get("msg_id", ""))
        question = Question(tuple(route.identities), name, cell, answer, is_here)
        whose = "code on this machine" if is_here else self.remote_name()
        held = _HeldQuestion(question, unlike_ours(parts, whose), send)
        asked = self._asked
        is_ours_open = asked and asked.name and asked.route.identities == route.identities
        if is_ours_open and not self._kernels.is_exact(route.identities):
            self._held.append(held)
        else:
            self._pass_on(held)

    def _pass_on(self, held: _HeldQuestion) -> None:
        self._kernels.note(held.question)
        held.send(held.parts)

    def hear(self, reply: Route) -> bool:
        """Give what was typed to whoever has asked for it; False: nobody that is known here.

        A reply that names a question is for that one alone. What comes late is for nobody.
        """
        client = reply.identities
        parent = str(header_of(reply.parts[PARENT]).get("msg_id") or "")
        asked = self._asked if self._asked and self._asked.route.identities == client else None
        if parent in self._names:
            self._kernels.note_exact(client)
            if asked and parent == asked.name:
                self._take(asked, reply)
            return True
        question = self._kernels.take(client, parent)
        if question:
            question.answer(list(reply.parts))
            self._go_on()
            return True
        cells = {"", asked.route.header.get("msg_id")} if asked and asked.name else set()
        if asked and parent in cells:
            self._take(asked, reply)
            return True
        return not parent and bool(self._names)  # it may be a secret that was asked for here

    def _take(self, asked: _Asked, reply: Route) -> None:
        self._asked = None
        asked.answer.put(str(content_of(reply.parts).get("value", "")))
        self._go_on()

    def forget(self, *, is_here: bool) -> None:
        """Hear that a kernel waits for no answer any more: it has ended, or was interrupted."""
        self._held = [each for each in self._held if each.question.is_here is not is_here]
        self._kernels.forget(is_here=is_here)
        self._go_on()

    def call_off(self, *, is_here: bool = False) -> bool:
        """Let a question go unanswered: the person has interrupted. False: there was none.

        Then a kernel is interrupted; `is_here`: it is that on this side.
        """
        asked, self._asked = self._asked, None
        if asked is None:
            self.forget(is_here=is_here)
            return False
        if not asked.name:  # it waited for an answer that the person does not give
            self._kernels.give_up(asked.route.identities)
        message = "the question of the login was not answered."
        asked.answer.put(NotAnswered(message, "Run a cell to be asked again."))
        self._go_on()
        return True


def may_ask_in(route: Route) -> bool:
    """Is this a cell of a person who can be asked?"""
    if route.channel is not Channel.SHELL or route.header.get("msg_type") != "execute_request":
        return False
    content: dict[str, Any] = content_of(route.parts)
    can_answer = content.get("allow_stdin", True) and not content.get("silent")
    return bool(can_answer) and not is_own_code(content)
