"""A login that a keeper holds, as its users see it: a `Login` like any other.

Blocks, as every login does. Closing it ends its tunnels; the login itself stays
with the keeper, for the next client.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import Unreachable
from remoter_kernel.local.login.keeper import endpoint
from remoter_kernel.local.login.keeper.endpoint import (
    FORWARDED_ENV,
    LOGIN_FACTS,
    POLL_EVERY,
    Message,
    Reply,
    raise_from_message,
    receive_message,
    send_message,
)
from remoter_kernel.local.login.keeper.prompt_thread import PromptThread
from remoter_kernel.local.login.login import CompletedCommand, LoginFacts, LoginGone
from remoter_kernel.local.login.prompts import CancellablePrompter

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.prompts import Prompter

UNKNOWN_PLACE = f"by another process (pid {os.getpid()})"
REMOTE_FIELDS = ("name", "host", "ssh_config", "transport")  # of a remote, to log in
MOST_RECONNECTS = 5  # to keepers that may end, one after the other, just as we come


def log_in_by_keeper(
    remote: Remote,
    prompter: Prompter | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[KeeperLogin], None] = lambda _login: None,
    *,
    in_doubt: bool = False,
    is_stale: bool = False,
) -> KeeperLogin:
    """Use the login of a remote's keeper, which logs in if it has to.

    `in_doubt`: a connection through it was lost; `is_stale`: what it led to was not what it should
    be, and may be mended by now, but not for a login that began before. `on_step` is called with
    each step of a new login.
    """
    login = KeeperLogin(remote)
    on_try(login)
    try:
        login.start(prompter, on_step, in_doubt=in_doubt, is_stale=is_stale)
    except BaseException:
        login.close()
        raise
    return login


@dataclass
class KeeperTunnel:
    """A tunnel of the keeper's."""

    address: str
    secret: bytes


class KeeperLogin(LoginFacts):
    """The way to a keeper's login."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote.host, user="", transport="")
        self.round_trip = 0.0  # seconds
        self.since = 0.0  # seconds since 1970: when the keeper logged in
        self.is_new = True  # was it made just now?
        self.has_prompted = False  # was a person asked for it, through us?
        self._remote = remote
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # one request at a time
        self._relogin: Callable[[], None] = lambda: None  # once more, in the same way
        self._is_cut = False
        self._has_received = False  # has the keeper ever sent anything?

    def start(
        self,
        prompter: Prompter | None,
        on_step: Callable[[str], None],
        *,
        in_doubt: bool,
        is_stale: bool,
    ) -> None:
        """Reach the keeper, and have it log in, unless it has."""
        self._connection = endpoint.connect_to_keeper()
        message = {
            "do": "log in",
            "remote": {name: str(getattr(self._remote, name)) for name in REMOTE_FIELDS},
            "lifetime": self._remote.login_lifetime,
            "may_ask": prompter is not None,
            "place": prompter.place()
            if isinstance(prompter, CancellablePrompter)
            else UNKNOWN_PLACE,
            "is_remembered": self._remote.remember,
            "in_doubt": in_doubt,
            "is_stale": is_stale,
            "environment": {name: os.environ[name] for name in FORWARDED_ENV if name in os.environ},
        }
        self._relogin = partial(self._log_in, message, prompter=prompter, on_step=on_step)
        for keeper in range(1, MOST_RECONNECTS + 1):
            try:
                self._relogin()
                break
            except Unreachable:
                if self._is_cut or self._has_received or keeper == MOST_RECONNECTS:
                    raise
            # It was about to end, as its time was over: the next one is ours.
            self._disconnect()
            self._connection = endpoint.connect_to_keeper()
        message["in_doubt"] = True  # from now on: a second login follows one that was lost

    def _log_in(self, message: Message, **options: Any) -> None:
        known, _ = self._request(message, **options)
        for name, kind in LOGIN_FACTS.items():
            if isinstance(known.get(name), kind):
                setattr(self, name, known[name])

    def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> CompletedCommand:
        """Run a command with this input, and wait until it ends."""
        message = {"do": "run", "command": command, "seconds": seconds}
        answer, (stdout, stderr) = self._call(message, stdin)
        return CompletedCommand(stdout, stderr, answer["status"])

    def run_until_line(
        self, command: str, stdin: bytes, starts_with: bytes, seconds: float
    ) -> bytes:
        """Run a command, and wait for a line of stdout that starts so; the command goes on."""
        message = {"do": "run until line", "command": command, "seconds": seconds}
        return self._call(message, stdin, starts_with)[1][0]

    def open_tunnel(self, host: str, port: int) -> KeeperTunnel:
        """Connect to `host`:`port` from there, and let one connection of ours to it."""
        return self._open({"do": "open tunnel", "host": host, "port": port})

    def open_pipe(self, command: str, first_line: bytes) -> KeeperTunnel:
        """Relay one connection here to a command there, once that has said its greeting."""
        return self._open({"do": "open pipe", "command": command}, first_line)

    def _open(self, message: Message, *blobs: bytes) -> KeeperTunnel:
        answer, _ = self._call(message, *blobs)
        return KeeperTunnel(answer["address"], bytes.fromhex(answer["secret"]))

    def _call(self, message: Message, *blobs: bytes) -> Reply:
        """Have something done by the login; one that has died unnoticed is made anew, once."""
        try:
            return self._request(message, *blobs)
        except LoginGone:  # nothing was done yet: it can be done again
            self._relogin()
            return self._request(message, *blobs)

    def abort(self) -> None:
        """Let whatever is under way fail; from another thread."""
        self._is_cut = True

    def close(self) -> None:
        """Give the tunnels back; a question that is open is taken back."""
        self._is_cut = True
        # Whoever holds the lock for longer finds that it is cut, and disconnects.
        if self._lock.acquire(timeout=2 * POLL_EVERY):
            self._disconnect()
            self._lock.release()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def _request(
        self,
        message: Message,
        *blobs: bytes,
        prompter: Prompter | None = None,
        on_step: Callable[[str], None] = lambda _step: None,
    ) -> Reply:
        """Ask the keeper for something; answer what it asks meanwhile."""
        with self._lock:
            try:
                answer, back = self._exchange(message, blobs, prompter, on_step)
            except (OSError, EOFError):
                raise Unreachable(
                    f"the connection to {self.host} is gone.", "It can be dialled again."
                ) from None
            finally:
                if self._is_cut:
                    self._disconnect()
        raise_from_message(answer, back)
        return answer, back

    def _exchange(
        self,
        message: Message,
        blobs: tuple[bytes, ...],
        prompter: Prompter | None,
        on_step: Callable[[str], None],
    ) -> Reply:
        """Return what the keeper answers in the end."""
        connection = self._connection
        if connection is None or self._is_cut:
            raise EOFError
        send_message(connection, message, *blobs)
        prompts = PromptThread(connection, prompter)
        try:
            while True:
                while not connection.poll(POLL_EVERY):  # `abort` cannot wake it
                    if self._is_cut:
                        raise EOFError
                answer, back = receive_message(connection)
                self._has_received = True
                if "step" in answer:
                    on_step(answer["step"])
                elif "ask" in answer or "elsewhere" in answer:
                    self.has_prompted = True
                    prompts.ask(answer)
                elif "withdrawn" in answer:
                    prompts.withdraw()
                else:
                    return answer, back
        finally:
            prompts.withdraw()
