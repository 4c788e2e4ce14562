"""The verb `run`: runs a file or a line of code on a remote, as if it ran here."""

from __future__ import annotations

import getpass
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from remoter_kernel.cli.terminal import questions
from remoter_kernel.errors import Usage
from remoter_kernel.front.dialer import SessionDialer
from remoter_kernel.front.remotes import find_remote
from remoter_kernel.front.runner import Runner

FAILED = 1
SHOWN_AS_TEXT = ("execute_result", "display_data")


@click.command()
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("-c", "code", help="Run this code instead of a file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end instead.")
def run(name: str, file: Path | None, code: str | None, as_json: bool) -> None:
    """Run FILE, or the code after -c, on the remote NAME.

    What it prints comes here as it comes there. It stops at the first error, and the exit
    code says so. Ctrl-C interrupts it there. FILE is a file of this machine; `-` is stdin.
    """
    source = _source(file, code)
    runner = Runner(SessionDialer(partial(find_remote, name), questions()))
    teller = _Document() if as_json else _Terminal()
    can_ask = sys.stdin.isatty() and not as_json
    try:
        runner.start()
        reply = runner.run(source, teller.show, _ask if can_ask else None)
    finally:
        runner.stop()
    exit_code = _exit_code(reply)
    teller.finish(name, reply, exit_code)
    if exit_code:
        raise click.exceptions.Exit(exit_code)


def _source(file: Path | None, code: str | None) -> str:
    if (file is None) == (code is None):
        raise Usage("Name either a file or code (-c).", "See `remoter run --help`.")
    if code is not None:
        return code
    assert file is not None  # noqa: S101 - one of both is there
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise Usage(f"{file} cannot be read: {error}.", "Name a text file.") from error


def _exit_code(reply: dict[str, Any]) -> int:
    """Return 0 for code that went well, or that ended by `sys.exit(0)`."""
    if reply.get("status") == "ok":
        return 0
    is_exit = reply.get("ename") == "SystemExit"
    return 0 if is_exit and reply.get("evalue") in {"", "0", "None"} else FAILED


def _ask(prompt: str, is_secret: bool) -> str:
    return getpass.getpass(prompt) if is_secret else input(prompt)


class _Terminal:
    """Shows outputs as they come: text to stdout, errors to stderr."""

    def show(self, kind: str, content: dict[str, Any]) -> None:
        """Show one output."""
        if kind == "stream":
            stream = sys.stderr if content.get("name") == "stderr" else sys.stdout
            stream.write(str(content.get("text", "")))
            stream.flush()
        elif kind in SHOWN_AS_TEXT:
            click.echo(content.get("data", {}).get("text/plain", ""))
        elif kind == "error":
            click.echo("\n".join(content.get("traceback", [])), err=True)

    def finish(self, name: str, reply: dict[str, Any], exit_code: int) -> None:
        """Say nothing more: all has been shown."""


class _Document:
    """Collects outputs for one JSON document."""

    def __init__(self) -> None:
        self._outputs: list[dict[str, Any]] = []

    def show(self, kind: str, content: dict[str, Any]) -> None:
        """Keep one output in the words of a notebook file."""
        if kind == "stream":
            last = self._outputs[-1] if self._outputs else {}
            if (last.get("output_type"), last.get("name")) == ("stream", content["name"]):
                last["text"] += content["text"]
                return
        if kind in {"stream", "error", *SHOWN_AS_TEXT}:
            self._outputs.append({"output_type": kind, **content})

    def finish(self, name: str, reply: dict[str, Any], exit_code: int) -> None:
        """Print the document."""
        status = reply.get("status")
        words = {"remote": name, "status": status, "exit_code": exit_code, "outputs": self._outputs}
        click.echo(json.dumps(words, indent=2))
