"""What to make of a child whose evaluator has died, until nothing about it is in doubt.

The child is asked who it is until it answers, which it does between two cells. What had
begun by then, and has no reply, gets none any more: it was said to an evaluator that was
dead. What was in the child's queue may still be there; it is in doubt for as long as
something of it is heard between two answers. A cell may be heard from busy to idle, by
the dead evaluator or by the new one, and its reply still be lost: then what was heard says
what that reply was. The other way round a reply may come, to either of them, while nobody
heard what was published before it or the idle after it: a reply proves no outputs.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.evaluator.message_writer import log_failure_of
from remoter_kernel.evaluator.replay import InferredReplies
from remoter_kernel.protocol.messages import PARENT, header_of
from remoter_kernel.protocol.requests import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.evaluator.message_writer import MessageWriter
    from remoter_kernel.evaluator.replay import RecoveredState
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request, Requests

HEARD_WITHIN = 0.1  # seconds
ASK_AGAIN = 0.3  # seconds
SILENT_FOR = 3.0  # seconds
UNHEARD = (
    "If something was asked since the evaluator was killed, nobody has heard it: "
    "interrupt the cell."
)


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
