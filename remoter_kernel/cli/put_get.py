"""The verbs `put` and `get`: copy files there and back."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remoter_kernel.cli.params import complete_local_path, complete_remote
from remoter_kernel.cli.progress import TransferProgressBar
from remoter_kernel.cli.terminal import raise_first, terminal_prompter
from remoter_kernel.errors import Usage, naming_remote
from remoter_kernel.local.config.remotes import named_remote, remote_cwd
from remoter_kernel.local.login.keeper.keeper_login import KeeperLogin, log_in_by_keeper
from remoter_kernel.local.transfer.file_transfer import Transfer
from remoter_kernel.local.transfer.transfer_progress import (
    TransferSpec,
    first_error,
    transfer_summary,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DRY_RUN = click.option("--dry-run", "is_dry", is_flag=True, help="Only say what would go where.")


@click.command()
@click.argument("name", shell_complete=complete_remote)
@click.argument("words", metavar="SRC... DST", nargs=-1, shell_complete=complete_local_path)
@DRY_RUN
def put(name: str, words: tuple[str, ...], is_dry: bool) -> None:
    """Send files, folders and globs of this machine to the remote NAME.

    DST is a place there, in the remote's `cwd` or the home; with a / at its end it is a folder,
    made if it is missing.
    """
    _transfer_files(name, words, is_put=True, is_dry=is_dry)


@click.command()
@click.argument("name", shell_complete=complete_remote)
@click.argument("words", metavar="SRC... DST", nargs=-1, shell_complete=complete_local_path)
@DRY_RUN
def get(name: str, words: tuple[str, ...], is_dry: bool) -> None:
    """Fetch files, folders and globs from the remote NAME to this machine.

    SRC are places there, in the remote's `cwd` or the home: quote a glob, so that the shell
    leaves it alone. DST is a place here; with a / at its end it is a folder, made if missing.
    """
    _transfer_files(name, words, is_put=False, is_dry=is_dry)


def _transfer_files(name: str, words: tuple[str, ...], *, is_put: bool, is_dry: bool) -> None:
    verb = "put" if is_put else "get"
    if len(words) < 2:  # noqa: PLR2004 - a source and a destination
        raise Usage(
            "The destination is missing.", f"Write: remoter {verb} NAME FILE... DESTINATION"
        )
    remote = named_remote(name)
    there = remote_cwd(remote.cwd, remote.path_map, Path.cwd(), Path.home())
    *sources, to = words
    spec = TransferSpec(
        is_put=is_put, sources=tuple(sources), to=to, here=Path.cwd(), there=there, is_dry=is_dry
    )

    @contextlib.contextmanager
    def log_in(in_doubt: bool) -> Iterator[KeeperLogin]:
        """Use the keeper's login; it is asked for again after a cut."""
        with naming_remote(remote.name):
            login = log_in_by_keeper(remote, terminal_prompter(), in_doubt=in_doubt)
        with contextlib.closing(login):
            yield login

    with TransferProgressBar() as bar:
        result = Transfer(spec, remote, log_in, bar.on_progress).run()
    for line in result.dry_run:
        click.echo(line)
    for line in result.left_out:
        click.echo(f"Left out: {line}", err=True)
    if result.has_arrived:
        click.echo(transfer_summary(spec, name, result), err=True)
    first = first_error(result.troubles)
    raise_first([first, *result.troubles[1:]] if first else [])
