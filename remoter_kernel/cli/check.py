"""The verb `check`: tests a remote step by step, and explains the first step that fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from remoter_kernel.cli.kernelspec_repair import mend_with_notice
from remoter_kernel.cli.params import complete_remote
from remoter_kernel.cli.terminal import terminal_prompter
from remoter_kernel.local.run.checkup import Step, check_up
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.argument("name", shell_complete=complete_remote)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def check(name: str, as_json: bool) -> None:
    """Test a remote step by step, and explain the first step that fails.

    The steps are: name, connect, host key, login, Python, packages, lifetime, start, round
    trip, versions, times. The kernel that it starts ends with it.
    """
    mend_with_notice()
    steps = check_up(name, terminal_prompter())
    done = list(steps) if as_json else list(_print_steps(steps))
    error = done[-1].error
    if as_json:
        document = {
            "remote": name,
            "ok": error is None,
            "steps": [_step_to_dict(step) for step in done],
        }
        click.echo(json.dumps(document, indent=2))
    if error is not None:
        raise error


def _print_steps(steps: Iterator[Step]) -> Iterator[Step]:
    console = Console(highlight=False, soft_wrap=True)
    for step in steps:
        sign = Text("✗ ", "bold red") if step.error else Text("✓ ", "green")
        time = "" if step.seconds is None else f"{step.seconds * 1000:6.0f} ms"
        console.print(
            sign + Text(f"{step.name:<11}{time:>10}  ") + Text(plain_text(step.found), "dim")
        )
        yield step


def _step_to_dict(step: Step) -> dict[str, Any]:
    """Return a step in plain values; one that failed has its two sentences."""
    plain = {"step": step.name, "ok": step.error is None, "found": step.found}
    if step.error is not None:
        plain |= {"what": step.error.what, "advice": step.error.advice}
    return plain | {"seconds": step.seconds}
