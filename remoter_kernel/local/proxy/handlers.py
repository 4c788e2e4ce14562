"""Who may answer a client's request in the proxy, and in which order they are asked.

`HANDLERS` is that order. Each returns what it did with the request: HANDLED it, HELD it back, or
let it PASS to the next one; the last one takes all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import TooLarge
from remoter_kernel.local.login.prompts import NeedsPerson
from remoter_kernel.local.proxy.replies import (
    EMPTY_REPLIES,
    INTERACTIVE_REQUESTS,
    cached_kernel_info,
    empty_reply,
)
from remoter_kernel.local.proxy.request_queries import find_open_remote, remote_cells
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.requests import EXECUTE, Request, Requests, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.errors import RemoterError
    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.proxy.client_startup_code import ClientStartupCode
    from remoter_kernel.local.proxy.failures import DeadKernel
    from remoter_kernel.local.proxy.here.cell_queue import CellQueue
    from remoter_kernel.local.proxy.here.local_cells import LocalCells
    from remoter_kernel.local.proxy.identity import ClientNotebookDetector
    from remoter_kernel.local.proxy.magics.completer import Completer
    from remoter_kernel.local.proxy.magics.magic import Magics
    from remoter_kernel.local.proxy.prompter import StdinPrompter
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.proxy.shutdown import ShutdownPolicy
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor

MOST_SENDERS = 1000  # requests without a reply of which is known who sent them
REPLY_WITHIN = 0.7  # seconds: jupyter console waits one, and takes a late reply for the next one's


class HandlerResult(Enum):
    """What a handler did with a request."""

    HANDLED = "handled"  # it was answered, is being answered, or is on its way
    HELD = "held"  # somebody lets it go on later
    PASS = "pass"  # noqa: S105 - no password: it is for the next one


@dataclass
class RemoteKernelFacts:
    """What is known of the remote kernel."""

    info: dict[str, Any] | None  # its last kernel_info_reply
    configured_language: str
    is_ready: bool = False  # is it there, as far as we know?
    start_error: RemoterError | None = None  # why there is none
    allows_stdin: bool = False  # has any client allowed questions?

    @property
    def language(self) -> str:
        """Its language: as it says itself, else as it is configured."""
        info = (self.info or {}).get("language_info")
        return str((info if isinstance(info, dict) else {}).get("name") or self.configured_language)


@dataclass
class ProxyContext:
    """The parts of the proxy, as handlers and messages of the session need them."""

    # 17 attributes: each handler needs another three or four of the proxy's parts, and a context
    # for each would be wired in one place all the same.
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
    completer: Completer
    local_cells: LocalCells
    magics: Magics
    cell_queue: CellQueue
    find_remote: Callable[[], Remote]  # as it is configured now
    # Who sent what has no reply (of a widget), the oldest first: its code may call input().
    _senders: dict[str, Request] = field(default_factory=dict)

    def remember_sender(self, request: Request) -> None:
        """Keep who sent something that has no reply."""
        # Without its parts: a widget may send megabytes.
        sender = Request(request.channel, [], request.header, identities=request.identities)
        self._senders[request.id] = sender
        if len(self._senders) > MOST_SENDERS:
            del self._senders[next(iter(self._senders))]

    def sender_of(self, name: str) -> Request | None:
        """Return the request with this id, as one in which a kernel may call input()."""
        return find_open_remote(self.requests, name) or self._senders.get(name)

    @property
    def is_kernel_ready(self) -> bool:
        """Would the remote kernel answer, as far as we know?"""
        is_alive = self.kernel.is_ready and self.dead_kernel.error is None
        return is_alive and self.link.state is LinkState.UP

    @property
    def waits_for_person(self) -> bool:
        """Is somebody being asked, or must a cell be run first in which to ask?"""
        is_needed = self.link.state is LinkState.FAILED and isinstance(self.link.error, NeedsPerson)
        return is_needed or self.prompter.is_asking


def handle(context: ProxyContext, request: Request) -> HandlerResult:
    """Give a client's request to the first handler that does not let it pass."""
    requests = context.requests
    requests.add(request)
    handlers = _HANDLERS_BY_TYPE.get(request.type, _OF_ANY_TYPE)
    try:
        results = (each(context, request) for each in handlers)
        result = next(each for each in results if each is not HandlerResult.PASS)
    except Exception as error:
        if request.stage is Stage.RECEIVED:  # else it would stay in the table for ever
            requests.move(request, Stage.FAILED, type(error).__name__)
        raise
    if result is HandlerResult.HANDLED and request.stage is Stage.RECEIVED:
        request.is_here = True  # no handler has sent it: one of them answers it, or has done so
        requests.move(request, Stage.SENT, "asked on this side, or over the login")
        if not request.expects_reply:
            requests.move(request, Stage.DONE, "it has no reply")
    if request.is_cell:  # last: a cell that is answered at once is none in which to ask
        context.prompter.on_cell(request, partial(_is_answered, requests))
    return result


