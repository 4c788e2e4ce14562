"""A cell that this side answers: how it begins, what it shows, how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from remoter_kernel.front.jupyter.canned_replies import error_content

if TYPE_CHECKING:
    from remoter_kernel.errors import RemoterError
    from remoter_kernel.front.jupyter.replies import Publish

Header = dict[str, Any]
IopubMessage = tuple[str, dict[str, Any]]  # kind and content of a message on iopub
FinishCell = Callable[
    [dict[str, Any], dict[str, Any] | None], None
]  # says the error, and the reply


class MagicCell:
    """A cell with `%remoter`."""

    def __init__(self, publish: Publish, header: Header, count: int, finish: FinishCell) -> None:
        self.request_id = str(header.get("msg_id", ""))
        self._publish = publish
        self._header = header
        self._count = count
        self._finish = finish

    def begin(self, code: str) -> None:
        """Say that it runs."""
        self.show("status", {"execution_state": "busy"})
        self.show("execute_input", {"code": code, "execution_count": self._count})

    def show(self, kind: str, content: dict[str, Any]) -> None:
        """Say something in it."""
        self._publish(kind, content, self._header)

    def show_all(self, found: list[IopubMessage]) -> None:
        """Say all that was found, and end it."""
        for kind, content in found:
            self.show(kind, content)
        self.end()

    def end(
        self, error: RemoterError | None = None, payload: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Say how it ended; `payload`: what the client should do."""
        reply: dict[str, Any] = {"execution_count": self._count, "payload": list(payload)}
        trouble = error_content(error.name or type(error).__name__, str(error)) if error else None
        if trouble:
            self._finish({"status": "error", **reply, **trouble}, trouble)
        else:
            self._finish({"status": "ok", "user_expressions": {}, **reply}, None)
        self.show("status", {"execution_state": "idle"})
