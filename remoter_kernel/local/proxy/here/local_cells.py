"""Cells that need this machine: which they are, when they run, and what else concerns them.

The remote kernel's messages pass by here, too: a local cell waits for the end of those before it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError, Usage
from remoter_kernel.local.proxy.here.local_cell import LocalCell, for_local_kernel
from remoter_kernel.local.proxy.here.local_kernel import LocalComms
from remoter_kernel.local.proxy.here.local_magics import (
    LocalCode,
    completeness,
    local_code,
    parse_local_magic,
    shift_reply,
    shift_request,
)
from remoter_kernel.local.proxy.here.permission import AccessKind, AccessRequest
from remoter_kernel.local.proxy.here.push_pull import ObjectTransferCell
from remoter_kernel.local.proxy.replies import empty_reply
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
    from remoter_kernel.local.proxy.here.local_cell import LocalCellContext
    from remoter_kernel.protocol.requests import Request

# What a client sends while a cell is written.
TYPING_REQUESTS = {"complete_request", "inspect_request", "is_complete_request"}
RUN_SENTENCE = "runs code of this notebook in a Python kernel here"


class LocalCells:
    """What of a notebook runs here."""

    def __init__(self, context: LocalCellContext, cell_queue: CellQueue) -> None:
        self._context = context
        self._replies = context.replies
        self._cell_queue = cell_queue
        self._internal_exec = context.internal_exec
        self._kernel = context.internal_exec.local_kernel
        self._kernel.on_message = self._on_kernel_message
        self._kernel.on_ready = self._on_kernel_ready
        self._kernel.on_end = self._on_kernel_end
        self._comms = LocalComms()
        # Completion and the like that the local kernel was asked for, by message id, with how many
        # characters of the cell stand before its local code.
        self._pending: dict[str, tuple[Request, int]] = {}

    def close(self) -> None:
        """End the local kernel."""
        self._kernel.close()

    # From Jupyter ----------------------------------------------------------------------

    def on_execute(self, request: Request) -> bool:
        """Queue a cell with a local magic; False: it has none."""
        try:
            magic = parse_local_magic(str(request.content.get("code", "")))
        except Usage as error:
            self._replies.reply_error(request, error)
            return True
        if magic is None:
            return False
        cell: LocalCell | ObjectTransferCell
        if isinstance(magic, LocalCode):
            access = AccessRequest(magic.verb, AccessKind.RUN, RUN_SENTENCE)
            require = partial(self._context.permission.require, access, request)
            cell = LocalCell(request, magic.code, self._context, require, self._on_cell_over)
        else:
            cell = ObjectTransferCell(request, magic, self._context, self._on_cell_over)
        self._cell_queue.enqueue_local(cell)
        return True

    def on_other_request(self, request: Request) -> bool:
        """Handle any other request that is for the local kernel; False: it is not."""
        # A widget sends these at any time, also while a cell runs: they do not wait for it.
        if self._comms.is_for_local_kernel(request):
            self._kernel.send(Channel.SHELL, for_local_kernel(request.parts, {}))
            return True
        if request.type not in TYPING_REQUESTS:
            return False
        content = request.content
        code = str(content.get("code", ""))
        complete = completeness(code) if request.type == "is_complete_request" else None
        # Without any kernel: a console waits for this at each Enter.
        if complete:
            self._replies.reply(request, complete)
            return True
        local = local_code(code)
        if local is None:
            return False
        changes = shift_request(content, local)
        # A kernel that has to be started, or runs a cell, would answer too late to be of use.
        if changes is None or not self._kernel.is_ready or self._cell_queue.running_local:
            self._replies.reply(request, empty_reply(request) or {})
            return True
        # The reply counts characters from the local code, and clients from the cell.
        self._pending[request.id] = request, local.begin
        self._kernel.send(Channel.SHELL, for_local_kernel(request.parts, changes))
        return True

    # From the session ------------------------------------------------------------------

    def consume_internal(self, parts: Sequence[Bytes]) -> bool:
        """Handle what comes of code of our own; False: it does not."""
        # Looked for in the bytes: this is asked of every output, and JSON takes long to read.
        mark = self._internal_exec.remote_mark
        if not mark or mark not in bytes(parts[PARENT]):
            return False
        self._internal_exec.on_message(parts)
        return True

    def on_link_failed(self, error: RemoterError, *, is_over: bool) -> None:
        """Go on without the link; `is_over`: its session is gone, too.

        What waited for it was answered by now.
        """
        if is_over:
            self._context.prompter.drop_kernel_input(is_here=False)
        self._internal_exec.on_link_failed(error, is_over=is_over)
        self._cell_queue.start_next()

    def on_remote_output(self, parts: Sequence[Bytes]) -> None:
        """Go on if this idle ends a cell for which a local one waits."""
        if execution_state(parts) != "idle":
            return
        if self._cell_queue.running_local:  # clients take this idle for the local cell's
            self._replies.republish_busy()
        self._cell_queue.on_idle(str(header_of(parts[PARENT]).get("msg_id", "")))

    def on_remote_reply(self, request: Request, parts: Sequence[Bytes]) -> None:
        """Go on if this reply ends a cell for which a local one waits."""
        if request.is_cell:
            self._cell_queue.on_reply(request, str(content_of(parts).get("status")))

    def amend_reply(self, request: Request, parts: Sequence[Bytes]) -> Sequence[Bytes]:
        """Return a reply of the remote kernel as clients should see it: with the local comms."""
        if request.type != "comm_info_request":
            return parts
        return self._comms.add_to_reply(parts, request.content.get("target_name"))

    # From the local kernel -------------------------------------------------------------

    @property
    def _running(self) -> LocalCell | None:
        cell = self._cell_queue.running_local
        return cell if isinstance(cell, LocalCell) else None

    def _on_kernel_ready(self) -> None:
        self._internal_exec.on_local_ready()
        if self._running:
            self._running.run()

    def _on_cell_over(self, is_well: bool) -> None:  # noqa: FBT001 - called with that alone
        # Its kernel ends by itself soon; a cell that is queued behind must not reach that one.
        if self._running and self._running.has_exited:
            self._kernel.stop()
            self._forget_kernel()
        self._cell_queue.on_local_over(is_well=is_well)

    def _forget_kernel(self) -> None:
        self._comms.clear()
        self._context.prompter.drop_kernel_input(is_here=True)

    def _on_kernel_end(self, error: RemoterError) -> None:
        self._forget_kernel()
        self._internal_exec.on_local_died(error)
        # Clients wait for each of them.
        pending, self._pending = self._pending, {}
        for request, _ in pending.values():
            self._replies.reply_error(request, error)
        if self._running:
            self._running.fail(error)

    def _on_kernel_message(self, channel: Channel, parts: list[Bytes]) -> None:
        parent = header_of(parts[PARENT])
        if self._kernel.is_own_request(parent):
            self._internal_exec.on_message(parts)
            return
        kind = str(header_of(parts[HEADER]).get("msg_type", ""))
        name = str(parent.get("msg_id", ""))
        self._comms.on_kernel_message(kind, parts)
        cell = self._running
        if cell and name == cell.request.id:
            shown = cell.on_message(kind, parts)
            if shown:
                self._forward(channel, cell.request, shown)
            cell.finish_if_done()
        elif channel is Channel.IOPUB:  # of a thread that a cell has left behind, or of a comm
            self._replies.forward_local(channel, None, parts)
            if kind == "status":
                self._replies.republish_busy()
        # Whatever else it replies to has no client that waits.
        elif name in self._pending:
            request, begin = self._pending.pop(name)
            parts[CONTENT] = to_json(shift_reply(content_of(parts), begin))
            self._replies.forward_local(channel, request, parts)

    def _forward(self, channel: Channel, request: Request, parts: list[Bytes]) -> None:
        send = partial(self._replies.forward_local, channel, request)
        if channel is Channel.STDIN:
            answer = partial(self._kernel.send, channel)
            relay = self._context.prompter.relay_input_request
            relay(request, parts, send, answer, is_here=True)
        else:
            send(parts)
