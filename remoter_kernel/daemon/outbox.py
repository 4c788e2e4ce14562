"""What the journal holds for one front: an outbox that forgets nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.wire.frames import LANE, Lane
from remoter_kernel.wire.stream import Entry

if TYPE_CHECKING:
    from remoter_kernel.daemon.journal import Journal


class FrontOutbox:
    """What the journal holds for one front: an outbox that forgets nothing."""

    def __init__(self, journal: Journal, front: bytes) -> None:
        """Remember whose; `front` is 8 bytes."""
        self._journal = journal
        self._front = front
        self.taken = dict.fromkeys(Lane, 0)  # up to where the front has confirmed
        # per lane: searched in vain from the first of these numbers to the second
        self._in_vain: dict[Lane, tuple[int, int]] = dict.fromkeys(Lane, (0, 0))

    def next_after(self, lane: Lane, number: int) -> Entry | None:
        """Return the first record for this front in a lane beyond a number."""
        journal = self._journal
        begin, end = self._in_vain[lane]
        start = end if begin == number else number
        for position in journal.after(start):
            channel = journal.is_for(self._front, position)
            if channel is not None and LANE[channel] is lane:
                return Entry(position, channel, journal.body(position))
        self._in_vain[lane] = (number, journal.last)
        return None

    def forget(self, lane: Lane, number: int) -> None:
        """Note how far the front is: a journal does not forget because one front has heard."""
        self.taken[lane] = max(self.taken[lane], number)
