"""The frames of a file transfer over a stream of bytes: a local socket, remote stdin and stdout.

Several threads may send; one receives. Small frames wait for each other until `flush`. Each end
sends keep-alives, so that one which receives none for long knows that the connection is dead: that
must not keep a partial file locked.

A frame is a head and a body. One end sends files and the other receives them; either may be the
local one. A position counts the bytes of all frames that the sender has sent; by such a position
the receiver acknowledges what it has dealt with.
"""

from __future__ import annotations

import contextlib
import json
import reprlib
import selectors
import struct
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from remoter_kernel.errors import ProtocolError, RemoterError, Unreachable
from remoter_kernel.protocol.threads import Thread

TOGETHER = 64 * 1024  # bytes of small frames that wait for each other
KEEPALIVE_EVERY = 3.0  # seconds
SILENT_FOR = 15.0  # seconds without a sign of life after which the other end is gone

TRANSFER_VERSION = 1  # the number of this protocol
GREETING = b"REMOTER transfer"
HEAD = struct.Struct("!BI")  # the type of a frame, and the size of its body in bytes
MOST_BODY = 1024 * 1024  # bytes
CHUNK = 256 * 1024  # bytes of a file that go together at most
BODY_START = struct.Struct("!QQ")  # a file's number, and from which byte on it follows
ACK_BODY = struct.Struct("!QQ")  # a position, and the number of the last file that is dealt with
MOST_SOURCES = 100_000  # of one transfer
MOST_ENTRIES = 10_000_000  # files, folders and links of one transfer
MOST_BYTES = 2**60  # of all files of one transfer; no disk has as many
MOST_PATH = 4096  # characters of a path, or of a link's target
MOST_TROUBLES = 10_000  # that one end remembers
LONGEST_REASON = 500  # characters that the other end may give as the reason of a trouble
FURTHEST = 2**80  # nanoseconds from 1970; no disk knows a time beyond
ASK_FROM = 1024 * 1024  # bytes: for smaller files, to ask what is there costs more than to send


class StreamEnds(Protocol):
    """The two local ends of a stream of bytes, one to read and one to write."""

    def fileno(self) -> int:
        """The descriptor to select for reading."""

    def read_into(self, view: memoryview) -> int:
        """Read what is there, wait if nothing is; 0 is the end."""

    def write(self, view: memoryview) -> int:
        """Write some of it, wait if there is no room."""

    def end(self) -> None:
        """Let a blocked `read_into` or `write` fail; from any thread."""


class Cut(Unreachable):
    """The stream has ended before the transfer."""


