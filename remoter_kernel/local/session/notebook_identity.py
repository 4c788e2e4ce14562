"""For which notebook a proxy asks for a session, and what of the notebook helps to find it.

jupyter_server names the notebook's path in JPY_SESSION_NAME. It may also name a console or a
script there, or the variable may come from another kernel's environment: none is a notebook.

VS Code starts its kernels itself, and names the notebook in its start-up code, which waits for each
reply before it sends the person's first cell. It asks, in this order: which ipywidgets there are,
then (in Python) its own settings, among them the notebook's path, then the person's own start-up
lines. It does not mark that code as silent, but keeps it out of the history.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from remoter_kernel.local.config.remotes import state_folder
from remoter_kernel.local.private_files import CannotWrite, file_lock
from remoter_kernel.local.session.machine import live_kernel_ids
from remoter_kernel.protocol.messages import CELL_OF_VSCODE, source_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LOCK_DIGITS = 2  # hex digits: that many files at most, however many notebooks there are

SESSION_NAME_VARIABLE = "JPY_SESSION_NAME"
LARGEST = 100 * 1024 * 1024  # bytes of a notebook file: reading it holds up all else for 0.4 s
MOST_CELLS = 10_000
_CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # nbformat 4.5

# Variables of which one at least is set in what VS Code (or its server) starts.
_VARIABLES = {"VSCODE_PID", "VSCODE_IPC_HOOK", "VSCODE_ESM_ENTRYPOINT"}
_NOTEBOOK_LINE = re.compile(r'^__vsc_ipynb_file__ = ("(?:[^"\\\n]|\\.)*")', re.MULTILINE)
_DRIVE = re.compile(r"/[a-zA-Z]:")


@dataclass(frozen=True)
class NotebookIdentity:
    """The fields of a SessionRequest that may lead to the session of a notebook."""

    notebook: str = ""
    machine: str = ""  # "": nobody could tell later whether this proxy lives

    @contextlib.contextmanager
    def request_fields(self) -> Iterator[dict[str, Any]]:
        """Yield the fields; until the context ends, no other proxy claims this notebook.

        Which proxies live is only true for a moment: two that looked at once would both join.
        """
        words: dict[str, Any] = {"notebook": self.notebook, "laptop": self.machine}
        with contextlib.ExitStack() as turn:
            if self.machine and is_notebook_file(self.notebook):
                with contextlib.suppress(OSError, CannotWrite):  # then a fresh session is begun
                    name = hashlib.sha256(self.notebook.encode()).hexdigest()[:LOCK_DIGITS]
                    turn.enter_context(file_lock(state_folder() / "turns" / name))
                    words["cells"] = cell_fingerprints(Path(self.notebook))
                    words["fronts"] = tuple(sorted(live_kernel_ids()))
            yield words


def mark_local_files(others: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Add to each session whether its notebook's file is on this machine. Blocks on disks."""
    return tuple(
        {**each, "is_file_here": _may_exist(str(each.get("notebook", "")))} for each in others
    )


def _may_exist(path: str) -> bool:
    """Is there such a file? The path comes from the remote, which may be hostile."""
    # A share: Windows would log in there, and show our password's hash.
    if path.startswith(("\\\\", "//")):
        return True
    try:
        return Path(path).exists()
    except OSError:  # longer than a path can be
        return False


def notebook_from_environment(environment: Mapping[str, str] = os.environ) -> str:
    """Return the path that Jupyter has started this proxy for; "" if no variable names it.

    A console of jupyter_server has a path, too, which is no file.
    """
    name = environment.get(SESSION_NAME_VARIABLE, "")
    return "" if name and _is_inherited(name, environment) else name


def _is_inherited(name: str, environment: Mapping[str, str]) -> bool:
    """Has the process that started us the same name in its environment?

    Then it runs in a notebook itself (`!jupyter execute other.ipynb`), and means another.
    """
    parent = environment.get("JPY_PARENT_PID", "")
    if not parent.isdigit() or sys.platform == "win32":  # there it is no process number
        return False
    import psutil  # noqa: PLC0415 - only a notebook's proxy needs it, and not at once

    try:
        return bool(psutil.Process(int(parent)).environ().get(SESSION_NAME_VARIABLE) == name)
    except psutil.Error:
        return False


def is_notebook_file(name: str) -> bool:
    """Is this the whole path of a notebook file?"""
    path = Path(name)
    return path.suffix == ".ipynb" and path.is_absolute() and path.is_file()


def cell_fingerprints(path: Path) -> tuple[str, ...]:
    """Return ids of a notebook's cells and hashes of their sources; () if it cannot be read."""
    try:
        if path.stat().st_size > LARGEST:
            return ()
        notebook = json.loads(path.read_bytes())
        cells = notebook["cells"][:MOST_CELLS]
        cells = [cell for cell in cells if isinstance(cell, dict)]
        ids = (cell.get("id") for cell in cells)
        own = (name for name in ids if isinstance(name, str) and _CELL_ID.fullmatch(name))
        return (*own, *_source_hashes(cells))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError):
        return ()


def _source_hashes(cells: list[dict[str, Any]]) -> list[str]:
    """Hash the sources of code cells; nbformat allows a text, or a list of its lines."""
    sources = [cell.get("source") for cell in cells if cell.get("cell_type") == "code"]
    texts = ["".join(source) if isinstance(source, list) else source for source in sources]
    return [mark for text in texts if isinstance(text, str) and (mark := source_hash(text))]


def is_parent(environment: Mapping[str, str] = os.environ) -> bool:
    """Has VS Code started the process with this environment?"""
    return not _VARIABLES.isdisjoint(environment)


def notebook_from(content: dict[str, Any], metadata: dict[str, Any]) -> str:
    """Return the path of the notebook that a request names; "" if it names none.

    It stands in start-up code, or in a cell's address:
    `vscode-notebook-cell:/home/ada/a.ipynb#W0sZmlsZQ==`.
    """
    if named := _NOTEBOOK_LINE.search(str(content.get("code", ""))):
        return str(ast.literal_eval(named[1]))
    cell = metadata.get("cellId")
    if not isinstance(cell, str) or not cell.startswith(CELL_OF_VSCODE):
        return ""
    path = unquote(urlsplit(cell.removeprefix(CELL_OF_VSCODE)).path)
    return path[1:] if _DRIVE.match(path) else path  # /c:/x of a URL is c:/x
