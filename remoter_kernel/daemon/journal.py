"""The record of what was said: append-only, and the outbox of every front.

The position of a record is its number on the wire. A thread of its own writes, so that a
slow disk holds up neither interrupts nor outputs. Outputs may be said before they are
written; what a front asked for is acknowledged, and given to the child, only after. A
record that the disk refuses stays in memory.

On disk: size of the body, CRC-32 of all that follows it in the record, number, time
(seconds since 1970), channel, where it came from, whom it concerns (8 bytes), the body.
"""

from __future__ import annotations

import contextlib
import os
import queue
import struct
import threading
import time
import zlib
from array import array
from functools import partial
from typing import TYPE_CHECKING, Callable, NamedTuple

from remoter_kernel.wire.frames import CHANNELS, Channel

if TYPE_CHECKING:
    from pathlib import Path

_START = struct.Struct("!II")
_REST = struct.Struct("!QdBB8s")
EVERYONE = bytes(8)  # in place of one front's name
RETRY_AFTER = 1.0  # seconds: a full disk may have room again
IN_MEMORY = 8 * 1024 * 1024  # bytes of written records that are kept at hand

Call = Callable[[], None]


class Record(NamedTuple):
    """One thing that was said."""

    number: int
    channel: Channel
    is_from_front: bool
    front: bytes
    body: bytes
    time: float = 0.0


class Journal:
    """An open journal. All but the writing happens in the caller's thread."""

    def __init__(self, path: Path, call: Callable[[Call], None]) -> None:
        """Remember the file, and how a call is handed to the caller's own thread."""
        self.path = path
        self.last = 0
        self.written = 0
        self.trouble = ""  # why the disk does not take records, in the system's words
        self._call = call
        self._file = -1
        self._end = 0
        self._offsets = array("Q", [0])
        self._channels = array("B", [0])
        self._fronts: list[bytes] = [EVERYONE]
        self._at_hand: dict[int, bytes] = {}
        self._bytes_at_hand = 0
        self._after: dict[int, Call] = {}
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="journal", daemon=True)

    def open(self) -> None:
        """Create the file (0600) and begin to write."""
        self._file = os.open(str(self.path), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._end = os.fstat(self._file).st_size
        self._writer.start()

    def close(self) -> None:
        """Write what is left, and close."""
        self._queue.put(None)
        self._writer.join()
        os.close(self._file)

    def append(
        self,
        channel: Channel,
        body: bytes,
        *,
        front: bytes = EVERYONE,
        is_from_front: bool = False,
        then: Call | None = None,
    ) -> int:
        """Add a record and return its number; `then` is called once it is written."""
        self.last += 1
        record = Record(self.last, channel, is_from_front, front, body, time.time())
        self._offsets.append(0)
        self._channels.append(channel | (0x80 if is_from_front else 0))
        self._fronts.append(self._fronts[-1] if self._fronts[-1] == front else front)
        self._at_hand[self.last] = body
        self._bytes_at_hand += len(body)
        if then:
            self._after[self.last] = then
        self._queue.put(record)
        return self.last

    def is_for(self, front: bytes, number: int) -> Channel | None:
        """Return the channel of a record that a front should get, else None."""
        kind = self._channels[number]
        if kind & 0x80 or self._fronts[number] not in (EVERYONE, front):
            return None
        return CHANNELS[kind]

    def body(self, number: int) -> bytes:
        """Return the body of a record, from memory or from the file."""
        at_hand = self._at_hand.get(number)
        if at_hand is not None:
            return at_hand
        offset = self._offsets[number] - 1
        size, _ = _START.unpack(os.pread(self._file, _START.size, offset))
        return os.pread(self._file, size, offset + _START.size + _REST.size)

    def _write_all(self) -> None:
        refused: list[Record] = []  # by the disk, so far
        is_open = True
        while is_open:
            fresh = self._collect(RETRY_AFTER if refused else None)
            is_open = None not in fresh
            said = refused + [record for record in fresh if record is not None]
            if said:
                trouble, offsets = self._write(said)
                refused = said if trouble else []
                self._call(partial(self._note, said[-1].number, offsets, trouble))

    def _collect(self, patience: float | None) -> list[Record | None]:
        """Wait for something to write, and take all there is."""
        records = []
        with contextlib.suppress(queue.Empty):
            records.append(self._queue.get(timeout=patience))
            while True:
                records.append(self._queue.get_nowait())
        return records

    def _write(self, records: list[Record]) -> tuple[str, list[int]]:
        begin = self._end
        chunks, offsets = [], []
        position = begin
        for record in records:
            chunk = encode(record)
            offsets.append(position)
            position += len(chunk)
            chunks.append(chunk)
        left = memoryview(b"".join(chunks))
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, begin)
            return error.strerror or str(error), []
        self._end = position
        return "", offsets

    def _note(self, last: int, offsets: list[int], trouble: str) -> None:
        self.trouble = trouble
        for number, offset in zip(range(last - len(offsets) + 1, last + 1), offsets):
            self._offsets[number] = offset + 1  # 0 means: not on disk
        for number in range(self.written + 1, last + 1):
            then = self._after.pop(number, None)
            if then:
                then()
        self.written = last
        self._trim()

    def _trim(self) -> None:
        """Let go of the oldest bodies that are on disk."""
        while self._bytes_at_hand > IN_MEMORY and len(self._at_hand) > 1:
            number = next(iter(self._at_hand))
            if number > self.written or not self._offsets[number]:
                return
            self._bytes_at_hand -= len(self._at_hand.pop(number))


def encode(record: Record) -> bytes:
    """Return the bytes of a record on disk."""
    rest = _REST.pack(
        record.number, record.time, record.channel, record.is_from_front, record.front
    )
    check = zlib.crc32(record.body, zlib.crc32(rest))
    return b"".join([_START.pack(len(record.body), check), rest, record.body])
