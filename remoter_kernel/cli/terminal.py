"""The terminal at which a command was given: asks there, if somebody sits there."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING

import click

from remoter_kernel.front.questions import NotAnswered, Trust
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remoter_kernel.front.questions import Prompt, Questions


_asking = threading.Lock()  # several logins may have a question; a person answers one at a time


class AtTerminal:
    """Asks on stderr, so that stdout stays what the command has to say."""

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> Trust:
        """Show the fingerprint of an unknown host key, and ask."""
        with _asking, _declining(host):
            click.echo(f"{host} is not known yet. Its {kind} key has the fingerprint", err=True)
            click.echo(f"  {fingerprint}", err=True)
            question = "Is that the right one (its administrator knows)? once: do not remember it"
            words = click.Choice([each.value for each in Trust])
            return Trust(click.prompt(question, type=words, err=True))

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Ask what a server, or a key, wants to know; what must stay hidden is not shown."""
        with _asking, _declining(host):
            if instruction:
                click.echo(instruction, err=True)
            return [
                click.prompt(
                    f"[{host}] {prompt.text}".rstrip(),
                    default="",
                    hide_input=not prompt.is_shown,
                    prompt_suffix=" ",
                    show_default=False,
                    err=True,
                )
                for prompt in prompts
            ]


@contextlib.contextmanager
def _declining(host: str) -> Iterator[None]:
    """Ctrl-C or Ctrl-D at a question ends the command, and says so."""
    try:
        yield
    except click.Abort:
        click.echo(err=True)
        message = f"{host} asked a question that was not answered."
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
