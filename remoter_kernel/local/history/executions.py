"""Collects the records of a session as cells and outputs, as a notebook file has them (pure)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.protocol.frames import Channel, from_json, unpack_parts
from remoter_kernel.protocol.messages import (
    HEADER,
    METADATA,
    ODD,
    PARENT,
    content_of,
    header_of,
    is_silent,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from remoter_kernel.protocol.journal_entries import JournalEntry

Output = dict[str, Any]
DEEPEST_NESTING = 100  # lists and objects within each other: Python's json gives up at some 1,000
CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # nbformat 4.5


@dataclass
class CellExecution:
    """One execution of one cell."""

    request_id: str  # its message id
    source: str
    cell_id: str = ""  # as the client names the cell; empty where it does not
    sent_at: float = 0.0  # seconds since 1970, by the client's clock
    count: int | None = None
    outputs: list[Output] = field(default_factory=list)
    is_over: bool = False
    clears_next: bool = False  # after `clear_output(wait=True)`: the next output replaces them

    def add(self, output: Output) -> None:
        """Add an output; text of the same stream becomes one."""
        if self.clears_next:
            self.clear()
        last = self.outputs[-1] if self.outputs else {}
        is_text = output["output_type"] == "stream" == last.get("output_type")
        if is_text and last["name"] == output["name"]:
            last["text"] += output["text"]
        else:
            self.outputs.append(output)

    def clear(self) -> None:
        """Take all outputs away."""
        self.outputs.clear()
        self.clears_next = False


class ExecutionHistory:
    """All cells that were run in a session, in the order in which they were sent."""

    def __init__(self) -> None:
        self.executions: dict[str, CellExecution] = {}  # by the request's message id
        self.kernel_info: dict[str, Any] = {}
        self._displays: dict[str, list[Output]] = {}  # by display_id, for update_display_data

    def add_record(self, said: JournalEntry) -> None:
        """Take in one record; one that makes no sense is left out."""
        try:
            parts = unpack_parts(said.body)
            if said.channel is Channel.EVENT:
                info = from_json(parts[0]).get("kernel_info")
                self.kernel_info = info if info and isinstance(info, dict) else self.kernel_info
            elif said.is_from_client and said.channel is Channel.SHELL:
                self._on_request(parts)
            elif said.channel is Channel.IOPUB:
                run = self.executions.get(str(header_of(parts[PARENT]).get("msg_id", "")))
                if run:
                    kind = str(header_of(parts[HEADER]).get("msg_type"))
                    self.add_output(run, kind, content_of(parts))
        except ODD:
            return

    def _on_request(self, parts: Sequence[memoryview]) -> None:
        header = header_of(parts[HEADER])
        if header.get("msg_type") != "execute_request":
            return
        content = content_of(parts)
        if is_silent(content):
            return
        name = str(header["msg_id"])
        self.executions[name] = CellExecution(
            name,
            as_json_value(str(content["code"])),
            str(header_of(parts[METADATA]).get("cellId") or ""),
            timestamp_of(header.get("date")),
        )

    def add_output(self, run: CellExecution, kind: str, content: dict[str, Any]) -> None:
        """Take in one message of iopub for this execution."""
        if kind == "execute_input":
            run.count = _count(content.get("execution_count"))
        elif kind == "status":
            run.is_over |= content.get("execution_state") == "idle"
        elif kind == "clear_output":
            run.clears_next = bool(content.get("wait"))
            if not run.clears_next:
                run.clear()
        elif kind == "stream":
            run.add({"output_type": kind, **stream_of(content)})
        elif kind == "error":
            lines = content.get("traceback")
            words: dict[str, Any] = {key: str(content.get(key, "")) for key in ("ename", "evalue")}
            words["traceback"] = list(map(str, lines)) if isinstance(lines, list) else []
            run.add({"output_type": kind, **as_json_value(words)})
        elif kind in {"display_data", "execute_result", "update_display_data"}:
            self._on_display(run, kind, content)

    def _on_display(self, run: CellExecution, kind: str, content: dict[str, Any]) -> None:
        data, metadata, transient = (
            value if isinstance(value, dict) else {}
            for value in map(content.get, ("data", "metadata", "transient"))
        )
        shown = {"data": _as_mime_bundle(as_json_value(data)), "metadata": as_json_value(metadata)}
        name = transient.get("display_id")
        places = self._displays.setdefault(str(name), []) if name else []
        for output in places:
            output.update(shown)
        if kind == "update_display_data":
            return
        output = {"output_type": kind, **shown}
        if kind == "execute_result":
            output["execution_count"] = _count(content.get("execution_count"))
        run.add(output)
        places.append(output)


def _as_mime_bundle(data: dict[str, Any]) -> dict[str, Any]:
    """Return a display's data as nbformat's schema has it: text, lines, or JSON for some types."""
    bundle = {}
    for mime, value in data.items():
        lines = value if isinstance(value, list) else [value]
        is_text = all(isinstance(line, str) for line in lines)
        bundle[mime] = value if is_text or mime.endswith("json") else str(value)
    return bundle


def stream_of(content: dict[str, Any]) -> dict[str, str]:
    """Return name and text of a stream's output."""
    words = {"name": str(content.get("name") or "stdout"), "text": str(content.get("text", ""))}
    return {key: as_json_value(value) for key, value in words.items()}


