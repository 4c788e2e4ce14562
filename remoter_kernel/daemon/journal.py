"""The record of what was said: append-only, and the outbox of every front.

The position of a record is its number on the wire. A thread of its own writes, so that a
slow disk holds up neither interrupts nor outputs. Outputs may be said before they are
written; what a front asked for is acknowledged, and given to the child, only after. A
record that the disk refuses stays in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Union

from remoter_kernel.daemon import records
from remoter_kernel.daemon.compaction import Compacted, compact
from remoter_kernel.daemon.index import Index
from remoter_kernel.daemon.records import EVERYONE, Record, Scan, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remoter_kernel.wire.frames import Channel

RETRY_AFTER = 1.0  # seconds: a full disk may have room again
IN_MEMORY = 8 * 1024 * 1024  # bytes of written records that are kept at hand
GAP = 1_000_000  # numbers that an evaluator which died may have said and not written
LIMIT = 1024**3  # bytes of a journal, unless its session was told another bound
ROOM = 0.75  # of the limit: what is left when room was made

Call = Callable[[], None]
ToWrite = Union[Record, Compacted, None]
_log = logging.getLogger(__name__)


class Journal:
    """An open journal. All but the writing happens in the caller's thread."""

    def __init__(self, path: Path, call: Callable[[Call], None], limit: int = LIMIT) -> None:
        """Remember the file, how a call gets to the caller's own thread, the bound in bytes."""
        self.path = path
        self.limit = limit
        self.last = 0
        self.written = 0
        self.trouble = ""  # why the disk does not take records, in the system's words
        self.low_water: Callable[[], int] = lambda: self.last  # all have taken what is before
        self._call = call
        self._file = -1  # the writer's
        self._end = 0
        self._reading = -1
        self._index = Index()
        self._at_hand: dict[int, bytes] = {}
        self._bytes_at_hand = 0
        self._after: dict[int, Call] = {}
        self._make_room_at = limit
        self._is_making_room = False
        self._queue: queue.SimpleQueue[ToWrite] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="journal", daemon=True)

    def open(self, visit: Callable[[Record], None] = lambda _record: None) -> None:
        """Open or create the file (0600), let all that is in it be seen, begin to write."""
        self._file = os.open(str(self.path), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._reading = os.dup(self._file)
        if os.fstat(self._file).st_size:
            self._recover(visit)
        if not self._end:
            self._end = os.write(self._file, records.first_line())
        self._writer.start()

    def close(self) -> None:
        """Write what is left, and close."""
        self._queue.put(None)
        self._writer.join()
        os.close(self._file)
        os.close(self._reading)

    def append(
        self,
        channel: Channel,
        body: bytes,
        *,
        front: bytes = EVERYONE,
        own: int = 0,
        is_from_front: bool = False,
        is_held: bool = False,
        then: Call | None = None,
    ) -> int:
        """Add a record and return its number; `then` is called once it is written."""
        number, now = self.last + 1, time.time()
        record = Record(number, channel, is_from_front, front, body, now, own, is_held=is_held)
        return self._add(record, then)

    def mark(self, words: dict[str, Any], then: Call | None = None) -> int:
        """Add a mark: for whoever reads the journal, and for no front."""
        return self._add(records.mark(self.last + 1, time.time(), words), then)

    def _add(self, record: Record, then: Call | None) -> int:
        self.last = record.number
        self._index.add(record)
        self._at_hand[self.last] = record.body
        self._bytes_at_hand += len(record.body)
        if then:
            self._after[self.last] = then
        self._queue.put(record)
        return self.last

    def after(self, number: int) -> Iterator[int]:
        """Yield the numbers that there are beyond one."""
        return self._index.after(number)

    def is_for(self, front: bytes, number: int) -> Channel | None:
        """Return the channel of a record that a front should get, else None."""
        return self._index.is_for(front, EVERYONE, number)

    def body(self, number: int) -> bytes:
        """Return the body of a record, from memory or from the file."""
        at_hand = self._at_hand.get(number)
        if at_hand is not None:
            return at_hand
        return records.body_at(self._reading, self._index.offsets[self._index.find(number)])

    def _recover(self, visit: Callable[[Record], None]) -> None:
        """Read what an evaluator before this one has written, and cut off a torn tail."""
        with self.path.open("rb") as file:
            scan = Scan(file)
            for offset, record in scan:
                if offset:
                    self._index.add(record, offset)
                self.last = record.number
                visit(record)
        os.ftruncate(self._file, scan.end)
        self._end = scan.end
        self.last += GAP
        self.written = self.last
        if scan.lost_at_end:
            words = {"mark": "missing", "before": self.last + 2, "bytes": scan.lost_at_end}
            visit(records.mark(self.last + 1, time.time(), words))
            self.mark(words)

    # The writer's thread ---------------------------------------------------------------

    def _write_all(self) -> None:
        refused: list[Record] = []  # by the disk, so far
        is_open = True
        while is_open:
            fresh = self._collect(RETRY_AFTER if refused else None)
            is_open = None not in fresh
            said = refused + [item for item in fresh if isinstance(item, Record)]
            if said:
                trouble, offsets = self._write(said)
                refused = said if trouble else []
                self._call(partial(self._note, said[-1].number, offsets, trouble, self._end))
            for item in fresh:
                if isinstance(item, Compacted):
                    self._move_to(item)

    def _collect(self, patience: float | None) -> list[ToWrite]:
        """Wait for something to write, and take all there is."""
        items: list[ToWrite] = []
        with contextlib.suppress(queue.Empty):
            items.append(self._queue.get(timeout=patience))
            while True:
                items.append(self._queue.get_nowait())
        return items

    def _write(self, said: list[Record]) -> tuple[str, list[int]]:
        begin = self._end
        chunks, offsets = [], []
        position = begin
        for record in said:
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

    def _move_to(self, compacted: Compacted) -> None:
        """Write on in the file that has more room: what was written meanwhile goes there, too."""
        try:
            file = compacted.take_over(self._file, self._end, self.path)
        except OSError:
            compacted.give_up()
            self._call(partial(self._have_room, None, -1))
            return
        old, self._file = self._file, file
        os.close(old)
        self._end += compacted.shift
        self._call(partial(self._have_room, compacted, os.dup(file)))

    # The caller's thread ---------------------------------------------------------------

    def _note(self, last: int, offsets: list[int], trouble: str, end: int) -> None:
        if trouble != self.trouble:
            _log.warning("The journal: %s", trouble or "the disk takes records again")
        self.trouble = trouble
        if offsets:
            begin = self._index.find(last) - len(offsets) + 1
            for position, offset in enumerate(offsets, begin):
                self._index.offsets[position] = offset
        for number in range(self.written + 1, last + 1):
            then = self._after.pop(number, None)
            if then:
                then()
        self.written = last
        self._trim()
        if end > self._make_room_at and not (self._is_making_room or trouble):
            self._make_room(last, end)

    def _trim(self) -> None:
        """Let go of the oldest bodies that are on disk."""
        while self._bytes_at_hand > IN_MEMORY and len(self._at_hand) > 1:
            number = next(iter(self._at_hand))
            position = self._index.find(number)  # -1: it has gone to make room
            if number > self.written or (position >= 0 and not self._index.offsets[position]):
                return
            self._bytes_at_hand -= len(self._at_hand.pop(number))

    def _make_room(self, last: int, end: int) -> None:
        """Begin to copy what is to stay, in a thread: the writer goes on meanwhile."""
        self._is_making_room = True
        taken, target = self.low_water(), int(self.limit * ROOM)

        def copy() -> None:
            try:
                self._queue.put(compact(self.path, last, end, taken, target))
            except OSError:
                self._call(partial(self._have_room, None, -1))

        threading.Thread(target=copy, name="make room", daemon=True).start()

    def _have_room(self, compacted: Compacted | None, reading: int) -> None:
        """Find things where they are now; if it was in vain, try again a good deal later."""
        self._is_making_room = False
        if compacted is None:
            self._make_room_at += max(1, self.limit // 8)
            return
        os.close(self._reading)
        self._reading = reading
        compacted.places.go_on_with(self._index, compacted.last, compacted.shift)
        self._index = compacted.places
        self._make_room_at = max(self.limit, compacted.size + self.limit // 8)
