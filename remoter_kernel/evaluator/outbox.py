"""What the journal holds for one client: an outbox that forgets nothing.

While the link keeps up, records go as they are, straight from the journal. What has to wait
for longer than a moment goes through a backlog, which may collapse it or hold some of it back for
this client; the journal keeps everything.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Callable

from remoter_kernel.protocol.frames import LANE, Channel, Lane, pack_parts, to_json, unpack_parts
from remoter_kernel.protocol.output_backlog import BACKLOG_LIMIT, Coalesced, OutputBacklog
from remoter_kernel.protocol.stream import OutboxEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.evaluator.journal import Journal

LAG_AFTER = 2.0  # seconds that a record may wait before what waits goes through the backlog
MARK_EVERY = 0.25  # seconds
SCAN_FOR = 0.05  # seconds of a scan before others get their turn
DORMANT_AFTER = 3600.0  # seconds without a connection after which a client is scanned for no more


class ClientOutbox:
    """One client's place in the journal."""

    # 19 attributes: one cursor for each way in which records go, and what says which way it is.

    def __init__(
        self,
        journal: Journal,
        client: bytes,
        *,
        most_waiting: int = BACKLOG_LIMIT,
        session: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`client` is 8 bytes, `most_waiting` is in bytes."""
        self._journal = journal
        self._client = client
        self._clock = clock
        self._backlog_limit, self._session = most_waiting, session
        self.acked = dict.fromkeys(Lane, 0)  # by the client
        # By lane: (first, last) of the range that was scanned and has nothing for this client.
        self._scanned: dict[Lane, tuple[int, int]] = dict.fromkeys(Lane, (0, 0))
        self._last_sent = -1  # the last bulk number that was given out; -1: none was asked for
        self._journal_ends: deque[tuple[int, float]] = deque()  # (last number, when that was so)
        self._disconnected_at = 0.0  # on the monotonic clock; 0: it is connected
        # From here on: what matters only while something waits, or has waited a moment ago.
        self._is_lagging = False
        self.is_scanning = False  # how much waits is not known yet: `scan` finds out
        self._is_reading = False  # the scan waits for the disk
        self._is_dormant = False  # it has been away for so long that nothing is scanned
        self._scanned_up_to = 0  # all up to this number is in `_backlog`, or was
        self._backlog = OutputBacklog(most_waiting, session)
        self._resend: deque[Coalesced] = deque()  # given out, and lost with a connection
        self._in_flight: deque[Coalesced] = deque()  # given out, and not acknowledged
        self._in_flight_base = 0  # the number before the first in `_in_flight`

    def next_after(self, lane: Lane, number: int) -> OutboxEntry | None:
        """Return what comes first for this client in a lane beyond a number."""
        if lane is Lane.URGENT:
            is_in_vain = self._scanned[lane] == (number, self._journal.last)
            return None if is_in_vain else self._next_record(lane, number)
        # Another number than the last one that was given out: this is a new connection.
        if number != self._last_sent or self._is_dormant:
            self._rewind_to(number)
        if not self._is_lagging and self._journal_ends and self._is_late():
            self._start_lagging()
        if not self._is_lagging:
            entry = self._next_record(lane, number)
            if entry:
                self._last_sent = self._scanned_up_to = entry.number
                if self._in_flight:  # else nothing before it went through the backlog
                    self._in_flight.append(Coalesced(entry.number, None, entry.number))
            return entry
        return self._next_from_backlog()

    def ack(self, lane: Lane, number: int) -> None:
        """Note how far the client is; the journal keeps what one client has acknowledged."""
        self.acked[lane] = max(self.acked[lane], number)
        if lane is Lane.BULK:
            while self._in_flight and self._in_flight[0].number <= number:
                self._in_flight_base = self._in_flight.popleft().number

    def scan(self, *, is_connected: bool) -> None:
        """See whether something new waits for long; to be called after each flush."""
        if self._last_sent < 0 or self._is_dormant:
            return
        now = self._clock()
        if is_connected:
            self._disconnected_at = 0.0
        elif not self._disconnected_at:
            self._disconnected_at = now
        if self._scanned[Lane.BULK] == (self._last_sent, self._journal.last):
            self._journal_ends.clear()
        elif not self._is_lagging:
            marks = self._journal_ends
            if not marks or now - marks[-1][1] > MARK_EVERY:
                marks.append((self._journal.last, now))
            if not is_connected or self._is_late():
                self._start_lagging()
        if self._is_lagging:
            if self._disconnected_at and now - self._disconnected_at > DORMANT_AFTER:
                self.go_dormant()
            else:
                self._scan_backlog()

    def limit_text(self, cells: list[str]) -> None:
        """Let little of the text of these cells through, and of all that waits now."""
        has_all = self._scanned[Lane.BULK] == (self._last_sent, self._journal.last)
        if self._last_sent >= 0 and not has_all:
            self._start_lagging()
        if self._is_lagging:
            self._scan_backlog()
        self._backlog.limit_text(*cells)

    def go_dormant(self) -> None:
        """Forget all but the position of a client that has left; if it comes back, scan again."""
        if self._last_sent >= 0:
            self._reset_to(self._last_sent)
            self._is_dormant = True

    # While the link keeps up -----------------------------------------------------------

    def _next_record(self, lane: Lane, number: int) -> OutboxEntry | None:
        journal = self._journal
        begin, end = self._scanned[lane]
        start = end if begin == number else number
        new = journal.entries_for(self._client, start) if start < journal.last else ()
        for position, channel in new:
            if LANE[channel] is lane:
                return self._read_entry(position, channel)
        self._scanned[lane] = (number, journal.last)
        return None

    def _is_late(self) -> bool:
        """Has the next record been waiting for long?"""
        marks = self._journal_ends
        while marks and marks[0][0] <= self._last_sent:
            marks.popleft()
        return bool(marks) and self._clock() - marks[0][1] > LAG_AFTER

    # While it does not -----------------------------------------------------------------

    def _start_lagging(self) -> None:
        if self._is_lagging:
            return
        self._is_lagging = True
        self._journal_ends.clear()
        self._scanned_up_to = self._last_sent
        if not self._in_flight:
            self._in_flight_base = self._last_sent

    def _reset_to(self, number: int) -> None:
        """Forget all but where to begin."""
        self._backlog = OutputBacklog(self._backlog_limit, self._session)
        self._resend.clear()
        self._in_flight.clear()
        self._journal_ends.clear()
        self._is_lagging = self._is_dormant = self.is_scanning = self._is_reading = False
        self._scanned_up_to = self._in_flight_base = self._last_sent = number

    def _scan_backlog(self) -> None:
        """Put what is new into the backlog, for a moment: a night's output takes several goes."""
        until = self._clock() + SCAN_FOR
        self.is_scanning = self._is_reading = False
        for position, channel in self._records_for_client(self._scanned_up_to):
            if self._backlog.is_full:
                return
            if self._clock() > until:
                self.is_scanning = True
                return
            entry = self._read_entry(position, channel)
            if entry is None:
                self._is_reading = True
                return
            parts = unpack_parts(entry.body) if entry.channel is Channel.IOPUB else None
            self._backlog.add(position, position, parts)
            self._scanned_up_to = position

    def _records_for_client(self, number: int, until: int = 0) -> Iterator[tuple[int, Channel]]:
        """Yield what is in the bulk lane for this client beyond a number."""
        for position, channel in self._journal.entries_for(self._client, number):
            if until and position > until:
                return
            if LANE[channel] is Lane.BULK:
                yield position, channel

    def _next_from_backlog(self) -> OutboxEntry | None:
        while True:
            if (self.is_scanning or self._is_reading) and not self._resend:
                return None  # only all of it decides what is held back
            taken = self._resend.popleft() if self._resend else self._backlog.pop()
            if taken is None:
                before = self._scanned_up_to
                self._scan_backlog()
                if self._scanned_up_to == before and not (
                    self._backlog or self.is_scanning or self._is_reading
                ):
                    self._is_lagging = False  # it has caught up
                    self._scanned[Lane.BULK] = (self._last_sent, self._journal.last)
                    return None
                continue
            if taken.parts is not None:
                entry: OutboxEntry | None = OutboxEntry(
                    taken.number, Channel.IOPUB, pack_parts(taken.parts)
                )
            else:
                position = int(taken.payload)
                channel = self._journal.channel_for(self._client, position)
                if channel is None:
                    continue  # compaction has dropped it meanwhile
                entry = self._read_entry(position, channel)
            if entry is None:  # `on_read` of the journal tells when to ask again
                self._resend.appendleft(taken)
                return None
            self._last_sent = entry.number
            self._in_flight.append(taken)
            return entry

    def _read_entry(self, position: int, channel: Channel) -> OutboxEntry | None:
        """Read a record; None: it is being read. An event stands for one that cannot be read."""
        why = self._journal.unreadable.get(position)
        if why is None:
            body = self._journal.body(position)
            return None if body is None else OutboxEntry(position, channel, body)
        if (
            LANE[channel] is Lane.URGENT
        ):  # whose reply it is cannot be told; it keeps the numbers whole
            return OutboxEntry(position, channel, pack_parts([b"", b"{}", b"{}", b"{}", b"{}"]))
        sentence = f"Record {position} cannot be read from the disk there ({why})."
        event = {"event": "unreadable", "number": position, "why": sentence}
        return OutboxEntry(position, Channel.EVENT, pack_parts([to_json(event)]))

    def _rewind_to(self, number: int) -> None:
        """Begin again after what the client has received: by a new connection, or the first."""
        was_dormant = self._is_dormant
        if was_dormant or number > self._last_sent or not (self._is_lagging or self._in_flight):
            self._reset_to(number)
            self._is_lagging = was_dormant
        else:
            back = [taken for taken in self._in_flight if taken.number > number]
            # What went as it was, before the backlog was used, is not in `_in_flight`.
            if number < self._in_flight_base:
                raw = self._records_for_client(number, self._in_flight_base)
                back = [Coalesced(position, None, position) for position, _ in raw] + back
            self._resend.extendleft(reversed(back))
            self._in_flight.clear()
            self._is_lagging = True
            self._in_flight_base = self._last_sent = number
        if self._is_lagging:
            self._scan_backlog()
