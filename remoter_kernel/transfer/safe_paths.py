"""What a received file may be called, and what it is called until it is whole (pure).

A sender may be hostile: no name of its may lead out of the folder that the receiver was given.
"""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
import re
import reprlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from remoter_kernel.errors import ProtocolError
from remoter_kernel.transfer.framed_stream import FileTrouble, TroubleCode

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST = 255  # bytes of one name, on most file systems
DIGITS = 12  # hexadecimal, of a digest
# Devices of Windows in every folder, with any extension; the last character may be a superscript.
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])[ ]*(\..*)?$")
# A separator there, and a drive.
_LEADS_ON_WINDOWS = re.compile(r"\\|^[A-Za-z]:")
_NOT_ON_WINDOWS = re.compile(r'[<>:"\\|?*\x00-\x1f]|[ .]$')
# Zero-width, direction and joining signs, which HFS+ ignores when it compares names.
_NOT_SEEN = "".join(
    map(chr, [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])
)
NOT_ASKED_FOR = "the other side sent what was not asked for"


def safe_names(path: str, *, is_windows: bool = os.name == "nt") -> tuple[str, ...]:
    """Split a path as a sender writes it; FileTrouble if a name in it leads elsewhere."""
    names = tuple(path.split("/"))
    for name in names:
        _check_name(name, path, is_windows=is_windows)
    _check_signs(path)
    return names


def safe_target(target: str, depth: int, *, is_windows: bool = os.name == "nt") -> str:
    """Check the target of a link that lies `depth` folders deep: up, then down, and never out.

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
    _check_signs(target)
    return target


def _check_signs(path: str) -> None:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise FileTrouble(path, "no file can be called so on this side") from None


def _check_name(name: str, path: str, *, is_windows: bool) -> None:
    if name in {"", ".", ".."} or "\0" in name or (is_windows and _LEADS_ON_WINDOWS.search(name)):
        raise _unsafe(path)
    if is_windows and (_NOT_ON_WINDOWS.search(name) or _RESERVED.match(name)):
        raise FileTrouble(path, "Windows allows no such name")


def is_hidden(name: str) -> bool:
    """Does a name begin with a dot, for HFS+ as well?"""
    return name.lstrip(_NOT_SEEN).startswith(".")


def check_requested_names(names: Sequence[str], words: Sequence[str]) -> list[tuple[str, str]]:
    """Check the names of sources that were asked for in these words; return those that are news.

    The names of `.`, `..` and `~` only the sender knows: each of them is one source, and none that
    is hidden. FileTrouble if a name was not asked for: it would be written beside the others.
    """
    ends = [(word, _basename_of(word)) for word in words]
    asked = {end for _, end in ends if end}
    patterns = [end for end in asked if glob.has_magic(end)]
    unnamed = [word for word, end in reversed(ends) if not end]
    news = []
    for name in names:
        if name in asked or any(_is_match(name, pattern) for pattern in patterns):
            continue
        if is_hidden(name) and (unnamed or patterns):
            raise FileTrouble(name, "a hidden name has to be asked for by name", TroubleCode.UNSAFE)
        if not unnamed:
            raise FileTrouble(name, NOT_ASKED_FOR, TroubleCode.UNSAFE)
        news.append((unnamed.pop(), name))
    return news


def _basename_of(word: str) -> str:
    """Return the name of a source, or a pattern of it; "": only the sender knows it."""
    path = posixpath.normpath(word)
    name = posixpath.basename(path)
    is_home = path.startswith("~") and "/" not in path
    return "" if is_home or name in {"", ".", ".."} else name


def _is_match(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not is_hidden(name))


def _unsafe(path: str) -> FileTrouble:
    reason = "the other side named a place outside the folder that is to be written"
    return FileTrouble(path, reason, TroubleCode.UNSAFE)


def partial_name(name: str, size: int, mtime: int) -> str:
    """Name a file that is not whole yet: differently once its source has changed."""
    identity = "\0".join([name, str(size), str(mtime)])
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:DIGITS]
    most = LONGEST - len(f"..{digest}.part")
    while len(os.fsencode(name)) > most:  # file systems count bytes, not characters
        name = name[:-1]
    return f".{name}.{digest}.part"


def read_digest(value: object) -> str:
    """Read a SHA-256 in hexadecimal digits."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ProtocolError(f"{reprlib.repr(value)} is no checksum.")
    return value
