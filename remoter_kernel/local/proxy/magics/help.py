"""How each verb of `%remoter` is used: for `%remoter help VERB`, Tab and Shift-Tab (pure)."""

from __future__ import annotations

from typing import NamedTuple

from remoter_kernel.errors import Usage
from remoter_kernel.local.config.remotes_toml import did_you_mean

# Kinds of words; anything else is the words themselves, "on|off".
VERB, SESSION, LOCAL_PATH, REMOTE_PATH = "a verb", "a session", "a path here", "a path there"


HELP = {
    "status": "How the link and the session are, or their open requests: status [--requests].",
    "outputs": "What cells of this session said and no client took: after a crash, a flood.",
    "log": "What happened in this session.",
    "put": "Send files of this side there: put SRC... DST [--dry-run].",
    "get": "Fetch files from there: get SRC... DST [--dry-run].",
    "keep": "Let the session stay when this kernel is shut down.",
    "push": "Send objects of this side's kernel (that of %%local) to the other one.",
    "pull": "Bring objects of the kernel there to this side's.",
    "stop": "End the session, whatever it is doing.",
    "timer": "After each cell: the time there, the time on the link, the bytes.",
    "help": "What can be asked, or what one verb does: %remoter help [VERB].",
}

OBJECTS_HELP = (
    "Plain values, arrays and frames are carried as data. --yes: do not ask about what is larger\n"
    "than 64 MiB. --pickle: carry any other object, too, between two Pythons. To unpickle is to\n"
    "run code which whoever made the pickle has chosen: only for a side that you trust as much\n"
    "as the other one.\n"
)


LOCAL_HELP = (
    "%%local\n"
    "    Run this cell on this side, in a Python kernel of this machine.\n"
    "    %local CODE runs one line there; %remoter push and pull carry objects.\n"
)


class VerbUsage(NamedTuple):
    """How one verb is used."""

    arguments: str  # that follow it, as a person reads them
    example: str
    shows: str = ""  # what the example does
    kinds: tuple[str, ...] = ()  # of these words; the last one is that of all that follow
    more: str = ""


USAGES = {
    "status": VerbUsage(
        "[--requests]",
        "%remoter status",
        "the link, the session, the login, bytes sent and received",
        ("--requests",),
        "--requests: each request that is not over yet instead, at both ends: its id, its kind,\n"
        "how far it has come, for how long it is there, and why.\n",
    ),
    "outputs": VerbUsage(
        "[SESSION]",
        "%remoter outputs 7f3a9c",
        "all that this session has said; without a session: what this one's cells have missed",
        (SESSION,),
    ),
    "log": VerbUsage(
        "[SESSION]",
        "%remoter log",
        "clients, requests and how they ended, interrupts, restarts, deaths, each with its time",
        (SESSION,),
    ),
    "put": VerbUsage(
        "SRC... DST",
        "%remoter put data/*.csv ~/data/",
        "sends files there",
        (LOCAL_PATH, REMOTE_PATH),
    ),
    "get": VerbUsage(
        "SRC... DST", "%remoter get runs/7.log ./", "fetches files", (REMOTE_PATH, LOCAL_PATH)
    ),
    "push": VerbUsage(
        "x [y ...] [as NAME] [--yes] [--pickle]",
        "%remoter push frame",
        "sends a variable of this side there",
        more=OBJECTS_HELP,
    ),
    "pull": VerbUsage(
        "x [y ...] [as NAME] [--yes] [--pickle]",
        "%remoter pull frame as here",
        "fetches a variable to this side, under another name",
        more=OBJECTS_HELP,
    ),
    "keep": VerbUsage("", "%remoter keep", "shut the kernel down after that: the session stays"),
    "stop": VerbUsage("", "%remoter stop", "ends this session, with its variables"),
    "timer": VerbUsage(
        "on|off",
        "%remoter timer on",
        "then after each cell, for example: [remoter] 1.2 s there, 0.1 s on the link, …",
        ("on|off",),
    ),
    "help": VerbUsage("[VERB]", "%remoter help put", "how that verb is used", (VERB,)),
}


def usage_of(verb: str) -> VerbUsage:
    """Return how a verb is used."""
    return USAGES.get(verb) or VerbUsage("", f"%remoter {verb}")


def summary_text(summaries: dict[str, str]) -> str:
    """Return a line for each verb."""
    lines = [f"%remoter {verb:<9}{what}\n" for verb, what in summaries.items()]
    return "".join([*lines, "\n%remoter help VERB shows how one is used.\n"])


def verb_text(verb: str, summaries: dict[str, str]) -> str:
    """Return how a verb is used, with an example; `Usage` if there is none of that name."""
    if verb not in summaries:
        raise unknown_verb_error(verb, summaries)
    use = usage_of(verb)
    lines = [
        f"%remoter {verb} {use.arguments}".rstrip(),
        f"    {summaries[verb]}",
        "",
        "For example:",
        f"    {use.example}",
        *([f"    ({use.shows})"] if use.shows else []),
    ]
    if use.more:
        lines += ["", use.more.rstrip()]
    return "".join(f"{line}\n" for line in lines)


def inspect_text(code: str, cursor: object) -> str:
    """Return what a person reads who asks about the first line of a cell; "": nothing of ours."""
    first = code.partition("\n")[0]
    is_in_line = not isinstance(cursor, int) or cursor <= len(first)
    words = first.split()
    if not words or not is_in_line or not code.startswith(words[0]):
        return ""
    if words[0] == "%%local":
        return LOCAL_HELP
    if words[0] != "%remoter":
        return ""
    verb = words[1] if len(words) > 1 else ""
    return verb_text(verb, HELP) if verb in HELP else summary_text(HELP)


def unknown_verb_error(verb: str, summaries: dict[str, str]) -> Usage:
    """Say that there is no such verb, and which one may be meant."""
    hint = did_you_mean(verb, summaries)
    return Usage(f'There is no %remoter verb "{verb}"{hint}.', "See %remoter help.")
