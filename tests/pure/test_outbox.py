"""A proxy's view of a journal, over wires that are cut: nothing twice, nothing lost, less bytes."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as some

from remoter_kernel.evaluator.outbox import ClientOutbox
from remoter_kernel.protocol.frames import Channel, Lane, MessageType, pack_parts, unpack_parts
from remoter_kernel.protocol.stream import MemoryOutbox, ReliableStream
from tests.pure.test_output_backlog import Page, messages, stream

FRONT, ANOTHER, EVERYONE = b"front---", b"another-", bytes(8)


class Book:
    """A journal that is only a list; every third number was never given."""

    def __init__(self) -> None:
        self.last = 0
        self.records: dict[int, tuple[bytes, Channel, bytes]] = {}
        self.unreadable: dict[int, str] = {}

    def append(self, channel: Channel, body: bytes, front: bytes = EVERYONE) -> int:
        self.last += 1 + (self.last % 3 == 0)
        self.records[self.last] = (front, channel, body)
        return self.last

    def after(self, number: int):
        return (each for each in list(self.records) if each > number)

    def entries_for(self, client: bytes, number: int):
        for each in self.after(number):
            channel = self.channel_for(client, each)
            if channel is not None:
                yield each, channel

    def channel_for(self, front: bytes, number: int) -> Channel | None:
        whose, channel, _ = self.records[number]
        return channel if whose in (EVERYONE, front) else None

    def body(self, number: int) -> bytes:
        return self.records[number][2]


class SlowBook(Book):
    """It has nothing in memory: what is asked for comes with `read`, and goes with the next."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: set[int] = set()
        self.at_hand: set[int] = set()

    def body(self, number: int) -> bytes | None:  # type: ignore[override]
        if number in self.at_hand:
            return super().body(number)
        self.wanted.add(number)
        return None

    def read(self) -> None:
        self.at_hand, self.wanted = self.wanted, set()


class Pair:
    """An evaluator's end with that outbox, and a proxy's."""

    def __init__(
        self,
        most: int = 10**6,
        window: int = 400,
        slowness: float = 0.0,
        book: Book | None = None,
    ) -> None:
        self.now = 0.0
        self.slowness = slowness  # seconds that go by from one look at the clock to the next
        self.book = book or Book()
        self.outbox = ClientOutbox(
            self.book,  # type: ignore[arg-type]
            FRONT,
            most_waiting=most,
            clock=self.clock,
        )
        self.there = ReliableStream(self.outbox, slice_size=150)
        self.here = ReliableStream(MemoryOutbox(), window)
        self.wire: deque = deque()
        self.page = Page()
        self.replies: list[bytes] = []
        self.bytes = 0
        self.is_up = False
        self.dial()

    def clock(self) -> float:
        self.now += self.slowness
        return self.now

    def dial(self) -> None:
        self.wire.clear()
        self.is_up = True
        for end in (self.here, self.there):
            end.begin()
        self.here.open((0, 0))
        self.there.open((self.here.received[Lane.BULK], self.here.received[Lane.URGENT]))
        self.credit()

    def cut(self) -> None:
        self.wire.clear()
        self.is_up = False
        self.there.close()

    def credit(self) -> None:
        if self.is_up:
            self.there.receive(self.here.head(MessageType.ACK), b"")

    def flush(self) -> None:
        for head, body in self.there.frames_to_send():
            self.bytes += len(body)
            self.wire.append((head, body))
        self.outbox.scan(is_connected=self.is_up)

    def read(self) -> None:
        if isinstance(self.book, SlowBook):
            self.book.read()
            self.outbox.scan(is_connected=self.is_up)

    def is_reading(self) -> bool:
        return isinstance(self.book, SlowBook) and bool(self.book.wanted)

    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            head, body = self.wire.popleft()
            whole = self.here.receive(head, body)
            if whole is None:
                continue
            parts = [bytes(part) for part in unpack_parts(whole)]
            if head.channel is Channel.IOPUB:
                self.page.hear(parts)
            else:
                self.replies.append(parts[0])
            self.here.ack(Lane.BULK, head.number, len(whole))

    def settle(self) -> None:
        if not self.is_up:
            self.dial()
        for _ in range(10_000):
            self.credit()
            was_looking = self.outbox.is_scanning or self.is_reading()
            self.read()
            self.flush()
            if not (self.wire or was_looking or self.outbox.is_scanning or self.is_reading()):
                return
            self.deliver(10)


