"""Receives files, and believes no sender: nothing lands outside the folder that was named.

House rules of this file:

- Every name is checked before anything is touched; one that leads out ends the transfer.
- A file bears its name once it is whole, its checksum compared; what was cut stays as a part.
- One file's trouble is told, and the others go on; a full disk is everybody's.
- What has been dealt with is acknowledged soon, as the sender waits for that, but not more often
  than it must be.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.files import (
    BEGINS,
    MOST_SOURCES,
    TAKEN,
    Entry,
    FileTrouble,
    Trouble,
    Word,
    from_body,
    number_of,
    read_entry,
    told_trouble,
)
from remoter_kernel.wire.names import check_digest, is_asked_for, safe_names, safe_target
from remoter_kernel.wire.part import Part, settle
from remoter_kernel.wire.sources import full_path, trouble_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.wire.duplex import Duplex

MOST_TOLD = 4096  # files that a sender may tell ahead of their bytes
PAUSE = 0.002  # seconds: what comes meanwhile is acknowledged together
ACK_EACH = 256 * 1024  # bytes
ACK_AFTER = 0.003  # seconds: each acknowledgement wakes four processes, so a fast path has fewer
NOT_ASKED_FOR = "the other side sent what was not asked for"
NEW_FOLDER = 0o700  # until its own mode is known to be wanted


class _Known(NamedTuple):
    """What the sender has told of."""

    entry: Entry
    part: Part | None  # None: it was refused, and what comes of it is dropped


class Receiving:
    """Receives into one place; may be `run` again on another duplex after a cut."""

    def __init__(
        self,
        destination: str,
        folder: str,
        on_progress: Callable[[int, int], None] = lambda _size, _files: None,
        *,
        asked: Sequence[str] = (),
        is_dry: bool = False,
    ) -> None:
        """Remember; `destination` as a person writes it, in `folder`.

        `asked`: in which words the sender was asked for its sources, if it was.
        """
        self.start: dict[str, Any] = {}  # what the sender says is coming
        self.entries: list[tuple[Entry, str]] = []  # of a dry run: what would go where
        self.targets: list[str] = []  # where each source will be
        self.troubles: list[FileTrouble] = []
        self._destination = destination
        self._folder = folder
        self._on_progress = on_progress
        self._asked = asked
        self._is_dry = is_dry
        self._size = self._files = 0
        self._readers: dict[Word, Callable[[dict[str, Any]], None]] = {
            Word.START: self._start,
            Word.ENTRY: self._enter,
            Word.END: self._end,
            Word.FAILED: self._hear_failure,
            Word.ERROR: self._hear_end,
        }

    def run(self, duplex: Duplex) -> None:
        """Receive all that comes; raise Cut, or the trouble that ends it."""
        self._duplex = duplex
        self._root = ""  # nothing is written outside
        self._sources: list[dict[str, Any]] = []  # as the sender tells of them
        self._tops: dict[str, str] = {}  # where each source goes
        self._known: dict[int, _Known] = {}
        self._folders: list[tuple[str, Entry]] = []
        self._checked: set[str] = set()  # folders that are inside
        self._current = 0  # the number of the file whose bytes come
        self._entered = 0  # the number of the last entry
        self._last = 0  # the number of the last file that was dealt with
        self._told, self._told_at = 0, 0.0  # the position that was acknowledged, and when
        self._size = self._files = 0
        self.troubles, self.entries = [], []
        try:
            while self._take(*self._hear()):
                pass
        except FileTrouble as trouble:
            if not trouble.is_told:
                duplex.tell(Word.ERROR, trouble.words())
            raise
        except (ProtocolError, struct.error) as error:
            reason = str(error)
            duplex.tell(Word.ERROR, FileTrouble("", reason).words())
            raise ProtocolError(f"The sender said what no sender says: {reason}") from None
        finally:
            for known in self._known.values():
                if known.part:
                    known.part.keep()
            duplex.stop()

    def _hear(self) -> tuple[Word, memoryview]:
        duplex = self._duplex
        unsaid, now = duplex.heard - self._told, time.monotonic()
        is_much = unsaid >= ACK_EACH and now - self._told_at >= ACK_AFTER
        if is_much or (unsaid and not duplex.is_heard() and not duplex.is_heard(PAUSE)):
            self._told, self._told_at = duplex.heard, now
            duplex.say(Word.ACK, TAKEN.pack(self._told, self._last))
            duplex.flush()
        return duplex.hear()

    def _take(self, word: Word, body: memoryview) -> bool:
        """Deal with one frame; False: that was all."""
        if word is Word.DATA:
            self._write(body)
        elif word is Word.BODY:
            self._begin(*BEGINS.unpack(body))
        elif word in self._readers:
            self._readers[word](from_body(body))
        elif word is Word.PING:
            self._duplex.say(Word.PONG)
            self._duplex.flush()
        elif word is Word.FINISH:
            self._finish()
            return False
        elif word is not Word.ALIVE:
            raise ProtocolError(f"A sender does not say {word.name}.")
        return True

    @staticmethod
    def _hear_end(words: dict[str, Any]) -> None:
        raise told_trouble(words)

    # --- where things go ---

    def _start(self, words: dict[str, Any]) -> None:
        """Hear what is coming, and find out where it will be."""
        tops = words.get("tops")
        if self._tops or not isinstance(tops, list) or not tops:
            raise ProtocolError("A start without sources, or a second one.")
        if not all(isinstance(top, dict) for top in tops):
            raise ProtocolError("A source is no object.")
        self._sources += tops
        if len(self._sources) > MOST_SOURCES:
            raise ProtocolError("More sources were told of than one can remember.")
        if words.get("more"):
            return
        self.start, tops = words, self._sources
        names = [str(top.get("name", "")) for top in tops]
        for name in names:
            if len(safe_names(name)) != 1:
                raise ProtocolError(f"A source is called {name!r}.")
            if self._asked and not is_asked_for(name, self._asked):
                raise FileTrouble(name, NOT_ASKED_FOR, Trouble.UNSAFE)
        place = full_path(self._destination, self._folder)
        is_folder = place.endswith(("/", os.sep)) or os.path.isdir(place)
        if not is_folder and len(tops) > 1:
            reason = "several sources need a folder: write a / at its end, and it is made"
            raise FileTrouble(self._destination, reason, Trouble.WORDS)
        place = os.path.realpath(place)
        self._root = place
        self._tops = {name: os.path.join(place, name) if is_folder else place for name in names}
        self.targets = list(self._tops.values())
        if not self._is_dry:
            self._prepare(place, is_folder=is_folder, has_folder=tops[0].get("is_folder") is True)
        ready = {"place": place, "is_folder": is_folder, "dry": self._is_dry}
        self._duplex.tell(Word.READY, ready)

    def _prepare(self, place: str, *, is_folder: bool, has_folder: bool) -> None:
        """Make the folder that was named, if it was named as one."""
        try:
            if is_folder:
                os.makedirs(place, exist_ok=True)
            elif not os.path.isdir(os.path.dirname(place)):
                reason = "there is no such folder"
                raise FileTrouble(os.path.dirname(place), reason, Trouble.MISSING)
            elif has_folder and os.path.lexists(place):
                reason = "this is a file, and a folder is to be put there"
                raise FileTrouble(place, reason, Trouble.IS_FILE)
        except OSError as error:
            raise trouble_of(error, place) from None

    def _place_of(self, path: str) -> str:
        """Return where an entry goes; raise FileTrouble if that is outside."""
        first, *rest = safe_names(path)
        top = self._tops.get(first)
        if top is None:
            raise FileTrouble(path, NOT_ASKED_FOR, Trouble.UNSAFE)
        place = os.path.join(top, *rest)
        folder = os.path.dirname(place)
        if place != self._root and folder not in self._checked and not self._is_dry:
            self._check_inside(folder, path)
            self._checked.add(folder)
        return place

    def _check_inside(self, place: str, path: str) -> None:
        """Raise FileTrouble if a link on the way to a place here leads out."""
        if not Path(os.path.realpath(place)).is_relative_to(self._root):
            reason = "a link that is there leads out of the folder that is to be written"
            raise FileTrouble(path, reason, Trouble.UNSAFE)

    # --- entries ---

    def _enter(self, words: dict[str, Any]) -> None:
        number, entry = number_of(words), read_entry(words)
        if number <= self._entered:
            raise ProtocolError(f"Entry {number} comes after entry {self._entered}.")
        self._entered = number
        if entry.kind == "file" and not self._is_dry:
            if len(self._known) >= MOST_TOLD:
                raise ProtocolError("More files were told of than one can remember.")
            self._known[number] = _Known(entry, None)
        have: dict[str, Any] = {"number": number, "size": 0, "sha256": ""}
        try:
            self._admit(number, entry, have, asks=words.get("asks") is True)
        except FileTrouble as trouble:
            if trouble.trouble is Trouble.UNSAFE:
                raise
            self._fail(number, trouble)
        if number in self._known and words.get("asks") is True:
            self._duplex.tell(Word.HAVE, have)

    def _admit(self, number: int, entry: Entry, have: dict[str, Any], *, asks: bool) -> None:
        """Make a folder or a link, or know of a file that is coming; find what `have` lacks."""
        place = self._place_of(entry.path)
        try:
            if self._is_dry:
                self.entries.append((entry, place))
            elif entry.kind == "folder":
                self._make_folder(entry, place)
            elif entry.kind == "link":
                self._make_link(entry, place)
            else:
                part = Part(place, entry)
                self._known[number] = _Known(entry, part)
                if asks:
                    have["size"], have["sha256"] = part.find()
        except OSError as error:
            raise trouble_of(error, place) from None

    def _make_folder(self, entry: Entry, place: str) -> None:
        if os.path.islink(place):
            self._check_inside(place, entry.path)  # its mode and time will be set
        if not os.path.isdir(place):
            os.mkdir(place, NEW_FOLDER)
        self._folders.append((place, entry))

    def _make_link(self, entry: Entry, place: str) -> None:
        """Make a link to a folder inside, seen from where the link is."""
        if place == self._root:
            raise ProtocolError("A source is never a link.")
        folder = Path(os.path.realpath(os.path.dirname(place)))
        target = safe_target(entry.target, len(folder.relative_to(self._root).parts))
        if os.path.islink(place) and os.readlink(place) == target:
            return
        if os.path.lexists(place):
            raise FileTrouble(place, "something is in the place of a link", Trouble.OTHER)
        os.symlink(target.replace("/", os.sep), place, target_is_directory=True)

    # --- bytes ---

    def _begin(self, number: int, at: int) -> None:
        known = self._known.get(number)
        if known is None or number <= self._last:
            raise ProtocolError(f"File {number} was never told of.")
        self._current = number
        self._size += at
        if known.part:
            self._touch(known.part.begin, at)

    def _write(self, data: memoryview) -> None:
        known = self._known.get(self._current)
        if known is None:
            raise ProtocolError("Bytes came of no file.")
        if known.part and data:
            self._size += len(data)
            self._touch(known.part.write, data)
        self._on_progress(self._size, self._files)

    def _end(self, words: dict[str, Any]) -> None:
        number = number_of(words)
        known = self._known.get(number)
        if known is None or number != self._current:
            raise ProtocolError(f"File {number} ends, and has not begun.")
        digest = check_digest(words.get("sha256"))
        if known.part:
            self._touch(known.part.finish, digest)
        known = self._known.pop(number)
        if known.part:  # it did not fail just now
            self._files += 1
        self._current, self._last = 0, number
        self._on_progress(self._size, self._files)

    def _touch(self, do: Callable[[Any], None], argument: Any) -> None:
        """Do something with the current file; if that fails, what comes of it is dropped."""
        number = self._current
        try:
            do(argument)
        except OSError as error:
            part = self._known[number].part
            self._fail(number, trouble_of(error, part.place if part else ""))
        except FileTrouble as trouble:
            self._fail(number, trouble)

    def _fail(self, number: int, trouble: FileTrouble) -> None:
        """Tell of one file's trouble; on a full disk nothing else would go better."""
        known = self._known.get(number)
        if trouble.trouble is Trouble.FULL:
            raise trouble
        if known and known.part:
            known.part.drop()
            self._known[number] = known._replace(part=None)
        if trouble.trouble is not Trouble.DAMAGED:  # that is sent again, and the sender counts
            self.troubles.append(trouble)
        self._duplex.tell(Word.FAILED, {**trouble.words(), "number": number})

    def _hear_failure(self, words: dict[str, Any]) -> None:
        """The sender could not send a file, or is to send it again."""
        number = number_of(words)
        known = self._known.pop(number, None)
        if known and known.part:
            known.part.drop()
        if number == self._current:
            self._current = 0
        if not words.get("again"):
            self.troubles.append(told_trouble(words))

    def _finish(self) -> None:
        """Give the folders their modes and times, the inner ones first: all is done."""
        if self._known:
            raise ProtocolError("That was all, and files are missing that were told of.")
        for place, entry in reversed(self._folders):
            settle(place, entry)
        self._duplex.tell(Word.OVER, {"files": self._files, "size": self._size})
