"""A login that a keeper holds, as its users see it: the same words as a login of one's own.

Blocks, as every login does. Whoever closes it gives back its tunnels; the login itself stays
with the keeper, for the next one.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.front.keeper import endpoint
from remoter_kernel.front.keeper.prompt_thread import Asking
from remoter_kernel.front.keeper.talk import (
    LOOK_EVERY,
    PERSONAL,
    raise_told,
    receive_message,
    send_message,
)
from remoter_kernel.front.questions import Person
from remoter_kernel.front.ssh.outcome import LoginGone, Ran

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from remoter_kernel.front.configuration.remotes import Remote
    from remoter_kernel.front.questions import Questions

SOMEWHERE = f"by another process (pid {os.getpid()})"
NEEDED = ("name", "host", "ssh_config", "transport")  # of a remote, to log in
# What a keeper tells of a login, and the type of each; a newer one may tell more.
TOLD: dict[str, type | tuple[type, ...]] = {
    "host": str,
    "user": str,
    "cipher": str,
    "host_key": str,
    "transport": str,
    "why_transport": str,
    "seconds": dict,
    "round_trip": (int, float),
    "since": (int, float),
    "is_new": bool,
}
MOST_KEEPERS = 5  # that may end, one after the other, just as we come


def kept_login(
    remote: Remote,
    questions: Questions | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[KeptLogin], None] = lambda _login: None,
    *,
    in_doubt: bool = False,
    is_stale: bool = False,
) -> KeptLogin:
    """Use the login of a remote's keeper, which logs in if it has to.

    `in_doubt`: a wire through it was lost; `is_stale`: what it led to was not what it should be,
    and may be mended by now, but not for a login that began before. `on_step` hears of each step
    of a new login.
    """
    login = KeptLogin(remote)
    on_try(login)
    try:
        login.start(questions, on_step, in_doubt=in_doubt, is_stale=is_stale)
    except BaseException:
        login.close()
        raise
    return login


class KeptTunnel:
    """A tunnel of the keeper's."""

    def __init__(self, address: str, secret: bytes) -> None:
        self.address = address
        self.secret = secret


class KeptLogin:
    """The way to a keeper's login."""

    def __init__(self, remote: Remote) -> None:
        self.host = remote.host
        self.user = self.cipher = self.host_key = ""
        self.transport = self.why_transport = ""
        self.seconds: dict[str, float] = {}
        self.round_trip = 0.0  # seconds
        self.since = 0.0  # seconds since 1970: when the keeper logged in
        self.is_new = True  # was it made just now?
        self.has_asked = False  # was a person asked for it, through us?
        self._remote = remote
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # one thing at a time
        self._log_in: Callable[[], None] = lambda: None  # once more, in the same way
        self._is_cut = False
        self._has_heard = False  # has the keeper ever said a word?

    def start(
        self,
        questions: Questions | None,
        on_step: Callable[[str], None],
        *,
        in_doubt: bool,
        is_stale: bool,
    ) -> None:
        """Reach the keeper, and have it log in, unless it has."""
        self._connection = endpoint.connect_to_keeper()
        words = {
            "do": "log in",
            "remote": {name: str(getattr(self._remote, name)) for name in NEEDED},
            "lifetime": self._remote.login_lifetime,
            "may_ask": questions is not None,
            "place": questions.place() if isinstance(questions, Person) else SOMEWHERE,
            "is_remembered": self._remote.remember,
            "in_doubt": in_doubt,
            "is_stale": is_stale,
            "environment": {name: os.environ[name] for name in PERSONAL if name in os.environ},
        }
        self._log_in = partial(self._learn, words, questions=questions, on_step=on_step)
        for keeper in range(1, MOST_KEEPERS + 1):
            try:
                self._log_in()
                break
            except Unreachable:
                if self._is_cut or self._has_heard or keeper == MOST_KEEPERS:
                    raise
            # It was about to end, as its time was over.
            self._hang_up()
            self._connection = endpoint.connect_to_keeper()
        words["in_doubt"] = True  # from now on

    def _learn(self, words: dict[str, Any], **options: Any) -> None:
        known, _ = self._ask(words, **options)
        for name, kind in TOLD.items():
            if isinstance(known.get(name), kind):
                setattr(self, name, known[name])

    def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> Ran:
        """Run a command with this input, and wait until it ends."""
        words = {"do": "run", "command": command, "seconds": seconds}
        answer, (stdout, stderr) = self._use(words, stdin)
        return Ran(stdout, stderr, answer["status"])

    def run_until_line(
        self, command: str, stdin: bytes, starts_with: bytes, seconds: float
    ) -> bytes:
        """Run a command, and wait for a line of stdout that starts so; the command goes on."""
        words = {"do": "run until line", "command": command, "seconds": seconds}
        return self._use(words, stdin, starts_with)[1][0]

    def open_tunnel(self, host: str, port: int) -> KeptTunnel:
        """Connect to `host`:`port` from there, and let one connection of ours to it."""
        return self._tunnel({"do": "open tunnel", "host": host, "port": port})

    def open_pipe(self, command: str, greeting: bytes) -> KeptTunnel:
        """Relay one connection here to a command there, once that has said its greeting."""
        return self._tunnel({"do": "open pipe", "command": command}, greeting)

    def _tunnel(self, words: dict[str, Any], *blobs: bytes) -> KeptTunnel:
        answer, _ = self._use(words, *blobs)
        return KeptTunnel(answer["address"], bytes.fromhex(answer["secret"]))

    def _use(self, words: dict[str, Any], *blobs: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Have something done by the login; one that has died unnoticed is made anew, once."""
        try:
            return self._ask(words, *blobs)
        except LoginGone:
            self._log_in()
            return self._ask(words, *blobs)

    def cut(self) -> None:
        """Let whatever is under way fail; from another thread."""
        self._is_cut = True

    def close(self) -> None:
        """Give the tunnels back; a question that is open is taken back."""
        self._is_cut = True
        if self._lock.acquire(timeout=2 * LOOK_EVERY):
            try:
                self._hang_up()
            finally:
                self._lock.release()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def _ask(
        self,
        words: dict[str, Any],
        *blobs: bytes,
        questions: Questions | None = None,
        on_step: Callable[[str], None] = lambda _step: None,
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Ask the keeper for something; answer what it asks meanwhile."""
        with self._lock:
            if self._connection is None or self._is_cut:
                raise self._gone()
            try:
                send_message(self._connection, words, *blobs)
                answer, back = self._hear(self._connection, questions, on_step)
            except (OSError, EOFError):
                raise self._gone() from None
            finally:
                if self._is_cut:
                    self._hang_up()
        raise_told(answer, back)
        return answer, back

    def _hear(
        self,
        connection: Connection,
        questions: Questions | None,
        on_step: Callable[[str], None],
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Return what the keeper answers in the end."""
        asking = Asking(connection, questions)
        try:
            while True:
                while not connection.poll(LOOK_EVERY):
                    if self._is_cut:
                        raise self._gone()
                answer, back = receive_message(connection)
                self._has_heard = True
                if "step" in answer:
                    on_step(answer["step"])
                elif "ask" in answer or "elsewhere" in answer:
                    self.has_asked = True
                    asking.put(answer)
                elif "withdrawn" in answer:
                    asking.take_back()
                else:
                    return answer, back
        finally:
            asking.take_back()

    def _gone(self) -> RemoterError:
        return Unreachable(f"the connection to {self.host} is gone.", "It can be dialled again.")
