"""Parses the magics that need a local kernel: `%%local`, `%local`, `%remoter push`, `pull` (pure).

They stand in the first line of a cell and nowhere else, as all that the proxy answers itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from remoter_kernel.errors import Usage

LOCAL_MAGICS = ("%%local", "%local")
OBJECT_TRANSFERS = ("push", "pull")
# By the field of the spec that each one sets.
OPTIONS = {"--pickle": "is_pickled", "--yes": "is_large"}
# The whole word: `%localize` is the kernel's.
_FIRST_LINE = re.compile(r"(%%local|%local|%remoter[ \t]+(?:push|pull))(?![^ \t\r\n])[ \t]*(.*)")
_CURSOR = ("cursor_start", "cursor_end")
_TYPES = "_jupyter_types_experimental"  # IPython's word for what a completion is


@dataclass(frozen=True)
class LocalCode:
    """Python for the local kernel."""

    verb: str
    code: str
    begin: int  # characters of the cell before it


@dataclass(frozen=True)
class ObjectTransferSpec:
    """Objects to be carried to the remote kernel (`push`), or from there (`pull`)."""

    verb: str
    names: tuple[str, ...]
    targets: tuple[str, ...]  # what they are called where they arrive
    is_pickled: bool = False
    is_large: bool = False  # was a size above the limit said yes to?


def parse_local_magic(code: str) -> LocalCode | ObjectTransferSpec | None:
    """Read the first line of a cell; None: it has no such magic. `Usage` if it cannot be run."""
    found = _FIRST_LINE.match(code)
    if found is None:
        return None
    verb, line = found[1], found[2].rstrip()
    end = code.find("\n")
    # Of `%%local` the rest is what runs; below the others nothing may stand.
    rest = "" if end < 0 else code[end + 1 :]
    if verb == "%%local":
        if line:
            raise Usage("%%local stands alone in its line; nothing was run.")
        return LocalCode(verb, rest, len(code) - len(rest))
    if rest.strip():
        raise Usage(f"{' '.join(verb.split())} stands alone in its cell; nothing was run.")
    if verb == "%local":
        return LocalCode(verb, line, found.start(2))
    return _parse_transfer(verb.split()[1], line.split())


def _parse_transfer(verb: str, words: list[str]) -> ObjectTransferSpec:
    options = [word for word in words if word.startswith("--")]
    names = [word for word in words if not word.startswith("--")]
    for option in options:
        if option not in OPTIONS:
            raise Usage(f"%remoter {verb} has no {option}.", f"See %remoter help {verb}.")
    target: list[str] = []
    if "as" in names:
        at = names.index("as")
        names, target = names[:at], names[at + 1 :]
        if len(names) != 1 or len(target) != 1:
            raise Usage('"as" gives one object one name.', f"%remoter {verb} x as y")
    if not names:
        raise Usage(f"%remoter {verb} needs the name of an object.", f"%remoter {verb} x")
    # One of them would replace the other where they arrive.
    if len(set(names)) != len(names):
        raise Usage(f"%remoter {verb} was given a name twice; nothing was carried.")
    chosen = {OPTIONS[option]: True for option in options}
    return ObjectTransferSpec(verb, tuple(names), tuple(target or names), **chosen)


# Completion and the like ---------------------------------------------------------------------


def local_code(code: str) -> LocalCode | None:
    """Return what of a cell that is being typed is Python for the local kernel."""
    try:
        wanted = parse_local_magic(code)
    except Usage:
        return None
    return wanted if isinstance(wanted, LocalCode) else None


def shift_request(content: dict[str, Any], local: LocalCode) -> dict[str, Any] | None:
    """Return a question about a cell as one about its local code; None: it is not about that."""
    # In characters, as clients count: what stands before the code is taken off.
    cursor = content.get("cursor_pos")
    if not isinstance(cursor, int) or cursor < local.begin:
        return None
    return {**content, "code": local.code, "cursor_pos": cursor - local.begin}


def shift_reply(content: dict[str, Any], begin: int) -> dict[str, Any]:
    """Return an answer about local code as one about the whole cell."""
    shifted = dict(content)
    for key in _CURSOR:
        if isinstance(shifted.get(key), int):
            shifted[key] += begin
    metadata = shifted.get("metadata")
    # JupyterLab reads places there, too, and not only in the matches.
    if isinstance(metadata, dict) and isinstance(metadata.get(_TYPES), list):
        types = [
            {**each, **{key: each[key] + begin for key in ("start", "end") if key in each}}
            for each in metadata[_TYPES]
        ]
        shifted["metadata"] = {**metadata, _TYPES: types}
    return shifted


def completeness(code: str) -> dict[str, Any] | None:
    """Say whether a cell is complete, as a console asks; None: the kernel there knows.

    A whole cell ends with an empty line, as IPython has it.
    """
    if code.startswith(("%remoter", "%local")):
        return {"status": "complete"}
    if not code.startswith("%%local"):
        return None
    # The remote kernel may not be Python, and would know nothing of this magic.
    is_over = "\n" in code and not code.rsplit("\n", 1)[1].strip()
    return {"status": "complete"} if is_over else {"status": "incomplete", "indent": ""}
