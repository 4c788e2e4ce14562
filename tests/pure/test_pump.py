"""A wire that is doubted gives a sign of life in time, or ends."""

from __future__ import annotations

from typing import Any

import pytest

from remoter_kernel.errors import Unreachable
from remoter_kernel.wire.frames import Kind, decode
from remoter_kernel.wire.pump import Pump
from remoter_kernel.wire.stream import Conversation, MemoryOutbox


class End:
    """One end of a wire: timers that somebody makes go off, and what it sends."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any]] = []
        self.sent: list[bytes] = []
        self.ended: list[str] = []
        self.talk = Conversation(MemoryOutbox())
        self.pump = Pump(self, self.talk, self.sent.append)  # type: ignore[arg-type]
        self.pump.on_end = lambda error: self.ended.append(str(error))

    def later(self, seconds: float, call: Any) -> Any:
        self.timers.append((seconds, call))
        return self

    def cancel(self) -> None:
        """Be a timer, too."""


def kinds(end: End) -> list[Kind]:
    """Return what kinds of sayings have been sent."""
    return [head.kind for frame in end.sent for head, _ in decode(frame)]


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_doubted_wire(*, is_alive: bool) -> None:
    """It is asked at once; a pong in time saves it, and nothing else does."""
    near, far = End(), End()
    for end in (near, far):
        end.talk.begin()
        end.pump.start((0, 0))
    near.sent.clear()
    near.pump.doubt(3.0)
    assert kinds(near) == [Kind.PING]
    seconds, judge = near.timers[-1]
    assert seconds == 3.0
    if is_alive:
        far.pump.hear(near.sent[0])
        assert kinds(far)[-1] is Kind.PONG
        near.pump.hear(far.sent[-1])
    judge()
    assert near.ended == ([] if is_alive else ["Nothing was heard for 3 seconds."])


def test_a_wire_that_was_dropped_at_its_greeting() -> None:
    """Nothing is said by it any more, and nobody looks after it."""
    end = End()
    end.talk.begin()
    end.pump.end(Unreachable("dropped"))
    end.pump.start((0, 0))
    assert not end.sent
    assert not end.timers
