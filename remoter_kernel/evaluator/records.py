"""The bytes of a journal on disk: made, read while others write, found again after damage.

A first line names the format. Then come records, each a head of fixed size and a body:
four bytes that never occur in text, CRC-32 of the rest of the head, size of the body,
CRC-32 of the body, number, time (seconds since 1970), channel, flags, the client that it
concerns (8 bytes), the number that the client gave it. Head and body have checksums of their own,
so that a damaged body costs one record, and a damaged head what lies up to the next one.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.protocol.frames import (
    CHANNELS,
    Channel,
    from_json,
    pack_parts,
    to_json,
    unpack_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = 1
EVERYONE = bytes(8)  # in place of one client's name

_SYNC = b"\xfe\xffrk"  # neither byte 0xfe nor 0xff occurs in UTF-8
_HEAD = struct.Struct("!4sIQIQdBB8sQ")
_CHECKED = 8  # bytes of a head before what its check covers
_FIRST_LINE = re.compile(rb"(remoter journal (\d{1,9})) ([0-9a-f]{8})\n")
_LONGEST_FIRST_LINE = 64  # bytes
_BLOCK = 1024 * 1024  # bytes that are searched at a time
_FROM_CLIENT, _MARKER, _HELD = 1, 2, 4


class Record(NamedTuple):
    """One message or event of a session.

    client_number: the number that its client gave it; 0 where it comes from no client.
    is_marker: for whoever reads the journal, and for no client; `parse_marker` reads it.
    is_held: a request that is not given to the kernel at once; a marker tells when it is.
    """

    number: int
    channel: Channel
    is_from_client: bool
    client: bytes
    body: bytes
    time: float = 0.0
    client_number: int = 0
    is_marker: bool = False
    is_held: bool = False


class RecordHeader(NamedTuple):
    """What stands before a body."""

    size: int
    check: int
    number: int
    time: float
    channel: int
    flags: int
    client: bytes
    client_number: int


class JournalTooNewError(RemoterError):
    """A journal whose format this version does not know."""


def first_line(number: int = FORMAT) -> bytes:
    """Return the line that a journal of this format begins with."""
    words = b"remoter journal %d" % number
    return words + b" %08x\n" % zlib.crc32(words)


def check_format(file: BinaryIO) -> int:
    """Return where the records of a journal begin; JournalTooNewError if it is newer than this."""
    file.seek(0)
    match = _FIRST_LINE.match(file.read(_LONGEST_FIRST_LINE))
    if not match or int(match[3], 16) != zlib.crc32(match[1]):
        return 0  # damaged, as far as it is there at all
    if int(match[2]) > FORMAT:
        message = (
            f"This journal was written by a newer version (format {int(match[2])}; "
            f"this one reads up to {FORMAT})."
        )
        raise JournalTooNewError(message, "Update remoter-kernel, then look again.")
    return match.end()


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record on disk."""
    flags = _FROM_CLIENT * record.is_from_client
    flags |= _MARKER * record.is_marker | _HELD * record.is_held
    sizes = len(record.body), zlib.crc32(record.body)
    origin = record.channel, flags, record.client, record.client_number
    head = _HEAD.pack(_SYNC, 0, *sizes, record.number, record.time, *origin)
    check = zlib.crc32(head[_CHECKED:]).to_bytes(4, "big")
    return b"".join([_SYNC, check, head[_CHECKED:], record.body])


def marker(number: int, time: float, words: dict[str, Any]) -> Record:
    """Return a record for whoever reads the journal; `words` has `mark`: what it is."""
    body = pack_parts([to_json(words)])
    return Record(number, Channel.EVENT, False, EVERYONE, body, time, is_marker=True)


def is_gap(record: Record) -> bool:
    """Does a marker stand for records of which nothing is known, not even whose they were?"""
    words = parse_marker(record)
    return words.get("mark") == "missing" and words.get("before", 0) > record.number


def parse_marker(record: Record) -> dict[str, Any]:
    """Read a marker's fields; of any other record, none."""
    if not record.is_marker:
        return {}
    try:
        return from_json(unpack_parts(record.body)[0])
    except (ProtocolError, IndexError):
        return {}


def size_on_disk(record: Record) -> int:
    """Return how many bytes a record has there."""
    return _HEAD.size + len(record.body)


def bodies_at(file: int, places: dict[int, int]) -> dict[int, bytes]:
    """Read the bodies of records from an open file; `places` has the offset of each number."""
    return {number: _body_at(file, offset, number) for number, offset in places.items()}


def _body_at(file: int, offset: int, number: int) -> bytes:
    raw = os.pread(file, _HEAD.size, offset)
    if len(raw) == _HEAD.size and raw[:4] == _SYNC:
        head = RecordHeader(*_HEAD.unpack(raw)[2:])
        body = os.pread(file, head.size, offset + _HEAD.size)
        if head.number == number and len(body) == head.size:
            return body
    raise OSError(errno.EIO, f"record {number} is not where it was written")


