"""Logs in by paramiko; its errors are renamed here.

Round trips to the first byte of a command's output, when the first key fits: TCP 1,
greetings and offers 1, key exchange 1, service + key + channel 1, command 1: five.
`ssh HOST COMMAND` needs nine.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from remoter_kernel.errors import LoginRefused, RemoterError
from remoter_kernel.local.login.credentials import (
    HostCredentials,
    RemoteCredentials,
    hops_with_names,
)
from remoter_kernel.local.login.known_hosts import KnownHosts, fingerprint
from remoter_kernel.local.login.login import ChannelOpenError, ConnectionClosed, ResponseTimeout
from remoter_kernel.local.login.login_errors import (
    NoCommonAlgorithm,
    connection_ended,
    connection_timed_out,
    proxy_command_failed,
)
from remoter_kernel.local.login.paramiko.authenticator import Authenticator
from remoter_kernel.local.login.paramiko.host_socket import HostSocket, connect_to_host
from remoter_kernel.local.login.paramiko.transport import (
    ACCEPTS_EARLY_CHANNELS,
    DISCONNECT_WITHIN,
    NegotiationFailed,
    ParamikoTransport,
)
from remoter_kernel.local.login.remote_command import RemoteCommand
from remoter_kernel.local.login.ssh_login import SSHLogin, log_in_hop_by_hop, prompter_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.login import ServerViolation
    from remoter_kernel.local.login.prompts import Prompter

PREFETCHED_WITHIN = 1.0  # seconds, and two round trips


def log_in_by_paramiko(
    destination: Destination,
    *,
    prompter: Prompter | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[SSHLogin], None] = lambda _login: None,
    credentials: RemoteCredentials | None = None,
) -> ParamikoLogin:
    """Log in; the steps are "connect", "host key", "login".

    `credentials`: what a person has typed for each host, from one login to the next.
    Raises Unreachable, HostKeyProblem, LoginRefused.
    """
    credentials = credentials or RemoteCredentials()
    hops = list(hops_with_names(destination))

    def new_login(hop: Destination, before: tuple[ParamikoLogin, ...]) -> ParamikoLogin:
        secrets = credentials.for_host(hops[len(before)][1])
        is_last, label = hop is destination, prompter_label(hop, destination)
        return ParamikoLogin(hop, before, secrets, is_last=is_last, label=label)

    return log_in_hop_by_hop((hop for hop, _ in hops), new_login, prompter, on_step, on_try)


class ParamikoLogin(SSHLogin):
    """A login whose connection is paramiko's."""

    def __init__(
        self,
        destination: Destination,
        jump_logins: tuple[ParamikoLogin, ...],
        credentials: HostCredentials,
        *,
        is_last: bool,
        label: str,
    ) -> None:
        super().__init__(destination, jump_logins, transport="paramiko", label=label)
        self._credentials = credentials
        self._is_last = is_last
        self._socket: HostSocket | None = None
        self._prefetched: RemoteCommand | None = None  # opened ahead, for the next command

    def start(self, prompter: Prompter | None, on_step: Callable[[str], None]) -> None:
        """Go through all steps; on an error nothing is left open."""
        steps: dict[str, Callable[[], None]] = {
            "connect": self._connect,
            "host key": lambda: self._check_host_key(prompter),
            "login": lambda: self._authenticate(prompter),
        }
        try:
            for step, do in steps.items():
                on_step(step)
                began = time.perf_counter()
                do()
                self.seconds[step] = time.perf_counter() - began
        except (ConnectionClosed, LoginRefused) as error:
            # A refusal after a cut, or after a violation, is only what followed from that.
            if isinstance(error, LoginRefused) and not (self._is_cut or self.violation):
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
        transport, label, said = self._transport, self._destination.label, ""
        if transport is not None:
            if not is_silent:
                transport.join(DISCONNECT_WITHIN)  # it reads what came before the end
            said = transport.server_reason
        violation = self.violation
        asks_proxy = self._socket and not (self._is_cut or violation)
        proxy = self._socket.proxy_exit() if self._socket and asks_proxy else None
        self.close()
        if proxy and step == "connect" and (error := proxy_command_failed(label, *proxy)):
            return error
        if is_silent:
            return connection_timed_out(label, step, said=said)
        return connection_ended(label, step, violation, said=said)

    @property
    def violation(self) -> ServerViolation | None:
        """What the server did that no server may, if that has ended the connection."""
        return self._transport.violation if self._transport is not None else None

    def _connect(self) -> None:
        destination = self._destination
        before = self._jump_logins[-1].live_transport if self._jump_logins else None
        self._known_hosts = KnownHosts(destination)
        self._socket = connect_to_host(destination, before)
        self._transport = ParamikoTransport(self._socket.sock, self._known_hosts.known_kinds)
        self._transport.restrict_algorithms(destination)  # they are offered in the handshake
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

    def _authenticate(self, prompter: Prompter | None) -> None:
        Authenticator(
            self._destination,
            self.live_transport,
            prompter,
            self._credentials,
            label=self._label,
            # Before the verdict on a key: the first command is sure to come.
            on_first_key=self._prefetch_channel,
            on_refusal=self._drop_prefetched,
        ).run()

    def _prefetch_channel(self) -> None:
        """Ask for the next command's channel before anybody needs it: that saves a round trip."""
        with contextlib.suppress(ConnectionClosed), self._lock:
            live = self.live_transport
            can_open_early = self._is_last and live.software.startswith(ACCEPTS_EARLY_CHANNELS)
            if can_open_early and not self._prefetched:
                self._prefetched = RemoteCommand(live)
                self._prefetched.open()

    def _drop_prefetched(self) -> None:
        self._prefetched = None  # the server has shrugged it off

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
        return super()._open_session(deadline)

    def responds_within(self, seconds: float) -> bool:
        """Find out within that time whether the server is still there."""
        with contextlib.suppress(ConnectionClosed):
            return bool(self.live_transport.responds_within(seconds))
        return False

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
