"""Moves one link's messages over one connection: receives, sends, acknowledges, pings.

Both ends use the same class. It gets a way to send and hands on what it receives; when it ends,
it says why, once.

Below it: does the system still hold bytes that one end of a TCP connection on this machine has
sent? Where a receiver was held up, its buffer overflows, and Linux sends what it dropped again only
some time later, up to seconds after the receiver reads on. Silence alone does not tell that from
the end of what was sent.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from dataclasses import dataclass, field
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
from remoter_kernel.protocol.reactor import ignore
from remoter_kernel.protocol.stream import BOTH, Ack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.stream import ReliableStream

ACK_WITHIN = 0.1  # seconds that an acknowledgement may wait for something to ride on
# Seconds without an answer, after which bulk is kept back: what goes into the buffers of a dead
# TCP connection is lost, and would be sent a second time by the next one.
STALLED_AFTER = 1.0
PING_AFTER = 2.5  # seconds of silence
DEAD_AFTER = 8.0  # seconds of silence
LOOK_EVERY = 1.0  # seconds
LONGEST_REASON = 1000  # characters of why the other end hung up
MOST_AT_ONCE = 1000  # messages that are sent before others in this process get their turn
MOST_BYTES_AT_ONCE = 8 * 1024 * 1024
BATCH = 64 * 1024  # bytes: messages that are due together share a frame up to this size
Send = Callable[[bytes], None]
OnItem = Callable[[FrameHeader, Bytes], None]
OnRefused = Callable[[FrameHeader, Bytes, Exception], None]
OnEnd = Callable[[RemoterError], None]
_log = logging.getLogger(__name__)

CONNECTIONS = Path("/proc/net/tcp")


@dataclass
class _Liveness:
    """When the other end was heard; times are on the monotonic clock."""

    last_heard: float = 0.0
    last_ping: float = 0.0
    pings_in_flight: int = 0
    unanswered_since: float = 0.0  # the first send since anything was heard; 0: there is none
    flowed: int = 0  # bulk bytes at the last check


def _raise_refused(_head: FrameHeader, _body: Bytes, error: Exception) -> None:
    raise error


@dataclass(eq=False)
class LinkConnection:
    """One connection of a link, from its greeting to its end."""

    reactor: Reactor
    stream: ReliableStream
    send: Send
    on_item: OnItem = ignore
    on_refused: OnRefused = _raise_refused  # keeps an item that `on_item` could not take in
    on_end: OnEnd = ignore
    round_trip: float | None = None  # seconds
    _liveness: _Liveness = field(default_factory=_Liveness)
    _ack_timer: Timer | None = None
    _check_timer: Timer | None = None
    _flush_timer: Timer | None = None  # sends what a flush has left over
    _has_ended: bool = False

    def start(self, peer_received: Sequence[int]) -> None:
        """Begin, now that both ends have greeted each other.

        The other end may have hung up at the greeting: the session has no kernel, say.
        """
        if self._has_ended:
            return
        self.stream.open((int(peer_received[0]), int(peer_received[1])))
        self._liveness.last_heard = time.monotonic()
        self._check_timer = self.reactor.call_later(LOOK_EVERY, self._check_alive)
        self._send_control(MessageType.ACK)  # the first credit
        self._ping()  # nothing is in flight: this is the truest round trip there will be
        self.flush()

    def on_frame(self, frame: Bytes) -> None:
        """Take in one frame; one that is malformed ends this connection, nothing else."""
        if self._has_ended:
            return
        self._liveness.last_heard = time.monotonic()
        self._liveness.unanswered_since = 0.0
        _log.debug("received a frame of %d bytes", len(frame))
        try:
            for head, body in decode_messages(frame):
                self._on_message(head, body)
        except ProtocolError as error:
            self.end(error, notifies_peer=True)
            return
        self.flush()

    def flush(self) -> None:
        """Send what is due, and see to it that acknowledgements go soon."""
        if self._has_ended:
            return
        is_stalled = bool(self._liveness.unanswered_since) and self._is_stalled()
        try:
            is_all = self._send_due((Lane.URGENT,) if is_stalled else BOTH)
        except ProtocolError as error:  # what is due cannot be read
            self.end(error, notifies_peer=True)
            return
        if not is_all and self._flush_timer is None:  # others in this process get their turn first
            self._flush_timer = self.reactor.call_later(0.0, self._flush_more)
        if is_stalled and not self._liveness.pings_in_flight:
            self._ping()
        ack = self.stream.ack_needed(time.monotonic())
        if ack is Ack.NOW:
            self._send_control(MessageType.ACK)
        elif ack is Ack.DELAYED and self._ack_timer is None:
            self._ack_timer = self.reactor.call_later(ACK_WITHIN, self.send_ack)

    def _flush_more(self) -> None:
        self._flush_timer = None  # before the flush: it may need another one
        self.flush()

    def _send_due(self, lanes: tuple[Lane, ...]) -> bool:
        """Send what is due; return whether that was all."""
        batch: list[bytes] = []
        size = whole = 0
        try:
            for count, (head, body) in enumerate(self.stream.frames_to_send(lanes), 1):
                message = encode_message(head, body)
                _log.debug("sends %r %d: %d bytes", head.type, head.number, len(body))
                if batch and size + len(message) > BATCH:
                    self.send(b"".join(batch))
                    batch, size = [], 0
                batch.append(message)
                size += len(message)
                whole += len(message)
                if count >= MOST_AT_ONCE or whole >= MOST_BYTES_AT_ONCE:
                    return False
        finally:  # also where the next one cannot be read: the stream counts these as sent
            if batch:
                self.send(b"".join(batch))
                self._liveness.unanswered_since = (
                    self._liveness.unanswered_since or time.monotonic()
                )
        return True

    def probe(self, seconds: float) -> None:
        """Ask for a sign of life now; end this connection if none comes within so many seconds."""
        before = self._liveness.last_heard
        self._ping()

        def judge() -> None:
            if self._liveness.last_heard == before:
                self.end(Unreachable(f"Nothing was heard for {seconds:.0f} seconds."))

        self.reactor.call_later(seconds, judge)

    def end(self, error: RemoterError, *, notifies_peer: bool = False) -> None:
        """End this connection with a reason; `notifies_peer`: the other end is sent it, too."""
        if self._has_ended:
            return
        self._has_ended = True  # first: a send that fails below ends it, too
        _log.info("A connection ends: %s", logs.reason(error))
        if notifies_peer:
            self._send_control(MessageType.BYE, to_json({"why": str(error)}))
        self.stream.close()
        for timer in (self._ack_timer, self._check_timer, self._flush_timer):
            if timer:
                timer.cancel()
        self.on_end(error)  # last: it may begin the next connection at once

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
            why = str(from_json(body).get("why", "The other end hung up."))
            self.end(ProtocolError(why[:LONGEST_REASON]))

    def _send_control(self, kind: MessageType, body: bytes = b"") -> None:
        self.send(encode_message(self.stream.head(kind), body))

    def send_credit(self) -> None:
        """Let the other end go on, if much was acknowledged meanwhile."""
        if self.stream.ack_needed(time.monotonic()) is Ack.NOW and not self._has_ended:
            self._send_control(MessageType.ACK)

    def send_ack(self) -> None:
        """Send the other end now what is acknowledged, if it has not had that."""
        self._ack_timer = None
        if self.stream.ack_needed(time.monotonic()) is not Ack.NONE and not self._has_ended:
            self._send_control(MessageType.ACK)

    def _check_alive(self) -> None:
        alive, now = self._liveness, time.monotonic()
        silence = now - alive.last_heard
        if silence > DEAD_AFTER:
            self.end(Unreachable(f"Nothing was heard for {silence:.0f} seconds."))
            return
        has_flowed = self.stream.acked_bytes != alive.flowed
        alive.flowed = self.stream.acked_bytes
        is_silent = silence > PING_AFTER and now - alive.last_ping > PING_AFTER
        # While bytes flow, too: the window needs the round trip of now.
        if is_silent or (has_flowed and not alive.pings_in_flight):
            self._ping()
        self._check_timer = self.reactor.call_later(LOOK_EVERY, self._check_alive)

    def _is_stalled(self) -> bool:
        """Has nothing come back for so long that more would probably be lost?"""
        patience = max(STALLED_AFTER, 3 * (self.round_trip or 0.0))
        return time.monotonic() - self._liveness.unanswered_since > patience

    def _ping(self) -> None:
        self._liveness.last_ping = time.monotonic()
        self._liveness.pings_in_flight += 1
        self._send_control(MessageType.PING)

    def _on_pong(self) -> None:
        alive = self._liveness
        alive.pings_in_flight -= 1
        if alive.pings_in_flight:
            return  # it may answer an older ping than the last one
        level = logging.DEBUG if self.round_trip else logging.INFO  # the first one is the truest
        self.round_trip = alive.last_heard - alive.last_ping
        _log.log(level, "The round trip takes %.4f s", self.round_trip)
        self.stream.window.on_round_trip(self.round_trip)


def has_bytes_in_flight(sender: int, receiver: int) -> bool:
    """Do bytes wait on the way from one port to another of this machine? False if unknown."""
    try:
        lines = CONNECTIONS.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False  # Linux alone has it
    for line in lines:  # "sl local_address rem_address st tx_queue:rx_queue …", all hexadecimal
        _, local, remote, _, queues, *_ = line.split()
        ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        unsent, unread = (int(queue, 16) for queue in queues.split(":"))
        if (ports == (sender, receiver) and unsent) or (ports == (receiver, sender) and unread):
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
