"""One login that is kept: the first client has it made, later ones use it.

Decides when a login is as good as dead. One that fell silent is given up once, for all
users: their tunnels end with it, and each of them asks for a login again.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from remoter_kernel import logs
from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.local.login.credentials import RemoteCredentials
from remoter_kernel.local.login.keeper.endpoint import LOGIN_FACTS, Message, Reply
from remoter_kernel.local.login.keeper.login_attempt import LoginAttempt
from remoter_kernel.local.login.log_in import log_in_to
from remoter_kernel.local.login.login import LoginGone
from remoter_kernel.local.login.prompts import to_one_line
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.keeper.connected_client import ConnectedClient
    from remoter_kernel.local.login.ssh_login import SSHLogin

CHECK_EVERY = 15.0  # seconds between two looks at a login from which nothing comes
PROBE_WITHIN = 2.0  # seconds, and four round trips, that a login in doubt has for an answer
SILENT_FOR = 10.0  # seconds without an answer after which a login is given up
TRUSTED_FOR = 20.0  # seconds since anything came from it
ANY_TRANSPORT = "auto"
UNLIMITED = float("inf")
_log = logging.getLogger(__name__)


@dataclass
class _ActiveLogin:
    """A login that is there."""

    login: SSHLogin
    since: float = field(default_factory=time.time)
    heard_at: float = field(default_factory=time.time)  # a clock that goes on while asleep
    received: int = 0  # bytes, when that was looked at
    is_probing: bool = False  # it is being asked whether it is there


class SharedLogin:
    """The login of one user on one host by one way, and its users."""

    def __init__(self) -> None:
        self.has_logged_in = False  # has there ever been a login?
        self._attempt_lock = threading.Lock()  # held by the one who looks whether to log in
        # The remote of each, and for how many seconds that wants the login kept.
        self._users: dict[ConnectedClient, tuple[str, float]] = {}
        self._kept_until: dict[str, float] = {}  # by the remotes that it has served
        self._active: _ActiveLogin | None = None
        self._credentials = RemoteCredentials()
        self._attempt: LoginAttempt | None = None  # the last one
        self.is_over = False  # a client that comes now must get another one

    # --- its users (under the server's lock) ---

    def add_user(self, client: ConnectedClient, remote: str, lifetime: float) -> None:
        """Count a client among the users; it wants the login kept for `lifetime` seconds."""
        self._users[client] = (remote, lifetime)
        self._kept_until.setdefault(remote, 0.0)

    def remove_user(self, client: ConnectedClient) -> None:
        """A user goes: the login is kept for as long as any of their remotes wants it."""
        remote, lifetime = self._users.pop(client, ("", 0.0))
        # A login that nobody got in by is not kept, nor one whose remote was removed.
        if self.has_logged_in and remote in self._kept_until:
            self._kept_until[remote] = time.monotonic() + lifetime

    @property
    def seconds_left(self) -> float:
        """How long it is kept without another user; what was typed is kept in an outage, too."""
        if self._users:
            return UNLIMITED  # for as long as somebody uses it
        return max(self._kept_until.values(), default=0.0) - time.monotonic()

    def remove_remote(self, name: str) -> bool:
        """A remote is removed; say whether it was the last one that this login serves."""
        was_served = self._kept_until.pop(name, None) is not None
        return was_served and not self._kept_until

    # --- what it is used for ---

    def execute(self, client: ConnectedClient, message: Message, blobs: list[bytes]) -> Reply:
        """Do one thing over the login; what is not done is a RemoterError."""
        login, command = self._live_login, message.get("command", "")
        match message["do"]:
            case "run":
                ran = login.run(command, blobs[0], seconds=message["seconds"])
                answer: Message = {"status": ran.status}
                back = [ran.stdout, ran.stderr]
            case "run until line":
                line = login.run_until_line(command, blobs[0], blobs[1], message["seconds"])
                answer, back = {}, [line]
            case "open tunnel":
                tunnel = login.open_tunnel(message["host"], message["port"])
                answer, back = client.register_tunnel(tunnel), []
            case "open pipe":
                answer, back = client.register_tunnel(login.open_pipe(command, blobs[0])), []
            case other:
                raise RemoterError(f"this version keeps no login that can {other!r}.")
        if self._active:
            self._active.heard_at = time.time()
        return answer, back

    @property
    def _live_login(self) -> SSHLogin:
        active = self._active
        if active is None or not active.login.is_alive:
            raise _login_gone()
        return active.login

    # --- logging in ---

    def log_in(
        self,
        client: ConnectedClient,
        remote: Remote,
        destination: Destination,
        message: Message,
    ) -> Message:
        """Return what is known of the login; log in, if there is none that lives."""
        client.may_ask = bool(message["may_ask"])
        client.place = to_one_line(str(message["place"]))
        is_new = False
        while True:
            attempt, begin = self._current_attempt(client, remote, destination, message)
            if attempt is None:
                break
            is_fit = remote.transport in (ANY_TRANSPORT, attempt.transport)
            can_be_asked = client.may_ask and is_fit
            is_new = attempt.wait(client, can_be_asked=can_be_asked, begin=begin)
            if is_new and begin:
                break
            # What another one has just made is neither in doubt nor stale.
            message = {**message, "in_doubt": False, "is_stale": False} if is_new else message
        login = self._live_login
        since = self._active.since if self._active else time.time()
        more = {"since": since, "is_new": is_new}
        return {name: getattr(login, name) for name in LOGIN_FACTS if name not in more} | more

    def _current_attempt(
        self,
        client: ConnectedClient,
        remote: Remote,
        destination: Destination,
        message: Message,
    ) -> tuple[LoginAttempt | None, Callable[[], None] | None]:
        """Return the login that is being made, and what begins it if it is a new one."""
        with self._attempt_lock:
            if client.is_gone:  # while it waited for the lock: its person is not there
                raise Unreachable("whoever asked for the login is gone.")
            if self.is_over:
                raise _login_gone()
            if self._attempt and not self._attempt.is_over:
                return self._attempt, None
            # A login that others use is not taken from them.
            is_unfit = message["is_stale"] or self._is_by_another_transport(remote)
            if is_unfit and not self._is_used_by_others(client):
                self._drop_login()
            if self._is_healthy(in_doubt=bool(message["in_doubt"])):
                return None, None
            self._drop_login()
            attempt = self._attempt = LoginAttempt(remote.transport, may_ask=client.may_ask)
            make = partial(self._run_attempt, attempt, remote, destination, message)
            return attempt, Thread(make, name="keeper-login", on_error=attempt.finish).start

    def _is_by_another_transport(self, remote: Remote) -> bool:
        wanted = (ANY_TRANSPORT, self._active.login.transport if self._active else ANY_TRANSPORT)
        return self._active is not None and remote.transport not in wanted

    def _is_used_by_others(self, client: ConnectedClient) -> bool:
        return any(each.has_tunnels for each in list(self._users) if each is not client)

    def _run_attempt(
        self,
        attempt: LoginAttempt,
        remote: Remote,
        destination: Destination,
        message: Message,
    ) -> None:
        """Log in, in a thread of its own: whoever waits for it may come and go."""
        _log.info("Logging in for the remote %s.", remote.name)
        try:
            self._credentials.use_keyring(is_remembered=bool(message["is_remembered"]))
            login = log_in_to(
                remote,
                attempt if attempt.may_ask else None,
                on_step=attempt.send_step,
                on_try=attempt.set_login,
                destination=destination,
                credentials=self._credentials,
            )
        except BaseException as error:  # noqa: BLE001 - those who wait raise it
            _log.warning("Not logged in: %s", logs.reason(error))
            attempt.finish(error)
            return
        self.has_logged_in = True
        took = sum(login.seconds.values())
        _log.info("Logged in by %s in %.3f s", login.transport, took)
        self._active = _ActiveLogin(login)
        if self.is_over:  # a client ended it meanwhile
            self._drop_login()
        attempt.finish()

    # --- whether it lives ---

    def _is_healthy(self, *, in_doubt: bool) -> bool:
        """Is there a login that answers? It is not asked if something came from it just now.

        Unless a client doubts it: this machine may have slept since, and no clock says how long.
        """
        active = self._active
        if active is None or not active.login.is_alive:
            return False
        if not in_doubt and 0 <= time.time() - active.heard_at < TRUSTED_FOR:
            return True
        # What a command says may be in the way of the answer.
        patience = SILENT_FOR if active.login.is_busy else PROBE_WITHIN  # a client waits for it
        return _responds(active, patience + 4 * active.login.round_trip)

    def check_alive(self) -> None:
        """Ask a silent login whether it is there; it may not be, without anybody knowing.

        The answer is waited for aside: other logins are looked at meanwhile.
        """
        active = self._active
        if active is None:
            return
        received = sum(client.received for client in list(self._users))
        if received != active.received:  # bytes for a tunnel are a sign of life, too
            active.received, active.heard_at = received, time.time()
        elif not 0 <= time.time() - active.heard_at < CHECK_EVERY and not active.is_probing:
            active.is_probing = True
            looking = Thread(
                _probe,
                args=(active,),
                name="login-look",
                on_error=lambda _error: active.login.abort(),
            )
            try:
                looking.start()
            except RuntimeError:  # no thread is left: later, perhaps
                active.is_probing = False

    # --- the end ---

    def close(self) -> None:
        """End the login, and one that is being made, and with it the tunnels of all its users."""
        self.is_over = True
        attempt = self._attempt
        if attempt:
            attempt.abort()
        self._drop_login()

    def _drop_login(self) -> None:
        active, self._active = self._active, None
        if active:
            _log.info("A login ends after %.0f s.", time.time() - active.since)
            self._credentials.allow_reuse()  # it had let us in
            active.login.abort()  # else a close could wait for a dead network
            active.login.close()


def _login_gone() -> LoginGone:
    return LoginGone("the connection is gone.", "It can be dialled again.")


def _probe(active: _ActiveLogin) -> None:
    """Cut a login that does not answer."""
    try:
        if not _responds(active, SILENT_FOR):
            _log.warning("A login does not answer within %.0f s, and is cut.", SILENT_FOR)
            active.login.abort()
    finally:  # whatever happened: it can be asked again
        active.is_probing = False


def _responds(active: _ActiveLogin, seconds: float) -> bool:
    is_there = active.login.responds_within(seconds)
    if is_there:
        active.heard_at = time.time()
    return is_there
