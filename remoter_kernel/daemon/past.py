"""What a journal tells of fronts and their requests, record by record (pure).

A request that was handed to the child may have run, and is never handed over again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.daemon.records import Record, is_loss, mark_of
from remoter_kernel.daemon.speaker import Request
from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.frames import LANE, Channel, Lane, from_json, unpack
from remoter_kernel.wire.messages import CONTENT, HEADER, PARENT, TOPIC, header_of

if TYPE_CHECKING:
    from remoter_kernel.wire.frames import Bytes

HANDED = "handed"  # the mark of a request that was held and is now given to the child
STATUS_WITHIN = 4096  # bytes of a message that says no more than busy


class Past:
    """What an evaluator that has died knew, as far as it is written."""

    def __init__(self) -> None:
        """Begin before the first record."""
        self.seen: dict[bytes, dict[Lane, int]] = {}  # by front: its own numbers
        self.asked: dict[str, Request] = {}  # handed to the child, without a reply
        self.waiting: dict[str, Request] = {}  # not handed to the child
        self.begun: set[str] = set()  # of what was asked
        self.open: dict[str, dict[str, Any]] = {}  # headers of what has its reply, but no idle
        self._idle: set[str] = set()  # of what was asked: had its idle before its reply
        self.kernel: dict[str, Any] = {}  # whom the child sounds like
        self.time = 0.0  # of the last record, seconds since 1970
        self.is_damaged = False  # are there requests that cannot be read?
        self._sure: set[tuple[bytes, Lane]] = set()  # of whom something came after all damage

    def is_sure_of(self, front: bytes, lane: Lane) -> bool:
        """Is `seen` true of a front, or may there have been more that cannot be read?"""
        return not self.is_damaged or (front, lane) in self._sure

    def take(self, record: Record) -> None:
        """Take in the next record; one that makes no sense says nothing."""
        self.time = max(self.time, record.time)
        if record.own:
            seen = self.seen.setdefault(record.front, dict.fromkeys(Lane, 0))
            lane = LANE[record.channel]
            seen[lane] = max(seen[lane], record.own)
            self._sure.add((record.front, lane))
            self.is_damaged |= record.is_mark
        if is_loss(record):
            self.is_damaged = True
            self._sure.clear()
        try:
            self._take(record)
        except (ProtocolError, IndexError):
            return

    def _take(self, record: Record) -> None:
        words = mark_of(record)
        if words.get("mark") == HANDED:
            request = self.waiting.pop(str(words.get("request")), None)
            if request:
                self._ask(request)
        if record.is_mark:
            return
        parts: list[Bytes] = list(unpack(record.body))
        if record.channel is Channel.NOTE:
            note = from_json(parts[TOPIC])
            if note.get("event") == "ready":
                self.kernel = note
        elif record.channel in {Channel.SHELL, Channel.CONTROL}:
            self._take_message(record, parts)
        elif len(record.body) < STATUS_WITHIN:
            self._take_state(parts)

    def _take_state(self, parts: list[Bytes]) -> None:
        content = bytes(parts[CONTENT])
        is_busy, is_idle = b'"busy"' in content, b'"idle"' in content
        if not (is_busy or is_idle):
            return
        asker = str(header_of(parts[PARENT]).get("msg_id", ""))
        if is_busy:
            self.begun.add(asker)
        elif asker in self.asked:
            self._idle.add(asker)
        else:
            self.open.pop(asker, None)

    def _take_message(self, record: Record, parts: list[Bytes]) -> None:
        if not record.is_from_front:
            asker = str(header_of(parts[PARENT]).get("msg_id", ""))
            request = self.asked.pop(asker, None)
            if request and record.channel is Channel.SHELL and asker not in self._idle:
                self.open[asker] = request.header
            self._idle.discard(asker)
            self.waiting.pop(asker, None)
            self.begun.discard(asker)
            return
        header = header_of(parts[HEADER])
        request = Request(record.front, record.channel, record.own, parts, header)
        if record.is_held:
            self.waiting[str(header.get("msg_id", ""))] = request
        else:
            self._ask(request)

    def _ask(self, request: Request) -> None:
        if not str(request.header.get("msg_type", "")).startswith("comm_"):  # has no reply
            self.asked[str(request.header.get("msg_id", ""))] = request
