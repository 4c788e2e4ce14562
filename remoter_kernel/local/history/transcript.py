"""A session's cells and outputs as text, in the order in which they came (pure)."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.launch.launcher import as_timestamp, is_over
from remoter_kernel.plain_text import plain_text
from remoter_kernel.protocol.frames import Channel, from_json, unpack_parts
from remoter_kernel.protocol.messages import HEADER, ODD, PARENT, content_of, header_of, is_silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.protocol.journal_entries import JournalEntry

NO_SENSE = "[a message of the kernel that makes no sense is left out]\n"

LONGEST_CODE = 60  # characters of a cell's first line
COMMAND_TEXTS = {
    "interrupt": "asked to interrupt",
    "restart": "asked to restart the kernel",
    "stop": "asked to stop the session",
    "keep": "asked to keep the session",
    "finish": "asked to end the session once all is done",
    "refused": "sent what could not be taken in",
}
EVENT_TEXTS = {"died": "The kernel died", "failed": "The kernel did not start"}


class Transcript:
    """Writes what a console would have shown."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._is_at_start = True  # of a line
        self._is_first = True  # is no cell written yet?

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
    """Return type and content of an iopub message; None where a record is none.

    For a message that cannot be read, return a stream that says so.
    """
    if said.is_marker or said.channel is not Channel.IOPUB:
        return None
    try:
        parts = unpack_parts(said.body)
        return str(header_of(parts[HEADER]).get("msg_type")), content_of(parts)
    except ODD:
        return "stream", {"name": "stderr", "text": NO_SENSE}


def display_text(data: object) -> str:
    """Return a display as text: its text/plain, else the MIME types that it has."""
    if not isinstance(data, dict):
        return "<nothing>"
    text = data.get("text/plain")
    return str(text) if text else f"<{', '.join(data) or 'nothing'}>"


def traceback_text(content: dict[str, Any]) -> str:
    """Return an error as text: its traceback, else its name and value."""
    lines = content.get("traceback")
    if isinstance(lines, list) and lines:
        return "\n".join(map(str, lines))
    return f"{content.get('ename', 'error')}: {content.get('evalue', '')}"


def prompt_number(content: dict[str, Any]) -> str:
    """Return the number of a cell, as it stands in a prompt."""
    count = content.get("execution_count")
    return str(count) if isinstance(count, int) else " "


def describe_gap(words: dict[str, Any]) -> str:
    """Return a line for a marker of the journal: compaction has dropped something there."""
    size = words.get("bytes")
    if not isinstance(size, int) or not size:
        return ""
    return f"[{size:,} bytes are not kept any more]\n"


class SessionLogFormatter:
    """Turns records into lines."""

    def __init__(self) -> None:
        self.has_failure = False  # is the kernel's own log worth a look?
        self._sent_at: dict[str, float] = {}  # of open requests, by message id

    def first_line(self, about: dict[str, Any]) -> str:
        """Return the first line."""
        purpose = about.get("notebook") or about.get("script")
        notebook = f", for {purpose}" if purpose else ""
        kernel = about.get("kernel") or "a kernel"
        return log_line(about["created"], f"Session {about['id']} began with {kernel}{notebook}.")

    def last_line(self, about: dict[str, Any]) -> str | None:
        """Return the last line, if the session is over."""
        self.has_failure |= about["state"] == "dead"
        if not is_over(about):
            return None
        return log_line(about["since"], f"The session is over. {about['why']}".rstrip())

    def line_of(self, said: JournalEntry) -> str | None:
        """Return the line of one record, if it is worth one."""
        try:
            what = self._describe(said)
        except ODD:
            return None
        return log_line(said.time, what) if what else None

    def _describe(self, said: JournalEntry) -> str | None:
        parts = unpack_parts(said.body)
        who = f"Client {said.client.hex()[:6]}"
        if said.channel is Channel.COMMAND:
            order = str(from_json(parts[0]).get("order"))
            return f"{who} {COMMAND_TEXTS.get(order, order)}."
        if said.channel is Channel.EVENT:
            words = from_json(parts[0])
            self.has_failure |= str(words.get("event")) in EVENT_TEXTS
            return _event_text(who, words)
        if said.channel is not Channel.SHELL:
            return None
        header = header_of(parts[HEADER])
        if header.get("msg_type") == "execute_request":
            return self._describe_request(who, said, header["msg_id"], content_of(parts))
        if header.get("msg_type") == "execute_reply":
            asked = header_of(parts[PARENT]).get("msg_id", "")
            return self._describe_reply(said, asked, content_of(parts))
        return None

    def _describe_request(
        self, who: str, said: JournalEntry, name: str, content: dict[str, Any]
    ) -> str | None:
        if is_silent(content):
            return None
        self._sent_at[name] = said.time
        code = plain_text(content.get("code", ""), keeps_lines=True)
        first, *rest = code.strip().split("\n")
        shown = first[:LONGEST_CODE] + ("…" if rest or len(first) > LONGEST_CODE else "")
        return f"{who} asked for: {shown}"

    def _describe_reply(self, said: JournalEntry, name: str, content: dict[str, Any]) -> str | None:
        asked = self._sent_at.pop(name, None)
        if asked is None:
            return None
        status = content.get("status")
        how = f"{content.get('ename')}" if status == "error" else str(status)
        count = content.get("execution_count") or " "
        return f"  [{count}] ended after {format_duration(said.time - asked)}: {how}"


def _event_text(who: str, words: dict[str, Any]) -> str | None:
    event = words.get("event")
    if event == "ready":
        info = words.get("kernel_info")
        info = info if isinstance(info, dict) else {}
        name = f"{info.get('implementation', '')} {info.get('implementation_version', '')}"
        return f"The kernel is ready: {name.strip()}."
    if str(event) in {"came", "went"}:
        return f"{who} {event}."
    if event == "refused":
        return f"{who} sent what could not be taken in. {words.get('why', '')}".rstrip()
    if words.get("mark") or not event:
        return None
    what = EVENT_TEXTS.get(str(event), f"Note: {event}")
    return f"{what}. {words.get('why', '')}".rstrip()


def log_line(when: float, what: str) -> str:
    """Return a line that begins with the time, as a clock here shows it."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(as_timestamp(when)))
    return f"{clock}  {plain_text(what)}"


def format_duration(seconds: float) -> str:
    """Write a duration in the one or two units that read best: "2.1 s", "3 min 20 s"."""
    seconds = as_timestamp(seconds)
    if seconds < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    words = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(index for index, (number, _) in enumerate(words) if number)
    return " ".join(f"{number} {unit}" for number, unit in words[first : first + 2])
