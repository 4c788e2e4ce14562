"""Serves the keeper's clients: finds the login that each one needs, and decides when to end.

A client names a remote; what its host stands for now is looked up here. Remotes that log in as
the same user, on the same host, by the same way, share one login.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel import logs
from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.login.keeper.connected_client import ConnectedClient
from remoter_kernel.local.login.keeper.endpoint import (
    FORWARDED_ENV,
    Message,
    Reply,
    error_to_message,
)
from remoter_kernel.local.login.keeper.shared_login import SharedLogin
from remoter_kernel.local.login.login import LoginGone
from remoter_kernel.local.login.ssh_config import resolve_destination

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from multiprocessing.connection import Connection

    from remoter_kernel.local.login.destination import Destination

CHECK_EVERY = 15.0  # seconds between two looks at the logins
GRACE = 2.0  # seconds that a keeper without a login waits for somebody who logs in
FIRST_GRACE = 20.0  # seconds until the first has come: a busy machine takes its time

_log = logging.getLogger(__name__)


class KeeperServer:
    """All of a person's kept logins on this machine, and the clients that use them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._login_of_client: dict[ConnectedClient, SharedLogin | None] = {}
        self._logins: dict[Hashable, SharedLogin] = {}
        self._clock = clock
        self._grace_until = clock() + FIRST_GRACE  # for somebody who logs in
        self._is_over = False

    # --- how long ---

    def serve(self) -> None:
        """Return when it is enough: no login is kept any more, or somebody said so."""
        while not self._is_over:
            with self._changed:
                self._changed.wait(self._seconds_until_due())
                expired = self._pop_expired()
                # Both: a client without a login is about to ask for one.
                if not self._logins and not self._login_of_client and self._grace_left() <= 0:
                    self._is_over = True
                logins = list(self._logins.values())
            for login in expired:  # not under the lock: to close takes a while
                _logging_errors(login.close)
            for login in logins:
                _logging_errors(login.check_alive)

    def close(self) -> None:
        """Hang up on all clients, and end the logins."""
        for client in list(self._login_of_client):
            client.close()
        for login in list(self._logins.values()):
            login.close()

    def end(self) -> None:
        """Have `serve` return; may be called by a signal."""
        self._is_over = True
        # A signal may come while the lock is held: it must not wait for it.
        with contextlib.suppress(RuntimeError):
            if self._changed.acquire(blocking=False):
                self._changed.notify_all()
                self._changed.release()

    def _grace_left(self) -> float:
        """Return for how many seconds a keeper without logins still waits for a client."""
        return self._grace_until - self._clock()

    def _seconds_until_due(self) -> float:
        """Return for how many seconds there is nothing to do."""
        dues = [login.seconds_left for login in self._logins.values()]
        if not self._logins and not self._login_of_client:
            dues.append(self._grace_left())
        return min([CHECK_EVERY, *(max(0.05, due) for due in dues)])  # 0.05: never in a tight loop

    def _pop_expired(self) -> list[SharedLogin]:
        """Take the logins whose time is over out of the table: nobody finds them any more."""
        expired = {way: login for way, login in self._logins.items() if login.seconds_left <= 0}
        for way in expired:
            del self._logins[way]
        return list(expired.values())

    # --- clients ---

    def serve_client(self, connection: Connection) -> None:
        """Serve one client until it goes."""
        client = ConnectedClient(connection)
        _log.info("Client %x has come.", id(client))
        with self._changed:
            self._login_of_client[client] = None  # counted at once: it must not miss its keeper
            if self._is_over:  # `close` hangs up on it, once it can find another keeper
                return
        try:
            for message, blobs in client.requests():
                answer, back = self._handle(client, message, blobs)
                client.send(answer, *back)
        finally:
            _log.info("Client %x has gone.", id(client))
            client.close()
            with self._changed:
                if login := self._login_of_client.pop(client, None):
                    login.remove_user(client)
                self._grace_until = self._clock() + GRACE
                self._changed.notify_all()

    def _handle(self, client: ConnectedClient, message: Message, blobs: list[bytes]) -> Reply:
        try:
            return self._dispatch(client, message, blobs)
        except RemoterError as error:
            _log.info("Client %x, %s: %s", id(client), message.get("do"), logs.reason(error))
            return error_to_message(error)
        except Exception as error:  # noqa: BLE001 - a bug must reach the person, too
            # Its text may hold what somebody typed: the log has only the traceback.
            _log.exception("What a client wanted has failed.")
            return error_to_message(
                RemoterError(f"the keeper of the login failed: {type(error).__name__}.")
            )

    def _dispatch(self, client: ConnectedClient, message: Message, blobs: list[bytes]) -> Reply:
        """Do one thing for a client; what is not done is a RemoterError."""
        match message["do"]:
            case "log in":
                return self._log_in(client, message), []
            case "end":
                return self._end_logins(str(message.get("name", ""))), []
        login = self._login_of_client.get(client)
        if login is None:
            raise LoginGone("nobody has logged in yet.", "Log in first.")
        return login.execute(client, message, blobs)

    def _log_in(self, client: ConnectedClient, message: Message) -> Message:
        remote = Remote(
            **{**message["remote"], "ssh_config": Path(message["remote"]["ssh_config"])}
        )
        # The agent, the ticket and the PATH are those of the client, not of who started us.
        kept = {name: value for name, value in os.environ.items() if name not in FORWARDED_ENV}
        destination = resolve_destination(
            remote.host, remote.ssh_config, {**kept, **message["environment"]}
        )
        while True:
            login = self._login_for(client, remote, destination, float(message["lifetime"]))
            try:
                return login.log_in(client, remote, destination, message)
            except LoginGone:  # another client has ended it just now: then there is a new one
                if not login.is_over:
                    raise

    def _login_for(
        self, client: ConnectedClient, remote: Remote, destination: Destination, lifetime: float
    ) -> SharedLogin:
        """Find the login of this way, and count the client among its users."""
        with self._changed:
            login = self._logins.setdefault(login_key(destination), SharedLogin())
            before = self._login_of_client.get(client)
            if before not in (None, login):
                before.remove_user(client)  # it asks for another way there now
            self._login_of_client[client] = login
            login.add_user(client, remote.name, lifetime)
            return login

    def _end_logins(self, name: str) -> Message:
        """End what only this remote uses (all, if none is named); say whether more is kept."""
        with self._changed:
            ended = {
                way: login
                for way, login in self._logins.items()
                if not name or login.remove_remote(name)
            }
            for way in ended:
                del self._logins[way]
            goes_on = bool(self._logins)  # a keeper without logins has nothing to keep
        for login in ended.values():
            login.close()
        if not goes_on:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
        return {"goes_on": goes_on}


def _logging_errors(do: Callable[[], None]) -> None:
    """Do something about one login; if that fails, the others are served all the same."""
    try:
        do()
    except Exception:  # noqa: BLE001 - it is in the keeper's log
        _log.exception("Looking after a login has failed.")


def login_key(destination: Destination) -> Hashable:
    """Return what logins must have in common to be one: who, where, and the way there.

    Keys and agents that are named for a host are part of who: a key may be good for one command
    alone. What one ssh config forbids must not come in by a login that was made under another.
    """
    return (
        destination.user,
        destination.host_name,
        destination.port,
        destination.host_key_alias,
        destination.identity_files,
        destination.identities_only,
        destination.identity_agent,
        destination.known_hosts_files,
        destination.proxy_command,
        destination.rules,
        tuple(map(login_key, destination.jumps)),
    )
