"""A session's journal: an append-only file, and the outbox of every client.

The number of a record is its number on the link. One thread writes, another one reads, so that a
slow disk holds up neither interrupts nor outputs. Outputs may be sent before they are
written; a client's request is acknowledged, and given to the kernel, only after. A
record that the disk refuses stays in memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Union

from remoter_kernel import logs
from remoter_kernel.evaluator import records
from remoter_kernel.evaluator.compaction import CompactedFile, compact
from remoter_kernel.evaluator.index import Index
from remoter_kernel.evaluator.records import EVERYONE, Record, Scan, encode_record
from remoter_kernel.protocol.frames import Channel, pack_parts, to_json
from remoter_kernel.protocol.reactor import ignore
from remoter_kernel.protocol.threads import Thread, Worker, end_loop_with

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

RETRY_AFTER = 1.0  # seconds: a full disk may have room again
RECENT_BYTES = 8 * 1024 * 1024  # bytes of written records that stay in memory
HANGS_AFTER = 10.0  # seconds without a write that ends, after which clients are told of it
WRITE_BYTES = 1024 * 1024  # bytes that are written together
READ_AHEAD = 1024 * 1024  # bytes that are read together
READ_CACHE_BYTES = 4 * 1024 * 1024  # bytes that were read and may yet be asked for
READ_TRIES = 5  # a second apart: a network disk may be back by then
READ_WITHIN = 1.0  # seconds that the last reading may take when all ends
# Numbers that an evaluator which died may have sent and not written: none is used twice.
GAP = 1_000_000
LIMIT = 1024**3  # bytes of a journal, unless its session has another limit
TARGET_SHARE = 0.75  # of the limit: what is left when room was made

Call = Callable[[], None]
ToWrite = Union[Record, CompactedFile, None]  # None: the end


class Journal:
    """An open journal. All but the sections named so runs in the caller's thread."""

    # 28 attributes: the index, what is in memory, the writer's and the reader's own; a record
    # passes through all of them.

    def __init__(
        self,
        path: Path,
        call: Callable[[Call], None],
        limit: int = LIMIT,
        call_without_wakeup: Callable[[Call], None] | None = None,
    ) -> None:
        """`call` makes a call in the caller's thread, from any other; `limit` is in bytes.

        `call_without_wakeup` does the same whenever that thread wakes up next.
        """
        self.path = path
        self.limit = limit
        self.last = 0
        self.written = 0
        self.lowest_acked: Callable[[], int] = lambda: self.last  # by all connected clients
        self.on_read: Call = ignore  # what `body` was asked for may be in memory now
        self._call = call
        self._call_without_wakeup = call_without_wakeup or call
        self._last_error = ""  # why the disk does not take records, in the system's words
        self._last_progress = 0.0  # of the writer; on the monotonic clock
        self._write_fd = -1  # the writer's, as are the next two
        self._logged = ""
        self._end = 0
        self._read_fd = -1
        self._index = Index()
        self._recent: dict[int, bytes] = {}  # bodies by number: what is unwritten, and the newest
        self._recent_bytes = 0
        self._read_cache: dict[int, bytes] = {}  # bodies that were read from the file of late
        self._read_cache_bytes = 0
        self._being_read: set[int] = set()
        self._failed_reads: dict[int, int] = {}  # how often the disk has refused each
        self.unreadable: dict[int, str] = {}  # by number: what the disk says instead of it
        self._reader = Worker("journal reader", call)
        self._on_written: dict[int, Call] = {}
        self._compact_at = limit
        self._is_compacting = False
        self._queue: queue.SimpleQueue[ToWrite] = queue.SimpleQueue()
        self._writer = Thread(self._write_all, name="journal", on_error=self._end_process)

    @property
    def write_error(self) -> str:
        """Why the disk does not take records; empty: it does."""
        is_late = self.written < self.last and time.monotonic() - self._last_progress > HANGS_AFTER
        return self._last_error or ("it does not answer" if is_late else "")

    def open(self, visit: Callable[[Record], None] = lambda _record: None) -> None:
        """Open or create the file (0600), show `visit` all that is in it, begin to write."""
        self._write_fd = os.open(str(self.path), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._read_fd = os.dup(self._write_fd)
        if os.fstat(self._write_fd).st_size:
            self._recover(visit)
        if not self._end:
            line = records.first_line()
            self._end = os.write(self._write_fd, line)
            if self._end < len(line):  # a full disk may take some bytes of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._writer.start()

    def close(self) -> None:
        """Write what is left, and close."""
        self._queue.put(None)
        self._writer.join()
        self._reader.close(READ_WITHIN)
        _close(self._write_fd, self._read_fd)

    def append(
        self,
        channel: Channel,
        body: bytes,
        *,
        client: bytes = EVERYONE,
        client_number: int = 0,
        is_from_client: bool = False,
        is_held: bool = False,
        is_marker: bool = False,
        then: Call | None = None,
    ) -> int:
        """Add a record and return its number; `then` is called once it is written."""
        origin = channel, is_from_client, client
        flags = client_number, is_marker, is_held
        record = Record(self.last + 1, *origin, body, time.time(), *flags)
        if self.written == self.last:  # the writer had nothing to do: from now on it may be late
            self._last_progress = time.monotonic()
        self.last = record.number
        self._index.add(record)
        self._recent[self.last] = record.body
        self._recent_bytes += len(record.body)
        if then:
            self._on_written[self.last] = then  # before the writer has it: it asks whether to wake
        self._queue.put(record)
        return self.last

    def append_marker(self, words: dict[str, Any], then: Call | None = None) -> int:
        """Add a mark: for whoever reads the journal, and for no client."""
        body = pack_parts([to_json(words)])
        return self.append(Channel.EVENT, body, is_marker=True, then=then)

    def entries_for(self, client: bytes, number: int) -> Iterator[tuple[int, Channel]]:
        """Yield number and channel of what a client should get beyond a number."""
        return self._index.entries_for(client, EVERYONE, number)

    def channel_for(self, client: bytes, number: int) -> Channel | None:
        """Return the channel of a record that a client should get, else None."""
        return self._index.channel_for(client, EVERYONE, number)

    def body(self, number: int) -> bytes | None:
        """Return the body of a record from memory; None: it is being read, then `on_read` comes."""
        body = self._recent.get(number, self._read_cache.get(number))
        if body is None and number not in self._being_read:
            # One that the disk has refused is read alone: its neighbours may be well.
            places = self._index.locate(number, 0 if number in self._failed_reads else READ_AHEAD)
            self._being_read.update(places)
            self._reader.submit(
                partial(self._read_bodies, self._read_fd, places),
                self._on_bodies_read,
                partial(self._on_read_failed, number),
            )
        return body

    def _recover(self, visit: Callable[[Record], None]) -> None:
        """Read what an evaluator before this one has written, and cut off a torn tail.

        A record may be torn where that one died in a write; what follows it could not be read.
        """
        with self.path.open("rb") as file:
            scan = Scan(file)
            for offset, record in scan:
                if offset:
                    self._index.add(record, offset)
                self.last = record.number
                visit(record)
        os.ftruncate(self._write_fd, scan.end)  # else new records would follow half a one
        self._end = scan.end
        self.last += GAP
        self.written = self.last
        if scan.damaged_tail_bytes:
            words = {"mark": "missing", "before": self.last + 2, "bytes": scan.damaged_tail_bytes}
            visit(records.marker(self.last + 1, time.time(), words))
            self.append_marker(words)

    # The writer's thread ---------------------------------------------------------------

    def _write_all(self) -> None:
        refused: list[Record] = []  # what is unwritten: new, or refused by the disk so far
        is_open = True
        while is_open:
            fresh = self._take_queued(RETRY_AFTER if refused else None)
            is_open = None not in fresh
            refused += [item for item in fresh if isinstance(item, Record)]
            if refused:
                trouble, offsets = self._write(refused)
                first, last = refused[0].number, refused[-1].number
                # If nothing waits for it, the loop may take note when it wakes up anyway: a wake-up
                # for each output would cost more than the output itself.
                is_awaited = self._on_written or trouble != self._last_error
                call = self._call if is_awaited else self._call_without_wakeup
                call(partial(self._on_written_up_to, first, last, offsets, trouble, self._end))
                del refused[: len(offsets)]  # the rest is tried again after `RETRY_AFTER`
            for item in fresh:
                if isinstance(item, CompactedFile):
                    self._switch_to(item)

    def _take_queued(self, patience: float | None) -> list[ToWrite]:
        """Wait for something to write, and take all there is."""
        items: list[ToWrite] = []
        with contextlib.suppress(queue.Empty):
            items.append(self._queue.get(timeout=patience))
            while True:
                items.append(self._queue.get_nowait())
        return items

    def _write(self, unwritten: list[Record]) -> tuple[str, list[int]]:
        """Write as much as the disk takes; return why it was not all, and where each lies."""
        offsets: list[int] = []
        try:
            self._truncate_torn_tail()
            for block in _blocks(unwritten):
                self._write_block(block, offsets)
        except Exception as error:  # noqa: BLE001 - whatever it is, clients are told; it is tried again
            self._log_once(f"The journal {self.path} was not written: {error}")
            with contextlib.suppress(OSError):
                self._truncate_torn_tail()  # half a record takes the room that others may need
            if isinstance(error, OSError):
                self._reopen(error)
                return error.strerror or str(error), offsets
            return f"{type(error).__name__}: {error}", offsets
        self._logged = ""
        return "", offsets

    def _log_once(self, trouble: str) -> None:
        """Log what goes wrong, and not each second again."""
        if trouble != self._logged:
            _log.warning("%s", trouble)
            self._logged = trouble

    def _write_block(self, block: list[bytes], offsets: list[int]) -> None:
        """Write some records; those that are whole on the disk count, also if it takes no more.

        `offsets` gets where each of them begins.
        """
        left = memoryview(b"".join(block))
        reached = self._end
        try:
            while left:
                size = os.write(self._write_fd, left)
                left = left[size:]
                reached += size
        finally:
            for chunk in block:
                if self._end + len(chunk) > reached:
                    break
                offsets.append(self._end)
                self._end += len(chunk)

    def _truncate_torn_tail(self) -> None:
        """Let the file end where the last whole record does: a write may have failed half-way.

        One that somebody has cut becomes as long as it was, or nothing would lie where the
        index says; the checksums tell readers what is missing.
        """
        size = os.fstat(self._write_fd).st_size
        if size == self._end:
            return
        if size < self._end:
            _log.error("The journal was cut: %d bytes are lost.", self._end - size)
        os.ftruncate(self._write_fd, self._end)

    def _reopen(self, error: OSError) -> None:
        """Go on through a new descriptor: an NFS server has forgotten the one that we have."""
        if error.errno != errno.ESTALE:
            return
        files: list[int] = []
        try:
            files.append(os.open(str(self.path), os.O_RDWR | os.O_APPEND))
            files.append(os.dup(files[0]))
        except OSError as trouble:
            self._log_once(f"The journal {self.path} was not opened again: {trouble}")
            _close(*files)
            return
        old, self._write_fd = self._write_fd, files[0]
        _close(old)
        self._call(partial(self._switch_read_fd, files[1]))

    def _switch_to(self, compacted: CompactedFile) -> None:
        """Write on in the compacted file: what was written meanwhile is copied there, too."""
        reading = -1
        try:
            reading = os.dup(compacted.file)
            compacted.catch_up_and_replace(self._write_fd, self._end, self.path)
        except Exception as error:  # noqa: BLE001 - the journal goes on as it was
            _log.warning("No room was made in the journal: %s", logs.reason(error))
            _close(reading)
            compacted.discard()
            self._call(partial(self._finish_compaction, None, -1))
            return
        old, self._write_fd = self._write_fd, compacted.file
        _close(old)
        self._end += compacted.offset_delta
        self._call(partial(self._finish_compaction, compacted, reading))

    def _end_process(self, error: BaseException) -> None:
        """End this process: without this thread nothing is kept any more. Another one goes on."""
        self._call(partial(end_loop_with, error))

    # The caller's thread ---------------------------------------------------------------

    def _on_written_up_to(
        self, first: int, last: int, offsets: list[int], trouble: str, end: int
    ) -> None:
        if trouble != self._last_error:
            _log.warning("The journal: %s", trouble or "the disk takes records again")
        self._last_error = trouble
        self._last_progress = time.monotonic()
        for position, offset in enumerate(offsets, self._index.find(first)):
            self._index.offsets[position] = offset
        for number in range(self.written + 1, last + 1) if self._on_written else ():
            then = self._on_written.pop(number, None)
            if then:
                self._run_written_callback(number, then)
        self.written = last
        if self._recent_bytes > RECENT_BYTES:
            self._trim_recent()
        if end > self._compact_at and not (self._is_compacting or trouble):
            self._start_compaction(last, end)

    @staticmethod
    def _run_written_callback(number: int, then: Call) -> None:
        """Call who waits for a record; what goes wrong with one holds up none behind it."""
        try:
            then()
        except Exception as error:  # noqa: BLE001 - a bug in one is no matter of the others
            _log.exception("After record %d was written: %s", number, logs.reason(error))

    def _trim_recent(self) -> None:
        """Drop the oldest bodies that are on disk."""
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            number = next(iter(self._recent))
            position = self._index.find(number)  # -1: compaction has dropped it
            if number > self.written or (position >= 0 and not self._index.offsets[position]):
                return
            self._recent_bytes -= len(self._recent.pop(number))

    def _start_compaction(self, last: int, end: int) -> None:
        """Begin to copy what is to stay, in a thread: the writer goes on meanwhile.

        The writer gets the copy by its queue, and so at a moment when it writes nothing.
        """
        self._is_compacting = True
        taken, target = self.lowest_acked(), int(self.limit * TARGET_SHARE)

        def copy() -> None:
            try:
                self._queue.put(compact(self.path, last, end, taken, target))
            except OSError as error:
                _log.warning("No room was made in the journal: %s", logs.reason(error))
                give_up(error)

        def give_up(_error: BaseException) -> None:
            self._call(partial(self._finish_compaction, None, -1))

        Thread(copy, name="make room", on_error=give_up).start()

    def _finish_compaction(self, compacted: CompactedFile | None, reading: int) -> None:
        """Use the compacted file's index; without one, try again after another 1/8 of the limit."""
        self._is_compacting = False
        if compacted is None:
            self._compact_at += max(1, self.limit // 8)
            return
        self._switch_read_fd(reading)
        compacted.new_index.append_from(self._index, compacted.last, compacted.offset_delta)
        self._index = compacted.new_index
        self._compact_at = max(self.limit, compacted.size + self.limit // 8)

    def _switch_read_fd(self, reading: int) -> None:
        old, self._read_fd = self._read_fd, reading
        self._reader.submit(partial(_close, old))  # behind its reads; and close() may block on NFS

    def _on_bodies_read(self, bodies: dict[int, bytes]) -> None:
        self._being_read.difference_update(bodies)
        for number, body in bodies.items():
            self._failed_reads.pop(number, None)
            self._read_cache_bytes += len(body) - len(self._read_cache.pop(number, b""))
            self._read_cache[number] = body
        while self._read_cache_bytes > READ_CACHE_BYTES and len(self._read_cache) > 1:
            self._read_cache_bytes -= len(self._read_cache.pop(next(iter(self._read_cache))))
        self.on_read()

    def _on_read_failed(self, number: int, error: Exception) -> None:
        self._being_read.clear()
        self._failed_reads[number] = self._failed_reads.get(number, 0) + 1
        if self._failed_reads[number] >= READ_TRIES:
            self.unreadable[number] = str(error)
        self.on_read()  # who waits for it asks again

    # The reader's thread ---------------------------------------------------------------

    def _read_bodies(self, reading: int, places: dict[int, int]) -> dict[int, bytes]:
        """Read the bodies of records by number; `places` says at which offsets they are."""
        try:
            return records.bodies_at(reading, places)
        except OSError as error:
            time.sleep(RETRY_AFTER)  # in this thread: nobody but readers waits for it
            if error.errno != errno.ESTALE:
                raise
        with self.path.open("rb") as file:
            return records.bodies_at(file.fileno(), places)


def _close(*files: int) -> None:
    """Close what is open of these; an error at that tells nothing that could be mended."""
    for file in files:
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)


def _blocks(unwritten: list[Record]) -> Iterator[list[bytes]]:
    """Yield the bytes of records, as many as are written together."""
    block: list[bytes] = []
    size = 0
    for record in unwritten:
        block.append(encode_record(record))
        size += len(block[-1])
        if size >= WRITE_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
