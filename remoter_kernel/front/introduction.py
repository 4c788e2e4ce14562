"""Which notebook a front is for that no Jupyter server has started: its client says so later.

VS Code starts kernels itself and names the notebook in its start-up code (Python), and with
each cell. Until then no session is begun: it may be one that is there.
"""

from __future__ import annotations

import ast
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from remoter_kernel.front.answers import IMPATIENT
from remoter_kernel.front.first_words import may_be_answered
from remoter_kernel.wire.messages import CELL_OF_VSCODE, METADATA, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from remoter_kernel.front.mouth import Route
    from remoter_kernel.wire.reactor import Reactor, Timer

WITHIN = 2.0  # seconds; a client that is not VS Code may be silent for a reason of its own
OF_VSCODE = {"VSCODE_PID", "VSCODE_IPC_HOOK", "VSCODE_ESM_ENTRYPOINT"}  # in what it starts
_NAMED = re.compile(r'^__vsc_ipynb_file__ = ("(?:[^"\\\n]|\\.)*")', re.MULTILINE)
_DRIVE = re.compile(r"/[a-zA-Z]:")


class Introduction:
    """Waits until the client has said which notebook it is, or anything else of weight."""

    def __init__(self, reactor: Reactor, on_heard: Callable[[str], None]) -> None:
        """Remember; `on_heard(notebook)` is called once: with a path, or with nothing."""
        self.is_awaited = False
        self._reactor = reactor
        self._on_heard = on_heard
        self._timer: Timer | None = None

    def wait(self, environment: Mapping[str, str] = os.environ) -> None:
        """Begin; who comes from VS Code will say it, however long that takes."""
        self.is_awaited = True
        if OF_VSCODE.isdisjoint(environment):
            self._timer = self._reactor.later(WITHIN, self._end)

    def hear(self, route: Route) -> None:
        """Look at a request: it may name the notebook, or leave no time to wait."""
        if not self.is_awaited or route.header.get("msg_type") in IMPATIENT:
            return
        notebook = notebook_in(route)
        if notebook or not may_be_answered(route):
            self._end(notebook)

    def _end(self, notebook: str = "") -> None:
        if self._timer:
            self._timer.cancel()
        if self.is_awaited:
            self.is_awaited = False
            self._on_heard(notebook)


def notebook_in(route: Route) -> str:
    """Return the path of the notebook that a request of VS Code names; empty if it names none."""
    if route.header.get("msg_type") != "execute_request":
        return ""
    named = _NAMED.search(str(content_of(route.parts).get("code", "")))
    if named:
        return str(ast.literal_eval(named[1]))
    return _path_of(header_of(route.parts[METADATA]).get("cellId"))


def _path_of(cell: Any) -> str:
    """Read a cell's address: `vscode-notebook-cell:/home/ada/a.ipynb#W0sZmlsZQ==`."""
    if not isinstance(cell, str) or not cell.startswith(CELL_OF_VSCODE):
        return ""
    path = unquote(urlsplit(cell.removeprefix(CELL_OF_VSCODE)).path)
    return path[1:] if _DRIVE.match(path) else path
