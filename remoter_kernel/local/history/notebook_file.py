"""Notebook files: written whole, or with the outputs of some cells replaced and no other byte."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import HereLacks, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.local.history.executions import CellExecution

NBFORMAT = 4  # nbformat's major version
NAME_SHOWN = 50  # characters of a name in that of the file beside: a name may have 255 bytes
_SPACE = re.compile(r"[ \t\r\n]*")
Span = tuple[int, int]


@contextlib.contextmanager
def naming_file(path: Path, verb: str, advice: str) -> Iterator[None]:
    """Let an `OSError` of the block say which file cannot be "read" or "written"."""
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be {verb}: {error.strerror or error}."
        raise HereLacks(what, advice) from error


class NotebookText:
    """The text of a notebook file, and where its cells are in it."""

    def __init__(self, path: Path) -> None:
        """Read it; `HereLacks` if it cannot be read, `Usage` if it is no known notebook."""
        self.path = path
        advice = "Name a notebook file (.ipynb) of this machine."
        with naming_file(path, "read", advice), path.open("rb") as file:
            content = file.read()
            self.saved = os.fstat(file.fileno()).st_mtime  # seconds since 1970
        try:
            self.text = content.decode()  # with its line ends, which `with_outputs` keeps
            notebook = json.loads(self.text)
            is_known = int(notebook["nbformat"]) == NBFORMAT
            self.cells: list[dict[str, Any]] = list(notebook["cells"]) if is_known else []
        except (ValueError, LookupError, TypeError) as error:
            message = f"{path} cannot be read as a notebook ({error})."
            raise Usage(message, "Name a notebook file (.ipynb).") from error
        if not is_known:
            message = f"{path} is a notebook of another version than {NBFORMAT}."
            raise Usage(message, "Open it in Jupyter and save it: that brings it up to date.")

    def with_outputs(self, executions: dict[int, CellExecution]) -> str:
        """Return the text with the outputs and counts of some cells replaced."""
        pieces, at = [], 0
        for index, spans in enumerate(_cells(self.text)):
            run = executions.get(index)
            if run is None:
                continue
            values = {"outputs": _as_written(run), "execution_count": run.count}
            places = [(spans[key], value) for key, value in values.items() if key in spans]
            for (begin, end), value in sorted(places, key=lambda place: place[0]):
                pieces += [self.text[at:begin], self._dumped(value)]
                at = end
        return "".join([*pieces, self.text[at:]])

    def _dumped(self, value: Any) -> str:
        """Write a value as this file is written: its indentation, newlines and escapes."""
        found = re.match(r"\s*\{(\r?\n)([ \t]+)", self.text)
        is_ascii = self.text.isascii() and "\\u" in self.text
        if found is None:
            close = None if '": ' in self.text else (",", ":")
            return json.dumps(value, ensure_ascii=is_ascii, sort_keys=True, separators=close)
        newline, unit = found[1], found[2]
        lines = json.dumps(
            value, indent=unit, ensure_ascii=is_ascii, sort_keys=True, separators=(",", ": ")
        ).split("\n")
        return (newline + unit * 3).join(lines)  # the third floor: file, cells, a cell


def write_notebook(path: Path, notebook: dict[str, Any], *, may_replace: bool = False) -> Path:
    """Write a whole notebook, as nbformat does; return where it is, as `replace_file` does."""
    import nbformat  # noqa: PLC0415 - slow, and most who read a notebook write none

    nodes = nbformat.from_dict(notebook)  # type: ignore[no-untyped-call]
    with contextlib.suppress(nbformat.ValidationError):  # an invalid notebook is better than none
        _validate(nodes)
    text = nbformat.writes(nodes) + "\n"  # type: ignore[no-untyped-call]
    return replace_file(path, text, may_replace=may_replace)


def is_valid(text: str) -> bool:
    """Does nbformat find nothing wrong with a notebook?"""
    import nbformat  # noqa: PLC0415 - slow, and most who read a notebook write none

    try:
        _validate(json.loads(text))
    except nbformat.ValidationError:
        return False
    return True


def _validate(notebook: Any) -> None:
    """Raise nbformat's error if something is wrong; nbformat itself adds ids that are missing."""
    import nbformat  # noqa: PLC0415 - slow, and most who read a notebook write none

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nbformat.validate(notebook)


