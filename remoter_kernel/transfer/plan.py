"""Finds what is to be sent: files, folders and globs of the sending machine.

Symbolic links inside a folder are never followed out of it. One that leads to a file inside is
sent as that file, one to a folder inside as a link; what is left out is reported.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from remoter_kernel.transfer.framed_stream import (
    MOST_BYTES,
    MOST_ENTRIES,
    MOST_PATH,
    MOST_SOURCES,
    FileEntry,
    FileTrouble,
    TroubleCode,
    append_trouble,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HAS_MODES = os.name == "posix"
NOWHERE = "a link that leads nowhere"
NEITHER = "neither a file nor a folder"
MOST_TOLD = 200  # lines about what is left out
LONGEST_TOLD = 500  # characters of one
TOLD_AT_ONCE = 200  # sources in one START frame, which has room for as many names
# What was a file may be a link by now, or a pipe, whose open would wait for a writer.
READS: int = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
READS |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass
class PlanItem:
    """Something to send, and where it is."""

    entry: FileEntry
    place: str


@dataclass
class Plan:
    """All that is to be sent, in order: a folder comes before what is in it."""

    tops: list[dict[str, Any]] = field(default_factory=list)  # name and is_folder of each source
    items: list[PlanItem] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    troubles: list[FileTrouble] = field(default_factory=list)

    @property
    def files(self) -> int:
        """How many files there are."""
        return sum(item.entry.kind == "file" for item in self.items)

    @property
    def size(self) -> int:
        """How many bytes they have."""
        return sum(item.entry.size for item in self.items)

    def words(self) -> Iterator[dict[str, Any]]:
        """Yield the START frames, in portions that fit."""
        for begin in range(0, len(self.tops), TOLD_AT_ONCE):
            end = begin + TOLD_AT_ONCE
            if end < len(self.tops):
                yield {"tops": self.tops[begin:end], "more": True}
            else:
                left_out = [line[:LONGEST_TOLD] for line in self.left_out[:MOST_TOLD]]
                words = {"tops": self.tops[begin:end], "left_out": left_out}
                numbers = {"files": self.files, "size": self.size, "entries": len(self.items)}
                yield {**words, **numbers}


def full_path(word: str, folder: str) -> str:
    """Return what a word means in a folder: `~` is the home."""
    return os.path.join(folder, os.path.expanduser(word))


def make_plan(words: Sequence[str], folder: str) -> Plan:
    """Find everything; FileTrouble if a source is missing, before anything is sent."""
    plan = Plan()
    for word in words:
        for path in _expand(word, folder, plan.left_out):
            _add_source(plan, word, path)
    names: set[str] = set()
    for top in plan.tops:
        if top["name"] in names:
            reason = "two of the sources have this name; one would replace the other"
            raise FileTrouble(top["name"], reason, TroubleCode.WORDS)
        names.add(top["name"])
    if len(names) > MOST_SOURCES:
        reason = f"these are more than {MOST_SOURCES:,} sources; name the folder that they are in"
        raise FileTrouble(words[0], reason, TroubleCode.WORDS)
    if plan.size > MOST_BYTES:
        raise FileTrouble(words[0], "these are more bytes than any disk has", TroubleCode.WORDS)
    return plan


def _expand(word: str, folder: str, left_out: list[str]) -> list[str]:
    """Return the paths that a word means; a file may be called like a pattern.

    A match that cannot be sent (a socket, a dead link) is left out: it was not named by itself.
    """
    try:
        path = full_path(word, folder)
        if os.path.lexists(path):
            return [path]
        matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    except (OSError, ValueError, RecursionError) as error:
        raise FileTrouble(word, f"nothing can be called so ({error})", TroubleCode.WORDS) from None
    found = []
    for match in matches:
        if os.path.isfile(match) or os.path.isdir(match):
            found.append(match)
        else:
            left_out.append(f"{match}: {NEITHER if os.path.exists(match) else NOWHERE}")
    if not found:
        reason = "nothing matches" if glob.has_magic(path) else "there is no such file or folder"
        raise FileTrouble(word, reason, TroubleCode.MISSING)
    return found


def _add_source(plan: Plan, word: str, path: str) -> None:
    name = os.path.basename(os.path.abspath(path))
    try:
        place = os.path.realpath(path)
        about = os.stat(place)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise trouble_from_os(error, word) from None
    if not name:
        raise FileTrouble(
            word, "this is a whole file system; name a folder in it", TroubleCode.WORDS
        )
    is_folder = stat.S_ISDIR(about.st_mode)
    plan.tops.append({"name": name, "is_folder": is_folder})
    if is_folder:
        _walk(plan, name, place)
    elif stat.S_ISREG(about.st_mode):
        _add_item(plan, PlanItem(entry_of("file", name, about), place))
    else:
        raise FileTrouble(word, f"this is {NEITHER}", TroubleCode.WORDS)


def _add_item(plan: Plan, item: PlanItem) -> None:
    """Add one entry, within what a receiver takes."""
    path = item.entry.path
    if max(len(path), len(item.entry.target)) > MOST_PATH:
        reason = f"its path has more than {MOST_PATH:,} characters"
        append_trouble(plan.troubles, FileTrouble(path, reason))
    elif len(plan.items) >= MOST_ENTRIES:
        reason = f"with this, there are more than {MOST_ENTRIES:,} files and folders; name fewer"
        raise FileTrouble(path, reason, TroubleCode.WORDS)
    else:
        plan.items.append(item)


def _walk(plan: Plan, name: str, root: str) -> None:
    """Add a folder and all that is in it."""
    left = [(name, root)]  # a stack, not recursion: trees may be deeper than Python recurses
    while left:
        path, place = left.pop()
        try:
            about = os.stat(place)
            with os.scandir(place) as scan:
                # Sorted, so that a dry run and the real one say the same.
                found = sorted(scan, key=lambda each: each.name)
        except OSError as error:
            append_trouble(plan.troubles, trouble_from_os(error, path))
            continue
        _add_item(plan, PlanItem(entry_of("folder", path, about), place))
        inner = []
        for each in found:
            inside = f"{path}/{each.name}"
            if each.is_symlink():
                _add_link(plan, inside, each.path, root)
            elif each.is_dir(follow_symlinks=False):
                inner.append((inside, each.path))
            else:
                _add_file(plan, inside, each)
        left += reversed(inner)  # so that they are taken in the order of their names


def _add_file(plan: Plan, path: str, found: os.DirEntry[str]) -> None:
    try:
        about = found.stat(follow_symlinks=False)
    except OSError as error:
        append_trouble(plan.troubles, trouble_from_os(error, path))
        return
    if stat.S_ISREG(about.st_mode):
        _add_item(plan, PlanItem(entry_of("file", path, about), found.path))
    else:
        plan.left_out.append(f"{path}: {NEITHER}")


def _add_link(plan: Plan, path: str, place: str, root: str) -> None:
    """Add a link that leads to something inside; list any other as left out."""
    try:
        about = os.stat(place)
        target = os.path.realpath(place)
    except (OSError, ValueError) as error:
        is_loop = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        why = "a link in a loop" if is_loop else NOWHERE
        plan.left_out.append(f"{path}: {why}")
        return
    if not _is_inside(target, root):
        plan.left_out.append(f"{path}: a link out of the folder, to {target}")
    elif _is_inside(place, target):  # a link to a folder above itself
        plan.left_out.append(f"{path}: a link in a loop, to {target}")
    elif stat.S_ISREG(about.st_mode):
        _add_item(plan, PlanItem(entry_of("file", path, about), target))
    elif stat.S_ISDIR(about.st_mode):
        seen = os.path.relpath(target, os.path.dirname(place)).replace(os.sep, "/")
        _add_item(plan, PlanItem(FileEntry(path, "link", target=seen), place))
    else:
        plan.left_out.append(f"{path}: {NEITHER}")


def open_source(place: str) -> BinaryIO:
    """Open a file of a plan; OSError if it is none by now, or is reached through a link by now."""
    file = cast("BinaryIO", os.fdopen(os.open(place, READS), "rb", buffering=0))
    # Checked on what is open: the name may lead elsewhere a moment later.
    is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    if is_file and os.path.realpath(place) == place:
        return file
    file.close()
    raise OSError(errno.EINVAL, "something else is in its place, or on the way to it, by now")


def _is_inside(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def entry_of(kind: str, path: str, about: os.stat_result) -> FileEntry:
    """Return the entry of a file or folder."""
    return FileEntry(
        path,
        kind,
        size=about.st_size if kind == "file" else 0,
        mtime=about.st_mtime_ns,
        mode=stat.S_IMODE(about.st_mode) & 0o777 if HAS_MODES else None,
    )


def trouble_from_os(error: Exception, path: str) -> FileTrouble:
    """Make a trouble of an error of the operating system."""
    known = {
        FileNotFoundError: TroubleCode.MISSING,
        PermissionError: TroubleCode.FORBIDDEN,
        IsADirectoryError: TroubleCode.IS_FOLDER,
        NotADirectoryError: TroubleCode.IS_FILE,
    }
    trouble = next(
        (kind for each, kind in known.items() if isinstance(error, each)), TroubleCode.OTHER
    )
    if isinstance(error, OSError) and error.errno in FULL:
        trouble = TroubleCode.FULL
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return FileTrouble(path, reason, trouble)
