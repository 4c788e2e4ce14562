"""The socket that proxies connect to: admits them, and gives each its place in the journal.

CURVE proves which key a client has, ZAP (RFC 27) admits only keys that were registered through a
login. What is malformed ends its connection and nothing else.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import zmq
import zmq.utils.garbage  # else pyzmq imports it with the first large message: the disk may hang
from zmq.utils import z85

from remoter_kernel import logs
from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.evaluator.outbox import ClientOutbox
from remoter_kernel.protocol.frames import (
    LANE,
    MOST_FRAME,
    Bytes,
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    decode_messages,
    encode_message,
    from_json,
    pack_parts,
    to_json,
)
from remoter_kernel.protocol.link_connection import LinkConnection
from remoter_kernel.protocol.output_backlog import BACKLOG_LIMIT
from remoter_kernel.protocol.reactor import ignore, messages
from remoter_kernel.protocol.stream import ReliableStream
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from remoter_kernel.evaluator.journal import Journal
    from remoter_kernel.evaluator.registry import Session
    from remoter_kernel.protocol.reactor import Reactor, Timer

CORK = 0.001  # seconds that a published message may wait for the next one
COPY_BELOW = 65536  # bytes: up to here a copy costs less than to track when ZeroMQ is done with it
MAX_UNREAD = 256  # frames of one client, of 64 KiB at most: more than is read in one go
CLIENT_ID_SIZE = 8  # bytes
_log = logging.getLogger(__name__)


class Client:
    """A proxy that has been here: its stream, and its connection while there is one."""

    def __init__(self, name: bytes, outbox: ClientOutbox, stream: ReliableStream) -> None:
        self.name = name
        self.outbox = outbox
        self.stream = stream
        self.pump: LinkConnection | None = None
        # Up to these numbers an evaluator before this one may have received its items.
        self.maybe_received = dict.fromkeys(Lane, 0)
        self.kernel_id = self.laptop = ""  # of a proxy that says so


class _Authenticator:
    """Answers libzmq (ZAP, RFC 27) whether a client's key may connect.

    A key that connected before is known here. For another one a thread looks in the session's
    folder: its disk may hang, and that is no matter of those who are connected.
    """

    def __init__(
        self, reactor: Reactor, session: Session, context: zmq.Context[zmq.Socket[bytes]]
    ) -> None:
        self._reactor = reactor
        self._session = session
        self._authorized_keys: set[bytes] = set()  # Z85
        self._key_lookup = Worker("keys", reactor.call_soon_threadsafe)
        # Not a REP: what has to be looked up is answered late, and the next one meanwhile.
        self.socket = context.socket(zmq.ROUTER)

    def open(self) -> None:
        """Bind before any client's socket binds: libzmq asks only who is there."""
        self._authorized_keys = self._session.authorized_keys()
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._reactor.add_reader(self.socket, self._on_request)

    def close(self) -> None:
        """Answer no more."""
        self._reactor.remove_reader(self.socket)
        self.socket.close()
        self._key_lookup.close(0.0)

    def _on_request(self) -> None:
        for identity, empty, version, request, _domain, _address, _id, *rest in messages(
            self.socket
        ):
            answer = partial(self._answer, [identity, empty, version, request])
            if len(rest) < len(("mechanism", "key")) or rest[0] != b"CURVE":
                answer(is_admitted=False)
                continue
            key = z85.encode(rest[1])
            if key in self._authorized_keys:
                answer(is_admitted=True)
            else:
                self._look_up(key, answer)

    def _look_up(self, key: bytes, answer: Callable[..., None]) -> None:
        def on_found(is_authorized: bool) -> None:  # noqa: FBT001 - a callback's only word
            if is_authorized:
                self._authorized_keys.add(key)
            else:
                _log.warning("A client whose key was not registered is not let in.")
            answer(is_admitted=is_authorized)

        # Without an answer the client would wait. Refused (libzmq does nothing about RFC 27's
        # "temporary"), it dials again.
        look = partial(self._session.is_authorized, key)
        self._key_lookup.submit(look, on_found, lambda _error: answer(is_admitted=False))

    def _answer(self, opening: list[bytes], *, is_admitted: bool) -> None:
        words = (b"200", b"OK") if is_admitted else (b"400", b"This key was not registered here.")
        if not self.socket.closed:
            self.socket.send_multipart([*opening, *words, b"front", b""])


