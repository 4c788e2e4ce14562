"""What a login may have to ask a person, and what a person may answer.

Whoever asks (a cell, a terminal) implements `Prompter`; where nobody may be asked, `None`
stands in its place. Answers are secrets: in memory alone, or, where that was asked
for, in the keyring of this system.

Who asks must be plain to see, since the answer goes there: all words of a server stand behind
its name in brackets, line by line. What remoter itself asks has no host and no brackets, begins
with `OWN_TAG`, and its answer stays on this machine.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from remoter_kernel.errors import LoginRefused, RemoterError
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_TEXT = 2000  # characters of a server's text that are shown
MOST_LINES = 60  # of one such text
NEVER_WITHDRAWN = threading.Event()  # of a question that nobody takes back
OWN_TAG = "remoter, on this machine: "  # a question whose answer is sent to nobody begins so
# Signs that count as printable and look like a space: with enough of them, what follows would
# seem to begin a line of its own.
BLANKS = str.maketrans(dict.fromkeys("\u115f\u1160\u2800\u3164\uffa0", " "))

LOG_IN_FIRST = (
    "Log in at a terminal first (`remoter check NAME`), or let OpenSSH keep a login "
    "(ControlMaster): then nothing is asked."
)
LOG_IN_WITHOUT_PROMPTS = (
    "Ways that need no question: a key (`ssh-copy-id`), an agent (`ssh-add`), a login at a "
    "terminal first (`remoter check NAME`), or one that OpenSSH keeps (ControlMaster)."
)


class HostKeyDecision(Enum):
    """What a person says about a host key that is not known."""

    YES = "yes"  # it is the right one, and is to be remembered
    ONCE = "once"  # it will do for this connection
    NO = "no"


@dataclass(frozen=True)
class Prompt:
    """One question of a server, or of ours, on one line and in words that no terminal obeys."""

    text: str
    is_shown: bool = False  # may others see what is typed?


class Prompter(Protocol):
    """Somebody who may be asked. Every call may block for as long as a person takes."""

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        """Ask whether `host` is known to have this key (`fingerprint` is "SHA256:...")."""

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Ask for one answer to each prompt; `NotAnswered` where the person declines.

        `host` is who gets the answers; it is empty where remoter asks for itself. Lines of
        `instruction` that are a server's begin as `quote_server` makes them begin.
        """


@runtime_checkable
class CancellablePrompter(Prompter, Protocol):
    """Somebody from whom a question can be taken back, as others can answer it, too.

    Whoever takes it back sets `withdrawn`: then these raise `Withdrawn`. What is typed after that
    must get to nobody.
    """

    def place(self) -> str:
        """Say where they sit, as in "in analysis.ipynb"."""

    def confirm_host_key(
        self, host: str, kind: str, fingerprint: str, withdrawn: threading.Event = NEVER_WITHDRAWN
    ) -> HostKeyDecision:
        """Ask whether `host` is known to have this key."""

    def ask(
        self,
        host: str,
        prompts: Sequence[Prompt],
        instruction: str = "",
        withdrawn: threading.Event = NEVER_WITHDRAWN,
    ) -> list[str]:
        """Ask for one answer to each prompt."""

    def wait_elsewhere(self, sentence: str, withdrawn: threading.Event) -> None:
        """Say that somebody is asked elsewhere; NotAnswered where the person waits no longer."""


class NotAnswered(LoginRefused):
    """A question was put to a person, and was not answered."""


class Withdrawn(NotAnswered):
    """A question was taken back: it is asked elsewhere, or was answered there."""

    def __init__(self) -> None:
        super().__init__("the question was taken back.")


class NeedsPerson(LoginRefused):
    """Only a person can go on, and none could be asked: worth trying again when one is there."""

    def at(self, remote: str) -> RemoterError:
        """Note which remote this happened to, and name it in the advice."""
        self.advice = self.advice.replace("NAME", remote)
        return super().at(remote)


def describe_prompts(prompts: Sequence[str]) -> str:
    """Say in two words what these prompts ask for."""
    text = " ".join(prompts).lower()
    for word in ("passphrase", "password", "pin", "code"):
        if re.search(rf"\b{word}\b", text):
            return f"a {word}"
    return "an answer"


def strip_controls(text: str) -> str:
    """Return a server's text without what acts on a terminal; line ends stay."""
    return plain_text(text, keeps_lines=True, most=LONGEST_TEXT)


def to_one_line(text: str) -> str:
    """Return a server's text as one line without gaps, and without what acts on a terminal."""
    words = " ".join(
        text.translate(BLANKS).split()
    )  # before `strip_controls` takes some of the gaps
    # Signs that turn the direction of writing, say, are no controls and not printable.
    shown = "".join(sign for sign in strip_controls(words) if sign.isprintable())
    return " ".join(shown.split())


def quote_server(host: str, text: str) -> str:
    """Return a server's text with its name before each line."""
    lines = [line for each in text.split("\n") if (line := to_one_line(each))]
    return "\n".join(f"{server_prefix(host)}{line}" for line in lines[:MOST_LINES])


def server_prefix(host: str) -> str:
    """Return what stands before each line that a server says."""
    return f"[{host} says] "


def prompt_prefix(host: str) -> str:
    """Return what stands before a question, by who gets the answer; nothing: nobody does."""
    return f"[{host}] " if host else ""


def host_key_question(host: str, kind: str, fingerprint: str) -> str:
    """Return the question whether a key that is not known is that of the host."""
    return (
        f"{OWN_TAG}{host} is not known yet. Its {kind} key has the fingerprint\n  {fingerprint}\n"
        "Is that the right one (its administrator knows)? Your answer is not sent there."
    )
