"""Writes down which functions of ours call which, in a process that knows nothing of it.

`bench.walk` copies this file as `sitecustomize.py` into a folder that is on PYTHONPATH: Python
imports it before the program begins. It looks at a byte that `bench.walk` shares with it: 0, or
the number of the cell whose calls are to be written down. Standard library only, since it also
runs on the far side.

House rules of this file:

- A call counts where it begins: a generator once, when it is first asked for something.
- Comprehensions and generator expressions are no functions: what they call, the function around
  them calls.
- No call is left out here; `bench.walk` decides what belongs to a cell.
"""

from __future__ import annotations

import dis
import inspect
import json
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import CodeType, FrameType

OURS: Final = "remoter_kernel"
FLAG: Final = "cell"  # the file with that byte
DIRECT, BY_LIBRARY, BY_NOBODY = "direct", "by a library", "by nobody"  # who has called


def role() -> str:
    """Say which of the two this process is; empty: neither."""
    words = sys.orig_argv[1:]
    if words[-1:] and words[-1].endswith(".pyz"):
        return "evaluator"
    return "proxy" if OURS in words and "-f" in words else ""


class Spy:
    """Writes down the calls of one cell after the other."""

    def __init__(self, folder: Path, process: str) -> None:
        self._folder = folder
        self._process = process
        with (folder / FLAG).open("rb") as file:
            self._flag = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
        self._names: dict[CodeType, str] = {}  # empty: not ours
        self._first: dict[CodeType, int] = {}  # of generators: how far one is that begins
        self._lock = threading.Lock()
        self._cell = 0
        self._calls: list[tuple[int, str, str]] = []  # place of the caller or -1, name, who called
        self._stacks: dict[int, list[int]] = {}  # places of the calls that go on, by thread
        self._generators: dict[int, int] = {}  # places of the calls of generators, by frame

    def see(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Take what the interpreter tells of a thread."""
        cell = self._flag[0]
        if cell != self._cell:
            self._turn_to(cell)
        if not self._cell or event not in {"call", "return"}:
            return
        name = self._name_of(frame.f_code)
        if not name or _is_part(frame.f_code):
            return
        stack = self._stacks.setdefault(threading.get_ident(), [])
        if event == "call":
            stack.append(self._place_of(frame, name, stack[-1] if stack else -1))
        elif stack:  # else it was called before this cell
            stack.pop()

    def _place_of(self, frame: FrameType, name: str, caller: int) -> int:
        """Write a call down, unless it is a generator that goes on; return its place."""
        code = frame.f_code
        if code.co_flags & inspect.CO_GENERATOR:
            if code not in self._first:
                resumes = (each for each in dis.get_instructions(code) if each.opname == "RESUME")
                self._first[code] = next(resumes).offset
            if frame.f_lasti > self._first[code]:
                return self._generators.get(id(frame), caller)
            self._generators[id(frame)] = len(self._calls)
        self._calls.append((caller, name, self._who_called(frame)))
        return len(self._calls) - 1

    def _who_called(self, frame: FrameType) -> str:
        above = frame.f_back
        while above and _is_part(above.f_code):
            above = above.f_back
        if above and self._name_of(above.f_code):
            return DIRECT
        while above and not self._name_of(above.f_code):
            above = above.f_back
        return BY_LIBRARY if above else BY_NOBODY

    def _name_of(self, code: CodeType) -> str:
        name = self._names.get(code)
        if name is None:
            name = self._names[code] = _read_name(code)
        return name

    def _turn_to(self, cell: int) -> None:
        """Write down the cell before, and begin with another one."""
        with self._lock:
            before, self._cell = self._cell, 0
            if before:
                place = self._folder / f"{self._process}-{before}.json"
                aside = place.with_suffix(".part")
                aside.write_text(json.dumps(self._calls))
                aside.replace(place)
            self._calls, self._stacks, self._generators = [], {}, {}
            self._cell = cell


def _is_part(code: CodeType) -> bool:
    """Is it no function, but part of one?"""
    return code.co_name[0] == "<" and code.co_name != "<lambda>"


def _read_name(code: CodeType) -> str:
    """Return module and name of a function of ours; empty: it is not ours."""
    way = code.co_filename.replace(os.sep, "/")
    _, found, module = way.rpartition(f"/{OURS}/")
    if not found:
        return ""
    return f"{module.removesuffix('.py').replace('/', '.')}.{code.co_qualname}"


def begin(folder: Path) -> None:
    """Look from now on, in this thread and in all that are started later."""
    process = role()
    if process:
        spy = Spy(folder, process)
        threading.setprofile(spy.see)
        sys.setprofile(spy.see)


if __name__ == "sitecustomize":
    begin(Path(__file__).parent)
