"""Who may answer a client's request on this side, and in which order they are asked.

`HANDLERS` is that order. Each says what it did with the request: HANDLED it, HELD it back, or let
it PASS to the next one; the last one takes all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from remoter_kernel.errors import ProtocolError, TooLarge
from remoter_kernel.front.jupyter import answers
from remoter_kernel.front.jupyter.requests import cells_there, find_there
from remoter_kernel.front.prompts import NeedsPerson
from remoter_kernel.front.session.link import LinkState
from remoter_kernel.wire.frames import Channel, to_json
from remoter_kernel.wire.requests import Request, Requests, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.errors import RemoterError
    from remoter_kernel.front.configuration.remotes import Remote
    from remoter_kernel.front.jupyter.asker import Asker
    from remoter_kernel.front.jupyter.ending import ShutdownPolicy
    from remoter_kernel.front.jupyter.failures import DeadKernel
    from remoter_kernel.front.jupyter.first_words import StartupCode
    from remoter_kernel.front.jupyter.introduction import Introduction
    from remoter_kernel.front.jupyter.mouth import Mouth
    from remoter_kernel.front.session.dialer import SessionDialer
    from remoter_kernel.front.session.link import Link
    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor

    Parts = Sequence[Bytes]
    Finish = Callable[[dict[str, Any], dict[str, Any] | None], None]

MOST_WITHOUT_REPLY = 1000  # requests of which is known who sent them
ANSWER_WITHIN = 0.7  # seconds: jupyter console gives a question one, and mistakes a late answer


class HandlerResult(Enum):
    """What a handler did with a request."""

    HANDLED = "handled"  # it was answered, is being answered, or is on its way
    HELD = "held"  # somebody lets it go on later
    PASS = "pass"  # noqa: S105 - no password: it is for the next one


class LineCompleter(Protocol):
    """Completes and explains lines of ours."""

    def take(self, request: Request) -> bool:
        """Answer what is about such a line."""

    def amend(self, request: Request, parts: Parts) -> Parts:
        """Return a kernel's reply as clients should see it."""


class LocalSide(Protocol):
    """Knows what is for this side."""

    def take_cell(self, request: Request) -> bool:
        """Take a cell that needs this side."""

    def take_other(self, kind: str, request: Request) -> bool:
        """Take another request that is for this side."""

    def take_own(self, parts: Parts) -> bool:
        """Take what comes of code of our own."""

    def notice(self, parts: Parts) -> None:
        """Look at what is published there."""

    def notice_reply(self, request: Request, parts: Parts) -> None:
        """Look at a reply from there."""

    def amend(self, request: Request, parts: Parts) -> Parts:
        """Return a kernel's reply as clients should see it."""

    def lose(self, error: RemoterError, *, is_over: bool) -> None:
        """Hear that the link has failed."""


class MagicVerbs(Protocol):
    """Knows the verbs of `%remoter`."""

    last_reply: bytes
    is_encrypted: bool | None

    def take(self, request: Request, content: dict[str, Any], finish: Finish) -> bool:
        """Answer a cell that asks something of this side."""

    def notice(self, parts: Parts) -> None:
        """Look at an output."""


class CellTurns(Protocol):
    """Lets cells run one at a time, on whichever side."""

    def take_there(self, request: Request) -> bool:
        """Hold a cell back for the other side."""

    def interrupt(self) -> bool:
        """Interrupt the cell on this side."""

    def look(self) -> None:
        """Begin with the next cell on this side, if its time has come."""


@dataclass
class KernelThere:
    """What is known of the far kernel."""

    info: dict[str, Any] | None  # what it has last said of itself
    language: str  # as it is configured
    is_ready: bool = False  # is it there, as far as we know?
    trouble: RemoterError | None = None  # why there is none
    is_asked: bool = False  # has any client allowed questions?


@dataclass
class Context:
    """What handlers need."""

    reactor: Reactor
    requests: Requests
    mouth: Mouth
    link: Link
    dialer: SessionDialer
    kernel: KernelThere
    asker: Asker
    ending: ShutdownPolicy
    introduction: Introduction
    startup: StartupCode
    dead: DeadKernel
    remote: Callable[[], Remote]  # as it is configured now
    completer: LineCompleter = field(init=False)
    here: LocalSide = field(init=False)
    verbs: MagicVerbs = field(init=False)
    turns: CellTurns = field(init=False)
    # Who sent what has no reply (of a widget), the last ones: code that it runs may ask.
    _without_reply: dict[str, Request] = field(default_factory=dict)

    def note_without_reply(self, request: Request) -> None:
        """Remember who sent something that has no reply, and nothing of what it says."""
        sender = Request(request.channel, [], request.header, identities=request.identities)
        self._without_reply[request.id] = sender
        if len(self._without_reply) > MOST_WITHOUT_REPLY:
            del self._without_reply[next(iter(self._without_reply))]

    def sender_of(self, name: str) -> Request | None:
        """Return the request with this id, as one in which a kernel may ask."""
        return find_there(self.requests, name) or self._without_reply.get(name)

    @property
    def is_there(self) -> bool:
        """Would the far kernel answer, as far as we know?"""
        is_alive = self.kernel.is_ready and not self.dead.has_begun
        return is_alive and self.link.state is LinkState.UP

    @property
    def waits_for_person(self) -> bool:
        """Is somebody being asked, or must a cell be run first in which to ask?"""
        is_needed = self.link.state is LinkState.FAILED and isinstance(self.link.error, NeedsPerson)
        return is_needed or self.asker.is_asking


