"""Lets fronts in, each with its own place in the journal.

CURVE proves who is at the door, ZAP lets in only client keys that were registered
through a login. What is malformed ends its wire and nothing else.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import zmq
import zmq.utils.garbage  # else with the first large message, from a disk that may hang then
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
from remoter_kernel.protocol.reactor import messages
from remoter_kernel.protocol.stream import ReliableStream
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from remoter_kernel.evaluator.journal import Journal
    from remoter_kernel.evaluator.registry import Session
    from remoter_kernel.protocol.reactor import Reactor, Timer

CORK = 0.001  # seconds that a published message may wait for the next one
COPY_BELOW = 65536  # bytes
MAX_UNREAD = 256  # frames of one front, of 64 KiB at most: more than is read in one go
CLIENT_ID_SIZE = 8  # bytes of a front's name
_log = logging.getLogger(__name__)


class Client:
    """A front that has been here: its conversation, and its wire while there is one."""

    def __init__(self, name: bytes, outbox: ClientOutbox, stream: ReliableStream) -> None:
        """Remember who it is."""
        self.name = name
        self.outbox = outbox
        self.stream = stream
        self.pump: LinkConnection | None = None
        # Up to these numbers an evaluator before this one may have taken what it said.
        self.maybe_received = dict.fromkeys(Lane, 0)
        self.kernel_id = self.laptop = ""  # of a front that says so


class Listener:
    """The socket that fronts connect to."""

    def __init__(self, reactor: Reactor, session: Session, journal: Journal) -> None:
        """Remember; `open` binds."""
        self.reactor = reactor
        self.session = session
        self.journal = journal
        self.clients: dict[bytes, Client] = {}
        self.visits = 0  # how often a client came or went
        self.on_item: Callable[[Client, FrameHeader, Bytes], None] = lambda _guest, _head, _body: (
            None
        )
        # Tells a front of an item of its own that `on_item` could not take in.
        self.on_refused: Callable[[Client, FrameHeader, Bytes, Exception], None] = (
            lambda _guest, _head, _body, _error: None
        )
        self.on_client_change: Callable[[Client], None] = lambda _guest: None  # one came or went
        self.describe: Callable[[], dict[str, Any]] = dict
        # Is it known, from before this evaluator's time, how far a front was?
        self.is_seen_exact: Callable[[bytes, Lane], bool] = lambda _front, _lane: True
        self.most_waiting = BACKLOG_LIMIT  # bytes of one cell's text, for each front
        self.flush_now = False  # has something been said that should not wait for more?
        self._flushed_up_to = 0  # the last number that was sent, as far as credit goes
        self._cork_timer: Timer | None = None
        self._pumps: dict[bytes, LinkConnection] = {}
        self._handshaken: set[bytes] = set()
        # Those that are here, and the last that left: it may be back in a moment, so what waits
        # for it is looked at meanwhile. All others that have left cost nothing.
        self._active: dict[bytes, Client] = {}
        self._last_left: Client | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # Not a REP: what has to be looked up is answered late, and the next one meanwhile.
        self._zap = self._context.socket(zmq.ROUTER)
        self._authorized_keys: set[bytes] = set()  # Z85
        self._key_lookup = Worker("keys", reactor.call_soon_threadsafe)

    def open(self, secret_key: bytes, public_key: bytes) -> int:
        """Bind on loopback and return the port."""
        self._authorized_keys = self.session.authorized_keys()
        self.journal.on_read = self._on_journal_read
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self.reactor.add_reader(self._zap, self._zap_authenticate)
        router = self._socket
        router.linger = 500  # milliseconds: the last words
        router.maxmsgsize = MOST_FRAME  # who sends a larger one is disconnected
        # Of each front: while so much of it waits, no more is read from its connection.
        router.rcvhwm = MAX_UNREAD
        router.sndhwm = 0  # a slow front's own credit bounds what waits for it
        router.router_mandatory = True
        router.curve_server = True
        router.curve_secretkey = secret_key
        router.curve_publickey = public_key
        router.zap_domain = b"remoter"
        port: int = router.bind_to_random_port("tcp://127.0.0.1")
        self.reactor.add_reader(router, self._on_frames)
        return port

    def close(self, why: str) -> None:
        """Say goodbye to all, with the reason, and close."""
        for pump in list(self._pumps.values()):
            pump.end(ProtocolError(why), notifies_peer=True)
        self.reactor.remove_reader(self._socket)
        self.reactor.remove_reader(self._zap)
        self._socket.close()
        self._zap.close()
        self._context.term()
        self._key_lookup.close(0.0)

    def flush_soon(self) -> None:
        """Send what was said in this round; what is only published waits a moment for more.

        A short cell's outputs come within a millisecond of each other: sent together they
        cost every process on the way one waking instead of four.
        """
        if self.flush_now:
            self._flush()
        elif self.journal.last != self._flushed_up_to or self._is_scanning():
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
        was_looking = self._is_scanning()
        for pump in list(self._pumps.values()):
            pump.flush()
        for client in self._active.values():
            client.outbox.scan(is_connected=client.pump is not None)
        if was_looking or self._is_scanning():
            self._flush_after(0.0)  # go on looking, or say what was found

    def _on_journal_read(self) -> None:
        """Go on with what has come from the disk."""
        for client in self.clients.values():
            client.outbox.scan(is_connected=client.pump is not None)
        self._flush()

    def limit_output(self, cells: list[str]) -> None:
        """Let little of what these cells have printed through to anyone: they are interrupted."""
        for client in self._active.values():
            client.outbox.limit_text(cells)

    @property
    def has_clients(self) -> bool:
        """Is any front connected?"""
        return bool(self._pumps)

    def restore_client(self, front: bytes, seen: dict[Lane, int]) -> None:
        """Know a front from before this evaluator's time, and what it has said."""
        client = self._new_client(front)
        client.stream.received = dict(seen)
        client.stream.acked = dict(seen)

    def lowest_acked(self) -> int:
        """Return up to where the fronts that live have taken what is for them."""
        here = [client for client in self._active.values() if client.pump]
        if not here and self._last_left:
            here = [self._last_left]
        return min((guest.outbox.acked[Lane.BULK] for guest in here), default=self.journal.last)

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
                _log.warning(
                    "A greeting of %d bytes is refused: %s", len(frame), logs.reason(error)
                )
                self._send(
                    identity,
                    encode_message(FrameHeader(MessageType.BYE), to_json({"why": str(error)})),
                )

    def _handshake(self, identity: bytes, frame: bytes) -> None:
        """Answer a HELLO: its words are `front` (hex) and `seen` ([bulk, urgent] or null).

        And, if the front has them, `kernel_id` and `laptop`: whose front it is.
        """
        ((head, body),) = decode_messages(frame)
        if head.type is not MessageType.HELLO:
            raise ProtocolError(f"{head.type.name} came before HELLO.")
        words = from_json(body)
        name = bytes.fromhex(words["front"])
        if len(name) != CLIENT_ID_SIZE:
            raise ProtocolError("A client's name has another length.")
        begin = words["seen"] or [self.journal.last, self.journal.last]
        bulk, urgent = int(begin[0]), int(begin[1])
        if not (0 <= bulk <= self.journal.last and 0 <= urgent <= self.journal.last):
            raise ProtocolError(f"It has seen {begin}, but only {self.journal.last} was said here.")
        client = self.clients.get(name)
        if client is None:
            client = self._new_client(name)
            client.outbox.ack(Lane.BULK, bulk)  # what was before it is not for it
        if client.pump:
            client.pump.end(ProtocolError("The same client came in again."), notifies_peer=True)
        client.kernel_id = str(words.get("kernel_id") or "")
        client.laptop = str(words.get("laptop") or "")
        if name not in self._handshaken:
            self._handshaken.add(name)
            for lane, number in zip(Lane, words.get("said") or ()):
                client.maybe_received[lane] = 0 if self.is_seen_exact(name, lane) else int(number)
        client.stream.begin()
        pump = LinkConnection(self.reactor, client.stream, partial(self._send, identity))
        pump.on_item = partial(self.on_item, client)
        pump.on_refused = partial(self._on_item_refused, client)
        pump.on_end = partial(self._on_disconnect, client, identity)
        client.pump = self._pumps[identity] = pump
        self.visits += 1
        self._active[name] = client
        welcome = {**self.describe(), "seen": list(client.stream.received.values()), "begin": begin}
        self._send(
            identity, encode_message(client.stream.head(MessageType.WELCOME), to_json(welcome))
        )
        _log.info("Client %s has come; it has seen up to %d.", name.hex(), bulk)
        pump.start((bulk, urgent))
        self.on_client_change(client)

    def _on_item_refused(
        self, client: Client, head: FrameHeader, body: Bytes, error: Exception
    ) -> None:
        """Pass over an item that cannot be taken in, and tell of it.

        That it was here is written down like any other item, so that it is kept no sooner than
        those before it, and is not asked for again by an evaluator that comes after this one.
        """
        is_bug = not isinstance(error, ProtocolError)
        if head.channel is Channel.STDIN:  # an answer may be a password: no word of it is told
            error = RemoterError(f"An answer to a question ({type(error).__name__}).")
        if is_bug:
            self.reactor.on_bug(error)
        try:
            self.on_refused(client, head, body, error)
        except Exception as bug:  # noqa: BLE001 - what is odd may be too odd to be told
            self.reactor.on_bug(bug)
        lane = LANE[head.channel]
        channel = Channel.EVENT if lane is Lane.BULK else Channel.COMMAND

        def keep() -> None:
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
            then=keep,
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

    def _zap_authenticate(self) -> None:
        """Hear libzmq's question (RFC 27) whether a client key may come in.

        A key that came in before is known here. For another one a thread looks in the folder:
        its disk may hang, and that is no matter of those who are in.
        """
        for identity, empty, version, request, _domain, _address, _id, *rest in messages(self._zap):
            answer = partial(self._zap_reply, [identity, empty, version, request])
            if len(rest) < len(("mechanism", "key")) or rest[0] != b"CURVE":
                answer(is_let_in=False)
                continue
            key = z85.encode(rest[1])
            if key in self._authorized_keys:
                answer(is_let_in=True)
            else:
                look = partial(self.session.is_authorized, key)
                # Without an answer the client would wait. Refused (libzmq does nothing about
                # RFC 27's "temporary"), it dials again.
                refuse = partial(self._zap_reject, answer)
                self._key_lookup.submit(look, partial(self._on_key_lookup, key, answer), refuse)

    @staticmethod
    def _zap_reject(answer: Callable[..., None], _error: Exception) -> None:
        answer(is_let_in=False)

    def _on_key_lookup(self, key: bytes, answer: Callable[..., None], is_let_in: bool) -> None:  # noqa: FBT001 - a callback's only word
        if is_let_in:
            self._authorized_keys.add(key)
        else:
            _log.warning("A client whose key was not registered is not let in.")
        answer(is_let_in=is_let_in)

    def _zap_reply(self, opening: list[bytes], *, is_let_in: bool) -> None:
        words = (b"200", b"OK") if is_let_in else (b"400", b"This key was not registered here.")
        if not self._zap.closed:
            self._zap.send_multipart([*opening, *words, b"front", b""])
