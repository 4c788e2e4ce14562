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
from remoter_kernel.local.login.banner import SHOWN_AFTER, Banner
from remoter_kernel.local.login.login_errors import CHANGE_SSH_CONFIG
from remoter_kernel.local.login.paramiko.keys import KeyRing, LockedKey
from remoter_kernel.local.login.paramiko.transport import ACCEPTS_PIPELINING
from remoter_kernel.local.login.paramiko.userauth import AuthResult, CannotSign, InfoRequest
from remoter_kernel.local.login.paramiko_channel import (
    ConnectionClosed,
    ResponseTimeout,
    ServerViolation,
)
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
    from remoter_kernel.local.login.paramiko.transport import Transport
    from remoter_kernel.local.login.prompts import Prompter
    from remoter_kernel.local.login.ssh_config import Destination

AUTH_RESULT_WITHIN = 30.0  # seconds for one attempt: the server may ask a slow directory service
MOST_ATTEMPTS = 30  # of a login, keys aside: no server that means well needs more
MOST_ROUNDS = 20  # of one attempt: no server that means well has more
PUBLICKEY = "publickey"
METHOD_WORDS = {"password": "a password", "keyboard-interactive": "a password or a code"}
NOT_A_PASSWORD = re.compile(
    r"one.?time|otp|oath|token|code|verif|pin\b|duo|new|again", re.IGNORECASE
)


def prompter_label(hop: Destination, last: Destination) -> str:
    """Say who asks when a hop does: a jump host cannot speak in the name of what is behind it."""
    behind = last.alias or last.host_name
    return hop.label if hop is last else f"{hop.label} (jump host of {behind})"


