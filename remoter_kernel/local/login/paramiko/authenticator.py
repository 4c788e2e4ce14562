"""Proves to a server who somebody is: key after key, then what only a person knows.

Rules: ssh_config says what may be tried, and in which order; nobody is asked for a passphrase
before the server has said that the key would do; a person gets as many tries as the server
gives, three at the most (or NumberOfPasswordPrompts); what is remembered is used once after a
cut, and a code never.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import LoginRefused
from remoter_kernel.local.login.banner import SHOWN_AFTER, Banner
from remoter_kernel.local.login.login import (
    AUTH_RESULT_WITHIN,
    ConnectionClosed,
    ResponseTimeout,
    ServerViolation,
)
from remoter_kernel.local.login.login_errors import CHANGE_SSH_CONFIG
from remoter_kernel.local.login.paramiko.keys import KeyRing, LockedKey
from remoter_kernel.local.login.paramiko.transport import ACCEPTS_PIPELINING
from remoter_kernel.local.login.paramiko.userauth import AuthResult, CannotSign, InfoRequest
from remoter_kernel.local.login.prompts import (
    LOG_IN_FIRST,
    LOG_IN_WITHOUT_PROMPTS,
    OWN_TAG,
    NeedsPerson,
    Prompt,
    quote_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from remoter_kernel.local.login.credentials import HostCredentials
    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.paramiko.transport import ParamikoTransport
    from remoter_kernel.local.login.prompts import Prompter

MOST_ATTEMPTS = 30  # of a login, keys aside: no server that means well needs more
MOST_ROUNDS = 20  # of one attempt: no server that means well has more
PUBLICKEY = "publickey"
METHOD_WORDS = {"password": "a password", "keyboard-interactive": "a password or a code"}
NOT_A_PASSWORD = re.compile(
    r"one.?time|otp|oath|token|code|verif|pin\b|duo|new|again", re.IGNORECASE
)


@dataclass
class _Progress:
    """What has been tried so far."""

    has_tried_keys: bool = False
    keys: int = 0  # that the server has seen
    has_locked_key: bool = False  # is there a key that only a person can unlock?
    rejected: int = 0  # answers of a person, one after the other
    accepted: list[tuple[Prompt, str]] = field(default_factory=list)  # in attempts that were right


class Authenticator:
    """Gets one login in: `run`.

    `on_first_key` is called when the first key has been sent, `on_refusal` after each that the
    server did not take.
    """

    def __init__(
        self,
        destination: Destination,
        transport: ParamikoTransport,
        prompter: Prompter | None,
        credentials: HostCredentials,
        *,
        label: str = "",
        on_first_key: Callable[[], None] = lambda: None,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._destination = destination
        self._label = label or destination.label
        self._userauth = transport.userauth
        self._can_pipeline = transport.software.startswith(ACCEPTS_PIPELINING)
        self._prompter = prompter
        show = partial(prompter.ask, "", ()) if prompter is not None else None
        self._banner = Banner(self._label, show)
        self._credentials = credentials
        self._on_first_key = on_first_key
        self._on_refusal = on_refusal
        self._key_ring = KeyRing(destination)
        self._progress = _Progress()

    def run(self) -> None:
        """Be let in, or raise LoginRefused, ConnectionClosed or ResponseTimeout."""
        self._userauth.request_service()  # the answer is not waited for: that saves a round trip
        if not self._can_pipeline:
            self._userauth.wait_for_service(self._destination.connect_timeout)
        try:
            result = self._first_attempt()
            for _ in range(MOST_ATTEMPTS):  # a server could ask for more for ever
                if result.is_success:
                    break
                result = self._next_attempt(result)
            else:
                raise LoginRefused(
                    f"{self._destination.label} says again and again that it wants more.",
                    "Is it the right host? Ask its administrator.",
                )
        except ServerViolation as error:
            raise LoginRefused(
                f"{self._destination.label} {error}, which nobody can answer.",
                "Is it the right host? Ask its administrator.",
            ) from None
        finally:
            self._key_ring.close()
        self._store_password()

    def _first_attempt(self) -> AuthResult:
        is_key_first = self._destination.rules.methods[:1] == (PUBLICKEY,)
        return self._try_keys() if is_key_first else self._query_methods()

    def _query_methods(self) -> AuthResult:
        """Learn what the server would take: that costs a round trip."""
        self._userauth.send_none(self._destination.user)
        return self._wait_for_result()

    def _next_method(self, result: AuthResult) -> str:
        """Choose what to try next; "" where nothing is left."""
        rules, progress = self._destination.rules, self._progress
        left = [each for each in rules.methods if each in result.methods_left]
        if progress.has_tried_keys and PUBLICKEY in left:
            left.remove(PUBLICKEY)
        # As with BatchMode, what only a person could answer is passed over where nobody can be
        # asked; and where a person has had all tries.
        if PUBLICKEY in left and self._prompter is None:
            return PUBLICKEY
        if progress.rejected >= rules.prompts:
            return PUBLICKEY if PUBLICKEY in left else ""
        return left[0] if left else ""

    def _next_attempt(self, result: AuthResult) -> AuthResult:
        """Go on from a verdict that was not the last."""
        if result.is_partial and self._progress.accepted:
            # Right answers may be asked for first, and a key after them.
            self._progress.has_tried_keys = False
        method = self._next_method(result)
        if method == PUBLICKEY:
            return self._try_keys()
        if not method:
            raise self._refused(result)
        password = self._credentials.take_password()
        if not password and self._prompter is None:
            raise self._no_prompter(method, result)
        try:
            if method == "password":
                result, typed = self._try_password(password)
            else:
                result, typed = self._keyboard_interactive(password)
        except ConnectionClosed:
            # sshd hangs up after MaxAuthTries.
            if self._progress.rejected:
                raise self._disconnected() from None
            raise
        if result.is_success or result.is_partial:
            self._progress.accepted += typed
            self._progress.rejected = 0
        elif password:  # it was ours, not a person's: that is none of their tries
            self._credentials.store_password("")
        else:
            self._progress.rejected += 1
        return result

    # --- keys ---

    def _try_keys(self) -> AuthResult:
        """Show one key after the other; return the last verdict."""
        self._progress.has_tried_keys = True
        result: AuthResult | None = None
        for name, key in self._key_ring.candidates():
            if isinstance(key, LockedKey):
                result, key = self._decrypt_key(key, result)  # noqa: PLW2901 - it is the same key
                if key is None:
                    continue
            try:
                self._userauth.send_key(self._destination.user, key)
            except CannotSign as error:
                # An agent may ask its person, who may decline: the next key may do.
                self._key_ring.notes.append(f"{name} did not sign: {error}.")
                continue
            self._progress.keys += 1
            if self._progress.keys == 1:
                self._on_first_key()
            result = self._wait_for_result()
            if result.is_success:
                return result
            self._on_refusal()
            if result.is_partial or PUBLICKEY not in result.methods_left:
                return result  # another method is due; more keys would count as failures
        return result or self._query_methods()  # only where no key could be shown

    def _decrypt_key(
        self, key: LockedKey, result: AuthResult | None
    ) -> tuple[AuthResult | None, Any]:
        """Ask for the passphrase of a key, if the server would take that key."""
        known = self._credentials.passphrase(str(key.file))
        if not known and self._prompter is None:
            self._progress.has_locked_key = True
            self._key_ring.notes.append(f"{key.file} has a passphrase and no agent holds it.")
            return result, None
        if key.public:
            self._userauth.query_key(self._destination.user, key.algorithm, key.public)
            response = self._wait_for_response()
            if isinstance(response, AuthResult):  # it would not: nobody is asked
                self._progress.keys += 1
                return response, None
        for attempt in range(self._destination.rules.prompts):
            again = "That was not it." if attempt else ""
            phrase = known or self._prompt_for_passphrase(key.file, again)
            if not phrase:  # an empty answer: the person passes this key over
                break
            if unlocked := key.unlock(phrase):
                self._credentials.store_passphrase(str(key.file), phrase)
                return result, unlocked
            if known:
                self._credentials.store_passphrase(str(key.file), "")
                if self._prompter is None:
                    break
                known = ""
        self._key_ring.notes.append(f"{key.file} was not unlocked: the passphrase was wrong.")
        return result, None

    def _wait_for_response(self) -> AuthResult | InfoRequest:
        """Wait for what the server says; what it says to everybody is shown where it waits."""
        began = time.monotonic()
        while True:
            silent = time.monotonic() - began
            left = self._banner.allowed_silence(self._userauth.banner, AUTH_RESULT_WITHIN) - silent
            try:
                return self._userauth.wait(min(SHOWN_AFTER, left))
            except ResponseTimeout:
                if left <= SHOWN_AFTER:
                    raise
            self._banner.show(self._userauth.banner)
            if silent > AUTH_RESULT_WITHIN:  # a network that is dead by now shows it
                self._userauth.send_ignore()

    def _wait_for_result(self) -> AuthResult:
        try:
            response = self._wait_for_response()
        except ConnectionClosed:
            if self._progress.keys > 1:
                raise self._disconnected() from None
            raise
        return response if isinstance(response, AuthResult) else AuthResult(is_success=False)

    # --- what a person knows ---

    def _try_password(self, password: str) -> tuple[AuthResult, list[tuple[Prompt, str]]]:
        prompt = Prompt(f"Password of {self._destination.user}:")
        given = password or self._prompt((prompt,), self._retry_note())[0]
        self._userauth.send_password(self._destination.user, given)
        response = self._wait_for_response()
        if isinstance(response, InfoRequest):
            destination = self._destination
            raise LoginRefused(
                f"the password of {destination.user} on {destination.label} has expired.",
                "Log in once with `ssh` at a terminal and change it.",
            )
        return response, [(Prompt("password"), given)]

    def _keyboard_interactive(self, password: str) -> tuple[AuthResult, list[tuple[Prompt, str]]]:
        """Answer the server's questions, round by round."""
        typed: list[tuple[Prompt, str]] = []
        told: list[str] = []  # instructions of rounds without a question
        self._userauth.send_keyboard_interactive(self._destination.user)
        for _ in range(MOST_ROUNDS):
            response = self._wait_for_response()
            if isinstance(response, AuthResult):
                return response, typed
            told.append(response.instruction)
            answers: Sequence[str] = ()
            if response.prompts:
                one = response.prompts[0]
                if password and len(response.prompts) == 1 and is_password(one) and not typed:
                    answers = (password,)
                else:
                    if self._prompter is None:
                        raise self._no_prompter("keyboard-interactive", None)
                    said = quote_server(self._label, "\n".join(told))
                    words = "\n".join(filter(None, (self._retry_note(), said)))
                    answers = self._prompt(response.prompts, words)
                told.clear()
                typed += zip(response.prompts, answers, strict=True)
            self._userauth.send_answers(answers)
        raise LoginRefused(
            f"{self._destination.label} asks without end.", "Its administrator should look at PAM."
        )

    def _prompt(self, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        assert self._prompter is not None  # noqa: S101 (each way to here has looked at it)
        instruction = f"{self._banner.take_unseen(self._userauth.banner)}\n{instruction}".strip()
        return self._prompter.ask(self._label, prompts, instruction)

    def _prompt_for_passphrase(self, file: Path, again: str) -> str:
        assert self._prompter is not None  # noqa: S101 (as above)
        home = Path.home()
        where = f"~/{file.relative_to(home)}" if file.is_relative_to(home) else str(file)
        prompt = Prompt(f"{OWN_TAG}passphrase of {where} (it is not sent):")
        return self._prompter.ask("", (prompt,), again)[0]

    def _retry_note(self) -> str:
        return "That was not accepted." if self._progress.rejected else ""

    def _store_password(self) -> None:
        """Keep a password that was the only thing that a person had to know."""
        if len(self._progress.accepted) == 1 and is_password(self._progress.accepted[0][0]):
            self._credentials.store_password(self._progress.accepted[0][1])

    # --- refusals ---

    def _no_prompter(self, method: str, result: AuthResult | None) -> LoginRefused:
        destination, partly = self._destination, bool(result and result.is_partial)
        took = " took a key and" if partly else ""
        ways = LOG_IN_FIRST if partly else LOG_IN_WITHOUT_PROMPTS
        return NeedsPerson(
            f"{destination.label}{took} asks for {METHOD_WORDS[method]} of {destination.user}, "
            "and nobody can be asked here.",
            " ".join([*self._key_ring.notes, ways]),
        )

    def _refused(self, result: AuthResult) -> LoginRefused:
        """Say why nobody was let in, and what would help."""
        destination, rules = self._destination, self._destination.rules
        label, user = destination.label, destination.user
        progress, notes = self._progress, self._key_ring.notes
        if progress.rejected:
            return LoginRefused(
                f"{label} did not accept what was typed for {user}, {progress.rejected} times.",
                "Run the cell or the command again to try again.",
            )
        if progress.has_locked_key:
            return NeedsPerson(
                f"the key for {label} has a passphrase, and nobody can be asked here.",
                " ".join([*notes, LOG_IN_WITHOUT_PROMPTS]),
            )
        wants = ", ".join(result.methods_left) or "something else"
        forbids = rules.forbidden_by(result.methods_left)
        if forbids and not set(result.methods_left) & set(rules.methods):
            return LoginRefused(
                f"{label} asks {user} for: {wants}; your ssh config says {forbids}.",
                " ".join([*notes, CHANGE_SSH_CONFIG]),
            )
        if result.is_partial:
            what = f"{label} took a key of {user} and wants more: {wants}."
        elif not progress.keys:
            what = f"there is no key to show to {label} as {user}."
        else:
            keys = "the key" if progress.keys == 1 else f"any of {progress.keys} keys"
            what = f"{label} did not accept {keys} for {user}."
        advice = " ".join(notes)
        if forbids:
            advice += f" Your ssh config says {forbids} for it."
        if PUBLICKEY in result.methods_left or not result.methods_left:
            advice += " Add a key with `ssh-copy-id`, or one to the agent with `ssh-add`."
        elif not result.is_partial:
            advice += f' It would take: {wants}; perhaps by transport = "openssh".'
        return LoginRefused(what, advice.strip())

    def _disconnected(self) -> LoginRefused:
        label, progress = self._destination.label, self._progress
        if progress.rejected:
            return LoginRefused(
                f"{label} hung up after {progress.rejected + 1} answers that it did not accept.",
                "Wait a little before the next try: an account may be locked after too many.",
            )
        return LoginRefused(
            f"{label} hung up after {progress.keys} keys that it did not accept.",
            "Name the right one with IdentityFile, and say IdentitiesOnly yes, in your ssh config.",
        )


def is_password(prompt: Prompt) -> bool:
    """Does a prompt ask for what stays the same from login to login?"""
    text = prompt.text
    return not prompt.is_shown and "password" in text.lower() and not NOT_A_PASSWORD.search(text)
