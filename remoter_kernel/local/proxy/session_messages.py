"""What comes from the session, and what becomes of it here: outputs, replies, events, the link."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from remoter_kernel.errors import NoSuchSession, RemoteLacks
from remoter_kernel.local.config.remotes import remember_kernel_info
from remoter_kernel.local.proxy.failures import FailedLink, answer_what_is_lost_there
from remoter_kernel.local.proxy.handlers import mark_sent, send_held_requests
from remoter_kernel.local.proxy.replies import BUSY_AND_IDLE
from remoter_kernel.local.proxy.request_queries import find_open_remote, remote_cells
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel, from_json
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    PARENT,
    TOPIC,
    execution_state,
    header_of,
)
from remoter_kernel.protocol.requests import BUSY, IDLE, has_idle
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.local.proxy.handlers import ProxyContext
    from remoter_kernel.local.proxy.identity import ProxyIdentity
    from remoter_kernel.local.proxy.presenters import FirstCellNotice
    from remoter_kernel.local.proxy.sockets import Sockets
    from remoter_kernel.protocol.frames import Bytes


class LinkStateObserver(Protocol):
    """Shows a person how the link is."""

    def on_link_state(self) -> None:
        """It has changed."""


@dataclass
class SessionMessages:
    """Hears the session and the link."""

    context: ProxyContext
    sockets: Sockets
    identity: ProxyIdentity
    banner: FirstCellNotice
    presenters: Sequence[LinkStateObserver] = ()

    def on_message(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Take one item of the evaluator."""
        if channel in {Channel.IOPUB, Channel.SHELL} and self.context.local_cells.consume_internal(
            parts
        ):
            return
        if channel is Channel.IOPUB:
            self._on_output(parts)
        elif channel is Channel.EVENT:
            self._on_event(from_json(parts[TOPIC]))
        else:
            self._on_reply(channel, parts)

    def on_link_state(self, state: LinkState) -> None:
        """Hear that the link is in another state."""
        context = self.context
        if state is LinkState.WAITING:
            mark_sent(context, "the link was lost meanwhile")
        for presenter in self.presenters:
            presenter.on_link_state()
        if state is LinkState.UP:
            self._on_link_up()
        elif state is LinkState.FAILED and context.link.error:
            is_over = context.kernel.start_error is not None
            error = context.link.error.at(context.find_remote().name)
            if is_over or isinstance(error, NoSuchSession):
                context.link.deliver_all()  # what has come belongs before the end
            failed = FailedLink(
                context.link,
                context.requests,
                context.replies,
                context.prompter,
                context.startup_code,
            )
            failed.fail_pending(error, is_final=is_over, allows_stdin=context.kernel.allows_stdin)
            context.local_cells.on_link_failed(
                error, is_over=is_over or isinstance(error, NoSuchSession)
            )
        context.cell_queue.start_next()

    def _on_output(self, parts: Sequence[Bytes]) -> None:
        """Pass an output on to all; a state that clients have heard is not said again."""
        context, state = self.context, execution_state(parts)
        # VS Code would open its sockets anew, and never say so to itself: no cell would be
        # sent any more.
        if state == "restarting" and self.identity.is_for_vscode:
            return
        context.magics.on_output(parts)
        is_new = True
        if state in BUSY_AND_IDLE:
            asker = str(header_of(parts[PARENT]).get("msg_id", ""))
            is_new = context.requests.on_state(asker, state).is_new
            if not is_new and state == BUSY and context.replies.last_state == IDLE:
                # It was said early, and the idle of another request has come since: clients
                # take that for the kernel's, and this cell runs.
                request = context.requests.get(asker)
                is_new = request is not None and request.is_open
            if is_new:
                context.replies.last_state = state
        if is_new:
            self.sockets.publish([bytes(parts[TOPIC]), *parts[HEADER:]])
        if context.cell_queue.is_active:
            context.local_cells.on_remote_output(parts)

    def _on_reply(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Pass a reply, or a question, on to whoever has asked."""
        context = self.context
        name = str(header_of(parts[PARENT]).get("msg_id", ""))
        if channel is Channel.STDIN:
            self._on_input_request(name, parts)
            return
        request = find_open_remote(context.requests, name)
        if request is None:
            return
        send = partial(self.sockets.reply, channel, request.identities)
        if request.is_cell:
            context.magics.last_reply = bytes(parts[CONTENT])
        # What goes wrong here is told in the place of the reply, which is still awaited then.
        send(
            context.local_cells.amend_reply(request, context.completer.amend_reply(request, parts))
        )
        context.requests.on_reply(name, has_idle=has_idle(parts))
        if channel is Channel.SHELL and context.cell_queue.is_active:
            context.local_cells.on_remote_reply(request, parts)

    def _on_input_request(self, name: str, parts: Sequence[Bytes]) -> None:
        """Pass a question on to whoever has sent the request in which it is asked."""
        context, request = self.context, self.context.sender_of(name)
        if request is not None:
            send = partial(self.sockets.reply, Channel.STDIN, request.identities)
            answer = partial(context.link.send, Channel.STDIN)
            context.prompter.relay_input_request(request, list(parts), send, answer)

    def _on_event(self, words: dict[str, Any]) -> None:
        event = str(words.get("event"))
        if event in {"ready", "failed", "died"}:  # what a kernel before has asked is void
            self.context.prompter.drop_kernel_input(is_here=False)
        if event == "ready":
            self._on_ready(words)
        elif event == "failed":
            self._on_start_failed(str(words.get("why", "")))
        elif event == "died" and not self.context.kernel.allows_stdin:
            self.context.dead_kernel.on_died(str(words.get("why", "")))

    def _on_ready(self, words: dict[str, Any]) -> None:
        """The far kernel is there: from now on, what we say carries its session."""
        context, kernel = self.context, self.context.kernel
        kernel.is_ready = True
        context.magics.is_encrypted = words.get("encrypted", False)  # older evaluators have none
        self.sockets.voice.set_identity(
            str(words.get("session", "")), str(words.get("username", ""))
        )
        self.banner.show_in(remote_cells(context.requests))
        send_held_requests(context)
        context.cell_queue.start_next()
        info = words.get("kernel_info")
        if isinstance(info, dict) and info and info != kernel.info:
            kernel.info = info
            address = context.dialer.session_info
            if address and not address.is_joined:  # else it may be older than the configuration
                remember = partial(remember_kernel_info, context.dialer.remote, info)
                Thread(remember, name="kernel info").start()  # a disk may be slow

    def _on_link_up(self) -> None:
        context = self.context
        context.kernel.start_error = None
        answer_what_is_lost_there(context.link, context.requests, context.replies)
        welcome, address = context.link.welcome, context.dialer.session_info
        if context.link.pacer and address:
            context.link.pacer.backlog.session = address.session
        if welcome.get("keep"):
            context.shutdown.keep_session()
        if address:
            is_busy = welcome.get("execution_state") == "busy"
            self.banner.on_session(
                address, context.dialer.notebook_identity.notebook, is_busy=is_busy
            )
        if welcome.get("state") == "failed":
            self._on_start_failed(str(welcome.get("why", "")))
        elif welcome.get("kernel_info"):
            self._on_ready(welcome)

    def _on_start_failed(self, why: str) -> None:
        """There is a session, but its kernel did not start."""
        remote = self.context.dialer.remote.name
        trouble = RemoteLacks(why, "Mend that, then run the cell again.", remote=remote)
        self.context.kernel.start_error = trouble
        self.context.link.fail(trouble)
