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
from remoter_kernel.front.bootstrap.launcher import (
    SessionInfo,
    SessionRequest,
    ask_there,
    bridge,
    start_session,
)
from remoter_kernel.front.bootstrap.remote_answer import StrangeAnswer
from remoter_kernel.front.bootstrap.slow_host import telling_of_a_wait
from remoter_kernel.front.configuration.remote_cwd import folder_there
from remoter_kernel.front.configuration.remotes import Remote
from remoter_kernel.front.keeper.keeper_login import KeeperLogin, kept_login
from remoter_kernel.front.session import known_sessions, orders
from remoter_kernel.front.session.claims import Claim, with_files
from remoter_kernel.front.session.greeting import AnotherWay
from remoter_kernel.front.session.link import SessionEndpoint
from remoter_kernel.front.ssh.login_results import CommandEnded
from remoter_kernel.wire.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.front.logins.embedded_host import EmbeddedHost
    from remoter_kernel.front.logins.login import Login, TunnelEndpoint
    from remoter_kernel.front.prompts import Prompter

OLD = 10.0  # seconds; a login that nobody has used for so long may have died unnoticed
TAKE_BACK_WITHIN = 5.0  # seconds that ending an unreached session may hold somebody up
HERE = Remote(name="here", host="this machine", python=sys.executable)