def as_json_value(value: Any, room: int = DEEPEST_NESTING) -> Any:
    """Return a value of a message as a file can have it: in UTF-8, and not nested without end."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON may escape half of a surrogate pair
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    elif isinstance(value, (dict, list)) and not room:
        return "…"
    elif isinstance(value, dict):
        return {as_json_value(key): as_json_value(each, room - 1) for key, each in value.items()}
    elif isinstance(value, list):
        return [as_json_value(each, room - 1) for each in value]
    return value


def _count(value: object) -> int | None:
    """Return an execution_count that nbformat accepts: True, for JSON, is an int to Python."""
    return value if type(value) is int and value >= 0 else None


def language_info_of(kernel_info: dict[str, Any]) -> dict[str, Any]:
    """Return a kernel's language_info as nbformat's schema has it."""
    told = kernel_info.get("language_info")
    info = as_json_value(told) if isinstance(told, dict) else {}
    for key in ("file_extension", "mimetype", "pygments_lexer"):
        if not isinstance(info.get(key, ""), str):
            del info[key]
    if not isinstance(info.get("codemirror_mode", ""), (str, dict)):
        del info["codemirror_mode"]
    return {**info, "name": str(info.get("name") or "python")}


def timestamp_of(date: object) -> float:
    """Read a message's date; 0 where there is none."""
    try:
        return datetime.fromisoformat(str(date)).timestamp()
    except (ValueError, OverflowError, OSError):  # the last: Windows, of years before 1970
        return 0.0


# A whole notebook -----------------------------------------------------------------------


def build_notebook(story: ExecutionHistory, kernelspec: str, display_name: str) -> dict[str, Any]:
    """Return every run as a cell of a notebook (nbformat 4.5)."""
    info = language_info_of(story.kernel_info)
    spec = {"name": kernelspec, "display_name": display_name, "language": info["name"]}
    names: set[str] = set()
    cells: list[dict[str, Any]] = []
    for run in story.executions.values():
        name = run.cell_id
        if not CELL_ID.fullmatch(name) or name in names:
            name = hashlib.sha256(run.request_id.encode(errors="replace")).hexdigest()[:16]
        names.add(name)
        cells.append(
            {
                "cell_type": "code",
                "id": name,
                "metadata": {},
                "source": run.source,
                "execution_count": run.count,
                "outputs": run.outputs,
            }
        )
    metadata = {"kernelspec": spec, "language_info": info}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def executed_notebook(
    text: str, runs: Mapping[int, CellExecution], language_info: dict[str, Any]
) -> dict[str, Any]:
    """Return the notebook of a file's text after these runs of its cells, by their places.

    What other runs have left in it goes. `language_info` is that of the kernel's own reply.
    """
    notebook: dict[str, Any] = json.loads(text)
    for place, cell in enumerate(notebook["cells"]):
        if cell.get("cell_type") == "code":
            run = runs.get(place)
            cell["outputs"] = run.outputs if run else []
            cell["execution_count"] = run.count if run else None
    metadata = notebook.setdefault("metadata", {})
    metadata["kernelspec"] = {"language": language_info.get("name") or "python"}
    metadata["language_info"] = language_info
    return notebook


