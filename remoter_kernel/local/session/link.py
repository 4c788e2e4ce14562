"""Keeps one conversation with a session alive across wires: dial, pump, wait, dial again.

Decides when to dial; a `Dialer` knows how. Dialling blocks, so it has a thread; all else
runs in the reactor's.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import time
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import zmq

from remoter_kernel import logs
from remoter_kernel.errors import ProtocolError, RemoterError, Unreachable
from remoter_kernel.local.session.dealer_socket import (
    ANSWERS_WITHIN,
    POLL_EVERY,
    AnotherWay,
    MessageMemoryGuard,
    check_received,
    dealer_socket,
    parse_welcome,
)
from remoter_kernel.local.session.inbound import InboundItems
from remoter_kernel.local.session.iopub_pacer import IopubPacer, raise_error
from remoter_kernel.protocol.frames import (
    LANE,
    Bytes,
    Channel,
    Lane,
    MessageType,
    encode_message,
    pack_parts,
    to_json,
)
from remoter_kernel.protocol.link_connection import LinkConnection
from remoter_kernel.protocol.reactor import messages
from remoter_kernel.protocol.stream import MemoryOutbox, ReliableStream
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from remoter_kernel.protocol.reactor import Reactor, Timer

# A way that has ended before we came to it does not even connect: that is "closed".
LOST_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_CLOSED
WELCOME_WITHIN = 15.0  # seconds from a tunnel to the evaluator's WELCOME
FIRST_PAUSE = 0.25  # seconds before the second try to come back
LONGEST_PAUSE = 3.0  # seconds: a network that is back is found within five, login and all
SHORTEST_TRY = 5.0  # seconds with one try to come back; it may be on a network that is gone
TRY_FACTOR = 2  # times what the last try took that came through
READ_AT_ONCE = 128 * 1024  # bytes: hundreds of small outputs; then others get their turn
PROBE_WITHIN = 3.0  # seconds that a wire has for a sign of life after this machine slept
_log = logging.getLogger(__name__)


class LinkState(Enum):
    """How the link is."""

    IDLE = "idle"  # nobody has asked for it yet
    DIALLING = "connecting"  # on its way, for the first time or again
    UP = "up"
    WAITING = "waiting"  # lost; the next try comes by itself
    FAILED = "failed"  # only a person can help; tries again when asked
    CLOSED = "closed"


@dataclass(frozen=True)
class SessionEndpoint:
    """What dialling brings: where the evaluator answers, and how to give that back."""

    endpoint: str
    server_key: bytes
    public_key: bytes
    secret_key: bytes
    close: Callable[[], None]


class Dialer(Protocol):
    """Knows how to get to the session; called from a thread of the link's."""

    @property
    def has_asked(self) -> bool:
        """Was a person asked in this dial? It may take as long as they do."""

    def dial(self) -> SessionEndpoint:
        """Log in, start or find the session, open a tunnel: a `RemoterError` says why not."""

    def abort(self) -> None:
        """Let a dial that is under way fail; from another thread."""

    def on_no_welcome(self, error: RemoterError) -> RemoterError:
        """Hear that nobody greeted us where the last dialling led; return what to say of it."""


def backoff() -> Iterator[float]:
    """Yield how long to wait before each new try, in seconds: growing, never in step."""
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.7, 1.3)  # noqa: S311 - nothing secret hangs on it
        pause = min(pause * 2, LONGEST_PAUSE)