class FramedStream:
    """Frames over such a stream; `start` it, `stop` it."""

    def __init__(self, ends: StreamEnds) -> None:
        self.sent_bytes = 0  # bytes of all frames, from here
        self.received_bytes = 0  # bytes of the frames that came, up to the last one taken
        self._ends = ends
        self._selector = selectors.DefaultSelector()
        self._out = bytearray()
        self._send_lock = threading.Lock()
        self._in = memoryview(bytearray(2 * MOST_BODY))
        self._begin = self._end = 0  # of what has come and was not taken
        self._is_over = threading.Event()
        self._keepalive = Thread(
            self._send_keepalives, name="transfer-beat", on_error=lambda _error: self.stop()
        )
        self.keepalive_frame = pack_frame(FrameType.ALIVE)

    def start(self) -> None:
        """Send keep-alives from now on."""
        self._selector.register(self._ends.fileno(), selectors.EVENT_READ)
        self._keepalive.start()

    def stop(self) -> None:
        """Send no more of them, and let a blocked `recv` or send fail with Cut."""
        self._is_over.set()
        self._ends.end()
        if self._keepalive.is_alive() and self._keepalive is not threading.current_thread():
            self._keepalive.join(KEEPALIVE_EVERY)

    def close(self) -> None:
        """Close the selector, once no thread receives any more."""
        self._selector.close()

    # --- to the other end ---

    def send_later(self, word: FrameType, body: bytes | memoryview = b"") -> None:
        """Send a frame; it may wait for `flush`."""
        with self._send_lock:
            self._append(memoryview(pack_frame(word, body)))

    def send_json(self, word: FrameType, words: dict[str, Any]) -> None:
        """Send a frame whose body is JSON, now."""
        with self._send_lock:
            self._append(memoryview(pack_frame(word, to_body(words))))
            self._flush()

    def send_error(self, trouble: FileTrouble) -> None:
        """Send why nothing goes on, unless the other end has sent it to us, or is gone."""
        if not trouble.is_from_peer:
            with contextlib.suppress(Cut):
                self.send_json(FrameType.ERROR, trouble.to_dict())

    def send_frame(self, whole: memoryview) -> None:
        """Send a frame that is packed already; it may wait for `flush`."""
        with self._send_lock:
            self._append(whole)

    def flush(self) -> None:
        """Send what waits."""
        with self._send_lock:
            self._flush()

    def _append(self, whole: memoryview) -> None:
        self.sent_bytes += len(whole)
        if len(self._out) + len(whole) > TOGETHER:
            self._flush()
        if len(whole) > TOGETHER:
            self._write(whole)
        else:
            self._out += whole

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, bytearray()
            self._write(memoryview(out))

    def _write(self, rest: memoryview) -> None:
        try:
            while rest:
                rest = rest[self._ends.write(rest) :]
        except (OSError, ValueError) as error:
            raise Cut(f"the connection was cut ({error}).") from None

    def _send_keepalives(self) -> None:
        while not self._is_over.wait(KEEPALIVE_EVERY):
            with contextlib.suppress(Cut), self._send_lock:
                self._append(memoryview(self.keepalive_frame))
                self._flush()

    # --- from the other end ---

    def has_input(self, seconds: float = 0.0) -> bool:
        """Is there something to receive, now or within that time?"""
        return self._has_frame() or bool(self._selector.select(seconds))

    def recv(self) -> tuple[FrameType, memoryview]:
        """Return the next frame; its body is overwritten by the next call. Raise Cut."""
        while not self._has_frame():
            self._read()
        word, size = unpack_head(self._in, self._begin)
        begin = self._begin + HEAD.size
        self._begin = begin + size
        self.received_bytes += HEAD.size + size
        return word, self._in[begin : begin + size]

    def _has_frame(self) -> bool:
        there = self._end - self._begin
        if there < HEAD.size:
            return False
        return there >= HEAD.size + unpack_head(self._in, self._begin)[1]

    def _read(self) -> None:
        if self._begin == self._end:
            self._begin = self._end = 0
        elif len(self._in) - self._end < MOST_BODY:
            rest = bytes(self._in[self._begin : self._end])
            self._begin, self._end = 0, len(rest)
            self._in[: len(rest)] = rest
        # Only silence counts: a large file over a slow link takes longer, but never falls silent.
        until = time.monotonic() + SILENT_FOR
        while not self._selector.select(max(0.0, until - time.monotonic())):
            if time.monotonic() >= until:
                raise Cut(f"nothing was heard for {SILENT_FOR:.0f} seconds.")
        try:
            size = self._ends.read_into(self._in[self._end :])
        except (OSError, ValueError) as error:
            raise Cut(f"the connection was cut ({error}).") from None
        if not size:
            raise Cut("the connection was cut.")
        self._end += size


class FrameType(IntEnum):
    """What a frame is for."""

    WISH = 1  # the local end: what is to be done, JSON
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
    """Something is wrong with a file; `is_from_peer`: at the other end, which has sent this."""

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
        """Return what is sent to the other end."""
        return {"path": self.path, "reason": self.reason, "trouble": int(self.code)}


def trouble_from_dict(words: dict[str, Any]) -> FileTrouble:
    """Read a trouble that the other end has sent."""
    try:
        trouble = TroubleCode(words["trouble"])
    except (LookupError, TypeError, ValueError):
        trouble = TroubleCode.OTHER
    path = str(words.get("path", ""))[:MOST_PATH]
    reason = str(words.get("reason", ""))[:LONGEST_REASON]
    return FileTrouble(path, reason, trouble, is_from_peer=True)


def append_trouble(troubles: list[FileTrouble], trouble: FileTrouble) -> None:
    """Keep one file's trouble; FileTrouble ends the transfer once there are too many."""
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
        """Return what is sent of it; `asks`: is the receiver to answer how much is there?"""
        return {**vars(self), "number": number, "asks": asks}


def entry_from_dict(words: dict[str, Any]) -> FileEntry:
    """Read an ENTRY; ProtocolError if it is nonsense."""
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
    # JSON's true is an int to Python.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ProtocolError(f"What is called {key} is {reprlib.repr(value)}.")
    return value


def to_body(words: dict[str, Any]) -> bytes:
    """Write JSON in ASCII: so names that are not UTF-8 (surrogate escapes) come through, too."""
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
    """Read a frame's head: its type, and how many bytes follow."""
    number, size = HEAD.unpack_from(head, at)
    try:
        word = FrameType(number)
    except ValueError:
        raise ProtocolError(f"{number} is no word of a transfer.") from None
    if size > MOST_BODY:
        raise ProtocolError(f"A frame of {size} bytes is too large.")
    return word, size
