"""What the front says itself, in the far kernel's place: replies, errors, news on iopub.

Busy and idle go out once for each request, whoever says them first.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.proxy import canned_replies
from remoter_kernel.local.proxy.request_queries import first_running_cell
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import HEADER, PARENT, execution_state, header_of
from remoter_kernel.protocol.requests import BUSY, EXECUTE, IDLE, Request, Requests, Stage

if TYPE_CHECKING:
    from remoter_kernel.errors import RemoterError
    from remoter_kernel.local.proxy.sockets import Sockets
    from remoter_kernel.protocol.frames import Bytes

BUSY_AND_IDLE = {BUSY, IDLE}
Publish = Callable[
    [str, dict[str, Any], dict[str, Any]], None
]  # kind, content, header of whose cell


class ReplySender:
    """Speaks to Jupyter's clients with the sockets' own voice."""

    def __init__(self, sockets: Sockets, kernel_id: str, requests: Requests | None = None) -> None:
        self._sockets = sockets
        self._kernel_id = kernel_id
        self._requests = Requests() if requests is None else requests
        self.last_state = ""  # what clients take for the kernel's state

    def running_cell(self) -> Request | None:
        """Return the cell that runs, on either side, as far as is known."""
        return first_running_cell(self._requests)

    def reply_error(self, request: Request, error: RemoterError) -> None:
        """Answer a request with the reason why nothing comes of it."""
        try:
            content = request.content
        except ProtocolError:
            content = {}
        name, end = type(error).__name__, Stage.FAILED
        empty = canned_replies.empty_reply(request.type, content)
        if empty:
            self.reply(request, empty, end=end, why=name)
            return
        trouble = canned_replies.error_content(name, str(error))
        reply = {"status": "error", **trouble}
        is_cell = request.type == EXECUTE
        if is_cell:
            reply |= {"execution_count": 0, "user_expressions": {}, "payload": []}
        self.reply(request, reply, error=trouble if is_cell else None, end=end, why=name)

    def reject(self, request: Request, error: RemoterError) -> None:
        """Answer what cannot be carried; what has no reply (of a widget) is answered by a text."""
        if request.type.endswith("_request"):
            self.reply_error(request, error)
            return
        # Where nobody shows what is said to a widget, the log of the kernel has it.
        sys.stderr.write(f"[remoter] {error}\n")
        self.publish("status", {"execution_state": BUSY}, request.header)
        self.publish("stream", {"name": "stderr", "text": f"[remoter] {error}\n"}, request.header)
        self.publish("status", {"execution_state": IDLE}, request.header)
        self._requests.move(request, Stage.FAILED, type(error).__name__)

    def reply(
        self,
        request: Request,
        content: dict[str, Any],
        *,
        error: dict[str, Any] | None = None,
        is_quiet: bool = False,
        end: Stage = Stage.DONE,
        why: str = "answered on this side",
    ) -> None:
        """Answer a request from this side: busy, perhaps an error, the reply, idle.

        `is_quiet`: whoever asks for this says busy and idle. `end`: what becomes of the request.
        """
        request.is_here |= request.stage < Stage.QUEUED
        if not is_quiet:
            self.publish("status", {"execution_state": BUSY}, request.header)
        if error:
            self.publish("error", error, request.header)
        kind = request.type.replace("_request", "_reply")
        reply = self._sockets.voice.compose(kind, content, request.header)
        self._sockets.reply(request.channel, request.identities, reply)
        if is_quiet:
            self._on_replied(request, why)
        else:
            self.publish("status", {"execution_state": IDLE}, request.header)
            self._requests.move(request, end, why)

    def finish_cell(
        self, request: Request, content: dict[str, Any], error: dict[str, Any] | None = None
    ) -> None:
        """End a cell that was answered here and has said that it is busy."""
        if error:
            self.publish("error", error, request.header)
        self.reply(request, content, is_quiet=True)

    def reply_aborted(self, request: Request) -> None:
        """Answer a cell as a kernel does where one before it has failed."""
        content = {"status": "aborted", "execution_count": 0}
        self.reply(request, content, end=Stage.CANCELLED, why="one before it failed")

    def send_input_request(self, request: Request, content: dict[str, Any]) -> str:
        """Put a question to whoever has sent a request; return the message's id."""
        parts = self._sockets.voice.compose("input_request", content, request.header)
        # A kernel must not guess the id of a question of ours, and give its own question that.
        parts[HEADER] = to_json({**header_of(parts[HEADER]), "msg_id": secrets.token_hex(16)})
        self._sockets.reply(Channel.STDIN, request.identities, parts)
        return str(header_of(parts[HEADER])["msg_id"])

    def publish(
        self, kind: str, content: dict[str, Any], header: dict[str, Any] | None = None
    ) -> None:
        """Say something to all on iopub; `header`: in whose cell.

        A state that its clients have heard already is not said again.
        """
        asked = header or {}
        name, state = str(asked.get("msg_id", "")), content.get("execution_state")
        is_state = kind == "status" and state in BUSY_AND_IDLE and bool(name)
        if is_state and not self._requests.on_local_state(name, str(state)):
            return
        self._publish(kind, content, header)
        # An interrupt is answered like this by any kernel, and is over soon.
        if state == IDLE and asked.get("msg_type") != "interrupt_request":
            self.republish_busy(name)

    def republish_busy(self, ended: str = "") -> None:
        """Say again that a cell is at work: clients take any `idle` for the kernel's.

        The other side, or this one, has answered something else meanwhile; `ended`: whose idle.
        """
        cell = first_running_cell(self._requests, but=ended)
        if cell:
            self._requests.on_local_state(cell.id, BUSY)
            self._publish("status", {"execution_state": BUSY}, cell.header)

    def _publish(self, kind: str, content: dict[str, Any], header: dict[str, Any] | None) -> None:
        topic = f"kernel.{self._kernel_id}.{kind}".encode()
        if kind == "status":
            self.last_state = str(content.get("execution_state"))
        self._sockets.publish(self._sockets.voice.compose(kind, content, header, topic=topic))

    def forward_local(self, channel: Channel, request: Request | None, parts: list[Bytes]) -> None:
        """Say what a kernel on this side has said; `request`: to whom, else to all on iopub.

        It carries the far kernel's session, as all that clients hear from here does.
        """
        voice = self._sockets.voice
        header = {**header_of(parts[HEADER]), "session": voice.session, "username": voice.username}
        parts[HEADER] = to_json(header)
        if channel is Channel.IOPUB:
            state = execution_state(parts)
            name = str(header_of(parts[PARENT]).get("msg_id", ""))
            if state not in BUSY_AND_IDLE or self._requests.on_local_state(name, state):
                self.last_state = state or self.last_state
                self._sockets.publish(parts)
        elif request is not None:
            self._sockets.reply(channel, request.identities, parts)
            if channel is not Channel.STDIN:
                self._on_replied(request, "answered by the kernel on this side")

    def _on_replied(self, request: Request, why: str) -> None:
        self._requests.move(request, Stage.DONE if request.is_idle else Stage.REPLIED, why)
