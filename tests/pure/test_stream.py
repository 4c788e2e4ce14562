"""Two real ends of a conversation, and a pipe between them that does its worst."""

from __future__ import annotations

import sys
from collections import deque
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from remoter_kernel.errors import Overrun, ProtocolError
from remoter_kernel.protocol.frames import LANE, Channel, FrameHeader, Lane, MessageType
from remoter_kernel.protocol.stream import MemoryOutbox, Phase, ReliableStream

WINDOW = 40  # bytes: small, so that credit runs out
SLICE = 13  # bytes: smaller than most items


class End:
    """One end, and what it has taken, in order."""

    def __init__(self) -> None:
        self.outbox = MemoryOutbox()
        self.talk = ReliableStream(self.outbox, WINDOW, SLICE)
        self.taken: dict[Lane, list[bytes]] = {lane: [] for lane in Lane}
        self.unkept: deque[tuple[Lane, int, int]] = deque()

    def hear(self, head: FrameHeader, body: bytes) -> None:
        whole = self.talk.receive(head, body)
        if whole is not None:
            lane = LANE[head.channel]
            self.taken[lane].append(bytes(whole))
            self.unkept.append((lane, head.number, len(whole)))

    def keep(self) -> None:
        while self.unkept:
            self.talk.ack(*self.unkept.popleft())


class Pipe:
    """Two wires, one each way; a cut loses what is on them."""

    def __init__(self) -> None:
        self.ends = (End(), End())
        self.wires: tuple[deque, deque] = (deque(), deque())
        self.dial()

    def dial(self) -> None:
        for wire in self.wires:
            wire.clear()
        for end in self.ends:
            end.talk.begin()
        for end, other in (self.ends, self.ends[::-1]):
            end.talk.open((other.talk.received[Lane.BULK], other.talk.received[Lane.URGENT]))
            self.say_numbers(other)

    def say_numbers(self, end: End) -> None:
        self.wires[self.ends.index(end)].append((end.talk.head(MessageType.ACK), b""))

    def pump(self, end: End) -> None:
        self.wires[self.ends.index(end)].extend(end.talk.frames_to_send())

    def deliver(self, end: End, count: int) -> None:
        wire = self.wires[1 - self.ends.index(end)]
        for _ in range(min(count, len(wire))):
            end.hear(*wire.popleft())

    def do(self, deed: str, end: End, amount: int) -> None:
        """Do one of the things that happen to wires."""
        deeds = {
            "pump": lambda: self.pump(end),
            "deliver": lambda: self.deliver(end, amount),
            "keep": end.keep,
            "numbers": lambda: self.say_numbers(end),
            "cut": self.dial,
            "repeat": lambda: self.repeat(end),
        }
        deeds[deed]()

    def repeat(self, end: End) -> None:
        """Put what is on the way there twice."""
        wire = self.wires[self.ends.index(end)]
        wire.extend(list(wire))

    def settle(self) -> None:
        for _ in range(10_000):
            if not any(len(end.outbox) for end in self.ends):
                return
            for end in self.ends:
                self.pump(end)
                end.keep()
                self.say_numbers(end)
                self.deliver(end, 10_000)


deeds = some.lists(
    some.tuples(
        some.sampled_from(
            ["say", "say", "say", "pump", "deliver", "keep", "numbers", "cut", "repeat"]
        ),
        some.integers(0, 1),
        some.sampled_from([Channel.SHELL, Channel.CONTROL]),
        some.integers(0, 60),
    ),
    min_size=40,  # short stories have no plot
    max_size=160,
)


@settings(max_examples=150, deadline=None)
@given(deeds)
def test_everything_arrives_once_and_in_order_whatever_happens_to_wires(deeds):
    """Cuts, repeats, delays and a small credit change nothing in what is taken."""
    pipe = Pipe()
    said = {end: {lane: [] for lane in Lane} for end in pipe.ends}
    for deed, which, channel, amount in deeds:
        end = pipe.ends[which]
        if deed == "say":
            body = b"%d " % len(said[end][LANE[channel]]) + b"x" * amount
            end.outbox.add(channel, body)
            said[end][LANE[channel]].append(body)
        else:
            pipe.do(deed, end, amount)
        for one in pipe.ends:
            for lane in Lane:
                assert one.talk.acked[lane] <= one.talk.received[lane]
    pipe.settle()
    for end, other in (pipe.ends, pipe.ends[::-1]):
        assert other.taken == said[end]
        assert len(end.outbox) == 0


