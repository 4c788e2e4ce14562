"""The terminal at which a command was given: asks there, if somebody sits there."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.front.ssh.trust import Questions


_asking = threading.Lock()  # several logins may have a question; a person answers one at a time


class AtTerminal:
    """Asks on stderr, so that stdout stays what the command has to say."""

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> bool:
        """Show the fingerprint of an unknown host key, and ask."""
        with _asking:
            click.echo(f"{host} is not known yet. Its {kind} key has the fingerprint", err=True)
            click.echo(f"  {fingerprint}", err=True)
            return click.confirm("Is that the right one (ask its administrator)?", err=True)


def questions() -> Questions | None:
    """Say who may be asked: nobody, unless stdin and stderr are a terminal."""
    return AtTerminal() if sys.stdin.isatty() and sys.stderr.isatty() else None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
