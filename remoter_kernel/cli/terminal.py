"""The terminal at which a command was given: asks there, if somebody sits there."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import unicodedata
from typing import TYPE_CHECKING

import click

from remoter_kernel.front.questions import (
    NotAnswered,
    Trust,
    about_host_key,
    asked_by,
    said_by,
)
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remoter_kernel.front.questions import Prompt, Questions


_asking = threading.Lock()  # several logins may have a question; a person answers one at a time
LEAST_ROOM = 20  # columns beside a name: a narrower terminal breaks lines as it likes


class AtTerminal:
    """Asks on stderr, so that stdout stays what the command has to say."""

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> Trust:
        """Show the fingerprint of an unknown host key, and ask."""
        with _asking, _declining(host):
            question = f"{about_host_key(host, kind, fingerprint)} once: do not remember it"
            words = click.Choice([each.value for each in Trust])
            return Trust(click.prompt(question, type=words, err=True))

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Ask what a server, or a key, wants to know; what must stay hidden is not shown."""
        with _asking, _declining(host):
            columns = shutil.get_terminal_size().columns
            for line in instruction.splitlines():
                mark = said_by(host) if line.startswith(said_by(host)) else ""
                for row in _rows(line.removeprefix(mark), mark, columns):
                    click.echo(row, err=True)
            return [_ask_one(host, prompt, columns) for prompt in prompts]


def _ask_one(host: str, prompt: Prompt, columns: int) -> str:
    *rows, last = _rows(prompt.text, asked_by(host), columns)
    for row in rows:
        click.echo(row, err=True)
    said = click.prompt(
        last.rstrip(),
        default="",
        hide_input=not prompt.is_shown,
        prompt_suffix=" ",
        show_default=False,
        err=True,
    )
    return str(said)


def _rows(text: str, mark: str, columns: int) -> list[str]:
    """Break a line as the terminal would, with the mark of whoever says it before each row.

    Else whatever stands just behind the edge would seem to be a line of its own.
    """
    if not mark:
        return [text]
    room = max(LEAST_ROOM, columns - len(mark) - 1)
    rows, used = [mark], 0
    for sign in text:
        width = 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        if used + width > room:
            rows.append(mark)
            used = 0
        rows[-1] += sign
        used += width
    return rows


@contextlib.contextmanager
def _declining(host: str) -> Iterator[None]:
    """Ctrl-C or Ctrl-D at a question ends the command, and says so."""
    try:
        yield
    except click.Abort:
        click.echo(err=True)
        message = f"{host or 'remoter'} asked a question that was not answered."
        raise NotAnswered(message, "Try again when the answer is at hand.") from None


def questions() -> Questions | None:
    """Say who may be asked: nobody, unless stdin and stderr are a terminal."""
    return AtTerminal() if sys.stdin.isatty() and sys.stderr.isatty() else None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its columns as wide as they must be."""
    rows = [[plain_text(word) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
