"""One login that is being made: its questions, who is asked them, and who waits for it.

House rules of this file:

- A question is open at one client: the one that came last of those whose person can be asked.
  At the one before it is taken back, and that one waits for the login.
- An answer counts by the number of its question, whoever gives it: the first one does.
- Whoever declines, or goes, is out, and the question goes back to whoever came before. With the
  last one the question has its answer: none.
- What asks for nothing (a banner, "touch the token") is a notice: whoever waits, and has a person,
  hears it, also if they come later; nobody has to answer it.
- A login for which nobody waits any more is cut, and asks nobody who comes later.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.local.login.keeper.endpoint import error_to_message, raise_from_message
from remoter_kernel.local.login.paramiko_channel import ConnectionClosed
from remoter_kernel.local.login.prompts import NeedsPerson, NotAnswered, Trust, describe_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.local.login.keeper.connected_client import ConnectedClient
    from remoter_kernel.local.login.prompts import Prompt
    from remoter_kernel.local.login.ssh_login import SSHLogin

MOST_NOTICES = 20  # the last ones
CHECK_EVERY = 1.0  # seconds between two looks at whether a question still has a point
LOG_IN_THERE = "Answer it there, or log in at a terminal: `remoter check NAME`."
NOBODY_LEFT = "the question was not answered: whoever asked for the login is gone."


class LoginAttempt:
    """A login that is being made; its questions go to clients (see `Prompter`)."""

    def __init__(self, transport: str, *, may_ask: bool) -> None:
        """Remember; `may_ask`: it was begun by somebody who can be asked."""
        self.transport = transport  # as its remote names it
        self.may_ask = may_ask
        self.is_over = False
        self._changed = threading.Condition()
        self._waiters: list[ConnectedClient] = []
        self._promptable: list[
            ConnectedClient
        ] = []  # those who can be asked, in the order in which they came
        self._refusals: dict[ConnectedClient, dict[str, Any]] = {}
        self._prompted: ConnectedClient | None = None  # at whom the question is open
        self._have_been_prompted: set[ConnectedClient] = set()
        self._prompt: dict[str, Any] | None = None
        self._prompt_number = 0  # of the question
        self._answer: dict[str, Any] | None = None
        self._notices: deque[dict[str, Any]] = deque(maxlen=MOST_NOTICES)
        self._unsent_notices: list[
            tuple[ConnectedClient, dict[str, Any]]
        ] = []  # notices that wait their turn
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
            self._add_waiter(
                client, can_be_asked=can_be_asked and self.may_ask and not self._is_cut
            )
            try:
                if begin:
                    self._start_login(begin)
                while not self.is_over:
                    self._raise_if_done(client)
                    self._changed.wait()
            finally:
                self._remove_waiter(client)
            if self._error and (begin or client in self._have_been_prompted):
                raise self._error
            return self._error is None

    def _start_login(self, begin: Callable[[], None]) -> None:
        try:
            begin()
        except RuntimeError:
            self._error = RemoterError("the keeper of the login has no thread left.")
            self.is_over = True

    def _add_waiter(self, client: ConnectedClient, *, can_be_asked: bool) -> None:
        client.on_answer = lambda message: self._on_answer(client, message)
        client.on_end = self._wake
        self._waiters.append(client)
        if self._step:
            client.send_step(self._step)
        if can_be_asked:
            self._promptable.append(client)
        if client.may_ask and not self._is_cut:
            for words in self._notices:
                client.send(words)
        self._route_prompt()

    def _raise_if_done(self, client: ConnectedClient) -> None:
        """Raise why a client waits no longer."""
        if client.is_gone:
            raise Unreachable("whoever asked for the login is gone.")
        raise_from_message(self._refusals.get(client, {}), [])
        if self._prompt and not client.may_ask:
            raise NeedsPerson(self._describe_prompt(), LOG_IN_THERE)

    def _remove_waiter(self, client: ConnectedClient) -> None:
        client.on_answer = lambda _words: None
        client.on_end = lambda: None
        self._waiters.remove(client)
        self._stop_prompting(client, error_to_message(NotAnswered(NOBODY_LEFT))[0])
        if not self._waiters and not self.is_over:
            self._abort()

    # --- what they say (the threads that hear them) ---

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_answer(self, client: ConnectedClient, message: dict[str, Any]) -> None:
        with self._changed:
            if "error" in message:
                self._refusals[client] = message
                self._stop_prompting(client, message)
            elif (
                message.get("number") == self._prompt_number and client in self._have_been_prompted
            ):
                self._accept_answer(client, message)
            self._changed.notify_all()

    def _accept_answer(self, client: ConnectedClient, message: dict[str, Any]) -> None:
        """Take an answer; it may have been typed just before its question went elsewhere."""
        if self._prompt is None:
            return
        self._prompt, self._answer = None, message
        if self._prompted is not None and self._prompted is not client:
            self._prompted.send({"withdrawn": self._prompt_number})

    def _stop_prompting(self, client: ConnectedClient, message: dict[str, Any]) -> None:
        """Ask this client no more; `message`: the answer, if nobody else is left."""
        if client not in self._promptable:
            return
        self._promptable.remove(client)
        if self._prompted is client:
            self._prompted = None
        if self._prompt and not self._promptable:
            self._prompt, self._answer = None, message
        self._route_prompt()

    def _route_prompt(self) -> None:
        """Have the question where it belongs; whoever else waits hears where that is."""
        if self._prompt and self._promptable:
            asked = self._promptable[-1]
            if asked is not self._prompted:
                self._prompted = asked
                self._have_been_prompted.add(asked)
                asked.send({**self._prompt, "number": self._prompt_number})
            for each in self._waiters:
                if each is not asked and each.may_ask:
                    each.send({"elsewhere": self._describe_prompt()})
        self._changed.notify_all()

    def _describe_prompt(self) -> str:
        """Say in a sentence what is asked for, and where."""
        question = self._prompt or {}
        what = "a word on its host key"
        if question.get("ask") == "prompts":
            what = describe_prompts([text for text, _ in question["prompts"]])
        place = self._prompted.place if self._prompted else "elsewhere"
        return f"the login waits for {what}, which is asked for {place}."

    # --- the login itself (its own thread) ---

    def set_login(self, login: SSHLogin | None) -> None:
        """Know a login that is being made: it may have to be cut."""
        with self._changed:
            self._login = login
            if login and self._is_cut:
                login.abort()

    def send_step(self, step: str) -> None:
        """Tell all who wait which step begins."""
        with self._changed:
            self._step = step
            for client in self._waiters:
                client.send_step(step)

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> Trust:
        """Have a person asked about a host key."""
        message = {"ask": "host key", "host": host, "kind": kind, "fingerprint": fingerprint}
        return Trust(self._prompt_and_wait(message)["trust"])

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Have a person asked; without prompts: have them told something."""
        if not prompts:
            self._send_notice(host, instruction)
            return []
        shown = [[prompt.text, prompt.is_shown] for prompt in prompts]
        message = {"ask": "prompts", "host": host, "prompts": shown, "instruction": instruction}
        return [str(answer) for answer in self._prompt_and_wait(message)["answers"]]

    def _send_notice(self, host: str, text: str) -> None:
        """Tell all who wait; one at whom a question is open would lose that, and hears it after."""
        number = 0  # no question's: what comes back is no answer
        message = {"ask": "prompts", "host": host, "prompts": [], "instruction": text}
        with self._changed:
            self._notices.append({**message, "number": number})
            self._unsent_notices += [
                (each, self._notices[-1]) for each in self._waiters if each.may_ask
            ]
            if not self._prompt:
                self._send_notices()

    def _send_notices(self) -> None:
        untold, self._unsent_notices = self._unsent_notices, []
        for client, message in untold:
            client.send(message)

    def _prompt_and_wait(self, message: dict[str, Any]) -> dict[str, Any]:
        """Wait as long as a person and the server do: meanwhile nobody else can log in."""
        with self._changed:
            if not self._promptable:
                raise NotAnswered(NOBODY_LEFT)
            self._send_notices()
            self._prompt_number += 1
            self._prompt, self._answer, self._prompted = message, None, None
            self._route_prompt()
            while (answer := self._pop_answer()) is None:
                if self._login and self._login.has_ended:
                    self._prompt = None
                    raise ConnectionClosed
                self._changed.wait(CHECK_EVERY)
        raise_from_message(answer, [])
        return answer

    def _pop_answer(self) -> dict[str, Any] | None:
        """Return the answer, once: it may be a secret."""
        answer, self._answer = self._answer, None
        return answer

    def finish(self, error: BaseException | None = None) -> None:
        """Say that there is a login, or why there is none."""
        with self._changed:
            self._error, self._login, self._prompt = error, None, None
            self._notices.clear()
            self._unsent_notices.clear()
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
