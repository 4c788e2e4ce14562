"""May a cell of a notebook use this machine? As the remote's `local` says: ask, allow, never.

A notebook is not trusted to reach this machine: whoever wrote it may be a stranger. A yes is a
yes to one thing: to run code here, to read files below the notebook's folder, or to write files
there. Each place outside of that folder is a question of its own, also where cells may use this
machine. What a person has allowed holds for this proxy, and so for one notebook until its kernel
restarts; a no holds for one cell.
"""

from __future__ import annotations

import os
import threading
from dataclasses import InitVar, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.login.prompts import OWN_TAG, NeedsPerson, NotAnswered
from remoter_kernel.local.proxy.prompter import MOST_TRIES, can_prompt_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.protocol.requests import Request

# Enter alone is a no: it is pressed without reading.
YES, NO = ("yes", "y"), ("no", "n", "")
LONGEST_LINE = 300  # characters: what a cell says must not push the question out of sight
LONGEST_PATH = 500  # characters; what cannot be shown whole is not asked about
MOST_PATHS = 8  # outside of the folder that are asked about for one cell
# Nothing of it is kept on disk: a file could be written by a cell that was allowed to.
UNTIL = "until this kernel is restarted or shut down"
ANSWER = "Allow that? yes or no:"


class NotAllowed(RemoterError):
    """A cell wanted to use this machine, and may not."""


class InCellPrompter(Protocol):
    """Whoever puts questions to a person (`prompter.StdinPrompter`)."""

    def prompt_in(self, cell: Request, text: str) -> str:
        """Ask in a cell; NeedsPerson or NotAnswered where there is no answer."""


class AccessKind(Enum):
    """What is allowed apart from anything else; the value goes on after "wants to"."""

    RUN = "run code here"
    READ = "read files here"
    WRITE = "write files here"


class LocalPath(NamedTuple):
    """A file or folder of this machine."""

    path: Path  # links resolved: what is asked about is what is used
    is_folder: bool
    name: str = ""  # by which the remote will know it

    def covers(self, other: LocalPath) -> bool:
        """Is a yes to this place a yes to the other one, too?"""
        # A folder that was allowed covers what is created in it later.
        if self.is_folder:
            return other.path.is_relative_to(self.path)
        return other.path == self.path and not other.is_folder


@dataclass(frozen=True)
class AccessRequest:
    """What a cell wants of this machine."""

    verb: str  # what the cell says: "%remoter put"
    kind: AccessKind
    what: str  # goes on after "it": "sends x to gpu-box"
    paths: tuple[LocalPath, ...] = ()  # that are read or written; none: wherever the kind is about


@dataclass
class Permission:
    """What the cells of this proxy may do here; asked from threads, never from the proxy's own."""

    prompter: InCellPrompter
    rule: Callable[[], Literal["ask", "allow", "never"]]  # looked up each time: a person edits it
    folder: InitVar[Path]  # the notebook's
    _allowed_kinds: set[AccessKind] = field(default_factory=set)  # below the notebook's folder
    _allowed_paths: dict[AccessKind, list[LocalPath]] = field(  # outside of it
        default_factory=lambda: {kind: [] for kind in AccessKind}
    )
    # Several cells may want something at once: one question after the other, and a yes to the first
    # may answer the second.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self, folder: Path) -> None:
        self._folder = LocalPath(folder.resolve(), is_folder=True)

    def check_rule(self, verb: str) -> None:
        """Raise `NotAllowed` where no cell may use this machine, whatever a person says."""
        if self.rule() == "never":
            raise NotAllowed(
                f'{verb} may not use this machine: this remote says local = "never".',
                'Set local = "ask" for it in remotes.toml, or use the command at a terminal.',
            )

    def require(self, wanted: AccessRequest, cell: Request) -> None:
        """Go on only if a cell may do all of that; blocks for as long as a person takes."""
        # Held while a person is asked: that is why this is never called in the proxy's thread.
        with self._lock:
            self.check_rule(wanted.verb)
            # Places were resolved: a link below the folder that leads elsewhere is outside.
            outside = [place for place in wanted.paths if not self._folder.covers(place)]
            asked = [place for place in outside if not self._is_allowed(wanted.kind, place)]
            if len(asked) > MOST_PATHS:  # nobody reads so many questions before they say yes
                raise NotAllowed(
                    f"{wanted.verb} names {len(asked)} places outside of this notebook's folder. "
                    f"Each is asked about, and more than {MOST_PATHS} at once are refused.",
                    "Name fewer of them, or use the command at a terminal.",
                )
            # Where all is outside, a yes to the folder would allow more than the cell wants.
            if not wanted.paths or len(outside) < len(wanted.paths):
                self._require_kind(wanted, len(outside), cell)
            for number, place in enumerate(asked, 1):
                if not self._is_allowed(wanted.kind, place):  # by a yes to the one before
                    self._require_path(wanted, place, f"{number} of {len(asked)}", cell)

    def _require_kind(self, wanted: AccessRequest, outside: int, cell: Request) -> None:
        """Ask once for each kind, unless the remote allows all of them."""
        if self.rule() == "allow" or wanted.kind in self._allowed_kinds:
            return
        if not can_prompt_in(cell):
            raise NotAllowed(
                f"{wanted.verb} would have to ask first, and nobody can be asked in this cell.",
                'Set local = "allow" for this remote in remotes.toml, and stay in this folder.',
            )
        self._confirm(wanted.verb, _kind_question(wanted, outside, self._folder.path), cell)
        self._allowed_kinds.add(wanted.kind)

    def _require_path(
        self, wanted: AccessRequest, place: LocalPath, number: str, cell: Request
    ) -> None:
        """Ask about one place outside of the notebook's folder."""
        path = _full_path(wanted.verb, place)
        if not can_prompt_in(cell):
            raise NotAllowed(
                f"{wanted.verb} would have to ask about {path}, which is outside of this "
                "notebook's folder, and nobody can be asked in this cell.",
                "Use the command at a terminal, or a place below the notebook's folder.",
            )
        self._confirm(wanted.verb, _path_question(wanted, place, path, number), cell)
        self._allowed_paths[wanted.kind].append(place)

    def _is_allowed(self, kind: AccessKind, place: LocalPath) -> bool:
        return any(allowed.covers(place) for allowed in self._allowed_paths[kind])

    def _confirm(self, verb: str, question: str, cell: Request) -> None:
        """Go on only after a yes."""
        try:
            for _ in range(MOST_TRIES):
                answer = self.prompter.prompt_in(cell, question).strip().lower()
                if answer in YES:
                    return
                if answer in NO:
                    break
        # No answer is a no; it is not for a cell to ask again.
        except (NeedsPerson, NotAnswered):
            pass
        raise NotAllowed(f"{verb} was not allowed to use this machine; nothing was done.")


