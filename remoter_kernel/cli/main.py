"""The command `remoter`: finds the verb, and prints errors, which nothing else does."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from remoter_kernel import __version__, logs
from remoter_kernel.cli.params import refuse_empty
from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes_toml import did_you_mean
from remoter_kernel.local.private_files import begin_log_file as begin_log
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130  # what shells say of a command that Ctrl-C ended
EXIT_SIGPIPE = 141  # and of one that SIGPIPE ended, as its output was not read any more
EXIT_INTERNAL_ERROR = 1


class VerbEntryPoint(NamedTuple):
    """Where a verb is. Its module is imported when it is used: `list` needs no SSH."""

    module: str
    function: str
    summary: str


VERBS = {
    "add": VerbEntryPoint(
        "add", "add", "Add a remote: log in, find its Pythons, and create the Jupyter kernel."
    ),
    "list": VerbEntryPoint("list_remove", "list_remotes", "Show which remotes there are."),
    "remove": VerbEntryPoint("list_remove", "remove", "Remove a remote and its Jupyter kernel."),
    "check": VerbEntryPoint(
        "check", "check", "Test a remote step by step, and explain what fails."
    ),
    "sessions": VerbEntryPoint(
        "sessions", "sessions", "Show which sessions there are, and how they are."
    ),
    "attach": VerbEntryPoint("attach", "attach", "Open a console on a session."),
    "stop": VerbEntryPoint("stop", "stop", "End sessions, busy ones too."),
    "log": VerbEntryPoint("log", "log", "Show what happened in a session."),
    "report": VerbEntryPoint(
        "report", "report", "Write one text for a bug report, without names and secrets."
    ),
    "outputs": VerbEntryPoint(
        "outputs", "outputs", "Show a session's outputs, or put them in a notebook."
    ),
    "run": VerbEntryPoint("run", "run", "Run a script, a notebook or a line of code on a remote."),
    "put": VerbEntryPoint("put_get", "put", "Send files there; goes on where it was after a cut."),
    "get": VerbEntryPoint("put_get", "get", "Fetch files from there."),
    "completion": VerbEntryPoint("completion", "completion", "Print the shell completion script."),
    "demo": VerbEntryPoint(
        "demo", "demo", "Show it all on this machine, SSH included, in 20 seconds."
    ),
}


@dataclass
class CliContext:
    """Options of the whole command."""

    debug: bool = False


def _enable_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj.debug = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_enable_debug,
        help="With an error, show where in the code it came from.",
    )


class LazyGroup(click.Group):
    """A group whose verbs are imported on use, and whose errors are sentences."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Name the verbs in the order in which people need them."""
        return list(VERBS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Import a verb; each of them takes --debug, too."""
        if name not in VERBS:
            return None
        verb = VERBS[name]
        module = importlib.import_module(f"remoter_kernel.cli.{verb.module}")
        command: click.Command = getattr(module, verb.function)
        if not any(option.name == "debug" for option in command.params):  # `log` has its own
            command.params.append(_debug_option())
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or suggest the nearest one; none of its own words may be empty."""
        # During completion, `resilient_parsing`, there is only the beginning of a line.
        is_typed = args and not (args[0].startswith("-") or context.resilient_parsing)
        if is_typed and args[0] not in VERBS:
            context.fail(f'There is no verb "{args[0]}"{did_you_mean(args[0], VERBS)}.')
        name, command, words = super().resolve_command(context, args)
        if command and not context.resilient_parsing:
            refuse_empty(command, str(name), words, context)
        return name, command, words

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the verbs without importing them."""
        options = click.Command.shell_complete(self, context, incomplete)
        verbs = [
            CompletionItem(name, help=verb.summary)
            for name, verb in VERBS.items()
            if name.startswith(incomplete)
        ]
        return verbs + options

    def invoke(self, context: click.Context) -> Any:
        """Run a verb; exit without a word once its output is not read any more (`| head`)."""
        try:
            return super().invoke(context)
        except BrokenPipeError:
            # Python flushes stdout once more at its exit, and would print a traceback then.
            with contextlib.suppress(OSError, io.UnsupportedOperation):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(EXIT_SIGPIPE) from None

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT002 - click's signature
        **extra: Any,
    ) -> Any:
        """Run and exit; every error becomes one or two sentences on stderr, here and only here."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        cli_context = CliContext()
        try:
            code = super().main(
                args, prog_name, complete_var, standalone_mode=False, obj=cli_context, **extra
            )
        except click.ClickException as err:
            err.show()
            code = err.exit_code
        except click.Abort:  # Ctrl-C, or the end of input where an answer was due
            code = EXIT_INTERRUPTED
        except RemoterError as err:
            code = _print_error(cli_context, err, str(err), err.exit_code)
        except Exception as err:  # noqa: BLE001 - the last place before the person
            code = _print_error(
                cli_context, err, _internal_error(cli_context, err), EXIT_INTERNAL_ERROR
            )
        sys.exit(code if isinstance(code, int) else 0)  # click returns what the verb returned


def _internal_error(cli_context: CliContext, err: Exception) -> str:
    # Of stdout: whoever writes a file makes an error of its own of that.
    if isinstance(err, OSError) and err.errno == errno.ENOSPC:
        return f"What is to be printed cannot be written: {err.strerror}."
    advice = "" if cli_context.debug else " With --debug it shows where; please report that."
    return f"This is a fault in remoter itself: {type(err).__name__}: {err}.{advice}"


def _print_error(cli_context: CliContext, err: Exception, sentence: str, code: int) -> int:
    lines = traceback.format_exception(err) if cli_context.debug else []
    with contextlib.suppress(OSError):  # the terminal may be gone
        # An exception of a library may quote the remote, too.
        said = "".join([*lines, f"remoter: {sentence}"])
        click.echo(plain_text(said, keeps_lines=True), err=True)
    return code


def _open_streams() -> None:
    """Open what is missing of stdin, stdout, stderr: pythonw.exe of Windows has none."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - to the end


def _use_utf8() -> None:
    """Let no character be an error: write UTF-8 to a file or a pipe, to a terminal what it can."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")


@click.group(cls=LazyGroup, params=[_debug_option()], no_args_is_help=True)
@click.version_option(__version__, prog_name="remoter")
def remoter() -> None:
    """Your notebook here, your kernel there, and nothing lost in between."""


def main() -> None:
    """Be the command `remoter`."""
    _open_streams()
    _use_utf8()
    if logs.wanted():
        with contextlib.suppress(RemoterError):  # no home: what needs one says so itself
            begin_log("command")
    remoter()
