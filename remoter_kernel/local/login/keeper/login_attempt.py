"""One login that is being made: its questions, who is asked them, and who waits for it.

House rules of this file:

- A question is open at one client: the one that came last of those whose person can be asked.
  At the one before it is taken back, and that one waits for the login.
- An answer counts by the number of its question, whoever gives it: the first one does.
- A client that declines, or goes, is out, and the question goes back to the one that came before.
  Where none is left, the question has its answer: none.
- What asks for nothing (a banner, "touch the token") is a notice: each client that waits, and has a
  person, gets it, also if it comes later; nobody has to answer it.
- A login for which nobody waits any more is cut, and asks nobody who comes later.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.local.login.keeper.endpoint import Message, error_to_message, raise_from_message
from remoter_kernel.local.login.login import ConnectionClosed
from remoter_kernel.local.login.prompts import (
    HostKeyDecision,
    NeedsPerson,
    NotAnswered,
    describe_prompts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.local.login.keeper.connected_client import ConnectedClient
    from remoter_kernel.local.login.prompts import Prompt
    from remoter_kernel.local.login.ssh_login import SSHLogin
MOST_NOTICES = 20  # the last ones
CHECK_EVERY = 1.0  # seconds between two looks at whether a question still has a point
LOG_IN_THERE = "Answer it there, or log in at a terminal: `remoter check NAME`."
NOBODY_LEFT = "the question was not answered: whoever asked for the login is gone."


@dataclass(eq=False)  # each is itself alone
class _Waiter:
    """A client that waits for the login."""

    client: ConnectedClient
    can_be_asked: bool
    was_asked: bool = False
    refusal: Message = field(default_factory=dict)  # the error with which it declined
    unsent: list[Message] = field(default_factory=list)  # notices that wait for their turn


@dataclass(eq=False)
class _Question:
    """What is asked just now."""

    message: Message
    number: int
    asked: _Waiter | None = None  # where it is open
    answer: Message | None = None


class LoginAttempt:
    """A login that is being made; its questions go to clients (see `Prompter`)."""

    def __init__(self, transport: str, *, may_ask: bool) -> None:
        """`may_ask`: who has begun it can be asked."""
        self.transport = transport  # as its remote names it
        self.may_ask = may_ask
        self.is_over = False
        self._changed = threading.Condition()
        self._waiters: list[_Waiter] = []  # in the order in which they came
        self._question: _Question | None = None  # until it is answered
        self._questions_asked = 0
        self._notices: deque[Message] = deque(maxlen=MOST_NOTICES)
        self._step = ""
        self._login: SSHLogin | None = None
        self._is_cut = False
        self._error: BaseException | None = None

    # --- those who wait for it (their own threads) ---

    def wait(
        self,
        client: ConnectedClient,
        *,
        can_be_asked: bool,
        begin: Callable[[], None] | None = None,
    ) -> bool:
        """Wait for its end; say whether there is a login. What the client must know is raised.

        `begin` starts it: whoever does that is told why it failed, and so is whoever was asked.
        """
        with self._changed:
            can_be_asked = can_be_asked and self.may_ask and not self._is_cut
            waiter = _Waiter(client, can_be_asked)
            self._add_waiter(waiter)
            try:
                if begin:
                    self._start_login(begin)
                while not self.is_over:
                    self._raise_if_done(waiter)
                    self._changed.wait()
            finally:
                self._remove_waiter(waiter)
            if self._error and (begin or waiter.was_asked):
                raise self._error
            return self._error is None

    def _start_login(self, begin: Callable[[], None]) -> None:
        try:
            begin()
        except RuntimeError:  # of `Thread.start`
            self._error = RemoterError("the keeper of the login has no thread left.")
            self.is_over = True

    def _add_waiter(self, waiter: _Waiter) -> None:
        client = waiter.client
        client.on_answer = lambda message: self._on_answer(waiter, message)
        client.on_end = self._wake
        self._waiters.append(waiter)
        if self._step:  # a client that comes later is shown where the login is
            client.send_step(self._step)
        if client.may_ask and not self._is_cut:
            for notice in self._notices:
                client.send(notice)
        self._route_question()

    def _raise_if_done(self, waiter: _Waiter) -> None:
        """Raise why a client waits no longer."""
        if waiter.client.is_gone:
            raise Unreachable("whoever asked for the login is gone.")
        raise_from_message(waiter.refusal, [])
        if self._question and not waiter.client.may_ask:
            raise NeedsPerson(self._describe(self._question), LOG_IN_THERE)

    def _remove_waiter(self, waiter: _Waiter) -> None:
        waiter.client.on_answer = lambda _message: None
        waiter.client.on_end = lambda: None
        self._waiters.remove(waiter)
        self._stop_asking(waiter, error_to_message(NotAnswered(NOBODY_LEFT))[0])
        if not self._waiters and not self.is_over:
            self._abort()

    # --- what they answer (the threads that read it) ---

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_answer(self, waiter: _Waiter, message: Message) -> None:
        with self._changed:
            question = self._question
            if "error" in message:
                waiter.refusal = message
                self._stop_asking(waiter, message)
            elif question and waiter.was_asked and message.get("number") == question.number:
                # It may have been typed just before the question went elsewhere.
                self._close_question(message)
                if question.asked and question.asked is not waiter:
                    question.asked.client.send({"withdrawn": question.number})
            self._changed.notify_all()

    def _close_question(self, answer: Message) -> None:
        if self._question:
            self._question.answer, self._question = answer, None

    def _stop_asking(self, waiter: _Waiter, message: Message) -> None:
        """Ask this client no more; `message`: the answer, if nobody else is left."""
        if not waiter.can_be_asked:
            return
        waiter.can_be_asked = False
        if self._question and self._question.asked is waiter:
            self._question.asked = None
        if not self._last_promptable():
            self._close_question(message)
        self._route_question()

    def _last_promptable(self) -> _Waiter | None:
        """Return who is asked: who came last of those whose person can be."""
        return next((each for each in reversed(self._waiters) if each.can_be_asked), None)

    def _route_question(self) -> None:
        """Have the question where it belongs; whoever else waits is told where that is."""
        question, asked = self._question, self._last_promptable()
        if question and asked:
            if asked is not question.asked:
                question.asked = asked
                asked.was_asked = True
                asked.client.send({**question.message, "number": question.number})
            for each in self._waiters:
                if each is not asked and each.client.may_ask:
                    each.client.send({"elsewhere": self._describe(question)})
        self._changed.notify_all()

    @staticmethod
    def _describe(question: _Question) -> str:
        """Say in a sentence what is asked for, and where."""
        what = "a word on its host key"
        if question.message["ask"] == "prompts":
            what = describe_prompts([text for text, _ in question.message["prompts"]])
        place = question.asked.client.place if question.asked else "elsewhere"
        return f"the login waits for {what}, which is asked for {place}."

    # --- the login itself (its own thread) ---

    def set_login(self, login: SSHLogin | None) -> None:
        """Know a login that is being made: it may have to be cut."""
        with self._changed:
            self._login = login
            if login and self._is_cut:  # the next host on the way
                login.abort()

    def send_step(self, step: str) -> None:
        """Tell all who wait which step begins."""
        with self._changed:
            self._step = step
            for each in self._waiters:
                each.client.send_step(step)

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        """Have a person asked about a host key."""
        message = {"ask": "host key", "host": host, "kind": kind, "fingerprint": fingerprint}
        return HostKeyDecision(self._ask_and_wait(message)["trust"])

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Have a person asked; without prompts: have them told something."""
        shown = [[prompt.text, prompt.is_shown] for prompt in prompts]
        message = {"ask": "prompts", "host": host, "prompts": shown, "instruction": instruction}
        if prompts:
            return [str(answer) for answer in self._ask_and_wait(message)["answers"]]
        with self._changed:
            notice = {**message, "number": 0}  # no question's: what comes back is no answer
            self._notices.append(notice)
            for each in self._waiters:
                if each.client.may_ask:
                    each.unsent.append(notice)
            if not self._question:  # where one is open, that would be lost: the notice comes after
                self._send_notices()
        return []

    def _send_notices(self) -> None:
        for each in self._waiters:
            notices, each.unsent = each.unsent, []
            for notice in notices:
                each.client.send(notice)

    def _ask_and_wait(self, message: Message) -> Message:
        """Wait as long as a person and the server do: meanwhile nobody else can log in."""
        with self._changed:
            if not self._last_promptable():
                raise NotAnswered(NOBODY_LEFT)
            self._send_notices()
            self._questions_asked += 1
            question = self._question = _Question(message, self._questions_asked)
            self._route_question()
            while question.answer is None:
                if self._login and self._login.has_ended:
                    self._question = None
                    raise ConnectionClosed
                self._changed.wait(CHECK_EVERY)  # no event says that a login has ended
        raise_from_message(question.answer, [])  # it was declined
        return question.answer

    def finish(self, error: BaseException | None = None) -> None:
        """Say that there is a login, or why there is none."""
        with self._changed:
            self._error, self._login, self._question = error, None, None
            self._notices.clear()  # what was to be done is done, or of no use
            for each in self._waiters:
                each.unsent.clear()
            self.is_over = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Let it fail."""
        with self._changed:
            self._abort()

    def _abort(self) -> None:
        self._is_cut = True
        if self._login:
            self._login.abort()
