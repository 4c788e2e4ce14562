"""Moves one conversation over one wire: hears, says, acknowledges, pings.

The same pump serves both ends. It is told the time and is handed a way to send; what it
hears it hands on. When it ends, it says why, once.

Whether the system still holds bytes that one end of a connection on this machine has sent. Where a
receiver was held up, its buffer overflows, and what was dropped is sent again only some time later,
up to seconds after the receiver reads on. Silence alone does not tell that from the end of what was
sent.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from remoter_kernel import logs
from remoter_kernel.errors import ProtocolError, RemoterError, Unreachable
from remoter_kernel.protocol.frames import (
    Bytes,
    FrameHeader,
    Lane,
    MessageType,
    decode_messages,
    encode_message,
    from_json,
    to_json,
)
from remoter_kernel.protocol.stream import BOTH, Ack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.stream import ReliableStream

ACK_WITHIN = 0.1  # seconds that an acknowledgement may wait for something to ride on
STALLED_AFTER = 1.0  # seconds without an answer; what would be lost is better kept back
PING_AFTER = 2.5  # seconds of silence
DEAD_AFTER = 8.0  # seconds of silence
LOOK_EVERY = 1.0  # seconds
LONGEST_REASON = 1000  # characters of why the other end hung up
MOST_AT_ONCE = 1000  # sayings that are sent before others in this process get their turn
MOST_BYTES_AT_ONCE = 8 * 1024 * 1024
BATCH = 64 * 1024  # bytes: sayings that are due together share a frame up to this size
Send = Callable[[bytes], None]
OnItem = Callable[[FrameHeader, Bytes], None]
OnRefused = Callable[[FrameHeader, Bytes, Exception], None]
OnEnd = Callable[[RemoterError], None]
_log = logging.getLogger(__name__)

CONNECTIONS = Path("/proc/net/tcp")


class LinkConnection:
    """One wire of a conversation, from its greeting to its end."""

    def __init__(self, reactor: Reactor, stream: ReliableStream, send: Send) -> None:
        """Remember; `start` begins."""
        self.reactor = reactor
        self.stream = stream
        self.send = send
        self.on_item: OnItem = lambda _head, _body: None
        self.on_refused: OnRefused = (
            _raise_refused  # keeps an item that `on_item` could not take in
        )
        self.on_end: OnEnd = lambda _error: None
        self.round_trip: float | None = None  # seconds
        self._last_heard = 0.0
        self._last_ping = 0.0
        self._pings_in_flight = 0
        self._unanswered_since = 0.0  # when we first said something since we heard anything
        self._flowed = 0  # bulk bytes, when we looked last
        self._ack_timer: Timer | None = None
        self._check_timer: Timer | None = None
        self._flush_timer: Timer | None = None  # goes on with what is due
        self._has_ended = False

    def start(self, peer_received: Sequence[int]) -> None:
        """Begin to talk, now that both ends have greeted each other.

        Who heard the greeting may have hung up already: the session has no kernel, say.
        """
        if self._has_ended:
            return
        self.stream.open((int(peer_received[0]), int(peer_received[1])))
        self._last_heard = time.monotonic()
        self._check_timer = self.reactor.call_later(LOOK_EVERY, self._check_alive)
        self._send_control(MessageType.ACK)  # the first credit
        self._ping()  # nothing is under way: the truest round trip there will be
        self.flush()

    def on_frame(self, frame: Bytes) -> None:
        """Take in one frame; one that is malformed ends this wire, nothing else."""
        if self._has_ended:
            return
        self._last_heard = time.monotonic()
        self._unanswered_since = 0.0
        _log.debug("received a frame of %d bytes", len(frame))
        try:
            for head, body in decode_messages(frame):
                self._on_message(head, body)
        except ProtocolError as error:
            self.end(error, notifies_peer=True)
            return
        self.flush()

    def flush(self) -> None:
        """Send what is due, and see to it that numbers are told soon."""
        if self._has_ended:
            return
        is_stalled = bool(self._unanswered_since) and self._is_stalled()
        try:
            is_all = self._send_due((Lane.URGENT,) if is_stalled else BOTH)
        except ProtocolError as error:  # what is due cannot be read
            self.end(error, notifies_peer=True)
            return
        if not is_all and self._flush_timer is None:
            self._flush_timer = self.reactor.call_later(
                0.0, self._flush_more
            )  # others get their turn first
        if is_stalled and not self._pings_in_flight:
            self._ping()
        ack = self.stream.ack_needed(time.monotonic())
        if ack is Ack.NOW:
            self._send_control(MessageType.ACK)
        elif ack is Ack.DELAYED and self._ack_timer is None:
            self._ack_timer = self.reactor.call_later(ACK_WITHIN, self.send_ack)

    def _flush_more(self) -> None:
        self._flush_timer = None
        self.flush()

    def _send_due(self, lanes: tuple[Lane, ...]) -> bool:
        """Send what is due; return whether that was all."""
        batch: list[bytes] = []
        size = whole = 0
        try:
            for count, (head, body) in enumerate(self.stream.frames_to_send(lanes), 1):
                saying = encode_message(head, body)
                _log.debug("sends %r %d: %d bytes", head.type, head.number, len(body))
                if batch and size + len(saying) > BATCH:
                    self.send(b"".join(batch))
                    batch, size = [], 0
                batch.append(saying)
                size += len(saying)
                whole += len(saying)
                if count >= MOST_AT_ONCE or whole >= MOST_BYTES_AT_ONCE:
                    return False
        finally:
            if batch:
                self.send(b"".join(batch))
                self._unanswered_since = self._unanswered_since or time.monotonic()
        return True

    def probe(self, seconds: float) -> None:
        """Ask for a sign of life now; end this wire if none comes within so many seconds."""
        before = self._last_heard
        self._ping()

        def judge() -> None:
            if self._last_heard == before:
                self.end(Unreachable(f"Nothing was heard for {seconds:.0f} seconds."))

        self.reactor.call_later(seconds, judge)

    def end(self, error: RemoterError, *, notifies_peer: bool = False) -> None:
        """End this wire with a reason; `notifies_peer`: the other end hears it too."""
        if self._has_ended:
            return
        self._has_ended = True
        _log.info("A connection ends: %s", logs.reason(error))
        if notifies_peer:
            self.send(
                encode_message(self.stream.head(MessageType.BYE), to_json({"why": str(error)}))
            )
        self.stream.close()
        for timer in (self._ack_timer, self._check_timer, self._flush_timer):
            if timer:
                timer.cancel()
        self.on_end(error)

    def _on_message(self, head: FrameHeader, body: Bytes) -> None:
        _log.debug("received %r %d: %d bytes", head.type, head.number, len(body))
        whole = self.stream.receive(head, body)
        if whole is not None:
            # An item. One that cannot be taken in is passed over, and its sender is told: it
            # counts as received, so that it never comes again. If the other end should not have
            # sent it, this connection ends, once. If the fault is ours, what follows is taken in.
            try:
                self.on_item(head, whole)
            except Exception as error:  # one bad item must not end what follows it
                self.on_refused(head, whole, error)
                if isinstance(error, ProtocolError):
                    raise
        elif head.type is MessageType.PING:
            self._send_control(MessageType.PONG)
        elif head.type is MessageType.PONG:
            self._on_pong()
        elif head.type is MessageType.BYE:
            words = from_json(body)
            why = str(words.get("why", "The other end hung up."))
            self.end(ProtocolError(why[:LONGEST_REASON]))

    def _send_control(self, kind: MessageType) -> None:
        self.send(encode_message(self.stream.head(kind)))

    def send_credit(self) -> None:
        """Let the other end go on, if what was kept meanwhile is much."""
        if self.stream.ack_needed(time.monotonic()) is Ack.NOW and not self._has_ended:
            self._send_control(MessageType.ACK)

    def send_ack(self) -> None:
        """Tell the other end now what is kept here."""
        self._ack_timer = None
        if self.stream.ack_needed(time.monotonic()) is not Ack.NONE and not self._has_ended:
            self._send_control(MessageType.ACK)

    def _check_alive(self) -> None:
        now = time.monotonic()
        silence = now - self._last_heard
        if silence > DEAD_AFTER:
            message = f"Nothing was heard for {silence:.0f} seconds."
            self.end(Unreachable(message))
            return
        has_flowed = self.stream.acked_bytes != self._flowed
        self._flowed = self.stream.acked_bytes
        is_silent = silence > PING_AFTER and now - self._last_ping > PING_AFTER
        if is_silent or (has_flowed and not self._pings_in_flight):
            self._ping()
        self._check_timer = self.reactor.call_later(LOOK_EVERY, self._check_alive)

    def _is_stalled(self) -> bool:
        """Has nothing come back for so long that more would probably be said to nobody?"""
        patience = max(STALLED_AFTER, 3 * (self.round_trip or 0.0))
        return time.monotonic() - self._unanswered_since > patience

    def _ping(self) -> None:
        self._last_ping = time.monotonic()
        self._pings_in_flight += 1
        self._send_control(MessageType.PING)

    def _on_pong(self) -> None:
        self._pings_in_flight -= 1
        if self._pings_in_flight == 0:  # or it answers an older ping
            level = (
                logging.DEBUG if self.round_trip else logging.INFO
            )  # the first one is the truest
            self.round_trip = self._last_heard - self._last_ping
            _log.log(level, "The round trip takes %.4f s", self.round_trip)
            self.stream.window.on_round_trip(self.round_trip)


def _raise_refused(_head: FrameHeader, _body: Bytes, error: Exception) -> None:
    raise error


def has_bytes_in_flight(sender: int, receiver: int) -> bool:
    """Do bytes wait on the way from one port to another? False where no system tells it."""
    try:
        lines = CONNECTIONS.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False  # Linux alone has it
    for line in lines:
        _, local, remote, _, queues, *_ = line.split()
        ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        unsent, _, unread = queues.partition(":")
        is_one = (ports == (sender, receiver) and int(unsent, 16)) or (
            ports == (receiver, sender) and int(unread, 16)
        )
        if is_one:
            return True
    return False


def connection_ports(handle: int) -> tuple[int, int]:
    """Return the other port and our own of a connection that ZeroMQ has; zeros if unknown."""
    if not sys.platform.startswith("linux"):
        return 0, 0
    try:
        with socket.socket(fileno=os.dup(handle)) as copy:
            return int(copy.getpeername()[1]), int(copy.getsockname()[1])
    except (OSError, IndexError):
        return 0, 0  # it is closed again, or no TCP