@given(some.lists(some.integers(1, 30), min_size=1))
def test_bulk_stops_where_credit_ends_and_urgent_does_not(sizes):
    """No more than one slice beyond the credit is on its way; urgent items all are."""
    pipe = Pipe()
    pipe.deliver(pipe.ends[0], 10)
    for size in sizes:
        pipe.ends[0].outbox.add(Channel.SHELL, b"x" * size)
        pipe.ends[0].outbox.add(Channel.CONTROL, b"!")
    sent = list(pipe.ends[0].talk.frames_to_send())
    bulk = sum(len(body) for head, body in sent if head.channel is Channel.SHELL)
    assert bulk < WINDOW + SLICE
    assert sum(head.channel is Channel.CONTROL for head, _ in sent) == len(sizes)


@given(some.binary(min_size=SLICE + 1, max_size=1000))
def test_an_item_larger_than_all_credit_comes_whole(body):
    """Slices are credited as they come, so that the largest item ends, too."""
    pipe = Pipe()
    pipe.ends[0].outbox.add(Channel.SHELL, body)
    pipe.settle()
    assert pipe.ends[1].taken[Lane.BULK] == [body]


def test_another_item_in_the_middle_of_one_ends_the_wire():
    """Slices of two items of one lane are never mixed."""
    end = End()
    end.talk.begin()
    end.talk.open((0, 0))
    end.hear(FrameHeader(MessageType.PART, Channel.SHELL, 1, 0), b"")
    with pytest.raises(ProtocolError):
        end.hear(FrameHeader(MessageType.ITEM, Channel.SHELL, 2, 0), b"")


def test_urgent_items_carry_the_last_bulk_item_they_overtook():
    """An interrupt knows which request it was meant for."""
    outbox = MemoryOutbox()
    outbox.add(Channel.SHELL, b"cell")
    cell = outbox.last
    number = outbox.add(Channel.COMMAND, b"interrupt")
    entry = outbox.next_after(Lane.URGENT, 0)
    assert entry is not None
    assert (entry.number, entry.barrier) == (number, cell)


def test_whoever_has_said_something_hears_once_that_it_is_kept():
    """What is taken back, or was never kept, is not heard of."""
    outbox, kept = MemoryOutbox(), []
    numbers = [outbox.add(Channel.SHELL, b"", partial(kept.append, name)) for name in "abcd"]
    outbox.add(Channel.CONTROL, b"", partial(kept.append, "urgent"))
    assert outbox.withdraw(numbers[1])
    for _ in range(2):
        outbox.ack(Lane.BULK, numbers[2])
        assert kept == ["a", "c"]


def test_a_gap_that_nobody_announced_ends_the_wire():
    """An item that follows something unseen is a ProtocolError, not a silent loss."""
    end = End()
    end.talk.begin()
    end.talk.open((0, 0))
    end.hear(FrameHeader(MessageType.ITEM, Channel.SHELL, 1, 0), b"")
    end.hear(FrameHeader(MessageType.ITEM, Channel.SHELL, 5, 1), b"")  # a gap that was meant
    with pytest.raises(ProtocolError):
        end.hear(FrameHeader(MessageType.ITEM, Channel.SHELL, 9, 7), b"")


@pytest.mark.parametrize("kind", list(MessageType))
def test_nothing_but_a_greeting_may_come_before_the_greeting(kind):
    """What may be said in which phase is a table."""
    end = End()
    end.talk.begin()
    assert end.talk.phase is Phase.GREETING
    if kind in {MessageType.HELLO, MessageType.WELCOME, MessageType.BYE}:
        end.hear(FrameHeader(kind), b"")
    else:
        with pytest.raises(ProtocolError):
            end.hear(FrameHeader(kind), b"")


def test_what_never_left_can_be_withdrawn():
    """A request that was sent on any wire may have run; one that was not has not."""
    pipe = Pipe()
    end = pipe.ends[0]
    pipe.deliver(end, 10)
    first = end.outbox.add(Channel.SHELL, b"1")
    pipe.pump(end)
    second = end.outbox.add(Channel.SHELL, b"2")
    assert end.talk.was_sent(Lane.BULK, first)
    assert not end.talk.was_sent(Lane.BULK, second)
    assert end.outbox.withdraw(second)
    assert not end.outbox.withdraw(second)


def test_credit_is_never_taken_back():
    """A window that narrows gives less from now on; what was given stays given."""
    end = End()
    end.talk.begin()
    end.talk.open((0, 0))
    credit = end.talk.head(MessageType.ACK).credit
    end.talk.window.size //= 2
    assert end.talk.head(MessageType.ACK).credit == credit


heads = some.builds(
    FrameHeader,
    some.sampled_from(MessageType),
    some.sampled_from(Channel),
    *[some.integers(0, 3) | some.integers(0, 2**64 - 1) for _ in range(7)],
)


