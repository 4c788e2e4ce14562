"""Numbers, acknowledgements and credit of one link (pure: no I/O, no clock).

House rules of the stream:

- A link outlives its connections. No connection is used again: cut means cut.
- Each end numbers its items. Numbers grow inside a lane, and may have gaps: an item names the
  one before it, so that the receiver tells a gap that was meant from a loss.
- *Received* is what has arrived; *acknowledged* is what would survive this process, or has
  reached its addressee. The other end may forget only what is acknowledged.
- A large item goes in slices, so that nothing has to wait behind all of it. A slice means
  nothing by itself: after a cut the item begins anew.
- Credit is an absolute position in the bulk bytes of one connection, so that it may be
  repeated, delayed or lost (as TCP's window is). The urgent lane needs none.
- What the other end can make us hold is bounded: in each lane one unfinished item, which has a
  largest size, and in the bulk lane what it has credit for. Beyond that the connection ends.
- What the other end may send now is a table; what is not in it ends the connection.

House rules of the window, which says how many bytes may be in flight to us:

- What the path holds is bandwidth x delay. Twice that keeps it full; more would only be a
  queue, and whatever is sent last would wait behind it.
- The delay is the shortest round trip of this connection, since all others had a queue in them.
- The bandwidth is the best of the last few rounds; a round is a round trip long, and its rate
  is the best of any time that long which ended in it. What counts is what was *acknowledged*: a
  proxy that paces its client makes the other end wait.
- While each round is faster than those before, the window was what limited it.
- `now` is an argument, in seconds on any clock that only goes forward.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from remoter_kernel.errors import Overrun, ProtocolError
from remoter_kernel.protocol.frames import (
    LANE,
    MOST_ITEM,
    Bytes,
    Channel,
    FrameHeader,
    Lane,
    MessageType,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOTH = (Lane.URGENT, Lane.BULK)
SLICE = 64 * 1024  # bytes of an item that go in one piece
FRESH = "No honest one does that: begin a fresh session, by restarting the kernel."

LEAST = 256 * 1024  # bytes
MOST = 64 * 1024 * 1024  # bytes
SHORTEST_ROUND = 0.010  # seconds: on shorter ones, the machines are what limits
LEAST_COUNTED = 32 * 1024  # bytes: less in a round says nothing of the path
SAMPLES = 16  # positions that are remembered of one round
ROUNDS = 8  # how many are remembered
GROWS_BY = 1.25  # a round that is faster by this was limited by the window before
FLAT_AFTER = 3  # rounds without that: the path is full
FULL, SEARCHING = 2, 4  # times what the path seems to hold


class Phase(Enum):
    """How far one connection has come."""

    CLOSED = "closed"
    GREETING = "greeting"
    OPEN = "open"


class Ack(Enum):
    """Whether the other end has to be sent our numbers (see RFC 1122's delayed ACK)."""

    NONE = "none"  # it knows them all
    DELAYED = "delayed"  # of what has been kept: they can wait for a message to ride on
    NOW = "now"  # it is likely to run out of credit soon


_GREETINGS = frozenset({MessageType.HELLO, MessageType.WELCOME})
ALLOWED = {
    Phase.CLOSED: frozenset[MessageType](),
    Phase.GREETING: _GREETINGS | {MessageType.BYE},
    Phase.OPEN: frozenset(MessageType) - _GREETINGS,
}


class OutboxEntry(NamedTuple):
    """An item to send: its number, where it belongs, its bytes, which bulk item it overtook."""

    number: int
    channel: Channel
    body: bytes
    barrier: int = 0


class Outbox(Protocol):
    """Keeps what the other end has not acknowledged."""

    def next_after(self, lane: Lane, number: int) -> OutboxEntry | None:
        """Return the first entry of a lane beyond a number."""

    def ack(self, lane: Lane, number: int) -> None:
        """Note that the other end has acknowledged all entries of a lane up to a number."""


class MemoryOutbox:
    """An outbox that lives as long as its process; however much waits, nothing is searched."""

    def __init__(self) -> None:
        self.last = 0
        self.forgotten = dict.fromkeys(Lane, 0)  # the other end has acknowledged up to these
        self._last_bulk = 0
        self._entries: dict[int, OutboxEntry] = {}
        self._numbers: dict[Lane, list[int]] = {lane: [] for lane in Lane}  # sorted: they grow
        self._on_acked: dict[int, Callable[[], object]] = {}  # by number

    def add(
        self, channel: Channel, body: bytes, on_kept: Callable[[], object] | None = None
    ) -> int:
        """Put an entry at the end of its lane and return its number.

        `on_kept` is called once the other end has acknowledged it.
        """
        self.last += 1
        if on_kept:
            self._on_acked[self.last] = on_kept
        lane = LANE[channel]
        if lane is Lane.BULK:
            self._last_bulk = self.last
        self._entries[self.last] = OutboxEntry(self.last, channel, body, self._last_bulk)
        self._numbers[lane].append(self.last)
        return self.last

    def next_after(self, lane: Lane, number: int) -> OutboxEntry | None:
        """Return the first entry of a lane beyond a number."""
        numbers = self._numbers[lane]
        place = bisect_right(numbers, number)
        return self._entries[numbers[place]] if place < len(numbers) else None

    def ack(self, lane: Lane, number: int) -> None:
        """Drop what the other end has acknowledged, and call who waits for that."""
        self.forgotten[lane] = max(self.forgotten[lane], number)
        numbers = self._numbers[lane]
        end = bisect_right(numbers, number)
        gone = numbers[:end]
        del numbers[:end]  # before any call: it may add entries
        for each in gone:
            del self._entries[each]
            on_kept = self._on_acked.pop(each, None)
            if on_kept:
                on_kept()

    def withdraw(self, number: int) -> bool:
        """Take an entry out again; return whether it was still there.

        The gap does no harm: the next item names the one that was sent before it.
        """
        entry = self._entries.pop(number, None)
        if entry is None:
            return False
        self._on_acked.pop(number, None)
        numbers = self._numbers[LANE[entry.channel]]
        del numbers[bisect_right(numbers, number) - 1]
        return True

    def __len__(self) -> int:
        """Count what the other end has not acknowledged."""
        return len(self._entries)


@dataclass
class _ConnectionState:
    """What begins anew with each connection; sizes and positions are in bulk bytes."""

    received_before: dict[Lane, int]  # items beyond these numbers came by this connection
    partial_out: dict[Lane, tuple[OutboxEntry, int]] = field(default_factory=dict)  # sent up to
    # Slices of an unfinished item are copied: a view of one would keep its whole frame alive.
    partial_in: dict[Lane, tuple[int, bytearray]] = field(default_factory=dict)
    credited_early: dict[int, int] = field(default_factory=dict)  # by item: of its slices
    sent_bytes: int = 0
    credit: int = 0  # up to where we may send
    received_bytes: int = 0
    acked_bytes: int = 0
    measured_bytes: int = 0  # of the acknowledged ones, those that the window knows of
    granted_credit: int = 0  # up to where the other end may send: never taken back
    last_ack_sent: tuple[int, int, int] = (0, 0, 0)


class ReliableStream:
    """One end of a link: what is to be sent next, and what to make of what arrives."""

    def __init__(
        self,
        outbox: Outbox,
        window: int = LEAST,
        slice_size: int = SLICE,
        most_item: int = MOST_ITEM,
    ) -> None:
        """All sizes are in bytes; `most_item` is the largest item that is accepted."""
        self.outbox = outbox
        self.most_item = most_item
        self.window = ReceiveWindow(window)  # bulk bytes that may be in flight to us
        self.slice_size = slice_size
        self.phase = Phase.CLOSED
        self.received = dict.fromkeys(Lane, 0)
        self.acked = dict.fromkeys(Lane, 0)
        self._sent = dict.fromkeys(Lane, 0)  # by this connection, or known to have arrived before
        self._ever_sent = dict.fromkeys(Lane, 0)
        self._peer_acked = dict.fromkeys(Lane, 0)
        self._connection = _ConnectionState(dict(self.received))

    def begin(self) -> None:
        """Start over on a new connection."""
        self.close()
        self.phase = Phase.GREETING
        self.window.begin()

    def open(self, peer_received: tuple[int, int]) -> None:
        """Go on from what the other end has received: (bulk, urgent)."""
        self.phase = Phase.OPEN
        self._sent = dict(zip(Lane, peer_received))  # what was lost on the way is sent again

    def close(self) -> None:
        """End this connection; the link goes on with the next one."""
        self.phase = Phase.CLOSED
        # Now, and not when the next one begins: unfinished items may be as large as an item.
        self._connection = _ConnectionState(dict(self.received))

    def head(
        self, kind: MessageType, entry: OutboxEntry | None = None, begin: int = 0
    ) -> FrameHeader:
        """Return a header that carries all our numbers as they are now."""
        now = self._connection
        # The window may shrink; what was granted may be in flight by now.
        now.granted_credit = max(now.granted_credit, now.acked_bytes + self.window.size)
        now.last_ack_sent = (
            self.acked[Lane.BULK],
            self.acked[Lane.URGENT],
            now.granted_credit,
        )
        if entry is None:
            return FrameHeader(kind, Channel.EVENT, 0, 0, 0, 0, *now.last_ack_sent)
        item = entry.number, self._sent[LANE[entry.channel]], entry.barrier, begin
        return FrameHeader(kind, entry.channel, *item, *now.last_ack_sent)

    def frames_to_send(self, lanes: tuple[Lane, ...] = BOTH) -> Iterator[tuple[FrameHeader, Bytes]]:
        """Yield what may be sent now: urgent things first, bulk as far as credit goes."""
        if self.phase is not Phase.OPEN:
            return
        now = self._connection
        for lane in lanes:
            # Credit is looked at between slices, so that one may go beyond it, and none is cut.
            while lane is Lane.URGENT or now.sent_bytes < now.credit:
                entry, begin = now.partial_out.pop(lane, (None, 0))
                entry = entry or self.outbox.next_after(lane, self._sent[lane])
                if entry is None:
                    break
                end = begin + self.slice_size
                is_last = end >= len(entry.body)
                kind = MessageType.ITEM if is_last else MessageType.PART
                head = self.head(kind, entry, begin)  # before `_sent` moves: it names what it was
                self._ever_sent[lane] = max(self._ever_sent[lane], entry.number)
                if is_last:
                    self._sent[lane] = entry.number
                else:
                    now.partial_out[lane] = (entry, end)
                is_whole = is_last and not begin  # nothing need be cut out of it
                body = entry.body if is_whole else memoryview(entry.body)[begin:end]
                if lane is Lane.BULK:
                    now.sent_bytes += len(body)
                yield head, body

    @property
    def last_sent(self) -> tuple[int, ...]:
        """The last numbers that were sent by any connection, ever: (bulk, urgent)."""
        return tuple(self._ever_sent.values())

    def was_sent(self, lane: Lane, number: int) -> bool:
        """Was this entry of ours sent by any connection, ever?"""
        return number <= self._ever_sent[lane]

    def receive(self, head: FrameHeader, body: Bytes) -> Bytes | None:
        """Take in a message; return the body of an item if one is new, and whole."""
        if head.type not in ALLOWED[self.phase]:
            raise ProtocolError(f"{head.type.name} came while the wire was {self.phase.value}.")
        now = self._connection
        now.credit = max(now.credit, head.credit)  # an older message may be read after a newer one
        for lane, kept in zip(Lane, (head.acked_bulk, head.acked_urgent)):
            if kept > self._peer_acked[lane]:  # every message repeats the numbers
                self._peer_acked[lane] = kept
                self.outbox.ack(lane, kept)
        lane = LANE[head.channel]
        is_item = head.type is MessageType.ITEM or head.type is MessageType.PART
        if not is_item or head.number <= self.received[lane]:
            return None
        number, half = now.partial_in.get(lane, (head.number, None))
        size_here = 0 if half is None else len(half)
        self._check_order(head, number, size_here)
        if head.offset < size_here:
            return None  # this slice is here
        self._count_received(lane, size_here, len(body))
        if head.type is MessageType.PART:
            self._add_partial(lane, number, body)
            return None
        self.received[lane] = number  # now: should it be refused, it must not come again
        if half is None:
            return body
        del now.partial_in[lane]
        half += body
        # From now on it counts as a whole, once it is acknowledged: else an end that keeps
        # nothing would be sent more and more.
        now.acked_bytes -= now.credited_early.pop(number, 0)
        return memoryview(half).toreadonly()

    def _check_order(self, head: FrameHeader, number: int, size_here: int) -> None:
        """Refuse what does not follow what is here: `size_here` bytes of item `number`."""
        received = self.received[LANE[head.channel]]
        if head.previous > received:
            message = (
                f"Item {head.number} follows {head.previous}, but only {received} has been seen."
            )
            raise ProtocolError(message)
        if number != head.number or head.offset > size_here:
            message = (
                f"Byte {head.offset} of item {head.number} came after "
                f"byte {size_here} of item {number}."
            )
            raise ProtocolError(message)

    def _add_partial(self, lane: Lane, number: int, body: Bytes) -> None:
        """Put a slice behind those that are here of its item."""
        now = self._connection
        _, half = now.partial_in.setdefault(lane, (number, bytearray()))
        half += body
        if lane is Lane.BULK:
            # Credit for what is held already, or an item larger than it would never end.
            now.credited_early[number] = now.credited_early.get(number, 0) + len(body)
            now.acked_bytes += len(body)

    def _count_received(self, lane: Lane, size_here: int, size: int) -> None:
        """Take so many more bytes of an item, of which some have come: within our bounds."""
        now = self._connection
        if size_here + size > self.most_item:
            most = f"{self.most_item / 1e6:,.0f} MB"
            raise Overrun(f"The other end sent more than {most} as one message.", FRESH)
        if lane is Lane.BULK:
            # An honest end stops where its credit ends, with one slice beyond it at most. What we
            # have granted may be more than it has received of that, and never less.
            if size and now.received_bytes >= now.granted_credit:
                raise Overrun("The other end sent more than it was given credit for.", FRESH)
            now.received_bytes += size

    def ack(self, lane: Lane, number: int, size: int) -> None:
        """Note that an item and all before it in its lane are kept; `size` is its bytes."""
        self.acked[lane] = max(self.acked[lane], number)
        # One that came by an earlier connection has no part in this one's credit.
        if lane is Lane.BULK and number > self._connection.received_before[lane]:
            self._connection.acked_bytes += size

    @property
    def acked_bytes(self) -> int:
        """Bulk bytes that this connection has brought and that are kept."""
        return self._connection.acked_bytes

    def ack_needed(self, moment: float) -> Ack:
        """Say whether the other end needs our numbers, and let the window follow the path.

        `moment` is in seconds.
        """
        now = self._connection
        if now.acked_bytes != now.measured_bytes and self.window.shortest is not None:
            now.measured_bytes = now.acked_bytes
            self.window.on_acked(now.acked_bytes, moment)
        if self.phase is not Phase.OPEN:
            return Ack.NONE
        credit = now.acked_bytes + self.window.size
        if credit - now.last_ack_sent[2] > self.window.size // 4:
            return Ack.NOW
        known = (*self.acked.values(), max(now.granted_credit, credit))
        return Ack.NONE if now.last_ack_sent == known else Ack.DELAYED


class ReceiveWindow:
    """The window of one link; the size found on one connection is where the next begins."""

    def __init__(self, size: int = LEAST) -> None:
        """`size` is where to begin, in bytes."""
        self.size = size
        self.begin()

    def begin(self) -> None:
        """Start over on a new connection: another path, perhaps."""
        self.shortest: float | None = None  # round trip, in seconds
        self._rates: deque[float] = deque(maxlen=ROUNDS)  # bytes per second
        self._fastest = 0.0  # of all rounds
        self._flat = 0  # rounds without growth
        self._round = (0.0, 0.0)  # when it began, and its rate so far
        self._samples: deque[tuple[float, int]] = deque()  # time and position

    def on_round_trip(self, seconds: float) -> None:
        """Note how long a round trip took."""
        self.shortest = min(seconds, self.shortest or seconds)  # the others had a queue in them

    def on_acked(self, position: int, now: float) -> None:
        """Note that all bytes of this connection up to a position are acknowledged."""
        samples = self._samples
        before = samples[-1][1] if samples else 0
        if self.shortest is None or position == before:
            return
        trip = max(self.shortest, SHORTEST_ROUND)
        while len(samples) > 1 and samples[1][0] <= now - trip:
            samples.popleft()  # the first that stays is the last one before this round trip
        since = samples[0][1] if samples else 0
        # One that is close behind the one before it takes its place: memory has a bound.
        if len(samples) > 1 and now - samples[-2][0] < trip / SAMPLES:
            samples.pop()
        samples.append((now, position))
        self._measure(position - since, trip, now)

    def _measure(self, size: int, trip: float, now: float) -> None:
        """Take in how many bytes came during one round trip up to now."""
        began, rate = self._round
        if now - began > trip:
            if rate:  # rounds without data say nothing of the path
                self._end_round(rate)
            began, rate = now, 0.0
        if size >= LEAST_COUNTED:
            rate = max(rate, size / trip)
        self._round = (began, rate)
        best = max(rate, *self._rates, 0.0)
        if best:
            times = SEARCHING if self._flat < FLAT_AFTER else FULL
            self.size = int(min(MOST, max(LEAST, times * best * trip)))

    def _end_round(self, rate: float) -> None:
        self._rates.append(rate)
        if rate > self._fastest * GROWS_BY:
            self._fastest, self._flat = rate, 0
        else:
            self._flat += 1
