"""Gets to a session: log in, start or find it, open a tunnel.

Blocks. Has no state but the session's address, and the login while the link is up.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from remoter_kernel.errors import (
    ForwardingRefused,
    NoSuchSession,
    RemoteLacks,
    RemoterError,
    Unreachable,
    naming_remote,
)
from remoter_kernel.local.config.remotes import Remote, remote_cwd
from remoter_kernel.local.launch.launcher import (
    SessionInfo,
    SessionRequest,
    StrangeAnswer,
    bridge_command,
    notify_if_slow,
    query_remote,
    start_session,
)
from remoter_kernel.local.login.keeper.keeper_login import KeeperLogin, log_in_by_keeper
from remoter_kernel.local.login.login import CommandEnded
from remoter_kernel.local.session import session_cache, undelivered_commands
from remoter_kernel.local.session.dealer_socket import AnotherWay
from remoter_kernel.local.session.link import SessionEndpoint
from remoter_kernel.local.session.notebook_identity import NotebookIdentity, mark_local_files
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.embedded_host import EmbeddedHost
    from remoter_kernel.local.login.login import Login, OpenTunnel
    from remoter_kernel.local.login.prompts import Prompter

# Fields of a `Remote` that a `SessionRequest` has under the same name.
REMOTE_FIELDS = ("kernel", "init", "env", "idle_timeout", "journal_limit", "waiting_limit")
STALE_AFTER = 10.0  # seconds; a login that nobody has used for so long may have died unnoticed
STOP_ORPHAN_WITHIN = 5.0  # seconds that ending an unreached session may hold somebody up
THIS_MACHINE = Remote(name="here", host="this machine", python=sys.executable)


class LocalHost:
    """The SSH server of our own on this machine, which serves where there is no remote."""

    def __init__(self) -> None:
        self._host: EmbeddedHost | None = None  # from the first login on

    def log_in(self, on_try: Callable[[Login], None] = lambda _login: None) -> Login:
        """Log in to it; `on_try` gets the login that has only begun."""
        # Rarely needed, and slow: with a remote it is the keeper that knows SSH.
        from remoter_kernel.local.login.embedded_host import EmbeddedHost  # noqa: PLC0415
        from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko  # noqa: PLC0415

        if self._host is None:
            self._host = EmbeddedHost()
            self._host.start()
        return log_in_by_paramiko(self._host.destination(), on_try=on_try)

    def close(self) -> None:
        """Stop it, if it was started."""
        if self._host:
            self._host.close()


@dataclass
class TunnelChoice:
    """Which way leads from a login to the session: a forwarded connection, or a command there."""

    is_command: bool = False
    is_forwarding_forbidden: bool = False  # has the host said that it forwards nothing?
    is_proven: bool = False  # has the session ever answered by this way?

    @property
    def why_command(self) -> str:
        """Why the way is a command, in a clause."""
        if self.is_forwarding_forbidden:
            return "forwarding is forbidden there"
        return "what is forwarded there is dropped on the way"

    def on_no_answer(self, host: str) -> RemoterError:
        """Choose the way of the next dial; return what to say of the one that led nowhere."""
        if self.is_forwarding_forbidden:
            return Unreachable(
                f"{host} has started the session, but nothing of it comes through a command there "
                "(and forwarding is forbidden).",
                "Run it again; if that does not help, ask who runs that host what ends commands.",
            )
        self.is_command = not self.is_command
        if self.is_command:
            return AnotherWay(f"{host} takes connections to the session and drops them.")
        return Unreachable(
            f"{host} has started the session, but nothing of it comes through a forwarded "
            "connection or through a command there.",
            "Run it again; if that does not help, ask who runs that host or a gateway before it "
            "whether AllowTcpForwarding or a time limit is in the way.",
        )


# 21 attributes: what its owners set and read (eleven), and what one dial leaves to the next.
class SessionDialer:
    """Dials one session of one remote; without a remote, one on this machine."""

    def __init__(self, find: Callable[[], Remote | None], prompter: Prompter | None = None) -> None:
        """`find` is asked at each dial, so that a mended configuration counts."""
        self.remote = THIS_MACHINE
        self.is_this_machine = False  # was this machine dialled, as there is no remote?
        self.prompter = prompter
        self.on_slow_host: Callable[[str], None] = lambda _sentence: None  # a host takes long
        self.can_prompt: Callable[[], bool] = lambda: True  # is anybody there just now?
        self.session_info: SessionInfo | None = None
        self.tunnel = TunnelChoice()
        self.login: Login | None = None
        self.session_request = SessionRequest(client_key="")
        self.notebook_identity = NotebookIdentity()
        self.is_identified = threading.Event()  # until then there is a login, and no session
        self.is_identified.set()
        self._find = find
        self._must_locate = False
        self._is_login_suspect = False  # did the login lead to something strange?
        self._was_dialed = False  # did the last dial bring a connection?
        self._ever_connected = False  # has the session of this address ever answered?
        self._may_be_orphaned = False  # is there perhaps a session that only we know of?
        self._notices: list[str] = []  # which no person has seen yet
        self._local_host = LocalHost()
        self._keys = zmq.curve_keypair()  # public, secret: for the life of this client
        self._lock = threading.Lock()  # dials are one at a time; `stop_orphan` has its own thread

    def dial(self) -> SessionEndpoint:
        """Log in, start or find the session, open a tunnel."""
        with self._lock:
            self.remote = self.find_remote()
            self.is_this_machine = self.remote is THIS_MACHINE
            if self._was_dialed and not self._must_locate:
                self.tunnel.is_proven = self._ever_connected = True  # nobody has said otherwise
            self._was_dialed = False
            with naming_remote(self.remote.name):
                endpoint = self._dial()
            self._was_dialed = True
            return endpoint

    def find_remote(self) -> Remote:
        """Return the remote as it is configured now."""
        return self._find() or THIS_MACHINE

    def remote_cwd(self, remote: Remote) -> str:
        """Return the folder there in which paths begin: that in which the kernel starts."""
        notebook = Path(self.notebook_identity.notebook)
        folder = notebook.parent if notebook.is_absolute() else Path.cwd()
        return remote_cwd(remote.cwd, remote.path_map, folder, Path.home())

    @property
    def has_asked(self) -> bool:
        """Was a person asked in this dial? It may take as long as they do."""
        return isinstance(self.login, KeeperLogin) and self.login.has_prompted

    def abort(self) -> None:
        """Drop the SSH connection without a word, as a bad network does; a dial on it fails."""
        if self.login:
            self.login.abort()

    def reset(self) -> None:
        """Let the next dial begin a fresh session."""
        self.session_info = None
        self._ever_connected = self._was_dialed = False

    def on_no_welcome(self, error: RemoterError) -> RemoterError:
        """Let the next dial ask where the session is: its old port may be another's by now.

        A gateway may also take forwarded connections and drop them. Where the session has never
        answered through one, the next dial goes through a command (`AnotherWay`), and if that
        leads nowhere either, the one after it begins again.
        """
        self._must_locate = True
        if self.tunnel.is_proven or not isinstance(error, Unreachable):
            return error  # what somebody there has said came by this way
        return self.tunnel.on_no_answer(self.remote.host)

    def stop_orphan(self) -> None:
        """End a session that was started and never reached; if that fails, at the next login."""
        if not self._may_be_orphaned:
            return
        self._may_be_orphaned = False
        is_ended = threading.Event()
        # In a thread, for a login may hang for longer than whoever exits can wait.
        ending = Thread(self._stop_unreached, args=(is_ended,), name="take back")
        ending.start()
        ending.join(STOP_ORPHAN_WITHIN)
        session = self.session_info.session if self.session_info else ""
        kernel_id = self.session_request.kernel_id
        if not is_ended.is_set() and (session or kernel_id):
            # Where that cannot be written, the session ends by its idle timeout.
            with contextlib.suppress(OSError, RemoterError):
                undelivered_commands.save_command(self.remote.name, kernel_id, session, "stop")

    def close(self) -> None:
        """Close the login, and the host on this machine if there is one."""
        if self.login:
            self.login.close()
        self._local_host.close()

    def another_local_login(self) -> Login:
        """Log in to the host on this machine once more; whoever asks for it closes it."""
        with self._lock:
            return self._local_host.log_in()

    def _dial(self) -> SessionEndpoint:
        login = self.login = self._log_in()
        try:
            began = time.monotonic()
            self.is_identified.wait()  # until it is known which notebook this is for
            if time.monotonic() - began > STALE_AFTER:
                login.close()
                login = self.login = self._log_in()
            with notify_if_slow(self.remote.host, self.on_slow_host):
                tunnel, info = self._reach_session(login)
        except BaseException as error:
            self._is_login_suspect = isinstance(error, StrangeAnswer)
            login.close()
            raise
        return SessionEndpoint(tunnel.address, info.server_key.encode(), *self._keys, login.close)

    def _log_in(self) -> Login:
        if self.remote is THIS_MACHINE:
            return self._local_host.log_in(self._on_login_started)
        is_stale, self._is_login_suspect = self._is_login_suspect, False
        return log_in_by_keeper(
            self.remote,
            self.prompter if self.can_prompt() else None,
            on_try=self._on_login_started,
            in_doubt=self.login is not None,  # the one before may have died with the link
            is_stale=is_stale,
        )

    def _on_login_started(self, login: Login) -> None:
        """Keep a login that has only begun: `abort` may have to cut it."""
        self.login = login

    def _reach_session(self, login: Login) -> tuple[OpenTunnel, SessionInfo]:
        """Start or find the session, unless it is known where it is, and open a tunnel to it."""
        info = self.session_info
        if info is None or self._must_locate:
            info = self.session_info = self._start_session(login)
            self._must_locate = False
        try:
            return self._open_tunnel(login, info), info
        except RemoteLacks:  # nobody listens there any more: is the session alive?
            info = self.session_info = self._start_session(login)
            return self._open_tunnel(login, info), info

    def _open_tunnel(self, login: Login, info: SessionInfo) -> OpenTunnel:
        """Open a tunnel to the session; where forwarding is forbidden, through a command there."""
        if not self.tunnel.is_command:
            try:
                return login.open_tunnel(info.address, info.port)
            except ForwardingRefused:
                self.tunnel.is_command = self.tunnel.is_forwarding_forbidden = True
        try:
            return login.open_pipe(*bridge_command(self.remote, info))
        except CommandEnded as ended:
            raise RemoteLacks(
                f"the way to the session is a command on {login.host}, and {ended.what}",
                "Run it again; if that does not help, ask who runs that host what ends commands.",
            ) from ended

    def _start_session(self, login: Login) -> SessionInfo:
        session = self.session_info.session if self.session_info else self.session_request.session
        try:
            return self._start_or_find(login, session)
        except NoSuchSession:
            if self._ever_connected or self.session_request.session:
                raise
            # It was started by the last dial, never reached, and has ended by its idle timeout.
            return self._start_or_find(login, "")

    def _start_or_find(self, login: Login, session: str) -> SessionInfo:
        remote = self.remote
        pending = undelivered_commands.load_commands(remote.name)

        def on_commands(answers: list[dict[str, str]]) -> None:
            self._notices += undelivered_commands.discard_answered(pending, answers)

        # A session that is known by its id needs no notebook to be found by.
        identity = NotebookIdentity() if session else self.notebook_identity
        with identity.request_fields() as claimed:
            request = replace(
                self.session_request,
                client_key=self._keys[0].decode(),
                session=session,
                remote=remote.name,
                cwd=self.remote_cwd(remote),
                orders=tuple(command.as_sent for command in pending if command.fields),
                **{key: getattr(remote, key) for key in REMOTE_FIELDS},
                **claimed,
            )
            self._may_be_orphaned |= not self.session_request.session
            try:
                info = start_session(login, remote, request, on_commands)
            except RemoterError as error:
                # Where it has answered, even with an error, it has left nothing running.
                self._may_be_orphaned &= isinstance(error, Unreachable)
                raise
        if not session and info.is_joined:
            self._may_be_orphaned = False  # it is another client's, too
        if remote is not THIS_MACHINE and not info.is_joined:
            session_cache.add_session(remote.name, info.session, request.script)
        notices, self._notices = tuple(self._notices), []
        return replace(info, notices=notices, others=mark_local_files(info.others))

    def _stop_unreached(self, is_ended: threading.Event) -> None:
        """End the session by a command; needs the login that is there, and asks nobody."""
        with self._lock:
            if self.session_info is None:
                return
            self.can_prompt = lambda: False
            with contextlib.suppress(RemoterError, OSError):
                login = self.login = self._log_in()
                with contextlib.closing(login):
                    query = {"verb": "stop", "sessions": [self.session_info.session]}
                    query_remote(login, self.remote, query)
                    is_ended.set()
