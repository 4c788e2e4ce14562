"""What VS Code says to kernels, which it starts itself (pure).

Its start-up code waits for each reply before the person's first cell is sent. It asks, in this
order: which ipywidgets there are, then (in Python) its own settings, among them the notebook's
path, then the person's own start-up lines. It does not call that code silent, but keeps it out
of the history.
"""

from __future__ import annotations

import ast
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from remoter_kernel.protocol.messages import CELL_OF_VSCODE

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES = {"VSCODE_PID", "VSCODE_IPC_HOOK", "VSCODE_ESM_ENTRYPOINT"}
_NOTEBOOK_LINE = re.compile(r'^__vsc_ipynb_file__ = ("(?:[^"\\\n]|\\.)*")', re.MULTILINE)
_DRIVE = re.compile(r"/[a-zA-Z]:")


def is_parent(environment: Mapping[str, str] = os.environ) -> bool:
    """Has VS Code started who has this environment?"""
    return not _VARIABLES.isdisjoint(environment)


def notebook_from(content: dict[str, Any], metadata: dict[str, Any]) -> str:
    """Return the path of the notebook that a request names; empty if it names none.

    In start-up code, or in a cell's address: `vscode-notebook-cell:/home/ada/a.ipynb#W0sZmlsZQ==`.
    """
    if named := _NOTEBOOK_LINE.search(str(content.get("code", ""))):
        return str(ast.literal_eval(named[1]))
    cell = metadata.get("cellId")
    if not isinstance(cell, str) or not cell.startswith(CELL_OF_VSCODE):
        return ""
    path = unquote(urlsplit(cell.removeprefix(CELL_OF_VSCODE)).path)
    return path[1:] if _DRIVE.match(path) else path
