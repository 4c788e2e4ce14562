"""The notebook that Jupyter has started this front for, if it says so: its path, its cells.

jupyter_server names it in JPY_SESSION_NAME. That a console or a script is named there, or
that the variable came from another kernel's environment, must not be taken for a notebook.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel.protocol.messages import source_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

SESSION_NAME_VARIABLE = "JPY_SESSION_NAME"
LARGEST = 100 * 1024 * 1024  # bytes of a notebook file: reading it holds up all else for 0.4 s
MOST_CELLS = 10_000
_CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # nbformat 4.5


def notebook_from_environment(environment: Mapping[str, str] = os.environ) -> str:
    """Return what Jupyter has started this front for: a notebook's path; empty if nobody says.

    A console of jupyter_server has a path, too, which is no file.
    """
    name = environment.get(SESSION_NAME_VARIABLE, "")
    return "" if name and _is_inherited(name, environment) else name


def _is_inherited(name: str, environment: Mapping[str, str]) -> bool:
    """Has whoever started us the same name in its own environment?

    Then it runs in a notebook itself (`!jupyter execute other.ipynb`), and means another.
    """
    parent = environment.get("JPY_PARENT_PID", "")
    if not parent.isdigit() or sys.platform == "win32":  # there it is no process number
        return False
    import psutil  # noqa: PLC0415 - only a notebook's front needs it, and not at once

    try:
        return bool(psutil.Process(int(parent)).environ().get(SESSION_NAME_VARIABLE) == name)
    except psutil.Error:
        return False


def is_notebook_file(name: str) -> bool:
    """Is this the whole path of a notebook file?"""
    path = Path(name)
    return path.suffix == ".ipynb" and path.is_absolute() and path.is_file()


def cell_fingerprints(path: Path) -> tuple[str, ...]:
    """Return what sessions may know a notebook's cells by: their ids, and marks of their texts.

    None of what cannot be read.
    """
    try:
        if path.stat().st_size > LARGEST:
            return ()
        notebook = json.loads(path.read_bytes())
        cells = notebook["cells"][:MOST_CELLS]
        return (*_cell_ids(cells), *_source_hashes(cells))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError):
        return ()


def _cell_ids(cells: Any) -> list[str]:
    names = [cell.get("id") for cell in cells if isinstance(cell, dict)]
    return [name for name in names if isinstance(name, str) and _CELL_ID.fullmatch(name)]


def _source_hashes(cells: Any) -> list[str]:
    """Return marks of what the code cells say; a file has a text, or a list of its lines."""
    sources = [
        cell.get("source")
        for cell in cells
        if isinstance(cell, dict) and cell.get("cell_type") == "code"
    ]
    texts = ["".join(source) if isinstance(source, list) else source for source in sources]
    return [mark for text in texts if isinstance(text, str) and (mark := source_hash(text))]
