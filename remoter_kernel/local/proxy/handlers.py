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
from remoter_kernel.local.login.prompts import NeedsPerson
from remoter_kernel.local.proxy import canned_replies
from remoter_kernel.local.proxy.request_queries import find_open_remote, remote_cells
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.requests import EXECUTE, Request, Requests, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.errors import RemoterError
    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.proxy.client_startup_code import ClientStartupCode
    from remoter_kernel.local.proxy.failures import DeadKernel
    from remoter_kernel.local.proxy.identity import ClientNotebookDetector
    from remoter_kernel.local.proxy.prompter import StdinPrompter
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.proxy.shutdown import ShutdownPolicy
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor

    Parts = Sequence[Bytes]
    Finish = Callable[[dict[str, Any], dict[str, Any] | None], None]

MOST_SENDERS = 1000  # requests of which is known who sent them
REPLY_WITHIN = 0.7  # seconds: jupyter console gives a question one, and mistakes a late answer


class HandlerResult(Enum):
    """What a handler did with a request."""

    HANDLED = "handled"  # it was answered, is being answered, or is on its way
    HELD = "held"  # somebody lets it go on later
    PASS = "pass"  # noqa: S105 - no password: it is for the next one


class LineCompleter(Protocol):
    """Completes and explains lines of ours."""

    def handle(self, request: Request) -> bool:
        """Answer what is about such a line."""

    def amend_reply(self, request: Request, parts: Parts) -> Parts:
        """Return a kernel's reply as clients should see it."""


class LocalRouter(Protocol):
    """Knows what is for this side."""

    def on_execute(self, request: Request) -> bool:
        """Take a cell that needs this side."""

    def on_other_request(self, kind: str, request: Request) -> bool:
        """Take another request that is for this side."""

    def consume_internal(self, parts: Parts) -> bool:
        """Take what comes of code of our own."""

    def on_remote_output(self, parts: Parts) -> None:
        """Look at what is published there."""

    def on_remote_reply(self, request: Request, parts: Parts) -> None:
        """Look at a reply from there."""

    def amend_reply(self, request: Request, parts: Parts) -> Parts:
        """Return a kernel's reply as clients should see it."""

    def on_link_failed(self, error: RemoterError, *, is_over: bool) -> None:
        """Hear that the link has failed."""


class MagicRunner(Protocol):
    """Knows the verbs of `%remoter`."""

    last_reply: bytes
    is_encrypted: bool | None

    def handle(self, request: Request, content: dict[str, Any], finish: Finish) -> bool:
        """Answer a cell that asks something of this side."""

    def on_output(self, parts: Parts) -> None:
        """Look at an output."""


class CellScheduler(Protocol):
    """Lets cells run one at a time, on whichever side."""

    @property
    def is_active(self) -> bool:
        """Does any cell need this side just now?"""

    def enqueue_remote(self, request: Request) -> bool:
        """Hold a cell back for the other side."""

    def interrupt(self) -> bool:
        """Interrupt the cell on this side."""

    def start_next(self) -> None:
        """Begin with the next cell on this side, if its time has come."""


@dataclass
class RemoteKernelFacts:
    """What is known of the far kernel."""

    info: dict[str, Any] | None  # what it has last said of itself
    language: str  # as it is configured
    is_ready: bool = False  # is it there, as far as we know?
    start_error: RemoterError | None = None  # why there is none
    allows_stdin: bool = False  # has any client allowed questions?


@dataclass
class ProxyContext:
    """What handlers need."""

    reactor: Reactor
    requests: Requests
    replies: ReplySender
    link: Link
    dialer: SessionDialer
    kernel: RemoteKernelFacts
    prompter: StdinPrompter
    shutdown: ShutdownPolicy
    notebook_detector: ClientNotebookDetector
    startup_code: ClientStartupCode
    dead_kernel: DeadKernel
    find_remote: Callable[[], Remote]  # as it is configured now
    completer: LineCompleter = field(init=False)
    local_cells: LocalRouter = field(init=False)
    magics: MagicRunner = field(init=False)
    cell_queue: CellScheduler = field(init=False)
    # Who sent what has no reply (of a widget), the last ones: code that it runs may ask.
    _senders: dict[str, Request] = field(default_factory=dict)

    def remember_sender(self, request: Request) -> None:
        """Remember who sent something that has no reply, and nothing of what it says."""
        sender = Request(request.channel, [], request.header, identities=request.identities)
        self._senders[request.id] = sender
        if len(self._senders) > MOST_SENDERS:
            del self._senders[next(iter(self._senders))]

    def sender_of(self, name: str) -> Request | None:
        """Return the request with this id, as one in which a kernel may ask."""
        return find_open_remote(self.requests, name) or self._senders.get(name)

    @property
    def is_kernel_ready(self) -> bool:
        """Would the far kernel answer, as far as we know?"""
        is_alive = self.kernel.is_ready and not self.dead_kernel.is_dead
        return is_alive and self.link.state is LinkState.UP

    @property
    def waits_for_person(self) -> bool:
        """Is somebody being asked, or must a cell be run first in which to ask?"""
        is_needed = self.link.state is LinkState.FAILED and isinstance(self.link.error, NeedsPerson)
        return is_needed or self.prompter.is_asking


