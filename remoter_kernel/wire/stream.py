"""Numbers, acknowledgements and credit of one conversation (pure: no I/O, no clock).

House rules of this file:

- A conversation outlives wires. A wire is never reused: cut means cut.
- Each end numbers what it says. Numbers grow inside a lane, and may have gaps: an item
  names the one before it, so a gap that was meant is told from a loss.
- *Seen* is what has arrived; *kept* is what would survive this process, or has reached
  whom it was for. Only what is kept is acknowledged, and only that may be forgotten.
- Credit is an absolute position in the bulk bytes of one wire, so that it may be
  repeated, delayed or lost. The urgent lane needs none.
- What the other end may say now is a table; what is not in it ends the wire.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.frames import LANE, Channel, Head, Kind, Lane

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 4 * 1024 * 1024  # bulk bytes that may be on their way to us


class Phase(Enum):
    """How far one wire has come."""

    CLOSED = "closed"
    GREETING = "greeting"
    OPEN = "open"


TALK = frozenset({Kind.ITEM, Kind.ACK, Kind.PING, Kind.PONG, Kind.BYE})
MAY_SAY = {
    Phase.CLOSED: frozenset[Kind](),
    Phase.GREETING: frozenset({Kind.HELLO, Kind.WELCOME, Kind.BYE}),
    Phase.OPEN: TALK,
}


class Entry(NamedTuple):
    """Something to say: its number, where it belongs, its bytes, what it overtook."""

    number: int
    channel: Channel
    body: bytes
    mark: int = 0


class Outbox(Protocol):
    """Where what was not yet taken is kept."""

    def next_after(self, lane: Lane, number: int) -> Entry | None:
        """Return the first entry of a lane beyond a number."""

    def forget(self, lane: Lane, number: int) -> None:
        """Hear that all entries of a lane up to a number are kept by the other end."""


class MemoryOutbox:
    """An outbox that lives as long as its process."""

    def __init__(self) -> None:
        """Begin with nothing to say."""
        self.last = 0
        self._last_bulk = 0
        self._entries: dict[Lane, deque[Entry]] = {lane: deque() for lane in Lane}

    def add(self, channel: Channel, body: bytes) -> int:
        """Put an entry at the end of its lane and return its number."""
        self.last += 1
        lane = LANE[channel]
        if lane is Lane.BULK:
            self._last_bulk = self.last
        self._entries[lane].append(Entry(self.last, channel, body, self._last_bulk))
        return self.last

    def next_after(self, lane: Lane, number: int) -> Entry | None:
        """Return the first entry of a lane beyond a number."""
        for entry in self._entries[lane]:
            if entry.number > number:
                return entry
        return None

    def forget(self, lane: Lane, number: int) -> None:
        """Drop what the other end has kept."""
        entries = self._entries[lane]
        while entries and entries[0].number <= number:
            entries.popleft()

    def withdraw(self, number: int) -> bool:
        """Take an entry out again; return whether it was still there."""
        for entries in self._entries.values():
            for entry in entries:
                if entry.number == number:
                    entries.remove(entry)
                    return True
        return False

    def __len__(self) -> int:
        """Count what the other end has not acknowledged."""
        return sum(len(entries) for entries in self._entries.values())


class Conversation:
    """One end of a numbered conversation."""

    def __init__(self, outbox: Outbox, window: int = WINDOW) -> None:
        """Remember where unsaid things are kept; `window` is in bytes."""
        self.outbox = outbox
        self.window = window
        self.phase = Phase.CLOSED
        self.seen = dict.fromkeys(Lane, 0)
        self.kept = dict.fromkeys(Lane, 0)
        self._sent = dict.fromkeys(Lane, 0)
        self._ever_sent = dict.fromkeys(Lane, 0)
        self._sent_bytes = 0
        self._credit = 0
        self._kept_bytes = 0
        self._told = (0, 0, 0)

    def begin(self) -> None:
        """Start over on a new wire."""
        self.phase = Phase.GREETING
        self._sent_bytes = self._credit = self._kept_bytes = 0
        self._told = (0, 0, 0)

    def open(self, peer_has_seen: tuple[int, int]) -> None:
        """Go on from what the other end has seen: (bulk, urgent)."""
        self.phase = Phase.OPEN
        self._sent = dict(zip(Lane, peer_has_seen))

    def close(self) -> None:
        """End this wire; the conversation goes on with the next one."""
        self.phase = Phase.CLOSED

    def head(self, kind: Kind, entry: Entry | None = None) -> Head:
        """Return a head that carries all our numbers as they are now."""
        self._told = told = self._numbers()
        if entry is None:
            return Head(kind, Channel.NOTE, 0, 0, 0, *told)
        previous = self._sent[LANE[entry.channel]]
        return Head(kind, entry.channel, entry.number, previous, entry.mark, *told)

    def due(self) -> Iterator[tuple[Head, bytes]]:
        """Yield what may be sent now: urgent things first, bulk as far as credit goes."""
        if self.phase is not Phase.OPEN:
            return
        for lane in (Lane.URGENT, Lane.BULK):
            while lane is Lane.URGENT or self._sent_bytes < self._credit:
                entry = self.outbox.next_after(lane, self._sent[lane])
                if entry is None:
                    break
                head = self.head(Kind.ITEM, entry)
                self._sent[lane] = entry.number
                self._ever_sent[lane] = max(self._ever_sent[lane], entry.number)
                if lane is Lane.BULK:
                    self._sent_bytes += len(entry.body)
                yield head, entry.body

    def has_left(self, lane: Lane, number: int) -> bool:
        """Was this entry of ours sent on any wire, ever?"""
        return number <= self._ever_sent[lane]

    def receive(self, head: Head) -> bool:
        """Take in a head; return whether it brings an item that was not seen before."""
        if head.kind not in MAY_SAY[self.phase]:
            message = f"{head.kind.name} came while the wire was {self.phase.value}."
            raise ProtocolError(message)
        self._credit = max(self._credit, head.credit)
        for lane, kept in zip(Lane, (head.kept_bulk, head.kept_urgent)):
            if kept:
                self.outbox.forget(lane, kept)
        if head.kind is not Kind.ITEM:
            return False
        lane = LANE[head.channel]
        if head.number <= self.seen[lane]:
            return False
        if not head.previous <= self.seen[lane]:
            message = (
                f"Item {head.number} follows {head.previous}, but only "
                f"{self.seen[lane]} has been seen."
            )
            raise ProtocolError(message)
        self.seen[lane] = head.number
        return True

    def keep(self, lane: Lane, number: int, size: int) -> None:
        """Note that an item and all before it in its lane are kept; `size` is its bytes."""
        self.kept[lane] = max(self.kept[lane], number)
        if lane is Lane.BULK:
            self._kept_bytes += size

    @property
    def owes_numbers(self) -> bool:
        """Has anything been kept that the other end has not been told?"""
        return self.phase is Phase.OPEN and self._told != self._numbers()

    @property
    def owes_credit(self) -> bool:
        """Is the other end likely to run out of credit soon?"""
        return self.phase is Phase.OPEN and self._kept_bytes + self.window - self._told[2] > (
            self.window // 4
        )

    def _numbers(self) -> tuple[int, int, int]:
        return (*self.kept.values(), self._kept_bytes + self.window)  # type: ignore[return-value]
