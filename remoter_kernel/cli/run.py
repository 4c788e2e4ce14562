"""The verb `run`: runs a script, a notebook or a line of code on a remote, as if it ran here."""

from __future__ import annotations

import contextlib
import getpass
import json
import signal
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from remoter_kernel.cli.params import DURATION, ScriptCommand, complete_remote
from remoter_kernel.cli.renderers import (
    JsonLinesRenderer,
    JsonRenderer,
    NotebookRenderer,
    OutputRenderer,
    RunResult,
    TerminalRenderer,
)
from remoter_kernel.cli.terminal import read_exclusively, terminal_prompter
from remoter_kernel.errors import LoginRefused, RemoterError, Unreachable, Usage
from remoter_kernel.local.config.remotes import find_remote
from remoter_kernel.local.history.executions import language_info_of
from remoter_kernel.local.history.notebook_file import check_destination, is_valid
from remoter_kernel.local.history.transcript import format_duration
from remoter_kernel.local.run.code_to_run import Program, code_program, decode_script, read_program
from remoter_kernel.local.run.runner import LeftRunning, Runner, SubmittedCell, exit_code_of_all
from remoter_kernel.local.session.dialer import SessionDialer
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.local.run.runner import Ask

DETACH_HINT_AFTER = 1.0  # seconds from Ctrl-C; most code has ended by then
LINK_LOST = "the link is lost; the code goes on there, and its output comes when the link is back."
SEE_HELP = "See `remoter run --help`."
EXIT_SIGNAL_BASE = 128  # and the signal's number: what shells say of a command that it has ended
WHOLE_PATH = click.Path(path_type=Path)