class Authenticator:
    """One login's way in."""

    def __init__(
        self,
        destination: Destination,
        transport: Transport,
        prompter: Prompter | None,
        credentials: HostCredentials,
        *,
        label: str = "",
        on_first_key: Callable[[], None] = lambda: None,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._destination = destination
        self._label = label or destination.label
        self._user = destination.user
        self._userauth = transport.userauth
        self._software = transport.software
        self._prompter = prompter
        show = partial(prompter.ask, "", ()) if prompter is not None else None
        self._banner = Banner(self._label, show)
        self._credentials = credentials
        self._on_first_key = on_first_key
        self._on_refusal = on_refusal
        self._rules = destination.rules
        self._key_ring = KeyRing(destination)
        self._has_tried_keys = False
        self._tried = 0  # keys
        self._has_locked_key = False  # is there a key that only a person can unlock?
        self._rejected = 0  # answers of a person, one after the other
        self._accepted_answers: list[tuple[Prompt, str]] = []  # in attempts that were right

    def run(self) -> None:
        """Be let in, or raise LoginRefused, Closed or TooLate."""
        self._userauth.request_service()
        if not self._software.startswith(ACCEPTS_PIPELINING):
            self._userauth.wait_for_service(self._destination.connect_timeout)
        try:
            result = self._first_attempt()
            for _ in range(MOST_ATTEMPTS):
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
        if self._rules.methods[:1] == (PUBLICKEY,):
            return self._try_keys()
        self._userauth.send_none(self._user)
        return self._wait_for_result()

    def _next_method(self, result: AuthResult) -> str:
        """Choose what to try next; "" where nothing is left."""
        left = [each for each in self._rules.methods if each in result.methods_left]
        if PUBLICKEY in left and self._has_tried_keys:
            left.remove(PUBLICKEY)
        if PUBLICKEY in left and self._prompter is None:
            return PUBLICKEY  # as with BatchMode: what only a person could answer is passed over
        if self._rejected >= self._rules.prompts:
            return PUBLICKEY if PUBLICKEY in left else ""
        return left[0] if left else ""

    def _next_attempt(self, result: AuthResult) -> AuthResult:
        """Go on from a verdict that was not the last."""
        if result.is_partial and self._accepted_answers:
            self._has_tried_keys = False
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
            if self._rejected:
                raise self._disconnected() from None
            raise
        if result.is_success or result.is_partial:
            self._accepted_answers += typed
            self._rejected = 0
        elif password:
            self._credentials.store_password("")
        else:
            self._rejected += 1
        return result

    # --- keys ---

    def _try_keys(self) -> AuthResult:
        """Show one key after the other; return the last verdict."""
        self._has_tried_keys = True
        result: AuthResult | None = None
        for name, key in self._key_ring.candidates():
            if isinstance(key, LockedKey):
                result, key = self._decrypt_key(key, result)  # noqa: PLW2901 - it is the same key
                if key is None:
                    continue
            try:
                self._userauth.send_key(self._user, key)
            except CannotSign as error:
                self._key_ring.notes.append(f"{name} did not sign: {error}.")
                continue
            self._tried += 1
            if self._tried == 1:
                self._on_first_key()
            result = self._wait_for_result()
            if result.is_success:
                return result
            self._on_refusal()
            if result.is_partial or PUBLICKEY not in result.methods_left:
                return result
        if result is None:
            # Only now is it worth a round trip to learn what the server would take.
            self._userauth.send_none(self._user)
            result = self._wait_for_result()
        return result

    def _decrypt_key(
        self, key: LockedKey, result: AuthResult | None
    ) -> tuple[AuthResult | None, Any]:
        """Ask for the passphrase of a key, if the server would take that key."""
        known = self._credentials.passphrase(str(key.file))
        if not known and self._prompter is None:
            self._has_locked_key = True
            self._key_ring.notes.append(f"{key.file} has a passphrase and no agent holds it.")
            return result, None
        if key.public:
            self._userauth.query_key(self._user, key.algorithm, key.public)
            response = self._wait_for_response()
            if isinstance(response, AuthResult):
                self._tried += 1
                return response, None
        for attempt in range(self._rules.prompts):
            again = "That was not it." if attempt else ""
            was_known = bool(known)
            phrase = known or self._prompt_for_passphrase(key.file, again)
            known = ""
            if not phrase:
                break
            if unlocked := key.unlock(phrase):
                self._credentials.store_passphrase(str(key.file), phrase)
                return result, unlocked
            if was_known:
                self._credentials.store_passphrase(str(key.file), "")
                if self._prompter is None:
                    break
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
            if self._tried > 1:
                raise self._disconnected() from None
            raise
        return response if isinstance(response, AuthResult) else AuthResult(is_success=False)

    # --- what a person knows ---

    def _try_password(self, password: str) -> tuple[AuthResult, list[tuple[Prompt, str]]]:
        prompt = Prompt(f"Password of {self._user}:")
        given = password or self._prompt((prompt,), self._retry_note())[0]
        self._userauth.send_password(self._user, given)
        response = self._wait_for_response()
        if isinstance(response, InfoRequest):
            raise LoginRefused(
                f"the password of {self._user} on {self._destination.label} has expired.",
                "Log in once with `ssh` at a terminal and change it.",
            )
        return response, [(Prompt("password"), given)]

    def _keyboard_interactive(self, password: str) -> tuple[AuthResult, list[tuple[Prompt, str]]]:
        """Answer the server's questions, round by round."""
        typed: list[tuple[Prompt, str]] = []
        told: list[str] = []  # instructions of rounds without a question
        self._userauth.send_keyboard_interactive(self._user)
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
        assert self._prompter is not None  # noqa: S101 - looked at before each way that leads here
        instruction = f"{self._banner.take_unseen(self._userauth.banner)}\n{instruction}".strip()
        return self._prompter.ask(self._label, prompts, instruction)

    def _prompt_for_passphrase(self, file: Path, again: str) -> str:
        assert self._prompter is not None  # noqa: S101 - looked at before
        home = Path.home()
        where = f"~/{file.relative_to(home)}" if file.is_relative_to(home) else str(file)
        prompt = Prompt(f"{OWN_TAG}passphrase of {where} (it is not sent):")
        return self._prompter.ask("", (prompt,), again)[0]

    def _retry_note(self) -> str:
        return "That was not accepted." if self._rejected else ""

    def _store_password(self) -> None:
        """Keep a password that was the only thing that a person had to know."""
        if len(self._accepted_answers) == 1 and is_password(self._accepted_answers[0][0]):
            self._credentials.store_password(self._accepted_answers[0][1])

    # --- refusals ---

    def _no_prompter(self, method: str, result: AuthResult | None) -> LoginRefused:
        partly = bool(result and result.is_partial)
        took = " took a key and" if partly else ""
        ways = LOG_IN_FIRST if partly else LOG_IN_WITHOUT_PROMPTS
        return NeedsPerson(
            f"{self._destination.label}{took} asks for {METHOD_WORDS[method]} of {self._user}, "
            "and nobody can be asked here.",
            " ".join([*self._key_ring.notes, ways]),
        )

    def _refused(self, result: AuthResult) -> LoginRefused:
        """Say why nobody was let in, and what would help."""
        label, shown = self._destination.label, self._tried
        keys = {0: "no key", 1: "the key"}.get(shown, f"any of {shown} keys")
        if self._rejected:
            return LoginRefused(
                f"{label} did not accept what was typed for {self._user}, {self._rejected} times.",
                "Run the cell or the command again to try again.",
            )
        if self._has_locked_key:
            return NeedsPerson(
                f"the key for {label} has a passphrase, and nobody can be asked here.",
                " ".join([*self._key_ring.notes, LOG_IN_WITHOUT_PROMPTS]),
            )
        wants = ", ".join(result.methods_left) or "something else"
        forbids = self._rules.forbidden_by(result.methods_left)
        if forbids and not set(result.methods_left) & set(self._rules.methods):
            return LoginRefused(
                f"{label} asks {self._user} for: {wants}; your ssh config says {forbids}.",
                " ".join([*self._key_ring.notes, CHANGE_SSH_CONFIG]),
            )
        if result.is_partial:
            what = f"{label} took a key of {self._user} and wants more: {wants}."
        elif not shown:
            what = f"there is no key to show to {label} as {self._user}."
        else:
            what = f"{label} did not accept {keys} for {self._user}."
        advice = " ".join(self._key_ring.notes)
        if forbids:
            advice += f" Your ssh config says {forbids} for it."
        if PUBLICKEY in result.methods_left or not result.methods_left:
            advice += " Add a key with `ssh-copy-id`, or one to the agent with `ssh-add`."
        elif not result.is_partial:
            advice += f' It would take: {wants}; perhaps by transport = "openssh".'
        return LoginRefused(what, advice.strip())

    def _disconnected(self) -> LoginRefused:
        if self._rejected:
            return LoginRefused(
                f"{self._destination.label} hung up after {self._rejected + 1} answers that it "
                "did not accept.",
                "Wait a little before the next try: an account may be locked after too many.",
            )
        return LoginRefused(
            f"{self._destination.label} hung up after {self._tried} keys that it did not accept.",
            "Name the right one with IdentityFile, and say IdentitiesOnly yes, in your ssh config.",
        )


def is_password(prompt: Prompt) -> bool:
    """Does a prompt ask for what stays the same from login to login?"""
    text = prompt.text
    return not prompt.is_shown and "password" in text.lower() and not NOT_A_PASSWORD.search(text)