def handle(context: ProxyContext, request: Request) -> HandlerResult:
    """Give a client's request to whoever takes it."""
    requests = context.requests
    requests.add(request)
    try:
        outcome = _first_outcome(context, request)
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
        context.prompter.on_cell(request, partial(_is_answered, requests))
    return outcome


def _is_answered(requests: Requests, name: str) -> bool:
    request = requests.get(name)
    if request is None or not request.is_open:
        return True
    return request.is_here and request.stage is Stage.SENT  # it ends soon, whatever is answered


def _first_outcome(context: ProxyContext, request: Request) -> HandlerResult:
    for each in _HANDLERS_BY_TYPE.get(request.type, _OF_ANY_TYPE):
        outcome = each(context, request)
        if outcome is not HandlerResult.PASS:
            return outcome
    raise AssertionError  # the last one takes all


def send_to_session(context: ProxyContext, request: Request) -> None:
    """Send a request to the session; one that cannot be carried is answered here."""
    context.startup_code.send_held()
    moved = partial(context.requests.move, request)
    on_kept = partial(moved, Stage.ACCEPTED, "in the session's journal")
    moved(Stage.QUEUED)
    try:
        request.number = context.link.send(request.channel, list(request.parts), on_kept)
    except TooLarge as error:
        context.replies.reject(request, error)
        return
    if not request.expects_reply:
        context.remember_sender(request)
        moved(Stage.DONE, "it has no reply")


def send_cell(context: ProxyContext, cell: Request) -> None:
    """Send a cell: someone wants to compute, so a link that has given up tries again now."""
    if context.link.state not in {LinkState.FAILED, LinkState.WAITING}:
        send_to_session(context, cell)
        return
    if context.kernel.start_error:  # a session without a kernel is left behind
        context.kernel.start_error = None
        context.dialer.reset()
        context.link.reset()
    send_to_session(context, cell)  # first: what the login asks is asked in a cell that waits
    context.link.connect()


def send_held_requests(context: ProxyContext) -> None:
    """Send the questions that waited for the kernel."""
    for request in context.requests.at(Stage.HELD):
        if request.type in canned_replies.INTERACTIVE_REQUESTS:
            send_to_session(context, request)


def mark_sent(context: ProxyContext, why: str = "") -> None:
    """Put what has left this side since it was queued into its stage.

    Nobody is told when that happens: it is looked at where somebody wants to know. The table takes
    the order of this for that in which the kernel gets them: it is the one in which they leave.
    """
    for request in sorted(context.requests.at(Stage.QUEUED), key=lambda each: each.number):
        if context.link.was_sent(request.channel, request.number):
            context.requests.move(request, Stage.SENT, why)


# The handlers, in their order ---------------------------------------------------------------


def stdin_reply(context: ProxyContext, request: Request) -> HandlerResult:
    """What was typed goes to whoever has asked for it."""
    if request.channel is not Channel.STDIN:
        return HandlerResult.PASS
    if not context.prompter.on_input_reply(request):
        send_to_session(context, request)
    return HandlerResult.HANDLED


def interrupt(context: ProxyContext, request: Request) -> HandlerResult:
    """Interrupt the cell that runs, or that would run next."""
    context.replies.reply(request, {"status": "ok"})
    is_ours = context.cell_queue.interrupt()
    if context.prompter.cancel(is_here=is_ours, client=request.identities) or is_ours:
        return HandlerResult.HANDLED
    cells = [cell.id for cell in remote_cells(context.requests)]
    if context.link.pacer:
        context.link.pacer.interrupt(*cells[:1])
    words = to_json({"order": "interrupt", "cells": cells})
    context.shutdown.delay_interrupt(partial(context.link.send, Channel.COMMAND, [words]))
    return HandlerResult.HANDLED


def shutdown(context: ProxyContext, request: Request) -> HandlerResult:
    """End this process; the session ends, restarts or stays, as it is meant."""
    if context.shutdown.is_exiting:
        context.requests.move(request, Stage.CANCELLED, "it ends already")
        return HandlerResult.HANDLED
    is_restart = bool(request.content.get("restart"))
    content = {"status": "ok", "restart": is_restart}
    context.replies.reply(request, content, is_quiet=True)
    context.replies.publish("shutdown_reply", content, request.header)
    context.requests.move(request, Stage.DONE, "this process ends")
    context.shutdown.exit("restart" if is_restart else "stop")
    return HandlerResult.HANDLED


