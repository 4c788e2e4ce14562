"""A channel made of descriptors: what the system's ssh carries, as `ParamikoChannel` looks.

A thread per stream reads what comes and hands it to the sink; it rests while the sink has as
much as a window holds. Nothing is thrown away by a close from here: what was sent still goes
out, and only what does not end by itself within `LINGER` is ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Protocol

from remoter_kernel.local.login.paramiko_channel import WINDOW, ConnectionClosed, ResponseTimeout
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.paramiko_channel import ChannelReceiver

OPEN_WITHIN = 20.0  # seconds for a command to be started there
LINGER = 3.0  # seconds that the other end has to end by itself: a busy machine takes its time
READ_AT_ONCE = 128 * 1024  # bytes
IS_POSIX = os.name == "posix"


class ChannelStreams(Protocol):
    """Something that runs there, and this side's ends of its streams (-1: there is none)."""

    stdin: int
    stdout: int
    stderr: int

    def wait(self) -> int | None:
        """Wait until it ends; None where nobody says how."""

    def terminate(self) -> None:
        """Make it end, from any thread; its streams end then, too."""


class OpenSSHTransport(Protocol):
    """What starts errands: the connection, as a channel of this kind sees it."""

    active: bool

    def open_session(self, command: str, seconds: float) -> ChannelStreams:
        """Start a command; raise Refused, Closed or TooLate."""

    def open_forward(self, host: str, port: int, seconds: float) -> ChannelStreams:
        """Connect from there; raise Refused, Closed or TooLate."""

    def remove_channel(self, channel: StreamChannel) -> None:
        """Drop a channel that is over."""

    def check_alive(self) -> None:
        """Find out whether the connection still lives: something ended without a word."""


class StreamChannel:
    """A channel over an errand's streams; see `ParamikoChannel` for what each call means."""

    def __init__(self, transport: OpenSSHTransport, receiver: ChannelReceiver) -> None:
        self.exit_status: int | None = None
        self.receiver = receiver
        self._transport = transport
        self._forward_target: tuple[str, int] | None = None
        self._streams: ChannelStreams | None = None
        self._changed = threading.Condition()
        self._stdin_lock = threading.Lock()  # held by whoever uses stdin's descriptor
        self._unconsumed = 0  # bytes that the sink has and has not dealt with
        self._readers = 0
        self._is_closing = self._is_over = False
        self._threads: list[threading.Thread] = []

    # --- opening ---

    def request_open(self, kind: str, *fields: str | int) -> None:
        """Remember what is to be opened; `wait_open` or `exec_command` asks for it."""
        if kind == "direct-tcpip":
            self._forward_target = (str(fields[0]), int(fields[1]))

    def wait_open(self, seconds: float) -> None:
        """Open a connection there; a session is opened by its command."""
        if not self._transport.active:
            raise ConnectionClosed
        if self._forward_target is not None:
            self._start_threads(self._transport.open_forward(*self._forward_target, seconds))

    def exec_command(self, command: str) -> None:
        """Start a command, and wait until it is started; raise Refused, Closed or TooLate."""
        self._start_threads(self._transport.open_session(command, OPEN_WITHIN))

    @property
    def is_open(self) -> bool:
        """Say whether bytes can be sent."""
        return self._streams is not None and not (self._is_closing or self._is_over)

    def _start_threads(self, streams: ChannelStreams) -> None:
        self._streams = streams
        if IS_POSIX:
            os.set_blocking(streams.stdin, False)
        jobs: list[Callable[[], None]] = [
            lambda: self._read(streams.stdout, self.receiver.data_received)
        ]
        if streams.stderr >= 0:
            jobs.append(lambda: self._read(streams.stderr, self.receiver.extended_data_received))
        if self._forward_target is None:
            jobs.append(self._wait_for_exit)
        self._readers = len(jobs)
        for job in jobs:
            self._start_thread(job)

    def _start_thread(self, job: Callable[[], None]) -> None:
        thread = Thread(job, name="ssh-stream", on_error=lambda _error: self.mark_ended())
        self._threads.append(thread)
        thread.start()

    # --- to there ---

    def send(self, data: bytes | memoryview, *, deadline: float | None = None) -> None:
        """Send all of it; raise Closed or TooLate."""
        rest = memoryview(data)
        with self._stdin_lock:
            while rest:
                if not self.is_open or self._streams is None or self._streams.stdin < 0:
                    raise ConnectionClosed
                try:
                    rest = rest[os.write(self._streams.stdin, rest[:READ_AT_ONCE]) :]
                except BlockingIOError:
                    _wait_until_writable(self._streams.stdin, deadline)
                except OSError:
                    raise ConnectionClosed from None

    def send_eof(self) -> None:
        """Say that no more bytes will be sent."""
        with self._stdin_lock:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._streams is not None and self._streams.stdin >= 0:
            stdin, self._streams.stdin = self._streams.stdin, -1
            with contextlib.suppress(OSError):
                os.close(stdin)

    # --- from there ---

    def adjust_window(self, size: int) -> None:
        """Let as many bytes more come: that many have been dealt with."""
        with self._changed:
            self._unconsumed -= size
            self._changed.notify_all()

    def _read(self, descriptor: int, deliver: Callable[[bytes], None]) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unconsumed < WINDOW or self._is_closing)
            try:
                data = os.read(descriptor, READ_AT_ONCE)
            except OSError:
                data = b""
            if not data:
                break
            if not self._is_closing:
                with self._changed:
                    self._unconsumed += len(data)
                deliver(data)
        if deliver == self.receiver.data_received:
            deliver(b"")
        self._on_thread_end()

    def _wait_for_exit(self) -> None:
        assert self._streams is not None  # noqa: S101 (it is why this thread was started)
        self.exit_status = self._streams.wait()
        if self.exit_status is not None:
            self.receiver.exit_status_received()
        self._on_thread_end()

    def _on_thread_end(self) -> None:
        """One of the threads is done; the last one closes everything."""
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()
            if self._readers:
                return
        streams = self._streams
        assert streams is not None  # noqa: S101 (its threads have just ended)
        streams.terminate()  # whoever still writes is woken by it
        with self._stdin_lock:
            self._close_stdin()
        for descriptor in (streams.stdout, streams.stderr):
            if descriptor >= 0:
                os.close(descriptor)
        # Whoever learns of the end by this channel must not find the connection alive.
        if self.exit_status is None and not self._is_closing:
            self._transport.check_alive()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._transport.remove_channel(self)
        self.receiver.connection_lost()

    # --- the end ---

    def close(self) -> None:
        """Say goodbye; may be called from any thread, and more than once."""
        with self._changed:
            if self._is_closing or self._is_over or self._streams is None:
                return
            self._is_closing = True
            self._changed.notify_all()
        self._start_thread(self._end_lingering)

    def _end_lingering(self) -> None:
        until = time.monotonic() + LINGER
        if self._stdin_lock.acquire(timeout=LINGER):
            self._close_stdin()
            self._stdin_lock.release()
        with self._changed:
            self._changed.wait_for(lambda: not self._readers, max(0.0, until - time.monotonic()))
            is_done = not self._readers
        if not is_done:
            self.mark_ended()

    def mark_ended(self) -> None:
        """End it now, whatever is on its way."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._streams is not None:
            self._streams.terminate()

    def join(self, seconds: float) -> None:
        """Wait for its threads."""
        until = time.monotonic() + seconds
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))


def _wait_until_writable(descriptor: int, deadline: float | None) -> None:
    """Wait until something can be written, or the other end is gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    if not poll.poll(left):
        raise ResponseTimeout
