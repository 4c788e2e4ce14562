"""The verbs about what is written down of remotes: `list` and `remove`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoter_kernel.cli.kernelspec_repair import warn_unsafe
from remoter_kernel.cli.params import complete_remote
from remoter_kernel.cli.terminal import format_columns, terminal_prompter
from remoter_kernel.errors import RemoterError, Usage, naming_remote
from remoter_kernel.local.config import kernelspec, remotes
from remoter_kernel.local.login.keeper.endpoint import end_logins
from remoter_kernel.local.session import session_cache

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def list_remotes(as_json: bool) -> None:
    """Show which remotes there are.

    A star marks the default. A remote without a kernelspec is not offered by Jupyter:
    `remoter add NAME --replace` writes it.
    """
    known = remotes.read_remotes()
    specs = kernelspec.kernelspec_names()
    unsafe = warn_unsafe()
    if as_json:
        document = {
            "config": str(remotes.config_path()),
            "default": known.default,
            "remotes": [_remote_to_dict(remote, specs) for remote in known.all.values()],
            "unsafe_kernelspecs": unsafe,
        }
        click.echo(json.dumps(document, indent=2))
        return
    if not known.all:
        click.echo("No remotes yet. To add one: remoter add NAME HOST", err=True)
        return
    rows = [("", "NAME", "HOST", "KERNEL", "PYTHON", "KERNELSPEC")]
    for name, remote in known.all.items():
        spec = kernelspec.kernelspec_name(name)
        star = "*" if name == known.default else ""
        shown_spec = spec if spec in specs else "-"
        rows.append((star, name, remote.host, remote.kernel, remote.python or "-", shown_spec))
    for line in format_columns(rows):
        click.echo(line)


@click.command()
@click.argument("name", shell_complete=complete_remote)
@click.option("--purge", is_flag=True, help="Log in, and remove its own environment there first.")
def remove(name: str, purge: bool) -> None:
    """Forget a remote and its kernelspec; without --purge nothing changes on the remote itself.

    --purge removes what `remoter add --install` made there, and nothing else.
    """
    if purge:
        _remove_remote_env(name)
    try:
        known = remotes.read_remotes().all.get(name)
        remotes.delete_remote(name)
    except Usage:
        # A kernelspec may be left from a remote that was deleted by hand.
        if not (remotes.is_name(name) and kernelspec.remove_kernelspec(name)):
            raise
        click.echo(f"Removed the kernelspec {kernelspec.kernelspec_name(name)}.")
        return
    end_logins(name)
    session_cache.discard_sessions(name)
    if known and known.remember:
        _clear_keyring(known)
    had_kernelspec = kernelspec.remove_kernelspec(name)
    click.echo(f"Removed {name}{' and its kernelspec' if had_kernelspec else ''}.")


def _clear_keyring(remote: remotes.Remote) -> None:
    """Let the keyring forget its passwords; a remote is removed, whatever comes of that."""
    from remoter_kernel.local.login.log_in import clear_secrets

    with contextlib.suppress(RemoterError):
        clear_secrets(remote)


def _remove_remote_env(name: str) -> None:
    """Remove the remote's own environment there, and say so."""
    from remoter_kernel.local.launch.remote_venv import remove_venv
    from remoter_kernel.local.login.keeper.keeper_login import log_in_by_keeper

    remote = remotes.named_remote(name)
    with (
        naming_remote(name),
        contextlib.closing(log_in_by_keeper(remote, terminal_prompter())) as login,
    ):
        was_there = remove_venv(login, remote)
    did = "Removed its environment" if was_there else "There was no environment of its own"
    click.echo(f"{did} on {remote.host}.")


def _remote_to_dict(remote: remotes.Remote, specs: Sequence[str]) -> dict[str, Any]:
    spec = kernelspec.kernelspec_name(remote.name)
    values = {**vars(remote), "env": dict(remote.env), "path_map": dict(remote.path_map)}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return {**plain, "kernelspec": spec if spec in specs else None}
