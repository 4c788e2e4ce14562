"""A tunnel: one local connection of ours, one channel of SSH, bytes between them.

It listens where only this person's processes can connect, and takes the first of them.

What comes from the server is written to the local socket by the transport's own thread; only
when that socket is full does a thread of the tunnel take over, in order, until it has
caught up. Another thread of the tunnel reads from the socket, and sends. When
either end closes, the other is closed at once: ZeroMQ must see a cut as a cut.

A `CommandTunnel` leads to the stdin and stdout of a remote command, once that has written a line.
For servers that forbid TCP forwarding: the command connects instead, and passes bytes on.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from remoter_kernel.local import private_sockets
from remoter_kernel.local.login.login import (
    PACKET,
    CommandEnded,
    CompletedCommand,
    ConnectionClosed,
    ResponseTimeout,
)
from remoter_kernel.local.private_sockets import PrivateListener
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.login import ChannelFactory

# Windows cannot ask one call not to block: there, the tunnel's thread writes everything.
DONTWAIT_FLAG: int | None = getattr(socket, "MSG_DONTWAIT", None)
LINGER = "hh" if sys.platform == "win32" else "ii"  # on, seconds
READ_AT_ONCE = 4 * PACKET  # bytes
THREADS_END_WITHIN = 2.0  # seconds
BACKLOG = 8  # where strangers can connect, they must not fill it at once
ACCEPT_WITHIN = 60.0  # seconds: whoever asked for a tunnel connects at once
SOCKET_KIND = "t"  # how the names of tunnels' sockets begin

MOST_KEPT_OUTPUT = 4096  # bytes of what was said instead of the greeting: enough for a sentence


class Tunnel:
    """Listens for exactly one connection, or is given it (`local`)."""

    def __init__(
        self, transport: ChannelFactory, host: str, port: int, *, local: socket.socket | None = None
    ) -> None:
        self.secret = b""  # what whoever connects by TCP sends first, unless it is ZeroMQ
        self.sent = self.received = 0  # bytes, to the server and from it
        self._target = (host, port)
        self._channel = transport.new_channel(self)
        self._listener: PrivateListener | None = None
        self._local = local
        self._changed = threading.Condition()
        self._backlog: deque[bytes] = deque()  # not yet written to `local`; the first: just now
        self._is_over = False
        self._is_aborted = False  # we have closed it: nobody wants what was not read yet
        self._threads = [self._new_thread(self._serve, "ssh-tunnel")]

    def _new_thread(self, job: Callable[[], None], name: str) -> Thread:
        return Thread(job, name=name, on_error=lambda _error: self.close())

    def open(self, seconds: float) -> None:
        """Have the server connect, then listen; raises what `Channel` says."""
        try:
            self._open_channel(seconds)
            if self._local is None:
                # Only now: nobody can connect to a tunnel that leads nowhere.
                self._listener = PrivateListener(SOCKET_KIND, backlog=BACKLOG)
                self.secret = private_sockets.new_secret() if self._listener.is_tcp else b""
        except BaseException:
            self._channel.close()
            if self._local is not None:
                self._local.close()
            raise
        self._threads[0].start()

    def _open_channel(self, seconds: float) -> None:
        """Have the channel lead to where this tunnel leads."""
        # Behind the target: who connects (RFC 4254, 7.2). Nobody asks.
        self._channel.request_open("direct-tcpip", *self._target, "127.0.0.1", 0)
        self._channel.wait_open(seconds)

    @property
    def address(self) -> str:
        """Where to connect to, as ZeroMQ writes it."""
        return self._listener.address if self._listener else ""

    @property
    def is_open(self) -> bool:
        """Say whether bytes can still pass."""
        return not self._is_over

    def close(self) -> None:
        """Close both sides; what was not written yet is dropped."""
        with self._changed:
            self._is_aborted = True
            self._backlog.clear()
        self.connection_lost()  # wakes the threads, so that they can be joined
        self._channel.close()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(THREADS_END_WITHIN)

    # --- from the server: on the transport's thread ---

    def data_received(self, data: bytes) -> None:
        """Write it now if nothing older waits and the socket has room."""
        if not data:
            self.connection_lost()  # a half-closed ZeroMQ connection is of no use to anybody
            return
        self.received += len(data)
        written = 0
        with self._changed:
            if self._local is not None and not self._backlog:
                written = _try_write(self._local, data)
            if written < len(data):
                self._backlog.append(data[written:] if written else data)
                self._wake_writer()
        if written:
            self._channel.adjust_window(written)

    def extended_data_received(self, data: bytes) -> None:
        """Drop it: a TCP connection has one stream, but a server may send anything."""
        self._channel.adjust_window(len(data))

    def exit_status_received(self) -> None:
        """A TCP connection has no exit status."""

    def connection_lost(self) -> None:
        """Close the local socket, once all that came has been written."""
        with self._changed:
            if self._is_over:
                return
            self._is_over = True
            self._changed.notify_all()
            waits, local = bool(self._backlog), self._local
        if local is None:
            if self._listener is not None:
                self._listener.wake()
        elif not waits:
            _shut_socket(local)

    def _wake_writer(self) -> None:
        """Have the backlog written by a thread of its own, once there is a socket."""
        if self._local is None:
            return
        if len(self._threads) == 1:
            writer = self._new_thread(self._drain, "ssh-tunnel-late")
            self._threads.append(writer)
            writer.start()
        self._changed.notify_all()

    def _drain(self) -> None:
        local = self._local
        assert local is not None  # noqa: S101 (it is why this thread was started)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog or self._is_over)
                if not self._backlog:
                    break
                data = self._backlog[0]  # stays there meanwhile: nothing newer may pass it
            try:
                local.sendall(data)
            except OSError:
                break
            with self._changed:
                if self._backlog:  # else it was closed meanwhile
                    self._backlog.popleft()
            self._channel.adjust_window(len(data))
        _shut_socket(local)

    # --- to the server: on the tunnel's thread ---

    def _serve(self) -> None:
        local = self._accept_once()
        if local is not None:
            with local:
                with contextlib.suppress(OSError, ConnectionClosed, ResponseTimeout):
                    # b"" is half a close, too: nobody of ours uses that (see `data_received`).
                    while data := local.recv(READ_AT_ONCE):
                        self._channel.send(data)
                        self.sent += len(data)
                if self._is_aborted:
                    _set_reset_on_close(local)
        with self._changed:
            self._is_over = True  # and nobody is left to read what came
            self._backlog.clear()
            self._changed.notify_all()
        self._channel.close()

    def _accept_once(self) -> socket.socket | None:
        if self._listener is None:
            return self._local
        with contextlib.suppress(OSError), self._listener as listener:
            local = self._accept_authenticated(listener)
            listener.unlink()  # the one connection is there
            with self._changed:
                # What came before an end that was quicker than we are is still written.
                has_last_words = bool(self._backlog) and not (listener.is_tcp or self._is_aborted)
                if not self._is_over or has_last_words:
                    self._local = local
                    if self._backlog:
                        self._wake_writer()
                    return local
            local.close()
            # Whoever came too late must see the end; not every system resets its backlog.
            while True:
                listener.accept(0).close()
        return None

    def _accept_authenticated(self, listener: PrivateListener) -> socket.socket:
        """Take the first connection of whoever the tunnel is for; OSError if none comes."""
        deadline = time.monotonic() + ACCEPT_WITHIN
        while True:
            local = listener.accept(max(0.001, deadline - time.monotonic()))
            if (
                self._is_over
                or not listener.is_tcp
                or private_sockets.is_authenticated(local, self.secret)
            ):
                return local
            local.close()


def _try_write(local: socket.socket, data: bytes) -> int:
    """Write what the socket takes at once; return how many bytes that were."""
    if DONTWAIT_FLAG is not None:
        # Full, or gone: if gone, the reader finds out and closes the channel.
        with contextlib.suppress(OSError):
            return local.send(data, DONTWAIT_FLAG)
    return 0


def _set_reset_on_close(local: socket.socket) -> None:
    """Let a peer that only sends notice a close.

    One that waits for room in a full window would not notice an orderly close: with its
    window shut, our end is gone for the system, too, but for a minute it does not say so.
    """
    with contextlib.suppress(OSError):
        local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(LINGER, 1, 0))


def _shut_socket(local: socket.socket) -> None:
    """End a connection under the thread that reads from it."""
    with contextlib.suppress(OSError):
        local.shutdown(socket.SHUT_RDWR)  # a close would not wake it


class CommandTunnel(Tunnel):
    """Opens like a tunnel; drops what a noisy shell writes before the line `first_line`."""

    def __init__(self, transport: ChannelFactory, command: str, first_line: bytes) -> None:
        super().__init__(transport, "", 0)
        self._transport = transport
        self._command = command
        self._first_line = first_line
        self._has_first_line = False
        self._unmatched = b""  # of stdout, from the last line end on
        self._stdout_tail = self._stderr_tail = b""  # for a sentence

    def _open_channel(self, seconds: float) -> None:
        """Start the command and wait for its first line; raises CommandEnded, too."""
        until = time.monotonic() + seconds
        self._channel.request_open("session")
        self._channel.wait_open(seconds)
        self._channel.exec_command(self._command)  # no terminal: bytes pass as they are
        with self._changed:
            is_known = self._changed.wait_for(
                lambda: self._has_first_line or self._is_over, max(0.0, until - time.monotonic())
            )
        if self._has_first_line:
            return
        if not is_known:
            raise ResponseTimeout
        if not self._transport.active:
            raise ConnectionClosed
        raise CommandEnded(
            CompletedCommand.of(self._stdout_tail, self._stderr_tail, self._channel.exit_status)
        )

    # --- on the transport's thread ---

    def data_received(self, data: bytes) -> None:
        """Look for the first line; what follows it is what the tunnel carries."""
        if self._has_first_line:
            super().data_received(data)
            return
        if not data:  # the exit status comes after the end of stdout: see `connection_lost`
            return
        self._stdout_tail = (self._stdout_tail + data)[-MOST_KEPT_OUTPUT:]
        *lines, self._unmatched = (self._unmatched + data).splitlines(keepends=True) or [b""]
        if self._unmatched.endswith(b"\n"):
            lines, self._unmatched = [*lines, self._unmatched], b""
        for place, line in enumerate(lines):
            if line.rstrip(b"\r\n") == self._first_line and line.endswith(b"\n"):
                rest = b"".join(lines[place + 1 :]) + self._unmatched
                self._channel.adjust_window(len(data) - len(rest))
                self._unmatched = b""
                with self._changed:
                    self._has_first_line = True
                    self._changed.notify_all()
                if rest:
                    super().data_received(rest)
                return
        self._channel.adjust_window(len(data))
        self._unmatched = self._unmatched[-MOST_KEPT_OUTPUT:]  # a line may go on for ever

    def extended_data_received(self, data: bytes) -> None:
        """Keep the last of what the command complains about."""
        self._stderr_tail = (self._stderr_tail + data)[-MOST_KEPT_OUTPUT:]
        super().extended_data_received(data)
