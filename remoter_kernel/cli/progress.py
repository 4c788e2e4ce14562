"""Shows on stderr how far a long thing is: in lines and, at a terminal, in a bar."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

import click

from remoter_kernel.local.transfer.transfer_progress import progress_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from remoter_kernel.local.transfer.transfer_progress import TransferProgress

LINE_EVERY = 10.0  # seconds, where there is no terminal


class StderrProgress:
    """Tells of steps and of what is sent; use it as a context, so that no bar stays behind."""

    def __init__(self) -> None:
        """Remember; a bar is there while something is sent."""
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def step(self, text: str) -> None:
        """Say what begins."""
        self._end_bar()
        click.echo(text, err=True)

    def sending(self, files: int, size: int) -> None:
        """Say how much is about to be sent."""
        if not files:
            self.step("Everything has been sent before")
            return
        self.step(f"Sending {files} {'file' if files == 1 else 'files'}, {size / 1e6:.1f} MB")
        if sys.stderr.isatty():
            self._begin_bar(size)

    def sent(self, size: int) -> None:
        """Move the bar on."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, size)

    def _begin_bar(self, size: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("", total=size)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class TransferProgressBar:
    """Tells of files on their way: in a bar at a terminal, else in a line now and then."""

    def __init__(self) -> None:
        """Remember; the bar is there once something is known."""
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._printed_at = time.monotonic()
        self._note = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_progress(self, progress: TransferProgress) -> None:
        """Hear how far it is; from any thread."""
        if sys.stderr.isatty():
            self._update_bar(progress)
            return
        now = time.monotonic()
        if now - self._printed_at >= LINE_EVERY or progress.note not in {"", self._note}:
            self._printed_at = now
            click.echo(progress_line(progress), err=True)
        self._note = progress.note

    def print_summary(self, sentence: str) -> None:
        """Say what came of it."""
        click.echo(sentence, err=True)

    def _update_bar(self, progress: TransferProgress) -> None:
        if self._bar is None:
            self._begin_bar()
        assert self._bar is not None  # noqa: S101 - just begun
        assert self._task is not None  # noqa: S101
        self._bar.update(
            self._task, completed=progress.share, description=progress_line(progress), refresh=False
        )

    def _begin_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("", total=1.0)
