"""The client's side of RFC 4252, on paramiko's: sends attempts to log in, collects what comes.

What comes is kept only as long as somebody waits for it, and only as much as a person can read.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paramiko
from paramiko import common as ssh

from remoter_kernel.local.login.login import ConnectionClosed, ResponseTimeout, ServerViolation
from remoter_kernel.local.login.paramiko import paramiko_internals as internals
from remoter_kernel.local.login.paramiko.paramiko_channel import ssh_message
from remoter_kernel.local.login.prompts import LONGEST_TEXT, Prompt, strip_controls, to_one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_PROMPTS = 32  # in one round: more than any server has that means well
MOST_UNREAD = 32  # answers that nobody has waited for: one attempt has one
MOST_METHODS = 32
METHOD = re.compile(r"[A-Za-z0-9@.-]{1,64}")  # the name of one, as it may stand in a sentence


@dataclass(frozen=True)
class AuthResult:
    """What the server said to one attempt to log in."""

    is_success: bool
    # The methods it names: "publickey", "password", "keyboard-interactive", ..
    methods_left: tuple[str, ...] = ()
    is_partial: bool = False  # this attempt was right, and another one is needed as well


@dataclass(frozen=True)
class InfoRequest:
    """What the server said in the middle of an attempt: it wants answers to these prompts."""

    instruction: str
    prompts: tuple[Prompt, ...]


class CannotSign(Exception):
    """A key turned out to be of no use: an agent that declines, an algorithm that is not there."""


class UserauthHandler(internals.HookedAuthHandler):
    """Sends attempts to log in, and keeps what the server answers until somebody waits for it."""

    authenticated: bool

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self.banner = ""  # what the server tells everybody before they are let in
        self._method = ""  # of the attempt that is under way
        self._responses: queue.SimpleQueue[AuthResult | InfoRequest | ServerViolation | None] = (
            queue.SimpleQueue()
        )
        self._service_accepted = threading.Event()

    def request_service(self) -> None:
        """Ask to be let in at all."""
        self._send(ssh.cMSG_SERVICE_REQUEST, "ssh-userauth")

    def wait_for_service(self, seconds: float) -> None:
        """Wait until the server is ready for attempts."""
        if not self._service_accepted.wait(seconds):
            raise ResponseTimeout
        if not self.transport.active:
            raise ConnectionClosed

    def send_key(self, user: str, key: Any) -> None:
        """Sign with this key and send it, without asking first whether it would do."""
        try:
            signed = internals.sign_login(self, user, key)
        except Exception as error:  # keys and agents are foreign: anything may come
            raise CannotSign(str(error) or type(error).__name__) from error
        self._attempt(user, "publickey", True, *signed)  # True: it is signed

    def send_none(self, user: str) -> None:
        """Ask to be let in without any proof, to learn what would be taken."""
        self._attempt(user, "none")

    def query_key(self, user: str, algorithm: str, public: bytes) -> None:
        """Ask whether a key would do, before anybody is asked for its passphrase."""
        self._attempt(user, "publickey", False, algorithm, public)  # False: nothing is signed

    def send_password(self, user: str, password: str) -> None:
        """Send a password."""
        self._attempt(user, "password", False, password)  # False: no new one is set

    def send_keyboard_interactive(self, user: str) -> None:
        """Ask for the server's own questions (RFC 4256)."""
        self._attempt(user, "keyboard-interactive", "", "")  # any language, any sub-method

    def send_answers(self, answers: Sequence[str]) -> None:
        """Answer one round of questions."""
        self._send(ssh.cMSG_USERAUTH_INFO_RESPONSE, len(answers), *answers)

    def _attempt(self, user: str, method: str, *fields: str | bytes | bool) -> None:
        self._method = method
        self._send(ssh.cMSG_USERAUTH_REQUEST, user, "ssh-connection", method, *fields)

    def _send(self, kind: bytes, *fields: str | bytes | int) -> None:
        try:
            internals.send_message(self.transport, ssh_message(kind, *fields))
        except (OSError, EOFError, paramiko.SSHException):
            raise ConnectionClosed from None

    def wait(self, seconds: float) -> AuthResult | InfoRequest:
        """Wait for what comes of the oldest attempt without a verdict.

        Raises ConnectionClosed, ResponseTimeout, or ServerViolation: the server wants more than
        anybody can answer.
        """
        try:
            response = self._responses.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise ResponseTimeout from None
        if response is None:
            raise ConnectionClosed
        if isinstance(response, ServerViolation):
            raise response
        return response

    def send_ignore(self) -> None:
        """Send what means nothing: a connection that is dead cannot acknowledge it."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self.transport.send_ignore(1)  # byte

    def abort(self) -> None:
        """The connection ended (paramiko calls this)."""
        super().abort()
        self._service_accepted.set()  # whoever waits for it looks at `transport.active`
        self._responses.put(None)

    def handlers(self) -> dict[int, Callable[[Any], None]]:
        """Return what to call for messages of these numbers."""
        return {
            ssh.MSG_SERVICE_ACCEPT: lambda _message: self._service_accepted.set(),
            ssh.MSG_USERAUTH_SUCCESS: self._on_success,
            ssh.MSG_USERAUTH_FAILURE: self._on_failure,
            ssh.MSG_USERAUTH_INFO_REQUEST: self._on_info_request,
            ssh.MSG_USERAUTH_BANNER: self._on_banner,
        }

    def _enqueue(self, response: AuthResult | InfoRequest | ServerViolation) -> None:
        """Keep it for whoever waits; what comes after the login, nobody waits for."""
        if self.authenticated:  # a server may go on for as long as the login lasts
            return
        if self._responses.qsize() >= MOST_UNREAD:
            raise ServerViolation("answers what it was not asked")
        self._responses.put(response)

    def _on_success(self, _message: Any) -> None:
        if self.authenticated:
            return
        self._enqueue(AuthResult(is_success=True))
        self.authenticated = True
        internals.begin_session(self.transport)

    def _on_failure(self, message: Any) -> None:
        names = _read_text(message).split(",", MOST_METHODS)[:MOST_METHODS]
        left, partly = tuple(filter(METHOD.fullmatch, names)), message.get_boolean()
        self._enqueue(AuthResult(is_success=False, methods_left=left, is_partial=partly))

    def _on_info_request(self, message: Any) -> None:
        """Take number 60, which means another thing in each method."""
        # Elsewhere it means: this key would do; this password is too old.
        is_round = self._method == "keyboard-interactive"
        self._enqueue(_parse_info_request(message) if is_round else InfoRequest("", ()))

    def _on_banner(self, message: Any) -> None:
        # It comes unasked, and as often as the server likes: what is full stays as it is.
        if not self.authenticated and len(self.banner) < LONGEST_TEXT:
            self.banner = strip_controls(f"{self.banner}\n{_read_text(message)}".strip())


def _parse_info_request(message: Any) -> InfoRequest | ServerViolation:
    """Read a server's questions (RFC 4256, 3.2)."""
    name, instruction = strip_controls(_read_text(message)), strip_controls(_read_text(message))
    _read_text(message)  # a language tag
    number = message.get_int()
    if number > MOST_PROMPTS:
        return ServerViolation(f"asks {number} questions at once")
    prompts = []
    for _ in range(number):
        text, is_shown = _read_text(message), message.get_boolean()
        if len(text) > LONGEST_TEXT:
            return ServerViolation(f"asks a question of {len(text)} characters")
        prompts.append(Prompt(to_one_line(text), is_shown=is_shown))
    words = "\n".join(filter(None, (name.strip(), instruction.strip())))
    return InfoRequest(words, tuple(prompts))


def _read_text(message: Any) -> str:
    """Read a string that should be UTF-8, and may be anything."""
    return str(message.get_binary().decode(errors="replace"))
