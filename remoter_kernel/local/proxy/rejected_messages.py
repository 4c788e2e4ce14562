"""Tells clients of what came from the session and could not be taken in here.

It is gone for good, and what followed it is there: whoever waits for it must hear so.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.local.proxy import canned_replies
from remoter_kernel.local.proxy.request_queries import find_open_remote
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import HEADER, PARENT, execution_state, header_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.requests import Requests

MOST_CELLS = 50  # that have been told


class RejectedMessageReporter:
    """Says so once in each cell, and in the place of each reply."""

    def __init__(self, replies: ReplySender, requests: Requests) -> None:
        """`requests` is the proxy's table."""
        self._replies = replies
        self._requests = requests
        self._shown_in: dict[str, None] = {}  # ids of cells

    def report(self, channel: Channel, parts: Sequence[Bytes], error: Exception) -> None:
        """Tell of one item, whose parts may be of any kind."""
        said = str(error).rstrip(".") or "no reason was given"
        why = said if isinstance(error, RemoterError) else f"{type(error).__name__}: {said}"
        header, parent = _header_or_empty(parts, HEADER), _header_or_empty(parts, PARENT)
        kind = header.get("msg_type", channel.name.lower())
        sys.stderr.write(f"[remoter] A message ({kind}) of the session was passed over: {why}.\n")
        if channel is Channel.SHELL or channel is Channel.CONTROL:
            self._reply_missing(parent, f"The reply came, and could not be taken in here: {why}.")
        elif channel is Channel.IOPUB and (state := execution_state(parts)):
            self._replies.publish("status", {"execution_state": state}, parent)
        elif channel is Channel.IOPUB or channel is Channel.STDIN:
            self._show_in(parent, f"Something of this cell ({kind}) is missing here: {why}.")
        elif cell := self._replies.running_cell():  # whose it was is not known
            self._show_in(cell.header, f"Something of the session is missing here: {why}.")

    def _reply_missing(self, parent: dict[str, Any], why: str) -> None:
        request = find_open_remote(self._requests, str(parent.get("msg_id", "")))
        if request is None:
            return
        trouble = canned_replies.error_content("ReplyMissing", why)
        reply = {"status": "error", **trouble}
        if request.is_cell:
            reply |= {"execution_count": 0, "user_expressions": {}, "payload": []}
        self._replies.finish_cell(request, reply, trouble if request.is_cell else None)

    def _show_in(self, cell: dict[str, Any], sentence: str) -> None:
        name = str(cell.get("msg_id", ""))
        if not name or name in self._shown_in:
            return
        self._shown_in[name] = None
        if len(self._shown_in) > MOST_CELLS:
            del self._shown_in[next(iter(self._shown_in))]
        words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
        self._replies.publish("stream", words, cell)


def _header_or_empty(parts: Sequence[Bytes], which: int) -> dict[str, Any]:
    try:
        return header_of(parts[which])
    except (ProtocolError, LookupError):
        return {}
