"""Runs commands and opens tunnels over a `Transport`: what logins by both transports share.

Everything blocks and has a deadline: call it from a thread that may wait.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from remoter_kernel.errors import RemoteLacks, Unreachable
from remoter_kernel.local.login.login import (
    ChannelOpenError,
    ConnectionClosed,
    LoginFacts,
    ResponseTimeout,
)
from remoter_kernel.local.login.login_errors import tunnel_refused
from remoter_kernel.local.login.remote_command import RemoteCommand
from remoter_kernel.local.login.session_slot_retry import SessionSlotRetry
from remoter_kernel.local.login.tunnel import CommandTunnel, Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.login import CompletedCommand, ServerViolation
    from remoter_kernel.local.login.prompts import Prompter

CHANNEL_WITHIN = 20.0  # seconds for a channel: the far end may have to connect first
COMMAND_WITHIN = 60.0  # seconds for a command's first line: a login shell may be slow

Result = TypeVar("Result")
AnyLogin = TypeVar("AnyLogin", bound="SSHLogin")


def prompter_label(hop: Destination, last: Destination) -> str:
    """Say who asks when a hop does: a jump host cannot speak in the name of what is behind it."""
    behind = last.alias or last.host_name
    return hop.label if hop is last else f"{hop.label} (jump host of {behind})"


def log_in_hop_by_hop(
    hops: Iterable[Destination],
    new_login: Callable[[Destination, tuple[AnyLogin, ...]], AnyLogin],
    prompter: Prompter | None,
    on_step: Callable[[str], None],
    on_try: Callable[[AnyLogin], None],
) -> AnyLogin:
    """Log in on each host in turn, through those before it; return the last login.

    `on_try` is given each login before its first step, so that another thread may cut it.
    """
    passed: tuple[AnyLogin, ...] = ()
    try:
        for hop in hops:
            login = new_login(hop, passed)
            on_try(login)
            login.start(prompter, on_step)  # closes itself where it fails
            passed = (*passed, login)
    except BaseException:
        if passed:
            passed[-1].close()  # and with it those before
        raise
    return passed[-1]


class SSHLogin(LoginFacts):
    """One login on one host, and the logins on the hosts before it."""

    def __init__(
        self,
        destination: Destination,
        jump_logins: tuple[SSHLogin, ...] = (),
        *,
        transport: str = "",
        why: str = "",
        label: str = "",
    ) -> None:
        """`label`: how the host is called where it asks something; `why`: see `LoginFacts`."""
        super().__init__(destination.host_name, destination.user, transport, why)
        self._destination = destination
        self._label = label or destination.label
        self._jump_logins = jump_logins
        self._transport: Any = None  # a `Transport`, once there is one
        self._is_cut = False
        self._lock = threading.Lock()  # a keeper's clients use one login at the same time
        self._session_slots = SessionSlotRetry()
        self._tunnels: list[Tunnel] = []

    def __repr__(self) -> str:
        return f"<Login {self.user} at {self._destination.label}>"

    def start(self, prompter: Prompter | None, on_step: Callable[[str], None]) -> None:
        """Log in; on an error nothing is left open."""
        raise NotImplementedError

    # --- whether it lives ---

    @property
    def live_transport(self) -> Any:
        """The transport, as long as it lives; raises ConnectionClosed."""
        if not self.is_alive:
            raise ConnectionClosed
        return self._transport

    @property
    def is_alive(self) -> bool:
        """Say whether the connection is there, as far as that is known here."""
        return self._transport is not None and bool(self._transport.active)

    @property
    def has_ended(self) -> bool:
        """Say whether the connection was there, and is not any more."""
        return self._transport is not None and not self._transport.active

    @property
    def is_busy(self) -> bool:
        """Say whether a command is under way."""
        return self._session_slots.is_any_running

    @property
    def violation(self) -> ServerViolation | None:
        """What the server did that no server may, if that has ended the connection."""
        return None

    def responds_within(self, seconds: float) -> bool:
        """Find out within that time whether the server is still there."""
        raise NotImplementedError

    @property
    def round_trip(self) -> float:
        """Seconds there and back: the shortest answer so far, so a little too long if anything."""
        known = self._transport.round_trip if self._transport else math.inf
        return known if math.isfinite(known) else 0.0

    # --- what a login is for ---

    def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> CompletedCommand:
        """Run a command with this input, and wait until it ends."""
        return self._run(command, stdin, seconds, RemoteCommand.wait)

    def run_until_line(
        self, command: str, stdin: bytes, starts_with: bytes, seconds: float
    ) -> bytes:
        """Run a command, and wait for a line of stdout that starts so; the command goes on."""

        def wait(running: RemoteCommand, deadline: float) -> bytes:
            return running.wait_for_line(starts_with, deadline)

        return self._run(command, stdin, seconds, wait)

    def _run(
        self,
        command: str,
        stdin: bytes,
        seconds: float,
        wait: Callable[[RemoteCommand, float], Result],
    ) -> Result:
        deadline = time.monotonic() + seconds
        with self._translating_errors("a command", seconds):
            running = self._start_command(command, stdin, deadline)
            try:
                result = wait(running, deadline)
            except BaseException:
                running.close()
                raise
            self._prefetch_channel()
        return result

    def open_tunnel(self, host: str, port: int) -> Tunnel:
        """Have the server connect to `host`:`port`, and listen for one connection to that."""
        with self._translating_errors(f"a connection to {host}:{port} there", CHANNEL_WITHIN):
            tunnel = Tunnel(self.live_transport, host, port)
            try:
                tunnel.open(CHANNEL_WITHIN)
            except ChannelOpenError as error:
                raise tunnel_refused(self._destination, f"{host}:{port}", error.code) from None
        return self._register_tunnel(tunnel)

    def open_pipe(self, command: str, first_line: bytes) -> Tunnel:
        """Run a remote command, and listen for one connection to its stdin and stdout."""
        with self._translating_errors("a command", COMMAND_WITHIN):
            pipe = CommandTunnel(self.live_transport, command, first_line)
            pipe.open(COMMAND_WITHIN)
        return self._register_tunnel(pipe)

    def _register_tunnel(self, tunnel: Tunnel) -> Tunnel:
        with self._lock:
            # A keeper's login lives for days: tunnels that are over must not pile up.
            self._tunnels = [one for one in self._tunnels if one.is_open] + [tunnel]
        return tunnel

    def _start_command(self, command: str, stdin: bytes, deadline: float) -> RemoteCommand:
        """Start a command, as soon as the server has room for one more."""
        refusal: ChannelOpenError | None = None
        while True:
            try:
                running = self._open_session(deadline)
                self._session_slots.add(running)  # before it starts: others may wait for its end
                try:
                    running.start(command, stdin, deadline)
                except BaseException:
                    self._session_slots.discard(running)
                    running.close()
                    raise
            # A server that is full refuses the channel (paramiko) or the command (a master).
            except ChannelOpenError as error:
                refusal = error
                if not self._session_slots.wait_for_slot(deadline):
                    raise
            except ResponseTimeout:
                raise refusal or ResponseTimeout from None  # the refusal says more
            else:
                return running

    def _open_session(self, deadline: float) -> RemoteCommand:
        """Open a channel for a command."""
        running = RemoteCommand(self.live_transport)
        running.open()
        running.wait_open(min(CHANNEL_WITHIN, deadline - time.monotonic()))
        return running

    def _prefetch_channel(self) -> None:
        """Ask for the next command's channel ahead, where the transport can."""

    @contextlib.contextmanager
    def _translating_errors(self, what: str, seconds: float) -> Iterator[None]:
        """Turn errors of a channel into sentences."""
        label = self._destination.label
        try:
            yield
        except ConnectionClosed:
            why = f": the server {self.violation}" if self.violation else ""
            raise Unreachable(
                f"the connection to {label} is gone{why}.", "It can be dialled again."
            ) from None
        except ResponseTimeout:
            raise Unreachable(
                f"{label} did not finish {what} within {seconds:g} s.",
                "Look at the network, or at what keeps that machine busy.",
            ) from None
        except ChannelOpenError:
            raise RemoteLacks(
                f"{label} opens no (further) session on this login.",
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
        self._release()
        # The last one first: its connection runs through those before it.
        for login in reversed(self._jump_logins):
            login.close()

    def _release(self) -> None:
        """Give back what the transport itself does not: may be called again."""

    def abort(self) -> None:
        """Drop the connection without a goodbye, as a dead network would."""
        self._is_cut = True
        if self._transport is not None:
            self._transport.abort()
