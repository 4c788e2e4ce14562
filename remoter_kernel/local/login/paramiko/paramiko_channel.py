"""One SSH channel over paramiko's connection: bytes in order, both ways, with its windows right.

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
from typing import TYPE_CHECKING, Any, Protocol

import paramiko
from paramiko import common as ssh

from remoter_kernel.local.login.login import (
    PACKET,
    WINDOW,
    ChannelOpenError,
    ConnectionClosed,
    ResponseTimeout,
)
from remoter_kernel.local.login.paramiko.paramiko_internals import LinkedChannel

if TYPE_CHECKING:
    from remoter_kernel.local.login.login import ChannelReceiver

LEAST_ADJUSTMENT = WINDOW // 8  # bytes: fewer are not worth a message
LARGEST_WINDOW = 2**32 - 1  # bytes (RFC 4254, 5.2)
STDERR = 1  # the only kind of extended data that there is (RFC 4254, 5.2)


def ssh_message(kind: bytes, *fields: str | bytes | int) -> paramiko.Message:
    """Return a message whose fields are strings, booleans and numbers (RFC 4251, 5)."""
    message = paramiko.Message()
    message.add_byte(kind)
    for each in fields:
        if isinstance(each, bool):
            message.add_boolean(each)
        elif isinstance(each, int):
            message.add_int(each)
        else:
            message.add_string(each)  # text as UTF-8
    return message


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


# 17 attributes: two windows, each with its counters, and how far the channel is. All of them
# change under one lock, as RFC 4254 (5.2 and 5.3) ties them to each other.
class ParamikoChannel(LinkedChannel):
    """A `Channel` that we opened. Made and numbered by the transport's `new_channel`."""

    def __init__(self, carrier: ChannelCarrier, number: int, receiver: ChannelReceiver) -> None:
        self.number = number
        self.exit_status: int | None = None
        self._receiver = receiver
        self._carrier = carrier
        self._changed = threading.Condition()
        self._remote_number = -1  # until it is open
        self._requested_at = 0.0
        self._open_failure_code: int | None = None
        self._remote_window = 0  # bytes that the other end takes from us by now
        self._remote_max_packet = 0  # bytes, the most it takes at once
        self._consumed = (
            0  # bytes that the receiver is done with, and which the other end does not know of
        )
        self._window_left = WINDOW  # bytes that the other end may still send
        self._sends_in_progress = 0  # messages that threads send just now: CLOSE waits for them
        self._ended = self._eof_sent = self._is_closing = self._close_received = False

    # --- for whoever uses the channel ---

    def request_open(self, kind: str, *fields: str | int) -> None:
        """Ask the server to open it, and return at once; `wait_open` says what came of it."""
        self._requested_at = time.perf_counter()
        fields = (kind, self.number, WINDOW, PACKET, *fields)
        self._carrier.send(ssh_message(ssh.cMSG_CHANNEL_OPEN, *fields))
        if not self._carrier.active:  # paramiko drops messages of a dead connection in silence
            self.mark_ended()

    @property
    def is_open(self) -> bool:
        """Say whether bytes can still be sent."""
        return self._remote_number >= 0 and not (self._is_closing or self._close_received)

    def wait_open(self, seconds: float) -> None:
        """Wait until the server has opened it."""
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
        with self._changed:
            if not self.is_open:
                raise ConnectionClosed
            self._sends_in_progress += 1
        self._send(ssh.cMSG_CHANNEL_REQUEST, "exec", True, command)  # True: answer it

    def send(self, data: bytes | memoryview, *, deadline: float | None = None) -> None:
        """Send all of it, waiting for the other end's window."""
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
            self._send(ssh.cMSG_CHANNEL_DATA, rest[:size].tobytes())
            rest = rest[size:]

    def send_eof(self) -> None:
        """Say that no more bytes will be sent."""
        with self._changed:
            if self._eof_sent or not self.is_open:
                return
            self._eof_sent = True
            self._sends_in_progress += 1
        self._send(ssh.cMSG_CHANNEL_EOF)

    def close(self) -> None:
        """Close it; from any thread, and more than once if need be."""
        with self._changed:
            if self._is_closing or self._remote_number < 0:
                return
            self._is_closing = True
            self._changed.notify_all()
            if not self._sends_in_progress:
                self._send_nowait(ssh.cMSG_CHANNEL_CLOSE)

    def adjust_window(self, size: int) -> None:
        """Let the other end send `size` bytes more: the receiver is done with that many."""
        with self._changed:
            self._consumed += size
            if self._consumed < LEAST_ADJUSTMENT or not self.is_open:
                return
            size, self._consumed = self._consumed, 0
            self._window_left += size
            # Under the lock: a CLOSE must not come before it.
            self._send_nowait(ssh.cMSG_CHANNEL_WINDOW_ADJUST, size)

    def _send(self, kind: bytes, *fields: str | bytes | int) -> None:
        """Send what `_sends_in_progress` counts; the last of them lets a CLOSE follow."""
        try:
            self._carrier.send(ssh_message(kind, self._remote_number, *fields))
        finally:
            with self._changed:
                self._sends_in_progress -= 1
                if self._is_closing and not self._sends_in_progress:
                    self._send_nowait(ssh.cMSG_CHANNEL_CLOSE)

    def _send_nowait(self, kind: bytes, *fields: int) -> None:
        self._carrier.send_nowait(ssh_message(kind, self._remote_number, *fields))

    # --- for the transport's thread: what the server sent ---

    def on_open_confirmation(self, remote_number: int, window: int, packet: int) -> None:
        """The server opened it."""
        self._carrier.record_rtt(time.perf_counter() - self._requested_at)
        with self._changed:
            self._remote_number, self._remote_window = remote_number, window
            self._remote_max_packet = min(packet, PACKET)
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
            self._receiver.data_received(data)

    def on_extended_data(self, message: Any) -> None:
        """Bytes of stderr came, or of a kind that no RFC knows."""
        kind, data = message.get_int(), message.get_binary()
        if not self._is_within_window(len(data)):
            return
        if kind == STDERR:
            self._receiver.extended_data_received(data)
        else:
            self.adjust_window(len(data))

    def _is_within_window(self, size: int) -> bool:
        """Count what came; end the channel if that is more than the other end may send."""
        with self._changed:
            self._window_left -= size
            if self._window_left >= 0:
                return True
        self.on_failure(None)
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
        elif what == "exit-signal":
            # As a shell would say it: 128 and the signal's number.
            self.exit_status = 128 + getattr(signal, f"SIG{message.get_text()}", 0)
        elif wants_answer:
            with self._changed:
                if self.is_open:
                    self._send_nowait(ssh.cMSG_CHANNEL_FAILURE)
            return
        else:
            return
        self._receiver.exit_status_received()

    def on_success(self, _message: Any) -> None:
        """The command was started; nobody waits for that."""

    def on_failure(self, _message: Any) -> None:
        """The command was refused: nothing will come."""
        self.close()
        self.mark_ended()

    def on_eof(self, _message: Any) -> None:
        """No more bytes will come; an exit status may."""
        self._receiver.data_received(b"")

    def on_close(self, _message: Any) -> None:
        """The other end is done with this channel."""
        self._close_received = True
        self.close()  # each end answers a CLOSE with one of its own (RFC 4254, 5.3)
        self.mark_ended()

    def mark_ended(self) -> None:
        """No more of anything will come."""
        with self._changed:
            if self._ended:
                return
            self._ended = self._close_received = True
            self._changed.notify_all()
        self._carrier.remove_channel(self)
        self._receiver.connection_lost()

    def on_connection_gone(self) -> None:
        """The connection has ended; called for each channel, one after the other."""
        # Whoever learns of the end by this channel must not find the connection alive.
        self._carrier.active = False
        self.mark_ended()


MESSAGE_HANDLERS = {
    ssh.MSG_CHANNEL_SUCCESS: ParamikoChannel.on_success,
    ssh.MSG_CHANNEL_FAILURE: ParamikoChannel.on_failure,
    ssh.MSG_CHANNEL_DATA: ParamikoChannel.on_data,
    ssh.MSG_CHANNEL_EXTENDED_DATA: ParamikoChannel.on_extended_data,
    ssh.MSG_CHANNEL_WINDOW_ADJUST: ParamikoChannel.on_window_adjust,
    ssh.MSG_CHANNEL_REQUEST: ParamikoChannel.on_request,
    ssh.MSG_CHANNEL_EOF: ParamikoChannel.on_eof,
    ssh.MSG_CHANNEL_CLOSE: ParamikoChannel.on_close,
}