def _is_answered(requests: Requests, name: str) -> bool:
    request = requests.get(name)
    if request is None or not request.is_open:
        return True
    # A verb that is looked up in a thread ends soon: whatever a person is asked in it.
    return request.is_here and request.stage is Stage.SENT


def send_to_session(context: ProxyContext, request: Request) -> None:
    """Send a request to the session; one that is too large is answered here."""
    context.startup_code.send_held()  # its client relies on that having run
    move = partial(context.requests.move, request)
    on_kept = partial(move, Stage.ACCEPTED, "in the session's journal")
    move(Stage.QUEUED)  # first: the link may send, and be told of it, at once
    try:
        request.number = context.link.send(request.channel, list(request.parts), on_kept)
    except TooLarge as error:
        context.replies.reject(request, error)
        return
    if not request.expects_reply:
        context.remember_sender(request)
        move(Stage.DONE, "it has no reply")


def send_cell(context: ProxyContext, cell: Request) -> None:
    """Send a cell: someone wants to compute, so a link that has failed tries again now."""
    # While it dials, or is up, the link sends by itself what is in its outbox.
    if context.link.state not in {LinkState.FAILED, LinkState.WAITING}:
        send_to_session(context, cell)
        return
    # It could not run anything, and a kernel is started by a new session only.
    if context.kernel.start_error:  # a session without a kernel is left behind
        context.kernel.start_error = None
        context.dialer.reset()
        context.link.reset()
    send_to_session(context, cell)  # first: the login asks in a cell that waits for it
    context.link.connect()


def send_held_requests(context: ProxyContext) -> None:
    """Send the interactive requests that were held until the kernel is there."""
    for request in context.requests.at(Stage.HELD):
        if request.type in INTERACTIVE_REQUESTS:
            send_to_session(context, request)


def mark_sent(context: ProxyContext, why: str = "") -> None:
    """Move to SENT what the link has sent since it was queued.

    The link calls nobody when it sends: whoever wants to know calls this first.
    """
    # The table takes the order of these moves for that in which the kernel gets the requests.
    for request in sorted(context.requests.at(Stage.QUEUED), key=lambda each: each.number):
        if context.link.was_sent(request.channel, request.number):
            context.requests.move(request, Stage.SENT, why)


# The handlers, in their order ---------------------------------------------------------------


def stdin_reply(context: ProxyContext, request: Request) -> HandlerResult:
    """Give what was typed to whoever has asked for it."""
    if request.channel is not Channel.STDIN:
        return HandlerResult.PASS
    if not context.prompter.on_input_reply(request):
        send_to_session(context, request)
    return HandlerResult.HANDLED


def interrupt(context: ProxyContext, request: Request) -> HandlerResult:
    """Interrupt the cell that runs, or that would run next."""
    context.replies.reply(request, {"status": "ok"})
    is_local = context.cell_queue.interrupt()
    # An interrupt that ends a question of ours, or a local cell, is none for the remote kernel.
    if context.prompter.cancel(is_here=is_local, client=request.identities) or is_local:
        return HandlerResult.HANDLED
    cells = [cell.id for cell in remote_cells(context.requests)]
    if context.link.pacer:
        context.link.pacer.interrupt(*cells[:1])  # of its output only the end is shown
    # The cells go along: one that has ended by then must not let the next one be hit.
    command = to_json({"order": "interrupt", "cells": cells})
    context.shutdown.delay_interrupt(partial(context.link.send, Channel.COMMAND, [command]))
    return HandlerResult.HANDLED


