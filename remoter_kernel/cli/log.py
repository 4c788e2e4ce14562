"""The verb `log`: shows what happened in a session, in plain lines with times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from remoter_kernel.cli.params import complete_session
from remoter_kernel.cli.terminal import terminal_prompter
from remoter_kernel.errors import Usage
from remoter_kernel.local.history.remote_query import locate_session
from remoter_kernel.local.history.transcript import SessionLogFormatter
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from remoter_kernel.local.history.remote_query import SessionRef

TITLES = {"evaluator.log": "The evaluator complained:", "kernel.log": "The kernel itself said:"}


@click.command()
@click.argument("session", shell_complete=complete_session)
@click.option("-f", "--follow", is_flag=True, help="Go on until the session ends.")
@click.option("--debug", is_flag=True, help="Show the evaluator's own log instead.")
@click.pass_context
def log(context: click.Context, session: str, follow: bool, debug: bool) -> None:
    """Show what happened in SESSION: who connected, what ran and how it ended, crashes."""
    if debug and follow:
        raise Usage("The evaluator's own log is not followed.", "Leave one of -f and --debug away.")
    if debug:  # it means what it means with any other verb, too
        context.find_root().obj.debug = True
    with locate_session(session, terminal_prompter()) as found:
        if debug:
            _print_debug_log(found)
        else:
            _print_events(found, follow=follow)


def _print_debug_log(found: SessionRef) -> None:
    """Show what the evaluator has logged: times in UTC, and no contents of cells."""
    _, said = found.query.ask({"verb": "debug", "session": found.id})
    text = plain_text(said.decode(errors="replace"), keeps_lines=True)
    click.echo(text or "It has logged nothing.", nl=not text.endswith("\n"))


def _print_events(found: SessionRef, *, follow: bool) -> None:
    chronicle = SessionLogFormatter()
    click.echo(chronicle.first_line(found.about))
    reading = found.read_journal("events", follow=follow)
    for said in reading:
        line = chronicle.line_of(said)
        if line:
            click.echo(line)
    end = chronicle.last_line(reading.answer["session"])
    if end:
        click.echo(end)
    for name, title in TITLES.items():
        lines = reading.answer["tails"].get(name)
        if lines and (chronicle.has_failure or name == "evaluator.log"):
            click.echo("\n".join(["", title, *(f"  {line}" for line in lines)]))
