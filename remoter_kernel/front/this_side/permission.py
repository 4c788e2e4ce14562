"""May a cell of a notebook use this side? As the remote's `local` says: ask, allow, never.

A notebook is not trusted to reach this machine: whoever wrote it may be a stranger. What a
person has allowed holds for this front, and so for one notebook until its kernel restarts; a
no holds for one cell. What is written stays below the notebook's folder, also where cells may
use this side, unless a person was asked about that very place.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal, Protocol

from remoter_kernel.errors import RemoterError
from remoter_kernel.front.jupyter.asker import TRIES, may_ask_in
from remoter_kernel.front.questions import NeedsPerson, NotAnswered, readable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from remoter_kernel.front.jupyter.mouth import Route

YES, NO = ("yes", "y"), ("no", "n", "")
MOST_TOLD = 300  # characters: what a cell says must not push the question out of sight


class NotAllowed(RemoterError):
    """A cell wanted to use this side, and may not."""


class Asks(Protocol):
    """Whoever puts questions to a person (`asker.Asker`)."""

    def ask_in(self, cell: Route, text: str) -> str:
        """Ask in a cell; NeedsPerson or NotAnswered where there is no answer."""


class Permission:
    """What a front's cells may do on this side; asked from threads, never from the front's own."""

    def __init__(
        self, asker: Asks, rule: Callable[[], Literal["ask", "allow", "never"]], folder: Path
    ) -> None:
        """Remember; `rule` is looked up each time, `folder` is the notebook's."""
        self._asker = asker
        self._rule = rule
        self._folders = [folder.resolve()]  # where cells may write
        self._is_allowed = False
        self._turn = threading.Lock()  # several cells may want something at once

    def may(self, verb: str, what: str, cell: Route, writes: Path | None = None) -> bool:
        """Say whether a cell may do something here; blocks for as long as a person takes.

        `verb` is what the cell says (`%remoter put`), `what` goes on after "it" ("sends x to
        gpu-box"), and `writes` is where it would write: all below that place, too.
        """
        with self._turn:
            rule = self._rule()
            place = writes.resolve() if writes else None
            is_beyond = place is not None and not self._is_inside(place)
            if rule == "never":
                return False
            if (rule == "allow" or self._is_allowed) and not is_beyond:
                return True
            if not self._is_told_yes(_question(verb, what, place if is_beyond else None), cell):
                return False
            self._is_allowed = True
            if is_beyond and place is not None:
                self._folders.append(place)
            return True

    def demand(self, verb: str, what: str, cell: Route, writes: Path | None = None) -> None:
        """Go on only if a cell may do something here (see `may`); else raise `NotAllowed`."""
        if self.may(verb, what, cell, writes):
            return
        if self._rule() == "never":
            raise NotAllowed(
                f'{verb} may not use this machine: this remote says local = "never".',
                'Set local = "ask" for it in remotes.toml, or use the command at a terminal.',
            )
        if not may_ask_in(cell):
            raise NotAllowed(
                f"{verb} would have to ask first, and nobody can be asked in this cell.",
                'Set local = "allow" for this remote in remotes.toml, and stay in this folder.',
            )
        raise NotAllowed(f"{verb} was not allowed to use this machine; nothing was done.")

    def _is_inside(self, place: Path) -> bool:
        return any(place.is_relative_to(folder) for folder in self._folders)

    def _is_told_yes(self, question: str, cell: Route) -> bool:
        try:
            for _ in range(TRIES):
                said = self._asker.ask_in(cell, question).strip().lower()
                if said in YES or said in NO:
                    return said in YES
        except (NeedsPerson, NotAnswered):
            pass
        return False


def _question(verb: str, what: str, beyond: Path | None) -> str:
    """Ask in a way that says what happens next, and for how long a yes holds."""
    where = f"\nThat is {_on_one_line(str(beyond))}, outside the notebook's folder."
    return (
        f"{_on_one_line(verb)} wants to use this machine: it {_on_one_line(what)}."
        f"{where if beyond else ''}\n"
        "Allow this notebook such things until its kernel restarts? yes or no:"
    )


def _on_one_line(text: str) -> str:
    """Let nobody make a question say something else; what is too long loses its middle."""
    line = readable(" ".join(text.splitlines()))
    half = MOST_TOLD // 2
    return line if len(line) <= MOST_TOLD else f"{line[:half]} … {line[-half:]}"
