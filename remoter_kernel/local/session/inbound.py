"""Hands on what comes of the session; what cannot be taken in is told, and passed over for good."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.protocol.frames import (
    LANE,
    Bytes,
    Channel,
    FrameHeader,
    Lane,
    from_json,
    unpack_parts,
)
from remoter_kernel.protocol.messages import TOPIC, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.local.session.iopub_pacer import AckCallback, IopubPacer
    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.stream import ReliableStream

RETRY_FIRST, RETRY_LAST = 0.002, 0.05  # seconds: have clients that took nothing begun to?
UNREADABLE = b'"unreadable"'  # the note in the place of what the session cannot read any more


class InboundTarget(Protocol):
    """Whoever takes things in (see `Link`)."""

    reactor: Reactor
    pacer: IopubPacer | None
    on_item: Callable[[Channel, list[memoryview]], None]
    on_rejected: Callable[[Channel, Sequence[Bytes], Exception], None]
    has_room: Callable[[], bool]  # do clients take what is handed on?

    def flush(self) -> None:
        """Tell the other end what has been taken in."""


class HeldItem(NamedTuple):
    """An item of the bulk lane that no client takes so far."""

    head: FrameHeader
    parts: list[memoryview]
    size: int


class InboundItems:
    """What comes of one conversation, by one wire after the other.

    While clients take nothing, what comes is held, and gives no credit: the session keeps the rest.
    """

    def __init__(self, target: InboundTarget, stream: ReliableStream) -> None:
        """Remember; `stream` hears what is kept."""
        self._target = target
        self._stream = stream
        self._held: deque[HeldItem] = deque()
        self._timer: Timer | None = None
        self._pause = RETRY_FIRST

    def on_connection(self) -> None:
        """Begin with another wire."""
        if self._target.pacer:
            self._target.pacer.on_rejected = self._report
            self._target.pacer.has_room = self._target.has_room

    def on_item(self, head: FrameHeader, body: Bytes) -> None:
        """Take in one item; one that no evaluator should have said is a `ProtocolError`."""
        channel, parts = head.channel, parts_of(head.channel, body)
        if channel is Channel.EVENT and UNREADABLE in bytes(parts[TOPIC]):
            why = from_json(parts[TOPIC]).get("why")
            self._report(channel, parts, RemoterError(str(why)))
        if LANE[channel] is Lane.URGENT:
            self._deliver(HeldItem(head, parts, len(body)))
        elif self._target.pacer:
            self._target.pacer.add(channel, parts, head.number, len(body), self._acknowledge(head))
        elif self._held or not self._target.has_room():
            self._held.append(HeldItem(head, parts, len(body)))
            self._retry_later()
        else:
            self._deliver(HeldItem(head, parts, len(body)))

    def deliver_all(self) -> None:
        """Hand on all that is held, though nobody takes it."""
        while self._held:
            self._deliver(self._held.popleft())

    def _retry_later(self) -> None:
        if self._timer is None:
            self._timer = self._target.reactor.call_later(self._pause, self._deliver_held)

    def _deliver_held(self) -> None:
        self._timer = None
        self._pause = min(2 * self._pause, RETRY_LAST)
        while self._held and self._target.has_room():
            self._pause = RETRY_FIRST
            self._deliver(self._held.popleft())
        if self._held:
            self._retry_later()
        self._target.flush()

    def _deliver(self, item: HeldItem) -> None:
        head, parts, size = item
        try:
            if parts:  # else it was refused, and is to be kept in its turn
                self._target.on_item(head.channel, parts)
        except Exception as error:  # noqa: BLE001 - what follows it is taken in all the same
            self._report(head.channel, parts, error)
        self._stream.ack(LANE[head.channel], head.number, size)

    def reject(self, head: FrameHeader, body: Bytes, error: Exception) -> None:
        """Pass over an item that `add` could not take in."""
        try:
            parts = unpack_parts(body)
        except ProtocolError:
            parts = []
        self._report(head.channel, parts, error)
        if self._held and LANE[head.channel] is Lane.BULK:
            self._held.append(HeldItem(head, [], len(body)))
        elif self._target.pacer and LANE[head.channel] is Lane.BULK:
            self._target.pacer.skip(head.number, len(body), self._acknowledge(head))
        else:
            self._stream.ack(LANE[head.channel], head.number, len(body))

    def _acknowledge(self, head: FrameHeader) -> AckCallback:
        return partial(self._stream.ack, LANE[head.channel])

    def _report(self, channel: Channel, parts: Sequence[Bytes], error: Exception) -> None:
        if not isinstance(error, RemoterError):
            self._target.reactor.on_bug(error)
        try:
            self._target.on_rejected(channel, parts, error)
        except Exception as bug:  # noqa: BLE001 - what is odd may be too odd to be told
            self._target.reactor.on_bug(bug)
