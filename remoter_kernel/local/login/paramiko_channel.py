"""One SSH channel: bytes in order, both ways, with its windows kept right.

paramiko's own Channel puts what arrives into a buffer that another thread must be woken
to empty, and waits for an answer to each request. This one hands what arrives straight
to a receiver, on the transport's thread, and waits only where the protocol makes it.

Rules: the receiver never blocks; whoever has dealt with bytes gives them back (`adjust_window`),
and only then may the other end send as many again: a channel that sends more than that is
ended, or it would fill our memory; the transport's thread never sends
(see `ChannelCarrier.send_nowait`); nothing follows a CLOSE: sshd drops the whole
connection when data come for a channel that it has forgotten.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Protocol

import paramiko
from paramiko.common import (
    cMSG_CHANNEL_CLOSE,
    cMSG_CHANNEL_DATA,
    cMSG_CHANNEL_EOF,
    cMSG_CHANNEL_FAILURE,
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_REQUEST,
    cMSG_CHANNEL_WINDOW_ADJUST,
)

WINDOW = 4 * 1024 * 1024  # bytes in flight towards us: with more, sshd itself collapses
PACKET = 32 * 1024  # bytes: what sshd is tuned for
LEAST_ADJUSTMENT = WINDOW // 8  # bytes: fewer are not worth a message
LARGEST_WINDOW = 2**32 - 1  # bytes (RFC 4254, 5.2)


class ChannelReceiver(Protocol):
    """Where a channel's bytes go. Called on the transport's thread: must not block."""

    def data_received(self, data: bytes) -> None:
        """Take bytes of the stream (stdout of a command); b"" is its end, as with a socket."""

    def extended_data_received(self, data: bytes) -> None:
        """Take bytes of stderr."""

    def exit_status_received(self) -> None:
        """Learn that the command has ended; the rest of its output may still come."""

    def connection_lost(self) -> None:
        """Learn that no more will come: end of stream, channel closed, or connection gone."""


class ChannelCarrier(Protocol):
    """What carries a channel's messages: the connection, as a channel sees it."""

    active: bool

    def send(self, message: paramiko.Message) -> None:
        """Send now; may block."""

    def send_nowait(self, message: paramiko.Message) -> None:
        """Send soon; never blocks."""

    def remove_channel(self, channel: ParamikoChannel) -> None:
        """Drop a channel that is over."""

    def record_rtt(self, seconds: float) -> None:
        """Learn how long the server took for an answer."""


class ChannelFactory(Protocol):
    """What makes channels: paramiko's connection, or the system's ssh."""

    active: bool

    def new_channel(self, receiver: ChannelReceiver) -> Any:
        """Make a channel (`ParamikoChannel`, or what looks like it) that is not open yet."""


