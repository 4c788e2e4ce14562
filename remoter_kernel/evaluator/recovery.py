"""What to make of a child whose evaluator has died, until nothing about it is in doubt.

The child is asked who it is until it answers, which it does between two cells. What had
begun by then, and has no reply, gets none any more: it was said to an evaluator that was
dead. What was in the child's queue may still be there; it is in doubt for as long as
something of it is heard between two answers. A cell may be heard from busy to idle, by
the dead evaluator or by the new one, and its reply still be lost: then what was heard says
what that reply was. The other way round a reply may come, to either of them, while nobody
heard what was published before it or the idle after it: a reply proves no outputs.

What a journal tells of fronts and their requests, record by record. A request that was handed to
the child may have run, and is never handed over again.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator.message_writer import log_failure_of
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

    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.evaluator.message_writer import MessageWriter
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor

HEARD_WITHIN = 0.1  # seconds
ASK_AGAIN = 0.3  # seconds
SILENT_FOR = 3.0  # seconds
UNHEARD = (
    "If something was asked since the evaluator was killed, nobody has heard it: "
    "interrupt the cell."
)

COMMAND_WITHIN = 30.0  # seconds from a restart or a stop until the kernel has ended, at the most
DISPATCHED = "handed"  # the mark of a request that was held and is now given to the child
TELLING = (b'"status"', b'"execute_input"', b'"error"')  # messages that tell of their reply


class Recovery:
    """The time between two evaluators, as those see it who asked for something in it."""

    def __init__(
        self, reactor: Reactor, recovered: RecoveredState, requests: Requests, writer: MessageWriter
    ) -> None:
        """`requests`: the table, with what an evaluator that has died had given the kernel."""
        self.on_settled: Callable[[], None] = lambda: None
        # An interrupt of this cell, with this number, may have died with its evaluator.
        self.on_lost_interrupt: Callable[[Request, int], None] = lambda _request, _number: None
        self._reactor = reactor
        self._recovered = recovered
        self._requests = requests
        self._writer = writer
        self._uncertain = [each for each in requests if each.stage >= Stage.SENT]
        self._started = set(recovered.inferred.replies)
        self._begun_before: set[str] | None = None  # the kernel came to our question, if it said so
        self._reported: set[tuple[str, bool]] = set()  # of a cell: what is missing, what is unheard
        self._inferred = InferredReplies()
        self._is_quiet = False  # between two answers
        self._is_silent = True  # between two looks
        reactor.call_later(SILENT_FOR, self._on_silence)

    def mark_uncertain(self, request: Request) -> None:
        """Hear of one more that the kernel may have: a journal was damaged where it stood."""
        self._requests.move(request, Stage.SENT, "an evaluator before may have sent it")
        self._uncertain.append(request)
        self._is_quiet = False

    def on_iopub(self, parts: list[Bytes]) -> None:
        """Hear what the kernel publishes, before the clients do."""
        request = self._requests.get(str(header_of(parts[PARENT]).get("msg_id", "")))
        if request is None or request.stage < Stage.SENT:
            return
        self._is_quiet = self._is_silent = False
        self._started.add(request.id)
        self._inferred.on_iopub(request.id, parts)
        if request in self._uncertain:
            self._report_gap(request)

    def on_reply(self, request: Request) -> None:
        """Hear a reply, before the table does.

        What was published before it may have come before we were subscribed. Replies come in
        order: one that is still missing before it was sent to the evaluator that died.
        """
        for each in self._requests.unanswered_before(request):
            if each in self._uncertain:
                self._answer(each)
        if request in self._uncertain and request.id not in self._recovered.inferred.idle:
            self._report_gap(request)

    def on_next_request(self, passed: Sequence[Request]) -> None:
        """The kernel is at the next request: whose idle was not heard by now will get none.

        It was published before we were subscribed, and what comes after it is heard.
        """
        for request in passed:
            if request in self._uncertain:
                self._report_gap(request)
                self._writer.write_idle(request)

    def _on_silence(self) -> None:
        """Tell the cell that seems to run what may be the matter, if nothing is heard for long.

        It may have asked something. Some kernels (R) know a new evaluator's ear for questions
        only once they have been idle.
        """
        cells = [
            request
            for request in self._unresolved()
            if request.is_cell and not self._inferred_reply(request)
        ]
        running = [request for request in cells if request.id in self._started][-1:] or cells[:1]
        for request in running if self._is_silent else ():
            self._report_gap(request)
            if request is self._unresolved()[-1] and request.id in self._recovered.interrupted:
                # The kernel answers nobody, so it is at this cell, and nothing stands behind it.
                self.on_lost_interrupt(request, self._recovered.interrupted.pop(request.id))
            self._report_once(request, UNHEARD)
        self._is_silent = True
        if cells:
            self._reactor.call_later(SILENT_FOR, self._on_silence)

    def _report_gap(self, request: Request) -> None:
        """Say that outputs may be missing, unless a cell was heard here from its begin on."""
        if request.id not in self._inferred.replies:
            self._report_once(request, f"{self._missing_reason()}.")

    def _report_once(self, request: Request, sentence: str) -> None:
        """Say a sentence in a cell, unless one like it is there."""
        told = request.id, sentence == UNHEARD
        if told not in self._reported:
            self._reported.add(told)
            self._writer.write_stderr(request, sentence)

    def hear_of_question(self) -> None:
        """The kernel has published that it is at our question: what begins now, comes later."""
        self._begun_before = set(self._started)

    def on_kernel_info(self, kernel: KernelProcess) -> None:
        """The child has answered: it is between two cells.

        What it published before that comes by another socket, and perhaps a moment later. So
        does what it publishes next: it may be at the next cell by then.
        """
        self._reactor.call_later(HEARD_WITHIN, partial(self._resolve, kernel))

    def _resolve(self, kernel: KernelProcess) -> None:
        """See what an answer tells of all that is in doubt."""
        begun = self._started if self._begun_before is None else self._begun_before
        self._begun_before = None
        for request in self._unresolved():
            if request.id in begun or self._inferred_reply(request):
                self._answer(request)
        ending = [each for each in self._uncertain if each.stage is Stage.REPLIED]
        if self._is_quiet or not (self._unresolved() or ending):
            for request in self._unresolved():
                self._fail(request)
            log_failure_of(partial(self.on_next_request, ending))
            for request in ending:
                self._requests.move(request, Stage.DONE, "its idle was said to nobody")
            self.on_settled()
        else:
            self._is_quiet = True
            self._reactor.call_later(ASK_AGAIN, kernel.resend_kernel_info)

    def _unresolved(self) -> list[Request]:
        """List what has no answer; what runs in a subshell may well run on."""
        return [
            request
            for request in self._uncertain
            if request.is_open and not request.header.get("subshell_id")
        ]

    def _inferred_reply(self, request: Request) -> dict[str, Any] | None:
        """Return the reply of a cell that was heard from busy to idle by one evaluator."""
        for heard in (self._recovered.inferred, self._inferred):
            if request.id in heard.idle and request.id in heard.replies and request.is_cell:
                return heard.replies[request.id]
        return None

    def _answer(self, request: Request) -> None:
        """Answer what the kernel is done with, in its place."""
        reply = self._inferred_reply(request)
        if reply is None:
            self._fail(request)
            return
        log_failure_of(partial(self._writer.reply, request, reply))
        self._requests.move(request, Stage.DONE, "its outputs tell its reply")

    def _fail(self, request: Request) -> None:
        why = (
            f"{self._missing_reason()}, and so is the reply to this. It was not run again; "
            "what it did to the variables is there."
        )
        log_failure_of(partial(self._writer.answer_error, request, "OutputsMissing", why))
        self._requests.move(request, Stage.FAILED, "its reply is missing")

    def _missing_reason(self) -> str:
        begin, end = (_local_time(moment) for moment in (self._recovered.time, time.time()))
        return (
            "The evaluator of this session was killed, and a new one has taken over: outputs "
            f"between {begin} and {end} may be missing"
        )


def _local_time(moment: float) -> str:
    return time.strftime(
        "%Y-%m-%d %H:%M:%S %Z", time.localtime(moment)
    )  # who reads it is elsewhere


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
