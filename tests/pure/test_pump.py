"""A wire that is doubted gives a sign of life in time, or ends."""

from __future__ import annotations

from typing import Any

import pytest

from remoter_kernel.errors import ProtocolError, Unreachable
from remoter_kernel.protocol import link_connection
from remoter_kernel.protocol.frames import (
    LANE,
    Bytes,
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    decode_messages,
)
from remoter_kernel.protocol.link_connection import LinkConnection
from remoter_kernel.protocol.stream import MemoryOutbox, ReliableStream


class End:
    """One end of a wire: timers that somebody makes go off, and what it sends."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any]] = []
        self.sent: list[bytes] = []
        self.ended: list[str] = []
        self.stream = ReliableStream(MemoryOutbox())
        self.pump = LinkConnection(self, self.stream, self.sent.append)  # type: ignore[arg-type]
        self.pump.on_end = lambda error: self.ended.append(str(error))

    def call_later(self, seconds: float, call: Any) -> Any:
        self.timers.append((seconds, call))
        return self

    def cancel(self) -> None:
        """Be a timer, too."""


def kinds(end: End) -> list[MessageType]:
    """Return what kinds of sayings have been sent."""
    return [head.type for frame in end.sent for head, _ in decode_messages(frame)]


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_doubted_wire(*, is_alive: bool) -> None:
    """It is asked at once; a pong in time saves it, and nothing else does."""
    near, far = End(), End()
    for end in (near, far):
        end.stream.begin()
        end.pump.start((0, 0))
    near.sent.clear()
    near.pump.probe(3.0)
    assert kinds(near) == [MessageType.PING]
    seconds, judge = near.timers[-1]
    assert seconds == 3.0
    if is_alive:
        far.pump.on_frame(near.sent[0])
        assert kinds(far)[-1] is MessageType.PONG
        near.pump.on_frame(far.sent[-1])
    judge()
    assert near.ended == ([] if is_alive else ["Nothing was heard for 3 seconds."])


def test_a_wire_that_was_dropped_at_its_greeting() -> None:
    """Nothing is said by it any more, and nobody looks after it."""
    end = End()
    end.stream.begin()
    end.pump.end(Unreachable("dropped"))
    end.pump.start((0, 0))
    assert not end.sent
    assert not end.timers


class Wires:
    """Two ends with one wire after the other; one of them cannot take in some of what it hears."""

    def __init__(self, trouble: Exception) -> None:
        self.near, self.far = End(), End()
        self.trouble = trouble
        self.taken: list[bytes] = []
        self.refused: list[tuple[int, str]] = []
        self.dials = 0
        self.dial()

    def dial(self) -> None:
        self.dials += 1
        for end in (self.near, self.far):
            end.sent.clear()
            end.stream.begin()
            end.pump = LinkConnection(end, end.stream, end.sent.append)  # type: ignore[arg-type]
            end.pump.on_end = end.ended.append  # type: ignore[assignment]
        self.far.pump.on_item = self.take
        self.far.pump.on_refused = self.refuse
        for end, other in ((self.near, self.far), (self.far, self.near)):
            seen = other.stream.received
            end.pump.start((seen[Lane.BULK], seen[Lane.URGENT]))

    def take(self, head: FrameHeader, body: Bytes) -> None:
        if bytes(body).startswith(b"poison"):
            raise self.trouble
        self.taken.append(bytes(body))
        self.keep(head, body)

    def refuse(self, head: FrameHeader, body: Bytes, error: Exception) -> None:
        self.refused.append((head.number, str(error)))
        self.keep(head, body)

    def keep(self, head: FrameHeader, body: Bytes) -> None:
        self.far.stream.ack(LANE[head.channel], head.number, len(body))

    def settle(self) -> None:
        """Carry what is said, and dial again whenever a wire has ended."""
        for _ in range(1000):
            if self.near.ended or self.far.ended:
                self.near.ended.clear()
                self.far.ended.clear()
                self.dial()
            near, far = self.near.sent[:], self.far.sent[:]
            if not (near or far):
                return
            self.near.sent.clear()
            self.far.sent.clear()
            for frame in near:
                self.far.pump.on_frame(frame)
            for frame in far:
                self.near.pump.on_frame(frame)
            self.far.pump.send_ack()


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize(
    ("trouble", "dials"), [(ValueError("a bug"), 1), (ProtocolError("no sense"), 2)]
)
def test_what_cannot_be_taken_in_is_passed_over_once(
    trouble: Exception, dials: int, size: int
) -> None:
    """It is told; all before and behind it comes in order; credit for its bytes comes back.

    If the other end should not have said it, that wire ends, and no other does for the same item.
    """
    wires = Wires(trouble)
    said = [b"%d" % number + b"x" * size for number in range(20)]
    poisons = {3: b"poison" + b"y" * size}
    for number, body in enumerate(said):
        wires.near.stream.outbox.add(Channel.SHELL, poisons.get(number, body))  # type: ignore[attr-defined]
    wires.near.pump.flush()
    wires.settle()
    assert wires.taken == [body for number, body in enumerate(said) if number not in poisons]
    assert wires.refused == [(4, str(trouble))]
    assert wires.dials == dials
    assert len(wires.near.stream.outbox) == 0  # type: ignore[arg-type]
    far = wires.far.stream._connection
    assert far.acked_bytes == far.received_bytes


def test_what_cannot_be_read_ends_its_wire_and_what_was_read_before_it_goes() -> None:
    """A disk may give a record a moment later; whoever waits for the rest is not forgotten."""
    end = End()
    end.stream.begin()
    end.pump.start((0, 0))
    end.stream.receive(FrameHeader(MessageType.ACK, credit=1000), b"")
    end.stream.outbox.add(Channel.SHELL, b"before")  # type: ignore[attr-defined]
    read = end.stream.outbox.next_after

    def fail_at(lane: Lane, number: int) -> Any:
        if number:
            raise ProtocolError("Record 2 cannot be read.")
        return read(lane, number)

    end.stream.outbox.next_after = fail_at  # type: ignore[method-assign]
    end.sent.clear()
    end.pump.flush()
    assert kinds(end) == [MessageType.ITEM, MessageType.BYE]
    assert end.ended == ["Record 2 cannot be read."]


def test_much_that_is_due_is_sent_bit_by_bit() -> None:
    """Whoever else lives in this process gets a turn in between; all of it goes, in order."""
    end = End()
    end.stream.begin()
    end.pump.start((0, 0))
    end.stream.receive(FrameHeader(MessageType.ACK, credit=10**9), b"")
    count = 3 * link_connection.MOST_AT_ONCE + 1
    for number in range(count):
        end.stream.outbox.add(Channel.SHELL, b"%d" % number)  # type: ignore[attr-defined]
    sent: list[int] = []
    go_on: Any = end.pump.flush
    while go_on:
        end.sent.clear()
        end.timers.clear()
        go_on()
        said = [
            head.number for frame in end.sent for head, _ in decode_messages(frame) if head.number
        ]
        assert len(said) <= link_connection.MOST_AT_ONCE
        sent += said
        go_on = next((call for seconds, call in end.timers if seconds == 0.0), None)
    assert sent == list(range(1, count + 1))


def test_a_large_amount_that_is_due_is_sent_bit_by_bit() -> None:
    """A few large things hold up others no longer than many small ones."""
    end = End()
    end.stream.begin()
    end.pump.start((0, 0))
    end.stream.receive(FrameHeader(MessageType.ACK, credit=10**9), b"")
    end.stream.outbox.add(Channel.SHELL, bytes(3 * link_connection.MOST_BYTES_AT_ONCE))  # type: ignore[attr-defined]
    end.pump.flush()
    assert sum(map(len, end.sent)) < 1.1 * link_connection.MOST_BYTES_AT_ONCE
