"""What a received file may be called, and what it is called until it is whole (pure).

A sender may be hostile: nothing that it says may lead out of the folder that was named here.
"""

from __future__ import annotations

import hashlib
import os
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.files import FileTrouble, Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST = 255  # bytes of one name, on most file systems
DIGITS = 12  # hexadecimal, of a digest
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])[ ]*(\..*)?$")
_LEADS_ON_WINDOWS = re.compile(r"\\|^[A-Za-z]:")
_NOT_ON_WINDOWS = re.compile(r'[<>:"\\|?*\x00-\x1f]|[ .]$')


def safe_names(path: str, *, is_windows: bool = os.name == "nt") -> tuple[str, ...]:
    """Split a path as a sender says it; FileTrouble if a name in it leads elsewhere."""
    names = tuple(path.split("/"))
    for name in names:
        _check_name(name, path, is_windows=is_windows)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise FileTrouble(path, "no file can be called so on this side") from None
    return names


def safe_target(target: str, depth: int, *, is_windows: bool = os.name == "nt") -> str:
    """Check where a link leads, that lies so many folders deep: up, then down, and never out.

    A name before a ".." might be a link itself, and then ".." would be anywhere.
    """
    names = target.split("/")
    ups = 0
    while ups < len(names) and names[ups] == "..":
        ups += 1
    if ups > depth:
        raise _unsafe(target)
    for name in names[ups:]:
        _check_name(name, target, is_windows=is_windows)
    return target


def _check_name(name: str, path: str, *, is_windows: bool) -> None:
    if name in {"", ".", ".."} or "\0" in name or (is_windows and _LEADS_ON_WINDOWS.search(name)):
        raise _unsafe(path)
    if is_windows and (_NOT_ON_WINDOWS.search(name) or _RESERVED.match(name)):
        raise FileTrouble(path, "Windows allows no such name")


def is_asked_for(name: str, words: Sequence[str]) -> bool:
    """Say whether a source may be called so that was asked for in these words.

    What `.` or `~` is called, only the other side knows.
    """
    is_hidden = name.startswith(".")
    for word in words:
        last = word.rstrip("/").rpartition("/")[2]
        if last in {"", ".", "..", name} or last.startswith("~"):
            return True
        if fnmatchcase(name, last) and (last.startswith(".") or not is_hidden):
            return True
    return False


def _unsafe(path: str) -> FileTrouble:
    reason = "the other side named a place outside the folder that is to be written"
    return FileTrouble(path, reason, Trouble.UNSAFE)


def part_name(name: str, size: int, mtime: int) -> str:
    """Name a file that is not whole yet: another one once its source is another."""
    identity = "\0".join([name, str(size), str(mtime)])
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:DIGITS]
    most = LONGEST - len(f"..{digest}.part")
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return f".{name}.{digest}.part"


def check_digest(value: object) -> str:
    """Read a SHA-256 in hexadecimal digits."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ProtocolError(f"{value!r} is no checksum.")
    return value
