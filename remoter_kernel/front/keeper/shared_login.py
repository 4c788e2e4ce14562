"""One login that is kept: who comes first logs in, who comes later uses it.

Decides when a login is as good as dead. A login that fell silent is given up once, for all
users: their tunnels end with it, and each of them comes again.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel import logs
from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.front.keeper.attempt import Attempt
from remoter_kernel.front.logins.log_in import log_in_to
from remoter_kernel.front.questions import on_one_line
from remoter_kernel.front.ssh.memory import Memories
from remoter_kernel.front.ssh.outcome import LoginGone
from remoter_kernel.wire.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.front.configuration.remotes import Remote
    from remoter_kernel.front.keeper.visitor import Visitor
    from remoter_kernel.front.ssh.aliases import Destination
    from remoter_kernel.front.ssh.ssh_login import Login

LOOK_EVERY = 15.0  # seconds between two looks at a login of which nothing is heard
ANSWERS_WITHIN = 2.0  # seconds, and four round trips, that a login in doubt has for an answer
SILENT_FOR = 10.0  # seconds without an answer after which a login is given up
TRUSTED_FOR = 20.0  # seconds since it was last heard from
ANY_TRANSPORT = "auto"
NEVER = float("inf")
_log = logging.getLogger(__name__)


@dataclass
class _ActiveLogin:
    """A login that is there."""

    login: Login
    since: float = field(default_factory=time.time)
    heard_at: float = field(default_factory=time.time)  # a clock that goes on while asleep
    received: int = 0  # bytes, when that was looked at
    is_in_doubt: bool = False  # it is being asked whether it is there


class SharedLogin:
    """The login of one user on one host by one way, and its users."""

    def __init__(self) -> None:
        self.was_inside = False  # has there ever been a login?
        self._turn = threading.Lock()  # held by the one who looks whether to log in
        # The remote of each, and for how many seconds that wants the login kept.
        self._users: dict[Visitor, tuple[str, float]] = {}
        self._kept_until: dict[str, float] = {}  # by the remotes that it has served
        self._held: _ActiveLogin | None = None
        self._memories = Memories()
        self._attempt: Attempt | None = None  # the last one
        self.is_over = False  # whoever comes must find another one

    # --- its users (under the server's lock) ---

    def join(self, visitor: Visitor, remote: str, lifetime: float) -> None:
        """Count a visitor among the users; it wants the login kept for `lifetime` seconds."""
        self._users[visitor] = (remote, lifetime)
        self._kept_until.setdefault(remote, 0.0)

    def leave(self, visitor: Visitor) -> None:
        """A user goes: the login is kept for as long as any of their remotes wants it."""
        remote, lifetime = self._users.pop(visitor, ("", 0.0))
        if self.was_inside and remote in self._kept_until:
            self._kept_until[remote] = time.monotonic() + lifetime

    @property
    def seconds_left(self) -> float:
        """How long it is kept without another user; what was typed is kept in an outage, too."""
        if self._users:
            return NEVER
        return max(self._kept_until.values(), default=0.0) - time.monotonic()

    def forget_remote(self, name: str) -> bool:
        """A remote is removed; say whether it was the last one that this login serves."""
        was_served = self._kept_until.pop(name, None) is not None
        return was_served and not self._kept_until

    # --- what it is used for ---

    def do(
        self, visitor: Visitor, words: dict[str, Any], blobs: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Do one thing over the login; what is not done is a RemoterError."""
        login, command = self._living, words.get("command", "")
        match words["do"]:
            case "run":
                ran = login.run(command, blobs[0], seconds=words["seconds"])
                answer: dict[str, Any] = {"status": ran.status}
                back = [ran.stdout, ran.stderr]
            case "run until line":
                line = login.run_until_line(command, blobs[0], blobs[1], words["seconds"])
                answer, back = {}, [line]
            case "open tunnel":
                answer, back = visitor.own(login.open_tunnel(words["host"], words["port"])), []
            case "open pipe":
                answer, back = visitor.own(login.open_pipe(command, blobs[0])), []
            case other:
                raise RemoterError(f"this version keeps no login that can {other!r}.")
        if self._held:
            self._held.heard_at = time.time()
        return answer, back

    @property
    def _living(self) -> Login:
        held = self._held
        if held is None or not held.login.is_alive:
            raise LoginGone("the connection is gone.", "It can be dialled again.")
        return held.login

    # --- logging in ---

    def log_in(
        self, visitor: Visitor, remote: Remote, destination: Destination, words: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what is known of the login; log in, if there is none that lives."""
        visitor.may_ask = bool(words["may_ask"])
        visitor.place = on_one_line(str(words["place"]))
        is_new = False
        while True:
            attempt, begin = self._begin_or_join(visitor, remote, destination, words)
            if attempt is None:
                break
            is_fit = remote.transport in (ANY_TRANSPORT, attempt.transport)
            can_be_asked = visitor.may_ask and is_fit
            is_new = attempt.wait(visitor, can_be_asked=can_be_asked, begin=begin)
            if is_new and begin:
                break
            # What another one has just made is neither in doubt nor stale.
            words = {**words, "in_doubt": False, "is_stale": False} if is_new else words
        login = self._living
        since = self._held.since if self._held else time.time()
        return {**facts(login), "since": since, "is_new": is_new}

    def _begin_or_join(
        self, visitor: Visitor, remote: Remote, destination: Destination, words: dict[str, Any]
    ) -> tuple[Attempt | None, Callable[[], None] | None]:
        """Return the login that is being made, and what begins it if it is a new one."""
        with self._turn:
            if visitor.is_gone:
                raise Unreachable("whoever asked for the login is gone.")
            if self.is_over:
                raise LoginGone("the connection is gone.", "It can be dialled again.")
            if self._attempt and not self._attempt.is_over:
                return self._attempt, None
            is_unfit = words["is_stale"] or self._is_by_another_transport(remote)
            if is_unfit and not self._is_used_by_others(visitor):
                self._give_up()
            if self._is_well(in_doubt=bool(words["in_doubt"])):
                return None, None
            self._give_up()
            attempt = self._attempt = Attempt(remote.transport, may_ask=visitor.may_ask)
            make = partial(self._make, attempt, remote, destination, words)
            return attempt, Thread(make, name="keeper-login", on_error=attempt.end).start

    def _is_by_another_transport(self, remote: Remote) -> bool:
        held = self._held
        return held is not None and remote.transport not in (ANY_TRANSPORT, held.login.transport)

    def _is_used_by_others(self, visitor: Visitor) -> bool:
        return any(each.has_tunnels for each in list(self._users) if each is not visitor)

    def _make(
        self, attempt: Attempt, remote: Remote, destination: Destination, words: dict[str, Any]
    ) -> None:
        """Log in, in a thread of its own: whoever waits for it may come and go."""
        _log.info("Logging in for the remote %s.", remote.name)
        try:
            self._memories.use(is_remembered=bool(words["is_remembered"]))
            login = log_in_to(
                remote,
                attempt if attempt.may_ask else None,
                on_step=attempt.tell_step,
                on_try=attempt.watch,
                where=destination,
                memories=self._memories,
            )
        except BaseException as error:  # noqa: BLE001 - those who wait raise it
            _log.warning("Not logged in: %s", logs.reason(error))
            attempt.end(error)
            return
        self.was_inside = True
        took = sum(login.seconds.values())
        _log.info("Logged in by %s in %.3f s", login.transport, took)
        self._held = _ActiveLogin(login)
        if self.is_over:  # somebody ended it meanwhile
            self._give_up()
        attempt.end()

    # --- whether it lives ---

    def _is_well(self, *, in_doubt: bool) -> bool:
        """Is there a login that answers? One that was heard of late is believed, if nobody doubts.

        This machine may have slept since, and nothing on it knows how long.
        """
        held = self._held
        if held is None or not held.login.is_alive:
            return False
        if not in_doubt and 0 <= time.time() - held.heard_at < TRUSTED_FOR:
            return True
        # What a command says may be in the way of the answer.
        patience = SILENT_FOR if held.login.is_busy else ANSWERS_WITHIN
        return _answers(held, patience + 4 * held.login.round_trip)

    def look(self) -> None:
        """Ask a silent login whether it is there; it may not be, without anybody knowing.

        The answer is waited for aside: other logins are looked at meanwhile.
        """
        held = self._held
        if held is None:
            return
        received = sum(visitor.received for visitor in list(self._users))
        if received != held.received:
            held.received, held.heard_at = received, time.time()
        elif not 0 <= time.time() - held.heard_at < LOOK_EVERY and not held.is_in_doubt:
            held.is_in_doubt = True
            looking = Thread(
                _prove, args=(held,), name="login-look", on_error=lambda _error: held.login.cut()
            )
            try:
                looking.start()
            except RuntimeError:  # no thread is left: later, perhaps
                held.is_in_doubt = False

    # --- the end ---

    def close(self) -> None:
        """End the login, and one that is being made, and with it the tunnels of all its users."""
        self.is_over = True
        attempt = self._attempt
        if attempt:
            attempt.cut()
        self._give_up()

    def _give_up(self) -> None:
        held, self._held = self._held, None
        if held:
            _log.info("A login ends after %.0f s.", time.time() - held.since)
            self._memories.refresh()
            held.login.cut()
            held.login.close()


def _prove(held: _ActiveLogin) -> None:
    """Cut a login that does not answer."""
    try:
        if not _answers(held, SILENT_FOR):
            _log.warning("A login does not answer within %.0f s, and is cut.", SILENT_FOR)
            held.login.cut()
    finally:  # whatever happened: it can be asked again
        held.is_in_doubt = False


def _answers(held: _ActiveLogin, seconds: float) -> bool:
    is_there = held.login.answers(seconds)
    if is_there:
        held.heard_at = time.time()
    return is_there


def facts(login: Login) -> dict[str, Any]:
    """Return what is known of a login, in plain values."""
    return {
        "host": login.host,
        "user": login.user,
        "cipher": login.cipher,
        "host_key": login.host_key,
        "seconds": login.seconds,
        "round_trip": login.round_trip,
        "transport": login.transport,
        "why_transport": login.why_transport,
    }