def handle(around: Context, request: Request) -> HandlerResult:
    """Give a client's request to whoever takes it."""
    requests = around.requests
    requests.add(request)
    try:
        outcome = _first_outcome(around, request)
    except Exception as error:
        if request.stage is Stage.RECEIVED:  # what nobody took must not stay for ever
            requests.move(request, Stage.FAILED, type(error).__name__)
        raise
    if outcome is HandlerResult.HANDLED and request.stage is Stage.RECEIVED:
        request.is_here = True
        requests.move(request, Stage.SENT, "asked on this side, or over the login")
        if not request.expects_reply:
            requests.move(request, Stage.DONE, "it has no reply")
    if request.is_cell:
        around.asker.note_cell(request, partial(_is_answered, requests))
    return outcome


def _is_answered(requests: Requests, name: str) -> bool:
    request = requests.get(name)
    if request is None or not request.is_open:
        return True
    return request.is_here and request.stage is Stage.SENT  # it ends soon, whatever is answered


def _first_outcome(around: Context, request: Request) -> HandlerResult:
    for each in HANDLERS:
        outcome = each(around, request)
        if outcome is not HandlerResult.PASS:
            return outcome
    raise AssertionError  # the last one takes all


def send_to_session(around: Context, request: Request) -> None:
    """Send a request to the session; one that cannot be carried is answered here."""
    around.startup.send()
    moved = partial(around.requests.move, request)
    on_kept = partial(moved, Stage.ACCEPTED, "in the session's journal")
    moved(Stage.QUEUED)
    try:
        request.number = around.link.say(request.channel, list(request.parts), on_kept)
    except TooLarge as error:
        around.mouth.refuse(request, error)
        return
    if not request.expects_reply:
        around.note_without_reply(request)
        moved(Stage.DONE, "it has no reply")


def send_cell(around: Context, cell: Request) -> None:
    """Send a cell: someone wants to compute, so a link that has given up tries again now."""
    if around.link.state not in {LinkState.FAILED, LinkState.WAITING}:
        send_to_session(around, cell)
        return
    if around.kernel.trouble:  # a session without a kernel is left behind
        around.kernel.trouble = None
        around.dialer.forget()
        around.link.start_over()
    send_to_session(around, cell)  # first: what the login asks is asked in a cell that waits
    around.link.wake()


def send_held(around: Context) -> None:
    """Send the questions that waited for the kernel."""
    for request in around.requests.at(Stage.HELD):
        if request.type in answers.IMPATIENT:
            send_to_session(around, request)


def note_what_has_left(around: Context, why: str = "") -> None:
    """Put what has left this side since it was queued into its stage.

    Nobody is told when that happens: it is looked at where somebody wants to know. The table takes
    the order of this for that in which the kernel gets them: it is the one in which they leave.
    """
    for request in sorted(around.requests.at(Stage.QUEUED), key=lambda each: each.number):
        if around.link.has_left(request.channel, request.number):
            around.requests.move(request, Stage.SENT, why)


# The handlers, in their order ---------------------------------------------------------------


def stdin_reply(around: Context, request: Request) -> HandlerResult:
    """What was typed goes to whoever has asked for it."""
    if request.channel is not Channel.STDIN:
        return HandlerResult.PASS
    if not around.asker.hear(request):
        send_to_session(around, request)
    return HandlerResult.HANDLED


def interrupt(around: Context, request: Request) -> HandlerResult:
    """Interrupt the cell that runs, or that would run next."""
    if request.type != "interrupt_request":
        return HandlerResult.PASS
    around.mouth.reply(request, {"status": "ok"})
    is_ours = around.turns.interrupt()
    if around.asker.call_off(is_here=is_ours, client=request.identities) or is_ours:
        return HandlerResult.HANDLED
    cells = [cell.id for cell in cells_there(around.requests)]
    if around.link.pacer:
        around.link.pacer.interrupt(*cells[:1])
    words = to_json({"order": "interrupt", "cells": cells})
    around.ending.unless_it_follows(partial(around.link.say, Channel.COMMAND, [words]))
    return HandlerResult.HANDLED


