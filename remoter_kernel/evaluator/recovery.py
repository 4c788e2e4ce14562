"""Decides what became of the requests that were in flight when an evaluator died.

`InDoubtRequests` asks the kernel for its kernel_info until it answers, which it does between two
cells. What had begun by then, and has no reply, gets none any more: the kernel sent the reply to
the evaluator that died, and ZeroMQ dropped it. What was in the kernel's queue may still be there;
it is uncertain for as long as outputs of it come between two answers. A cell's outputs may have
come from busy to idle, to the dead evaluator or to the new one, and its reply still be lost: then
the outputs say what that reply was. The other way round a reply may come, to either of them, while
the outputs before it, or the idle after it, were lost: a reply proves no outputs.

`RecoveredState` is what a journal tells of clients and their requests, record by record. A request
that was given to the kernel may have run, and is never given to it again.
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
from remoter_kernel.protocol.reactor import ignore
from remoter_kernel.protocol.requests import Request, Requests, Stage, has_idle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.evaluator.message_writer import MessageWriter
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor

HEARD_WITHIN = 0.1  # seconds from an answer until the outputs before it have come
ASK_AGAIN = 0.3  # seconds
SILENT_FOR = 3.0  # seconds without outputs, after which a cell's person is told what may be wrong
UNHEARD = (
    "If something was asked since the evaluator was killed, nobody has heard it: "
    "interrupt the cell."
)

COMMAND_WITHIN = 30.0  # seconds from a restart or a stop until the kernel has ended, at the most
DISPATCHED = "handed"  # the mark of a request that was held and is now given to the kernel
TELLING = (b'"status"', b'"execute_input"', b'"error"')  # outputs that tell of their reply


class InDoubtRequests:
    """Finds out what became of the requests that the kernel had when its evaluator died."""

    def __init__(self, reactor: Reactor, recovered: RecoveredState, writer: MessageWriter) -> None:
        self.on_settled: Callable[[], None] = ignore
        # An interrupt of this cell, with this number, may have died with its evaluator.
        self.on_lost_interrupt: Callable[[Request, int], None] = ignore
        self._reactor = reactor
        self._recovered = recovered
        self._writer = writer
        self._uncertain = [each for each in recovered.requests if each.stage >= Stage.SENT]
        self._started = set(recovered.inferred.replies)
        # Those that had begun when the kernel took up our question, if its busy came first.
        self._begun_before: set[str] | None = None
        self._reported: set[tuple[str, bool]] = set()  # which cell was told; was it UNHEARD?
        self._inferred = InferredReplies()
        self._is_quiet = False  # between two answers
        self._is_silent = True  # between two looks
        reactor.call_later(SILENT_FOR, self._on_silence)

    def mark_uncertain(self, request: Request) -> None:
        """Add one that the kernel may have: the journal is damaged where its record was."""
        self._recovered.requests.move(request, Stage.SENT, "an evaluator before may have sent it")
        self._uncertain.append(request)
        self._is_quiet = False

    def on_iopub(self, parts: list[Bytes]) -> None:
        """Take in an output, before it is in the journal."""
        request = self._recovered.requests.get(str(header_of(parts[PARENT]).get("msg_id", "")))
        if request is None or request.stage < Stage.SENT:
            return
        self._is_quiet = self._is_silent = False
        self._started.add(request.id)
        self._inferred.on_iopub(request.id, parts)
        if request in self._uncertain:
            self._report_gap(request)

    def on_reply(self, request: Request) -> None:
        """Take in a reply, before it is in the table.

        The outputs before it may have been published before we were subscribed. Replies come in
        order: an earlier one that is still missing was sent to the evaluator that died.
        """
        for each in self._recovered.requests.unanswered_before(request):
            if each in self._uncertain:
                self._answer(each)
        if request in self._uncertain and request.id not in self._recovered.inferred.idle:
            self._report_gap(request)

    def on_next_request(self, passed: Sequence[Request]) -> None:
        """End those before the request that the kernel has begun with: their idle is lost.

        It was published before we were subscribed; from then on nothing is lost.
        """
        for request in passed:
            if request in self._uncertain:
                self._report_gap(request)
                self._writer.write_idle(request)

    def _on_silence(self) -> None:
        """Tell the cell that seems to run what may be the matter, if nothing comes for long.

        It may wait for an answer to a question. Some kernels (R) send questions to a new
        evaluator only once they have been idle.
        """
        unresolved = self._unresolved()
        cells = [each for each in unresolved if each.is_cell and not self._inferred_reply(each)]
        running = [each for each in cells if each.id in self._started][-1:] or cells[:1]
        for cell in running if self._is_silent else ():
            self._report_gap(cell)
            if cell is unresolved[-1] and cell.id in self._recovered.interrupted:
                # The kernel answers nobody, so it runs this cell, and nothing stands behind it.
                self.on_lost_interrupt(cell, self._recovered.interrupted.pop(cell.id))
            self._report_once(cell, UNHEARD)
        self._is_silent = True
        if cells:
            self._reactor.call_later(SILENT_FOR, self._on_silence)

    def _report_gap(self, request: Request) -> None:
        """Say that outputs may be missing, unless all of a cell's came to this evaluator."""
        if request.id not in self._inferred.replies:
            self._report_once(request, f"{self._missing_reason()}.")

    def _report_once(self, request: Request, sentence: str) -> None:
        """Say a sentence in a cell, unless one like it is there."""
        key = request.id, sentence == UNHEARD
        if key not in self._reported:
            self._reported.add(key)
            self._writer.write_stderr(request, sentence)

    def on_question_reached(self) -> None:
        """Note that the kernel has taken up our question: what begins now, is behind it."""
        self._begun_before = set(self._started)

    def on_kernel_info(self, kernel: KernelProcess) -> None:
        """Note that the kernel has answered: it was between two cells.

        What it published before that comes by another socket, and perhaps a moment later. So
        does what it publishes next: it may run the next cell by then.
        """
        self._reactor.call_later(HEARD_WITHIN, partial(self._resolve, kernel))

    def _resolve(self, kernel: KernelProcess) -> None:
        """Decide what an answer tells of each uncertain request."""
        begun = self._started if self._begun_before is None else self._begun_before
        self._begun_before = None
        for request in self._unresolved():
            if request.id in begun or self._inferred_reply(request):
                self._answer(request)
        ending = [each for each in self._uncertain if each.stage is Stage.REPLIED]
        # Two answers without an output in between: the kernel's queue is empty.
        if self._is_quiet or not (self._unresolved() or ending):
            for request in self._unresolved():
                self._fail(request)
            log_failure_of(partial(self.on_next_request, ending))
            for request in ending:
                self._recovered.requests.move(request, Stage.DONE, "its idle was said to nobody")
            self.on_settled()
        else:
            self._is_quiet = True
            self._reactor.call_later(ASK_AGAIN, kernel.resend_kernel_info)

    def _unresolved(self) -> list[Request]:
        """List what has no answer; a subshell runs on while the main shell answers us."""
        uncertain = self._uncertain
        return [each for each in uncertain if each.is_open and not each.header.get("subshell_id")]

    def _inferred_reply(self, request: Request) -> dict[str, Any] | None:
        """Return the reply of a cell all of whose outputs came to one evaluator."""
        for inferred in (self._recovered.inferred, self._inferred):
            if request.is_cell and request.id in inferred.idle and request.id in inferred.replies:
                return inferred.replies[request.id]
        return None

    def _answer(self, request: Request) -> None:
        """Answer in the kernel's place what the kernel is done with."""
        reply = self._inferred_reply(request)
        if reply is None:
            self._fail(request)
            return
        log_failure_of(partial(self._writer.reply, request, reply))
        self._recovered.requests.move(request, Stage.DONE, "its outputs tell its reply")

    def _fail(self, request: Request) -> None:
        why = (
            f"{self._missing_reason()}, and so is the reply to this. It was not run again; "
            "what it did to the variables is there."
        )
        log_failure_of(partial(self._writer.answer_error, request, "OutputsMissing", why))
        self._recovered.requests.move(request, Stage.FAILED, "its reply is missing")

    def _missing_reason(self) -> str:
        as_text = "%Y-%m-%d %H:%M:%S %Z"  # with its zone: the person may be in another one
        moments = (self._recovered.time, time.time())
        begin, end = (time.strftime(as_text, time.localtime(moment)) for moment in moments)
        return (
            "The evaluator of this session was killed, and a new one has taken over: outputs "
            f"between {begin} and {end} may be missing"
        )


