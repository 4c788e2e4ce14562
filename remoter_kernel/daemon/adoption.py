"""What to make of a child whose evaluator has died, until nothing about it is in doubt.

The child is asked who it is until it answers, which it does between two cells. What had
begun by then, and has no reply, gets none any more: it was said to an evaluator that was
dead. What was in the child's queue may still be there; it is in doubt for as long as
something of it is heard between two answers. A cell of that queue may be heard from
busy to idle, and its reply still be lost: then what was heard says what that reply was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import CONTENT, HEADER, PARENT, content_of, header_of

if TYPE_CHECKING:
    from remoter_kernel.daemon.child import Child
    from remoter_kernel.daemon.past import Past
    from remoter_kernel.daemon.speaker import Request, Speaker
    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor

ASK_AGAIN = 0.3  # seconds


class Adoption:
    """The time between two evaluators, as those see it who asked for something in it."""

    def __init__(
        self, reactor: Reactor, past: Past, asked: dict[str, Request], speaker: Speaker
    ) -> None:
        """Remember; `asked` is what the child has and has not answered, now and later."""
        self.on_settled: Callable[[], None] = lambda: None
        self._reactor = reactor
        self._past = past
        self._asked = asked
        self._speaker = speaker
        self._doubtful = list(past.asked)
        self._begun = set(past.begun)
        self._told: set[str] = set()
        self._heard: dict[str, dict[str, Any]] = {}  # from busy on: what its reply must be
        self._heard_out: set[str] = set()  # and to idle
        self._open: dict[str, dict[str, Any]] = dict(past.open)  # has its reply, but no idle
        self._is_quiet = False

    def hear(self, parts: list[Bytes]) -> None:
        """Hear what the child publishes, before the fronts do."""
        asker = str(header_of(parts[PARENT]).get("msg_id", ""))
        if asker in self._open and b'"idle"' in bytes(parts[CONTENT]):
            del self._open[asker]
        request = self._asked.get(asker)
        if request is None:
            return
        self._is_quiet = False
        if asker in self._past.begun and asker not in self._told:
            self._told.add(asker)
            text = f"[remoter] {self._what_is_missing()}.\n"
            self._speaker.publish("stream", {"name": "stderr", "text": text}, request.header)
        self._begun.add(asker)
        self._follow(asker, parts)

    def _follow(self, asker: str, parts: list[Bytes]) -> None:
        """Note of a cell that began after the death what its reply says, too."""
        kind = header_of(parts[HEADER]).get("msg_type")
        if kind == "status" and content_of(parts).get("execution_state") == "idle":
            self._heard_out.add(asker)
        if asker in self._past.begun or kind not in {"status", "execute_input", "error"}:
            return
        content, heard = content_of(parts), self._heard.get(asker)
        if content.get("execution_state") == "busy":
            self._heard[asker] = {"status": "ok", "payload": [], "user_expressions": {}}
        elif heard and kind == "execute_input":
            heard["execution_count"] = content.get("execution_count", 0)
        elif heard and kind == "error":
            heard.update(content, status="error")

    def hear_reply(self, request: Request) -> None:
        """Hear a reply; the idle that belongs to it may have come before we were subscribed."""
        asker = str(request.header.get("msg_id", ""))
        is_shell = request.channel is Channel.SHELL
        if is_shell and asker in self._doubtful and asker not in self._heard_out:
            self._open[asker] = request.header

    def hear_answer(self, child: Child) -> None:
        """The child has answered: it is between two cells."""
        for asker in self._in_doubt():
            request = self._asked[asker]
            is_cell = request.header.get("msg_type") == "execute_request"
            if is_cell and asker in self._heard and asker in self._heard_out:
                del self._asked[asker]
                self._speaker.reply(request, self._heard[asker])
            elif asker in self._begun:
                self._fail(asker)
        if self._is_quiet or not (self._in_doubt() or self._open):
            for asker in self._in_doubt():
                self._fail(asker)
            for header in self._open.values():
                self._speaker.publish("status", {"execution_state": "idle"}, header)
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

    def _fail(self, asker: str) -> None:
        why = (
            f"{self._what_is_missing()}, and so is the reply to this. It was not run again; "
            "what it did to the variables is there."
        )
        request = self._asked.pop(asker)
        self._speaker.answer_error(request, "OutputsMissing", why, has_begun=asker in self._begun)

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