def shutdown(around: Context, request: Request) -> HandlerResult:
    """End this process; the session ends, restarts or stays, as it is meant."""
    if request.type != "shutdown_request":
        return HandlerResult.PASS
    if around.ending.has_begun:
        around.requests.move(request, Stage.CANCELLED, "it ends already")
        return HandlerResult.HANDLED
    is_restart = bool(request.content.get("restart"))
    content = {"status": "ok", "restart": is_restart}
    around.mouth.reply(request, content, is_quiet=True)
    around.mouth.publish("shutdown_reply", content, request.header)
    around.requests.move(request, Stage.DONE, "this process ends")
    around.ending.leave("restart" if is_restart else "stop")
    return HandlerResult.HANDLED


def kernel_info(around: Context, request: Request) -> HandlerResult:
    """Say who the kernel is, from memory, while it cannot say so itself."""
    if request.type != "kernel_info_request" or around.is_there:
        return HandlerResult.PASS
    info = answers.cached_kernel_info(around.kernel.info, around.kernel.language)
    around.mouth.reply(request, info)
    return HandlerResult.HANDLED


def magic_completion(around: Context, request: Request) -> HandlerResult:
    """Complete and explain a line of ours."""
    return HandlerResult.HANDLED if around.completer.take(request) else HandlerResult.PASS


def notebook_detection(around: Context, request: Request) -> HandlerResult:
    """Look which notebook this is for."""
    around.introduction.hear(request)
    return HandlerResult.PASS


def startup_code(around: Context, request: Request) -> HandlerResult:
    """Answer a client's own code where it must not wait for a person or a session."""
    is_early = around.waits_for_person or around.introduction.is_awaited
    is_answered = is_early and around.startup.answer(request)
    return HandlerResult.HANDLED if is_answered else HandlerResult.PASS


def dead_kernel(around: Context, request: Request) -> HandlerResult:
    """Refuse a cell of a client that should see its kernel die."""
    if not request.is_cell:
        return HandlerResult.PASS
    around.kernel.is_asked |= bool(request.content.get("allow_stdin", True))
    return HandlerResult.HANDLED if around.dead.refuse(request) else HandlerResult.PASS


def local_cell(around: Context, request: Request) -> HandlerResult:
    """Run a cell on this side in its turn, and answer what is asked of the kernel here."""
    if request.is_cell:
        is_taken = around.here.take_cell(request)
    else:
        is_taken = around.here.take_other(request.type, request)
    return HandlerResult.HANDLED if is_taken else HandlerResult.PASS


def remoter_verb(around: Context, request: Request) -> HandlerResult:
    """Answer a cell that asks something of this side."""
    if not request.is_cell:
        return HandlerResult.PASS
    finish = partial(around.mouth.finish, request)
    is_taken = around.verbs.take(request, request.content, finish)
    return HandlerResult.HANDLED if is_taken else HandlerResult.PASS


def cell_queue(around: Context, request: Request) -> HandlerResult:
    """Hold back a cell that stands behind one of this side."""
    is_held = request.is_cell and around.turns.take_there(request)
    return HandlerResult.HELD if is_held else HandlerResult.PASS


def relay(around: Context, request: Request) -> HandlerResult:
    """Send all else to the session; a person who types gets an empty answer, and no late one."""
    if request.is_cell:
        send_cell(around, request)
        return HandlerResult.HANDLED
    is_empty = request.type in answers.EMPTY and around.asker.is_asking
    if is_empty or around.link.state is LinkState.FAILED:
        _answer_empty(around, request)
    elif request.type in answers.IMPATIENT and not around.is_there:
        around.requests.move(request, Stage.HELD, "the kernel is not there yet")
        around.reactor.later(ANSWER_WITHIN, partial(_answer_if_held, around, request))
        return HandlerResult.HELD
    else:
        send_to_session(around, request)
    return HandlerResult.HANDLED


HANDLERS = (
    stdin_reply,
    interrupt,
    shutdown,
    kernel_info,
    magic_completion,
    notebook_detection,
    startup_code,
    dead_kernel,
    local_cell,
    remoter_verb,
    cell_queue,
    relay,
)


def _answer_if_held(around: Context, request: Request) -> None:
    if request.stage is Stage.HELD:
        _answer_empty(around, request)


def _answer_empty(around: Context, request: Request) -> None:
    """Answer with nothing, which harms nobody; where there is no such answer, not at all."""
    try:
        content = request.content
    except ProtocolError:  # odd, and of no weight for an empty answer
        content = {}
    empty = answers.empty_reply(request.type, content)
    if empty:
        around.mouth.reply(request, empty)
    else:
        around.requests.move(request, Stage.FAILED, "the session is out of reach")
