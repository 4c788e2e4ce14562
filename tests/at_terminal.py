"""A person at a terminal who starts a command and answers what it asks."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pexpect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

WIDE = (50, 500)  # rows, columns: no question is broken into lines
WITHIN = 60.0  # seconds until the next question, or the end


@dataclass(frozen=True)
class Question:
    """What will be asked (a regular expression), and what is the right answer."""

    says: str
    answer: Callable[[], str]
    is_hidden: bool = True


@dataclass(frozen=True)
class Ended:
    """All that was to be seen, the exit code, and how many questions were asked."""

    text: str
    status: int
    asked: int


def at_terminal(
    command: list[str],
    questions: Iterable[Question] = (),
    *,
    environment: Mapping[str, str] = {},
    seconds: float = WITHIN,
) -> Ended:
    """Run a command, answer these questions in this order, and wait for its end."""
    seen = io.StringIO()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; this one becomes another program at once.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = pexpect.spawn(
            command[0],
            command[1:],
            env={**os.environ, **environment},
            encoding="utf-8",
            codec_errors="replace",
            timeout=seconds,
            dimensions=WIDE,
        )
    child.logfile_read = seen
    asked = 0
    try:
        for question in questions:
            if child.expect([question.says, pexpect.EOF]):
                break
            # What is typed before the terminal hides it may be thrown away.
            assert not question.is_hidden or child.waitnoecho(seconds), seen.getvalue()
            child.sendline(question.answer())
            asked += 1
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    status = child.exitstatus if child.exitstatus is not None else -child.signalstatus
    return Ended(seen.getvalue().replace("\r\n", "\n"), status, asked)
