"""Kernelspecs that lack `-P`, as earlier versions wrote them: reported, and mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from remoter_kernel.local.config import kernelspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def mend_with_notice() -> None:
    """Put `-P` into the kernelspecs that lack it, and say so on stderr."""
    mended, left = kernelspec.mend_kernelspecs()
    if mended:
        which = ", ".join(_spec_names(mended))
        click.echo(f"Put -P into {which}: files of a notebook's folder no longer run.", err=True)
    for error in left:
        click.echo(
            f"{error.what} It lets Python files of a notebook's folder run on this machine. "
            'Its owner puts "-P" before "-m" there, or installs remoter-kernel anew.',
            err=True,
        )


def warn_unsafe() -> list[str]:
    """Name the kernelspecs that lack `-P`, on stderr, too."""
    names = _spec_names(kernelspec.unsafe_kernelspecs())
    if names:
        click.echo(
            "These kernelspecs let Python files of a notebook's folder run on this machine: "
            f"{', '.join(names)}. `remoter check NAME` mends them, whichever remote NAME is.",
            err=True,
        )
    return names


def _spec_names(files: Iterable[Path]) -> list[str]:
    """Give the names by which Jupyter knows them, each once."""
    return list(dict.fromkeys(file.parent.name for file in files))
