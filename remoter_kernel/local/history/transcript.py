"""A session's cells and outputs as text, in the order in which they came (pure)."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from remoter_kernel.protocol.frames import Channel, from_json, unpack_parts
from remoter_kernel.protocol.messages import HEADER, ODD, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.protocol.journal_entries import JournalEntry


NO_SENSE = "[a message of the kernel that makes no sense is left out]\n"


class Transcript:
    """Writes what a console would have shown."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """Remember where to."""
        self._write = write
        self._is_at_start = True  # of a line
        self._is_first = True

    def add_record(self, said: JournalEntry) -> None:
        """Write one record; one that shows nothing is left out."""
        try:
            parts = unpack_parts(said.body)
            if said.is_marker:
                self._line(describe_gap(from_json(parts[0])))
            elif said.channel is Channel.IOPUB:
                self._show(str(header_of(parts[HEADER]).get("msg_type")), content_of(parts))
        except ODD:
            self._line(NO_SENSE)

    def finish(self) -> None:
        """End the last line."""
        self._text("" if self._is_at_start else "\n")

    def _show(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "execute_input":
            self._line("" if self._is_first else "\n")
            self._is_first = False
            head = f"In [{prompt_number(content)}]: "
            code = str(content.get("code", "")).rstrip("\n")
            self._line(head + textwrap.indent(code, " " * len(head)).lstrip(" ") + "\n")
        elif kind == "stream":
            self._text(str(content.get("text", "")))
        elif kind == "display_data":
            self._line(display_text(content.get("data")) + "\n")
        elif kind == "execute_result":
            self._line(f"Out[{prompt_number(content)}]: {display_text(content.get('data'))}\n")
        elif kind == "error":
            self._line(traceback_text(content) + "\n")

    def _line(self, text: str) -> None:
        """Write from the beginning of a line."""
        if text:
            self._text(text if self._is_at_start else f"\n{text}")

    def _text(self, text: str) -> None:
        if text:
            self._write(text)
            self._is_at_start = text.endswith("\n")


def iopub_output(said: JournalEntry) -> tuple[str, dict[str, Any]] | None:
    """Return kind and content of what was published; None where a record is nothing of the kind.

    What cannot be read comes as a text which says so.
    """
    if said.is_marker or said.channel is not Channel.IOPUB:
        return None
    try:
        parts = unpack_parts(said.body)
        return str(header_of(parts[HEADER]).get("msg_type")), content_of(parts)
    except ODD:
        return "stream", {"name": "stderr", "text": NO_SENSE}


def display_text(data: object) -> str:
    """Return what of a display can be read; of the rest, what it is."""
    if not isinstance(data, dict):
        return "<nothing>"
    text = data.get("text/plain")
    return str(text) if text else f"<{', '.join(data) or 'nothing'}>"


def traceback_text(content: dict[str, Any]) -> str:
    """Return what an error shows: its traceback, else what it is called."""
    lines = content.get("traceback")
    if isinstance(lines, list) and lines:
        return "\n".join(map(str, lines))
    return f"{content.get('ename', 'error')}: {content.get('evalue', '')}"


def prompt_number(content: dict[str, Any]) -> str:
    """Return the number of a cell, as a prompt shows it."""
    count = content.get("execution_count")
    return str(count) if isinstance(count, int) else " "


def describe_gap(words: dict[str, Any]) -> str:
    """Say in a line what a mark means: something that was said is not kept any more."""
    size = words.get("bytes")
    if not isinstance(size, int) or not size:
        return ""
    return f"[{size:,} bytes are not kept any more]\n"
