"""Gets a byte stream to a host: by TCP, through a login on a jump host, or by a ProxyCommand.

What a ProxyCommand complains of on stderr is kept: where it fails, it alone knows why.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, NamedTuple

from remoter_kernel.errors import Unreachable
from remoter_kernel.local.login.login import ChannelOpenError, ResponseTimeout
from remoter_kernel.local.login.login_errors import (
    connection_refused,
    jump_host_refused,
    name_unresolved,
    no_answer,
    no_route,
)
from remoter_kernel.local.login.tunnel import Tunnel
from remoter_kernel.local.private_sockets import UNIX_SCHEME, connect_to_listener
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.login import ChannelFactory

# Linux gives up a connection whose bytes nobody acknowledges for this long.
UNACKNOWLEDGED_FOR = 30_000  # milliseconds
MOST_PROXY_STDERR = 16 * 1024  # bytes of what a ProxyCommand complains of: the last ones
ENDS_WITHIN = 1.0  # seconds for a ProxyCommand whose connection is gone


class ProxyCommandExit(NamedTuple):
    """How a ProxyCommand has ended, or goes on."""

    status: int | None  # None: it goes on
    stderr: str


class HostSocket(NamedTuple):
    """A way to a host; `close` it when it is not needed any more."""

    sock: socket.socket
    close: Callable[[], None]
    # How its ProxyCommand has ended, if it has one
    proxy_exit: Callable[[], ProxyCommandExit | None] = lambda: None


def connect_to_host(destination: Destination, jump_transport: ChannelFactory | None) -> HostSocket:
    """Connect, through the jump host `jump_transport` if there is one."""
    if jump_transport is not None:
        return _via_jump_host(destination, jump_transport)
    if destination.proxy_command and destination.socket_path is None:
        return _via_proxy_command(destination)
    sock = (
        _via_tcp(destination)
        if destination.socket_path is None
        else _via_unix_socket(destination.socket_path, destination)
    )
    return HostSocket(sock, sock.close)


def _via_tcp(destination: Destination) -> socket.socket:
    deadline = time.monotonic() + destination.connect_timeout
    found = _resolve_name(destination)
    problem: OSError = TimeoutError()
    for place, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            # An address that swallows everything (a dead IPv6, say) must leave time for the next.
            sock.settimeout(max(0.1, (deadline - time.monotonic()) / (len(found) - place)))
            sock.connect(address)
        except OSError as error:
            problem = error
            sock.close()
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # ours are small messages
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_FOR)
        return sock
    if isinstance(problem, ConnectionRefusedError):
        raise connection_refused(destination) from problem
    if isinstance(problem, TimeoutError):
        raise no_answer(destination) from problem
    raise no_route(destination, problem.strerror or problem) from problem


def _via_unix_socket(path: Path, destination: Destination) -> socket.socket:
    try:
        return connect_to_listener(f"{UNIX_SCHEME}{path}", destination.connect_timeout)
    except OSError as error:
        raise Unreachable(
            f"{destination.label} does not answer: {error.strerror or error}.", "Try again."
        ) from error


def _resolve_name(destination: Destination) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    """Resolve the name within the deadline: the resolver itself may take a minute."""
    answer: list[object] = []

    def ask() -> None:
        try:
            where = (destination.host_name, destination.port)
            answer.append(socket.getaddrinfo(*where, type=socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001 - whatever it was: the name is not known
            answer.append(error)

    resolver = Thread(ask, name="ssh-look-up", on_error=answer.append)
    resolver.start()
    resolver.join(destination.connect_timeout)  # then it is left alone: nothing can stop it
    if not answer:
        raise Unreachable(
            f"the name {destination.host_name} was not resolved within "
            f"{destination.connect_timeout:g} s.",
            "Look at the network or VPN: its name server does not answer.",
        )
    if isinstance(answer[0], Exception):
        raise name_unresolved(destination.host_name) from answer[0]
    return answer[0]  # type: ignore[return-value]  # what getaddrinfo gives


def _via_jump_host(destination: Destination, jump_transport: ChannelFactory) -> HostSocket:
    near, far = socket.socketpair()
    tunnel = Tunnel(jump_transport, destination.host_name, destination.port, local=far)
    try:
        tunnel.open(destination.connect_timeout)
    except BaseException as error:
        near.close()
        if isinstance(error, ChannelOpenError):
            raise jump_host_refused(destination, error.code) from None
        if isinstance(error, ResponseTimeout):
            raise Unreachable(
                f"{destination.label} did not answer its jump host within "
                f"{destination.connect_timeout:g} s.",
                "Is the machine up?",
            ) from None
        raise

    def leave() -> None:
        near.close()
        tunnel.close()

    return HostSocket(near, leave)


def _via_proxy_command(destination: Destination) -> HostSocket:
    if os.name != "posix":
        raise Unreachable(
            f"{destination.label} needs a ProxyCommand, which does not work from Windows here.",
            "Use ProxyJump instead.",
        )
    near, far = socket.socketpair()
    try:
        with far:  # the command has its own copy: its end must be the stream's end
            command = _ProxyCommand(destination, far.fileno())
    except OSError as error:
        near.close()
        raise Unreachable(
            f"the ProxyCommand of {destination.label} cannot be started: "
            f"{os.strerror(error.errno or errno.EIO)}.",
            "Look at your ssh config.",
        ) from error

    def leave() -> None:
        near.close()
        command.stop()

    return HostSocket(near, leave, command.wait_for_exit)


class _ProxyCommand:
    """A ProxyCommand that runs, and the last of what it complains of."""

    def __init__(self, destination: Destination, descriptor: int) -> None:
        self._stderr = b""
        # What wakes the reader: a process that the command has started may hold stderr open.
        self._stop_reading, self._stopped = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                # As OpenSSH does: a line for the shell, from the person's own configuration.
                ["/bin/sh", "-c", f"exec {destination.proxy_command}"],
                env=destination.environment,
                stdin=descriptor,
                stdout=descriptor,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C at the terminal is not for it
            )
        except BaseException:
            self._stop_reading.close()
            self._stopped.close()
            raise
        self._reader = Thread(self._read_stderr, name="ssh-proxy")
        self._reader.start()

    def _read_stderr(self) -> None:
        """Read until its end, or until nobody wants to know: what it has started may go on."""
        stderr = self._process.stderr
        assert stderr is not None  # noqa: S101 (piped)
        with contextlib.suppress(OSError), stderr:
            while self._stopped not in wait([stderr.fileno(), self._stopped]):
                data = os.read(stderr.fileno(), MOST_PROXY_STDERR)
                if not data:
                    break
                self._stderr = (self._stderr + data)[-MOST_PROXY_STDERR:]

    def wait_for_exit(self) -> ProxyCommandExit:
        """Say how it has ended; it has a moment for that."""
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(ENDS_WITHIN)
            self._reader.join(ENDS_WITHIN)
        return ProxyCommandExit(status, self._stderr.decode(errors="replace"))

    def stop(self) -> None:
        """End it, and leave nothing behind; may be called again."""
        with contextlib.suppress(OSError):
            self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stop_reading.close()
        self._reader.join()
        self._stopped.close()
