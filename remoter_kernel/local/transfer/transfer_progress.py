"""A file transfer in words: what is to be copied, how far it is, its result, its errors (pure)."""

from __future__ import annotations

import html
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from remoter_kernel.errors import HereLacks, RemoteLacks, RemoterError, Usage
from remoter_kernel.local.history.status_report import format_size
from remoter_kernel.plain_text import count_of, plain_text
from remoter_kernel.transfer.framed_stream import FileTrouble, TroubleCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

HOUR = 3600  # seconds
LONGEST_NAME = 1000  # characters that are shown


@dataclass(frozen=True)
class TransferSpec:
    """What is to be copied, and which way."""

    is_put: bool
    sources: tuple[str, ...]
    to: str
    here: Path  # the local folder in which paths begin
    there: str  # the remote folder in which paths begin; "": the home
    is_dry: bool = False

    @property
    def verb(self) -> str:
        """What a person calls it."""
        return "put" if self.is_put else "get"


@dataclass
class TransferProgress:
    """How far it is."""

    is_put: bool
    remote: str
    size: int = 0  # bytes
    files: int = 0
    all_size: int = 0
    all_files: int = 0
    seconds: float = 0.0
    recent: int = 0  # bytes of this try: the rate leaves out what an earlier one had sent
    recent_seconds: float = 0.0
    note: str = ""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        if not self.all_size:  # empty files alone
            return self.files / self.all_files if self.all_files else 0.0
        return min(1.0, self.size / self.all_size)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.recent / self.recent_seconds if self.recent_seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds that it will take, as it looks."""
        return (self.all_size - self.size) / self.rate if self.rate > 0 else None

    def completed(self) -> TransferProgress:
        """Return how far it is once all has been copied."""
        return replace(self, size=self.all_size, files=self.all_files, note="")


@dataclass(frozen=True)
class TransferResult:
    """What came of it."""

    files: int
    size: int
    seconds: float
    targets: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    troubles: tuple[RemoterError, ...] = ()
    dry_run: tuple[str, ...] = field(default=())  # of a dry run: one line for each entry
    is_dry: bool = False

    @property
    def has_arrived(self) -> bool:
        """Has anything arrived: a file, or folders without any?"""
        return not self.is_dry and (self.files > 0 or not self.troubles)


# --------------------------------------------------------------- words


def format_remaining(seconds: float) -> str:
    """Write a time to wait: 0:07, 12:00, 3 h."""
    if seconds >= HOUR:
        return f"{seconds / HOUR:.0f} h"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def progress_line(progress: TransferProgress) -> str:
    """Say in a line how far it is."""
    way = f"to {progress.remote}" if progress.is_put else f"from {progress.remote}"
    parts = [f"{way}: {format_size(progress.size)} of {format_size(progress.all_size)}"]
    if progress.all_files > 1:
        parts.append(f"{progress.files} of {progress.all_files} files")
    parts.append(f"{100 * progress.share:.0f} %")
    if progress.note:
        parts.append(progress.note)
    elif progress.rate > 0:
        parts.append(f"{format_size(progress.rate)}/s")
        if progress.seconds_left and progress.share < 1:
            parts.append(f"{format_remaining(progress.seconds_left)} left")
    return ", ".join(parts)


def progress_html(progress: TransferProgress) -> str:
    """Show the same as a bar in HTML; the note may hold names from the remote: it is escaped."""
    return (
        f'<div><progress value="{progress.share:.4f}" max="1" '
        'style="width: 24em; vertical-align: middle"></progress> '
        f"<span>{html.escape(progress_line(progress))}</span></div>"
    )


def transfer_summary(spec: TransferSpec, remote: str, result: TransferResult) -> str:
    """Return a line about a transfer that has ended."""
    files = count_of(result.files, "file")
    where = result.targets[0] if len(result.targets) == 1 else f"{spec.to or '.'}"
    place = escape_name(f"{remote}:{where}" if spec.is_put else where)
    said = f"{files}, {format_size(result.size)} in {result.seconds:.1f} s to {place}"
    if result.seconds > 0 and result.size:
        said += f" ({format_size(result.size / result.seconds)}/s)"
    return said


def dry_run_lines(rows: Iterable[tuple[str, str, int, str]]) -> list[str]:
    """Write lines of a dry run: each row has a source, its kind, its size and where it goes."""
    lines = []
    for source, kind, size, target in rows:
        what = format_size(size) if kind == "file" else kind
        lines.append(f"{what:>11}  {escape_name(source)} -> {escape_name(target)}")
    return lines


def escape_name(name: str) -> str:
    """Write a file's name on one line; what a terminal would act on is escaped."""
    return plain_text(name, escapes=True, most=LONGEST_NAME)


# --------------------------------------------------------------- troubles


def transfer_error(trouble: FileTrouble, spec: TransferSpec, remote: str) -> RemoterError:
    """Make one sentence of a file's trouble: which file, on which machine, what to do."""
    is_there = trouble.is_from_peer
    path, reason = escape_name(trouble.path), escape_name(trouble.reason)
    if trouble.code is TroubleCode.UNSAFE and not spec.is_put and not is_there:
        return RemoteLacks(
            f"it sent a file called {path}, and {reason}: it was not written, and "
            "nothing more was received.",
            "Ask who runs it, or name another folder.",
            remote=remote,
        )
    is_written = spec.is_put == is_there
    side = "there" if is_there else "here"
    verb = "written" if is_written else "read"
    what = f"{path} cannot be {verb} {side}: {reason}." if path else f"{reason}."
    advice = _transfer_advice(trouble.code, spec, is_there=is_there)
    if trouble.code is TroubleCode.WORDS:
        return Usage(f"{path}: {reason}.", advice)
    if is_there:
        return RemoteLacks(what, advice, remote=remote)
    return HereLacks(what, advice)


def _transfer_advice(trouble: TroubleCode, spec: TransferSpec, *, is_there: bool) -> str:
    base = (spec.there or "the home there") if is_there else str(spec.here)
    place = "there" if is_there else "here"
    return {
        TroubleCode.MISSING: f"Look at its name: paths {place} begin in {base}.",
        TroubleCode.FORBIDDEN: f"See to its permissions {place}, or name another place.",
        TroubleCode.FULL: f"Make room {place} and run it again: it goes on where it stopped.",
        TroubleCode.IS_FOLDER: "Name another place, or move it away.",
        TroubleCode.IS_FILE: "Name another place, or move it away.",
        TroubleCode.CHANGED: "Send it again when nothing writes to it.",
        TroubleCode.DAMAGED: (
            "Try again; if it stays so, look at the disks and memory of both sides."
        ),
        TroubleCode.UNSAFE: "Name another folder, or move what is in the way.",
        TroubleCode.WORDS: "",  # the reason says it all
    }.get(trouble, "Mend that, and run it again.")


def first_error(troubles: Sequence[RemoterError]) -> RemoterError | None:
    """Return what one command ends with: the first trouble, and how many others there are."""
    if not troubles:
        return None
    first = troubles[0]
    if len(troubles) > 1:
        first.advice += f" {count_of(len(troubles) - 1, 'other file')} had trouble, too."
    return first
