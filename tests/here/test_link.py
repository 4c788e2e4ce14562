"""A link at its greeting: what goes wrong there does not leave it up and unwatched, or deaf."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.local.session.link import Link, LinkState, _Connection
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    decode_messages,
    encode_message,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Calls:
    """A reactor whose timers nobody makes go off."""

    def __init__(self) -> None:
        self.timers: list[Any] = []

    def call_later(self, _seconds: float, call: Any) -> Any:
        self.timers.append(call)
        return SimpleNamespace(cancel=lambda: None, due=0.0)


class Greeted:
    """A link that has said HELLO, with a socket that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        dialer: Any = SimpleNamespace(on_no_welcome=lambda error: error)
        self.link = Link(Calls(), dialer)  # type: ignore[arg-type]
        self.link.on_state = self.note
        self.link.state = LinkState.DIALLING
        socket: Any = SimpleNamespace(send=lambda frame, _flags: self.sent.append(frame))
        self.link._connection = _Connection(None, socket)  # type: ignore[arg-type]
        self.link._conversation.stream.begin()
        self.drops = 0
        self.link._close_connection = self.drop  # type: ignore[method-assign]
        self.states: list[LinkState] = []
        self.trouble: Exception | None = None

    def note(self, state: LinkState) -> None:
        self.states.append(state)
        if self.trouble:
            raise self.trouble

    def drop(self) -> None:
        self.drops += 1

    def hear(self, seen: Any) -> None:
        words = {"seen": seen, "begin": [0, 0]}
        self.link._on_welcome(encode_message(FrameHeader(MessageType.WELCOME), to_json(words)))


@pytest.fixture
def greeted() -> Iterator[Greeted]:
    greeted = Greeted()
    yield greeted
    greeted.link._context.term()


def test_a_wire_is_looked_after_whatever_becomes_of_the_news(greeted: Greeted) -> None:
    """Who hears that it is up may stumble: the wire has its watch, and asks for a sign of life."""
    greeted.trouble = ValueError("a bug")
    greeted.link.send(Channel.SHELL, [b"", b"{}", b"{}", b"{}", b"{}"])
    with contextlib.suppress(ValueError):
        greeted.hear([0, 0])
    assert greeted.states == [LinkState.UP]
    kinds = [head.type for frame in greeted.sent for head, _ in decode_messages(frame)]
    assert kinds == [MessageType.ACK, MessageType.PING]
    pump = greeted.link._pump
    assert pump is not None
    assert pump._check_timer is not None


def test_what_was_confirmed_and_is_not_known_any_more_is_lost_there(greeted: Greeted) -> None:
    """The evaluator that greets now has seen less than the one before it had confirmed to keep."""
    link = greeted.link
    numbers = [link.send(Channel.SHELL, [b"", b"{}", b"{}", b"{}", b"{}"]) for _ in range(4)]
    link._conversation.stream._ever_sent[Lane.BULK] = numbers[2]
    link._conversation.outbox.ack(Lane.BULK, numbers[2])
    greeted.hear([numbers[0], 0])
    assert [link.is_lost_there(Channel.SHELL, each) for each in numbers] == [
        *(False, True, True),
        False,  # it is on its way
    ]
    assert link._connection is not None
    link._connection.pump = None
    greeted.hear([numbers[2], 0])
    assert not any(link.is_lost_there(Channel.SHELL, each) for each in numbers)


@pytest.mark.parametrize("seen", [[2, 0], [0, 2**62], [2**63, 0], ["inf", 0], [-1, 0], None, 5])
def test_a_greeting_that_cannot_be_true_is_refused(greeted: Greeted, seen: Any) -> None:
    """Up, nothing would ever be sent to it."""
    greeted.link.send(Channel.SHELL, [b"", b"{}", b"{}", b"{}", b"{}"])
    greeted.hear(seen)
    assert LinkState.UP not in greeted.states
    assert greeted.drops
    assert "greeting was refused" in str(greeted.link.error)