@settings(max_examples=150, deadline=None)
@given(some.lists(some.tuples(heads, some.binary(max_size=200)), max_size=60))
def test_whatever_is_said_is_taken_or_ends_the_wire_and_what_is_held_is_bounded(sayings):
    """Nothing but a ProtocolError, no item beyond the largest, no bytes beyond the credit."""
    talk = ReliableStream(MemoryOutbox(), WINDOW, SLICE, most_item=500)
    talk.begin()
    talk.open((0, 0))
    talk.head(MessageType.ACK)
    taken = 0
    for head, body in sayings:
        try:
            whole = talk.receive(head, body)
        except ProtocolError:
            break
        if whole is not None:
            assert len(whole) <= 500
            taken += len(whole) * (LANE[head.channel] is Lane.BULK)
        assert all(len(half) <= 500 for _, half in talk._connection.partial_in.values())
    held = sum(len(half) for _, half in talk._connection.partial_in.values())
    assert held <= 2 * 500
    # What was heard in slices gives new credit, so that of each item only its end counts.
    assert taken <= WINDOW + 200 + 500 * len(sayings)


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL])
def test_an_item_that_is_too_large_ends_the_wire_for_good(channel):
    """In either lane, whole or in slices; it is not tried again by itself."""
    end = End()
    end.talk.most_item = 50
    end.talk.begin()
    end.talk.open((0, 0))
    end.talk.head(MessageType.ACK)
    end.hear(FrameHeader(MessageType.PART, channel, 1, 0), b"x" * 30)
    with pytest.raises(Overrun) as caught:
        end.hear(FrameHeader(MessageType.ITEM, channel, 1, 0, offset=30), b"x" * 21)
    assert not caught.value.worth_retrying


def test_more_than_there_is_credit_for_ends_the_wire_for_good():
    """One slice beyond it is what an honest end may send, and nothing after that."""
    end = End()
    end.talk.begin()
    end.talk.open((0, 0))
    credit = end.talk.head(MessageType.ACK).credit
    end.hear(FrameHeader(MessageType.ITEM, Channel.SHELL, 1, 0), b"x" * (credit - 1))
    end.hear(FrameHeader(MessageType.ITEM, Channel.SHELL, 2, 1), b"x" * SLICE)
    with pytest.raises(Overrun):
        end.hear(FrameHeader(MessageType.ITEM, Channel.SHELL, 3, 2), b"x")


class Counted(int):
    """A number that counts how often it is compared."""

    count = 0

    def _compare(self, compare: str, other: object) -> bool:
        Counted.count += 1
        return bool(getattr(int, compare)(int(self), other))

    def __lt__(self, other: object) -> bool:
        return self._compare("__lt__", other)

    def __gt__(self, other: object) -> bool:
        return self._compare("__gt__", other)

    def __eq__(self, other: object) -> bool:
        return self._compare("__eq__", other)

    __hash__ = int.__hash__


def test_what_waits_is_found_without_looking_at_all_that_waits():
    """Ten thousand requests while the link is down: each is found, and taken back, in few steps."""
    outbox, count = MemoryOutbox(), 10_000
    for _ in range(count):
        outbox.add(Channel.SHELL, b"")
    number = 0
    while entry := outbox.next_after(Lane.BULK, Counted(number)):
        number = entry.number
    assert number == count
    assert Counted.count < 20 * count
    Counted.count = 0
    for number in range(count // 2, 0, -1):
        assert outbox.withdraw(Counted(number))
    outbox.ack(Lane.BULK, Counted(count))
    assert len(outbox) == 0
    assert Counted.count < 20 * count


def steps(slices: int) -> int:
    """Return how many steps it takes to take in an item of so many slices."""
    end, count = End(), 0
    end.talk.begin()
    end.talk.open((0, 0))
    end.talk._connection.granted_credit = 10**9

    def note(_frame: object, _event: str, _argument: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        for number in range(slices):
            kind = MessageType.ITEM if number == slices - 1 else MessageType.PART
            end.hear(FrameHeader(kind, Channel.SHELL, 1, 0, offset=number * SLICE), b"x" * SLICE)
    finally:
        sys.setprofile(None)
    assert [len(body) for body in end.taken[Lane.BULK]] == [slices * SLICE]
    return count


def test_each_slice_of_an_item_costs_the_same():
    """However many of them are there already."""
    assert steps(1000) < 11 * steps(100)


def test_who_keeps_nothing_gets_no_more_than_its_credit():
    """Also of items that come in slices, each of which gave credit while it was not whole."""
    pipe = Pipe()
    near, far = pipe.ends
    for _ in range(50):
        near.outbox.add(Channel.SHELL, b"x" * (2 * SLICE + 1))
    for _ in range(200):
        pipe.pump(near)
        pipe.deliver(far, 1000)
        pipe.say_numbers(far)
        pipe.deliver(near, 1000)
    held = sum(map(len, far.taken[Lane.BULK])) + sum(
        len(half) for _, half in far.talk._connection.partial_in.values()
    )
    assert held <= WINDOW + 4 * SLICE
    pipe.settle()
    assert len(far.taken[Lane.BULK]) == 50
