"""The terminal at which a command was given: asks there, if somebody sits there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from remoter_kernel.front.ssh.trust import Questions


class AtTerminal:
    """Asks on stderr, so that stdout stays what the command has to say."""

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> bool:
        """Show the fingerprint of an unknown host key, and ask."""
        click.echo(f"{host} is not known yet. Its {kind} key has the fingerprint", err=True)
        click.echo(f"  {fingerprint}", err=True)
        return click.confirm("Is that the right one (ask its administrator)?", err=True)


def questions() -> Questions | None:
    """Say who may be asked: nobody, unless stdin and stderr are a terminal."""
    return AtTerminal() if sys.stdin.isatty() and sys.stderr.isatty() else None
