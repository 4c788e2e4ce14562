"""Logs in over SSH, runs commands there, opens tunnels to there.

With `transport`, `paramiko_channel`, `keys` and `tunnel` this is the only code that knows
paramiko; its errors are renamed here. Everything blocks and has a deadline: call it
from a thread that may wait.

Round trips to the first byte of a command's output, when the first key fits: TCP 1,
greetings and offers 1, key exchange 1, service + key + channel 1, command 1: five.
`ssh HOST COMMAND` needs nine.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import (
    LoginRefused,
    RemoteLacks,
    RemoterError,
    Unreachable,
)
from remoter_kernel.local.login.credentials import (
    HostCredentials,
    RemoteCredentials,
    hops_with_names,
)
from remoter_kernel.local.login.known_hosts import KnownHosts, fingerprint
from remoter_kernel.local.login.login import CommandEnded, CompletedCommand
from remoter_kernel.local.login.login_errors import (
    NoCommonAlgorithm,
    connection_ended,
    connection_timed_out,
    proxy_command_failed,
    tunnel_refused,
)
from remoter_kernel.local.login.paramiko.authenticator import Authenticator, prompter_label
from remoter_kernel.local.login.paramiko.host_socket import ProxyCommandExit, connect_to_host
from remoter_kernel.local.login.paramiko.transport import (
    ACCEPTS_EARLY_CHANNELS,
    DISCONNECT_WITHIN,
    NegotiationFailed,
    Transport,
    restrict_algorithms,
)
from remoter_kernel.local.login.paramiko_channel import (
    ChannelOpenError,
    ConnectionClosed,
    ResponseTimeout,
    ServerViolation,
)
from remoter_kernel.local.login.remote_command import RemoteCommand
from remoter_kernel.local.login.session_slot_retry import SessionSlotRetry
from remoter_kernel.local.login.tunnel import CommandTunnel, Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remoter_kernel.local.login.prompts import Prompter
    from remoter_kernel.local.login.ssh_config import Destination

__all__ = ["CommandEnded", "CompletedCommand", "SSHLogin", "Tunnel", "log_in_by_paramiko"]

CHANNEL_WITHIN = 20.0  # seconds for a channel: the far end may have to connect first
COMMAND_WITHIN = 60.0  # seconds for a command's first line: a login shell may be slow
PREFETCHED_WITHIN = 1.0  # seconds, and two round trips


def log_in_by_paramiko(
    destination: Destination,
    *,
    prompter: Prompter | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[SSHLogin], None] = lambda _login: None,
    credentials: RemoteCredentials | None = None,
) -> SSHLogin:
    """Log in; the steps are "connect", "host key", "login".

    `credentials`: what a person has typed for each host, from one login to the next.
    `on_try` is given each login before its first step, so that another thread may cut it.
    Raises Unreachable, HostKeyProblem, LoginRefused.
    """
    credentials = credentials or RemoteCredentials()
    passed: list[SSHLogin] = []
    try:
        for hop, where in hops_with_names(destination):
            is_last, label = hop is destination, prompter_label(hop, destination)
            login = SSHLogin(hop, tuple(passed), is_last=is_last, label=label)
            on_try(login)
            login.start(prompter, on_step, credentials.for_host(where))
            passed.append(login)
    except BaseException:
        if passed:
            passed[-1].close()
        raise
    return passed[-1]


class SSHLogin:
    """One login on one host, and the logins on the hosts before it."""

    def __init__(
        self,
        destination: Destination,
        jump_logins: tuple[SSHLogin, ...] = (),
        *,
        is_last: bool = True,
        label: str = "",
    ) -> None:
        """Remember; `label` is how its host is called where it asks something."""
        self.host = destination.host_name
        self.user = destination.user
        self.transport = "paramiko"
        self.why_transport = ""
        """Why this one, in a clause; empty where it was asked for, or is the usual one."""
        self.cipher = ""
        self.host_key = ""
        """Its kind and its fingerprint."""
        self.seconds: dict[str, float] = {}
        """How long each step took."""
        self._destination = destination
        self._label = label or destination.label
        self._jump_logins = jump_logins
        self._transport: Any = None  # a Transport, or what looks like one
        self._is_last = is_last
        self._is_cut = False
        self._close_stream: Callable[[], None] = lambda: None
        self._proxy_exit: Callable[[], ProxyCommandExit | None] = lambda: None
        self._prefetched: RemoteCommand | None = None  # opened ahead, for the next command
        self._lock = threading.Lock()  # a keeper's visitors use one login at the same time
        self._session_limiter = SessionSlotRetry()
        self._tunnels: list[Tunnel] = []

    def __repr__(self) -> str:
        return f"<Login {self.user} at {self._destination.label}>"

    # --- logging in ---

    def start(
        self,
        prompter: Prompter | None,
        on_step: Callable[[str], None],
        credentials: HostCredentials,
    ) -> None:
        """Go through all steps; on an error nothing is left open."""
        steps: dict[str, Callable[[], None]] = {
            "connect": self._connect,
            "host key": lambda: self._check_host_key(prompter),
            "login": lambda: self._authenticate(prompter, credentials),
        }
        try:
            for step, do in steps.items():
                on_step(step)
                began = time.perf_counter()
                do()
                self.seconds[step] = time.perf_counter() - began
        except (ConnectionClosed, LoginRefused) as error:
            if isinstance(error, LoginRefused) and not (self._is_cut or self._violation):
                self.close()
                raise
            raise self._login_error(step, is_silent=False) from None
        except ResponseTimeout:
            raise self._login_error(step, is_silent=True) from None
        except BaseException:
            self.close()
            raise

    def _login_error(self, step: str, *, is_silent: bool) -> RemoterError:
        """Close it, and say why in the words of whoever knows: the ProxyCommand, the server."""
        if self._transport is not None and not is_silent:
            self._transport.join(DISCONNECT_WITHIN)  # it reads what came before the end
        label, said, offence = self._destination.label, self._server_reason, self._violation
        proxy = None if self._is_cut or offence else self._proxy_exit()
        self.close()
        if proxy and step == "connect" and (error := proxy_command_failed(label, *proxy)):
            return error
        if is_silent:
            return connection_timed_out(label, step, said=said)
        return connection_ended(label, step, offence, said=said)

    @property
    def _server_reason(self) -> str:
        """What the server has given as a reason, before it had to say anything."""
        return str(getattr(self._transport, "server_reason", ""))

    @property
    def _violation(self) -> ServerViolation | None:
        return getattr(self._transport, "violation", None)

    def _connect(self) -> None:
        destination = self._destination
        self._known_hosts = KnownHosts(destination)
        before = self._jump_logins[-1].live_transport if self._jump_logins else None
        sock, self._close_stream, self._proxy_exit = connect_to_host(destination, before)
        self._transport = Transport(sock, self._known_hosts.known_kinds)
        restrict_algorithms(self._transport, destination)
        try:
            self._transport.handshake(destination.connect_timeout)
        except NegotiationFailed as error:
            raise NoCommonAlgorithm(
                f"{destination.label} and paramiko have nothing in common: {error}.",
                'Set transport = "openssh" for this remote.',
            ) from None
        self.cipher = self._transport.remote_cipher

    def _check_host_key(self, prompter: Prompter | None) -> None:
        key = self.live_transport.first_host_key
        kind, blob = key.get_name(), key.asbytes()
        self.host_key = f"{kind} {fingerprint(blob)}"
        self._known_hosts.check(kind, blob, prompter)

    def _authenticate(self, prompter: Prompter | None, credentials: HostCredentials) -> None:
        Authenticator(
            self._destination,
            self.live_transport,
            prompter,
            credentials,
            label=self._label,
            on_first_key=self._prefetch_channel,
            on_refusal=self._drop_prefetched,
        ).run()

    def _prefetch_channel(self) -> None:
        """Ask for the next command's channel before anybody needs it: that saves a round trip.

        Before the verdict on a key, too: the first command is sure to come.
        """
        with contextlib.suppress(ConnectionClosed), self._lock:
            live = self.live_transport
            if (
                self._is_last
                and not self._prefetched
                and live.software.startswith(ACCEPTS_EARLY_CHANNELS)
            ):
                self._prefetched = RemoteCommand(live)
                self._prefetched.open()

    def _drop_prefetched(self) -> None:
        self._prefetched = None  # the server has shrugged it off

    # --- what a login is for ---

    @property
    def live_transport(self) -> Any:
        """The transport, as long as it lives; raises Closed."""
        if self._transport is None or not self._transport.active:
            raise ConnectionClosed
        return self._transport

    @property
    def is_alive(self) -> bool:
        """Say whether the connection is there, as far as this side knows."""
        return self._transport is not None and bool(self._transport.active)

    @property
    def has_ended(self) -> bool:
        """Say whether the connection was there, and is not any more."""
        return self._transport is not None and not self._transport.active

    @property
    def is_busy(self) -> bool:
        """Say whether a command is under way."""
        return self._session_limiter.is_any_running

    def responds_within(self, seconds: float) -> bool:
        """Find out within that time whether the server is still there."""
        with contextlib.suppress(ConnectionClosed):
            return bool(self.live_transport.responds_within(seconds))
        return False

    @property
    def round_trip(self) -> float:
        """Seconds there and back: the shortest answer so far, so a little too long if anything."""
        known = self._transport.round_trip if self._transport else math.inf
        return known if math.isfinite(known) else 0.0

    def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> CompletedCommand:
        """Run a command with this input, and wait until it ends."""
        deadline = time.monotonic() + seconds
        with self._translating_errors("a command", seconds):
            running = self._start_command(command, stdin, deadline)
            try:
                ran = running.wait(deadline)
            except BaseException:
                running.close()
                raise
            self._prefetch_channel()
        return ran

    def run_until_line(
        self, command: str, stdin: bytes, starts_with: bytes, seconds: float
    ) -> bytes:
        """Run a command, and wait for a line of stdout that starts so; the command goes on.

        Raises CommandEnded if it ends before.
        """
        deadline = time.monotonic() + seconds
        with self._translating_errors("a command", seconds):
            running = self._start_command(command, stdin, deadline)
            try:
                line = running.wait_for_line(starts_with, deadline)
            except BaseException:
                running.close()
                raise
            self._prefetch_channel()
        return line

    def open_tunnel(self, host: str, port: int) -> Tunnel:
        """Connect to `host`:`port` from there, and listen for one connection here."""
        with self._translating_errors(f"a connection to {host}:{port} there", CHANNEL_WITHIN):
            tunnel = Tunnel(self.live_transport, host, port)
            try:
                tunnel.open(CHANNEL_WITHIN)
            except ChannelOpenError as error:
                raise tunnel_refused(self._destination, f"{host}:{port}", error.code) from None
        self._register_tunnel(tunnel)
        return tunnel

    def open_pipe(self, command: str, first_line: bytes) -> Tunnel:
        """Run a command there, and listen here for one connection to its stdin and stdout.

        That begins after a line which is exactly `first_line`; raises CommandEnded without one.
        """
        with self._translating_errors("a command", COMMAND_WITHIN):
            pipe = CommandTunnel(self.live_transport, command, first_line)
            pipe.open(COMMAND_WITHIN)
        self._register_tunnel(pipe)
        return pipe

    def _register_tunnel(self, tunnel: Tunnel) -> None:
        with self._lock:
            self._tunnels = [one for one in self._tunnels if one.is_open] + [tunnel]

    def _start_command(self, command: str, stdin: bytes, deadline: float) -> RemoteCommand:
        """Start a command, as soon as the server has room for one more."""
        refusal: ChannelOpenError | None = None
        while True:
            try:
                running = self._open_session(deadline)
                self._session_limiter.add(running)
                try:
                    running.start(command, stdin, deadline)
                except BaseException:
                    self._session_limiter.discard(running)
                    running.close()
                    raise
            except ChannelOpenError as error:
                refusal = error
                if not self._session_limiter.wait_for_slot(deadline):
                    raise
            except ResponseTimeout:
                raise refusal or ResponseTimeout from None
            else:
                return running

    def _open_session(self, deadline: float) -> RemoteCommand:
        with self._lock:
            running, self._prefetched = self._prefetched, None
        if running is not None:
            # A server may have lost what was sent ahead of its answer, or tired of an idle
            # channel since: then this one is as good as none.
            with contextlib.suppress(ResponseTimeout, ChannelOpenError):
                running.wait_open(PREFETCHED_WITHIN + 2 * self.round_trip)
                if running.is_open:
                    return running
        running = RemoteCommand(self.live_transport)
        running.open()
        running.wait_open(min(CHANNEL_WITHIN, deadline - time.monotonic()))
        return running

    @contextlib.contextmanager
    def _translating_errors(self, what: str, seconds: float) -> Iterator[None]:
        """Turn this package's channel errors into sentences."""
        try:
            yield
        except ConnectionClosed:
            why = f": the server {self._violation}" if self._violation else ""
            raise Unreachable(
                f"the connection to {self._destination.label} is gone{why}.",
                "It can be dialled again.",
            ) from None
        except ResponseTimeout:
            raise Unreachable(
                f"{self._destination.label} did not finish {what} within {seconds:g} s.",
                "Look at the network, or at what keeps that machine busy.",
            ) from None
        except ChannelOpenError:
            raise RemoteLacks(
                f"{self._destination.label} opens no (further) session on this login.",
                "Its administrator would have to raise MaxSessions or allow commands.",
            ) from None

    # --- the end ---

    def close(self) -> None:
        """End the tunnels, this connection and those before it; leave no thread behind."""
        for tunnel in self._tunnels:
            tunnel.close()
        self._tunnels.clear()
        if self._transport is not None:
            self._transport.close_and_join()
        self._close_stream()
        for login in reversed(self._jump_logins):
            login.close()

    def abort(self) -> None:
        """Drop the connection without a goodbye, as a dead network would."""
        self._is_cut = True
        if self._transport is not None:
            self._transport.abort()
