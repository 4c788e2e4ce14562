"""Sends files: what a plan lists, over a framed stream, no faster than the other end takes it.

House rules of this file:

- Entries are announced ahead of their bytes, so that no file costs a round trip, and for a large
  one the other end has time to answer how much of it is there.
- Bytes in flight stay within what the path holds (`ReceiveWindow`): what else goes through the
  same SSH connection waits behind no more than that.
- What the other end has dealt with is not sent again, whatever becomes of this connection.
- One thread listens, the caller's sends; what both touch is under `_changed`.
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

AHEAD = 256  # entries that are announced before their bytes follow
AT_LEAST = 16 * 1024  # bytes of a file in one frame: smaller ones cost more than they help
SHARE = 4  # frames in a window: while one is acknowledged, others are in flight
TRIES = 2  # of a file that changes while it is sent, or arrives damaged
READ_AT_ONCE = 1024 * 1024  # bytes, to find out what is the same
LAST_WORDS = 0.5  # seconds for an ERROR that the other end sent before it hung up
LISTENER_ENDS_WITHIN = 1.0  # seconds


class _AnnouncedFile(NamedTuple):
    """A file of which the other end knows."""

    number: int
    place: int  # in the plan
    item: PlanItem
    asks: bool  # does the other end answer HAVE before the bytes are sent?


class _SendRun:
    """The state of one run, of one connection; what both threads touch is under `changed`."""

    def __init__(self, stream: FramedStream) -> None:
        self.stream = stream
        self.acked_bytes = 0  # the position up to which the other end has dealt with all
        self.last_number = 0  # of the last entry that was announced
        self.pinged_at = 0.0  # 0.0: the pong has come
        self.is_finished = False  # has FINISH been sent?
        self.in_flight: dict[int, _AnnouncedFile] = {}  # by number, until it is dealt with
        self.resend: deque[int] = deque()  # places in the plan
        self.resume_points: dict[int, tuple[int, str]] = {}  # bytes of a file there, their checksum
        self.replies: dict[FrameType, dict[str, Any]] = {}
        self.error: RemoterError | None = None
        self.size = self.files = 0  # sent, or there before

    def fail(self, number: int, words: dict[str, Any]) -> None:
        """Tell the other end that the file of this number does not come, or not now."""
        self.stream.send_later(FrameType.FAILED, to_body({**words, "number": number}))


class Sender:
    """Sends a plan; may be `run` again on another stream after a cut."""

    def __init__(
        self,
        plan: Plan,
        on_progress: Callable[[int, int], None] = lambda _size, _files: None,
        *,
        asks_always: bool = False,
    ) -> None:
        """`on_progress` gets bytes and files that have been sent."""
        self.plan = plan
        self.troubles = list(plan.troubles)
        self.targets: list[str] = []  # where each source will be
        self._on_progress = on_progress
        self._asks_always = asks_always
        self._window = ReceiveWindow()
        self._growth = GrowthAllowance(plan.size)
        self._changed = threading.Condition()
        # By place in the plan, of what the other end has dealt with: is it there now?
        self._settled: dict[int, bool] = {}
        self._tries: dict[tuple[int, TroubleCode], int] = {}
        self._reported_failures: set[str] = set()  # of folders and links, which each run repeats
        self._run: _SendRun

    @property
    def arrived(self) -> tuple[int, int]:
        """How many files are there in the end, and their bytes."""
        items = enumerate(self.plan.items)
        there = [item.entry for place, item in items if self._settled.get(place, True)]
        files = [entry for entry in there if entry.kind == "file"]
        return len(files), sum(entry.size for entry in files)

    def run(self, stream: FramedStream) -> None:
        """Send all that is not there yet; raise Cut, or the other end's trouble."""
        self._run = _SendRun(stream)
        self._growth = GrowthAllowance(self.plan.size)
        self._window.begin()
        listener = Thread(self._listen, name="transfer-ear")
        listener.start()
        try:
            self._send()
        except Cut as cut:
            raise self._end_reason(cut) from None
        except FileTrouble as trouble:
            stream.send_error(trouble)
            raise
        finally:
            stream.stop()
            listener.join(LISTENER_ENDS_WITHIN)

    def _end_reason(self, cut: Cut) -> RemoterError:
        """Return the reason that the other end gave, if any: the cut is what followed."""
        with self._changed:
            self._changed.wait_for(lambda: self._run.error, LAST_WORDS)
            return self._run.error or cut

    def _send(self) -> None:
        run, stream = self._run, self._run.stream
        stream.keepalive_frame = pack_frame(FrameType.PING)
        for words in self.plan.words():
            stream.send_json(FrameType.START, words)
        ready = self._wait_for(FrameType.READY)
        place = str(ready.get("place", ""))[:MOST_PATH]
        into = f"{place.rstrip('/')}/" if ready.get("is_folder") else ""
        self.targets = [into + top["name"] if into else place for top in self.plan.tops]
        run.pinged_at = time.monotonic()
        stream.send_later(FrameType.PING)
        settled = [self.plan.items[place].entry for place in self._settled]  # by an earlier run
        run.size = sum(entry.size for entry in settled)  # only files have one
        run.files = sum(entry.kind == "file" for entry in settled)
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
        run.is_finished = True
        stream.send_later(FrameType.FINISH)
        stream.flush()
        self._wait_for(FrameType.OVER)

    # --- entries ---

    def _announce(self, announced: deque[_AnnouncedFile], left: Iterator[int]) -> None:
        run = self._run
        while len(announced) < AHEAD:
            place = self._next(left)
            if place is None:
                return
            item = self.plan.items[place]
            is_file = item.entry.kind == "file"
            asks = is_file and (self._asks_always or item.entry.size >= ASK_FROM)
            run.last_number += 1
            if is_file:
                announced.append(_AnnouncedFile(run.last_number, place, item, asks))
                with self._changed:
                    run.in_flight[run.last_number] = announced[-1]
            words = item.entry.to_dict(run.last_number, asks=asks)
            run.stream.send_later(FrameType.ENTRY, to_body(words))

    def _next(self, left: Iterator[int]) -> int | None:
        with self._changed:
            if self._run.resend:
                return self._run.resend.popleft()
        return next((place for place in left if place not in self._settled), None)

    def _is_all_settled(self) -> bool:
        """Wait until the other end has dealt with all; False: something is to be sent again."""
        run = self._run
        run.stream.flush()
        self._wait_until(lambda: run.resend or not run.in_flight)
        return not run.resend

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
        except (OSError, ValueError) as error:  # of the file: the stream raises Cut
            self._fail(announced, trouble_from_os(error, entry.path))

    def _was_refused(self, announced: _AnnouncedFile) -> bool:
        """Has the other end failed to take it? Then it need not wait for the rest."""
        if announced.number in self._run.in_flight:
            return False
        self._run.fail(announced.number, {"again": True})
        return True

    def _send_body(self, announced: _AnnouncedFile, file: BinaryIO) -> None:
        run, entry = self._run, announced.item.entry
        begin, digest = 0, hashlib.sha256()
        if announced.asks:
            begin, digest = self._skip_identical(announced, file)
        run.size += begin
        run.stream.send_later(FrameType.BODY, BODY_START.pack(announced.number, begin))
        end = begin + self._send_chunks(announced, file, digest, entry.size - begin)
        if self._was_refused(announced):
            run.size -= end
            return
        about = os.fstat(file.fileno())
        is_unchanged = (about.st_size, about.st_mtime_ns) == (entry.size, entry.mtime)
        # A file of /proc has size 0 and yet bytes: only reading on tells.
        if not is_unchanged or end != entry.size or file.read(1):
            run.size -= end
            self._reannounce(announced, TroubleCode.CHANGED)
            return
        run.files += 1
        words = {"number": announced.number, "sha256": digest.hexdigest()}
        run.stream.send_later(FrameType.END, to_body(words))
        self._on_progress(run.size, run.files)

    def _skip_identical(self, announced: _AnnouncedFile, file: BinaryIO) -> tuple[int, Any]:
        """Return how many bytes need not be sent, as they are there, and their checksum."""
        run, number = self._run, announced.number
        run.stream.flush()
        self._wait_until(lambda: number in run.resume_points or number not in run.in_flight)
        size, there = run.resume_points.pop(number, (0, ""))
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
        run, left = self._run, size
        while left and announced.number in run.in_flight:
            piece = self._wait_for_window(min(CHUNK, left))
            count = file.readinto(view[HEAD.size : HEAD.size + piece])  # type: ignore[attr-defined]
            if not count:
                break
            whole = view[: HEAD.size + count]
            HEAD.pack_into(buffer, 0, FrameType.DATA, count)
            digest.update(whole[HEAD.size :])
            run.stream.send_frame(whole)
            left -= count
            run.size += count
            self._on_progress(run.size, run.files)
        return size - left

    def _wait_for_window(self, wanted: int) -> int:
        """Wait until something may be sent; return how many bytes."""
        run, window = self._run, self._window
        piece = min(wanted, max(AT_LEAST, window.size // SHARE))

        def fits() -> bool:
            return run.stream.sent_bytes - run.acked_bytes + piece <= window.size

        if not fits():
            run.stream.flush()  # what waits in the buffer can never be acknowledged
            self._wait_until(fits)
        self._raise_error()
        return piece

    # --- what goes wrong with one file ---

    def _reannounce(self, announced: _AnnouncedFile, why: TroubleCode) -> None:
        """Tell that a file is not what was announced, and send it again, but not for ever."""
        run = self._run
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
                run.in_flight.pop(announced.number, None)
                self.plan.items[announced.place] = PlanItem(fresh, announced.item.place)
                run.resend.append(announced.place)
            run.fail(announced.number, {"again": True})
            return
        self._fail(announced, FileTrouble(fresh.path, reason, TroubleCode.CHANGED))

    def _has_no_try_left(self, announced: _AnnouncedFile, why: TroubleCode) -> bool:
        key = (announced.place, why)
        self._tries[key] = self._tries.get(key, 0) + 1
        return self._tries[key] >= TRIES

    def _fail(self, announced: _AnnouncedFile, trouble: FileTrouble) -> None:
        """Go on without a file that cannot be sent."""
        with self._changed:
            self._run.in_flight.pop(announced.number, None)
            self._give_up(announced, trouble)
        self._run.fail(announced.number, trouble.to_dict())

    def _give_up(self, announced: _AnnouncedFile, trouble: FileTrouble) -> None:
        self._settled[announced.place] = False
        append_trouble(self.troubles, trouble)

    # --- from the other end ---

    def _wait_for(self, word: FrameType) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._run.error or word in self._run.replies)
        if word not in self._run.replies:  # else it counts, though the stream has ended after it
            self._raise_error()
        return self._run.replies[word]

    def _wait_until(self, is_so: Callable[[], object]) -> None:
        """Wait for something that the listener does; raise the error that it has met."""
        with self._changed:
            self._changed.wait_for(lambda: self._run.error or is_so())
        self._raise_error()

    def _raise_error(self) -> None:
        if self._run.error:
            raise self._run.error

    def _listen(self) -> None:
        run = self._run
        try:
            while FrameType.OVER not in run.replies:
                word, body = run.stream.recv()
                with self._changed:
                    self._on_frame(word, body)
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - whatever it is, the sending thread waits for it
            if not isinstance(error, RemoterError):
                error = ProtocolError(f"Nonsense came: {error}")
            with self._changed:
                run.error = error
                self._changed.notify_all()
            run.stream.stop()  # else a write that waits for room in a pipe would wait for ever

    def _on_frame(self, word: FrameType, body: memoryview) -> None:
        run = self._run
        if word is FrameType.ACK:
            self._on_ack(*ACK_BODY.unpack(body))
        elif word is FrameType.HAVE:
            self._on_have(from_body(body))
        elif word is FrameType.FAILED:
            self._on_failed(from_body(body))
        elif word is FrameType.PONG:
            if run.pinged_at:
                self._window.on_round_trip(time.monotonic() - run.pinged_at)
                run.pinged_at = 0.0
        elif word is FrameType.ERROR:
            raise trouble_from_dict(from_body(body))
        elif word is FrameType.READY or (word is FrameType.OVER and run.is_finished):
            run.replies[word] = from_body(body)
        elif word is not FrameType.ALIVE:
            raise ProtocolError(f"A receiver does not say {word.name}.")

    def _on_ack(self, position: int, number: int) -> None:
        run = self._run
        is_sent = run.acked_bytes <= position <= run.stream.sent_bytes
        if not is_sent or number > run.last_number:
            raise ProtocolError(f"Byte {position}, entry {number} were never sent.")
        run.acked_bytes = position
        self._window.on_acked(position, time.monotonic())
        while run.in_flight and (first := next(iter(run.in_flight))) <= number:
            self._settled[run.in_flight.pop(first).place] = True

    def _on_have(self, words: dict[str, Any]) -> None:
        number, size = number_of(words), number_of(words, "size")
        if number in self._run.in_flight:
            self._run.resume_points[number] = size, read_digest(words.get("sha256")) if size else ""

    def _on_failed(self, words: dict[str, Any]) -> None:
        trouble = trouble_from_dict(words)
        announced = self._run.in_flight.pop(number_of(words), None)
        if announced is None:  # a folder, or a link; each run repeats it
            if str(trouble) not in self._reported_failures:
                append_trouble(self.troubles, trouble)
                self._reported_failures.add(str(trouble))
        elif trouble.code is TroubleCode.DAMAGED and not self._has_no_try_left(
            announced, trouble.code
        ):
            self._run.resend.append(announced.place)
        else:
            self._give_up(announced, trouble)
