"""Keeps one conversation with a session alive across connections: dial, pump, wait, dial again.

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

# An address whose listener is gone is not even connected to: libzmq reports that as CLOSED.
LOST_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_CLOSED
WELCOME_WITHIN = 15.0  # seconds from a tunnel to the evaluator's WELCOME
FIRST_PAUSE = 0.25  # seconds before the second try to come back
LONGEST_PAUSE = 3.0  # seconds: a network that is back is found within five, login and all
SHORTEST_TRY = 5.0  # seconds with one try to come back; it may be on a network that is gone
TRY_FACTOR = 2  # times what the last try took that came through
READ_AT_ONCE = 128 * 1024  # bytes: hundreds of small outputs; then others get their turn
PROBE_WITHIN = 3.0  # seconds that a connection has for a sign of life after this machine slept
_log = logging.getLogger(__name__)


class LinkState(Enum):
    """How the link is."""

    IDLE = "idle"  # not needed yet
    DIALLING = "connecting"  # for the first time or again
    UP = "up"
    WAITING = "waiting"  # lost; the next try comes by itself
    FAILED = "failed"  # only a person can help; tries again when asked
    CLOSED = "closed"


@dataclass(frozen=True)
class SessionEndpoint:
    """What dialling returns: where the evaluator answers, and how to close the way to it."""

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
        """Note that nobody answered where the last dial led; return what to say of it."""


def backoff() -> Iterator[float]:
    """Yield how long to wait before each new try, in seconds: growing, never in step."""
    pause = FIRST_PAUSE
    while True:
        # Random, so that the notebooks of one laptop do not all log in at the same moment.
        yield pause * random.uniform(0.7, 1.3)  # noqa: S311 - nothing secret hangs on it
        pause = min(pause * 2, LONGEST_PAUSE)


class _Conversation:
    """What outlives a connection: the numbers of items, and the items not acknowledged yet."""

    def __init__(self, link: Link) -> None:
        self.client_id = secrets.token_hex(8)  # by which the evaluator knows a client again
        self.outbox = MemoryOutbox()
        self.stream = ReliableStream(self.outbox)
        self.inbound = InboundItems(link, self.stream)
        self.ever_connected = False  # has a WELCOME ever come?
        # What the evaluator that greeted last had received of each lane.
        self.seen_there = dict.fromkeys(Lane, 0)


@dataclass(eq=False)
class _Connection:
    """One connection to the evaluator: the tunnel, and the socket at its local end."""

    endpoint: SessionEndpoint
    socket: zmq.Socket[bytes]
    pump: LinkConnection | None = None  # from the WELCOME on


# 23 attributes: the state that its users read and the call-backs that they set are half of them.
class Link:
    """The proxy's end of a conversation with the evaluator, over one connection after another."""

    def __init__(
        self, reactor: Reactor, dialer: Dialer, has_room: Callable[[], bool] = lambda: True
    ) -> None:
        """`has_room`: do Jupyter's clients take what is handed on?"""
        self.has_room = has_room
        self.reactor = reactor
        self.state = LinkState.IDLE
        self.error: RemoterError | None = None
        self.since = time.monotonic()  # when it came into this state
        self.lost_at = self.since
        self.losses = 0  # how many connections were lost
        self.sent = self.received = 0  # bytes
        self.welcome: dict[str, Any] = {}
        self.on_item: Callable[[Channel, list[memoryview]], None] = lambda _channel, _parts: None
        # Called for an item that could not be handed on; after that the item is gone.
        self.on_rejected: Callable[[Channel, Sequence[Bytes], Exception], None] = raise_error
        self.on_state: Callable[[LinkState], None] = lambda _state: None
        self.identity: dict[str, str] = {}  # what the session should know of this client
        self.pacer: IopubPacer | None = None  # where whoever takes the output has limits
        self._dialer = dialer
        self._conversation = _Conversation(self)
        self._context = zmq.Context()
        self._connection: _Connection | None = None
        self._timer: Timer | None = None  # of the WELCOME, or of the next try
        self._backoff = backoff()
        self._dialed_at = self.since
        self._try_limit = SHORTEST_TRY  # seconds

    def connect(self) -> None:
        """Dial now, unless that is under way or done."""
        if self.state in {LinkState.IDLE, LinkState.WAITING, LinkState.FAILED}:
            self._cancel_timer()
            self._dialed_at = time.monotonic()
            self._set_state(LinkState.DIALLING)
            if self.ever_connected:  # the first dial may start a kernel, however long that takes
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
        """Put a message in the outbox, and send it if there is a connection; return its number.

        `on_kept` is called once the evaluator has acknowledged it.
        """
        number = self._conversation.outbox.add(channel, pack_parts(parts), on_kept)
        self.flush()
        return number

    def flush(self) -> None:
        """Send what is due."""
        if self._pump:
            self._pump.flush()

    def cancel_unsent(self, channel: Channel, number: int) -> bool:
        """Take back a message that was never sent; return whether that could be done."""
        is_unsent = not self.was_sent(channel, number)
        return is_unsent and self._conversation.outbox.withdraw(number)

    def was_sent(self, channel: Channel, number: int) -> bool:
        """Was the message with this number ever sent? It may have arrived, then."""
        return self._conversation.stream.was_sent(LANE[channel], number)

    def is_lost_there(self, channel: Channel, number: int) -> bool:
        """Did an evaluator acknowledge this, and does the one that answers now not know of it?

        That happens where the disk there took nothing, so that the journal lacked it when the
        first evaluator was killed.
        """
        lane = LANE[channel]
        forgotten = self._conversation.outbox.forgotten[lane]
        return self._conversation.seen_there[lane] < number <= forgotten

    def fail(self, error: RemoterError) -> None:
        """Give up this connection for a reason that only a person can mend."""
        self.error = error
        self._close_connection()
        self._set_state(LinkState.FAILED)

    def reset(self) -> None:
        """Be a new client, of a session yet to be started."""
        self._close_connection()
        self.deliver_all()
        self._conversation = _Conversation(self)

    def deliver_all(self) -> None:
        """Hand on all that has come, at any pace: nothing more will."""
        self._conversation.inbound.deliver_all()
        if self.pacer:
            self.pacer.deliver_all()

    @property
    def unacknowledged(self) -> int:
        """How many messages the evaluator has not acknowledged."""
        return len(self._conversation.outbox)

    @property
    def state_age(self) -> float:
        """For how many seconds it has been up, or down."""
        is_down = self.ever_connected and self.state in {LinkState.WAITING, LinkState.DIALLING}
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
        """Has this session ever been reached?"""
        return self._conversation.ever_connected

    @property
    def _pump(self) -> LinkConnection | None:
        return self._connection.pump if self._connection else None

    def close(self) -> None:
        """Give everything back. The session goes on: to end it is a command of its own."""
        self._set_state(LinkState.CLOSED)
        self._close_connection()
        self._context.term()

    # Dialling --------------------------------------------------------------------------

    def _dial(self) -> None:
        """Run in a thread of its own: logging in blocks."""
        then: Callable[[], None]
        try:
            then = partial(self._on_dialed, self._dialer.dial())
        except RemoterError as error:
            then = partial(self._on_error, error)
        except Exception as bug:  # noqa: BLE001 - a bug must reach the cell, too
            what = f"Dialling failed unexpectedly: {type(bug).__name__}: {bug}"
            then = partial(self._on_error, RemoterError(what))
        self.reactor.call_soon_threadsafe(then)

    def _on_try_timeout(self, dialed_at: float) -> None:
        """End a try that hangs: the network may have changed under it."""
        if self.state is not LinkState.DIALLING or self._dialed_at != dialed_at:
            return
        if self._dialer.has_asked:  # what a person has typed is not thrown away
            return
        self._try_limit *= 2  # this network may be that slow
        if self._connection:
            self._on_no_answer()
        else:
            self._dialer.abort()

    def _on_dialed(self, endpoint: SessionEndpoint) -> None:
        if self.state is not LinkState.DIALLING:  # closed, or reset, while the thread dialled
            endpoint.close()
            return
        keys = endpoint.server_key, endpoint.public_key, endpoint.secret_key
        socket = dealer_socket(self._context, *keys)
        self._connection = connection = _Connection(endpoint, socket)
        monitor = socket.get_monitor_socket(LOST_EVENTS)
        self.reactor.add_reader(monitor, self._on_disconnect)
        socket.connect(endpoint.endpoint)  # after the monitor, which else misses a cut at once
        self.reactor.add_reader(socket, self._on_readable)
        stream = self._conversation.stream
        stream.begin()
        seen = list(stream.received.values()) if self.ever_connected else None
        who = {**self.identity, "front": self._conversation.client_id}
        hello = to_json({**who, "seen": seen, "said": stream.last_sent})
        self._send_frame(socket, encode_message(stream.head(MessageType.HELLO), hello))
        self._timer = self.reactor.call_later(WELCOME_WITHIN, self._on_no_answer)
        self._check_memory(connection, MessageMemoryGuard())

    def _check_memory(self, connection: _Connection, guard: MessageMemoryGuard) -> None:
        """End a connection whose other end sends a message without end, every second."""
        if self._connection is not connection:
            return
        if guard.has_grown(self.received):
            if connection.pump is None:
                self._on_no_answer()
                return
            connection.pump.probe(ANSWERS_WITHIN)  # no answer comes through behind such a message
        self.reactor.call_later(POLL_EVERY, partial(self._check_memory, connection, guard))

    def _on_no_answer(self) -> None:
        self._on_connection_end(Unreachable("The session was reached, but it did not answer."))

    def _on_readable(self) -> None:
        if self._connection is None:  # an earlier event of the same turn has closed it
            return
        until = self.received + READ_AT_ONCE
        for frames in messages(self._connection.socket):
            frame = frames[0] if len(frames) == 1 else b""  # nothing of ours has more than one
            self.received += len(frame)
            if self._pump:
                self._pump.on_frame(frame)
            else:
                self._on_welcome(frame)
            if self.received >= until:
                return

    def _on_welcome(self, frame: bytes) -> None:
        """Read the WELCOME, and let items flow."""
        conversation, connection = self._conversation, self._connection
        assert connection is not None  # noqa: S101 - the frame came through it
        try:
            fields, seen, begin = parse_welcome(frame)
            check_received(seen, conversation.stream.last_sent)
        except ProtocolError as error:
            self._on_connection_end(error)
            return
        if not conversation.ever_connected:  # a journal that was compacted begins later than at 0
            conversation.stream.received = dict(zip(Lane, begin, strict=True))
            conversation.stream.acked = dict(conversation.stream.received)
        self._cancel_timer()
        conversation.ever_connected = True
        conversation.seen_there = dict(zip(Lane, seen, strict=True))
        self.welcome = fields
        self._backoff = backoff()
        self._try_limit = max(SHORTEST_TRY, TRY_FACTOR * (time.monotonic() - self._dialed_at))
        send_frame = partial(self._send_frame, connection.socket)
        connection.pump = pump = LinkConnection(self.reactor, conversation.stream, send_frame)
        conversation.inbound.on_connection()
        pump.on_item = conversation.inbound.on_item
        pump.on_refused = conversation.inbound.reject
        pump.on_end = self._on_connection_end
        try:
            self._set_state(LinkState.UP)
        finally:  # an observer that raises must not leave the connection without its watch
            pump.start(seen)

    def _send_frame(self, socket: zmq.Socket[bytes], frame: bytes) -> None:
        self.sent += len(frame)
        # A DEALER whose peer is gone would wait for another one, for ever. What is not sent is
        # in the outbox still, and the monitor is about to say that this connection is lost.
        with contextlib.suppress(zmq.Again):
            socket.send(frame, zmq.NOBLOCK)

    # Losing ----------------------------------------------------------------------------

    def _on_disconnect(self) -> None:
        self._on_connection_end(Unreachable("The connection was cut."))

    def _on_connection_end(self, error: RemoterError) -> None:
        if self._pump is None:  # nobody has answered: the dialer may know another way
            error = self._dialer.on_no_welcome(error)
        self._close_connection()
        self._on_error(error)

    def _on_error(self, error: RemoterError) -> None:
        """Come back at once after a loss, then with growing pauses; or fail for good."""
        if self.state is LinkState.CLOSED:
            return
        was_up = self.state is LinkState.UP
        self.losses += was_up
        self.lost_at = time.monotonic() if was_up else self.lost_at
        self.error = error
        self._close_connection()
        # A first dial that fails is shown at once: a wrong name or password does not mend itself.
        may_retry = self.ever_connected or isinstance(error, AnotherWay)
        if not (may_retry and error.worth_retrying):
            self._set_state(LinkState.FAILED)
            return
        self._set_state(LinkState.WAITING)
        # The time that the failed try took counts as a pause.
        pause = 0.0 if was_up else next(self._backoff) - (time.monotonic() - self._dialed_at)
        self._timer = self.reactor.call_later(max(0.0, pause), self.connect)

    def _close_connection(self) -> None:
        """Close the socket and the tunnel; nothing that happens to them is reported any more."""
        self._cancel_timer()
        connection, self._connection = self._connection, None
        if connection and connection.pump:
            connection.pump.on_end = lambda _error: None
            connection.pump.end(Unreachable("dropped"))
        self._conversation.stream.close()
        if connection is None:
            return
        socket = connection.socket
        monitor = socket.get_monitor_socket()
        self.reactor.remove_reader(monitor)
        socket.disable_monitor()
        monitor.close(linger=0)
        self.reactor.remove_reader(socket)
        socket.close(linger=200)  # milliseconds, for a last command
        Thread(connection.endpoint.close, name="hang up").start()  # that waits for the network

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
