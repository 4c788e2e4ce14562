"""Channels made of descriptors: what the system's ssh carries.

A thread per stream reads what comes and hands it to the receiver; it rests while the receiver has
as much as a window holds. A close from here throws nothing away: what was sent still goes
out, and only what does not end by itself within `LINGER` is ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
from typing import TYPE_CHECKING

from remoter_kernel.local.login.login import WINDOW, ConnectionClosed, ResponseTimeout
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.login import ChannelReceiver

OPEN_WITHIN = 20.0  # seconds for a command to be started there
LINGER = 3.0  # seconds that the other end has to end by itself: a busy machine takes its time
THREADS_END_WITHIN = 2.0  # seconds
READ_AT_ONCE = 128 * 1024  # bytes


class ChannelStreams:
    """Something that runs at the other end, and our ends of its streams (-1: there is none)."""

    def __init__(self, stdin: int, stdout: int, stderr: int = -1) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr

    def wait(self) -> int | None:
        """Wait until it ends; None where nobody says how."""
        raise NotImplementedError

    def terminate(self) -> None:
        """Make it end, from any thread; its streams end then, too."""
        raise NotImplementedError

    def close(self) -> None:
        """End it where no channel has its streams."""
        self.terminate()
        self.close_streams()

    def close_streams(self) -> None:
        """Close all that are open."""
        for descriptor in (self.stdin, self.stdout, self.stderr):
            if descriptor >= 0:
                os.close(descriptor)


class OpenSSHTransport:
    """What starts commands and connections by ssh, and knows the channels that they have."""

    def __init__(self, round_trip: float = math.inf) -> None:
        self.active = False
        self.round_trip = round_trip  # seconds: the quickest answer so far
        self._lock = threading.Lock()
        self._channels: set[StreamChannel] = set()

    def new_channel(self, receiver: ChannelReceiver) -> StreamChannel:
        """Make a channel that is not open yet."""
        channel = StreamChannel(self, receiver)
        with self._lock:
            self._channels.add(channel)
        return channel

    def remove_channel(self, channel: StreamChannel) -> None:
        """Drop a channel that is over."""
        with self._lock:
            self._channels.discard(channel)

    def open_session(self, command: str, seconds: float) -> ChannelStreams:
        """Start a command; raise ChannelOpenError, ConnectionClosed or ResponseTimeout."""
        raise NotImplementedError

    def open_forward(self, host: str, port: int, seconds: float) -> ChannelStreams:
        """Have the server connect to there; raise the same."""
        raise NotImplementedError

    def check_alive(self) -> None:
        """Find out whether the connection still lives: something ended without a word."""

    def abort(self) -> None:
        """Drop everything without a goodbye."""
        self.active = False
        for channel in self._open_channels():
            channel.mark_ended()

    def close_and_join(self) -> None:
        """End what was begun; leave no thread behind."""
        self.active = False
        channels = self._open_channels()
        for channel in channels:
            channel.mark_ended()
        self._end_connection()
        for channel in channels:
            channel.join(THREADS_END_WITHIN)

    def _end_connection(self) -> None:
        """End what the channels have in common, if anything."""

    def _open_channels(self) -> list[StreamChannel]:
        with self._lock:
            return list(self._channels)


class StreamChannel:
    """A `Channel` over the streams of what ssh has started."""

    def __init__(self, transport: OpenSSHTransport, receiver: ChannelReceiver) -> None:
        self.exit_status: int | None = None
        self._receiver = receiver
        self._transport = transport
        self._forward_target: tuple[str, int] | None = None
        self._streams: ChannelStreams | None = None
        self._changed = threading.Condition()
        self._stdin_lock = threading.Lock()  # held by whoever uses stdin's descriptor
        self._unconsumed = 0  # bytes that the receiver has and is not done with
        self._jobs_left = 0  # threads that read, or wait for the exit status
        self._is_closing = self._is_over = False
        self._threads: list[threading.Thread] = []

    # --- opening ---

    def request_open(self, kind: str, *fields: str | int) -> None:
        """Note what is to be opened; `wait_open` or `exec_command` asks for it."""
        if kind == "direct-tcpip":
            self._forward_target = (str(fields[0]), int(fields[1]))

    def wait_open(self, seconds: float) -> None:
        """Open a connection; a session is opened by its command."""
        if not self._transport.active:
            raise ConnectionClosed
        if self._forward_target is not None:
            self._start_threads(self._transport.open_forward(*self._forward_target, seconds))

    def exec_command(self, command: str) -> None:
        """Start a command, and wait until it is started."""
        self._start_threads(self._transport.open_session(command, OPEN_WITHIN))

    @property
    def is_open(self) -> bool:
        """Say whether bytes can be sent."""
        return self._streams is not None and not (self._is_closing or self._is_over)

    def _start_threads(self, streams: ChannelStreams) -> None:
        self._streams = streams
        if os.name == "posix":  # elsewhere a pipe always blocks, and `send` with it
            os.set_blocking(streams.stdin, False)  # `send` has a deadline
        receiver = self._receiver
        jobs: list[Callable[[], None]] = [
            lambda: self._read(streams.stdout, receiver.data_received)
        ]
        if streams.stderr >= 0:
            jobs.append(lambda: self._read(streams.stderr, receiver.extended_data_received))
        if self._forward_target is None:
            jobs.append(self._wait_for_exit)
        self._jobs_left = len(jobs)
        for job in jobs:
            self._start_thread(job)

    def _start_thread(self, job: Callable[[], None]) -> None:
        thread = Thread(job, name="ssh-stream", on_error=lambda _error: self.mark_ended())
        self._threads.append(thread)
        thread.start()

    # --- to the other end ---

    def send(self, data: bytes | memoryview, *, deadline: float | None = None) -> None:
        """Send all of it, waiting as long as the pipe is full."""
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

    # --- from the other end ---

    def adjust_window(self, size: int) -> None:
        """Let as many bytes more come: the receiver is done with that many."""
        with self._changed:
            self._unconsumed -= size
            self._changed.notify_all()

    def _read(self, descriptor: int, deliver: Callable[[bytes], None]) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unconsumed < WINDOW or self._is_closing)
            try:
                data = os.read(descriptor, READ_AT_ONCE)
            except OSError:  # closed under it
                data = b""
            if not data:
                break
            if not self._is_closing:
                with self._changed:
                    self._unconsumed += len(data)
                deliver(data)
        if deliver == self._receiver.data_received:
            deliver(b"")
        self._on_thread_end()

    def _wait_for_exit(self) -> None:
        assert self._streams is not None  # noqa: S101 (it is why this thread was started)
        self.exit_status = self._streams.wait()
        if self.exit_status is not None:
            self._receiver.exit_status_received()
        self._on_thread_end()

    def _on_thread_end(self) -> None:
        """One of the threads is done; the last one closes everything."""
        with self._changed:
            self._jobs_left -= 1
            self._changed.notify_all()
            if self._jobs_left:
                return
        streams = self._streams
        assert streams is not None  # noqa: S101 (its threads have just ended)
        streams.terminate()  # this wakes whoever still writes
        with self._stdin_lock:
            streams.close_streams()
            streams.stdin = -1  # a later `send_eof` must not close what has its number by then
        # Whoever learns of the end by this channel must not find the connection alive.
        if self.exit_status is None and not self._is_closing:
            self._transport.check_alive()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._transport.remove_channel(self)
        self._receiver.connection_lost()

    # --- the end ---

    def close(self) -> None:
        """Close it; from any thread, and more than once if need be."""
        with self._changed:
            if self._is_closing or self._is_over or self._streams is None:
                return
            self._is_closing = True
            self._changed.notify_all()
        self._start_thread(self._end_lingering)

    def _end_lingering(self) -> None:
        until = time.monotonic() + LINGER
        if self._stdin_lock.acquire(timeout=LINGER):  # else a thread still writes, and is stuck
            self._close_stdin()
            self._stdin_lock.release()
        with self._changed:
            left = max(0.0, until - time.monotonic())
            is_done = self._changed.wait_for(lambda: not self._jobs_left, left)
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
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000  # ms
    if not poll.poll(left):
        raise ResponseTimeout