@click.command(cls=ScriptCommand)
@click.argument("name", shell_complete=complete_remote)
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("-c", "code", metavar="CODE", help="Run this code instead of a file.")
@click.option(
    "-o", "output", metavar="OUT.ipynb", type=WHOLE_PATH, help="Write the notebook as run."
)
@click.option("--force", is_flag=True, help="With -o: replace a file that is there.")
@click.option("--timeout", metavar="TIME", type=DURATION, help="End it after so long: 90, 10m, 2h.")
@click.option("--detach", is_flag=True, help="Print the session's id, and let it run there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end instead.")
@click.option("--events", is_flag=True, help="Print each output as a line of JSON instead.")
def run(  # noqa: PLR0917 - click hands them over by name
    name: str,
    file: Path | None,
    code: str | None,
    output: Path | None,
    force: bool,
    timeout: float | None,
    detach: bool,
    as_json: bool,
    events: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run FILE, or the code after -c, on the remote NAME.

    FILE is a script (.py, .R) or a notebook (.ipynb) of this machine; `-` is stdin. What it
    prints comes here as it comes there. It stops at the first error, and the exit code says
    so. Ctrl-C interrupts it there; Ctrl-C again leaves it running there.

    What follows FILE goes to the script.
    """
    if detach and (output or timeout or events):
        raise Usage(
            "-o, --timeout and --events need somebody here until the end.",
            "Without them: `remoter outputs SESSION --notebook OUT.ipynb` writes a notebook later.",
        )
    if as_json and events:
        raise Usage("Choose either --json or --events.", SEE_HELP)
    program = _read_program_from(file, code, arguments)
    _check_output(program, output, force=force)
    runner = _runner_for(name, program)
    with _signal_handlers():
        if detach:
            _detach(name, runner, program, as_json=as_json)
            return
        renderers = _renderers_for(program, output, force=force, as_json=as_json, events=events)
        ask = partial(_prompt_for_input, aside=as_json or events)
        is_read = str(file) == "-"  # then stdin is at its end, and has no answers
        attached = _AttachedRun(name, runner, program, renderers)
        raise click.exceptions.Exit(attached.run(timeout or 0.0, None if is_read else ask))


def _runner_for(name: str, program: Program) -> Runner:
    dialer = SessionDialer(partial(find_remote, name), terminal_prompter())
    dialer.session_request = replace(dialer.session_request, script=program.name)
    dialer.on_slow_host = partial(_print_about, name)
    return Runner(dialer)


def _print_about(remote: str, sentence: str) -> None:
    click.echo(f"remoter: {remote}: {sentence}", err=True)


def _read_program_from(file: Path | None, code: str | None, arguments: tuple[str, ...]) -> Program:
    if file and code is not None:
        raise Usage("Name either a file or code (-c).", SEE_HELP)
    if code is not None:
        return code_program(code, arguments)
    if file is None:
        raise Usage("Name a file or code (-c).", "Put the remote first: remoter run NAME train.py")
    if str(file) == "-":
        return code_program(decode_script(sys.stdin.buffer.read(), "stdin"), arguments, "-")
    return read_program(file, arguments)


def _check_output(program: Program, output: Path | None, *, force: bool) -> None:
    """Refuse, before anything runs, what could not be written after it."""
    if output is None:
        if force:
            raise Usage("--force lets -o replace a file, and nothing else.", SEE_HELP)
        return
    if program.notebook is None:
        raise Usage(
            f"-o writes the notebook that was run, and {program.name} is none.",
            "Write what it prints to a file (>), or name a notebook (.ipynb).",
        )
    if not is_valid(program.notebook.text):
        raise Usage(
            f"{program.name} is no valid notebook, and so none could be written after it has run.",
            "Open it in Jupyter and save it.",
        )
    check_destination(output, may_replace=force)


def _renderers_for(
    program: Program, output: Path | None, *, force: bool, as_json: bool, events: bool
) -> tuple[OutputRenderer, ...]:
    told: OutputRenderer = TerminalRenderer(only_errors=bool(output))
    if as_json or events:
        told = JsonRenderer() if as_json else JsonLinesRenderer()
    if output is None or program.notebook is None:
        return (told,)
    return (told, NotebookRenderer(program.notebook, output, may_replace=force))


def _submit(runner: Runner, program: Program, show: Any, ask: Any = None) -> list[SubmittedCell]:
    """Send all cells at once: they run to their end, though this machine goes away."""
    runner.run_silently(program.preamble(runner.language))
    return [runner.submit(piece, partial(show, piece), ask) for piece in program.cells]


def _detach(remote: str, runner: Runner, program: Program, *, as_json: bool) -> None:
    """Start it there, print its id, and leave."""
    trouble: RemoterError | None = None
    try:
        runner.start()
        _print_notices(runner)
        _submit(runner, program, lambda _piece, _kind, _content: None)
        runner.detach()
    except RemoterError as error:
        trouble = error
    finally:
        runner.stop()
    name = runner.session
    if as_json:
        words: dict[str, Any] = {"remote": remote, "session": name}
        if trouble:
            words |= {"exit_code": trouble.exit_code, "error": str(trouble)}
        click.echo(json.dumps(words, indent=2))
    if trouble:
        raise trouble
    if as_json:
        return
    click.echo(name)
    if sys.stdout.isatty() and sys.stderr.isatty():
        click.echo(f"It runs there. To follow it: remoter outputs -f {name}", err=True)


@dataclass
class _AttachedRun:
    """One run whose outputs are shown here."""

    _remote: str
    _runner: Runner
    _program: Program
    _renderers: tuple[OutputRenderer, ...]
    _cells: list[SubmittedCell] = field(default_factory=list)

    def run(self, timeout: float, ask: Ask | None) -> int:
        """Run it to its end, show that, and return the exit code."""
        runner = self._runner
        runner.on_ctrl_c = self._schedule_hint
        runner.on_loss = partial(_print_link_state, self._remote)
        try:
            try:
                runner.start()
                _print_notices(runner)
                for each in self._renderers:
                    if isinstance(each, NotebookRenderer):
                        each.language_info = language_info_of(runner.kernel_info)
                self._cells = _submit(runner, self._program, self._show, ask)
                runner.wait(timeout)
            except LeftRunning:
                runner.detach()
                raise
            except (Unreachable, LoginRefused) as error:
                if runner.link.ever_connected:
                    runner.close()
                    raise _session_kept_error(runner, error) from error
                raise
            finally:
                runner.stop()
        except RemoterError as error:
            self._finish("error", error.exit_code, str(error))
            raise
        replies = [cell.reply or {} for cell in self._cells if not cell.code_cell.may_fail]
        code = exit_code_of_all(replies)
        statuses = (str(reply.get("status") or "error") for reply in replies) if code else ()
        self._finish(next((word for word in statuses if word != "ok"), "ok"), code)
        return code

    def _show(self, piece: Any, kind: str, content: dict[str, Any]) -> None:
        for each in self._renderers:
            each.show(piece, kind, content)

    def _finish(self, status: str, code: int, error: str = "") -> None:
        ending = RunResult(self._remote, self._runner.session, status, code, error)
        for each in self._renderers:
            each.finish(ending)

    def _schedule_hint(self) -> None:
        hint = partial(click.echo, "Interrupted. Ctrl-C again leaves it running there.", err=True)
        if sys.stderr.isatty():
            self._runner.reactor.call_later(DETACH_HINT_AFTER, hint)


def _print_notices(runner: Runner) -> None:
    for notice in runner.notices:
        _print_about(runner.dialer.remote.name, notice)


def _session_kept_error(runner: Runner, error: RemoterError) -> RemoterError:
    """Add to an error of the link that the session goes on."""
    what, advice = runner.reattach_hint("goes on there")
    error.advice = f"{error.advice} {what} {advice}".strip()
    return error


def _prompt_for_input(prompt: str, is_secret: bool, *, aside: bool) -> str:
    """Answer `input()` of the code as it would here; `aside`: stdout is for JSON alone."""
    prompt = plain_text(prompt, keeps_lines=True)
    if terminal_prompter() is not None:  # a login may ask here, too: one after the other
        if not (aside or is_secret or sys.stdout.isatty()):  # the prompt is a part of the output
            click.echo(prompt, nl=False)
            prompt = ""
        return read_exclusively(prompt, is_shown=not is_secret)
    if is_secret:
        return getpass.getpass(prompt)
    if aside:
        click.echo(prompt, nl=False, err=True)
        prompt = ""
    return input(prompt)


def _print_link_state(remote: str, seconds: float | None) -> None:
    """Print that the link is lost (None), or back after so many seconds."""
    back = f"the link is back after {format_duration(seconds)}." if seconds else LINK_LOST
    _print_about(remote, back)


@contextlib.contextmanager
def _signal_handlers() -> Iterator[None]:
    """End the session where this command is to end; leave it where its terminal has gone."""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(EXIT_SIGNAL_BASE + number)

    def leave(number: int, _frame: object) -> NoReturn:
        error = LeftRunning("The terminal has gone.")
        error.exit_code = EXIT_SIGNAL_BASE + number
        raise error

    actions = {"SIGTERM": end, "SIGHUP": leave}  # Windows has only the first
    numbers = {getattr(signal, name): act for name, act in actions.items() if hasattr(signal, name)}
    before = {number: signal.getsignal(number) for number in numbers}
    for number, act in numbers.items():
        if before[number] is signal.SIG_DFL:  # `nohup` has set SIG_IGN, which stays
            signal.signal(number, act)
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
