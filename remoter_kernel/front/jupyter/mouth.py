"""What the front says itself, in the far kernel's place: replies, errors, news on iopub."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remoter_kernel.front.jupyter import answers
from remoter_kernel.wire.frames import Channel, to_json
from remoter_kernel.wire.messages import HEADER, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.errors import RemoterError
    from remoter_kernel.front.jupyter.sockets import Sockets
    from remoter_kernel.wire.frames import Bytes


@dataclass
class Route:
    """Who asked what, and where the answer goes."""

    channel: Channel
    identities: list[bytes]
    header: dict[str, Any]
    parts: Sequence[Bytes]
    number: int = 0  # in the link's outbox


class Mouth:
    """Speaks to Jupyter's clients with the sockets' own voice."""

    def __init__(self, sockets: Sockets, kernel_id: str) -> None:
        """Remember; `at_work` has to be set: the cells without a reply, of either side."""
        self.at_work: Callable[[], Iterable[Route]] = tuple
        self._sockets = sockets
        self._kernel_id = kernel_id

    def answer_error(self, route: Route, error: RemoterError) -> None:
        """Answer a request with the reason why nothing comes of it."""
        kind = str(route.header.get("msg_type", ""))
        empty = answers.empty_reply(kind, content_of(route.parts))
        if empty:
            self.reply(route, empty)
            return
        trouble = answers.error_content(type(error).__name__, str(error))
        reply = {"status": "error", **trouble}
        is_cell = kind == "execute_request"
        if is_cell:
            reply |= {"execution_count": 0, "user_expressions": {}, "payload": []}
        self.reply(route, reply, error=trouble if is_cell else None)

    def refuse(self, route: Route, error: RemoterError) -> None:
        """Answer what cannot be carried; what has no reply (of a widget) is answered by a text."""
        if str(route.header.get("msg_type", "")).endswith("_request"):
            self.answer_error(route, error)
            return
        # Where nobody shows what is said to a widget, the log of the kernel has it.
        sys.stderr.write(f"[remoter] {error}\n")
        self.publish("status", {"execution_state": "busy"}, route.header)
        self.publish("stream", {"name": "stderr", "text": f"[remoter] {error}\n"}, route.header)
        self.publish("status", {"execution_state": "idle"}, route.header)

    def reply(
        self,
        route: Route,
        content: dict[str, Any],
        *,
        error: dict[str, Any] | None = None,
        is_quiet: bool = False,
    ) -> None:
        """Answer a request from this side: busy, perhaps an error, the reply, idle."""
        if not is_quiet:
            self.publish("status", {"execution_state": "busy"}, route.header)
        if error:
            self.publish("error", error, route.header)
        kind = str(route.header.get("msg_type", "")).replace("_request", "_reply")
        reply = self._sockets.voice.compose(kind, content, route.header)
        self._sockets.reply(route.channel, route.identities, reply)
        if not is_quiet:
            self.publish("status", {"execution_state": "idle"}, route.header)

    def finish(
        self, route: Route, content: dict[str, Any], error: dict[str, Any] | None = None
    ) -> None:
        """End a cell that was answered here and has said that it is busy."""
        if error:
            self.publish("error", error, route.header)
        self.reply(route, content, is_quiet=True)

    def abort(self, route: Route) -> None:
        """Answer a cell as a kernel does where one before it has failed."""
        self.reply(route, {"status": "aborted", "execution_count": 0})

    def ask(self, route: Route, content: dict[str, Any]) -> str:
        """Put a question to whoever has sent a request; return the message's id."""
        parts = self._sockets.voice.compose("input_request", content, route.header)
        # A kernel must not guess the id of a question of ours, and give its own question that.
        parts[HEADER] = to_json({**header_of(parts[HEADER]), "msg_id": secrets.token_hex(16)})
        self._sockets.reply(Channel.STDIN, route.identities, parts)
        return str(header_of(parts[HEADER])["msg_id"])

    def publish(
        self, kind: str, content: dict[str, Any], header: dict[str, Any] | None = None
    ) -> None:
        """Say something to all on iopub; `header`: in whose cell."""
        topic = f"kernel.{self._kernel_id}.{kind}".encode()
        self._sockets.publish(self._sockets.voice.compose(kind, content, header, topic=topic))
        asked = header or {}
        # An interrupt is answered like this by any kernel, and is over soon.
        is_other = asked.get("msg_type") != "interrupt_request"
        if content.get("execution_state") == "idle" and is_other:
            self.remind(str(asked.get("msg_id", "")))

    def remind(self, ended: str = "") -> None:
        """Say again that a cell is at work: clients take any `idle` for the kernel's.

        The other side, or this one, has answered something else meanwhile; `ended`: whose idle.
        """
        cell = next(iter(self.at_work()), None)
        if cell and cell.header.get("msg_id") != ended:
            self.publish("status", {"execution_state": "busy"}, cell.header)

    def pass_on(self, channel: Channel, route: Route | None, parts: list[Bytes]) -> None:
        """Say what a kernel on this side has said; `route`: to whom, else to all on iopub.

        It carries the far kernel's session, as all that clients hear from here does.
        """
        voice = self._sockets.voice
        header = {**header_of(parts[HEADER]), "session": voice.session, "username": voice.username}
        parts[HEADER] = to_json(header)
        if channel is Channel.IOPUB:
            self._sockets.publish(parts)
        elif route is not None:
            self._sockets.reply(channel, route.identities, parts)