def kernel_info(context: ProxyContext, request: Request) -> HandlerResult:
    """Say who the kernel is, from memory, while it cannot say so itself."""
    if context.is_kernel_ready:
        return HandlerResult.PASS
    info = canned_replies.cached_kernel_info(context.kernel.info, context.kernel.language)
    context.replies.reply(request, info)
    return HandlerResult.HANDLED


def magic_completion(context: ProxyContext, request: Request) -> HandlerResult:
    """Complete and explain a line of ours."""
    return HandlerResult.HANDLED if context.completer.handle(request) else HandlerResult.PASS


def notebook_detection(context: ProxyContext, request: Request) -> HandlerResult:
    """Look which notebook this is for."""
    context.notebook_detector.on_request(request)
    return HandlerResult.PASS


def startup_code(context: ProxyContext, request: Request) -> HandlerResult:
    """Answer a client's own code where it must not wait for a person or a session."""
    is_early = context.waits_for_person or context.notebook_detector.is_waiting
    is_answered = is_early and context.startup_code.reply_early(request)
    return HandlerResult.HANDLED if is_answered else HandlerResult.PASS


def dead_kernel(context: ProxyContext, request: Request) -> HandlerResult:
    """Refuse a cell of a client that should see its kernel die."""
    context.kernel.allows_stdin |= bool(request.content.get("allow_stdin", True))
    return (
        HandlerResult.HANDLED if context.dead_kernel.reply_if_dead(request) else HandlerResult.PASS
    )


def local_cell(context: ProxyContext, request: Request) -> HandlerResult:
    """Run a cell on this side in its turn, and answer what is asked of the kernel here."""
    if request.is_cell:
        is_taken = context.local_cells.on_execute(request)
    else:
        is_taken = context.local_cells.on_other_request(request.type, request)
    return HandlerResult.HANDLED if is_taken else HandlerResult.PASS


def remoter_magic(context: ProxyContext, request: Request) -> HandlerResult:
    """Answer a cell that asks something of this side."""
    finish = partial(context.replies.finish_cell, request)
    is_taken = context.magics.handle(request, request.content, finish)
    return HandlerResult.HANDLED if is_taken else HandlerResult.PASS


def cell_queue(context: ProxyContext, request: Request) -> HandlerResult:
    """Hold back a cell that stands behind one of this side."""
    return HandlerResult.HELD if context.cell_queue.enqueue_remote(request) else HandlerResult.PASS


def relay(context: ProxyContext, request: Request) -> HandlerResult:
    """Send all else to the session; a person who types gets an empty answer, and no late one."""
    if request.is_cell:
        send_cell(context, request)
        return HandlerResult.HANDLED
    is_empty = request.type in canned_replies.EMPTY_REPLIES and context.prompter.is_asking
    if is_empty or context.link.state is LinkState.FAILED:
        _answer_empty(context, request)
    elif request.type in canned_replies.INTERACTIVE_REQUESTS and not context.is_kernel_ready:
        context.requests.move(request, Stage.HELD, "the kernel is not there yet")
        context.reactor.call_later(REPLY_WITHIN, partial(_answer_if_held, context, request))
        return HandlerResult.HELD
    else:
        send_to_session(context, request)
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
    remoter_magic,
    cell_queue,
    relay,
)
REQUEST_TYPES = {  # that a handler is asked about; one that is not named here is asked about any
    interrupt: {"interrupt_request"},
    shutdown: {"shutdown_request"},
    kernel_info: {"kernel_info_request"},
    magic_completion: {"complete_request", "inspect_request"},
    dead_kernel: {EXECUTE},
    remoter_magic: {EXECUTE},
    cell_queue: {EXECUTE},
}
_OF_ANY_TYPE = tuple(each for each in HANDLERS if each not in REQUEST_TYPES)
# Made once: this is looked up for each request, and most handlers are for one type.
_HANDLERS_BY_TYPE = {
    kind: tuple(each for each in HANDLERS if kind in REQUEST_TYPES.get(each, {kind}))
    for kind in set[str]().union(*REQUEST_TYPES.values())
}


def _answer_if_held(context: ProxyContext, request: Request) -> None:
    if request.stage is Stage.HELD:
        _answer_empty(context, request)


def _answer_empty(context: ProxyContext, request: Request) -> None:
    """Answer with nothing, which harms nobody; where there is no such answer, not at all."""
    try:
        content = request.content
    except ProtocolError:  # odd, and of no weight for an empty answer
        content = {}
    empty = canned_replies.empty_reply(request.type, content)
    if empty:
        context.replies.reply(request, empty)
    else:
        context.requests.move(request, Stage.FAILED, "the session is out of reach")
