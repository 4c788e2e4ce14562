"""What the journal holds for one front: an outbox that forgets nothing.

While the link keeps up, records go as they are, straight from the journal. What has to wait
for longer than a moment is looked at, and may be collapsed or held back on its way to this
front; the journal keeps everything.
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

LAG_AFTER = 2.0  # seconds that a record may wait before it is looked at
MARK_EVERY = 0.25  # seconds
SCAN_FOR = 0.05  # seconds of looking at what waits before others get their turn
DORMANT_AFTER = 3600.0  # seconds without a wire after which a front costs no more attention


class ClientOutbox:
    """One front's place in the journal."""

    def __init__(
        self,
        journal: Journal,
        client: bytes,
        *,
        most_waiting: int = BACKLOG_LIMIT,
        session: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember whose; `client` is 8 bytes."""
        self._journal = journal
        self._client = client
        self._clock = clock
        self._backlog_limit, self._session = most_waiting, session
        self.acked = dict.fromkeys(Lane, 0)  # up to where the front has confirmed
        # per lane: searched in vain from the first of these numbers to the second
        self._scanned: dict[Lane, tuple[int, int]] = dict.fromkeys(Lane, (0, 0))
        self._last_sent = -1  # the last bulk number that was given out; -1: it was never asked for
        self._journal_ends: deque[tuple[int, float]] = deque()  # up to where there was what, when
        self._disconnected_at = 0.0  # when the wire was lost
        # From here on: what matters only while something waits, or has waited a moment ago.
        self._is_lagging = False
        self.is_scanning = False  # how much waits is not known yet: `scan` finds out
        self._is_reading = False  # what is to be looked at next comes from the disk
        self._is_dormant = False  # it has been away for so long that nothing is noticed
        self._scanned_up_to = 0  # all up to this number is in `_backlog`, or was
        self._backlog = OutputBacklog(most_waiting, session)
        self._resend: deque[Coalesced] = deque()  # was given out, and lost with a wire
        self._in_flight: deque[Coalesced] = deque()  # was given out, and may yet be lost
        self._in_flight_base = 0  # the number before the first in `_in_flight`

    def next_after(self, lane: Lane, number: int) -> OutboxEntry | None:
        """Return what comes first for this front in a lane beyond a number."""
        if lane is Lane.URGENT:
            is_in_vain = self._scanned[lane] == (number, self._journal.last)
            return None if is_in_vain else self._next_record(lane, number)
        if number != self._last_sent or self._is_dormant:
            self._rewind_to(number)
        if not self._is_lagging and self._journal_ends and self._is_late():
            self._start_lagging()
        if not self._is_lagging:
            entry = self._next_record(lane, number)
            if entry:
                self._last_sent = self._scanned_up_to = entry.number
                if self._in_flight:
                    self._in_flight.append(Coalesced(entry.number, None, entry.number))
            return entry
        return self._next_from_backlog()

    def ack(self, lane: Lane, number: int) -> None:
        """Note how far the front is: a journal does not forget because one front has heard."""
        self.acked[lane] = max(self.acked[lane], number)
        if lane is Lane.BULK:
            while self._in_flight and self._in_flight[0].number <= number:
                self._in_flight_base = self._in_flight.popleft().number

    def scan(self, *, is_connected: bool) -> None:
        """See whether something waits that was said since; to be called after each flush."""
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
        if self._last_sent >= 0 and self._scanned[Lane.BULK] != (
            self._last_sent,
            self._journal.last,
        ):
            self._start_lagging()
        if self._is_lagging:
            self._scan_backlog()
        self._backlog.limit_text(*cells)

    def go_dormant(self) -> None:
        """Forget what was noticed for a front that has left; it looks anew when it comes back."""
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
        """Know nothing but where to begin."""
        self._backlog = OutputBacklog(self._backlog_limit, self._session)
        self._resend.clear()
        self._in_flight.clear()
        self._journal_ends.clear()
        self._is_lagging = self._is_dormant = self.is_scanning = self._is_reading = False
        self._scanned_up_to = self._in_flight_base = self._last_sent = number

    def _scan_backlog(self) -> None:
        """Look at what was said since, for a moment: a night's output is too much for one go."""
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
        """Yield what is in the bulk lane for this front beyond a number."""
        for position, channel in self._journal.entries_for(self._client, number):
            if until and position > until:
                return
            if LANE[channel] is Lane.BULK:
                yield position, channel

    def _next_from_backlog(self) -> OutboxEntry | None:
        while True:
            if (self.is_scanning or self._is_reading) and not self._resend:
                return None  # how much there is decides what becomes of it
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
            if self._needs_read(taken):
                self._resend.appendleft(taken)
                return None
            entry = self._to_entry(taken)
            if entry is not None:
                self._last_sent = entry.number
                self._in_flight.append(taken)
                return entry

    def _needs_read(self, taken: Coalesced) -> bool:
        """Has it yet to be read? `on_read` of the journal tells when to ask again."""
        if taken.parts is not None:
            return False
        position = int(taken.payload)
        channel = self._journal.channel_for(self._client, position)
        return channel is not None and self._read_entry(position, channel) is None

    def _to_entry(self, taken: Coalesced) -> OutboxEntry | None:
        if taken.parts is not None:
            return OutboxEntry(taken.number, Channel.IOPUB, pack_parts(taken.parts))
        position = int(taken.payload)
        channel = self._journal.channel_for(self._client, position)
        return None if channel is None else self._read_entry(position, channel)

    def _read_entry(self, position: int, channel: Channel) -> OutboxEntry | None:
        """Read a record; None: it has yet to be read. What cannot be read is told in its place."""
        why = self._journal.unreadable.get(position)
        if why is None:
            body = self._journal.body(position)
            return None if body is None else OutboxEntry(position, channel, body)
        if LANE[channel] is Lane.URGENT:  # whom it was for is not known
            return OutboxEntry(position, channel, pack_parts([b"", b"{}", b"{}", b"{}", b"{}"]))
        told = f"Record {position} cannot be read from the disk there ({why})."
        note = {"event": "unreadable", "number": position, "why": told}
        return OutboxEntry(position, Channel.EVENT, pack_parts([to_json(note)]))

    def _rewind_to(self, number: int) -> None:
        """Begin again after what the front has seen: a wire was lost, or is the first."""
        was_resting = self._is_dormant
        if was_resting or number > self._last_sent or not (self._is_lagging or self._in_flight):
            self._reset_to(number)
            self._is_lagging = was_resting
        else:
            back = [taken for taken in self._in_flight if taken.number > number]
            if number < self._in_flight_base:
                raw = self._records_for_client(number, self._in_flight_base)
                back = [Coalesced(position, None, position) for position, _ in raw] + back
            self._resend.extendleft(reversed(back))
            self._in_flight.clear()
            self._is_lagging = True
            self._in_flight_base = self._last_sent = number
        if self._is_lagging:
            self._scan_backlog()