deeds = some.lists(
    some.tuples(
        some.sampled_from(
            ["flush", "flush", "deliver", "credit", "cut", "dial", "wait", "reply", "read"]
        ),
        some.integers(1, 5),
    ),
    min_size=60,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    some.lists(messages, min_size=3, max_size=3),
    deeds,
    some.sampled_from([0.0, 0.02]),
    some.sampled_from([Book, SlowBook]),
)
def test_a_page_ends_as_it_would_have_whatever_happens_to_wires(stories, doings, slowness, kind):
    """Cuts, little credit, long waits and a slow disk change nothing of what is seen at the end."""
    pair, whole = Pair(slowness=slowness, book=kind()), Page()
    said = [parts for story in stories for parts in story]
    replies = []
    for number, (deed, amount) in enumerate(doings):
        for parts in said[number::60]:
            whole.hear(parts)
            pair.book.append(Channel.IOPUB, pack_parts(parts))
            pair.book.append(Channel.SHELL, b"not for us", ANOTHER)
        if deed == "reply":
            replies.append(b"%d" % number)
            pair.book.append(Channel.SHELL, pack_parts([replies[-1]]), FRONT)
        elif deed == "wait":
            pair.now += amount
        elif deed == "deliver":
            pair.deliver(amount)
        elif deed != "dial" or not pair.is_up:
            getattr(pair, deed)()
    pair.settle()
    assert pair.page.seen() == whole.seen()
    assert pair.replies == replies


def test_while_the_link_keeps_up_everything_goes_as_it_is():
    """What waits for less than a moment is not touched, however much it is."""
    pair = Pair(window=700)
    for number in range(1000):
        pair.book.append(Channel.IOPUB, pack_parts(stream(f"\r{number}")))
        pair.flush()
        if number % 5 == 0:
            pair.deliver(100)
            pair.credit()
            pair.now += 0.2
    pair.settle()
    assert pair.page.outputs["one"] == [["stdout", "".join(f"\r{n}" for n in range(1000))]]


def test_what_waits_for_a_moment_goes_as_it_is_and_what_waits_for_longer_does_not():
    """A bar whose credit comes late by less than two seconds is whole; later it is its end."""
    for seconds, shown in ((1.5, "".join(f"\r{n:5}" for n in range(50))), (2.5, "\r   49")):
        pair = Pair()
        pair.flush()
        for number in range(50):
            pair.book.append(Channel.IOPUB, pack_parts(stream(f"\r{number:5}")))
        pair.flush()
        pair.now += seconds
        pair.settle()
        ((_, text),) = pair.page.outputs["one"]
        assert text.endswith(shown)
        assert (len(text) == 50 * 6) == (seconds < 2)


def test_an_outage_is_told_in_its_last_words():
    """A bar that went on while nobody listened comes as one message."""
    pair = Pair()
    pair.settle()
    pair.cut()
    size = 0
    for number in range(1000):
        body = pack_parts(stream(f"\r{number:5} of 1000"))
        size += len(body)
        pair.book.append(Channel.IOPUB, body)
        pair.outbox.scan(is_connected=False)
    pair.bytes = 0
    pair.settle()
    assert pair.page.outputs["one"] == [["stdout", "\r  999 of 1000"]]
    assert pair.bytes < size / 20


def test_a_night_of_output_is_looked_at_bit_by_bit():
    """However much waits: others get their turn in between, and one look decides for all of it."""
    pair = Pair(most=200_000, slowness=0.005)
    pair.settle()
    pair.cut()
    lines = [f"line {number:5} {'of the night ' * 80}\n" for number in range(1000)]
    for line in lines:
        pair.book.append(Channel.IOPUB, pack_parts(stream(line)))
    pair.outbox.scan(is_connected=False)
    pair.dial()
    looks = 0
    while pair.outbox.is_scanning:
        looks += 1
        assert not pair.wire
        pair.flush()
    assert looks > 20
    pair.settle()
    head, note, tail = (text for _, text in pair.page.outputs["one"])
    assert "held back" in note
    assert "".join(lines).startswith(head)
    assert "".join(lines).endswith(tail)
    assert 60_000 < len(head) < 70_000
    assert len(tail) < 200_000


def test_an_interrupt_lets_little_through_at_once():
    """What waits of a cell is cut down though it has not waited long, and its end comes."""
    pair = Pair()
    pair.flush()
    for number in range(2000):
        pair.book.append(Channel.IOPUB, pack_parts(stream(f"{number} {'x' * 100}\n")))
    pair.flush()
    pair.outbox.limit_text(["one"])
    pair.book.append(Channel.SHELL, pack_parts([b"reply"]), FRONT)
    pair.settle()
    text = "".join(said for _, said in pair.page.outputs["one"])
    assert text.endswith(f"1999 {'x' * 100}\n")
    assert "held back" in text
    assert pair.bytes < 80_000
    assert pair.replies == [b"reply"]


def test_a_front_that_was_never_asked_for_is_not_looked_after():
    """A proxy known by name alone costs nothing until it comes."""
    outbox = ClientOutbox(Book(), FRONT)  # type: ignore[arg-type]
    outbox.scan(is_connected=False)
    outbox.limit_text(["one"])
    assert not outbox._is_lagging


def test_a_front_that_was_away_for_long_gets_the_end():
    """After hours without a wire all that was missed is looked at when the proxy is back."""
    pair = Pair(most=100_000)
    pair.settle()
    pair.cut()
    for number in range(3000):
        pair.now += 5
        pair.book.append(Channel.IOPUB, pack_parts(stream(f"{number} {'x' * 100}\n")))
        pair.outbox.scan(is_connected=False)
    assert not pair.outbox._backlog
    pair.settle()
    text = "".join(said for _, said in pair.page.outputs["one"])
    assert text.endswith(f"2999 {'x' * 100}\n")
    assert len(text) < 101_000