class SessionDialer:
    """Dials one session of one remote; without a remote, one on this machine."""

    def __init__(
        self, find: Callable[[], Remote | None], questions: Prompter | None = None
    ) -> None:
        """Remember; `find` is asked at each dial, so that a mended configuration counts."""
        self.remote = HERE
        self.is_here = False  # was this machine dialled, as there is no remote?
        self._find = find
        self.questions = questions
        self.on_wait: Callable[[str], None] = lambda _sentence: None  # a host takes long
        self.may_ask: Callable[[], bool] = lambda: True  # is anybody there just now?
        self.address: SessionInfo | None = None
        self._is_doubted = False
        self._is_stale = False  # did the login lead to something strange?
        self.is_piped = False  # is the way there a command, and no forwarded connection?
        self._is_forbidden = False  # has the host said that it forwards nothing?
        self._is_way_proven = False  # has the session ever answered by this way?
        self._is_line_out = False  # did the last dialling bring a line?
        self._has_met = False  # has the session of this address ever answered?
        self._may_have_started = False  # is there perhaps a session that only we know of?
        self._notices: list[str] = []  # what nobody has been told yet
        self.login: Login | None = None
        self.wish = SessionRequest(client_key="")
        self.claim = Claim()
        self.is_claimed = threading.Event()  # until then there is a login, and no session
        self.is_claimed.set()
        self._host: EmbeddedHost | None = None
        self._public, self._secret = zmq.curve_keypair()
        self._lock = threading.Lock()

    def dial(self) -> SessionEndpoint:
        """Log in, start or find the session, open a tunnel."""
        with self._lock:
            self.remote = self.find()
            self.is_here = self.remote is HERE
            if self._is_line_out and not self._is_doubted:
                self._is_way_proven = self._has_met = True
            self._is_line_out = False
            try:
                line = self._dial()
            except RemoterError as error:
                raise error.at(self.remote.name) from error.__cause__
            self._is_line_out = True
            return line

    @property
    def why_piped(self) -> str:
        """Why the way there is a command, in a clause."""
        if self._is_forbidden:
            return "forwarding is forbidden there"
        return "what is forwarded there is dropped on the way"

    def find(self) -> Remote:
        """Return the remote as it is configured now."""
        return self._find() or HERE

    def folder_there(self, remote: Remote) -> str:
        """Return the folder there in which paths begin: that in which the kernel starts."""
        return folder_there(remote.cwd, remote.path_map, self._folder(), Path.home())

    @property
    def has_asked(self) -> bool:
        """Was a person asked in this dial? It may take as long as they do."""
        return isinstance(self.login, KeeperLogin) and self.login.has_prompted

    def cut(self) -> None:
        """Drop the SSH connection without a word, as a bad network does; a dial on it fails."""
        if self.login:
            self.login.cut()

    def forget(self) -> None:
        """Let the next dial begin a fresh session."""
        self.address = None
        self._has_met = self._is_line_out = False

    def doubt(self, error: RemoterError) -> RemoterError:
        """Let the next dial ask where the session is: its old port may be another's by now.

        A gateway may also take forwarded connections and drop them. Where the session has never
        answered through one, the next dial goes through a command (`AnotherWay`), and if that
        leads nowhere either, the one after it begins again.
        """
        self._is_doubted = True
        if self._is_way_proven or not isinstance(error, Unreachable):
            return error  # what somebody there has said came by this way
        host = self.remote.host
        if self._is_forbidden:
            return Unreachable(
                f"{host} has started the session, but nothing of it comes through a command there "
                "(and forwarding is forbidden).",
                "Run it again; if that does not help, ask who runs that host what ends commands.",
            )
        self.is_piped = not self.is_piped
        if self.is_piped:
            return AnotherWay(f"{host} takes connections to the session and drops them.")
        return Unreachable(
            f"{host} has started the session, but nothing of it comes through a forwarded "
            "connection or through a command there.",
            "Run it again; if that does not help, ask who runs that host or a gateway before it "
            "whether AllowTcpForwarding or a time limit is in the way.",
        )

    def take_back(self) -> None:
        """End a session that was started and never reached; if that fails, at the next login."""
        if not self._may_have_started:
            return
        self._may_have_started = False
        is_ended = threading.Event()
        ending = Thread(self._end_unreached, args=(is_ended,), name="take back")
        ending.start()
        ending.join(TAKE_BACK_WITHIN)
        session = self.address.session if self.address else ""
        if not is_ended.is_set() and (session or self.wish.kernel_id):
            with contextlib.suppress(OSError, RemoterError):  # it ends by itself, if a little later
                orders.save_command(self.remote.name, self.wish.kernel_id, session, "stop")

    def close(self) -> None:
        """Close the login, and the host on this machine if there is one."""
        if self.login:
            self.login.close()
        if self._host:
            self._host.close()

    def _dial(self) -> SessionEndpoint:
        login = self.login = self._log_in()
        try:
            login = self._wait_for_claim(login)
            with telling_of_a_wait(self.remote.host, self.on_wait):
                tunnel, self.address = self._reach(login)
        except BaseException as error:
            self._is_stale = isinstance(error, StrangeAnswer)
            login.close()
            raise
        server_key = self.address.server_key.encode()
        return SessionEndpoint(tunnel.address, server_key, self._public, self._secret, login.close)

    def _reach(self, login: Login) -> tuple[TunnelEndpoint, SessionInfo]:
        """Start or find the session, unless it is known where it is, and open a tunnel to it."""
        if self.address is None or self._is_doubted:
            self.address = self._start(login)
            self._is_doubted = False
        try:
            return self._open(login, self.address), self.address
        except RemoteLacks:  # nobody listens there any more: is the session alive?
            self.address = self._start(login)
            return self._open(login, self.address), self.address

    def _wait_for_claim(self, login: Login) -> Login:
        """Wait until it is known which notebook this is for; return a login that is young."""
        began = time.monotonic()
        self.is_claimed.wait()
        if time.monotonic() - began > OLD:
            login.close()
            login = self.login = self._log_in()
        return login

    def _open(self, login: Login, address: SessionInfo) -> TunnelEndpoint:
        """Open a tunnel to the session; where forwarding is forbidden, through a command there."""
        if not self.is_piped:
            try:
                return login.open_tunnel(address.address, address.port)
            except ForwardingRefused:
                self.is_piped = self._is_forbidden = True
        try:
            return login.open_pipe(*bridge(self.remote, address))
        except CommandEnded as ended:
            raise RemoteLacks(
                f"the way to the session is a command on {login.host}, and {ended.what}",
                "Run it again; if that does not help, ask who runs that host what ends commands.",
            ) from ended

    def _log_in(self) -> Login:
        if self.remote is not HERE:
            questions = self.questions if self.may_ask() else None
            in_doubt = self.login is not None
            is_stale, self._is_stale = self._is_stale, False
            return kept_login(
                self.remote, questions, on_try=self._note, in_doubt=in_doubt, is_stale=is_stale
            )
        return self._log_in_here(self._note)

    def another_login_here(self) -> Login:
        """Log in to the host on this machine once more; whoever asks for it closes it."""
        with self._lock:
            return self._log_in_here(lambda _login: None)

    def _log_in_here(self, on_try: Callable[[Login], None]) -> Login:
        # Rarely needed, and slow: with a remote it is the keeper that knows SSH.
        from remoter_kernel.front.logins.embedded_host import EmbeddedHost  # noqa: PLC0415
        from remoter_kernel.front.ssh.ssh_login import log_in  # noqa: PLC0415

        if self._host is None:
            self._host = EmbeddedHost()
            self._host.start()
        return log_in(self._host.destination(), on_try=on_try)

    def _note(self, login: Login) -> None:
        """Know a login that has only begun: it may have to be cut."""
        self.login = login

    def _start(self, login: Login) -> SessionInfo:
        session = self.address.session if self.address else self.wish.session
        try:
            return self._start_or_find(login, session)
        except NoSuchSession:
            if self._has_met or self.wish.session:
                raise
            return self._start_or_find(login, "")  # nobody came for so long that it has ended

    def _start_or_find(self, login: Login, session: str) -> SessionInfo:
        remote = self.remote
        pending = orders.pending(remote.name)
        with (Claim() if session else self.claim).made() as claimed:
            wish = replace(
                self.wish,
                client_key=self._public.decode(),
                session=session,
                remote=remote.name,
                kernel=remote.kernel,
                init=remote.init,
                env=remote.env,
                cwd=self.folder_there(remote),
                idle_timeout=remote.idle_timeout,
                journal_limit=remote.journal_limit,
                waiting_limit=remote.waiting_limit,
                orders=tuple(order.named for order in pending if order.words),
                **claimed,
            )
            self._may_have_started |= not self.wish.session
            try:
                address = start_session(login, remote, wish, partial(self._settle, pending))
            except RemoterError as error:
                self._may_have_started &= isinstance(error, Unreachable)  # else it has answered
                raise
        if not session and address.is_joined:
            self._may_have_started = False  # it is another front's, too
        if remote is not HERE and not address.is_joined:
            known_sessions.add_session(remote.name, address.session, wish.script)
        notices, self._notices = tuple(self._notices), []
        return replace(address, notices=notices, others=with_files(address.others))

    def _settle(
        self, pending: tuple[orders.UndeliveredCommand, ...], answers: list[dict[str, str]]
    ) -> None:
        """Forget the orders that were answered; what they met is told with the next session."""
        self._notices += orders.forget_answered(pending, answers)

    def _end_unreached(self, is_ended: threading.Event) -> None:
        """End the session by a command; needs the login that is there, and asks nobody."""
        with self._lock:
            if self.address is None:
                return
            self.may_ask = lambda: False
            with contextlib.suppress(RemoterError, OSError):
                login = self.login = self._log_in()
                with contextlib.closing(login):
                    words = {"verb": "stop", "sessions": [self.address.session]}
                    ask_there(login, self.remote, words)
                    is_ended.set()

    def _folder(self) -> Path:
        """Return the notebook's folder, or that in which this process was started."""
        notebook = Path(self.claim.notebook)
        return notebook.parent if notebook.is_absolute() else Path.cwd()
