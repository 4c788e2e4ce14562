"""Which notebook a front is for that no Jupyter server has started: its client says so later.

VS Code names it in its start-up code (Python), and with each cell. Until then no session is
begun: it may be one that is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.local.proxy.canned_replies import INTERACTIVE_REQUESTS
from remoter_kernel.local.proxy.startup_code import is_startup_code
from remoter_kernel.local.session import vscode
from remoter_kernel.protocol.messages import METADATA, header_of, is_silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.requests import Request

DETECT_WITHIN = 2.0  # seconds; a client that is not VS Code may be silent for a reason of its own


class NotebookDetector:
    """Waits until the client has said which notebook it is, or anything else of weight."""

    def __init__(self, reactor: Reactor, on_detected: Callable[[str], None]) -> None:
        """Remember; `on_detected(notebook)` is called once: with a path, or with nothing."""
        self.is_waiting = False
        self._reactor = reactor
        self._on_detected = on_detected
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin; who comes from VS Code will say it, however long that takes."""
        self.is_waiting = True
        if not vscode.is_parent():
            self._timer = self._reactor.call_later(DETECT_WITHIN, self._finish)

    def on_request(self, request: Request) -> None:
        """Look at a request: it may name the notebook, or leave no time to wait."""
        if not self.is_waiting or request.type in INTERACTIVE_REQUESTS:
            return
        notebook = ""
        if request.is_cell:
            content = request.content
            own = content if is_silent(content) else {}  # a cell may say what it likes
            notebook = vscode.notebook_from(own, header_of(request.parts[METADATA]))
        if notebook or not is_startup_code(request):
            self._finish(notebook)

    def _finish(self, notebook: str = "") -> None:
        if self._timer:
            self._timer.cancel()
        if self.is_waiting:
            self.is_waiting = False
            self._on_detected(notebook)