class Link:
    """The front's end of a conversation."""

    def __init__(
        self, reactor: Reactor, dialer: Dialer, has_room: Callable[[], bool] = lambda: True
    ) -> None:
        """Remember; `connect` begins. `has_room`: do clients take what comes?"""
        self.has_room = has_room
        self.reactor = reactor
        self.state = LinkState.IDLE
        self.error: RemoterError | None = None
        self.since = time.monotonic()
        self.lost_at = self.since
        self.losses = 0  # how many wires were lost
        self.sent = self.received = 0  # bytes
        self.welcome: dict[str, Any] = {}
        self.on_item: Callable[[Channel, list[memoryview]], None] = lambda _channel, _parts: None
        # Tells whom it concerns of an item that could not be taken in here; after that it is gone.
        self.on_rejected: Callable[[Channel, Sequence[Bytes], Exception], None] = raise_error
        self.on_state: Callable[[LinkState], None] = lambda _state: None
        self.identity: dict[str, str] = {}  # what the session should know of this front
        self.pacer: IopubPacer | None = None  # between us and whoever hears, where that has limits
        self._dialer = dialer
        self._id = secrets.token_hex(8)
        self._outbox = MemoryOutbox()
        self._stream = ReliableStream(self._outbox)
        self._inbound = InboundItems(self, self._stream)
        self._ever_connected = False  # has a WELCOME ever come?
        self._seen_there = dict.fromkeys(Lane, 0)  # of ours, by the evaluator that greeted last
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._endpoint: SessionEndpoint | None = None
        self._pump: LinkConnection | None = None
        self._timer: Timer | None = None
        self._backoff = backoff()
        self._dialed_at = self.since
        self._try_limit = SHORTEST_TRY

    def connect(self) -> None:
        """Dial now, unless that is under way or done."""
        if self.state in {LinkState.IDLE, LinkState.WAITING, LinkState.FAILED}:
            self._cancel_timer()
            self._dialed_at = time.monotonic()
            self._set_state(LinkState.DIALLING)
            if self._ever_connected:
                give_up = partial(self._on_try_timeout, self._dialed_at)
                self.reactor.call_later(self._try_limit, give_up)
            Thread(self._dial, name="dial").start()

    def probe_now(self) -> None:
        """Find out at once how things are: this machine may have slept, or moved elsewhere."""
        if self._pump:
            self._pump.probe(PROBE_WITHIN)
        elif self.state is LinkState.WAITING:
            self._backoff = backoff()  # the network, too, needs a moment to wake up
            self.connect()

    def send(
        self, channel: Channel, parts: list[Bytes], on_kept: Callable[[], object] | None = None
    ) -> int:
        """Put something in the outbox, and on its way if there is one; return its number.

        `on_kept` is called once the evaluator has confirmed to keep it.
        """
        number = self._outbox.add(channel, pack_parts(parts), on_kept)
        if self._pump:
            self._pump.flush()
        return number

    def flush(self) -> None:
        """Send what is due."""
        if self._pump:
            self._pump.flush()

    def cancel_unsent(self, channel: Channel, number: int) -> bool:
        """Take back what has never left this side; return whether that could be done."""
        return not self.was_sent(channel, number) and self._outbox.withdraw(number)

    def was_sent(self, channel: Channel, number: int) -> bool:
        """Was what was said with this number ever sent from this side?"""
        return self._stream.was_sent(LANE[channel], number)

    def is_lost_there(self, channel: Channel, number: int) -> bool:
        """Was this confirmed by an evaluator, and does the one that answers now not know of it?

        The disk there took nothing, and so nothing was written when the first one was killed.
        """
        lane = LANE[channel]
        return self._seen_there[lane] < number <= self._outbox.forgotten[lane]

    def fail(self, error: RemoterError) -> None:
        """Give up this wire for a reason that only a person can mend."""
        self.error = error
        self._close_connection()
        self._set_state(LinkState.FAILED)

    def reset(self) -> None:
        """Be a new front, of a session yet to be started."""
        self._close_connection()
        self.deliver_all()
        self._id = secrets.token_hex(8)
        self._outbox = MemoryOutbox()
        self._stream = ReliableStream(self._outbox)
        self._inbound = InboundItems(self, self._stream)
        self._ever_connected = False
        self._seen_there = dict.fromkeys(Lane, 0)

    def deliver_all(self) -> None:
        """Hand on all that has come, at any pace: nothing more will."""
        self._inbound.deliver_all()
        if self.pacer:
            self.pacer.deliver_all()

    @property
    def unacknowledged(self) -> int:
        """How many things have been said that the evaluator has not confirmed to keep."""
        return len(self._outbox)

    @property
    def state_age(self) -> float:
        """How long it has been up, or down."""
        is_down = self._ever_connected and self.state in {LinkState.WAITING, LinkState.DIALLING}
        return time.monotonic() - (self.lost_at if is_down else self.since)

    @property
    def next_try(self) -> float | None:
        """Seconds until it is dialled again."""
        if self.state is not LinkState.WAITING or self._timer is None:
            return None
        return max(0.0, self._timer.due - time.monotonic())

    @property
    def round_trip(self) -> float | None:
        """Seconds, as the last ping measured it."""
        return self._pump.round_trip if self._pump else None

    @property
    def ever_connected(self) -> bool:
        """Has the session ever been reached in this life?"""
        return self._ever_connected

    def close(self) -> None:
        """Give everything back. The session is not told: that is an order of its own."""
        self._set_state(LinkState.CLOSED)
        self._close_connection()
        self._context.term()

    # Dialling --------------------------------------------------------------------------

    def _dial(self) -> None:
        try:
            line = self._dialer.dial()
        except RemoterError as error:
            self.reactor.call_soon_threadsafe(partial(self._on_error, error))
        except Exception as error:  # noqa: BLE001 - a bug must reach the cell, too
            trouble = RemoterError(f"Dialling failed unexpectedly: {type(error).__name__}: {error}")
            self.reactor.call_soon_threadsafe(partial(self._on_error, trouble))
        else:
            self.reactor.call_soon_threadsafe(partial(self._on_dialed, line))

    def _on_try_timeout(self, dialled_at: float) -> None:
        """End a try that hangs: the network may have changed under it."""
        if self.state is not LinkState.DIALLING or self._dialed_at != dialled_at:
            return
        if self._dialer.has_asked:  # what was typed is not thrown away
            return
        self._try_limit *= 2  # it may be that slow
        if self._socket:
            self._on_welcome_timeout()
        else:
            self._dialer.abort()

    def _on_dialed(self, line: SessionEndpoint) -> None:
        if self.state is not LinkState.DIALLING:
            line.close()
            return
        self._endpoint = line
        keys = line.server_key, line.public_key, line.secret_key
        self._socket = wire = dealer_socket(self._context, *keys)
        monitor = wire.get_monitor_socket(LOST_EVENTS)
        self.reactor.add_reader(monitor, self._on_disconnect)
        wire.connect(line.endpoint)  # only now: a cut at once would go unheard
        self.reactor.add_reader(wire, self._on_readable)
        self._stream.begin()
        seen = list(self._stream.received.values()) if self._ever_connected else None
        who = {**self.identity, "front": self._id}
        hello = to_json({**who, "seen": seen, "said": self._stream.last_sent})
        self._send_frame(wire, encode_message(self._stream.head(MessageType.HELLO), hello))
        self._timer = self.reactor.call_later(WELCOME_WITHIN, self._on_welcome_timeout)
        self._check_memory(wire, MessageMemoryGuard())

    def _check_memory(self, wire: zmq.Socket[bytes], unseen: MessageMemoryGuard) -> None:
        """End a wire whose other end sends a message without end."""
        if self._socket is not wire:
            return
        if unseen.has_grown(self.received):
            if self._pump is None:
                self._on_welcome_timeout()
                return
            self._pump.probe(ANSWERS_WITHIN)
        self.reactor.call_later(POLL_EVERY, partial(self._check_memory, wire, unseen))

    def _on_welcome_timeout(self) -> None:
        self._on_connection_end(Unreachable("The session was reached, but it did not answer."))

    def _on_readable(self) -> None:
        wire = self._socket
        if wire is None:
            return
        until = self.received + READ_AT_ONCE
        for frames in messages(wire):
            frame = frames[0] if len(frames) == 1 else b""  # nothing of ours has more than one
            self.received += len(frame)
            if self._pump:
                self._pump.on_frame(frame)
            else:
                self._on_welcome(frame)
            if self.received >= until:
                return

    def _on_welcome(self, frame: bytes) -> None:
        """Hear the WELCOME and begin to talk."""
        try:
            words, seen, begin = parse_welcome(frame)
            check_received(seen, self._stream.last_sent)
        except ProtocolError as error:
            self._on_connection_end(error)
            return
        if not self._ever_connected:
            self._stream.received = dict(zip(Lane, begin, strict=True))
            self._stream.acked = dict(self._stream.received)
        self._cancel_timer()
        self._ever_connected = True
        self._seen_there = dict(zip(Lane, seen, strict=True))
        self.welcome = words
        self._backoff = backoff()
        self._try_limit = max(SHORTEST_TRY, TRY_FACTOR * (time.monotonic() - self._dialed_at))
        wire = self._socket
        assert wire is not None  # noqa: S101 - the frames came through it
        self._pump = pump = LinkConnection(
            self.reactor, self._stream, partial(self._send_frame, wire)
        )
        self._inbound.on_connection()
        pump.on_item = self._inbound.on_item
        pump.on_refused = self._inbound.reject
        pump.on_end = self._on_connection_end
        try:
            self._set_state(LinkState.UP)
        finally:  # whatever becomes of the news, a wire that is up is looked after
            pump.start(seen)

    def _send_frame(self, wire: zmq.Socket[bytes], frame: bytes) -> None:
        self.sent += len(frame)
        # A DEALER whose peer is gone would wait for another one, for ever. What is not sent is
        # in the outbox still, and the monitor is about to say that this wire is lost.
        with contextlib.suppress(zmq.Again):
            wire.send(frame, zmq.NOBLOCK)

    # Losing ----------------------------------------------------------------------------

    def _on_disconnect(self) -> None:
        self._on_connection_end(Unreachable("The connection was cut."))

    def _on_connection_end(self, error: RemoterError) -> None:
        """The wire is gone: come back at once the first time, then with growing pauses."""
        if self._pump is None:
            error = self._dialer.on_no_welcome(error)
        self._close_connection()
        if self.state is LinkState.CLOSED:
            return
        self._on_error(error)

    def _on_error(self, error: RemoterError) -> None:
        if self.state is LinkState.CLOSED:
            return
        was_up = self.state is LinkState.UP
        self.losses += was_up
        self.lost_at = time.monotonic() if was_up else self.lost_at
        self.error = error
        self._close_connection()
        may_retry = self._ever_connected or isinstance(error, AnotherWay)
        if not (may_retry and error.worth_retrying):
            self._set_state(LinkState.FAILED)
            return
        self._set_state(LinkState.WAITING)
        # A try that waited in vain was a pause, too: while nobody answers, somebody is asked.
        pause = 0.0 if was_up else next(self._backoff) - (time.monotonic() - self._dialed_at)
        self._timer = self.reactor.call_later(max(0.0, pause), self.connect)

    def _close_connection(self) -> None:
        """Let go of the wire and what carried it."""
        self._cancel_timer()
        pump, self._pump = self._pump, None
        if pump:
            pump.on_end = lambda _error: None
            pump.end(Unreachable("dropped"))
        self._stream.close()
        wire, self._socket = self._socket, None
        if wire:
            monitor = wire.get_monitor_socket()
            self.reactor.remove_reader(monitor)
            wire.disable_monitor()
            monitor.close(linger=0)
            self.reactor.remove_reader(wire)
            wire.close(linger=200)
        line, self._endpoint = self._endpoint, None
        if line:
            Thread(line.close, name="hang up").start()

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _set_state(self, state: LinkState) -> None:
        if state is not self.state:
            self.state = state
            why = logs.reason(self.error) if self.error and state is not LinkState.UP else "-"
            _log.info("The link is %s (last error: %s)", state.value, why)
            self.since = time.monotonic()
            self.on_state(state)
