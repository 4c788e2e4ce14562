"""Proves to a server who somebody is: key after key, then what only a person knows.

Rules: ssh_config says what may be tried, and in which order; nobody is asked for a passphrase
before the server has said that the key would do; a person gets as many tries as the server
gives, three at the most (or NumberOfPasswordPrompts); what is remembered is used once after a
cut, and a code never.
"""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import LoginRefused
from remoter_kernel.front.questions import (
    ENOUGH_ALONE,
    OURS,
    WITHOUT_QUESTIONS,
    NeedsPerson,
    Prompt,
    says,
)
from remoter_kernel.front.ssh.authentication import AuthResult, CannotSign, Round
from remoter_kernel.front.ssh.banner import SHOWN_AFTER, Banner
from remoter_kernel.front.ssh.channel import Closed, Misbehaved, TooLate
from remoter_kernel.front.ssh.complaints import CHANGE_THAT
from remoter_kernel.front.ssh.keys import KeyRing, LockedKey
from remoter_kernel.front.ssh.transport import TAKES_PIPELINES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from remoter_kernel.front.questions import Questions
    from remoter_kernel.front.ssh.aliases import Destination
    from remoter_kernel.front.ssh.memory import Memory
    from remoter_kernel.front.ssh.transport import Transport

VERDICT_WITHIN = 30.0  # seconds for one attempt: the server may ask a slow directory service
ATTEMPTS = 30  # of a login, keys aside: no server that means well needs more
ROUNDS = 20  # of one attempt: no server that means well has more
KEYS = "publickey"
CALLED = {"password": "a password", "keyboard-interactive": "a password or a code"}
NOT_A_PASSWORD = re.compile(
    r"one.?time|otp|oath|token|code|verif|pin\b|duo|new|again", re.IGNORECASE
)


def asker_of(hop: Destination, last: Destination) -> str:
    """Say who asks when a hop does: a jump host cannot speak in the name of what is behind it."""
    behind = last.alias or last.host_name
    return hop.label if hop is last else f"{hop.label} (jump host of {behind})"


