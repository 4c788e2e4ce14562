"""Questions at the terminal, if the command was given at one; and tables.

A question may be withdrawn while a person types (another window has answered it). `input` and
`getpass` cannot be cancelled, and would take the next line that is typed: so lines are read here.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import threading
import unicodedata
from typing import TYPE_CHECKING

import click

from remoter_kernel.local.login.prompts import (
    NEVER_WITHDRAWN,
    HostKeyDecision,
    NotAnswered,
    Withdrawn,
    host_key_question,
    prompt_prefix,
    server_prefix,
)
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remoter_kernel.errors import RemoterError
    from remoter_kernel.local.login.prompts import Prompt, Prompter

_prompt_lock = threading.Lock()  # several logins may ask; a person answers one at a time
LEAST_TEXT_WIDTH = 20  # columns beside a name: a narrower terminal breaks lines as it likes

POLL_EVERY = 0.1  # seconds between two looks at whether the question is withdrawn
MOST_AT_ONCE = 4096  # bytes: the longest line of a terminal in Linux
ENTER, ERASE, CTRL_C, END = "\r\n", "\b\x7f", "\x03", "\x04\x1a"
# A console of Windows gives a key without a character (arrows, Home, F11) as one of two leads, and
# a code. The second lead is also the letter a-grave: only these codes are taken for keys after it.
LEADS, CODES = "\x00\xe0", "GHIKMOPQRS\x85\x86\x8d\x91\x92\x93"


class TerminalPrompter:
    """Asks on stderr: stdout is for the command's output."""

    def __init__(self, command: str = "remoter") -> None:
        """`command`: what asks here, for a person who is asked at another place."""
        self._command = command

    @property
    def is_asking(self) -> bool:
        """Is a question at this terminal just now?"""
        return _prompt_lock.locked()

    def place(self) -> str:
        """Return where the person is, for somebody who is asked elsewhere."""
        return f"by `{self._command}` in a terminal (process {os.getpid()})"

    def confirm_host_key(
        self, host: str, kind: str, fingerprint: str, withdrawn: threading.Event = NEVER_WITHDRAWN
    ) -> HostKeyDecision:
        """Show the fingerprint of an unknown host key, and ask."""
        with _exclusive(withdrawn), _declined_on_eof(host):
            *lines, last = host_key_question(host, kind, fingerprint).splitlines()
            for line in lines:
                click.echo(line, err=True)
            words = [each.value for each in HostKeyDecision]
            question = f"{last} once: do not remember it ({', '.join(words)}): "
            while (said := read_line(question, withdrawn)) not in words:
                click.echo(
                    f"Error: {said!r} is not one of {', '.join(map(repr, words))}.", err=True
                )
            return HostKeyDecision(said)

    def ask(
        self,
        host: str,
        prompts: Sequence[Prompt],
        instruction: str = "",
        withdrawn: threading.Event = NEVER_WITHDRAWN,
    ) -> list[str]:
        """Ask what a server, or a key, wants to know; show no secret while it is typed."""
        with _exclusive(withdrawn), _declined_on_eof(host):
            columns = shutil.get_terminal_size().columns
            for line in instruction.splitlines():
                mark = server_prefix(host) if line.startswith(server_prefix(host)) else ""
                for row in _wrap(line.removeprefix(mark), mark, columns):
                    click.echo(row, err=True)
            return [_prompt_one(host, prompt, columns, withdrawn) for prompt in prompts]

    def wait_elsewhere(self, sentence: str, withdrawn: threading.Event) -> None:
        """Print where a person is asked already, and wait; Ctrl-C ends the command."""
        click.echo(f"remoter: {sentence} This goes on then; Ctrl-C ends it.", err=True)
        withdrawn.wait()


def read_exclusively(prompt: str, *, is_shown: bool) -> str:
    """Read a line for `input()` of the code; questions of logins wait meanwhile."""
    with _exclusive(NEVER_WITHDRAWN):
        return read_line(prompt, is_shown=is_shown)


@contextlib.contextmanager
def _exclusive(withdrawn: threading.Event) -> Iterator[None]:
    while not _prompt_lock.acquire(timeout=POLL_EVERY):
        if withdrawn.is_set():
            raise Withdrawn
    try:
        yield
    finally:
        _prompt_lock.release()


def _prompt_one(host: str, prompt: Prompt, columns: int, withdrawn: threading.Event) -> str:
    *rows, last = _wrap(prompt.text, prompt_prefix(host), columns)
    for row in rows:
        click.echo(row, err=True)
    return read_line(f"{last.rstrip()} ", withdrawn, is_shown=prompt.is_shown)


