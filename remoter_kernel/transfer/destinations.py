"""Where received things go: each source has its place, and nothing of it is written beside that.

Where links on the way lead is looked at before anything is touched, and once more before bytes are
written: what was not there at first may be a link by then, that the sender has sent.
"""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.transfer.plan import full_path, trouble_from_os
from remoter_kernel.transfer.safe_paths import LONGEST, NOT_ASKED_FOR, safe_names, safe_target
from remoter_kernel.transfer.wire_format import FileEntry, FileTrouble, TroubleCode

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_CHECKED = 10_000  # folders that are known to be inside
LEADS_OUT = "a link that is there leads out of the folder that is to be written"


class OfferedSource(NamedTuple):
    """What a sender says of a source."""

    name: str
    is_folder: bool


class TransferTarget(NamedTuple):
    """Where a source goes."""

    place: str
    real: str  # without links: what is inside of a folder stays below it
    is_folder: bool


def read_sources(tops: object) -> list[OfferedSource]:
    """Read what a sender says of its sources; ProtocolError if that is nonsense."""
    if not isinstance(tops, list) or not tops:
        raise ProtocolError("A start without sources.")
    return [_read_source(top) for top in tops]


def _read_source(top: Any) -> OfferedSource:
    if not isinstance(top, dict):
        raise ProtocolError("A source is no object.")
    name = str(top.get("name", ""))
    if len(name) > LONGEST or len(safe_names(name)) != 1:
        raise ProtocolError(f"A source is called {reprlib.repr(name)}.")
    return OfferedSource(name, top.get("is_folder") is True)


class Destinations:
    """The places of all sources of one transfer."""

    def __init__(self, root: str, tops: dict[str, TransferTarget], *, is_folder: bool) -> None:
        """Remember; `find_places` finds them."""
        self.root = root  # what was named here, without links
        self.is_folder = is_folder  # is it one that the sources go into?
        self._tops = tops
        self._checked: set[str] = set()  # folders that are there, and inside of their tops

    @property
    def targets(self) -> list[str]:
        """Where each source goes."""
        return [top.place for top in self._tops.values()]

    def prepare(self) -> None:
        """Make the folder that was named, if it was named as one."""
        root = self.root
        try:
            if self.is_folder:
                os.makedirs(root, exist_ok=True)
            elif not os.path.isdir(os.path.dirname(root)):
                reason = "there is no such folder"
                raise FileTrouble(os.path.dirname(root), reason, TroubleCode.MISSING)
            elif any(top.is_folder for top in self._tops.values()) and os.path.lexists(root):
                reason = "this is a file, and a folder is to be put there"
                raise FileTrouble(root, reason, TroubleCode.IS_FILE)
        except OSError as error:
            raise trouble_from_os(error, root) from None

    def path_of(self, entry: FileEntry) -> str:
        """Return where an entry goes; raise FileTrouble if that is beside its source's place."""
        top, rest = self._top_of(entry.path)
        if not rest:
            if entry.kind != ("folder" if top.is_folder else "file"):
                raise ProtocolError("A source is of another kind than it was said to be.")
            return top.place
        if not top.is_folder:
            raise FileTrouble(entry.path, NOT_ASKED_FOR, TroubleCode.UNSAFE)
        place = os.path.join(top.place, *rest)
        folder = os.path.dirname(place)
        if folder not in self._checked:
            self.check_inside(folder, entry.path)
            self._check_once(folder)
        return place

    def _top_of(self, path: str) -> tuple[TransferTarget, list[str]]:
        first, *rest = safe_names(path)
        top = self._tops.get(first)
        if top is None:
            raise FileTrouble(path, NOT_ASKED_FOR, TroubleCode.UNSAFE)
        return top, rest

    def _check_once(self, folder: str) -> None:
        """Look at a folder only once, if it is there: in the place of another, a link may come."""
        if len(self._checked) >= MOST_CHECKED:
            self._checked.clear()
        if os.path.isdir(folder):
            self._checked.add(folder)

    def check_inside(self, place: str, path: str) -> Path:
        """Return the real place; raise FileTrouble if a link on the way to it leads out."""
        real = Path(os.path.realpath(place))
        if not real.is_relative_to(self._top_of(path)[0].real):
            raise FileTrouble(path, LEADS_OUT, TroubleCode.UNSAFE)
        return real

    def target_of(self, entry: FileEntry, place: str) -> str:
        """Return where a link is to lead, seen from where it is to be: never out of its source."""
        folder = self.check_inside(os.path.dirname(place), entry.path)
        depth = len(folder.relative_to(self._top_of(entry.path)[0].real).parts)
        return safe_target(entry.target, depth)


def find_places(sources: Sequence[OfferedSource], destination: str, folder: str) -> Destinations:
    """Find out where sources go; `destination` as a person writes it, in `folder`."""
    try:
        place = full_path(destination, folder)
        root = os.path.realpath(place)
    except (OSError, ValueError) as error:
        raise trouble_from_os(error, destination) from None
    is_folder = place.endswith(("/", os.sep)) or os.path.isdir(place)
    if not is_folder and len(sources) > 1:
        reason = "several sources need a folder: write a / at its end, and it is made"
        raise FileTrouble(destination, reason, TroubleCode.WORDS)
    tops: dict[str, TransferTarget] = {}
    for name, has_folder in sources:
        if name in tops:
            raise ProtocolError("Two sources have one name.")
        target = os.path.join(root, name) if is_folder else root
        real = os.path.realpath(target) if has_folder else target
        if is_folder and (real == root or not Path(real).is_relative_to(root)):
            raise FileTrouble(name, LEADS_OUT, TroubleCode.UNSAFE)
        tops[name] = TransferTarget(target, real, has_folder)
    return Destinations(root, tops, is_folder=is_folder)
