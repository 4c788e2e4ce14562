"""The words of a transfer of files: a stream of frames, each a head and a body (pure).

One end sends and the other receives, whichever of them is here. A position counts the bytes of
all frames that the sender has said; what the receiver has dealt with it acknowledges by that.
"""

from __future__ import annotations

import json
import reprlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from remoter_kernel.errors import ProtocolError, RemoterError

TRANSFER_VERSION = 1  # the number of this protocol
GREETING = b"REMOTER transfer"
HEAD = struct.Struct("!BI")  # which word, and the size of its body in bytes
MOST_BODY = 1024 * 1024  # bytes
CHUNK = 256 * 1024  # bytes of a file that go together at most
BODY_START = struct.Struct("!QQ")  # a file's number, and from which byte on it follows
ACK_BODY = struct.Struct("!QQ")  # a position, and the number of the last file that is dealt with
MOST_SOURCES = 100_000  # that one errand may name
MOST_ENTRIES = 10_000_000  # files, folders and links of one transfer
MOST_BYTES = 2**60  # of all files of one transfer; no disk has as many
MOST_PATH = 4096  # characters of a path, or of a link's target
MOST_TROUBLES = 10_000  # that one end remembers
LONGEST_REASON = 500  # characters of what the other end says of a trouble
FURTHEST = 2**80  # nanoseconds from 1970; no disk knows a time beyond
ASK_FROM = 1024 * 1024  # bytes: of a file this large, it is asked how much is there already


class FrameType(IntEnum):
    """What a frame is for."""

    WISH = 1  # the front: what is to be done, JSON
    START = 2  # the sender: what is coming, JSON
    READY = 3  # the receiver: where it will be, JSON
    ENTRY = 4  # the sender: a file, folder or link that is coming, JSON
    HAVE = 5  # the receiver: how much of a file there is, JSON
    BODY = 6  # the sender: the bytes of a file follow
    DATA = 7  # the sender: some of them
    END = 8  # the sender: that was all of it, JSON
    FINISH = 9  # the sender: that was all
    ACK = 10  # the receiver: how much it has dealt with
    FAILED = 11  # either: one file's trouble, JSON; the others go on
    OVER = 12  # the receiver: all is done
    ERROR = 13  # either: nothing goes on, JSON
    ALIVE = 14  # either, when there is nothing to say
    PING = 15  # the sender
    PONG = 16  # the receiver, at once


class TroubleCode(IntEnum):
    """What is wrong with a file, by what a person can do about it."""

    OTHER = 0
    MISSING = 1
    FORBIDDEN = 2
    FULL = 3  # no room is left
    IS_FOLDER = 4  # where a file is meant
    IS_FILE = 5  # where a folder is meant
    CHANGED = 6  # while it was sent, twice
    DAMAGED = 7  # its checksum is another one at the other end, twice
    UNSAFE = 8  # a name that leads out of the folder that was named
    WORDS = 9  # the request itself cannot be right


class FileTrouble(RemoterError):
    """Something is wrong with a file; `is_from_peer`: at the other end, which has told us."""

    def __init__(
        self,
        path: str,
        reason: str,
        code: TroubleCode = TroubleCode.OTHER,
        *,
        is_from_peer: bool = False,
    ) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.code = code
        self.is_from_peer = is_from_peer

    def to_dict(self) -> dict[str, Any]:
        """Return what the other end is told."""
        return {"path": self.path, "reason": self.reason, "trouble": int(self.code)}


def trouble_from_dict(words: dict[str, Any]) -> FileTrouble:
    """Read what the other end tells of a trouble."""
    try:
        trouble = TroubleCode(words["trouble"])
    except (LookupError, TypeError, ValueError):
        trouble = TroubleCode.OTHER
    path = str(words.get("path", ""))[:MOST_PATH]
    reason = str(words.get("reason", ""))[:LONGEST_REASON]
    return FileTrouble(path, reason, trouble, is_from_peer=True)


def append_trouble(troubles: list[FileTrouble], trouble: FileTrouble) -> None:
    """Remember one file's trouble; FileTrouble ends it all once there are too many."""
    if len(troubles) < MOST_TROUBLES:
        troubles.append(trouble)
        return
    first = troubles[0]
    reason = f"{first.reason}; {MOST_TROUBLES:,} others had trouble, too, and the rest is left"
    raise FileTrouble(first.path, reason, first.code, is_from_peer=trouble.is_from_peer)


@dataclass(frozen=True)
class FileEntry:
    """One thing that is sent."""

    path: str  # names with "/" between them; the first is that of the source
    kind: str = "file"  # or "folder", or "link"
    size: int = 0  # bytes
    mtime: int = 0  # nanoseconds since 1970
    mode: int | None = None  # permission bits; None: the sender's system has none
    target: str = ""  # of a link, as seen from its own folder

    def to_dict(self, number: int, *, asks: bool) -> dict[str, Any]:
        """Return what is said of it; `asks`: how much of it is there already?"""
        return {**vars(self), "number": number, "asks": asks}


def entry_from_dict(words: dict[str, Any]) -> FileEntry:
    """Read what is said of an entry; ProtocolError if that is nonsense."""
    mode = words.get("mode")
    entry = FileEntry(
        path=_typed(words, "path", str),
        kind=_typed(words, "kind", str),
        size=_typed(words, "size", int),
        mtime=_typed(words, "mtime", int),
        mode=None if mode is None else _typed(words, "mode", int) & 0o777,
        target=_typed(words, "target", str),
    )
    if entry.kind not in {"file", "folder", "link"}:
        raise ProtocolError(f"There is no entry of the kind {reprlib.repr(entry.kind)}.")
    if not 0 <= entry.size <= MOST_BYTES or abs(entry.mtime) > FURTHEST:
        raise ProtocolError("No file has such a size, or such a time.")
    if max(len(entry.path), len(entry.target)) > MOST_PATH:
        raise ProtocolError(f"No path has more than {MOST_PATH:,} characters.")
    return entry


def number_of(words: dict[str, Any], key: str = "number") -> int:
    """Read a number that cannot be negative."""
    number: int = _typed(words, key, int)
    if number < 0:
        raise ProtocolError(f"{key} is {reprlib.repr(number)}.")
    return number


def _typed(words: dict[str, Any], key: str, kind: type) -> Any:
    value = words.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ProtocolError(f"What is called {key} is {reprlib.repr(value)}.")
    return value


def to_body(words: dict[str, Any]) -> bytes:
    """Write words as JSON: ASCII, so that names which are no text come through, too."""
    return json.dumps(words).encode("ascii")


def from_body(body: bytes | memoryview) -> dict[str, Any]:
    """Read JSON words."""
    try:
        words = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"What came is no JSON: {error}.") from None
    if not isinstance(words, dict):
        raise ProtocolError("What came is no JSON object.")
    return words


def pack_frame(word: FrameType, body: bytes | memoryview = b"") -> bytes:
    """Put a frame together."""
    return HEAD.pack(word, len(body)) + body


def unpack_head(head: bytes | bytearray | memoryview, at: int = 0) -> tuple[FrameType, int]:
    """Read a frame's head: which word, and how many bytes follow."""
    number, size = HEAD.unpack_from(head, at)
    try:
        word = FrameType(number)
    except ValueError:
        raise ProtocolError(f"{number} is no word of a transfer.") from None
    if size > MOST_BODY:
        raise ProtocolError(f"A frame of {size} bytes is too large.")
    return word, size
