"""The verb `sessions`: shows which sessions there are, and how they are."""

from __future__ import annotations

import json
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from remoter_kernel.cli.params import complete_remote
from remoter_kernel.cli.terminal import format_columns, raise_first, terminal_prompter
from remoter_kernel.local.history.remote_query import query_remotes
from remoter_kernel.local.history.transcript import format_duration
from remoter_kernel.local.launch.launcher import is_over

if TYPE_CHECKING:
    from remoter_kernel.local.history.remote_query import SessionList

SHOWN_AFTER_END = 24 * 3600.0  # seconds: the table leaves out what ended before


@click.command()
@click.argument("name", required=False, shell_complete=complete_remote)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def sessions(name: str | None, as_json: bool) -> None:
    """Show the sessions on the remote NAME, or on all remotes.

    Sessions that ended more than a day ago are only in the JSON document.
    """
    with query_remotes([name] if name else None, terminal_prompter()) as listings:
        pass  # the logins are not needed to print
    for visit in (listing.query for listing in listings if listing.query.skipped):
        what = f"{visit.skipped} of its sessions have no id of one, and are left out."
        click.echo(f"remoter: {visit.remote.name}: {what}", err=True)
    if as_json:
        click.echo(json.dumps(_sessions_document(listings), indent=2))
    else:
        _print_table(listings)
    raise_first([listing.error for listing in listings if listing.error])


def _sessions_document(listings: list[SessionList]) -> dict[str, Any]:
    found = [
        {**session, "found_on": listing.query.remote.name}
        for listing in listings
        for session in listing.sessions
    ]
    errors = {each.query.remote.name: str(each.error) for each in listings if each.error}
    return {"sessions": found, "errors": errors}


def _print_table(listings: list[SessionList]) -> None:
    rows = [
        _table_row(session["remote"] or listing.query.remote.name, session)
        for listing in listings
        for session in listing.sessions
        if not is_over(session) or session["seconds"] < SHOWN_AFTER_END
    ]
    if rows:
        head = ("SESSION", "REMOTE", "KERNEL", "STATE", "CLIENTS", "STARTED", "NOTEBOOK")
        for line in format_columns([head, *rows]):
            click.echo(line)
    elif not any(listing.error for listing in listings):
        click.echo("No sessions.", err=True)


def _table_row(remote: str, session: dict[str, Any]) -> tuple[str, ...]:
    since = format_duration(session["seconds"])
    purpose = session["notebook"] or session.get("script", "")
    how_long = f"{since} ago" if is_over(session) else f"for {since}"
    return (
        session["id"],
        remote,
        session["kernel"],
        f"{session['state']} {how_long}",
        str(session["fronts"]),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(session["created"])),
        PurePosixPath(purpose.replace("\\", "/")).name or "-",
    )
