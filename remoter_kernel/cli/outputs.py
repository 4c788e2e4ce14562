"""The verb `outputs`: shows a session's cells and outputs, or puts them in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoter_kernel.cli.params import complete_session
from remoter_kernel.cli.renderers import TerminalRenderer, moved_clause
from remoter_kernel.cli.terminal import terminal_prompter
from remoter_kernel.errors import RemoterError, Usage
from remoter_kernel.local.history.executions import (
    ExecutionHistory,
    any_executed,
    build_notebook,
    plan_updates,
)
from remoter_kernel.local.history.notebook_file import check_destination, check_writable
from remoter_kernel.local.history.remote_query import MOST_IN_MEMORY, locate_session
from remoter_kernel.local.history.transcript import Transcript, iopub_output
from remoter_kernel.local.run.runner import ExitCodeTracker
from remoter_kernel.plain_text import count_of

if TYPE_CHECKING:
    from remoter_kernel.local.history.remote_query import SessionRef

NOTEBOOK_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("session", shell_complete=complete_session)
@click.option("--notebook", metavar="OUT.ipynb", type=NOTEBOOK_PATH, help="Write a new notebook.")
@click.option(
    "--into",
    metavar="NOTEBOOK.ipynb",
    type=NOTEBOOK_PATH,
    help="Put what this notebook missed under its cells; all else in it stays.",
)
@click.option("--force", is_flag=True, help="With --notebook: replace a file that is there.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the session ends.")
def outputs(
    session: str, notebook: Path | None, into: Path | None, force: bool, follow: bool
) -> None:
    """Show every cell of SESSION with its outputs, or write them to a notebook.

    What `remoter run` has begun is shown as it would show it; with -f, the exit code is that of
    the code, too.
    """
    _check_options(notebook, into, force=force)
    with locate_session(session, terminal_prompter()) as found:
        if found.about.get("script") and not (notebook or into):
            _replay(found, follow=follow)
            return
        if not (notebook or into):
            transcript = Transcript(lambda text: click.echo(text, nl=False))
            for said in found.read_journal(follow=follow):
                transcript.add_record(said)
            transcript.finish()
            return
        story = ExecutionHistory()
        for said in found.read_journal(follow=follow, most=MOST_IN_MEMORY):
            story.add_record(said)
    if notebook:
        _write_new_notebook(notebook, story, found, may_replace=force)
    if into:
        _merge_into_notebook(into, story, found)


def _check_options(notebook: Path | None, into: Path | None, *, force: bool) -> None:
    """Refuse, before anything is asked there, what could not be written here."""
    if notebook and into:
        raise Usage("Name either a new notebook or one that is there.", "See --help.")
    if force and not notebook:
        raise Usage("--force lets --notebook replace a file, and nothing else.", "See --help.")
    if notebook:
        check_destination(notebook, may_replace=force)
    if into:
        check_writable(into)


def _replay(found: SessionRef, *, follow: bool) -> None:
    """Show the outputs of a script, and exit with its exit code."""
    terminal, verdict = TerminalRenderer(), ExitCodeTracker()
    reading = found.read_journal(follow=follow)
    for said in reading:
        verdict.add_record(said)
        output = iopub_output(said)
        if output:
            terminal.show(None, *output)
    if not follow:
        return
    if verdict.is_open:
        why = reading.answer["session"]["why"]
        raise RemoterError(
            f"Session {found.id} ended before its code did. {why}",
            "Run it again.",
            remote=found.query.remote.name,
        )
    if verdict.exit_code:
        raise click.exceptions.Exit(verdict.exit_code)


def _write_new_notebook(
    path: Path, story: ExecutionHistory, found: SessionRef, *, may_replace: bool
) -> None:
    from remoter_kernel.local.config.kernelspec import kernelspec_name
    from remoter_kernel.local.history.notebook_file import write_notebook

    name = found.query.remote.name
    notebook = build_notebook(story, kernelspec_name(name), f"Remote ({name})")
    written = write_notebook(path, notebook, may_replace=may_replace)
    cells = count_of(len(story.executions), "cell")
    click.echo(f"Wrote {cells} to {written}{moved_clause(path, written)}.")


def _merge_into_notebook(path: Path, story: ExecutionHistory, found: SessionRef) -> None:
    from remoter_kernel.local.history.notebook_file import NotebookText, is_valid, replace_file

    file = NotebookText(path)
    if story.executions and not any_executed(file.cells, story.executions.values()):
        own = found.about["notebook"]
        raise Usage(
            f"{path} is another notebook: session {found.id} has run none of its cells.",
            f"The session is that of {own}." if own else "`remoter sessions` shows what is whose.",
        )
    fillings = plan_updates(file.cells, story.executions.values(), file.saved)
    runs = {filling.cell_index: filling.execution for filling in fillings if filling.execution}
    text = file.with_outputs(runs)
    if is_valid(file.text) and not is_valid(text):
        raise RemoterError(f"{path} would not be a valid notebook any more; it stays as it was.")
    if runs:
        replace_file(path, text)
    for filling in fillings:
        click.echo(
            f"Cell {filling.cell_index + 1}: {_fill_summary(filling.execution, filling.why)}"
        )
    filled = f"Filled {count_of(len(runs), 'cell')} of {path}."
    click.echo(filled if runs else f"Nothing was missing in {path}.")


def _fill_summary(run: Any, why: str) -> str:
    if run is None:
        return f"left alone, {why}"
    number = count_of(len(run.outputs), "output")
    return f"{number} of In [{run.count}]" + (f"; {why}" if why else "")
