"""The words of a command before any of them is believed: which are its own, and which are empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTPUT, FORCE = "-o", "--force"  # without the first, the second is the script's


class ScriptCommand(click.Command):
    """What follows NAME and FILE is the script's, from the first word on that is no option here.

    After `--` everything is. With `-c` there is no FILE.
    """

    def own_words(self, args: list[str]) -> tuple[list[str], list[str]]:
        """Return the command's own words, and those of the script."""
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
    """Refuse a word that is empty: most often a variable of the shell that is not set.

    An empty path is the folder one is in, and any session's id begins with nothing. What a script
    is given is the script's.
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
