"""Shows on stderr how far an installation or a transfer is: in lines, at a terminal in a bar."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

import click

from remoter_kernel.local.transfer.transfer_progress import progress_line
from remoter_kernel.plain_text import count_of

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

    from remoter_kernel.local.transfer.transfer_progress import TransferProgress

LINE_EVERY = 10.0  # seconds, where there is no terminal


class _Bar:
    """A bar on stderr; use it as a context, so that none stays behind."""

    def __init__(self) -> None:
        self._running: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def _begin_bar(self, total: float, *columns: ProgressColumn) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress

        console = Console(stderr=True)  # stdout is for what the command prints
        bar = Progress(BarColumn(), *columns, console=console, transient=True)
        bar.start()
        self._running = bar, bar.add_task("", total=total)
        return self._running

    def _end_bar(self) -> None:
        if self._running:
            self._running[0].stop()
            self._running = None


class StderrProgress(_Bar):
    """Prints the steps of an installation, and shows a bar while files are sent."""

    def step(self, text: str) -> None:
        """Print what begins."""
        self._end_bar()
        click.echo(text, err=True)

    def sending(self, files: int, size: int) -> None:
        """Print how much is about to be sent, in bytes, and begin its bar."""
        if not files:
            self.step("Everything has been sent before")
            return
        self.step(f"Sending {count_of(files, 'file')}, {size / 1e6:.1f} MB")
        if sys.stderr.isatty():
            from rich import progress as rich

            columns = rich.DownloadColumn(), rich.TransferSpeedColumn(), rich.TimeRemainingColumn()
            self._begin_bar(size, *columns)

    def sent(self, size: int) -> None:
        """Move the bar on by so many bytes."""
        if self._running:
            bar, task = self._running
            bar.advance(task, size)


class TransferProgressBar(_Bar):
    """Shows how far a transfer is: in a bar at a terminal, else in a line now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._printed_at = time.monotonic()
        self._note = ""  # the last one that was printed

    def on_progress(self, progress: TransferProgress) -> None:
        """Show how far it is; from any thread."""
        if sys.stderr.isatty():
            from rich.progress import TextColumn

            text = TextColumn("{task.description}", markup=False)  # names may have brackets
            bar, task = self._running or self._begin_bar(1.0, text)
            line = progress_line(progress)
            # rich redraws by itself ten times a second.
            bar.update(task, completed=progress.share, description=line, refresh=False)
            return
        now = time.monotonic()
        if now - self._printed_at >= LINE_EVERY or progress.note not in {"", self._note}:
            self._printed_at = now
            click.echo(progress_line(progress), err=True)
        self._note = progress.note