# Into a notebook that exists --------------------------------------------------------------


class NotebookCellUpdate(NamedTuple):
    """What becomes of a cell: `execution` is None where it is left alone, and `why` says why."""

    cell_index: int  # in the notebook's cells
    execution: CellExecution | None
    why: str = ""


def plan_updates(
    cells: Sequence[dict[str, Any]], runs: Iterable[CellExecution], saved: float
) -> list[NotebookCellUpdate]:
    """Choose which cells get which outputs; `saved`: when the file was, in seconds since 1970.

    A cell gets the outputs of its last run if it has none, or only the first of them, or
    those of an earlier run, or if that run began after the notebook was saved.
    """
    found: dict[int, list[CellExecution]] = {}
    for run in runs:
        index = _index_of(run, cells)
        if index is not None and run.count is not None:
            found.setdefault(index, []).append(run)
    fillings = []
    for index, own in sorted(found.items()):
        last = own[-1]
        there = list(cells[index].get("outputs") or ())
        if list(map(comparable, there)) == list(map(comparable, last.outputs)):
            continue
        if last.sent_at > saved or any(_is_prefix_of(run.outputs, there) for run in own):
            fillings.append(
                NotebookCellUpdate(index, last, "" if last.is_over else "it still runs")
            )
        else:
            fillings.append(
                NotebookCellUpdate(index, None, "it has outputs that this session did not make")
            )
    return fillings


def any_executed(cells: Sequence[dict[str, Any]], runs: Iterable[CellExecution]) -> bool:
    """Was any of these cells run?"""
    return any(_index_of(run, cells) is not None for run in runs)


def _index_of(run: CellExecution, cells: Sequence[dict[str, Any]]) -> int | None:
    """Find a run's cell: by its id, else by its source if only one cell has it."""
    code = [index for index, cell in enumerate(cells) if cell.get("cell_type") == "code"]
    if run.cell_id:
        for index in code:
            if cells[index].get("id") == run.cell_id:
                return index
    same = [index for index in code if join_lines(cells[index].get("source")) == run.source]
    return same[0] if len(same) == 1 else None


def join_lines(text: object) -> str:
    """Join what a notebook file may have as a list of lines."""
    return "".join(text) if isinstance(text, list) else str(text or "")


def comparable(output: Output) -> tuple[Any, ...]:
    """Return what a person would see of an output, to compare it: a file may lack the rest."""
    kind = output.get("output_type")
    if kind == "stream":
        return (kind, output.get("name"), as_terminal_shows(join_lines(output.get("text"))))
    if kind == "error":
        return (kind, output.get("ename"), output.get("evalue"))
    data = output.get("data")
    data = data if isinstance(data, dict) else {}
    text = {mime: join_lines(v) if isinstance(v, (str, list)) else v for mime, v in data.items()}
    return (kind, text)


def _is_prefix_of(whole: Sequence[Output], begin: Sequence[Output]) -> bool:
    """Are these the first of those outputs? The last of them may be half of its text."""
    if not begin:
        return True
    *first, last = map(comparable, begin)
    at = len(first)
    if len(whole) <= at or list(map(comparable, whole[:at])) != first:
        return False
    counterpart = comparable(whole[at])
    if last[0] == counterpart[0] == "stream" and last[1] == counterpart[1]:
        return _is_beginning(join_lines(whole[at]["text"]), last[2])
    return last == counterpart


def _is_beginning(text: str, seen: str) -> bool:
    """Did a terminal show `seen` at some time, while it got that text?"""
    whole = as_terminal_shows(text)
    if whole.startswith(seen):
        return True
    # A progress bar, perhaps: what its line showed may have been overwritten since.
    head, newline, _ = seen.rpartition("\n")
    if not whole.startswith(head + newline):
        return False
    return "\r" in text.replace("\r\n", "\n").split("\n")[seen.count("\n")]


def as_terminal_shows(text: str) -> str:
    """Return what a terminal shows of text: what was overwritten after a return is gone."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(_overwritten(line) if "\r" in line else line for line in lines)


def _overwritten(line: str) -> str:
    shown = ""
    for piece in line.split("\r"):
        shown = piece + shown[len(piece) :]  # a shorter piece leaves the end of the longer one
    return shown