def _wrap(text: str, mark: str, columns: int) -> list[str]:
    """Break a line as the terminal would, with the mark of the server before each row.

    Else a server could write a text whose second row looks like a question of ours.
    """
    if not mark:
        return [text]
    room = max(LEAST_TEXT_WIDTH, columns - len(mark) - 1)
    rows, used = [mark], 0
    for sign in text:
        width = 2 if unicodedata.east_asian_width(sign) in "WF" else 1  # columns
        if used + width > room:
            rows.append(mark)
            used = 0
        rows[-1] += sign
        used += width
    return rows


@contextlib.contextmanager
def _declined_on_eof(host: str) -> Iterator[None]:
    """Make a `NotAnswered` of Ctrl-D at a question."""
    try:
        yield
    except EOFError:
        message = f"{host or 'remoter'} asked a question that was not answered."
        raise NotAnswered(message, "Try again when the answer is at hand.") from None


def terminal_prompter() -> Prompter | None:
    """Return who asks; None unless stdin and stderr are a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    context = click.get_current_context(silent=True)
    return TerminalPrompter(context.command_path if context else "remoter")


def raise_first(errors: Sequence[RemoterError]) -> None:
    """End the command with the first error, if there is one; print the others before it."""
    for error in errors[1:]:
        click.echo(f"remoter: {error}", err=True)
    if errors:
        raise errors[0]


def format_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its columns as wide as they must be."""
    rows = [[plain_text(word) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def read_line(
    question: str, withdrawn: threading.Event = NEVER_WITHDRAWN, *, is_shown: bool = True
) -> str:
    """Ask on stderr, and return a line of stdin; EOFError at its end, Withdrawn once that is so."""
    click.echo(question, nl=False, err=True)
    try:
        if sys.platform == "win32":
            return _read_keys(withdrawn, is_shown=is_shown)
        return _read_terminal(withdrawn, is_shown=is_shown)
    except (EOFError, KeyboardInterrupt, Withdrawn):
        click.echo(err=True)
        raise


def _read_terminal(withdrawn: threading.Event, *, is_shown: bool) -> str:
    handle, line = sys.stdin.fileno(), b""
    with _with_echo(handle) if is_shown else _without_echo(handle):
        while not line.endswith(b"\n"):
            while not select.select([handle], [], [], POLL_EVERY)[0]:
                if withdrawn.is_set():
                    raise Withdrawn
            piece = os.read(handle, MOST_AT_ONCE)
            if not piece and not line:
                raise EOFError
            line += piece or b"\n"
    if not is_shown:
        click.echo(err=True)
    return line.decode(sys.stdin.encoding or "utf-8", "replace").rstrip("\r\n")


@contextlib.contextmanager
def _with_echo(handle: int) -> Iterator[None]:
    """Discard half an answer, or the shell would read it next: it may be a code."""
    import termios

    try:
        yield
    except (KeyboardInterrupt, Withdrawn):
        with contextlib.suppress(termios.error):  # it is no terminal, or has gone
            termios.tcflush(handle, termios.TCIFLUSH)
        raise


@contextlib.contextmanager
def _without_echo(handle: int) -> Iterator[None]:
    """Switch echo off; TCSAFLUSH discards half a secret, which the shell would read next."""
    import termios

    before = termios.tcgetattr(handle)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(handle, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSAFLUSH, before)


def _read_keys(withdrawn: threading.Event, *, is_shown: bool) -> str:
    """Read key by key, as a console of Windows gives them."""
    line = ""
    for key in _keys(withdrawn):
        if key in ENTER:
            click.echo(err=True)
            break
        if key == CTRL_C:
            raise KeyboardInterrupt
        if key in END and not line:
            raise EOFError
        shown = key if key.isprintable() else ""
        if key in ERASE:
            shown, line = "\b \b" if line else "", line[:-1]
        else:
            line += shown
        if is_shown:
            click.echo(shown, nl=False, err=True)
    return line


def _keys(withdrawn: threading.Event) -> Iterator[str]:
    """Yield each key that has a character."""
    import msvcrt

    pause = threading.Event()
    lead = ""
    while True:
        while not msvcrt.kbhit():  # type: ignore[attr-defined]
            if withdrawn.is_set():
                raise Withdrawn
            pause.wait(POLL_EVERY)
        key = msvcrt.getwch()  # type: ignore[attr-defined]
        if lead == "\x00" or (lead and key in CODES):
            lead = ""
            continue
        if lead:  # it was a letter: only the key after it tells
            yield lead
        lead = key if key in LEADS else ""
        if not lead:
            yield key
