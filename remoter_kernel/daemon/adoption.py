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
from remoter_kernel.wire.messages import PARENT, header_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.daemon.asked import Asked
    from remoter_kernel.daemon.child import Child
    from remoter_kernel.daemon.past import Past
    from remoter_kernel.daemon.speaker import Request, Speaker
    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor

HEARD_WITHIN = 0.1  # seconds
ASK_AGAIN = 0.3  # seconds
SILENT_FOR = 3.0  # seconds
UNHEARD = (
    "If something was asked since the evaluator was killed, nobody has heard it: "
    "interrupt the cell."
)


class Adoption:
    """The time between two evaluators, as those see it who asked for something in it."""

    def __init__(self, reactor: Reactor, past: Past, asked: Asked, speaker: Speaker) -> None:
        """Remember; `asked` is what the child has and has not answered, now and later."""
        self.on_settled: Callable[[], None] = lambda: None
        self._reactor = reactor
        self._past = past
        self._asked = asked
        self._speaker = speaker
        self._doubtful = [asker for asker in past.asked if asker in asked]
        self._doubtful += [asker for asker in past.asked.ending if asker in asked.ending]
        self._begun = set(past.heard.replies)
        self._told: set[tuple[str, bool]] = set()  # of a cell: what is missing, what is unheard
        self._heard = Overheard()
        self._is_quiet = False  # between two answers
        self._is_silent = True  # between two looks
        reactor.later(SILENT_FOR, self._note_silence)

    def doubt(self, request: Request) -> None:
        """Hear of one more that the child may have: a journal was damaged where it stood."""
        asker = str(request.header.get("msg_id", ""))
        self._asked[asker] = request
        self._doubtful.append(asker)
        self._is_quiet = False

    def hear(self, parts: list[Bytes]) -> None:
        """Hear what the child publishes, before the fronts do."""
        asker = str(header_of(parts[PARENT]).get("msg_id", ""))
        request = self._asked.get(asker) or self._asked.ending.get(asker)
        if request is None:
            return
        self._is_quiet = self._is_silent = False
        self._begun.add(asker)
        self._heard.hear(asker, parts)
        if asker in self._doubtful:
            self._tell_of_a_gap(request)

    def hear_reply(self, request: Request) -> None:
        """Hear a reply; what was published before it may have come before we were subscribed."""
        asker = str(request.header.get("msg_id", ""))
        if asker in self._doubtful and asker not in self._past.heard.over:
            self._tell_of_a_gap(request)

    def end(self, passed: Sequence[Request]) -> None:
        """The child is at the next request: whose idle was not heard by now will get none.

        It was published before we were subscribed, and what comes after it is heard.
        """
        for request in passed:
            if request.header.get("msg_id") in self._doubtful:
                self._tell_of_a_gap(request)
                self._speaker.end(request)

    def _note_silence(self) -> None:
        """Tell the cell that seems to run what may be the matter, if nothing is heard for long.

        It may have asked something. Some kernels (R) know a new evaluator's ear for questions
        only once they have been idle.
        """
        cells = [
            asker
            for asker in self._in_doubt()
            if self._is_cell(asker) and not self._overheard(asker)
        ]
        running = [asker for asker in cells if asker in self._begun][-1:] or cells[:1]
        for asker in running if self._is_silent else ():
            self._tell_of_a_gap(self._asked[asker])
            self._tell(self._asked[asker], UNHEARD)
        self._is_silent = True
        if cells:
            self._reactor.later(SILENT_FOR, self._note_silence)

    def _tell_of_a_gap(self, request: Request) -> None:
        """Say that outputs may be missing, unless a cell was heard here from its begin on."""
        if request.header.get("msg_id") not in self._heard.replies:
            self._tell(request, f"{self._what_is_missing()}.")

    def _tell(self, request: Request, sentence: str) -> None:
        """Say a sentence in a cell, unless one like it is there."""
        told = str(request.header.get("msg_id", "")), sentence == UNHEARD
        if told not in self._told:
            self._told.add(told)
            self._speaker.tell(request, sentence)

    def hear_answer(self, child: Child) -> None:
        """The child has answered: it is between two cells.

        What it published before that comes by another socket, and perhaps a moment later.
        """
        self._reactor.later(HEARD_WITHIN, partial(self._take_stock, child))

    def _take_stock(self, child: Child) -> None:
        """See what an answer tells of all that is in doubt."""
        for asker in self._in_doubt():
            reply = self._overheard(asker)
            if reply:
                self._speaker.reply(self._asked[asker], reply)
                self._asked.forget(asker)
            elif asker in self._begun:
                self._fail(asker)
        ending = [asker for asker in self._doubtful if asker in self._asked.ending]
        if self._is_quiet or not (self._in_doubt() or ending):
            for asker in self._in_doubt():
                self._fail(asker)
            self.end([self._asked.ending.pop(asker) for asker in ending])
            self.on_settled()
        else:
            self._is_quiet = True
            self._reactor.later(ASK_AGAIN, child.ask_again)

    def _in_doubt(self) -> list[str]:
        """List what has no answer; what runs in a subshell may well run on."""
        return [
            asker
            for asker in self._doubtful
            if asker in self._asked and not self._asked[asker].header.get("subshell_id")
        ]

    def _overheard(self, asker: str) -> dict[str, Any] | None:
        """Return the reply of a cell that was heard from busy to idle by one evaluator."""
        for heard in (self._past.heard, self._heard):
            if asker in heard.over and asker in heard.replies and self._is_cell(asker):
                return heard.replies[asker]
        return None

    def _is_cell(self, asker: str) -> bool:
        return self._asked[asker].header.get("msg_type") == "execute_request"

    def _fail(self, asker: str) -> None:
        why = (
            f"{self._what_is_missing()}, and so is the reply to this. It was not run again; "
            "what it did to the variables is there."
        )
        request = self._asked[asker]
        has_begun = asker in self._begun
        has_ended = self._asked.is_idle(asker)
        self._asked.forget(asker)
        self._speaker.answer_error(
            request, "OutputsMissing", why, has_begun=has_begun, has_ended=has_ended
        )

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
