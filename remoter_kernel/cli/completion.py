"""The verb `completion`: prints what makes a shell complete remoter's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_REMOTER_COMPLETE"  # which the printed script sets when it calls `remoter` (click)
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the lines that let SHELL complete verbs, options, remotes, sessions and files.

    bash, in ~/.bashrc: eval "$(remoter completion bash)"

    zsh, in ~/.zshrc: eval "$(remoter completion zsh)"

    fish: remoter completion fish > ~/.config/fish/completions/remoter.fish
    """
    completer = get_completion_class(shell)
    assert completer is not None  # noqa: S101 - click knows all of SHELLS
    source = completer(context.find_root().command, {}, "remoter", VARIABLE)
    click.echo(source.source())
