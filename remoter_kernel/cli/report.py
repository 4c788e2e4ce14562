"""The verb `report`: writes one text for a bug report, without names, contents and secrets."""

from __future__ import annotations

from pathlib import Path

import click

from remoter_kernel.cli.params import remote_names
from remoter_kernel.cli.terminal import questions
from remoter_kernel.errors import HereLacks, Usage
from remoter_kernel.front.reading.fault_report import make_report
from remoter_kernel.front.reading.notebook_file import check_place, check_writable


@click.command()
@click.argument("name", required=False, shell_complete=remote_names)
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
        click.echo(make_report(name, questions()), nl=False)
        return
    _check_place(output, force=force)
    text = make_report(name, questions())
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _is_there(output) from None
    except OSError as error:
        message = f"{output} cannot be written: {error.strerror}."
        raise HereLacks(message, "Name a place where you may write.") from error
    click.echo(f"Wrote {output}. Read it before you post it.", err=True)


def _check_place(path: Path, *, force: bool) -> None:
    """Find out before anybody is asked; a device (/dev/stdout) has no place for a file beside."""
    if not path.exists():
        check_place(path)
    elif force:
        check_writable(path)
    else:
        raise _is_there(path)


def _is_there(path: Path) -> Usage:
    return Usage(f"{path} is there already.", "Name another file, or overwrite it with --force.")
