"""One line that a person types at a terminal; whoever asked for it may want it no more meanwhile.

`input` and `getpass` cannot be called off, and would take the next line that is typed.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from typing import TYPE_CHECKING

import click

from remoter_kernel.local.login.prompts import NEVER_WITHDRAWN, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_EVERY = 0.1  # seconds between two looks at whether a line is still wanted
MOST_AT_ONCE = 4096  # bytes that a terminal gives at once
ENTER, ERASE, CTRL_C, END = "\r\n", "\b\x7f", "\x03", "\x04\x1a"
# A key without a sign (arrows, Home, F11) comes in a console of Windows as one of two leads, and
# a code. The second lead is also the letter a-grave: only these codes are taken for keys after it.
LEADS, CODES = "\x00\xe0", "GHIKMOPQRS\x85\x86\x8d\x91\x92\x93"


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
    """Leave half an answer to nobody who reads there next: it may be a code."""
    import termios

    try:
        yield
    except (KeyboardInterrupt, Withdrawn):
        with contextlib.suppress(termios.error):  # it is no terminal, or has gone
            termios.tcflush(handle, termios.TCIFLUSH)
        raise


@contextlib.contextmanager
def _without_echo(handle: int) -> Iterator[None]:
    """Show nothing of what is typed; half a secret is left to nobody who reads there next."""
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
    """Yield each key that has a sign."""
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
