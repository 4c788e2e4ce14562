"""The verb `stop`: ends sessions, busy ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from remoter_kernel.cli.params import complete_remote, complete_session
from remoter_kernel.cli.terminal import raise_first, terminal_prompter
from remoter_kernel.errors import NoSuchSession, RemoterError, Usage
from remoter_kernel.local.history.remote_query import (
    SessionRef,
    query_remotes,
    resolve_session,
    split_session_name,
)
from remoter_kernel.local.launch.launcher import is_over

if TYPE_CHECKING:
    from remoter_kernel.local.history.remote_query import SessionList

SENTENCES = {
    "stopped": "{} was stopped.",
    "killed": "{} did not end by itself; it was killed.",
    "gone": "{} had ended already.",
}


@click.command()
@click.argument("words", metavar="SESSION...", nargs=-1, shell_complete=complete_session)
@click.option(
    "--all",
    "everywhere",
    metavar="NAME",
    shell_complete=complete_remote,
    help="Stop all sessions of this remote.",
)
def stop(words: tuple[str, ...], everywhere: str | None) -> None:
    """End sessions. What they are doing is lost; their outputs stay for two weeks.

    A session that does not end within 8 seconds is killed, with all that it started in its
    process group.
    """
    if bool(words) == bool(everywhere):
        raise Usage("Name either sessions or a remote (--all).", "See `remoter stop --help`.")
    names = {split_session_name(word)[0] for word in words}
    where = [everywhere] if everywhere else None if "" in names else sorted(names)
    with query_remotes(where, terminal_prompter()) as listings:
        if everywhere:
            found = _sessions_of_remote(listings)
        else:
            found = {each.id: each for each in (resolve_session(word, listings) for word in words)}
        errors = [error for error in map(_stop_session, found.values()) if error]
    if everywhere and not found:
        click.echo(f"No sessions of {everywhere}.", err=True)
    raise_first(errors)


def _sessions_of_remote(listings: list[SessionList]) -> dict[str, SessionRef]:
    """Find what this remote started: other remotes may be the same host, and the same person."""
    (listing,) = listings
    if listing.error:
        raise listing.error
    return {
        session["id"]: SessionRef(listing.query, session)
        for session in listing.sessions
        if session["state"] != "ended" and session["remote"] == listing.query.remote.name
    }


def _stop_session(found: SessionRef) -> RemoterError | None:
    """Stop one session and print how; return the error if that failed."""
    remote = found.query.remote.name
    how, host = found.query.stop(found.id)
    if how == "gone" and is_over(found.about):
        return NoSuchSession(f"Session {found.id} had ended already.", remote=remote)
    if how == "elsewhere":
        return RemoterError(
            f"Session {found.id} lives on {host}, which this login did not reach.",
            "Add that host as a remote, and stop it from there.",
            remote=remote,
        )
    if how not in SENTENCES:
        return RemoterError(f"Session {found.id} could not be ended.", remote=remote)
    click.echo(SENTENCES[how].format(f"{remote}/{found.id}"))
    return None
