"""Gets to a session: log in, start or find it, open a tunnel.

Blocks. Has no state but the session's address, and the login while a line is up.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from remoter_kernel.errors import (
    ForwardingRefused,
    NoSuchSession,
    RemoteLacks,
    RemoterError,
    Unreachable,
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
    from remoter_kernel.local.login.login import Login, TunnelEndpoint
    from remoter_kernel.local.login.prompts import Prompter

STALE_AFTER = 10.0  # seconds; a login that nobody has used for so long may have died unnoticed
STOP_ORPHAN_WITHIN = 5.0  # seconds that ending an unreached session may hold somebody up
THIS_MACHINE = Remote(name="here", host="this machine", python=sys.executable)


class SessionDialer:
    """Dials one session of one remote; without a remote, one on this machine."""

    def __init__(self, find: Callable[[], Remote | None], prompter: Prompter | None = None) -> None:
        """Remember; `find` is asked at each dial, so that a mended configuration counts."""
        self.remote = THIS_MACHINE
        self.is_this_machine = False  # was this machine dialled, as there is no remote?
        self._find = find
        self.prompter = prompter
        self.on_slow_host: Callable[[str], None] = lambda _sentence: None  # a host takes long
        self.can_prompt: Callable[[], bool] = lambda: True  # is anybody there just now?
        self.session_info: SessionInfo | None = None
        self._must_locate = False
        self._is_login_suspect = False  # did the login lead to something strange?
        self.is_tunnel_command = False  # is the way there a command, and no forwarded connection?
        self._is_forwarding_forbidden = False  # has the host said that it forwards nothing?
        self._is_tunnel_proven = False  # has the session ever answered by this way?
        self._was_dialed = False  # did the last dialling bring a line?
        self._ever_connected = False  # has the session of this address ever answered?
        self._may_be_orphaned = False  # is there perhaps a session that only we know of?
        self._notices: list[str] = []  # what nobody has been told yet
        self.login: Login | None = None
        self.session_request = SessionRequest(client_key="")
        self.notebook_identity = NotebookIdentity()
        self.is_identified = threading.Event()  # until then there is a login, and no session
        self.is_identified.set()
        self._embedded_host: EmbeddedHost | None = None
        self._public, self._secret = zmq.curve_keypair()
        self._lock = threading.Lock()

    def dial(self) -> SessionEndpoint:
        """Log in, start or find the session, open a tunnel."""
        with self._lock:
            self.remote = self.find_remote()
            self.is_this_machine = self.remote is THIS_MACHINE
            if self._was_dialed and not self._must_locate:
                self._is_tunnel_proven = self._ever_connected = True
            self._was_dialed = False
            try:
                line = self._dial()
            except RemoterError as error:
                raise error.at(self.remote.name) from error.__cause__
            self._was_dialed = True
            return line

    @property
    def why_tunnel_command(self) -> str:
        """Why the way there is a command, in a clause."""
        if self._is_forwarding_forbidden:
            return "forwarding is forbidden there"
        return "what is forwarded there is dropped on the way"

    def find_remote(self) -> Remote:
        """Return the remote as it is configured now."""
        return self._find() or THIS_MACHINE

    def remote_cwd(self, remote: Remote) -> str:
        """Return the folder there in which paths begin: that in which the kernel starts."""
        return remote_cwd(remote.cwd, remote.path_map, self._local_folder(), Path.home())

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
        if self._is_tunnel_proven or not isinstance(error, Unreachable):
            return error  # what somebody there has said came by this way
        host = self.remote.host
        if self._is_forwarding_forbidden:
            return Unreachable(
                f"{host} has started the session, but nothing of it comes through a command there "
                "(and forwarding is forbidden).",
                "Run it again; if that does not help, ask who runs that host what ends commands.",
            )
        self.is_tunnel_command = not self.is_tunnel_command
        if self.is_tunnel_command:
            return AnotherWay(f"{host} takes connections to the session and drops them.")
        return Unreachable(
            f"{host} has started the session, but nothing of it comes through a forwarded "
            "connection or through a command there.",
            "Run it again; if that does not help, ask who runs that host or a gateway before it "
            "whether AllowTcpForwarding or a time limit is in the way.",
        )

    def stop_orphan(self) -> None:
        """End a session that was started and never reached; if that fails, at the next login."""
        if not self._may_be_orphaned:
            return
        self._may_be_orphaned = False
        is_ended = threading.Event()
        ending = Thread(self._stop_unreached, args=(is_ended,), name="take back")
        ending.start()
        ending.join(STOP_ORPHAN_WITHIN)
        session = self.session_info.session if self.session_info else ""
        if not is_ended.is_set() and (session or self.session_request.kernel_id):
            with contextlib.suppress(OSError, RemoterError):  # it ends by itself, if a little later
                undelivered_commands.save_command(
                    self.remote.name, self.session_request.kernel_id, session, "stop"
                )

    def close(self) -> None:
        """Close the login, and the host on this machine if there is one."""
        if self.login:
            self.login.close()
        if self._embedded_host:
            self._embedded_host.close()

    def _dial(self) -> SessionEndpoint:
        login = self.login = self._log_in()
        try:
            login = self._wait_for_identity(login)
            with notify_if_slow(self.remote.host, self.on_slow_host):
                tunnel, self.session_info = self._reach_session(login)
        except BaseException as error:
            self._is_login_suspect = isinstance(error, StrangeAnswer)
            login.close()
            raise
        server_key = self.session_info.server_key.encode()
        return SessionEndpoint(tunnel.address, server_key, self._public, self._secret, login.close)

    def _reach_session(self, login: Login) -> tuple[TunnelEndpoint, SessionInfo]:
        """Start or find the session, unless it is known where it is, and open a tunnel to it."""
        if self.session_info is None or self._must_locate:
            self.session_info = self._start_session(login)
            self._must_locate = False
        try:
            return self._open_tunnel(login, self.session_info), self.session_info
        except RemoteLacks:  # nobody listens there any more: is the session alive?
            self.session_info = self._start_session(login)
            return self._open_tunnel(login, self.session_info), self.session_info

    def _wait_for_identity(self, login: Login) -> Login:
        """Wait until it is known which notebook this is for; return a login that is young."""
        began = time.monotonic()
        self.is_identified.wait()
        if time.monotonic() - began > STALE_AFTER:
            login.close()
            login = self.login = self._log_in()
        return login

    def _open_tunnel(self, login: Login, address: SessionInfo) -> TunnelEndpoint:
        """Open a tunnel to the session; where forwarding is forbidden, through a command there."""
        if not self.is_tunnel_command:
            try:
                return login.open_tunnel(address.address, address.port)
            except ForwardingRefused:
                self.is_tunnel_command = self._is_forwarding_forbidden = True
        try:
            return login.open_pipe(*bridge_command(self.remote, address))
        except CommandEnded as ended:
            raise RemoteLacks(
                f"the way to the session is a command on {login.host}, and {ended.what}",
                "Run it again; if that does not help, ask who runs that host what ends commands.",
            ) from ended

    def _log_in(self) -> Login:
        if self.remote is not THIS_MACHINE:
            questions = self.prompter if self.can_prompt() else None
            in_doubt = self.login is not None
            is_stale, self._is_login_suspect = self._is_login_suspect, False
            return log_in_by_keeper(
                self.remote,
                questions,
                on_try=self._on_login_started,
                in_doubt=in_doubt,
                is_stale=is_stale,
            )
        return self._log_in_locally(self._on_login_started)

    def another_local_login(self) -> Login:
        """Log in to the host on this machine once more; whoever asks for it closes it."""
        with self._lock:
            return self._log_in_locally(lambda _login: None)

    def _log_in_locally(self, on_try: Callable[[Login], None]) -> Login:
        # Rarely needed, and slow: with a remote it is the keeper that knows SSH.
        from remoter_kernel.local.login.embedded_host import EmbeddedHost  # noqa: PLC0415
        from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko  # noqa: PLC0415

        if self._embedded_host is None:
            self._embedded_host = EmbeddedHost()
            self._embedded_host.start()
        return log_in_by_paramiko(self._embedded_host.destination(), on_try=on_try)

    def _on_login_started(self, login: Login) -> None:
        """Know a login that has only begun: it may have to be cut."""
        self.login = login

    def _start_session(self, login: Login) -> SessionInfo:
        session = self.session_info.session if self.session_info else self.session_request.session
        try:
            return self._start_or_find(login, session)
        except NoSuchSession:
            if self._ever_connected or self.session_request.session:
                raise
            return self._start_or_find(login, "")  # nobody came for so long that it has ended

    def _start_or_find(self, login: Login, session: str) -> SessionInfo:
        remote = self.remote
        pending = undelivered_commands.load_commands(remote.name)
        with (
            NotebookIdentity() if session else self.notebook_identity
        ).request_fields() as claimed:
            wish = replace(
                self.session_request,
                client_key=self._public.decode(),
                session=session,
                remote=remote.name,
                kernel=remote.kernel,
                init=remote.init,
                env=remote.env,
                cwd=self.remote_cwd(remote),
                idle_timeout=remote.idle_timeout,
                journal_limit=remote.journal_limit,
                waiting_limit=remote.waiting_limit,
                orders=tuple(order.as_sent for order in pending if order.fields),
                **claimed,
            )
            self._may_be_orphaned |= not self.session_request.session
            try:
                address = start_session(
                    login, remote, wish, partial(self._on_commands_answered, pending)
                )
            except RemoterError as error:
                self._may_be_orphaned &= isinstance(error, Unreachable)  # else it has answered
                raise
        if not session and address.is_joined:
            self._may_be_orphaned = False  # it is another front's, too
        if remote is not THIS_MACHINE and not address.is_joined:
            session_cache.add_session(remote.name, address.session, wish.script)
        notices, self._notices = tuple(self._notices), []
        return replace(address, notices=notices, others=mark_local_files(address.others))

    def _on_commands_answered(
        self,
        pending: tuple[undelivered_commands.UndeliveredCommand, ...],
        answers: list[dict[str, str]],
    ) -> None:
        """Forget the orders that were answered; what they met is told with the next session."""
        self._notices += undelivered_commands.discard_answered(pending, answers)

    def _stop_unreached(self, is_ended: threading.Event) -> None:
        """End the session by a command; needs the login that is there, and asks nobody."""
        with self._lock:
            if self.session_info is None:
                return
            self.can_prompt = lambda: False
            with contextlib.suppress(RemoterError, OSError):
                login = self.login = self._log_in()
                with contextlib.closing(login):
                    words = {"verb": "stop", "sessions": [self.session_info.session]}
                    query_remote(login, self.remote, words)
                    is_ended.set()

    def _local_folder(self) -> Path:
        """Return the notebook's folder, or that in which this process was started."""
        notebook = Path(self.notebook_identity.notebook)
        return notebook.parent if notebook.is_absolute() else Path.cwd()
