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

from remoter_kernel.daemon.past import Overheard
from remoter_kernel.daemon.speaker import attempt
from remoter_kernel.wire.messages import PARENT, header_of
from remoter_kernel.wire.requests import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.daemon.child import Child
    from remoter_kernel.daemon.past import Past
    from remoter_kernel.daemon.speaker import Speaker
    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor
    from remoter_kernel.wire.requests import Request, Requests

HEARD_WITHIN = 0.1  # seconds
ASK_AGAIN = 0.3  # seconds
SILENT_FOR = 3.0  # seconds
UNHEARD = (
    "If something was asked since the evaluator was killed, nobody has heard it: "
    "interrupt the cell."
)


class Adoption:
    """The time between two evaluators, as those see it who asked for something in it."""

    def __init__(self, reactor: Reactor, past: Past, requests: Requests, speaker: Speaker) -> None:
        """`requests`: the table, with what an evaluator that has died had given the kernel."""
        self.on_settled: Callable[[], None] = lambda: None
        # An interrupt of this cell, with this number, may have died with its evaluator.
        self.on_lost_interrupt: Callable[[Request, int], None] = lambda _request, _number: None
        self._reactor = reactor
        self._past = past
        self._requests = requests
        self._speaker = speaker
        self._doubtful = [each for each in requests if each.stage >= Stage.SENT]
        self._begun = set(past.heard.replies)
        self._begun_before: set[str] | None = None  # the kernel came to our question, if it said so
        self._told: set[tuple[str, bool]] = set()  # of a cell: what is missing, what is unheard
        self._heard = Overheard()
        self._is_quiet = False  # between two answers
        self._is_silent = True  # between two looks
        reactor.later(SILENT_FOR, self._note_silence)

    def doubt(self, request: Request) -> None:
        """Hear of one more that the kernel may have: a journal was damaged where it stood."""
        self._requests.move(request, Stage.SENT, "an evaluator before may have sent it")
        self._doubtful.append(request)
        self._is_quiet = False

    def hear(self, parts: list[Bytes]) -> None:
        """Hear what the kernel publishes, before the clients do."""
        request = self._requests.get(str(header_of(parts[PARENT]).get("msg_id", "")))
        if request is None or request.stage < Stage.SENT:
            return
        self._is_quiet = self._is_silent = False
        self._begun.add(request.id)
        self._heard.hear(request.id, parts)
        if request in self._doubtful:
            self._tell_of_a_gap(request)

    def hear_reply(self, request: Request) -> None:
        """Hear a reply, before the table does.

        What was published before it may have come before we were subscribed. Replies come in
        order: one that is still missing before it was sent to the evaluator that died.
        """
        for each in self._requests.unanswered_before(request):
            if each in self._doubtful:
                self._answer(each)
        if request in self._doubtful and request.id not in self._past.heard.over:
            self._tell_of_a_gap(request)

    def end(self, passed: Sequence[Request]) -> None:
        """The kernel is at the next request: whose idle was not heard by now will get none.

        It was published before we were subscribed, and what comes after it is heard.
        """
        for request in passed:
            if request in self._doubtful:
                self._tell_of_a_gap(request)
                self._speaker.end(request)

    def _note_silence(self) -> None:
        """Tell the cell that seems to run what may be the matter, if nothing is heard for long.

        It may have asked something. Some kernels (R) know a new evaluator's ear for questions
        only once they have been idle.
        """
        cells = [
            request
            for request in self._in_doubt()
            if request.is_cell and not self._overheard(request)
        ]
        running = [request for request in cells if request.id in self._begun][-1:] or cells[:1]
        for request in running if self._is_silent else ():
            self._tell_of_a_gap(request)
            if request is self._in_doubt()[-1] and request.id in self._past.interrupted:
                # The kernel answers nobody, so it is at this cell, and nothing stands behind it.
                self.on_lost_interrupt(request, self._past.interrupted.pop(request.id))
            self._tell(request, UNHEARD)
        self._is_silent = True
        if cells:
            self._reactor.later(SILENT_FOR, self._note_silence)

    def _tell_of_a_gap(self, request: Request) -> None:
        """Say that outputs may be missing, unless a cell was heard here from its begin on."""
        if request.id not in self._heard.replies:
            self._tell(request, f"{self._what_is_missing()}.")

    def _tell(self, request: Request, sentence: str) -> None:
        """Say a sentence in a cell, unless one like it is there."""
        told = request.id, sentence == UNHEARD
        if told not in self._told:
            self._told.add(told)
            self._speaker.tell(request, sentence)

    def hear_of_question(self) -> None:
        """The kernel has published that it is at our question: what begins now, comes later."""
        self._begun_before = set(self._begun)

    def hear_answer(self, child: Child) -> None:
        """The child has answered: it is between two cells.

        What it published before that comes by another socket, and perhaps a moment later. So
        does what it publishes next: it may be at the next cell by then.
        """
        self._reactor.later(HEARD_WITHIN, partial(self._take_stock, child))

    def _take_stock(self, child: Child) -> None:
        """See what an answer tells of all that is in doubt."""
        begun = self._begun if self._begun_before is None else self._begun_before
        self._begun_before = None
        for request in self._in_doubt():
            if request.id in begun or self._overheard(request):
                self._answer(request)
        ending = [each for each in self._doubtful if each.stage is Stage.REPLIED]
        if self._is_quiet or not (self._in_doubt() or ending):
            for request in self._in_doubt():
                self._fail(request)
            attempt(partial(self.end, ending))
            for request in ending:
                self._requests.move(request, Stage.DONE, "its idle was said to nobody")
            self.on_settled()
        else:
            self._is_quiet = True
            self._reactor.later(ASK_AGAIN, child.ask_again)

    def _in_doubt(self) -> list[Request]:
        """List what has no answer; what runs in a subshell may well run on."""
        return [
            request
            for request in self._doubtful
            if request.is_open and not request.header.get("subshell_id")
        ]

    def _overheard(self, request: Request) -> dict[str, Any] | None:
        """Return the reply of a cell that was heard from busy to idle by one evaluator."""
        for heard in (self._past.heard, self._heard):
            if request.id in heard.over and request.id in heard.replies and request.is_cell:
                return heard.replies[request.id]
        return None

    def _answer(self, request: Request) -> None:
        """Answer what the kernel is done with, in its place."""
        reply = self._overheard(request)
        if reply is None:
            self._fail(request)
            return
        attempt(partial(self._speaker.reply, request, reply))
        self._requests.move(request, Stage.DONE, "its outputs tell its reply")

    def _fail(self, request: Request) -> None:
        why = (
            f"{self._what_is_missing()}, and so is the reply to this. It was not run again; "
            "what it did to the variables is there."
        )
        attempt(partial(self._speaker.answer_error, request, "OutputsMissing", why))
        self._requests.move(request, Stage.FAILED, "its reply is missing")

    def _what_is_missing(self) -> str:
        begin, end = (_clock(moment) for moment in (self._past.time, time.time()))
        return (
            "The evaluator of this session was killed, and a new one has taken over: outputs "
            f"between {begin} and {end} may be missing"
        )


def _clock(moment: float) -> str:
    return time.strftime(
        "%Y-%m-%d %H:%M:%S %Z", time.localtime(moment)
    )  # who reads it is elsewhere
