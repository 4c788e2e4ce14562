"""Cells that need this side: which they are, whose turn it is, and what else concerns them.

The far kernel's messages pass by here, too: what waits for a cell there has to see it end.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError, Usage
from remoter_kernel.local.proxy import canned_replies
from remoter_kernel.local.proxy.here.local_cell import InternalExec, LocalCell, for_local_kernel
from remoter_kernel.local.proxy.here.local_kernel import LocalComms, LocalKernel
from remoter_kernel.local.proxy.here.local_magics import (
    LocalCode,
    completeness,
    local_code,
    parse_local_magic,
    shift_reply,
    shift_request,
)
from remoter_kernel.local.proxy.here.permission import AccessKind, AccessRequest
from remoter_kernel.local.proxy.here.push_pull import ObjectTransferCell, ObjectTransferContext
from remoter_kernel.protocol.frames import Bytes, Channel, to_json
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    PARENT,
    content_of,
    execution_state,
    header_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.local.proxy.here.cell_queue import CellQueue
    from remoter_kernel.local.proxy.here.permission import Permission
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

TYPING_REQUESTS = {
    "complete_request",
    "inspect_request",
    "is_complete_request",
}  # while a cell is written
RUN_SENTENCE = "runs code of this notebook in a Python kernel here"


class LocalCells:
    """What of a notebook runs here."""

    def __init__(
        self,
        reactor: Reactor,
        replies: ReplySender,
        permission: Permission,
        link: Link,
        cell_queue: CellQueue,
    ) -> None:
        """Remember; `object_transfer` has to be set."""
        self.object_transfer: ObjectTransferContext
        self._reactor = reactor
        self._replies = replies
        self._permission = permission
        self._cell_queue = cell_queue
        self._kernel = LocalKernel(reactor)
        self._kernel.on_message = self._on_kernel_message
        self._kernel.on_ready = self._on_kernel_ready
        self._kernel.on_end = self._on_kernel_end
        self.internal_exec = InternalExec(link, self._kernel)
        self._comms = LocalComms()
        self._pending: dict[str, tuple[Request, int]] = {}  # completion and the like, by message id

    def close(self) -> None:
        """End the kernel here."""
        self._kernel.close()

    # From Jupyter ----------------------------------------------------------------------

    def on_execute(self, request: Request) -> bool:
        """Take a cell that needs this side, or has to wait for one; False: it is neither."""
        code = str(request.content.get("code", ""))
        try:
            wanted = parse_local_magic(code)
        except Usage as error:
            self._replies.reply_error(request, error)
            return True
        if isinstance(wanted, LocalCode):
            self._cell_queue.enqueue_local(self._local_cell(request, wanted))
        elif wanted is not None:
            self._cell_queue.enqueue_local(
                ObjectTransferCell(request, wanted, self.object_transfer, self._on_cell_over)
            )
        return wanted is not None

    def on_other_request(self, kind: str, request: Request) -> bool:
        """Take any other request that is for this side; False: it is not."""
        if self._comms.is_for_local_kernel(kind, request.parts):
            self._kernel.send(Channel.SHELL, for_local_kernel(request.parts, {}))
            return True
        if kind not in TYPING_REQUESTS:
            return False
        content = request.content
        code = str(content.get("code", ""))
        complete = completeness(code) if kind == "is_complete_request" else None
        if complete:
            self._replies.reply(request, complete)
            return True
        local = local_code(code)
        if local is None:
            return False
        words = shift_request(content, local)
        if (
            words is None or not self._kernel.is_ready or self._cell_queue.running_local
        ):  # late is worse than empty
            self._replies.reply(request, canned_replies.empty_reply(kind, content) or {})
            return True
        self._pending[str(request.header.get("msg_id", ""))] = request, local.begin
        self._kernel.send(Channel.SHELL, for_local_kernel(request.parts, words))
        return True

    # From the far side -----------------------------------------------------------------

    def consume_internal(self, parts: Sequence[Bytes]) -> bool:
        """Take what comes of an errand of ours there; False: it does not."""
        internal = self.internal_exec
        if not internal.remote_mark or not internal.is_internal(parts):
            return False
        internal.on_message(parts)
        return True

    def on_link_failed(self, error: RemoterError, *, is_over: bool) -> None:
        """Hear that the link gave up, and that what waited for it was answered on this side."""
        if is_over:
            self.object_transfer.prompter.drop_kernel_input(is_here=False)
        self.internal_exec.on_link_failed(error, is_over=is_over)
        self._cell_queue.on_link_failed()

    def on_remote_output(self, parts: Sequence[Bytes]) -> None:
        """Look at what is published there: a cell here may wait for that."""
        if execution_state(parts) != "idle":
            return
        if self._cell_queue.running_local:
            self._replies.republish_busy()
        self._cell_queue.on_idle(str(header_of(parts[PARENT]).get("msg_id", "")))

    def on_remote_reply(self, request: Request, parts: Sequence[Bytes]) -> None:
        """Look at a reply from there: a cell here may wait for that."""
        if request.is_cell:
            self._cell_queue.on_reply(request, str(content_of(parts).get("status")))

    def amend_reply(self, request: Request, parts: Sequence[Bytes]) -> Sequence[Bytes]:
        """Return a reply from there as clients should see it: with the comms that live here."""
        if request.header.get("msg_type") != "comm_info_request":
            return parts
        return self._comms.add_to_reply(parts, request.content.get("target_name"))

    # The kernel here -------------------------------------------------------------------

    def _local_cell(self, request: Request, local: LocalCode) -> LocalCell:
        wanted = AccessRequest(local.verb, AccessKind.RUN, RUN_SENTENCE)
        return LocalCell(
            request,
            local.code,
            kernel=self._kernel,
            replies=self._replies,
            reactor=self._reactor,
            require_permission=partial(self._permission.require, wanted, request),
            on_over=self._on_cell_over,
        )

    def _on_kernel_ready(self) -> None:
        self.internal_exec.on_local_ready()
        cell = self._cell_queue.running_local
        if isinstance(cell, LocalCell):
            cell.run()

    def _on_cell_over(self, is_well: bool) -> None:  # noqa: FBT001 - called with that alone
        cell = self._cell_queue.running_local
        if isinstance(cell, LocalCell) and cell.has_exited:
            self._kernel.stop()
            self._comms.clear()
            self.object_transfer.prompter.drop_kernel_input(is_here=True)
        self._cell_queue.on_local_over(is_well=is_well)

    def _on_kernel_end(self, error: RemoterError) -> None:
        """The kernel here is gone: so are its comms, and whoever waits for it hears why."""
        self._comms.clear()
        self.object_transfer.prompter.drop_kernel_input(is_here=True)
        self.internal_exec.on_local_died(error)
        asked, self._pending = self._pending, {}
        for request, _ in asked.values():
            self._replies.reply_error(request, error)
        cell = self._cell_queue.running_local
        if isinstance(cell, LocalCell):
            cell.fail(error)

    def _on_kernel_message(self, channel: Channel, parts: list[Bytes]) -> None:
        """Pass on what the kernel here says."""
        parent = header_of(parts[PARENT])
        if self._kernel.is_own_request(parent):
            self.internal_exec.on_message(parts)
            return
        header = header_of(parts[HEADER])
        kind, name = str(header.get("msg_type", "")), str(parent.get("msg_id", ""))
        self._comms.on_kernel_message(kind, parts)
        cell = self._cell_queue.running_local
        is_of_cell = isinstance(cell, LocalCell) and name == cell.request.header.get("msg_id")
        if isinstance(cell, LocalCell) and is_of_cell:
            shown = cell.on_message(kind, parts)
            if shown:
                self._forward(channel, cell.request, shown)
            cell.finish_if_done()
        elif channel is Channel.IOPUB:
            self._replies.forward_local(channel, None, parts)
            if kind == "status":
                self._replies.republish_busy()
        elif name in self._pending:
            request, begin = self._pending.pop(name)
            parts[CONTENT] = to_json(shift_reply(content_of(parts), begin))
            self._replies.forward_local(channel, request, parts)

    def _forward(self, channel: Channel, request: Request, parts: list[Bytes]) -> None:
        """Show what the kernel here says in a cell."""
        send = partial(self._replies.forward_local, channel, request)
        if channel is Channel.STDIN:
            answer = partial(self._kernel.send, channel)
            self.object_transfer.prompter.relay_input_request(
                request, parts, send, answer, is_here=True
            )
        else:
            send(parts)
