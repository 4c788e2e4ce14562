"""How outputs are shown: at a terminal, as JSON, in a notebook."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import click

from remoter_kernel.local.history.executions import (
    CellExecution,
    ExecutionHistory,
    as_json_value,
    stream_of,
)
from remoter_kernel.local.history.transcript import display_text, traceback_text
from remoter_kernel.local.run.runner import quit_status
from remoter_kernel.plain_text import count_of

if TYPE_CHECKING:
    from pathlib import Path

    from remoter_kernel.local.history.notebook_file import NotebookText
    from remoter_kernel.local.run.code_to_run import CodeCell

DISPLAY_TYPES = ("execute_result", "display_data")
OUTPUT_TYPES = ("stream", "error", *DISPLAY_TYPES)


class RunResult(NamedTuple):
    """How it ended; `error` is the sentence of what was in the way."""

    remote: str
    session: str
    status: str
    exit_code: int
    error: str = ""


class OutputRenderer(Protocol):
    """Whoever shows all outputs, and the end."""

    def show(self, piece: CodeCell, kind: str, content: dict[str, Any]) -> None:
        """Show one output of a cell."""

    def finish(self, result: RunResult) -> None:
        """Show how it ended."""


class TerminalRenderer:
    """Shows outputs as they come: text to stdout, errors to stderr."""

    def __init__(self, *, only_errors: bool = False) -> None:
        """`only_errors`: a notebook is written, which has the rest."""
        self._only_errors = only_errors

    def show(self, _piece: CodeCell | None, kind: str, content: dict[str, Any]) -> None:
        """Show one output."""
        if kind == "error":
            self._show_error(content)
        elif self._only_errors:
            return
        elif kind == "stream":
            stream = sys.stderr if content.get("name") == "stderr" else sys.stdout
            stream.write(str(content.get("text", "")))
            stream.flush()
        elif kind in DISPLAY_TYPES:
            click.echo(display_text(content.get("data")))

    @staticmethod
    def _show_error(content: dict[str, Any]) -> None:
        word = quit_status(content)
        if word is None:
            click.echo(traceback_text(content), err=True)
        elif not word.lstrip("-").isdigit():  # `sys.exit("why")`
            click.echo(word, err=True)

    def finish(self, result: RunResult) -> None:
        """Say nothing more: all has been shown."""


def _output_fields(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of an output as JSON can have it; a stream has a name and a text."""
    kept: dict[str, Any] = as_json_value(content)
    return {**kept, **stream_of(content)} if kind == "stream" else kept


class JsonRenderer:
    """Collects outputs for one JSON document."""

    def __init__(self) -> None:
        self._run = CellExecution("", "")  # all cells count as one

    def show(self, _piece: CodeCell, kind: str, content: dict[str, Any]) -> None:
        """Keep one output as a notebook file has it."""
        if kind in OUTPUT_TYPES:
            self._run.add({"output_type": kind, **_output_fields(kind, content)})

    def finish(self, result: RunResult) -> None:
        """Print the document."""
        words = {**result._asdict(), "outputs": self._run.outputs}
        if not result.error:
            del words["error"]
        click.echo(json.dumps(words, indent=2))


class JsonLinesRenderer:
    """Prints each event as a line of JSON, as it comes."""

    def show(self, piece: CodeCell, kind: str, content: dict[str, Any]) -> None:
        """Print one output."""
        if kind in OUTPUT_TYPES:
            words = {"event": "output", "cell": piece.index, "output_type": kind}
            click.echo(json.dumps({**words, **_output_fields(kind, content)}))

    def finish(self, result: RunResult) -> None:
        """Print the last line."""
        click.echo(json.dumps({"event": "end", **result._asdict()}))


class NotebookRenderer:
    """Writes the notebook as it is after its run, whatever has become of it."""

    def __init__(self, notebook: NotebookText, path: Path, *, may_replace: bool = False) -> None:
        self._may_replace = may_replace
        self._notebook = notebook
        self._path = path
        self._history = ExecutionHistory()
        self._runs: dict[int, CellExecution] = {}
        self.language_info: dict[str, Any] = {}  # of the kernel there, once that is known

    def show(self, piece: CodeCell, kind: str, content: dict[str, Any]) -> None:
        """Keep one output for its cell."""
        run = self._runs.setdefault(piece.index, CellExecution("", piece.source))
        self._history.add_output(run, kind, content)

    def finish(self, result: RunResult) -> None:
        """Write the notebook; without a kernel there is nothing to write."""
        from remoter_kernel.local.config.kernelspec import kernelspec_name
        from remoter_kernel.local.history.executions import executed_notebook
        from remoter_kernel.local.history.notebook_file import write_notebook

        if not self.language_info:
            return
        name, title = kernelspec_name(result.remote), f"Remote ({result.remote})"
        notebook = executed_notebook(self._notebook.text, self._runs, self.language_info)
        notebook["metadata"]["kernelspec"] |= {"name": name, "display_name": title}
        written = write_notebook(self._path, notebook, may_replace=self._may_replace)
        moved = moved_clause(self._path, written)
        click.echo(f"Ran {count_of(len(self._runs), 'cell')}; wrote {written}{moved}.", err=True)


def moved_clause(path: Path, written: Path) -> str:
    """Say, in a clause, why a file was not written where that was asked for; mostly nothing."""
    return "" if written == path else f", as {path} is there by now and stays as it is"
