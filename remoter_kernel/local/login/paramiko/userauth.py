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
from paramiko.auth_handler import AuthHandler
from paramiko.common import (
    MSG_SERVICE_ACCEPT,
    MSG_USERAUTH_BANNER,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_INFO_REQUEST,
    MSG_USERAUTH_SUCCESS,
    cMSG_SERVICE_REQUEST,
    cMSG_USERAUTH_INFO_RESPONSE,
    cMSG_USERAUTH_REQUEST,
)

from remoter_kernel.local.login.paramiko_channel import (
    ConnectionClosed,
    ResponseTimeout,
    ServerViolation,
)
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
    methods_left: tuple[str, ...] = ()
    """The methods it names: "publickey", "password", "keyboard-interactive", ..."""
    is_partial: bool = False
    """This attempt was right, and another one is needed as well."""


@dataclass(frozen=True)
class InfoRequest:
    """What the server said in the middle of an attempt: it wants answers to these prompts."""

    instruction: str
    prompts: tuple[Prompt, ...]


class CannotSign(Exception):
    """A key turned out to be of no use: an agent that declines, an algorithm that is not there."""


class UserauthHandler(AuthHandler):  # type: ignore[misc]  # paramiko has no types
    """The client's side of RFC 4252: sends attempts, collects verdicts."""

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
        message = paramiko.Message()
        message.add_byte(cMSG_SERVICE_REQUEST)
        message.add_string("ssh-userauth")
        self._send(message)

    def wait_for_service(self, seconds: float) -> None:
        """Wait until the server is ready for attempts."""
        if not self._service_accepted.wait(seconds):
            raise ResponseTimeout
        if not self.transport.active:
            raise ConnectionClosed

    def send_key(self, user: str, key: Any) -> None:
        """Sign with this key and send it, without asking first whether it would do."""
        try:
            kind, public = self._get_key_type_and_bits(key)
            algorithm = self._finalize_pubkey_algorithm(kind)
            blob = self._get_session_blob(key, "ssh-connection", user, algorithm)
            signature = key.sign_ssh_data(blob, algorithm)
        except Exception as error:  # keys and agents are foreign: anything may come
            raise CannotSign(str(error) or type(error).__name__) from error
        message = self._userauth_request(user, "publickey")
        message.add_boolean(True)
        message.add_string(algorithm)
        message.add_string(public)
        message.add_string(signature)
        self._send(message)

    def send_none(self, user: str) -> None:
        """Ask to be let in without any proof, to learn what would be taken."""
        self._send(self._userauth_request(user, "none"))

    def query_key(self, user: str, algorithm: str, public: bytes) -> None:
        """Ask whether a key would do, before anybody is asked for its passphrase."""
        message = self._userauth_request(user, "publickey")
        message.add_boolean(False)
        message.add_string(algorithm)
        message.add_string(public)
        self._send(message)

    def send_password(self, user: str, password: str) -> None:
        """Send a password."""
        message = self._userauth_request(user, "password")
        message.add_boolean(False)
        message.add_string(password.encode())
        self._send(message)

    def send_keyboard_interactive(self, user: str) -> None:
        """Ask for the server's own questions (RFC 4256)."""
        message = self._userauth_request(user, "keyboard-interactive")
        message.add_string("")
        message.add_string("")
        self._send(message)

    def send_answers(self, answers: Sequence[str]) -> None:
        """Answer one round of questions."""
        message = paramiko.Message()
        message.add_byte(cMSG_USERAUTH_INFO_RESPONSE)
        message.add_int(len(answers))
        for answer in answers:
            message.add_string(answer.encode())
        self._send(message)

    def _userauth_request(self, user: str, method: str) -> paramiko.Message:
        self._method = method
        message = paramiko.Message()
        message.add_byte(cMSG_USERAUTH_REQUEST)
        for word in (user, "ssh-connection", method):
            message.add_string(word)
        return message

    def _send(self, message: paramiko.Message) -> None:
        try:
            self.transport._send_message(message)  # noqa: SLF001 (paramiko's way)
        except (OSError, EOFError, paramiko.SSHException):
            raise ConnectionClosed from None

    def wait(self, seconds: float) -> AuthResult | InfoRequest:
        """Wait for what comes of the oldest attempt without a verdict.

        Raises Closed, TooLate, or Misbehaved: the server wants more than anybody can answer.
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
            self.transport.send_ignore(1)

    def abort(self) -> None:
        """The connection ended (paramiko calls this)."""
        super().abort()
        self._service_accepted.set()
        self._responses.put(None)

    @property
    def _client_handler_table(self) -> dict[int, Callable[[Any], None]]:
        return {
            **super()._client_handler_table,
            MSG_SERVICE_ACCEPT: lambda _message: self._service_accepted.set(),
            MSG_USERAUTH_SUCCESS: self._on_success,
            MSG_USERAUTH_FAILURE: self._on_failure,
            MSG_USERAUTH_INFO_REQUEST: self._on_info_request,
            MSG_USERAUTH_BANNER: self._on_banner,
        }

    def _enqueue(self, response: AuthResult | InfoRequest | ServerViolation) -> None:
        """Keep it for whoever waits; what comes after the login, nobody waits for."""
        if self.authenticated:
            return
        if self._responses.qsize() >= MOST_UNREAD:
            raise ServerViolation("answers what it was not asked")
        self._responses.put(response)

    def _on_success(self, _message: Any) -> None:
        if self.authenticated:
            return
        self._enqueue(AuthResult(is_success=True))
        self.authenticated = True
        self.transport._auth_trigger()  # noqa: SLF001 (paramiko's way)

    def _on_failure(self, message: Any) -> None:
        named = filter(
            METHOD.fullmatch, _read_text(message).split(",", MOST_METHODS)[:MOST_METHODS]
        )
        partly = message.get_boolean()
        self._enqueue(AuthResult(is_success=False, methods_left=tuple(named), is_partial=partly))

    def _on_info_request(self, message: Any) -> None:
        """Hear number 60, which means another thing in each method."""
        # This key would do; this password is too old.
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