def check_destination(path: Path, *, may_replace: bool = False) -> None:
    """Make sure, as far as that can be known before, that a file can be written there."""
    with naming_file(path, "written", "Name a place where you may write."):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not may_replace:
            raise Usage(f"{path} is there already.", "Name a new file, or replace it with --force.")
        check_writable(path)
        # Whether a file can be put into a folder, only trying tells: there are ACLs, full disks.
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass


def check_writable(path: Path) -> None:
    """Raise HereLacks for a read-only file: a rename over it would succeed all the same."""
    with contextlib.suppress(FileNotFoundError):
        is_for_writing = path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
        if not (is_for_writing and os.access(path, os.W_OK)):
            raise HereLacks(
                f"{path} is read-only; it stays as it was.", "Make it writable, or copy it first."
            )


def replace_file(path: Path, text: str, *, may_replace: bool = True) -> Path:
    """Write beside and rename: a reader sees the old file or the new one, whole.

    What may not be replaced stays: then the text goes to a name beside it. Return where it is.
    """
    named, path = path, path.resolve()  # of a symbolic link, the target is replaced
    with naming_file(path, "written", "Name a place where there is room and you may write."):
        if may_replace:
            check_writable(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:NAME_SHOWN]}.", dir=path.parent)
        beside = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the name without its bytes
            if may_replace and path.exists():
                shutil.copymode(path, beside)
            else:
                beside.chmod(0o666 & ~_umask())  # mkstemp makes 0600, whatever the umask
            written = beside.replace(path) if may_replace else _link_to_free_name(beside, path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
    return named if written == path else written


def _link_to_free_name(beside: Path, path: Path) -> Path:
    """Give a file this name, or the first one after it (OUT-1.ipynb) that is free."""
    for number in itertools.count():
        name = path.with_stem(f"{path.stem}-{number}") if number else path
        with contextlib.suppress(FileExistsError):
            _link_to(beside, name)
            return name
    raise AssertionError  # numbers do not end


def _link_to(beside: Path, name: Path) -> None:
    """Give a file a name that is free; FileExistsError if it is not: `rename` would replace."""
    try:
        name.hardlink_to(beside)
    except FileExistsError:
        raise
    except OSError:  # this file system (FAT) has no links: an empty file takes the name
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            beside.replace(name)
        except OSError:
            name.unlink(missing_ok=True)
            raise
    else:
        beside.unlink()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _as_written(run: CellExecution) -> Any:
    """Return a run's outputs as nbformat writes them: text as a list of lines."""
    import nbformat  # noqa: PLC0415 - slow, and most who read a notebook write none

    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "x",
        "metadata": {},
        "source": "",
        "execution_count": run.count,
        "outputs": run.outputs,
    }
    whole = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    text = nbformat.writes(nbformat.from_dict(whole))  # type: ignore[no-untyped-call]
    return json.loads(text)["cells"][0]["outputs"]


# Where things are in the text: json itself forgets that ------------------------------------


def _cells(text: str) -> Iterator[dict[str, Span]]:
    """Yield for each cell where its values are."""
    top = dict(_members(text, _skip(text, 0)))
    at = _skip(text, top["cells"][0] + 1)
    while text[at] != "]":
        members = dict(_members(text, at))
        yield members
        at = _skip(text, _value_end(text, at))
        if text[at] == ",":
            at = _skip(text, at + 1)


def _members(text: str, at: int) -> Iterator[tuple[str, Span]]:
    """Yield the keys of the object that begins here, and where their values are."""
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)  # after the colon
        end = _value_end(text, begin)
        yield key, (begin, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _value_end(text: str, at: int) -> int:
    return _decode(text, at)[1]


def _decode(text: str, at: int) -> tuple[Any, int]:
    return json.JSONDecoder().raw_decode(text, at)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