def local_path(path: str, name: str = "") -> LocalPath:
    """Return where a path of this machine leads; one that ends with a separator means a folder."""
    is_folder = path.endswith(("/", os.sep)) or Path(path).is_dir()
    # `realpath`: also of what does not exist yet, as a target need not.
    return LocalPath(Path(os.path.realpath(path)), is_folder, name)


def format_names(names: Sequence[str], what: str) -> str:
    """Name all of them, or say how many there are: half a list hides the other half."""
    line = _one_line(", ".join(names))
    # Half of a line: the rest of the sentence is to be read, too.
    return line if len(line) <= LONGEST_LINE // 2 else f"{len(names)} {what}"


# The questions (pure) ------------------------------------------------------------------------


def _kind_question(wanted: AccessRequest, outside: int, folder: Path) -> str:
    """Ask in a way that says what a yes allows, and for how long it holds."""
    below = _one_line(str(folder))
    allows = {
        AccessKind.RUN: "run any code on this machine, with your files and your rights,",
        AccessKind.READ: f"send any file below {below} to the remote, and nothing else,",
        AccessKind.WRITE: f"write or replace any file below {below}, and nothing else,",
    }[wanted.kind]
    more = ""
    if outside:
        are = "is" if outside == 1 else "are"
        more = (
            f"\n{outside} of {len(wanted.paths)} {are} outside of this notebook's folder, "
            "and asked about next."
        )
    return (
        f"{OWN_TAG}{_one_line(wanted.verb)} wants to {wanted.kind.value}: "
        f"it {_one_line(wanted.what)}.{more}\n"
        f"A yes lets all cells of this notebook {allows} {UNTIL}.\n{ANSWER}"
    )


def _path_question(wanted: AccessRequest, place: LocalPath, path: str, number: str) -> str:
    """Ask about one place, by its full and real path."""
    reads = wanted.kind is AccessKind.READ
    which = "this folder and all that is in it" if place.is_folder else "this file"
    allows = f"send {which} to the remote" if reads else "write or replace what is there"
    renamed = ""
    if reads and place.name and place.name != place.path.name:
        renamed = f"\nThe remote gets it as {_one_line(place.name)}."
    return (
        f"{OWN_TAG}{_one_line(wanted.verb)} wants to {'read' if reads else 'write'} outside of "
        f"this notebook's folder ({number}):\n  {path}{renamed}\n"
        f"A yes lets all cells of this notebook {allows}, and nothing else, {UNTIL}.\n{ANSWER}"
    )


def _full_path(verb: str, place: LocalPath) -> str:
    path = _escape_unprintable(str(place.path))
    if len(path) > LONGEST_PATH:
        raise NotAllowed(
            f"{verb} names a place outside of this notebook's folder whose path is too long to "
            "be shown whole, and so nobody was asked about it.",
            "Use the command at a terminal.",
        )
    return path


def _escape_unprintable(text: str) -> str:
    """Write on one line what may have any sign in it; two names never look the same."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )


def _one_line(text: str) -> str:
    """Let nobody make a question say something else; what is too long loses its end."""
    line = _escape_unprintable(text)
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} …"
