"""How each verb of `%remoter` is used: for `%remoter help VERB`, Tab and Shift-Tab (pure)."""

from __future__ import annotations

from typing import NamedTuple

from remoter_kernel.errors import Usage
from remoter_kernel.local.config.remotes_toml import did_you_mean

# Kinds of words; anything else is the words themselves, "on|off".
# They decide what Tab offers (`completer`).
VERB, SESSION, LOCAL_PATH, REMOTE_PATH = "a verb", "a session", "a path here", "a path there"


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
    """What one verb does, and how it is used."""

    summary: str
    arguments: str  # that follow it, as a person reads them
    example: str
    shows: str = ""  # what the example does
    kinds: tuple[str, ...] = ()  # of these words; the last one is that of all that follow
    more: str = ""


HELP = {  # in the order in which people read them
    "status": VerbUsage(
        "How the link and the session are, or their open requests: status [--requests].",
        "[--requests]",
        "%remoter status",
        "the link, the session, the login, bytes sent and received",
        ("--requests",),
        "--requests: each request that is not over yet instead, at both ends: its id, its kind,\n"
        "how far it has come, for how long it is there, and why.\n",
    ),
    "outputs": VerbUsage(
        "What cells of this session said and no client took: after a crash, a flood.",
        "[SESSION]",
        "%remoter outputs 7f3a9c",
        "all that this session has said; without a session: what this one's cells have missed",
        (SESSION,),
    ),
    "log": VerbUsage(
        "What happened in this session.",
        "[SESSION]",
        "%remoter log",
        "clients, requests and how they ended, interrupts, restarts, deaths, each with its time",
        (SESSION,),
    ),
    "put": VerbUsage(
        "Send files of this side there: put SRC... DST [--dry-run].",
        "SRC... DST",
        "%remoter put data/*.csv ~/data/",
        "sends files there",
        (LOCAL_PATH, REMOTE_PATH),
    ),
    "get": VerbUsage(
        "Fetch files from there: get SRC... DST [--dry-run].",
        "SRC... DST",
        "%remoter get runs/7.log ./",
        "fetches files",
        (REMOTE_PATH, LOCAL_PATH),
    ),
    "keep": VerbUsage(
        "Let the session stay when this kernel is shut down.",
        "",
        "%remoter keep",
        "shut the kernel down after that: the session stays",
    ),
    "push": VerbUsage(
        "Send objects of this side's kernel (that of %%local) to the other one.",
        "x [y ...] [as NAME] [--yes] [--pickle]",
        "%remoter push frame",
        "sends a variable of this side there",
        more=OBJECTS_HELP,
    ),
    "pull": VerbUsage(
        "Bring objects of the kernel there to this side's.",
        "x [y ...] [as NAME] [--yes] [--pickle]",
        "%remoter pull frame as here",
        "fetches a variable to this side, under another name",
        more=OBJECTS_HELP,
    ),
    "stop": VerbUsage(
        "End the session, whatever it is doing.",
        "",
        "%remoter stop",
        "ends this session, with its variables",
    ),
    "timer": VerbUsage(
        "After each cell: the time there, the time on the link, the bytes.",
        "on|off",
        "%remoter timer on",
        "then after each cell, for example: [remoter] 1.2 s there, 0.1 s on the link, …",
        ("on|off",),
    ),
    "help": VerbUsage(
        "What can be asked, or what one verb does: %remoter help [VERB].",
        "[VERB]",
        "%remoter help put",
        "how that verb is used",
        (VERB,),
    ),
}


def summary_text() -> str:
    """Return a line for each verb."""
    lines = [f"%remoter {verb:<9}{usage.summary}\n" for verb, usage in HELP.items()]
    return "".join([*lines, "\n%remoter help VERB shows how one is used.\n"])


def verb_text(verb: str) -> str:
    """Return how a verb is used, with an example; `Usage` if there is none of that name."""
    if verb not in HELP:
        raise unknown_verb_error(verb)
    use = HELP[verb]
    lines = [
        f"%remoter {verb} {use.arguments}".rstrip(),
        f"    {use.summary}",
        "",
        "For example:",
        f"    {use.example}",
        *([f"    ({use.shows})"] if use.shows else []),
    ]
    if use.more:
        lines += ["", use.more.rstrip()]
    return "".join(f"{line}\n" for line in lines)


def inspect_text(code: str, cursor: object) -> str:
    """Return the help on the first line of a cell; "": it is no magic of ours.

    `cursor`: how many characters stand before it; None: at the end.
    """
    first = code.partition("\n")[0]
    # Below the first line of a `%%local` cell it is Python that is asked about.
    is_in_line = not isinstance(cursor, int) or cursor <= len(first)
    words = first.split()
    if not words or not is_in_line or not code.startswith(words[0]):
        return ""
    if words[0] == "%%local":
        return LOCAL_HELP
    if words[0] != "%remoter":
        return ""
    verb = words[1] if len(words) > 1 else ""
    return verb_text(verb) if verb in HELP else summary_text()


def unknown_verb_error(verb: str) -> Usage:
    """Say that there is no such verb, and which one may be meant."""
    hint = did_you_mean(verb, HELP)
    return Usage(f'There is no %remoter verb "{verb}"{hint}.', "See %remoter help.")
