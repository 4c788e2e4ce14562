"""The parameters of verbs, and how a shell completes them; never by asking a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes import read_remotes
from remoter_kernel.local.config.remotes_toml import read_duration
from remoter_kernel.local.session.session_cache import load_sessions
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

OUTPUT, FORCE = "-o", "--force"  # of `run`; without the first, the second is the script's


class DurationParam(click.ParamType):  # type: ignore[type-arg] # it has none in older versions
    """So many seconds, or a duration as `remotes.toml` has it."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            seconds = read_duration(f"{text}s" if text[-1:].isdigit() else text)
        except ValueError as error:
            self.fail(f"Write {error}.", param, context)
        if seconds <= 0:
            self.fail("Write a time of more than 0.", param, context)
        return seconds


DURATION = DurationParam()


def complete_remote(
    _context: click.Context, _parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Complete the name of a remote."""
    try:
        remotes = read_remotes().all
    except RemoterError:
        return []
    return [
        _completion_item(name, remote.host)
        for name, remote in remotes.items()
        if name.startswith(begin)
    ]


def complete_local_path(
    _context: click.Context, _parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Let the shell complete a path of this machine."""
    return [CompletionItem(begin, type="file")]


def complete_session(
    _context: click.Context, _parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Complete the id of a session, or `NAME/ID`, of those that were seen last."""
    return [
        _completion_item(word, told) for word, told in _cached_sessions() if word.startswith(begin)
    ]


def _completion_item(word: str, told: str) -> CompletionItem:
    """Offer a word with its help on one line: a shell takes a second one for a word."""
    return CompletionItem(word, help=plain_text(told))


def _cached_sessions() -> Iterator[tuple[str, str]]:
    for remote, sessions in load_sessions().items():
        for session in sessions:
            purpose = session["notebook"] or session["script"]
            told = " ".join(filter(None, (remote, session["state"], purpose)))
            yield session["id"], told
            yield f"{remote}/{session['id']}", told


class ScriptCommand(click.Command):
    """A command whose words after NAME and FILE are the script's: from the first that is no option.

    After `--`, all are. With `-c` there is no FILE.
    """

    def own_words(self, args: list[str]) -> tuple[list[str], list[str]]:
        """Return the command's own words, and those of the script, which click must not parse."""
        options = _options_of(self)
        own, arguments = split_script_arguments(args, options)
        if any(_option_in(word, {OUTPUT: True}) for word in own):
            return own, arguments
        options.pop(FORCE, None)
        return split_script_arguments(args, options)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse the command's own words; the others become the parameter `arguments`."""
        own, arguments = self.own_words(args)
        rest = super().parse_args(context, own)
        context.params["arguments"] = tuple(arguments)
        return rest

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete options, and after FILE what a script is most often given: files."""
        if incomplete.startswith("-"):
            return super().shell_complete(context, incomplete)
        return [CompletionItem(incomplete, type="file")]

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        """Tell of the arguments, too."""
        return [*super().collect_usage_pieces(context), "[ARGUMENT]..."]


def refuse_empty(command: click.Command, name: str, args: list[str], group: click.Context) -> None:
    """Refuse an empty word: most often a variable of the shell that is not set.

    An empty path would be the current folder, and each session's id begins with "". The words of a
    script are not checked.
    """
    words = command.own_words(args)[0] if isinstance(command, ScriptCommand) else args
    context = click.Context(command, group, info_name=name)
    given = command.make_parser(context).parse_args(list(words))[0]
    for parameter in command.get_params(context):
        values = given.get(str(parameter.name))
        if "" in (values if isinstance(values, (list, tuple)) else [values]):
            what = f"A word is empty where {parameter.get_error_hint(context)} should be"
            raise click.UsageError(f"{what}. Is a variable of your shell not set?", context)


def _options_of(command: click.Command) -> dict[str, bool]:
    """Return the spellings of a command's options, and whether a value follows."""
    options = [option for option in command.params if isinstance(option, click.Option)]
    own = {word: not option.is_flag for option in options for word in option.opts}
    return {**own, "--help": False}


def split_script_arguments(
    words: Sequence[str], options: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """Return the command's own words, and those of the script."""
    at, needed = 0, 2  # NAME and FILE
    while at < len(words):
        word = words[at]
        option = _option_in(word, options)
        if option:
            needed -= option == "-c"
            at += 1 + (options[option] and word == option)
        elif needed <= 0:
            return list(words[:at]), list(words[at + (word == "--") :])
        else:
            needed -= word == "-" or not word.startswith("-")
            at += 1
    return list(words), []


def _option_in(word: str, options: Mapping[str, bool]) -> str:
    """Return the option that a word gives: `-o OUT`, `-oOUT`, `--timeout=5`; else nothing."""
    if word in options:
        return word
    name = word.partition("=")[0] if word.startswith("--") else word[:2]
    return name if "-" != word != "--" and options.get(name, False) else ""
