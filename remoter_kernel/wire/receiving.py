"""Receives files, and believes no sender: nothing lands but in the place of what was asked for.

House rules of this file:

- Every name is checked before anything is touched; one that leads out ends the transfer.
- So does a sender that sends more than it has told of, or more than one can remember.
- A file bears its name once it is whole, its checksum compared; what was cut stays as a part.
- One file's trouble is told, and the others go on; a full disk is everybody's.
- What has been dealt with is acknowledged soon, as the sender waits for that, but not more often
  than it must be.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.destinations import OfferedSource, Places, find_places, read_sources
from remoter_kernel.wire.names import check_digest, names_asked_for
from remoter_kernel.wire.part import Part, read_umask, settle
from remoter_kernel.wire.quota import Quota
from remoter_kernel.wire.sources import LONGEST_TOLD, MOST_TOLD, trouble_of
from remoter_kernel.wire.wire_format import (
    BEGINS,
    MOST_SOURCES,
    TAKEN,
    FileEntry,
    FileTrouble,
    FrameType,
    Trouble,
    add_trouble,
    from_body,
    number_of,
    read_entry,
    told_trouble,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.wire.duplex import Duplex

MOST_AHEAD = 1024  # files that a sender may tell ahead of their bytes
PAUSE = 0.002  # seconds: what comes meanwhile is acknowledged together
ACK_EACH = 256 * 1024  # bytes
ACK_AFTER = 0.003  # seconds: each acknowledgement wakes four processes, so a fast path has fewer


class _Known(NamedTuple):
    """What the sender has told of."""

    entry: FileEntry
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
        on_name: Callable[[str, str], None] = lambda _word, _name: None,
        is_dry: bool = False,
    ) -> None:
        """Remember; `destination` as a person writes it, in `folder`.

        `asked`: in which words the sender was asked for its sources, if it was. `on_name` hears,
        before anything is written, of such a word that says no name, and what its source is called.
        """
        self.start: dict[str, Any] = {}  # what the sender says is coming
        self.entries: list[tuple[FileEntry, str]] = []  # of a dry run: what would go where
        self.targets: list[str] = []  # where each source will be
        self.troubles: list[FileTrouble] = []
        self._destination = destination
        self._folder = folder
        self._on_progress = on_progress
        self._asked = asked
        self._on_name = on_name
        self._is_dry = is_dry
        self._size = self._files = 0
        self._readers: dict[FrameType, Callable[[dict[str, Any]], None]] = {
            FrameType.START: self._start,
            FrameType.ENTRY: self._enter,
            FrameType.END: self._end,
            FrameType.FAILED: self._hear_failure,
            FrameType.ERROR: self._hear_end,
        }

    def run(self, duplex: Duplex) -> None:
        """Receive all that comes; raise Cut, or the trouble that ends it."""
        self._duplex = duplex
        self._mask = read_umask()
        self._sources: list[OfferedSource] = []  # as the sender tells of them
        self._places: Places | None = None  # where they go, once it has told of all
        self._known: dict[int, _Known] = {}
        self._folders: list[tuple[str, FileEntry, int | None]] = []  # the mode of what was there
        self._left = 0  # bytes of the current file that may come
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
            duplex.tell_end(trouble)
            raise
        except (ProtocolError, struct.error) as error:
            reason = str(error)
            duplex.tell_end(FileTrouble("", reason))
            raise ProtocolError(f"The sender said what no sender says: {reason}") from None
        finally:
            for known in self._known.values():
                if known.part:
                    known.part.keep()
            duplex.stop()

    def _hear(self) -> tuple[FrameType, memoryview]:
        duplex = self._duplex
        unsaid, now = duplex.heard - self._told, time.monotonic()
        is_much = unsaid >= ACK_EACH and now - self._told_at >= ACK_AFTER
        if is_much or (unsaid and not duplex.is_heard() and not duplex.is_heard(PAUSE)):
            self._told, self._told_at = duplex.heard, now
            duplex.say(FrameType.ACK, TAKEN.pack(self._told, self._last))
            duplex.flush()
        return duplex.hear()

    def _take(self, word: FrameType, body: memoryview) -> bool:
        """Deal with one frame; False: that was all."""
        if word is FrameType.DATA:
            self._write(body)
        elif word is FrameType.BODY:
            self._begin(*BEGINS.unpack(body))
        elif word in self._readers:
            self._readers[word](from_body(body))
        elif word is FrameType.PING:
            self._duplex.say(FrameType.PONG)
            self._duplex.flush()
        elif word is FrameType.FINISH:
            self._finish()
            return False
        elif word is not FrameType.ALIVE:
            raise ProtocolError(f"A sender does not say {word.name}.")
        return True

    @staticmethod
    def _hear_end(words: dict[str, Any]) -> None:
        raise told_trouble(words)

    def _start(self, words: dict[str, Any]) -> None:
        """Hear what is coming, and find out where it will be."""
        if self._places:
            raise ProtocolError("A second start.")
        self._sources += read_sources(words.get("tops"))
        if len(self._sources) > MOST_SOURCES:
            raise ProtocolError("More sources were told of than one can remember.")
        if words.get("more"):
            return
        self._quota = Quota(words)
        left_out = words.get("left_out")
        lines = left_out[:MOST_TOLD] if isinstance(left_out, list) else []
        self.start = {
            "files": self._quota.files,
            "size": self._quota.size,
            "left_out": [str(line)[:LONGEST_TOLD] for line in lines],
        }
        names = [source.name for source in self._sources]
        news = names_asked_for(names, self._asked) if self._asked else []
        places = find_places(self._sources, self._destination, self._folder)
        self.targets = places.targets
        for word, name in news:
            self._on_name(word, name)
        if not self._is_dry:
            places.prepare()
        self._places = places
        ready = {"place": places.root, "is_folder": places.is_folder, "dry": self._is_dry}
        self._duplex.tell(FrameType.READY, ready)

    @property
    def _started(self) -> Places:
        if self._places is None:
            raise ProtocolError("Something came before the start.")
        return self._places

    # --- entries ---

    def _enter(self, words: dict[str, Any]) -> None:
        places, number, entry = self._started, number_of(words), read_entry(words)
        if number <= self._entered:
            raise ProtocolError(f"Entry {number} comes after entry {self._entered}.")
        self._entered = number
        self._quota.use(entry)
        if entry.kind == "file" and not self._is_dry:
            if len(self._known) >= MOST_AHEAD:
                raise ProtocolError("More files were told of than one can remember.")
            self._known[number] = _Known(entry, None)
        have: dict[str, Any] = {"number": number, "size": 0, "sha256": ""}
        try:
            self._admit(places, number, entry, have, asks=words.get("asks") is True)
        except FileTrouble as trouble:
            if trouble.trouble in {Trouble.UNSAFE, Trouble.WORDS}:
                raise
            self._fail(number, trouble)
        if number in self._known and words.get("asks") is True:
            self._duplex.tell(FrameType.HAVE, have)

    def _admit(
        self, places: Places, number: int, entry: FileEntry, have: dict[str, Any], *, asks: bool
    ) -> None:
        """Make a folder or a link, or know of a file that is coming; find what `have` lacks."""
        place = places.place_of(entry)
        try:
            if self._is_dry:
                self._quota.hold(entry.path, place)
                self.entries.append((entry, place))
            elif entry.kind == "folder":
                self._make_folder(places, entry, place)
            elif entry.kind == "link":
                self._make_link(places, entry, place)
            else:
                part = Part(place, entry, self._mask)
                self._known[number] = _Known(entry, part)
                if asks:
                    have["size"], have["sha256"] = part.find()
        except OSError as error:
            raise trouble_of(error, place) from None

    def _make_folder(self, places: Places, entry: FileEntry, place: str) -> None:
        """Make a folder that can be written into; what it is to be like comes at the end."""
        self._quota.hold(entry.path, place)
        if os.path.islink(place):
            places.check_inside(place, entry.path)  # its mode and time will be set
        before = None
        if os.path.isdir(place):
            before = os.stat(place).st_mode
        else:
            os.mkdir(place, 0o700 | (0o777 if entry.mode is None else entry.mode))  # less the umask
        self._folders.append((place, entry, before))

    @staticmethod
    def _make_link(places: Places, entry: FileEntry, place: str) -> None:
        """Make a link to a folder inside, seen from where the link is."""
        target = places.target_of(entry, place)
        if os.path.islink(place) and os.readlink(place) == target:
            return
        if os.path.lexists(place):
            raise FileTrouble(place, "something is in the place of a link", Trouble.OTHER)
        os.symlink(target.replace("/", os.sep), place, target_is_directory=True)

    # --- bytes ---

    def _begin(self, number: int, at: int) -> None:
        known = self._known.get(number)
        if known is None or number <= self._last or self._current:
            raise ProtocolError(f"File {number} was never told of, or another one has not ended.")
        if at > known.entry.size:
            raise ProtocolError(f"{at} bytes of {known.entry.size} are to be kept.")
        self._current, self._left = number, known.entry.size - at
        self._size += at
        if known.part:
            self._started.place_of(known.entry)  # meanwhile a link may have come on the way to it
            self._touch(known.part.begin, at)

    def _write(self, data: memoryview) -> None:
        known = self._known.get(self._current)
        if known is None:
            raise ProtocolError("Bytes came of no file.")
        self._left -= len(data)
        if self._left < 0:
            raise ProtocolError("More came of a file than there is.")
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
        else:
            self._quota.give_back(known.entry)
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
            add_trouble(self.troubles, trouble)
        self._duplex.tell(FrameType.FAILED, {**trouble.words(), "number": number})

    def _hear_failure(self, words: dict[str, Any]) -> None:
        """The sender could not send a file, or is to send it again."""
        number = number_of(words)
        known = self._known.pop(number, None)
        if known is None and (number or words.get("again")):
            raise ProtocolError(f"File {number} failed, and was never told of.")
        if known:
            self._quota.give_back(known.entry)
            if known.part:
                known.part.drop()
        if number == self._current:
            self._current = 0
        if not words.get("again"):
            add_trouble(self.troubles, told_trouble(words))

    def _finish(self) -> None:
        """Give the folders their modes and times, the inner ones first: all is done."""
        if self._known:
            raise ProtocolError("That was all, and files are missing that were told of.")
        for place, entry, before in reversed(self._folders):
            settle(place, entry, self._mask, before)
        self._duplex.tell(FrameType.OVER, {"files": self._files, "size": self._size})
