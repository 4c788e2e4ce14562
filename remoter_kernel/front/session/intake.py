"""Hands on what comes of the session; what cannot be taken in is told, and passed over for good."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.wire.frames import (
    LANE,
    Bytes,
    Channel,
    FrameHeader,
    Lane,
    from_json,
    unpack_parts,
)
from remoter_kernel.wire.messages import TOPIC, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.front.session.pacer import Keep, Pacer
    from remoter_kernel.wire.reactor import Reactor, Timer
    from remoter_kernel.wire.stream import ReliableStream

LOOK_FIRST, LOOK_LAST = 0.002, 0.05  # seconds: have clients that took nothing begun to?
UNREADABLE = b'"unreadable"'  # the note in the place of what the session cannot read any more


class Taker(Protocol):
    """Whoever takes things in (see `Link`)."""

    reactor: Reactor
    pacer: Pacer | None
    on_item: Callable[[Channel, list[memoryview]], None]
    on_refused: Callable[[Channel, Sequence[Bytes], Exception], None]
    has_room: Callable[[], bool]  # do clients take what is handed on?

    def flush(self) -> None:
        """Tell the other end what has been taken in."""


class Held(NamedTuple):
    """An item of the bulk lane that no client takes so far."""

    head: FrameHeader
    parts: list[memoryview]
    size: int


class Intake:
    """What comes of one conversation, by one wire after the other.

    While clients take nothing, what comes is held, and gives no credit: the session keeps the rest.
    """

    def __init__(self, taker: Taker, talk: ReliableStream) -> None:
        """Remember; `talk` hears what is kept."""
        self._taker = taker
        self._talk = talk
        self._held: deque[Held] = deque()
        self._timer: Timer | None = None
        self._pause = LOOK_FIRST

    def begin(self) -> None:
        """Begin with another wire."""
        if self._taker.pacer:
            self._taker.pacer.on_refused = self._tell
            self._taker.pacer.has_room = self._taker.has_room

    def take(self, head: FrameHeader, body: Bytes) -> None:
        """Take in one item; one that no evaluator should have said is a `ProtocolError`."""
        channel, parts = head.channel, parts_of(head.channel, body)
        if channel is Channel.EVENT and UNREADABLE in bytes(parts[TOPIC]):
            why = from_json(parts[TOPIC]).get("why")
            self._tell(channel, parts, RemoterError(str(why)))
        if LANE[channel] is Lane.URGENT:
            self._hand_on(Held(head, parts, len(body)))
        elif self._taker.pacer:
            self._taker.pacer.take(channel, parts, head.number, len(body), self._keep(head))
        elif self._held or not self._taker.has_room():
            self._held.append(Held(head, parts, len(body)))
            self._look_again()
        else:
            self._hand_on(Held(head, parts, len(body)))

    def finish(self) -> None:
        """Hand on all that is held, though nobody takes it."""
        while self._held:
            self._hand_on(self._held.popleft())

    def _look_again(self) -> None:
        if self._timer is None:
            self._timer = self._taker.reactor.later(self._pause, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self._pause = min(2 * self._pause, LOOK_LAST)
        while self._held and self._taker.has_room():
            self._pause = LOOK_FIRST
            self._hand_on(self._held.popleft())
        if self._held:
            self._look_again()
        self._taker.flush()

    def _hand_on(self, item: Held) -> None:
        head, parts, size = item
        try:
            if parts:  # else it was refused, and is to be kept in its turn
                self._taker.on_item(head.channel, parts)
        except Exception as error:  # noqa: BLE001 - what follows it is taken in all the same
            self._tell(head.channel, parts, error)
        self._keep(head)(head.number, size)

    def refuse(self, head: FrameHeader, body: Bytes, error: Exception) -> None:
        """Pass over an item that `take` could not take in."""
        try:
            parts = unpack_parts(body)
        except ProtocolError:
            parts = []
        self._tell(head.channel, parts, error)
        if self._held and LANE[head.channel] is Lane.BULK:
            self._held.append(Held(head, [], len(body)))
        elif self._taker.pacer and LANE[head.channel] is Lane.BULK:
            self._taker.pacer.pass_over(head.number, len(body), self._keep(head))
        else:
            self._keep(head)(head.number, len(body))

    def _keep(self, head: FrameHeader) -> Keep:
        return partial(self._talk.keep, LANE[head.channel])

    def _tell(self, channel: Channel, parts: Sequence[Bytes], error: Exception) -> None:
        if not isinstance(error, RemoterError):
            self._taker.reactor.on_bug(error)
        try:
            self._taker.on_refused(channel, parts, error)
        except Exception as bug:  # noqa: BLE001 - what is odd may be too odd to be told
            self._taker.reactor.on_bug(bug)
