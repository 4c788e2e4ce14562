"""A cell that this side answers: how it begins, what it shows, how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.proxy.canned_replies import error_content

if TYPE_CHECKING:
    from remoter_kernel.errors import RemoterError
    from remoter_kernel.local.proxy.replies import Publish

Header = dict[str, Any]
IopubMessage = tuple[str, dict[str, Any]]  # kind and content of a message on iopub
FinishCell = Callable[
    [dict[str, Any], dict[str, Any] | None], None
]  # says the error, and the reply


class MagicCell:
    """A cell with `%remoter`."""

    def __init__(self, publish: Publish, header: Header, count: int, finish: FinishCell) -> None:
        self.request_id = str(header.get("msg_id", ""))
        self._publish_for = publish
        self._header = header
        self._count = count
        self._finish_cell = finish

    def start(self, code: str) -> None:
        """Say that it runs."""
        self.publish("status", {"execution_state": "busy"})
        self.publish("execute_input", {"code": code, "execution_count": self._count})

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        """Say something in it."""
        self._publish_for(kind, content, self._header)

    def publish_all(self, found: list[IopubMessage]) -> None:
        """Say all that was found, and end it."""
        for kind, content in found:
            self.publish(kind, content)
        self.finish()

    def finish(
        self, error: RemoterError | None = None, payload: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Say how it ended; `payload`: what the client should do."""
        reply: dict[str, Any] = {"execution_count": self._count, "payload": list(payload)}
        trouble = error_content(error.name or type(error).__name__, str(error)) if error else None
        if trouble:
            self._finish_cell({"status": "error", **reply, **trouble}, trouble)
        else:
            self._finish_cell({"status": "ok", "user_expressions": {}, **reply}, None)
        self.publish("status", {"execution_state": "idle"})