class Admission:
    """One login's way in."""

    def __init__(
        self,
        destination: Destination,
        transport: Transport,
        questions: Questions | None,
        memory: Memory,
        *,
        asker: str = "",
        on_first_key: Callable[[], None] = lambda: None,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._destination = destination
        self._asker = asker or destination.label
        self._user = destination.user
        self._door = transport.door
        self._software = transport.software
        self._questions = questions
        show = partial(questions.ask, "", ()) if questions is not None else None
        self._banner = Banner(self._asker, show)
        self._memory = memory
        self._on_first_key = on_first_key
        self._on_refusal = on_refusal
        self._rules = destination.rules
        self._ring = KeyRing(destination)
        self._has_shown_keys = False
        self._shown = 0  # keys
        self._has_locked = False  # is there a key that only a person can unlock?
        self._wrong = 0  # answers of a person, one after the other
        self._typed: list[tuple[Prompt, str]] = []  # in attempts that were right

    def go(self) -> None:
        """Be let in, or raise LoginRefused, Closed or TooLate."""
        self._door.request_service()
        if not self._software.startswith(TAKES_PIPELINES):
            self._door.wait_for_service(self._destination.connect_timeout)
        try:
            verdict = self._begin()
            for _ in range(ATTEMPTS):
                if verdict.let_in:
                    break
                verdict = self._next(verdict)
            else:
                raise LoginRefused(
                    f"{self._destination.label} says again and again that it wants more.",
                    "Is it the right host? Ask its administrator.",
                )
        except Misbehaved as error:
            raise LoginRefused(
                f"{self._destination.label} {error}, which nobody can answer.",
                "Is it the right host? Ask its administrator.",
            ) from None
        finally:
            self._ring.close()
        self._remember()

    def _begin(self) -> AuthResult:
        if self._rules.methods[:1] == (KEYS,):
            return self._show_keys()
        self._door.send_nothing(self._user)
        return self._hear()

    def _method(self, verdict: AuthResult) -> str:
        """Choose what to try next; "" where nothing is left."""
        left = [each for each in self._rules.methods if each in verdict.would_take]
        if KEYS in left and self._has_shown_keys:
            left.remove(KEYS)
        if KEYS in left and self._questions is None:
            return KEYS  # as with BatchMode: what only a person could answer is passed over
        if self._wrong >= self._rules.prompts:
            return KEYS if KEYS in left else ""
        return left[0] if left else ""

    def _next(self, verdict: AuthResult) -> AuthResult:
        """Go on from a verdict that was not the last."""
        if verdict.partly and self._typed:
            self._has_shown_keys = False
        method = self._method(verdict)
        if method == KEYS:
            return self._show_keys()
        if not method:
            raise self._refusal(verdict)
        password = self._memory.take_password()
        if not password and self._questions is None:
            raise self._nobody(method, verdict)
        try:
            if method == "password":
                verdict, typed = self._give_password(password)
            else:
                verdict, typed = self._converse(password)
        except Closed:
            if self._wrong:
                raise self._hung_up() from None
            raise
        if verdict.let_in or verdict.partly:
            self._typed += typed
            self._wrong = 0
        elif password:
            self._memory.keep_password("")
        else:
            self._wrong += 1
        return verdict

    # --- keys ---

    def _show_keys(self) -> AuthResult:
        """Show one key after the other; return the last verdict."""
        self._has_shown_keys = True
        verdict: AuthResult | None = None
        for name, key in self._ring.in_order():
            if isinstance(key, LockedKey):
                verdict, key = self._unlock(key, verdict)  # noqa: PLW2901 - it is the same key
                if key is None:
                    continue
            try:
                self._door.send_key(self._user, key)
            except CannotSign as error:
                self._ring.notes.append(f"{name} did not sign: {error}.")
                continue
            self._shown += 1
            if self._shown == 1:
                self._on_first_key()
            verdict = self._hear()
            if verdict.let_in:
                return verdict
            self._on_refusal()
            if verdict.partly or KEYS not in verdict.would_take:
                return verdict
        if verdict is None:
            # Only now is it worth a round trip to learn what the server would take.
            self._door.send_nothing(self._user)
            verdict = self._hear()
        return verdict

    def _unlock(self, key: LockedKey, verdict: AuthResult | None) -> tuple[AuthResult | None, Any]:
        """Ask for the passphrase of a key, if the server would take that key."""
        known = self._memory.passphrase(str(key.file))
        if not known and self._questions is None:
            self._has_locked = True
            self._ring.notes.append(f"{key.file} has a passphrase and no agent holds it.")
            return verdict, None
        if key.public:
            self._door.ask_about_key(self._user, key.algorithm, key.public)
            heard = self._wait()
            if isinstance(heard, AuthResult):
                self._shown += 1
                return heard, None
        for attempt in range(self._rules.prompts):
            again = "That was not it." if attempt else ""
            was_known = bool(known)
            phrase = known or self._ask_for_passphrase(key.file, again)
            known = ""
            if not phrase:
                break
            if unlocked := key.unlock(phrase):
                self._memory.keep_passphrase(str(key.file), phrase)
                return verdict, unlocked
            if was_known:
                self._memory.keep_passphrase(str(key.file), "")
                if self._questions is None:
                    break
        self._ring.notes.append(f"{key.file} was not unlocked: the passphrase was wrong.")
        return verdict, None

    def _wait(self) -> AuthResult | Round:
        """Wait for what the server says; what it says to everybody is shown where it waits."""
        began = time.monotonic()
        while True:
            silent = time.monotonic() - began
            left = self._banner.patience(self._door.banner, VERDICT_WITHIN) - silent
            try:
                return self._door.wait(min(SHOWN_AFTER, left))
            except TooLate:
                if left <= SHOWN_AFTER:
                    raise
            self._banner.show(self._door.banner)
            if silent > VERDICT_WITHIN:  # a network that is dead by now shows it
                self._door.nudge()

    def _hear(self) -> AuthResult:
        try:
            heard = self._wait()
        except Closed:
            if self._shown > 1:
                raise self._hung_up() from None
            raise
        return heard if isinstance(heard, AuthResult) else AuthResult(let_in=False)

    # --- what a person knows ---

    def _give_password(self, password: str) -> tuple[AuthResult, list[tuple[Prompt, str]]]:
        prompt = Prompt(f"Password of {self._user}:")
        given = password or self._ask((prompt,), self._again())[0]
        self._door.send_password(self._user, given)
        heard = self._wait()
        if isinstance(heard, Round):
            raise LoginRefused(
                f"the password of {self._user} on {self._destination.label} has expired.",
                "Log in once with `ssh` at a terminal and change it.",
            )
        return heard, [(Prompt("password"), given)]

    def _converse(self, password: str) -> tuple[AuthResult, list[tuple[Prompt, str]]]:
        """Answer the server's questions, round by round."""
        typed: list[tuple[Prompt, str]] = []
        told: list[str] = []  # instructions of rounds without a question
        self._door.begin_rounds(self._user)
        for _ in range(ROUNDS):
            heard = self._wait()
            if isinstance(heard, AuthResult):
                return heard, typed
            told.append(heard.instruction)
            answers: Sequence[str] = ()
            if heard.prompts:
                one = heard.prompts[0]
                if password and len(heard.prompts) == 1 and is_password(one) and not typed:
                    answers = (password,)
                else:
                    if self._questions is None:
                        raise self._nobody("keyboard-interactive", None)
                    said = says(self._asker, "\n".join(told))
                    words = "\n".join(filter(None, (self._again(), said)))
                    answers = self._ask(heard.prompts, words)
                told.clear()
                typed += zip(heard.prompts, answers, strict=True)
            self._door.send_answers(answers)
        raise LoginRefused(
            f"{self._destination.label} asks without end.", "Its administrator should look at PAM."
        )

    def _ask(self, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        assert self._questions is not None  # noqa: S101 - looked at before each way that leads here
        instruction = f"{self._banner.unseen(self._door.banner)}\n{instruction}".strip()
        return self._questions.ask(self._asker, prompts, instruction)

    def _ask_for_passphrase(self, file: Path, again: str) -> str:
        assert self._questions is not None  # noqa: S101 - looked at before
        home = Path.home()
        where = f"~/{file.relative_to(home)}" if file.is_relative_to(home) else str(file)
        prompt = Prompt(f"{OURS}passphrase of {where} (it is not sent):")
        return self._questions.ask("", (prompt,), again)[0]

    def _again(self) -> str:
        return "That was not accepted." if self._wrong else ""

    def _remember(self) -> None:
        """Keep a password that was the only thing that a person had to know."""
        if len(self._typed) == 1 and is_password(self._typed[0][0]):
            self._memory.keep_password(self._typed[0][1])

    # --- refusals ---

    def _nobody(self, method: str, verdict: AuthResult | None) -> LoginRefused:
        partly = bool(verdict and verdict.partly)
        took = " took a key and" if partly else ""
        ways = ENOUGH_ALONE if partly else WITHOUT_QUESTIONS
        return NeedsPerson(
            f"{self._destination.label}{took} asks for {CALLED[method]} of {self._user}, "
            "and nobody can be asked here.",
            " ".join([*self._ring.notes, ways]),
        )

    def _refusal(self, verdict: AuthResult) -> LoginRefused:
        """Say why nobody was let in, and what would help."""
        label, shown = self._destination.label, self._shown
        keys = {0: "no key", 1: "the key"}.get(shown, f"any of {shown} keys")
        if self._wrong:
            return LoginRefused(
                f"{label} did not accept what was typed for {self._user}, {self._wrong} times.",
                "Run the cell or the command again to try again.",
            )
        if self._has_locked:
            return NeedsPerson(
                f"the key for {label} has a passphrase, and nobody can be asked here.",
                " ".join([*self._ring.notes, WITHOUT_QUESTIONS]),
            )
        wants = ", ".join(verdict.would_take) or "something else"
        forbids = self._rules.forbids(verdict.would_take)
        if forbids and not set(verdict.would_take) & set(self._rules.methods):
            return LoginRefused(
                f"{label} asks {self._user} for: {wants}; your ssh config says {forbids}.",
                " ".join([*self._ring.notes, CHANGE_THAT]),
            )
        if verdict.partly:
            what = f"{label} took a key of {self._user} and wants more: {wants}."
        elif not shown:
            what = f"there is no key to show to {label} as {self._user}."
        else:
            what = f"{label} did not accept {keys} for {self._user}."
        advice = " ".join(self._ring.notes)
        if forbids:
            advice += f" Your ssh config says {forbids} for it."
        if KEYS in verdict.would_take or not verdict.would_take:
            advice += " Add a key with `ssh-copy-id`, or one to the agent with `ssh-add`."
        elif not verdict.partly:
            advice += f' It would take: {wants}; perhaps by transport = "openssh".'
        return LoginRefused(what, advice.strip())

    def _hung_up(self) -> LoginRefused:
        if self._wrong:
            return LoginRefused(
                f"{self._destination.label} hung up after {self._wrong + 1} answers that it "
                "did not accept.",
                "Wait a little before the next try: an account may be locked after too many.",
            )
        return LoginRefused(
            f"{self._destination.label} hung up after {self._shown} keys that it did not accept.",
            "Name the right one with IdentityFile, and say IdentitiesOnly yes, in your ssh config.",
        )


def is_password(prompt: Prompt) -> bool:
    """Does a prompt ask for what stays the same from login to login?"""
    text = prompt.text
    return not prompt.is_shown and "password" in text.lower() and not NOT_A_PASSWORD.search(text)
