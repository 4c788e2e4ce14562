"""Compaction: what of a journal goes when it has reached its bound, and the file without it.

First the middle of each cell's stream text, then displays that were updated since and the
messages of widgets, then the kernel's states; results and errors last. Requests, replies and
events stay. What a connected client has not acknowledged goes only when nothing else is left.
Numbers never change; a marker says how much of which cell went.
"""

from __future__ import annotations

import contextlib
import errno
import os
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator import records
from remoter_kernel.evaluator.index import Index
from remoter_kernel.evaluator.records import Record, Scan, encode_record, parse_marker, size_on_disk
from remoter_kernel.protocol.frames import Channel, unpack_parts
from remoter_kernel.protocol.messages import HEADER, PARENT, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Bytes that stay of a cell's text at its head and at its tail; the second if the first is too much.
ENDS = (64 * 1024, 4 * 1024)
COPY = 1024 * 1024  # bytes at a time

STAYS, TEXT, UPDATE, COMM, SMALL, RESULT = range(6)
WHAT = ("", "stream", "update_display_data", "comm", "status", "output")
CLASSES = {
    "stream": TEXT,
    "update_display_data": UPDATE,
    "comm_open": COMM,
    "comm_msg": COMM,
    "comm_close": COMM,
    "display_data": RESULT,
    "execute_result": RESULT,
    "error": RESULT,
}


class CompactedFile(NamedTuple):
    """The compacted file, up to the end of the old one as it was then."""

    path: Path
    file: int
    new_index: Index
    last: int  # number
    end: int  # bytes of the old file that were looked at
    size: int  # bytes of the new file

    @property
    def offset_delta(self) -> int:
        """How many bytes further on (negative: less) later records lie in this file."""
        return self.size - self.end

    def catch_up_and_replace(self, old: int, end: int, path: Path) -> None:
        """Copy what was written meanwhile, and take the old one's name."""
        offset = self.end
        while offset < end:
            chunk = os.pread(old, min(COPY, end - offset), offset)
            if not chunk:
                raise OSError(errno.EIO, "somebody has cut the journal")
            offset += len(chunk)
            _write_chunk(self.file, chunk)
        try:
            self.path.replace(path)
        except OSError:
            # NFS: a server's answer may be lost; the client asks again, and the file is renamed.
            if not os.path.samestat(path.stat(), os.fstat(self.file)):
                raise

    def discard(self) -> None:
        """Close and remove it, as far as the disk lets us."""
        with contextlib.suppress(OSError):
            os.close(self.file)
        with contextlib.suppress(OSError):
            self.path.unlink()


