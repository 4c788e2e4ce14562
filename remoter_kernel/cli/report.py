"""The verb `report`: writes one text for a bug report, without names, contents and secrets."""

from __future__ import annotations

from pathlib import Path

import click

from remoter_kernel.cli.params import complete_remote
from remoter_kernel.cli.terminal import terminal_prompter
from remoter_kernel.errors import HereLacks, Usage
from remoter_kernel.local.history.fault_report import make_report
from remoter_kernel.local.history.notebook_file import check_destination, check_writable


@click.command()
@click.argument("name", required=False, shell_complete=complete_remote)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it into a new file.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
def report(name: str | None, output: Path | None, force: bool) -> None:
    """Write one text for a bug report about the remote NAME, or the default one.

    It has versions, states and the ends of the logs, with the names of hosts and people, paths,
    addresses and contents taken out. Nothing is sent anywhere: read it before you post it.
    """
    if output is None:
        click.echo(make_report(name, terminal_prompter()), nl=False)
        return
    _check_output_file(output, force=force)
    text = make_report(name, terminal_prompter())
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _already_exists(output) from None
    except OSError as error:
        message = f"{output} cannot be written: {error.strerror}."
        raise HereLacks(message, "Name a place where you may write.") from error
    click.echo(f"Wrote {output}. Read it before you post it.", err=True)


def _check_output_file(path: Path, *, force: bool) -> None:
    """Check before the login asks anything; no file can be put beside a device (/dev/stdout)."""
    if not path.exists():
        check_destination(path)
    elif force:
        check_writable(path)
    else:
        raise _already_exists(path)


def _already_exists(path: Path) -> Usage:
    return Usage(f"{path} is there already.", "Name another file, or overwrite it with --force.")