class ChannelOpenError(Exception):
    """The server did not open the channel; `code` is that of RFC 4254, 5.1."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class ConnectionClosed(Exception):
    """The channel, or the connection under it, ended."""


class ResponseTimeout(Exception):
    """The other end did not answer within the time given."""


class ServerViolation(paramiko.SSHException):  # type: ignore[misc]  # paramiko has no types
    """The server does what no server may, in a clause that goes on after "the server"."""


class HostKeyChanged(ServerViolation):
    """A later key exchange has shown another host key than the one that was looked at."""


class ParamikoChannel:
    """A channel that this side opened. Made and numbered by `Transport.new_channel`."""

    def __init__(self, carrier: ChannelCarrier, number: int, receiver: ChannelReceiver) -> None:
        self.number = number
        self.exit_status: int | None = None
        self.receiver = receiver
        self._carrier = carrier
        self._changed = threading.Condition()
        self._remote_number = -1  # until it is open
        self._requested_at = 0.0
        self._open_failure_code: int | None = None
        self._remote_window = 0  # bytes, by the other end's window
        self._remote_max_packet = 0  # bytes, the most it takes at once
        self._consumed = 0  # bytes, not yet given back
        self._received = 0  # bytes, of all streams
        self._granted = WINDOW  # bytes: so many may have come by now
        self._sends_in_progress = (
            0  # messages that a thread is sending just now: CLOSE waits for them
        )
        self._ended = self._eof_sent = self._is_closing = self._close_received = False

    # --- for whoever uses the channel ---

    def request_open(self, kind: str, *fields: str | int) -> None:
        """Ask the server to open it, and return at once; `wait_open` says what came of it."""
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_OPEN)
        message.add_string(kind)
        for field in (self.number, WINDOW, PACKET, *fields):
            (message.add_int if isinstance(field, int) else message.add_string)(field)
        self._requested_at = time.perf_counter()
        self._carrier.send(message)
        if not self._carrier.active:
            self.mark_ended()

    @property
    def is_open(self) -> bool:
        """Say whether bytes can still be sent."""
        return self._remote_number >= 0 and not (self._is_closing or self._close_received)

    def wait_open(self, seconds: float) -> None:
        """Wait until the server has opened it; raise Refused, Closed or TooLate."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._remote_number >= 0 or self._open_failure_code is not None or self._ended
                ),
                seconds,
            )
            if self._open_failure_code is not None:
                raise ChannelOpenError(self._open_failure_code)
            if self._remote_number >= 0:
                return
            if self._ended:
                raise ConnectionClosed
        self._carrier.remove_channel(self)
        raise ResponseTimeout

    def exec_command(self, command: str) -> None:
        """Start a command. Nothing waits for the answer: a refusal closes the channel."""
        message = self._message(cMSG_CHANNEL_REQUEST)
        message.add_string("exec")
        message.add_boolean(True)
        message.add_string(command.encode())
        with self._changed:
            if not self.is_open:
                raise ConnectionClosed
            self._sends_in_progress += 1
        self._send(message)

    def send(self, data: bytes | memoryview, *, deadline: float | None = None) -> None:
        """Send all of it, waiting for the other end's window; raise Closed or TooLate."""
        rest = memoryview(data)
        while rest:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._remote_window > 0 or not self.is_open,
                    None if deadline is None else max(0.0, deadline - time.monotonic()),
                )
                if not self.is_open:
                    raise ConnectionClosed
                size = min(len(rest), self._remote_window, self._remote_max_packet)
                if not size:
                    raise ResponseTimeout
                self._remote_window -= size
                self._sends_in_progress += 1
            message = self._message(cMSG_CHANNEL_DATA)
            message.add_string(rest[:size].tobytes())
            self._send(message)
            rest = rest[size:]

    def send_eof(self) -> None:
        """Say that no more bytes will be sent."""
        with self._changed:
            if self._eof_sent or not self.is_open:
                return
            self._eof_sent = True
            self._sends_in_progress += 1
        self._send(self._message(cMSG_CHANNEL_EOF))

    def close(self) -> None:
        """Say goodbye; may be called from any thread, and more than once."""
        with self._changed:
            if self._is_closing or self._remote_number < 0:
                return
            self._is_closing = True
            self._changed.notify_all()
            if not self._sends_in_progress:
                self._carrier.send_nowait(self._message(cMSG_CHANNEL_CLOSE))

    def adjust_window(self, size: int) -> None:
        """Let the other end send `size` bytes more: that many have been dealt with."""
        with self._changed:
            self._consumed += size
            if self._consumed < LEAST_ADJUSTMENT or not self.is_open:
                return
            size, self._consumed = self._consumed, 0
            self._granted += size
            message = self._message(cMSG_CHANNEL_WINDOW_ADJUST)
            message.add_int(size)
            self._carrier.send_nowait(message)  # under the lock: a CLOSE must not come before it

    def _send(self, message: paramiko.Message) -> None:
        """Send what has been counted as on its way; the last one lets a CLOSE follow."""
        try:
            self._carrier.send(message)
        finally:
            with self._changed:
                self._sends_in_progress -= 1
                if self._is_closing and not self._sends_in_progress:
                    self._carrier.send_nowait(self._message(cMSG_CHANNEL_CLOSE))

    def _message(self, kind: bytes) -> paramiko.Message:
        message = paramiko.Message()
        message.add_byte(kind)
        message.add_int(self._remote_number)
        return message

    # --- for the transport's thread: what the server said ---

    def on_open_confirmation(self, remote_number: int, window: int, packet: int) -> None:
        """The server opened it."""
        self._carrier.record_rtt(time.perf_counter() - self._requested_at)
        with self._changed:
            self._remote_number, self._remote_window, self._remote_max_packet = (
                remote_number,
                window,
                min(packet, PACKET),
            )
            self._changed.notify_all()

    def on_open_failure(self, code: int) -> None:
        """The server did not open it."""
        with self._changed:
            self._open_failure_code = code
            self._changed.notify_all()

    def on_data(self, message: Any) -> None:
        """Bytes came."""
        data = message.get_binary()
        if self._is_within_window(len(data)):
            self.receiver.data_received(data)

    def on_extended_data(self, message: Any) -> None:
        """Bytes of stderr came (1 is the only kind there is)."""
        kind, data = message.get_int(), message.get_binary()
        if not self._is_within_window(len(data)):
            return
        if kind == 1:
            self.receiver.extended_data_received(data)
        else:
            self.adjust_window(len(data))

    def _is_within_window(self, size: int) -> bool:
        """Count what came; end the channel if that is more than the other end may send."""
        self._received += size
        if self._received <= self._granted:
            return True
        self.close()
        self.mark_ended()
        return False

    def on_window_adjust(self, message: Any) -> None:
        """The other end can take more."""
        with self._changed:
            self._remote_window = min(LARGEST_WINDOW, self._remote_window + message.get_int())
            self._changed.notify_all()

    def on_request(self, message: Any) -> None:
        """The server says how the command ended, or asks for something that we do not do."""
        what, wants_answer = message.get_text(), message.get_boolean()
        if what == "exit-status":
            self.exit_status = message.get_int()
            self.receiver.exit_status_received()
        elif what == "exit-signal":
            # As a shell would say it: 128 and the signal's number.
            self.exit_status = 128 + getattr(signal, f"SIG{message.get_text()}", 0)
            self.receiver.exit_status_received()
        elif wants_answer:
            with self._changed:
                if self.is_open:
                    self._carrier.send_nowait(self._message(cMSG_CHANNEL_FAILURE))

    def on_success(self, _message: Any) -> None:
        """The command was started; nobody waits for that."""

    def on_failure(self, _message: Any) -> None:
        """The command was refused: nothing will come."""
        self.close()
        self.mark_ended()

    def on_eof(self, _message: Any) -> None:
        """No more bytes will come; an exit status may."""
        self.receiver.data_received(b"")

    def on_close(self, _message: Any) -> None:
        """The other end is done with this channel."""
        self._close_received = True
        self.close()
        self.mark_ended()

    def mark_ended(self) -> None:
        """No more of anything will come."""
        with self._changed:
            if self._ended:
                return
            self._ended = self._close_received = True
            self._changed.notify_all()
        self._carrier.remove_channel(self)
        self.receiver.connection_lost()

    def _unlink(self) -> None:
        """The connection is gone (paramiko calls this, channel after channel)."""
        # Whoever learns of the end by this channel must not find the connection alive.
        self._carrier.active = False
        self.mark_ended()