def read_journal(path: Path) -> Iterator[Record]:
    """Yield all that can be trusted of a journal, which may be written meanwhile.

    What is missing is told by a mark, `{"mark": "missing", "bytes": n}`: in place of a
    record whose body is damaged, or with the first of the numbers that are lost.
    """
    return JournalFollower(path).records()


class JournalFollower:
    """Reads a journal, which may be written meanwhile, from where an earlier reading stopped."""

    def __init__(self, path: Path, place: dict[str, int] | None = None) -> None:
        """`place` is that of a reading before."""
        self._path = path
        self.place = place or {}  # after the last record that was dealt with

    def records(self) -> Iterator[Record]:
        """Yield what follows; from the beginning if the file is another one by now."""
        with self._path.open("rb") as file:
            name = os.fstat(file.fileno()).st_ino  # compaction makes another file
            place = self.place if self.place.get("file") == name else {}
            scan = Scan(file, begin=place.get("offset", 0), last=place.get("number", 0))
            for offset, record in scan:
                yield record
                if offset:
                    self.place = {"file": name, "offset": scan.end, "number": record.number}


class Scan:
    """One pass over an open journal: (offset, record), offset 0 for a marker of what is lost."""

    def __init__(
        self, file: BinaryIO, until: int | None = None, *, begin: int = 0, last: int = 0
    ) -> None:
        """`until` is where to stop, in bytes, `begin` where the record `last` ends."""
        self._file = file
        self._size = os.fstat(file.fileno()).st_size if until is None else until
        self._begin = begin
        self._last = last  # number
        self._is_torn = False  # does it end in the middle of a record?
        self.end = 0  # where the last record that can be trusted ends

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Go from the first line to the end; JournalTooNewError if that line says so."""
        offset = self.end = begin = max(check_format(self._file), self._begin)
        # Yielded only if something follows: at the end, somebody may be writing it just now.
        lost: list[tuple[int, Record]] = []
        while (head := self._header_at(offset)) or (found := self._find_next_header(offset)):
            if head is None:
                begin, offset = offset, found
                head = self._header_at(offset)
                if head is None:  # another process has cut the file meanwhile
                    continue
                if head.number > self._last + 1:
                    lost.append((0, _gap_marker(self._last + 1, head, offset - begin)))
            end = offset + _HEAD.size + head.size
            body = self._read(offset + _HEAD.size, head.size)
            if len(body) == head.size and zlib.crc32(body) == head.check:
                self.end = end
                yield from lost
                lost.clear()
                yield offset, _record(head, body)
            else:
                record = _record(head, _gap_marker(head.number, head, head.size).body)
                lost.append((0, record._replace(is_marker=True)))
                self._is_torn = len(body) < head.size and offset == self.end
                if end != self._size and self._header_at(end) is None:
                    end = offset + 1  # something is amiss with its size, too
            self._last = max(self._last, head.number)
            offset = end

    @property
    def damaged_tail_bytes(self) -> int:
        """How many bytes are damaged at the end, without a record that was half written."""
        rest = self._size - self.end
        return 0 if self._is_torn or rest < _HEAD.size else rest

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(max(0, min(size, self._size - offset)))

    def _header_at(self, offset: int) -> RecordHeader | None:
        """Read the head at an offset, if there is one whose checksum fits."""
        raw = self._read(offset, _HEAD.size)
        if len(raw) < _HEAD.size or raw[:4] != _SYNC:
            return None
        check = int.from_bytes(raw[4:_CHECKED], "big")
        head = RecordHeader(*_HEAD.unpack(raw)[2:])
        is_fit = zlib.crc32(raw[_CHECKED:]) == check and head.channel in CHANNELS
        return head if is_fit and head.number > self._last else None

    def _find_next_header(self, offset: int) -> int:
        """Return where the next head is; 0 if there is none."""
        while block := self._read(offset, _BLOCK):
            at = block.find(_SYNC)
            while at >= 0:
                if self._header_at(offset + at):
                    return offset + at
                at = block.find(_SYNC, at + 1)
            offset += max(1, len(block) - len(_SYNC) + 1)
        return 0


def _record(head: RecordHeader, body: bytes) -> Record:
    flags = head.flags
    return Record(
        head.number,
        CHANNELS[head.channel],
        bool(flags & _FROM_CLIENT),
        head.client,
        body,
        head.time,
        head.client_number,
        bool(flags & _MARKER),
        bool(flags & _HELD),
    )


def _gap_marker(number: int, after: RecordHeader, size: int) -> Record:
    words = {"mark": "missing", "before": after.number, "bytes": size}
    return marker(number, after.time, words)
