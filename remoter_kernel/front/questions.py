"""What a login may have to ask a person, and what a person may answer.

Whoever asks (a cell, a terminal) implements `Questions`; where nobody may be asked, `None`
stands in its place. Answers are secrets: in memory alone, or, where that was asked
for, in the keyring of this system.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from remoter_kernel.errors import LoginRefused, RemoterError
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_TEXT = 2000  # characters of a server's text that are shown

ENOUGH_ALONE = (
    "Log in at a terminal first (`remoter check NAME`), or let OpenSSH keep a login "
    "(ControlMaster): then nothing is asked."
)
WITHOUT_QUESTIONS = (
    "Ways that need no question: a key (`ssh-copy-id`), an agent (`ssh-add`), a login at a "
    "terminal first (`remoter check NAME`), or one that OpenSSH keeps (ControlMaster)."
)


class Trust(Enum):
    """What a person says about a host key that is not known."""

    YES = "yes"  # it is the right one, and is to be remembered
    ONCE = "once"  # it will do for this connection
    NO = "no"


@dataclass(frozen=True)
class Prompt:
    """One question of a server, or of ours, in words that no terminal obeys."""

    text: str
    is_shown: bool = False  # may others see what is typed?


class Questions(Protocol):
    """Somebody who may be asked. Every call may block for as long as a person takes."""

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> Trust:
        """Ask whether `host` is known to have this key (`fingerprint` is "SHA256:...")."""

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Ask for one answer to each prompt; `NotAnswered` where the person declines."""


class NotAnswered(LoginRefused):
    """A question was put to a person, and was not answered."""


class NeedsPerson(LoginRefused):
    """Only a person can go on, and none could be asked: worth trying again when one is there."""

    def at(self, remote: str) -> RemoterError:
        """Remember which remote this happened to, and name it in the advice."""
        self.advice = self.advice.replace("NAME", remote)
        return super().at(remote)


def readable(text: str) -> str:
    """Return a server's text without what acts on a terminal; line ends stay."""
    return plain_text(text, keeps_lines=True, most=LONGEST_TEXT)
