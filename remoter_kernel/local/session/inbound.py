"""Hands on what the session sends; what cannot be handed on is reported, and dropped for good."""

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

RETRY_FIRST, RETRY_LAST = 0.002, 0.05  # seconds between two looks at clients that took nothing
# The event in the place of a journal entry that the evaluator cannot read any more.
UNREADABLE = b'"unreadable"'


class InboundTarget(Protocol):
    """Whoever items are handed to (see `Link`)."""

    reactor: Reactor
    pacer: IopubPacer | None
    on_item: Callable[[Channel, list[memoryview]], None]
    on_rejected: Callable[[Channel, Sequence[Bytes], Exception], None]
    has_room: Callable[[], bool]  # do clients take what is handed on?

    def flush(self) -> None:
        """Send the acknowledgements that are due."""


class HeldItem(NamedTuple):
    """An item of the bulk lane that no client takes so far."""

    head: FrameHeader
    parts: list[memoryview]  # empty: it was rejected, and waits only for its acknowledgement
    size: int  # bytes


class InboundItems:
    """The items of one conversation, over one connection after the other.

    While clients take nothing, items are held, and give no credit: the session keeps the rest.
    """

    def __init__(self, target: InboundTarget, stream: ReliableStream) -> None:
        self._target = target
        self._stream = stream
        self._held: deque[HeldItem] = deque()
        self._timer: Timer | None = None
        self._pause = RETRY_FIRST

    def on_connection(self) -> None:
        """Use the pacer that the target has by now: it knows only after the first WELCOME."""
        if self._target.pacer:
            self._target.pacer.on_rejected = self._report
            self._target.pacer.has_room = self._target.has_room

    def on_item(self, head: FrameHeader, body: Bytes) -> None:
        """Hand on one item, or hold it; `ProtocolError` if no evaluator would have sent it."""
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
        """Hand on all that is held, though clients take nothing: the link is about to go."""
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
        self._target.flush()  # acknowledgements give the session credit to send more

    def _deliver(self, item: HeldItem) -> None:
        head, parts, size = item
        try:
            if parts:
                self._target.on_item(head.channel, parts)
        except Exception as error:  # noqa: BLE001 - the items after it are handed on all the same
            self._report(head.channel, parts, error)
        # Also where it failed: else the session would send it again with each connection.
        self._stream.ack(LANE[head.channel], head.number, size)

    def reject(self, head: FrameHeader, body: Bytes, error: Exception) -> None:
        """Drop an item that `on_item` has refused, and acknowledge it in its turn."""
        try:
            parts = unpack_parts(body)
        except ProtocolError:
            parts = []
        self._report(head.channel, parts, error)
        # An acknowledgement covers all items before it, and so must not overtake those held.
        if self._held and LANE[head.channel] is Lane.BULK:
            self._held.append(HeldItem(head, [], len(body)))
        elif self._target.pacer and LANE[head.channel] is Lane.BULK:
            self._target.pacer.skip(head.number, len(body), self._acknowledge(head))
        else:
            self._stream.ack(LANE[head.channel], head.number, len(body))

    def _acknowledge(self, head: FrameHeader) -> AckCallback:
        return partial(self._stream.ack, LANE[head.channel])

    def _report(self, channel: Channel, parts: Sequence[Bytes], error: Exception) -> None:
        if not isinstance(error, RemoterError):  # then it is our own fault
            self._target.reactor.on_bug(error)
        try:
            self._target.on_rejected(channel, parts, error)
        except Exception as bug:  # noqa: BLE001 - a message may be too odd even to report
            self._target.reactor.on_bug(bug)
