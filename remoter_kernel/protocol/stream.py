"""Numbers, acknowledgements and credit of one conversation (pure: no I/O, no clock).

House rules of this file:

- A conversation outlives wires. A wire is never reused: cut means cut.
- Each end numbers what it says. Numbers grow inside a lane, and may have gaps: an item
  names the one before it, so a gap that was meant is told from a loss.
- *Seen* is what has arrived; *kept* is what would survive this process, or has reached
  whom it was for. Only what is kept is acknowledged, and only that may be forgotten.
- A large item goes in slices, so that nothing has to wait behind all of it. A slice means
  nothing by itself: after a cut the item begins anew.
- Credit is an absolute position in the bulk bytes of one wire, so that it may be
  repeated, delayed or lost. The urgent lane needs none.
- What the other end can make us hold is bounded: in each lane one unfinished item, which has a
  largest size, and in the bulk lane what was given credit for. Beyond that the wire ends.
- What the other end may say now is a table; what is not in it ends the wire.

How many bytes may be on their way to us: measured as it goes (pure: no I/O, no clock).

House rules of this file:

- What the path holds is bandwidth x delay. Twice that keeps it full; more would only be a
  queue, and whatever is said last would wait behind it.
- The delay is the shortest round trip of this wire, since all others had a queue in them.
- The bandwidth is the best of the last few rounds; a round is a round trip long, and its rate
  is the best of any time that long which ended in it. What counts is what has been *kept*: a
  front that paces its client makes the other end wait.
- While each round is faster than those before, the window was what limited it.
- `now` is an argument, in seconds on any clock that only goes forward.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
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
    """How far one wire has come."""

    CLOSED = "closed"
    GREETING = "greeting"
    OPEN = "open"


class Ack(Enum):
    """Whether the other end has to be sent our numbers (see RFC 1122's delayed ACK)."""

    NONE = "none"  # it knows them all
    DELAYED = "delayed"  # of what has been kept: they can wait for a message to ride on
    NOW = "now"  # it is likely to run out of credit soon


AFTER_GREETING = frozenset(
    {
        MessageType.ITEM,
        MessageType.PART,
        MessageType.ACK,
        MessageType.PING,
        MessageType.PONG,
        MessageType.BYE,
    }
)
ALLOWED = {
    Phase.CLOSED: frozenset[MessageType](),
    Phase.GREETING: frozenset({MessageType.HELLO, MessageType.WELCOME, MessageType.BYE}),
    Phase.OPEN: AFTER_GREETING,
}


class OutboxEntry(NamedTuple):
    """Something to say: its number, where it belongs, its bytes, what it overtook."""

    number: int
    channel: Channel
    body: bytes
    barrier: int = 0


class Outbox(Protocol):
    """Where what was not yet taken is kept."""

    def next_after(self, lane: Lane, number: int) -> OutboxEntry | None:
        """Return the first entry of a lane beyond a number."""

    def ack(self, lane: Lane, number: int) -> None:
        """Hear that all entries of a lane up to a number are kept by the other end."""


class MemoryOutbox:
    """An outbox that lives as long as its process; however much waits, nothing is searched."""

    def __init__(self) -> None:
        """Begin with nothing to say."""
        self.last = 0
        self.forgotten = dict.fromkeys(Lane, 0)  # up to these the other end has kept all
        self._last_bulk = 0
        self._entries: dict[int, OutboxEntry] = {}
        self._numbers: dict[Lane, list[int]] = {lane: [] for lane in Lane}  # growing
        self._on_acked: dict[int, Callable[[], object]] = {}  # by number

    def add(
        self, channel: Channel, body: bytes, on_kept: Callable[[], object] | None = None
    ) -> int:
        """Put an entry at the end of its lane and return its number.

        `on_kept` is called once the other end has confirmed to keep it.
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
        """Drop what the other end has kept."""
        self.forgotten[lane] = max(self.forgotten[lane], number)
        numbers = self._numbers[lane]
        end = bisect_right(numbers, number)
        gone = numbers[:end]
        del numbers[:end]
        for each in gone:
            del self._entries[each]
            on_kept = self._on_acked.pop(each, None)
            if on_kept:
                on_kept()

    def withdraw(self, number: int) -> bool:
        """Take an entry out again; return whether it was still there."""
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


class ReliableStream:
    """One end of a numbered conversation."""

    def __init__(
        self,
        outbox: Outbox,
        window: int = LEAST,
        slice_size: int = SLICE,
        most_item: int = MOST_ITEM,
    ) -> None:
        """Remember where unsaid things are kept; all sizes are in bytes."""
        self.outbox = outbox
        self.most_item = most_item  # that is taken from the other end
        self.window = ReceiveWindow(window)  # bulk bytes that may be on their way to us
        self.slice_size = slice_size
        self.phase = Phase.CLOSED
        self.received = dict.fromkeys(Lane, 0)
        self.acked = dict.fromkeys(Lane, 0)
        self._sent = dict.fromkeys(Lane, 0)
        self._peer_acked = dict.fromkeys(Lane, 0)  # up to these the other end has kept all
        self._ever_sent = dict.fromkeys(Lane, 0)
        self._partial_out: dict[
            Lane, tuple[OutboxEntry, int]
        ] = {}  # what is half said, and how far
        # What is half heard. Its bytes are copied: a slice would keep its whole frame alive.
        self._partial_in: dict[Lane, tuple[int, bytearray]] = {}
        self._received_before = dict.fromkeys(Lane, 0)  # numbers beyond these came on this wire
        self._credited_early: dict[
            int, int
        ] = {}  # bytes of an item's slices that have counted already
        self._sent_bytes = 0
        self._credit = 0
        self._received_bytes = 0
        self._acked_bytes = 0
        self._measured_bytes = 0  # of the acknowledged ones, those that the window knows of
        self._granted_credit = 0  # credit, so far: what was given is never taken back
        self._last_ack_sent = (0, 0, 0)

    def begin(self) -> None:
        """Start over on a new wire."""
        self.phase = Phase.GREETING
        self._sent_bytes = self._credit = self._received_bytes = self._granted_credit = 0
        self._acked_bytes = self._measured_bytes = 0
        self.window.begin()
        self._last_ack_sent = (0, 0, 0)
        self._partial_out.clear()
        self._partial_in.clear()
        self._credited_early.clear()
        self._received_before = dict(self.received)

    def open(self, peer_received: tuple[int, int]) -> None:
        """Go on from what the other end has seen: (bulk, urgent)."""
        self.phase = Phase.OPEN
        self._sent = dict(zip(Lane, peer_received))

    def close(self) -> None:
        """End this wire; the conversation goes on with the next one."""
        self.phase = Phase.CLOSED
        for unfinished in (
            self._partial_out,
            self._partial_in,
            self._credited_early,
        ):  # may be as large as an item
            unfinished.clear()

    def head(
        self, kind: MessageType, entry: OutboxEntry | None = None, begin: int = 0
    ) -> FrameHeader:
        """Return a head that carries all our numbers as they are now."""
        self._last_ack_sent = told = self._ack_numbers()
        if entry is None:
            return FrameHeader(kind, Channel.EVENT, 0, 0, 0, 0, *told)
        previous = self._sent[LANE[entry.channel]]
        return FrameHeader(kind, entry.channel, entry.number, previous, entry.barrier, begin, *told)

    def frames_to_send(self, lanes: tuple[Lane, ...] = BOTH) -> Iterator[tuple[FrameHeader, Bytes]]:
        """Yield what may be sent now: urgent things first, bulk as far as credit goes."""
        if self.phase is not Phase.OPEN:
            return
        for lane in lanes:
            while lane is Lane.URGENT or self._sent_bytes < self._credit:
                entry, begin = self._partial_out.pop(lane, (None, 0))
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
                    self._partial_out[lane] = (entry, end)
                is_whole = is_last and not begin  # nothing need be cut out of it
                body = entry.body if is_whole else memoryview(entry.body)[begin:end]
                if lane is Lane.BULK:
                    self._sent_bytes += len(body)
                yield head, body

    @property
    def last_sent(self) -> tuple[int, ...]:
        """The last numbers that were sent on any wire, ever: (bulk, urgent)."""
        return tuple(self._ever_sent.values())

    def was_sent(self, lane: Lane, number: int) -> bool:
        """Was this entry of ours sent on any wire, ever?"""
        return number <= self._ever_sent[lane]

    def receive(self, head: FrameHeader, body: Bytes) -> Bytes | None:
        """Take in a saying; return the body of an item if one is new, and whole."""
        if head.type not in ALLOWED[self.phase]:
            message = f"{head.type.name} came while the wire was {self.phase.value}."
            raise ProtocolError(message)
        self._credit = max(self._credit, head.credit)
        for lane, kept in zip(Lane, (head.acked_bulk, head.acked_urgent)):
            if kept > self._peer_acked[lane]:  # every message repeats the numbers
                self._peer_acked[lane] = kept
                self.outbox.ack(lane, kept)
        lane = LANE[head.channel]
        is_item = head.type is MessageType.ITEM or head.type is MessageType.PART
        if not is_item or head.number <= self.received[lane]:
            return None
        if not head.previous <= self.received[lane]:
            message = (
                f"Item {head.number} follows {head.previous}, but only "
                f"{self.received[lane]} has been seen."
            )
            raise ProtocolError(message)
        number, half = self._partial_in.get(lane, (head.number, None))
        heard = 0 if half is None else len(half)
        if number != head.number or head.offset > heard:
            message = (
                f"Byte {head.offset} of item {head.number} came after "
                f"byte {heard} of item {number}."
            )
            raise ProtocolError(message)
        if head.offset < heard:
            return None
        self._count_received(lane, heard, len(body))
        if head.type is MessageType.PART:
            self._add_partial(lane, number, body)
            return None
        self.received[lane] = number
        if half is None:
            return body
        del self._partial_in[lane]
        half += body
        # From now on it counts as a whole, once it is kept: who keeps nothing gets nothing more.
        self._acked_bytes -= self._credited_early.pop(number, 0)
        return memoryview(half).toreadonly()

    def _add_partial(self, lane: Lane, number: int, body: Bytes) -> None:
        """Put a slice behind those that are here of its item."""
        _, half = self._partial_in.setdefault(lane, (number, bytearray()))
        half += body
        if lane is Lane.BULK:
            # Credit for what is held already, or an item larger than it would never end.
            self._credited_early[number] = self._credited_early.get(number, 0) + len(body)
            self._acked_bytes += len(body)

    def _count_received(self, lane: Lane, heard: int, size: int) -> None:
        """Take so many more bytes of an item, of which some were heard: within our bounds."""
        if heard + size > self.most_item:
            most = f"{self.most_item / 1e6:,.0f} MB"
            raise Overrun(f"The other end sent more than {most} as one message.", FRESH)
        if lane is Lane.BULK:
            # An honest end stops where its credit ends, with one slice beyond it at most. What was
            # given may be more than it has been told of, and never less.
            if size and self._received_bytes >= self._granted_credit:
                raise Overrun("The other end sent more than it was given credit for.", FRESH)
            self._received_bytes += size

    def ack(self, lane: Lane, number: int, size: int) -> None:
        """Note that an item and all before it in its lane are kept; `size` is its bytes."""
        self.acked[lane] = max(self.acked[lane], number)
        if lane is Lane.BULK and number > self._received_before[lane]:
            self._acked_bytes += size

    @property
    def acked_bytes(self) -> int:
        """Bulk bytes that this wire has carried here."""
        return self._acked_bytes

    def ack_needed(self, now: float) -> Ack:
        """Say whether the other end needs our numbers, and let the window follow the path.

        `now` is in seconds.
        """
        if self._acked_bytes != self._measured_bytes and self.window.shortest is not None:
            self._measured_bytes = self._acked_bytes
            self.window.on_acked(self._acked_bytes, now)
        if self.phase is not Phase.OPEN:
            return Ack.NONE
        credit = self._acked_bytes + self.window.size
        if credit - self._last_ack_sent[2] > self.window.size // 4:
            return Ack.NOW
        is_known = self._last_ack_sent == (*self.acked.values(), max(self._granted_credit, credit))
        return Ack.NONE if is_known else Ack.DELAYED

    def _ack_numbers(self) -> tuple[int, int, int]:
        self._granted_credit = max(self._granted_credit, self._acked_bytes + self.window.size)
        return (*self.acked.values(), self._granted_credit)  # type: ignore[return-value]


class ReceiveWindow:
    """The window of one conversation; the size found on one wire is where the next begins."""

    def __init__(self, size: int = LEAST) -> None:
        """Remember where to begin, in bytes."""
        self.size = size
        self.shortest: float | None = None  # round trip of this wire, in seconds
        self._rates: deque[float] = deque(maxlen=ROUNDS)  # bytes per second
        self._fastest = 0.0  # of all rounds of this wire
        self._flat = 0  # rounds without growth
        self._round: tuple[float, float] = (0.0, 0.0)  # when it began, and its rate so far
        self._samples: deque[tuple[float, int]] = deque()  # time and position

    def begin(self) -> None:
        """Start over on a new wire: another path, perhaps."""
        self.shortest = None
        self._rates.clear()
        self._fastest = 0.0
        self._flat = 0
        self._round = (0.0, 0.0)
        self._samples.clear()

    def on_round_trip(self, seconds: float) -> None:
        """Hear how long a round trip took."""
        self.shortest = min(seconds, self.shortest or seconds)

    def on_acked(self, position: int, now: float) -> None:
        """Hear that all bytes of this wire up to a position have been kept."""
        grains = self._samples
        before = grains[-1][1] if grains else 0
        if self.shortest is None or position == before:
            return
        trip = max(self.shortest, SHORTEST_ROUND)
        while len(grains) > 1 and grains[1][0] <= now - trip:
            grains.popleft()
        since = grains[0][1] if grains else 0
        if len(grains) > 1 and now - grains[-2][0] < trip / SAMPLES:
            grains.pop()
        grains.append((now, position))
        self._measure(position - since, trip, now)

    def _measure(self, size: int, trip: float, now: float) -> None:
        """Take in how many bytes came during one round trip up to now."""
        began, rate = self._round
        if now - began > trip:
            if rate:
                self._end_round(rate)
            began, rate = now, 0.0
        if size >= LEAST_COUNTED:
            rate = max(rate, size / trip)
        self._round = (began, rate)
        best = max(self._rates, default=0.0)
        if not max(best, rate):
            return
        times = SEARCHING if self._flat < FLAT_AFTER else FULL
        self.size = int(min(MOST, max(LEAST, times * max(best, rate) * trip)))

    def _end_round(self, rate: float) -> None:
        self._rates.append(rate)
        if rate > self._fastest * GROWS_BY:
            self._fastest, self._flat = rate, 0
        else:
            self._flat += 1
