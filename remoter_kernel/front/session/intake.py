"""Hands on what comes of the session; what cannot be taken in is told, and passed over for good."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.wire.frames import LANE, Bytes, Channel, Head, Lane, from_json, unpack
from remoter_kernel.wire.messages import TOPIC, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.front.session.pacer import Keep, Pacer
    from remoter_kernel.wire.reactor import Reactor
    from remoter_kernel.wire.stream import Conversation

UNREADABLE = b'"unreadable"'  # the note in the place of what the session cannot read any more


class Taker(Protocol):
    """Whoever takes things in (see `Link`)."""

    reactor: Reactor
    pacer: Pacer | None
    on_item: Callable[[Channel, list[memoryview]], None]
    on_refused: Callable[[Channel, Sequence[Bytes], Exception], None]


class Intake:
    """What comes by one wire."""

    def __init__(self, taker: Taker, talk: Conversation) -> None:
        """Remember; `talk` hears what is kept."""
        self._taker = taker
        self._talk = talk
        if taker.pacer:
            taker.pacer.on_refused = self._tell

    def take(self, head: Head, body: Bytes) -> None:
        """Take in one item; one that no evaluator should have said is a `ProtocolError`."""
        channel, parts = head.channel, parts_of(head.channel, body)
        if channel is Channel.NOTE and UNREADABLE in bytes(parts[TOPIC]):
            why = from_json(parts[TOPIC]).get("why")
            self._tell(channel, parts, RemoterError(str(why)))
        if self._taker.pacer and LANE[channel] is Lane.BULK:
            self._taker.pacer.take(channel, parts, head.number, len(body), self._keep(head))
            return
        try:
            self._taker.on_item(channel, parts)
        except Exception as error:  # noqa: BLE001 - what follows it is taken in all the same
            self._tell(channel, parts, error)
        self._keep(head)(head.number, len(body))

    def refuse(self, head: Head, body: Bytes, error: Exception) -> None:
        """Pass over an item that `take` could not take in."""
        try:
            parts = unpack(body)
        except ProtocolError:
            parts = []
        self._tell(head.channel, parts, error)
        if self._taker.pacer and LANE[head.channel] is Lane.BULK:
            self._taker.pacer.pass_over(head.number, len(body), self._keep(head))
        else:
            self._keep(head)(head.number, len(body))

    def _keep(self, head: Head) -> Keep:
        return partial(self._talk.keep, LANE[head.channel])

    def _tell(self, channel: Channel, parts: Sequence[Bytes], error: Exception) -> None:
        if not isinstance(error, RemoterError):
            self._taker.reactor.on_bug(error)
        try:
            self._taker.on_refused(channel, parts, error)
        except Exception as bug:  # noqa: BLE001 - what is odd may be too odd to be told
            self._taker.reactor.on_bug(bug)