class Catalogue:
    """What kinds of records there are, and how much room they take."""

    def __init__(self) -> None:
        # Parallel arrays by place: there may be millions of records.
        self.numbers = array("Q")
        self.sizes = array("Q")
        self.classes = bytearray()
        self.cells = array("I")  # per record: whose cell, as a place in `names`
        self.names: list[str] = []
        self.total = 0
        self.shown: dict[str, int] = {}  # by display id: where it was updated last
        self.markers: dict[tuple[int, int], tuple[int, dict[str, Any]]] = {}  # by cell and class
        self.is_dropped = bytearray()
        self._cell_of: dict[str, int] = {}

    def add(self, record: Record) -> None:
        """Take note of a record."""
        kind, cell, display = _class_of(record)
        place = self._cell_index(cell)
        words = parse_marker(record)
        if words.get("mark") == "shortened" and words.get("what") in WHAT:
            key = (self._cell_index(words["cell"]), WHAT.index(words["what"]))
            self.markers[key] = (len(self.numbers), words)
        if display:
            self.shown[display] = len(self.numbers)
        self.numbers.append(record.number)
        self.sizes.append(size_on_disk(record))
        self.classes.append(kind)
        self.cells.append(place)
        self.is_dropped.append(0)
        self.total += size_on_disk(record)

    def _cell_index(self, cell: str) -> int:
        place = self._cell_of.setdefault(cell, len(self.names))
        if place == len(self.names):
            self.names.append(cell)
        return place

    def select_dropped(self, target: int, taken: int) -> dict[int, dict[str, Any]]:
        """Drop records until the rest fits; return the markers that stand for them, by place."""
        newest = set(self.shown.values())
        # First of what all have acknowledged; if that is not enough, of the rest, too.
        for until in (taken, self.numbers[-1] if self.numbers else 0):
            for wave in (
                *(self._middle_text(end) for end in ENDS),
                (at for at in self._of_class(UPDATE) if at not in newest),
                self._of_class(COMM),
                self._of_class(SMALL),
                self._of_class(RESULT),
                self._of_class(TEXT),
                self._of_class(UPDATE),
            ):
                for at in wave:
                    if self.total <= target:
                        return self._gap_markers()
                    if self.numbers[at] <= until and not self.is_dropped[at]:
                        self.is_dropped[at] = 1
                        self.total -= self.sizes[at]
        return self._gap_markers()

    def _of_class(self, kind: int) -> Iterator[int]:
        """Yield where records of a class are, the oldest first."""
        at = self.classes.find(kind)
        while at >= 0:
            yield at
            at = self.classes.find(kind, at + 1)

    def _middle_text(self, end: int) -> Iterator[int]:
        """Yield what is neither in the first nor the last `end` bytes of its cell's text."""
        whole: dict[int, int] = {}
        for at in self._of_class(TEXT):
            whole[self.cells[at]] = whole.get(self.cells[at], 0) + self.sizes[at]
        begun: dict[int, int] = {}
        for at in self._of_class(TEXT):
            cell = self.cells[at]
            before = begun.get(cell, 0)
            begun[cell] = before + self.sizes[at]
            if before >= end and begun[cell] <= whole[cell] - end:
                yield at

    def _gap_markers(self) -> dict[int, dict[str, Any]]:
        """Say how much went, where the first of it was."""
        places: dict[int, dict[str, Any]] = {}
        for at in range(len(self.numbers)):
            if not self.is_dropped[at]:
                continue
            key = (self.cells[at], self.classes[at])
            empty = {"mark": "shortened", "what": WHAT[key[1]], "bytes": 0, "messages": 0}
            place, words = self.markers.setdefault(key, (at, {**empty, "cell": self.names[key[0]]}))
            words["bytes"] += self.sizes[at]
            words["messages"] += 1
            places[place] = words
        return places


def compact(path: Path, last: int, end: int, taken: int, target: int) -> CompactedFile:
    """Write the file beside that has what is to stay; the journal itself is left alone.

    `last`, `end`: the number and the byte up to which to look; `taken`: the number up to
    which all connected clients have acknowledged what is for them; `target`: bytes.
    """
    beside = path.with_name(f"{path.name}.part")  # on the same file system: it is renamed
    catalogue = Catalogue()
    with path.open("rb") as source:
        for offset, record in Scan(source, end):
            if offset:
                catalogue.add(record)
        marks = catalogue.select_dropped(target, taken)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        file = os.open(str(beside), flags, 0o600)
        try:
            index, size = _copy_kept(Scan(source, end), catalogue, marks, file)
        except BaseException:
            CompactedFile(beside, file, Index(), last, end, 0).discard()
            raise
    return CompactedFile(beside, file, index, last, end, size)


def _copy_kept(
    scan: Scan, catalogue: Catalogue, marks: dict[int, dict[str, Any]], file: int
) -> tuple[Index, int]:
    index = Index()
    chunks = [records.first_line()]
    waiting = size = len(chunks[0])
    at = -1
    for offset, record in scan:
        kept = record  # without an offset it is a marker for what is damaged: that stays
        if offset:
            at += 1
            if at in marks:
                kept = records.marker(record.number, record.time, marks[at])
            elif catalogue.is_dropped[at]:
                continue
        index.add(kept, size)
        chunks.append(encode_record(kept))
        size += len(chunks[-1])
        waiting += len(chunks[-1])
        if waiting > COPY:
            _write_chunk(file, b"".join(chunks))
            chunks, waiting = [], 0
    _write_chunk(file, b"".join(chunks))
    return index, size


def _write_chunk(file: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(file, left) :]


def _class_of(record: Record) -> tuple[int, str, str]:
    """Return the class of a record, its cell's message id, and the id of a display it updates."""
    if record.channel is not Channel.IOPUB or record.is_from_client or record.is_marker:
        return STAYS, "", ""
    try:
        parts = unpack_parts(record.body)
        kind = str(header_of(parts[HEADER]).get("msg_type", ""))
        cell = str(header_of(parts[PARENT]).get("msg_id", ""))
        display = ""
        if kind == "update_display_data":
            display = str((content_of(parts).get("transient") or {}).get("display_id"))
    except (ProtocolError, IndexError, AttributeError):
        return SMALL, "", ""
    return CLASSES.get(kind, SMALL), cell, display
