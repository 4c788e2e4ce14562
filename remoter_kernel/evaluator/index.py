"""Where each record of a journal is, and whose: as many entries as there are records.

Numbers have gaps (after the death of an evaluator, after damage, after records went to
make room), and a gap takes no room here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from remoter_kernel.protocol.frames import CHANNELS, Channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.evaluator.records import Record

_NOT_FOR_CLIENTS = 0x80


class Index:
    """Numbers in growing order, with the offset (0: not on disk), channel and client of each."""

    def __init__(self) -> None:
        # Arrays, for there may be millions: an object for each would take several times as much.
        self.numbers = array("Q")
        self.offsets = array("Q")
        self._flags = array("B")
        self._clients: list[bytes] = []

    def add(self, record: Record, offset: int = 0) -> None:
        """Add the record with the highest number so far."""
        hidden = _NOT_FOR_CLIENTS if record.is_from_client or record.is_marker else 0
        client = record.client
        self.numbers.append(record.number)
        self.offsets.append(offset)
        self._flags.append(record.channel | hidden)
        # Neighbours share one object: a name of its own for each would cost 41 bytes.
        is_same = self._clients and self._clients[-1] == client
        self._clients.append(self._clients[-1] if is_same else client)

    def find(self, number: int) -> int:
        """Return the position of a number, or -1."""
        numbers = self.numbers
        # Most of the time it is one near the end, and between there and the end are no gaps.
        position = len(numbers) - 1 - (numbers[-1] - number) if numbers else -1
        if 0 <= position < len(numbers) and numbers[position] == number:
            return position
        position = bisect_left(numbers, number)
        is_there = position < len(numbers) and numbers[position] == number
        return position if is_there else -1

    def locate(self, number: int, size: int) -> dict[int, int]:
        """Return where a record is on disk, and those behind it as far as `size` bytes."""
        position = begin = self.find(number)
        offsets = self.offsets
        while position + 1 < len(offsets) and 0 < offsets[position + 1] <= offsets[begin] + size:
            position += 1
        # Where the last of these ends is not known: it is left out, unless it is the only one.
        end = max(position, begin + 1)
        return dict(zip(self.numbers[begin:end], offsets[begin:end]))

    def entries_for(
        self, client: bytes, everyone: bytes, number: int
    ) -> Iterator[tuple[int, Channel]]:
        """Yield number and channel of what a client should get beyond a number."""
        position = self.find(number) + 1 or bisect_right(self.numbers, number)
        while position < len(self.numbers):  # asked each time: records come meanwhile
            flags = self._flags[position]
            if not flags & _NOT_FOR_CLIENTS and self._clients[position] in (everyone, client):
                yield self.numbers[position], CHANNELS[flags]
            position += 1

    def channel_for(self, client: bytes, everyone: bytes, number: int) -> Channel | None:
        """Return the channel of a record that a client should get, else None."""
        position = self.find(number)
        if position < 0:
            return None
        kind = self._flags[position]
        if kind & _NOT_FOR_CLIENTS or self._clients[position] not in (everyone, client):
            return None
        return CHANNELS[kind]

    def append_from(self, other: Index, number: int, shift: int) -> None:
        """Take over what another index has beyond a number; here, it lies `shift` bytes further."""
        begin = bisect_right(other.numbers, number)
        self.numbers.extend(other.numbers[begin:])
        offsets = other.offsets[begin:]
        self.offsets.extend(offset + shift if offset else 0 for offset in offsets)
        self._flags.extend(other._flags[begin:])
        self._clients.extend(other._clients[begin:])