class Listener:
    """The socket that proxies connect to."""

    # 21 attributes: one part is who is connected, one what others want to be called for; each
    # event of the socket concerns both.

    def __init__(self, reactor: Reactor, session: Session, journal: Journal) -> None:
        self.reactor = reactor
        self.session = session
        self.journal = journal
        self.clients: dict[bytes, Client] = {}
        self.visits = 0  # how often a client came or went
        self.on_item: Callable[[Client, FrameHeader, Bytes], None] = ignore
        # Answers an item that `on_item` could not take in.
        self.on_refused: Callable[[Client, FrameHeader, Bytes, Exception], None] = ignore
        self.on_client_change: Callable[[Client], None] = ignore  # one came or went
        self.describe: Callable[[], dict[str, Any]] = dict
        # Is it known, from before this evaluator's time, how far a client was?
        self.is_seen_exact: Callable[[bytes, Lane], bool] = lambda _client, _lane: True
        self.most_waiting = BACKLOG_LIMIT  # bytes of one cell's text, for each client
        self.flush_now = False  # is there something that should not wait for more?
        self._flushed_up_to = 0  # the last number that was sent, as far as credit goes
        self._cork_timer: Timer | None = None
        self._pumps: dict[bytes, LinkConnection] = {}  # by ZeroMQ's routing id
        self._handshaken: set[bytes] = set()
        # Those that are connected, and the last that left: it may be back in a moment, so what
        # waits for it is looked at meanwhile. All others that have left cost nothing.
        self._active: dict[bytes, Client] = {}
        self._last_left: Client | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._zap = _Authenticator(reactor, session, self._context)

    def open(self, secret_key: bytes, public_key: bytes) -> int:
        """Bind on loopback and return the port."""
        self.journal.on_read = self._on_journal_read
        self._zap.open()
        router = self._socket
        router.linger = 500  # milliseconds: the last messages
        router.maxmsgsize = MOST_FRAME  # libzmq disconnects who sends a larger one
        # Of each client: while so much of it waits, no more is read from its connection.
        router.rcvhwm = MAX_UNREAD
        router.sndhwm = 0  # no bound: a slow client's own credit bounds what waits for it
        router.router_mandatory = (
            True  # else a send to a client that has hung up is lost in silence
        )
        router.curve_server = True
        router.curve_secretkey = secret_key
        router.curve_publickey = public_key
        router.zap_domain = b"remoter"  # without a domain libzmq asks no authenticator
        port: int = router.bind_to_random_port("tcp://127.0.0.1")
        self.reactor.add_reader(router, self._on_frames)
        return port

    def close(self, why: str) -> None:
        """Say goodbye to all, with the reason, and close."""
        for pump in list(self._pumps.values()):
            pump.end(ProtocolError(why), notifies_peer=True)
        self.reactor.remove_reader(self._socket)
        self._socket.close()
        self._zap.close()
        self._context.term()

    def flush_soon(self) -> None:
        """Send what came up in this pass; what is only published waits a moment for more.

        A short cell's outputs come within a millisecond of each other: sent together they
        cost every process on the way one wake-up instead of four.
        """
        if self.flush_now:
            self._flush()
        elif self.journal.last != self._flushed_up_to or any(
            client.outbox.is_scanning for client in self._active.values()
        ):
            self._flush_after(CORK)

    def _flush_after(self, seconds: float) -> None:
        if self._cork_timer is None:
            self._cork_timer = self.reactor.call_later(seconds, self._flush)

    def _is_scanning(self) -> bool:
        return any(client.outbox.is_scanning for client in self._active.values())

    def _flush(self) -> None:
        if self._cork_timer:
            self._cork_timer.cancel()
            self._cork_timer = None
        self.flush_now = False
        self._flushed_up_to = self.journal.last
        was_scanning = self._is_scanning()
        for pump in list(self._pumps.values()):
            pump.flush()
        for client in self._active.values():
            client.outbox.scan(is_connected=client.pump is not None)
        if was_scanning or self._is_scanning():
            self._flush_after(0.0)  # scan further, or send what was found

    def _on_journal_read(self) -> None:
        """Go on with what has come from the disk."""
        for client in self.clients.values():
            client.outbox.scan(is_connected=client.pump is not None)
        self._flush()

    def limit_output(self, cells: list[str]) -> None:
        """Send little more of what these cells have printed to any client: they are interrupted."""
        for client in self._active.values():
            client.outbox.limit_text(cells)

    @property
    def has_clients(self) -> bool:
        """Is any client connected?"""
        return bool(self._pumps)

    def restore_client(self, name: bytes, seen: dict[Lane, int]) -> None:
        """Know a client from before this evaluator's time, and what was received from it."""
        client = self._new_client(name)
        client.stream.received = dict(seen)
        client.stream.acked = dict(seen)

    def lowest_acked(self) -> int:
        """Return up to where all connected clients have acknowledged what is for them."""
        here = [client for client in self._active.values() if client.pump]
        if not here and self._last_left:
            here = [self._last_left]
        return min((client.outbox.acked[Lane.BULK] for client in here), default=self.journal.last)

    def _new_client(self, name: bytes) -> Client:
        outbox = ClientOutbox(
            self.journal, name, most_waiting=self.most_waiting, session=self.session.id
        )
        client = self.clients[name] = Client(name, outbox, ReliableStream(outbox))
        return client

    def _on_frames(self) -> None:
        for identity, *rest in messages(self._socket):
            frame = rest[0] if len(rest) == 1 else b""  # nothing of ours has more than one
            pump = self._pumps.get(identity)
            if pump:
                pump.on_frame(frame)
                continue
            try:
                self._handshake(identity, frame)
            except (ProtocolError, LookupError, TypeError, ValueError, OverflowError) as error:
                reason = logs.reason(error)
                _log.warning("A greeting of %d bytes is refused: %s", len(frame), reason)
                bye = FrameHeader(MessageType.BYE)
                self._send(identity, encode_message(bye, to_json({"why": str(error)})))

    def _handshake(self, identity: bytes, frame: bytes) -> None:
        """Answer a HELLO: its fields are `front` (hex) and `seen` ([bulk, urgent] or null).

        And, if the proxy has them, `kernel_id` and `laptop`: which proxy it is.
        """
        ((head, body),) = decode_messages(frame)
        if head.type is not MessageType.HELLO:
            raise ProtocolError(f"{head.type.name} came before HELLO.")
        words = from_json(body)
        name = bytes.fromhex(words["front"])
        if len(name) != CLIENT_ID_SIZE:
            raise ProtocolError("A client's name has another length.")
        last = self.journal.last
        begin = words["seen"] or [last, last]  # a new one gets what comes from now on
        bulk, urgent = int(begin[0]), int(begin[1])
        if not (0 <= bulk <= last and 0 <= urgent <= last):
            raise ProtocolError(f"It has seen {begin}, but only {last} was said here.")
        client = self.clients.get(name)
        if client is None:
            client = self._new_client(name)
            client.outbox.ack(Lane.BULK, bulk)  # what was before it is not for it
        if client.pump:  # its old connection is dead, and TCP has not noticed that yet
            client.pump.end(ProtocolError("The same client came in again."), notifies_peer=True)
        client.kernel_id = str(words.get("kernel_id") or "")
        client.laptop = str(words.get("laptop") or "")
        if name not in self._handshaken:  # by this evaluator: later on it knows better
            self._handshaken.add(name)
            for lane, number in zip(Lane, words.get("said") or ()):
                client.maybe_received[lane] = 0 if self.is_seen_exact(name, lane) else int(number)
        pump = self._connect(client, identity, begin)
        _log.info("Client %s has come; it has seen up to %d.", name.hex(), bulk)
        pump.start((bulk, urgent))
        self.on_client_change(client)

    def _connect(self, client: Client, identity: bytes, begin: list[Any]) -> LinkConnection:
        """Begin a connection with a WELCOME."""
        client.stream.begin()
        pump = LinkConnection(self.reactor, client.stream, partial(self._send, identity))
        pump.on_item = partial(self.on_item, client)
        pump.on_refused = partial(self._on_item_refused, client)
        pump.on_end = partial(self._on_disconnect, client, identity)
        client.pump = self._pumps[identity] = pump
        self.visits += 1
        self._active[client.name] = client
        welcome = {**self.describe(), "seen": list(client.stream.received.values()), "begin": begin}
        head = client.stream.head(MessageType.WELCOME)
        self._send(identity, encode_message(head, to_json(welcome)))
        return pump

    def _on_item_refused(
        self, client: Client, head: FrameHeader, body: Bytes, error: Exception
    ) -> None:
        """Pass over an item that cannot be taken in, and tell its client.

        That it was received is journaled like any other item, so that it is acknowledged no sooner
        than those before it, and an evaluator that comes after this one does not ask for it again.
        """
        is_bug = not isinstance(error, ProtocolError)
        if head.channel is Channel.STDIN:  # an answer may be a password: no log may have it
            error = RemoterError(f"An answer to a question ({type(error).__name__}).")
        if is_bug:
            self.reactor.on_bug(error)
        try:
            self.on_refused(client, head, body, error)
        except Exception as bug:  # noqa: BLE001 - what is odd may be too odd to be told
            self.reactor.on_bug(bug)
        lane = LANE[head.channel]
        channel = Channel.EVENT if lane is Lane.BULK else Channel.COMMAND

        def on_persisted() -> None:
            client.stream.ack(lane, head.number, len(body))
            if client.pump:
                client.pump.send_credit()

        words = {"event": "refused", "order": "refused", "why": str(error)}
        self.journal.append(
            channel,
            pack_parts([to_json(words)]),
            client=client.name,
            client_number=head.number,
            is_from_client=True,
            then=on_persisted,
        )

    def _on_disconnect(self, client: Client, identity: bytes, error: RemoterError) -> None:
        _log.info("Client %s has gone: %s", client.name.hex(), logs.reason(error))
        self._pumps.pop(identity, None)
        client.pump = None
        self.visits += 1
        before, self._last_left = self._last_left, client
        if before and before is not client and before.pump is None:
            self._active.pop(before.name, None)
            before.outbox.go_dormant()
        self.on_client_change(client)

    def _send(self, identity: bytes, frame: bytes) -> None:
        try:
            is_small = len(frame) < COPY_BELOW
            self._socket.send_multipart([identity, frame], zmq.NOBLOCK, copy=is_small)
        except zmq.ZMQError:
            pump = self._pumps.get(identity)  # it has hung up
            if pump:
                pump.end(ProtocolError("The client hung up."))
