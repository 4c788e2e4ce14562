"""What comes from the session, and what becomes of it here: outputs, replies, events, the link."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import NoSuchSession, RemoteLacks
from remoter_kernel.local.config.remotes import remember_kernel_info
from remoter_kernel.local.proxy.failures import FailedLink, fail_lost_requests
from remoter_kernel.local.proxy.handlers import mark_sent, send_held_requests
from remoter_kernel.local.proxy.replies import BUSY_AND_IDLE
from remoter_kernel.local.proxy.request_queries import find_open_remote
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
    from remoter_kernel.local.proxy.presenters import (
        FirstCellNotice,
        SessionBanner,
        WaitingNotices,
    )
    from remoter_kernel.local.proxy.sockets import Sockets
    from remoter_kernel.protocol.frames import Bytes


@dataclass
class SessionMessages:
    """Handles what the evaluator sends, and how the link is."""

    context: ProxyContext
    sockets: Sockets
    identity: ProxyIdentity
    banner: SessionBanner
    presenters: Sequence[FirstCellNotice | WaitingNotices]  # who show how the link is

    def on_message(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Handle one item of the evaluator."""
        if channel is Channel.EVENT:
            self._on_event(from_json(parts[TOPIC]))
        elif channel is Channel.STDIN:
            self._on_input_request(parts)
        elif channel is not Channel.CONTROL and self.context.local_cells.consume_internal(parts):
            pass  # nobody's but ours: no client is to see it
        elif channel is Channel.IOPUB:
            self._on_output(parts)
        else:
            self._on_reply(channel, parts)

    def on_link_state(self, state: LinkState) -> None:
        """Handle that the link is in another state."""
        context = self.context
        if state is LinkState.WAITING:
            mark_sent(context, "the link was lost meanwhile")
        for presenter in self.presenters:
            # Before the rest: a notice is taken away before the cell prints, or fails.
            presenter.on_link_state()
        if state is LinkState.UP:
            self._on_link_up()
        elif state is LinkState.FAILED and context.link.error:
            error = context.link.error.at(context.find_remote().name)
            has_no_kernel = context.kernel.start_error is not None
            is_over = has_no_kernel or isinstance(error, NoSuchSession)
            if is_over:
                context.link.deliver_all()  # what has come belongs before the end
            failed = FailedLink(
                context.link,
                context.requests,
                context.replies,
                context.prompter,
                context.startup_code,
            )
            allows_stdin = context.kernel.allows_stdin
            failed.fail_pending(error, is_final=has_no_kernel, allows_stdin=allows_stdin)
            context.local_cells.on_link_failed(error, is_over=is_over)
        context.cell_queue.start_next()

    def _on_output(self, parts: Sequence[Bytes]) -> None:
        context, state = self.context, execution_state(parts)
        # At "restarting" VS Code opens its sockets anew and waits for a restart of its own: it
        # would never send a cell again.
        if state == "restarting" and self.identity.is_for_vscode:
            return
        context.magics.on_output(parts)
        is_new = True
        if state in BUSY_AND_IDLE:
            name = str(header_of(parts[PARENT]).get("msg_id", ""))
            is_new = context.requests.on_state(name, state).is_new
            if not is_new and state == BUSY and context.replies.last_state == IDLE:
                # It was sent early, and the idle of another request has come since: clients take
                # that for the kernel's, and this cell runs.
                request = context.requests.get(name)
                is_new = request is not None and request.is_open
            if is_new:
                context.replies.last_state = state
        if is_new:
            self.sockets.publish([bytes(parts[TOPIC]), *parts[HEADER:]])
        if context.cell_queue.is_active:
            context.local_cells.on_remote_output(parts)

    def _on_reply(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        context = self.context
        name = str(header_of(parts[PARENT]).get("msg_id", ""))
        request = find_open_remote(context.requests, name)
        if request is None:  # another proxy of this session has asked, or one before this
            return
        if request.is_cell:
            # Kept as it came: its count is read when a magic needs it.
            context.magics.last_reply = bytes(parts[CONTENT])
        # Before the request moves: if this raises, the link reports it (`on_rejected`) in the
        # place of the reply, which must still be awaited then.
        amended = context.completer.amend_reply(request, parts)
        amended = context.local_cells.amend_reply(request, amended)
        self.sockets.reply(channel, request.identities, amended)
        context.requests.on_reply(name, has_idle=has_idle(parts))
        if channel is Channel.SHELL and context.cell_queue.is_active:
            context.local_cells.on_remote_reply(request, parts)

    def _on_input_request(self, parts: Sequence[Bytes]) -> None:
        """Pass a question on to whoever has sent the request in which it is asked."""
        context = self.context
        request = context.sender_of(str(header_of(parts[PARENT]).get("msg_id", "")))
        if request is not None:
            send = partial(self.sockets.reply, Channel.STDIN, request.identities)
            answer = partial(context.link.send, Channel.STDIN)
            context.prompter.relay_input_request(request, list(parts), send, answer)

    def _on_event(self, fields: dict[str, Any]) -> None:
        event, why = str(fields.get("event")), str(fields.get("why", ""))
        if event in {"ready", "failed", "died"}:  # nobody waits for an answer there any more
            self.context.prompter.drop_kernel_input(is_here=False)
        if event == "ready":
            self._on_ready(fields)
        elif event == "failed":
            self._on_start_failed(why)
        elif event == "died" and not self.context.kernel.allows_stdin:
            self.context.dead_kernel.on_died(why)

    def _on_ready(self, fields: dict[str, Any]) -> None:
        """The remote kernel is there; `fields`: of the event, or of the link's welcome."""
        context, kernel = self.context, self.context.kernel
        kernel.is_ready = True
        context.magics.is_encrypted = fields.get("encrypted", False)  # older evaluators have none
        # From now on our messages carry the kernel's session, as its own do: some clients drop
        # messages of any other one.
        self.sockets.voice.set_identity(
            str(fields.get("session", "")), str(fields.get("username", ""))
        )
        self.banner.on_link_state()
        send_held_requests(context)
        context.cell_queue.start_next()
        info = fields.get("kernel_info")
        if isinstance(info, dict) and info and info != kernel.info:
            kernel.info = info
            address = context.dialer.session_info
            if address and not address.is_joined:  # else it may be older than the configuration
                remember = partial(remember_kernel_info, context.dialer.remote, info)
                Thread(remember, name="kernel info").start()  # a disk may be slow

    def _on_link_up(self) -> None:
        context = self.context
        context.kernel.start_error = None
        fail_lost_requests(context.link, context.requests, context.replies)
        welcome, address = context.link.welcome, context.dialer.session_info
        if context.link.pacer and address:
            context.link.pacer.backlog.session = (
                address.session
            )  # stands in "… more: remoter outputs"
        # Somebody has run `%remoter keep` in this session.
        if welcome.get("keep"):
            context.shutdown.keep_session()
        if address:
            is_busy = welcome.get("execution_state") == "busy"
            notebook = context.dialer.notebook_identity.notebook
            self.banner.on_session(address, notebook, is_busy=is_busy)
        if welcome.get("state") == "failed":
            self._on_start_failed(str(welcome.get("why", "")))
        elif welcome.get("kernel_info"):
            self._on_ready(welcome)

    def _on_start_failed(self, why: str) -> None:
        """There is a session, but its kernel did not start."""
        remote = self.context.dialer.remote.name
        error = RemoteLacks(why, "Mend that, then run the cell again.", remote=remote)
        self.context.kernel.start_error = error
        self.context.link.fail(error)
