"""What a journal tells of fronts and their requests, record by record (pure).

A request that was handed to the child may have run, and is never handed over again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator.records import Record, is_gap, parse_marker
from remoter_kernel.protocol.frames import LANE, Channel, Lane, from_json, unpack_parts
from remoter_kernel.protocol.messages import (
    HEADER,
    PARENT,
    TOPIC,
    content_of,
    execution_state,
    header_of,
)
from remoter_kernel.protocol.requests import Request, Requests, Stage, has_idle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.protocol.frames import Bytes

COMMAND_WITHIN = 30.0  # seconds from a restart or a stop until the kernel has ended, at the most
DISPATCHED = "handed"  # the mark of a request that was held and is now given to the child
TELLING = (b'"status"', b'"execute_input"', b'"error"')  # messages that tell of their reply


class InferredReplies:
    """What a cell publishes tells what its reply must be, if it is heard from busy to idle."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.replies: dict[str, dict[str, Any]] = {}  # by request, from its busy on
        self.idle: set[str] = set()  # whose idle was heard

    def on_iopub(self, asker: str, parts: Sequence[Bytes]) -> None:
        """Take in what was published under a request."""
        if not any(kind in bytes(parts[HEADER]) for kind in TELLING):
            return
        kind, content = header_of(parts[HEADER]).get("msg_type"), content_of(parts)
        reply = self.replies.get(asker)
        if content.get("execution_state") == "busy":
            self.replies[asker] = {"status": "ok", "payload": [], "user_expressions": {}}
        elif content.get("execution_state") == "idle":
            self.idle.add(asker)
        elif reply and kind == "execute_input":
            reply["execution_count"] = content.get("execution_count", 0)
        elif reply and kind == "error":
            reply.update(content, status="error")

    def discard(self, asker: str) -> None:
        """Its reply is there."""
        self.replies.pop(asker, None)
        self.idle.discard(asker)


class RecoveredState:
    """What an evaluator that has died knew, as far as it is written."""

    def __init__(self) -> None:
        """Begin before the first record."""
        self.seen: dict[bytes, dict[Lane, int]] = {}  # by front: its own numbers
        self.requests = Requests()  # HELD: not handed to the child
        self.requests.is_logged = False  # that was done when it happened
        self.inferred = InferredReplies()  # of what was asked
        self.kernel: dict[str, Any] = {}  # whom the child sounds like
        self.time = 0.0  # of the last record, seconds since 1970
        self.interrupted: dict[str, int] = {}  # cells of the last interrupt: its client's number
        self._command = "", 0.0  # the last restart or stop without an end, and when it came
        self.answered: set[str] = set()  # though nobody can read any more who asked
        self.is_damaged = False  # are there requests that cannot be read?
        self._without_states: set[str] = set()  # of what states went to make room
        self._exact: set[tuple[bytes, Lane]] = set()  # of whom something came after all damage

    @property
    def unfinished(self) -> str:
        """Which command its evaluator had begun with when it died: restart, stop, or none.

        Whoever gave it was told that it was heard, and the kernel was asked to end.
        """
        command, at = self._command
        return command if self.time - at < COMMAND_WITHIN else ""

    def is_seen_exact(self, client: bytes, lane: Lane) -> bool:
        """Is `seen` true of a front, or may there have been more that cannot be read?"""
        return not self.is_damaged or (client, lane) in self._exact

    @property
    def started(self) -> set[str]:
        """What of it the child was at, as far as was heard."""
        return set(self.inferred.replies) - self.inferred.idle

    def apply(self, record: Record) -> None:
        """Take in the next record; one that makes no sense says nothing."""
        self.time = max(self.time, record.time)
        if record.client_number:
            seen = self.seen.setdefault(record.client, dict.fromkeys(Lane, 0))
            lane = LANE[record.channel]
            seen[lane] = max(seen[lane], record.client_number)
            self._exact.add((record.client, lane))
            self.is_damaged |= record.is_marker
        if is_gap(record):
            self.is_damaged = True
            self._exact.clear()
        try:
            self._apply_record(record)
        except (ProtocolError, IndexError):
            return

    def _apply_marker(self, words: dict[str, Any]) -> None:
        if words.get("mark") == DISPATCHED:
            name = str(words.get("request"))
            held = (each for each in self.requests.at(Stage.HELD) if each.id == name)
            if request := next(held, None):  # a client may use an id twice
                self._add_request(request)
        if words.get("mark") == "shortened" and words.get("what") == "status":
            self._without_states.add(str(words.get("cell")))

    def _apply_record(self, record: Record) -> None:
        if record.is_marker:
            self._apply_marker(parse_marker(record))
            return
        parts: list[Bytes] = list(unpack_parts(record.body))
        if record.channel is Channel.EVENT:
            note = from_json(parts[TOPIC])
            if note.get("event") == "ready":
                self.kernel = note
                self._command = "", 0.0
        elif record.channel is Channel.COMMAND:
            self._apply_command(record, from_json(parts[TOPIC]))
        elif record.channel in {Channel.SHELL, Channel.CONTROL}:
            self._apply_message(record, parts)
        else:
            asker = str(header_of(parts[PARENT]).get("msg_id", ""))
            request = self.requests.get(asker)
            if request and request.is_open and request.stage >= Stage.SENT:
                self.inferred.on_iopub(asker, parts)
                self._finish_before(request)
            if record.channel is Channel.IOPUB:
                self.requests.on_state(asker, execution_state(parts))

    def _apply_command(self, record: Record, words: dict[str, Any]) -> None:
        """Take in what was acknowledged, and may have come to nothing."""
        cells = words.get("cells")
        if words.get("order") in {"restart", "stop"}:
            self._command = str(words["order"]), record.time
        if words.get("order") == "interrupt" and isinstance(cells, list):
            self.interrupted = {str(cell): record.client_number for cell in cells}

    def _apply_message(self, record: Record, parts: list[Bytes]) -> None:
        header = header_of(parts[HEADER])
        if not record.is_from_client:
            asker = str(header_of(parts[PARENT]).get("msg_id", ""))
            request = self.requests.on_reply(asker, has_idle=has_idle(parts))
            if request is None:
                self.answered.add(asker)
            else:
                self._finish_before(request)
            self.inferred.discard(asker)
        elif header.get("msg_id") not in self.answered:
            request = Request(
                record.channel, parts, header, client=record.client, number=record.client_number
            )
            self.requests.add(request)
            if record.is_held:
                self.requests.move(request, Stage.HELD)
            else:
                self._add_request(request)

    def _finish_before(self, later: Request) -> None:
        """End what has its reply and whose idle went to make room: the kernel is at a later one."""
        if not (self._without_states and later.is_in_turn):
            return
        for request in self.requests.at(Stage.REPLIED):
            if request is later:
                return
            if request.is_in_turn and request.id in self._without_states:
                self.requests.move(request, Stage.DONE, "the kernel is at a later one")

    def _add_request(self, request: Request) -> None:
        is_missed = request.expects_reply  # by nobody, else
        self.requests.move(request, Stage.SENT if is_missed else Stage.DONE)