class InferredReplies:
    """What the replies to cells must be, by their outputs, if all from busy to idle came."""

    def __init__(self) -> None:
        self.replies: dict[str, dict[str, Any]] = {}  # by request, from its busy on
        self.idle: set[str] = set()  # requests whose idle came

    def on_iopub(self, asker: str, parts: Sequence[Bytes]) -> None:
        """Take in an output of a request."""
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
        """Forget a request: its reply is there."""
        self.replies.pop(asker, None)
        self.idle.discard(asker)


class RecoveredState:
    """What an evaluator that has died knew, as far as its journal has it."""

    def __init__(self) -> None:
        self.seen: dict[bytes, dict[Lane, int]] = {}  # by client: its own numbers
        self.requests = Requests()  # HELD: not given to the kernel
        self.requests.is_logged = False  # the evaluator that died has logged their moves
        self.inferred = InferredReplies()
        self.kernel: dict[str, Any] = {}  # the identity of the kernel, as its `ready` event has it
        self.time = 0.0  # of the last record, seconds since 1970
        self.interrupted: dict[str, int] = {}  # cells of the last interrupt: its client's number
        self._command = "", 0.0  # the last restart or stop without an end, and when it came
        self.answered: set[str] = set()  # requests with a reply and without a readable record
        self.is_damaged = False  # are there requests that cannot be read?
        self._without_states: set[str] = set()  # requests whose states compaction has dropped
        self._exact: set[tuple[bytes, Lane]] = set()  # whose numbers go on after all damage

    @property
    def unfinished(self) -> str:
        """Which command its evaluator had begun with when it died: restart, stop, or none.

        The client has its acknowledgement, and the kernel its shutdown_request.
        """
        command, at = self._command
        return command if self.time - at < COMMAND_WITHIN else ""

    def is_seen_exact(self, client: bytes, lane: Lane) -> bool:
        """Is `seen` true of a client, or may there have been more that cannot be read?"""
        return not self.is_damaged or (client, lane) in self._exact

    @property
    def started(self) -> set[str]:
        """Which requests the kernel had begun with, and was not done with, by its outputs."""
        return set(self.inferred.replies) - self.inferred.idle

    def apply(self, record: Record) -> None:
        """Take in the next record; one that makes no sense is passed over."""
        self.time = max(self.time, record.time)
        if record.client_number:
            seen = self.seen.setdefault(record.client, dict.fromkeys(Lane, 0))
            lane = LANE[record.channel]
            seen[lane] = max(seen[lane], record.client_number)
            self._exact.add((record.client, lane))
            self.is_damaged |= record.is_marker
        if is_gap(record):
            self.is_damaged = True
            self._exact.clear()  # any client may have had records in the gap
        try:
            self._apply_record(record)
        except (ProtocolError, IndexError):
            return

    def _apply_marker(self, words: dict[str, Any]) -> None:
        if words.get("mark") == DISPATCHED:
            name = str(words.get("request"))
            held = (each for each in self.requests.at(Stage.HELD) if each.id == name)
            if request := next(held, None):  # the first: a client may use an id twice
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
        """Take in a command, which was acknowledged and may not have been carried out."""
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
        """End what has its reply and whose idle compaction has dropped: the kernel is further."""
        if not (self._without_states and later.is_in_turn):
            return
        for request in self.requests.at(Stage.REPLIED):
            if request is later:
                return
            if request.is_in_turn and request.id in self._without_states:
                self.requests.move(request, Stage.DONE, "the kernel is at a later one")

    def _add_request(self, request: Request) -> None:
        # Nobody misses what comes of a request without a reply.
        self.requests.move(request, Stage.SENT if request.expects_reply else Stage.DONE)