def shutdown(context: ProxyContext, request: Request) -> HandlerResult:
    """End this process; the session ends, restarts or stays, as it is meant."""
    # The first one is on its way to the session: nothing is to be added.
    if context.shutdown.is_exiting:
        context.requests.move(request, Stage.CANCELLED, "it ends already")
        return HandlerResult.HANDLED
    is_restart = bool(request.content.get("restart"))
    content = {"status": "ok", "restart": is_restart}
    context.replies.reply(request, content, has_states=True)  # no idle: it ends
    context.replies.publish("shutdown_reply", content, request.header)  # for other clients
    context.requests.move(request, Stage.DONE, "this process ends")
    context.shutdown.exit("restart" if is_restart else "stop")
    return HandlerResult.HANDLED


def kernel_info(context: ProxyContext, request: Request) -> HandlerResult:
    """Say who the kernel is, from memory, while it cannot say so itself."""
    if context.is_kernel_ready:
        return HandlerResult.PASS
    # Clients ask this first and show no notebook before the reply: a login may take minutes.
    info = cached_kernel_info(context.kernel.info, context.kernel.language)
    context.replies.reply(request, info)
    return HandlerResult.HANDLED


def magic_completion(context: ProxyContext, request: Request) -> HandlerResult:
    """Complete and explain a `%remoter` line."""
    return _result(is_handled=context.completer.handle(request))


def notebook_detection(context: ProxyContext, request: Request) -> HandlerResult:
    """Detect which notebook this proxy is for."""
    context.notebook_detector.on_request(request)
    return HandlerResult.PASS


def startup_code(context: ProxyContext, request: Request) -> HandlerResult:
    """Answer a client's own code where it must not wait for a person or a session."""
    # Elsewhere it runs as any cell: then its order among others is the client's.
    is_early = context.waits_for_person or context.notebook_detector.is_waiting
    return _result(is_handled=is_early and context.startup_code.reply_early(request))


def dead_kernel(context: ProxyContext, request: Request) -> HandlerResult:
    """Refuse a cell of a client that should see its kernel die."""
    # Missing means yes, as Jupyter's messaging page has it.
    context.kernel.allows_stdin |= bool(request.content.get("allow_stdin", True))
    return _result(is_handled=context.dead_kernel.reply_if_dead(request))


def local_cell(context: ProxyContext, request: Request) -> HandlerResult:
    """Queue a cell that runs on this machine, and answer what is asked of its kernel."""
    local = context.local_cells
    is_handled = local.on_execute(request) if request.is_cell else local.on_other_request(request)
    return _result(is_handled=is_handled)


def remoter_magic(context: ProxyContext, request: Request) -> HandlerResult:
    """Answer a cell with `%remoter`."""
    return _result(is_handled=context.magics.handle(request))


def cell_queue(context: ProxyContext, request: Request) -> HandlerResult:
    """Hold back a cell that stands behind a local one."""
    return HandlerResult.HELD if context.cell_queue.enqueue_remote(request) else HandlerResult.PASS


def relay(context: ProxyContext, request: Request) -> HandlerResult:
    """Send all else to the session; a person who types gets an empty answer, and no late one."""
    if request.is_cell:
        send_cell(context, request)
        return HandlerResult.HANDLED
    is_empty = request.type in EMPTY_REPLIES and context.prompter.is_asking
    if is_empty or context.link.state is LinkState.FAILED:
        _reply_empty(context, request)
    elif request.type in INTERACTIVE_REQUESTS and not context.is_kernel_ready:
        context.requests.move(request, Stage.HELD, "the kernel is not there yet")
        context.reactor.call_later(REPLY_WITHIN, partial(_reply_if_held, context, request))
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


def _result(*, is_handled: bool) -> HandlerResult:
    return HandlerResult.HANDLED if is_handled else HandlerResult.PASS


def _reply_if_held(context: ProxyContext, request: Request) -> None:
    if request.stage is Stage.HELD:
        _reply_empty(context, request)


def _reply_empty(context: ProxyContext, request: Request) -> None:
    """Send the empty reply, which harms nobody; where there is none, end the request without."""
    empty = empty_reply(request)
    if empty:
        context.replies.reply(request, empty)
    else:
        context.requests.move(request, Stage.FAILED, "the session is out of reach")
