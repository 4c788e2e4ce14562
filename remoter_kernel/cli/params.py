"""The kinds of words that verbs take, and how a shell completes them; never by asking a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes import read_remotes
from remoter_kernel.local.config.remotes_toml import read_duration
from remoter_kernel.local.session.known_sessions import load_sessions
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator


class DurationParam(click.ParamType):  # type: ignore[type-arg] # it has none in older versions
    """So many seconds, or a duration as `remotes.toml` has it."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            seconds = read_duration(f"{text}s" if text[-1:].isdigit() else text)
        except ValueError as error:
            self.fail(f"Write {error}.", param, context)
        if seconds <= 0:
            self.fail("Write more than nothing.", param, context)
        return seconds


DURATION = DurationParam()


def complete_remote(
    _context: click.Context, _parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Complete the name of a remote."""
    try:
        remotes = read_remotes().all
    except RemoterError:
        return []
    return [
        _completion_item(name, remote.host)
        for name, remote in remotes.items()
        if name.startswith(begin)
    ]


def complete_local_path(
    _context: click.Context, _parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Let the shell complete a path of this machine."""
    return [CompletionItem(begin, type="file")]


def complete_session(
    _context: click.Context, _parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Complete the id of a session, or `NAME/ID`, of those that were seen last."""
    return [
        _completion_item(word, told) for word, told in _cached_sessions() if word.startswith(begin)
    ]


def _completion_item(word: str, told: str) -> CompletionItem:
    """Offer a word; what is told of it stays on one line: a shell takes the next for a word."""
    return CompletionItem(word, help=plain_text(told))


def _cached_sessions() -> Iterator[tuple[str, str]]:
    for remote, sessions in load_sessions().items():
        for session in sessions:
            purpose = session["notebook"] or session["script"]
            told = " ".join(filter(None, (remote, session["state"], purpose)))
            yield session["id"], told
            yield f"{remote}/{session['id']}", told
