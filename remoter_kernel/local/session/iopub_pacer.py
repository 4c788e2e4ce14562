"""Gives jupyter_server no more than it passes on, in order; text that waits is thinned out.

jupyter_server counts, for each browser, what comes on iopub in any three seconds: all messages
(but status, comm_open and execute_input) and the bytes of stream messages, all frames of them.
Above 3,000 messages or 3 MB it drops everything for a while. With each `idle` it counts anew.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Protocol

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import Bytes, Channel
from remoter_kernel.protocol.messages import CONTENT, HEADER, content_of, execution_state, header_of
from remoter_kernel.protocol.output_backlog import BACKLOG_LIMIT, OutputBacklog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from remoter_kernel.protocol.reactor import Reactor, Timer

# What comes at once, and what follows in three seconds, stay below what jupyter_server takes
# in three seconds, even if it was busy for two seconds and takes in all of that at once.
BYTES_AT_ONCE, BYTES_PER_SECOND = 400_000, 450_000.0
MESSAGES_AT_ONCE, MESSAGES_PER_SECOND = 1500, 450.0
TEXT_PIECE = 50_000  # characters of text that go in one message
RETRY_AFTER = 0.01  # seconds between two looks at a client that took nothing
SHORTEST_PAUSE = 0.005  # seconds: shorter timers would cost more than the messages


class AckCallback(Protocol):
    """Acknowledges an item and all before it."""

    def __call__(self, number: int, size: int) -> None:
        """`number` as the evaluator counts; `size` in bytes, as it was received."""


class TokenBucket:
    """So much at once, and so much per second (pure: `now` is an argument, in seconds)."""

    def __init__(self, at_once: float, per_second: float) -> None:
        self.at_once = at_once
        self.per_second = per_second
        self._tokens = at_once
        self._at = 0.0

    def consume(self, amount: float, now: float) -> None:
        """Count what was sent; a single message may be more than there was, and make a debt."""
        self._tokens = self._tokens_at(now) - amount
        self._at = now

    def delay(self, now: float) -> float:
        """Return in how many seconds any debt is paid."""
        return max(0.0, -self._tokens_at(now) / self.per_second)

    def refill(self) -> None:
        """Begin anew, with all that may go at once."""
        self._tokens = self.at_once

    def _tokens_at(self, now: float) -> float:
        return min(self.at_once, self._tokens + (now - self._at) * self.per_second)


class IopubPacer:
    """The bulk lane's way from the link to Jupyter's sockets."""

    def __init__(
        self,
        reactor: Reactor,
        clock: Callable[[], float],
        deliver: Callable[[Channel, list[Bytes]], None],
        on_room: Callable[[], None] = lambda: None,
        most_waiting: int = BACKLOG_LIMIT,
    ) -> None:
        """`on_room` is called when something that waited has been delivered."""
        self.backlog = OutputBacklog(most_waiting)
        self._reactor = reactor
        self._clock = clock
        self._deliver = deliver
        self._on_room = on_room
        # Called with an item that could not be delivered.
        self.on_rejected: Callable[[Channel, Sequence[Bytes], Exception], None] = raise_error
        self.has_room: Callable[[], bool] = lambda: True  # do clients take what is delivered?
        self._bytes = TokenBucket(BYTES_AT_ONCE, BYTES_PER_SECOND)
        self._messages = TokenBucket(MESSAGES_AT_ONCE, MESSAGES_PER_SECOND)
        self._count = 0  # numbers of our own: one item of text may become several messages
        # Of each item: the last of our numbers, its own number, its size, its call-back.
        self._pending_acks: deque[tuple[int, int, int, AckCallback]] = deque()
        self._timer: Timer | None = None

    def add(
        self, channel: Channel, parts: list[memoryview], number: int, size: int, keep: AckCallback
    ) -> None:
        """Deliver an item of `size` bytes now or later; call `keep` once it was delivered."""
        pieces = list(_split_long_text(channel, parts))
        self._pending_acks.append((self._count + len(pieces), number, size, keep))
        for piece in pieces:
            self._count += 1
            if self.backlog or self._delay():
                iopub = piece if channel is Channel.IOPUB else None
                self.backlog.add(self._count, (channel, piece), iopub)
            else:
                self._deliver_one(channel, piece, self._count)
        self._deliver_due()

    def skip(self, number: int, size: int, keep: AckCallback) -> None:
        """Acknowledge an item of which nothing is delivered, in its turn."""
        self._pending_acks.append((self._count, number, size, keep))
        if not self.backlog:
            self._acknowledge_up_to(self._count)

    def interrupt(self, *cells: str) -> None:
        """Thin out the text of these cells, and all that waits: a person has pressed interrupt."""
        self.backlog.limit_text(*cells)
        self._deliver_due()

    def deliver_all(self) -> None:
        """Deliver all that waits, at any pace."""
        while self._deliver_next():
            pass

    def _delay(self) -> float:
        now = self._clock()
        pause = max(self._bytes.delay(now), self._messages.delay(now))
        return pause if self.has_room() else max(pause, RETRY_AFTER)

    def _deliver_due(self) -> None:
        """Deliver what the buckets allow now, and set a timer for the rest."""
        while self.backlog and not (pause := self._delay()):
            if not self._deliver_next():
                return
        if self.backlog and self._timer is None:
            self._timer = self._reactor.call_later(max(pause, SHORTEST_PAUSE), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._deliver_due()
        self._on_room()

    def _deliver_next(self) -> bool:
        taken = self.backlog.pop()
        if taken is None:
            return False
        channel, parts = taken.payload or (Channel.IOPUB, [])
        self._deliver_one(channel, taken.parts or parts, taken.number)
        return True

    def _deliver_one(self, channel: Channel, parts: list[Bytes], number: int) -> None:
        try:
            self._deliver(channel, parts)
        except Exception as error:  # noqa: BLE001 - the messages after it are delivered all the same
            self.on_rejected(channel, parts, error)
        self._acknowledge_up_to(number)
        if channel is not Channel.IOPUB:
            return
        now = self._clock()
        # The header alone is searched: to parse each one of a flood would double its cost.
        is_text = b'"stream"' in bytes(parts[HEADER])
        self._bytes.consume(sum(map(len, parts)) if is_text else 0, now)
        self._messages.consume(1, now)
        if execution_state(parts) == "idle":  # jupyter_server counts anew, too
            self._bytes.refill()
            self._messages.refill()

    def _acknowledge_up_to(self, number: int) -> None:
        while self._pending_acks and self._pending_acks[0][0] <= number:
            _, wire_number, size, keep = self._pending_acks.popleft()
            keep(wire_number, size)


def raise_error(_channel: Channel, _parts: Sequence[Bytes], error: Exception) -> None:
    """Raise: nobody has said what else to do with it."""
    raise error


def _split_long_text(channel: Channel, parts: Sequence[Bytes]) -> Iterator[list[Bytes]]:
    """Yield a message as it is, or a stream with more text than passes at once as several."""
    if channel is Channel.IOPUB and len(parts[CONTENT]) > 2 * TEXT_PIECE:
        try:
            header, content = header_of(parts[HEADER]), content_of(parts)
        except ProtocolError:
            header, content = {}, {}
        text = content.get("text")
        if set(content) == {"name", "text"} and isinstance(text, str):
            for begin in range(0, len(text), TEXT_PIECE):
                piece = list(parts)
                if begin:  # a client takes the same text under the same id for a replay
                    name = f"{header.get('msg_id', '')}.p{begin // TEXT_PIECE}"
                    piece[HEADER] = json.dumps({**header, "msg_id": name}).encode()
                words = {"name": content["name"], "text": text[begin : begin + TEXT_PIECE]}
                piece[CONTENT] = json.dumps(words).encode()
                yield piece
            return
    yield list(parts)
