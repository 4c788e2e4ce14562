"""The verb `log`: shows what happened in a session, in plain lines with times."""

from __future__ import annotations

import click

from remoter_kernel.cli.terminal import questions
from remoter_kernel.cli.words import session_ids
from remoter_kernel.front.reading.happenings import Chronicle
from remoter_kernel.front.reading.inquiries import finding

TITLES = {"evaluator.log": "The evaluator complained:", "kernel.log": "The kernel itself said:"}


@click.command()
@click.argument("session", shell_complete=session_ids)
@click.option("-f", "--follow", is_flag=True, help="Go on until the session ends.")
def log(session: str, follow: bool) -> None:
    """Show what happened in SESSION: fronts, requests, interrupts, deaths."""
    with finding(session, questions()) as found:
        chronicle = Chronicle()
        click.echo(chronicle.begin(found.about))
        reading = found.said("events", follow=follow)
        for said in reading:
            line = chronicle.tell(said)
            if line:
                click.echo(line)
        end = chronicle.end(reading.answer["session"])
        if end:
            click.echo(end)
        for name, title in TITLES.items():
            lines = reading.answer["tails"].get(name)
            if lines and (chronicle.has_trouble or name == "evaluator.log"):
                click.echo("\n".join(["", title, *(f"  {line}" for line in lines)]))
