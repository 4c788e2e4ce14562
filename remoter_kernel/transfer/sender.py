"""Sends files: what a plan lists, over a duplex, no faster than the other end takes it.

House rules of this file:

- Entries are told ahead of their bytes, so that no file costs a round trip, and for a large one
  the other end has time to say how much of it is there.
- Bytes on their way stay within what the path holds (`window`): whoever else talks through the
  same connection waits behind no more than that.
- What the other end has dealt with is not sent again, whatever becomes of this connection.
- The ear hears, the main thread sends; what both touch is under `_changed`.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, NamedTuple

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.protocol.stream import ReceiveWindow
from remoter_kernel.protocol.threads import Thread
from remoter_kernel.transfer.framed_stream import (
    ACK_BODY,
    ASK_FROM,
    BODY_START,
    CHUNK,
    HEAD,
    MOST_PATH,
    Cut,
    FileTrouble,
    FrameType,
    TroubleCode,
    append_trouble,
    from_body,
    number_of,
    pack_frame,
    to_body,
    trouble_from_dict,
)
from remoter_kernel.transfer.plan import Plan, PlanItem, entry_of, open_source, trouble_from_os
from remoter_kernel.transfer.quota import GrowthAllowance
from remoter_kernel.transfer.safe_paths import read_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.transfer.framed_stream import FramedStream

AHEAD = 256  # entries that are told before their bytes follow
AT_LEAST = 16 * 1024  # bytes of a file that go together
SHARE = 4  # pieces in a window
TRIES = 2  # of a file that changes while it is sent, or arrives damaged
READ_AT_ONCE = 1024 * 1024  # bytes, to find out what is the same
LAST_WORDS = 0.5  # seconds for what the other end said before it hung up
LISTENER_ENDS_WITHIN = 1.0  # seconds


class _AnnouncedFile(NamedTuple):
    """A file that the other end knows of."""

    number: int
    place: int  # in the plan
    item: PlanItem
    asks: bool  # does it say how much of it is there?


class Sender:
    """Sends a plan; may be `run` again on another duplex after a cut."""

    def __init__(
        self,
        plan: Plan,
        on_progress: Callable[[int, int], None] = lambda _size, _files: None,
        *,
        asks_always: bool = False,
    ) -> None:
        """Remember; `on_progress` gets bytes and files that have been sent."""
        self.plan = plan
        self.troubles = list(plan.troubles)
        self.targets: list[str] = []  # where each source will be
        self._on_progress = on_progress
        self._asks_always = asks_always
        self._window = ReceiveWindow()
        self._changed = threading.Condition()
        self._settled: set[int] = set()  # places in the plan, dealt with there
        self._failed: set[int] = set()  # those of them that are not there
        self._tries: dict[tuple[int, TroubleCode], int] = {}
        self._reported_failures: set[str] = set()  # folders and links, and why: told in each run
        self._size = self._files = 0  # sent, or there before

    @property
    def arrived(self) -> tuple[int, int]:
        """How many files are there in the end, and their bytes."""
        items = [item for place, item in enumerate(self.plan.items) if place not in self._failed]
        files = [item.entry for item in items if item.entry.kind == "file"]
        return len(files), sum(entry.size for entry in files)

    def run(self, stream: FramedStream) -> None:
        """Send all that is not there yet; raise Cut, or the other end's trouble."""
        self._stream = stream
        self._acked_bytes = self._last_number = 0  # position dealt with there; of the last entry
        self._pinged_at = 0.0
        self._is_finished = False  # has it said that this was all?
        self._in_flight: dict[int, _AnnouncedFile] = {}  # by number, until it is dealt with
        self._resend: deque[int] = deque()
        self._resume_points: dict[
            int, tuple[int, str]
        ] = {}  # bytes of a file there, and their checksum
        self._replies: dict[FrameType, dict[str, Any]] = {}
        self._error: RemoterError | None = None
        self._growth = GrowthAllowance(self.plan.size)
        self._window.begin()
        ear = Thread(self._listen, name="transfer-ear")
        ear.start()
        try:
            self._send()
        except Cut as cut:
            raise self._end_reason(cut) from None
        except FileTrouble as trouble:
            stream.send_error(trouble)
            raise
        finally:
            stream.stop()
            ear.join(LISTENER_ENDS_WITHIN)

    def _end_reason(self, cut: Cut) -> RemoterError:
        """Return why the stream has ended, as far as the other end has said it."""
        with self._changed:
            self._changed.wait_for(lambda: self._error, LAST_WORDS)
            return self._error or cut

    def _send(self) -> None:
        stream = self._stream
        stream.keepalive_frame = pack_frame(FrameType.PING)
        for words in self.plan.words():
            stream.send_json(FrameType.START, words)
        ready = self._wait_for(FrameType.READY)
        place = str(ready.get("place", ""))[:MOST_PATH]
        into = f"{place.rstrip('/')}/" if ready.get("is_folder") else ""
        self.targets = [into + top["name"] if into else place for top in self.plan.tops]
        self._pinged_at = time.monotonic()
        stream.send_later(FrameType.PING)
        files = [place for place in self._settled if self.plan.items[place].entry.kind == "file"]
        self._size = sum(self.plan.items[place].entry.size for place in files)
        self._files = len(files)
        announced: deque[_AnnouncedFile] = deque()
        left = iter(range(len(self.plan.items)))
        while True:
            self._announce(announced, left)
            if announced:
                one = announced.popleft()
                if not ready.get("dry"):
                    self._send_one(one)
            elif ready.get("dry") or self._is_all_settled():
                break
        self._is_finished = True
        stream.send_later(FrameType.FINISH)
        stream.flush()
        self._wait_for(FrameType.OVER)

    # --- entries ---

    def _announce(self, announced: deque[_AnnouncedFile], left: Iterator[int]) -> None:
        while len(announced) < AHEAD:
            place = self._next(left)
            if place is None:
                return
            item = self.plan.items[place]
            is_file = item.entry.kind == "file"
            asks = is_file and (self._asks_always or item.entry.size >= ASK_FROM)
            self._last_number += 1
            if is_file:
                announced.append(_AnnouncedFile(self._last_number, place, item, asks))
                with self._changed:
                    self._in_flight[self._last_number] = announced[-1]
            self._stream.send_later(
                FrameType.ENTRY, to_body(item.entry.to_dict(self._last_number, asks=asks))
            )

    def _next(self, left: Iterator[int]) -> int | None:
        with self._changed:
            if self._resend:
                return self._resend.popleft()
        return next((place for place in left if place not in self._settled), None)

    def _is_all_settled(self) -> bool:
        """Wait until the other end has dealt with all; False: something is to be sent again."""
        self._stream.flush()
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._resend or not self._in_flight)
            self._raise_error()
            return not self._resend

    # --- one file ---

    def _send_one(self, announced: _AnnouncedFile) -> None:
        if self._was_refused(announced):
            return
        entry = announced.item.entry
        try:
            with open_source(announced.item.place) as file:
                about = os.fstat(file.fileno())
                if (about.st_size, about.st_mtime_ns) == (entry.size, entry.mtime):
                    self._send_body(announced, file)
                else:  # since the plan was made
                    self._reannounce(announced, TroubleCode.OTHER)
        except (OSError, ValueError) as error:  # of the file: the duplex raises Cut
            self._fail(announced, trouble_from_os(error, entry.path))

    def _was_refused(self, announced: _AnnouncedFile) -> bool:
        """Has the other end failed to take it? Then it need not wait for the rest."""
        if announced.number in self._in_flight:
            return False
        self._stream.send_later(
            FrameType.FAILED, to_body({"number": announced.number, "again": True})
        )
        return True

    def _send_body(self, announced: _AnnouncedFile, file: BinaryIO) -> None:
        entry = announced.item.entry
        begin, digest = (
            self._skip_identical(announced, file) if announced.asks else (0, hashlib.sha256())
        )
        self._size += begin
        self._stream.send_later(FrameType.BODY, BODY_START.pack(announced.number, begin))
        sent = self._send_chunks(announced, file, digest, entry.size - begin)
        if self._was_refused(announced):
            self._size -= begin + sent
            return
        about = os.fstat(file.fileno())
        if (about.st_size, about.st_mtime_ns) != (entry.size, entry.mtime) or (
            begin + sent != entry.size or file.read(1)
        ):
            self._size -= begin + sent
            self._reannounce(announced, TroubleCode.CHANGED)
            return
        self._files += 1
        words = {"number": announced.number, "sha256": digest.hexdigest()}
        self._stream.send_later(FrameType.END, to_body(words))
        self._on_progress(self._size, self._files)

    def _skip_identical(self, announced: _AnnouncedFile, file: BinaryIO) -> tuple[int, Any]:
        """Return how many bytes need not be sent, as they are there, and their checksum."""
        self._stream.flush()
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._error
                    or announced.number in self._resume_points
                    or announced.number not in self._in_flight
                )
            )
            self._raise_error()
            size, there = self._resume_points.pop(announced.number, (0, ""))
        left, digest = size, hashlib.sha256()
        if size and size <= announced.item.entry.size:
            while left and (data := file.read(min(left, READ_AT_ONCE))):
                digest.update(data)
                left -= len(data)
                self._raise_error()
            if not left and digest.hexdigest() == there:
                return size, digest
        file.seek(0)
        return 0, hashlib.sha256()

    def _send_chunks(
        self, announced: _AnnouncedFile, file: BinaryIO, digest: Any, size: int
    ) -> int:
        """Send that many bytes of an open file, if they are wanted; return how many there were."""
        buffer = bytearray(HEAD.size + min(CHUNK, size))
        view = memoryview(buffer)
        left = size
        while left and announced.number in self._in_flight:
            piece = self._wait_for_window(min(CHUNK, left))
            count = file.readinto(view[HEAD.size : HEAD.size + piece])  # type: ignore[attr-defined]
            if not count:
                break
            whole = view[: HEAD.size + count]
            HEAD.pack_into(buffer, 0, FrameType.DATA, count)
            digest.update(whole[HEAD.size :])
            self._stream.send_frame(whole)
            left -= count
            self._size += count
            self._on_progress(self._size, self._files)
        return size - left

    def _wait_for_window(self, wanted: int) -> int:
        """Wait until something may be sent; return how many bytes."""
        window = self._window
        piece = min(wanted, max(AT_LEAST, window.size // SHARE))
        if self._stream.sent_bytes - self._acked_bytes + piece > window.size:
            self._stream.flush()
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._error
                        or self._stream.sent_bytes - self._acked_bytes + piece <= window.size
                    )
                )
        self._raise_error()
        return piece

    # --- what goes wrong with one file ---

    def _reannounce(self, announced: _AnnouncedFile, why: TroubleCode) -> None:
        """Tell that a file is not what it was said to be, and send it again, but not for ever."""
        try:
            about = os.lstat(announced.item.place)
        except (OSError, ValueError) as error:
            self._fail(announced, trouble_from_os(error, announced.item.entry.path))
            return
        fresh = entry_of("file", announced.item.entry.path, about)
        if self._has_no_try_left(announced, why):
            reason = "it changed while it was sent, and again the second time"
        elif not self._growth.allows(fresh.size - announced.item.entry.size):
            reason = "it has grown far beyond what it was at the start"
        else:
            with self._changed:
                self._in_flight.pop(announced.number, None)
                self.plan.items[announced.place] = PlanItem(fresh, announced.item.place)
                self._resend.append(announced.place)
            self._stream.send_later(
                FrameType.FAILED, to_body({"number": announced.number, "again": True})
            )
            return
        self._fail(announced, FileTrouble(fresh.path, reason, TroubleCode.CHANGED))

    def _has_no_try_left(self, announced: _AnnouncedFile, why: TroubleCode) -> bool:
        key = (announced.place, why)
        self._tries[key] = self._tries.get(key, 0) + 1
        return self._tries[key] >= TRIES

    def _fail(self, announced: _AnnouncedFile, trouble: FileTrouble) -> None:
        """Go on without a file that cannot be sent."""
        with self._changed:
            self._in_flight.pop(announced.number, None)
            self._give_up(announced, trouble)
        self._stream.send_later(
            FrameType.FAILED, to_body({**trouble.to_dict(), "number": announced.number})
        )

    def _give_up(self, announced: _AnnouncedFile, trouble: FileTrouble) -> None:
        self._settled.add(announced.place)
        self._failed.add(announced.place)
        append_trouble(self.troubles, trouble)

    # --- what the other end says ---

    def _wait_for(self, word: FrameType) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._error or word in self._replies)
            if word not in self._replies:
                self._raise_error()
            return self._replies[word]

    def _raise_error(self) -> None:
        if self._error:
            raise self._error

    def _listen(self) -> None:
        try:
            while FrameType.OVER not in self._replies:
                word, body = self._stream.recv()
                with self._changed:
                    self._on_frame(word, body)
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - whatever it is, who sends waits for it
            if not isinstance(error, RemoterError):
                error = ProtocolError(f"Nonsense came: {error}")
            with self._changed:
                self._error = error
                self._changed.notify_all()
            self._stream.stop()  # whoever waits for room in a pipe is not woken otherwise

    def _on_frame(self, word: FrameType, body: memoryview) -> None:
        if word is FrameType.ACK:
            self._on_ack(*ACK_BODY.unpack(body))
        elif word is FrameType.HAVE:
            self._on_have(from_body(body))
        elif word is FrameType.FAILED:
            self._on_failed(from_body(body))
        elif word is FrameType.PONG:
            if self._pinged_at:
                self._window.on_round_trip(time.monotonic() - self._pinged_at)
                self._pinged_at = 0.0
        elif word is FrameType.ERROR:
            raise trouble_from_dict(from_body(body))
        elif word is FrameType.READY or (word is FrameType.OVER and self._is_finished):
            self._replies[word] = from_body(body)
        elif word is not FrameType.ALIVE:
            raise ProtocolError(f"A receiver does not say {word.name}.")

    def _on_ack(self, position: int, number: int) -> None:
        if (
            not self._acked_bytes <= position <= self._stream.sent_bytes
            or number > self._last_number
        ):
            raise ProtocolError(f"Byte {position}, entry {number} were never sent.")
        self._acked_bytes = position
        self._window.on_acked(position, time.monotonic())
        while self._in_flight and (first := next(iter(self._in_flight))) <= number:
            self._settled.add(self._in_flight.pop(first).place)

    def _on_have(self, words: dict[str, Any]) -> None:
        number, size = number_of(words), number_of(words, "size")
        if number in self._in_flight:
            self._resume_points[number] = size, read_digest(words.get("sha256")) if size else ""

    def _on_failed(self, words: dict[str, Any]) -> None:
        trouble = trouble_from_dict(words)
        announced = self._in_flight.pop(number_of(words), None)
        if announced is None:  # a folder, or a link; told in each run
            if str(trouble) not in self._reported_failures:
                append_trouble(self.troubles, trouble)
                self._reported_failures.add(str(trouble))
        elif trouble.code is TroubleCode.DAMAGED and not self._has_no_try_left(
            announced, trouble.code
        ):
            self._resend.append(announced.place)
        else:
            self._give_up(announced, trouble)
