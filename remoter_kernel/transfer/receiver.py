"""Receives files, and believes no sender: nothing lands but in the place of what was asked for.

House rules of this file:

- Every name is checked before anything is touched; one that leads out ends the transfer.
- So does a sender that sends more than it has told of, or more than one can remember.
- A file bears its name once it is whole, its checksum compared; what was cut stays as a part.
- One file's trouble is told, and the others go on; a full disk is everybody's.
- What has been dealt with is acknowledged soon, as the sender waits for that, but not more often
  than it must be.

Where received things go: each source has its place, and nothing of it is written beside that. Where
links on the way lead is looked at before anything is touched, and once more before bytes are
written: what was not there at first may be a link by then, that the sender has sent.
"""

from __future__ import annotations

import os
import reprlib
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.transfer.framed_stream import (
    ACK_BODY,
    BODY_START,
    MOST_SOURCES,
    FileEntry,
    FileTrouble,
    FrameType,
    TroubleCode,
    append_trouble,
    entry_from_dict,
    from_body,
    number_of,
    trouble_from_dict,
)
from remoter_kernel.transfer.partial_file import PartialFile, read_umask, set_mode_and_time
from remoter_kernel.transfer.plan import LONGEST_TOLD, MOST_TOLD, full_path, trouble_from_os
from remoter_kernel.transfer.quota import TransferQuota
from remoter_kernel.transfer.safe_paths import (
    LONGEST,
    NOT_ASKED_FOR,
    check_requested_names,
    read_digest,
    safe_names,
    safe_target,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.transfer.framed_stream import FramedStream

MOST_AHEAD = 1024  # files that a sender may tell ahead of their bytes
PAUSE = 0.002  # seconds: what comes meanwhile is acknowledged together
ACK_EACH = 256 * 1024  # bytes
ACK_AFTER = 0.003  # seconds: each acknowledgement wakes four processes, so a fast path has fewer

MOST_CHECKED = 10_000  # folders that are known to be inside
LEADS_OUT = "a link that is there leads out of the folder that is to be written"


class _IncomingFile(NamedTuple):
    """What the sender has told of."""

    entry: FileEntry
    part: PartialFile | None  # None: it was refused, and what comes of it is dropped


class Receiver:
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
        self._handlers: dict[FrameType, Callable[[dict[str, Any]], None]] = {
            FrameType.START: self._on_start,
            FrameType.ENTRY: self._on_entry,
            FrameType.END: self._on_end,
            FrameType.FAILED: self._on_failed,
            FrameType.ERROR: self._on_error,
        }

    def run(self, stream: FramedStream) -> None:
        """Receive all that comes; raise Cut, or the trouble that ends it."""
        self._stream = stream
        self._mask = read_umask()
        self._sources: list[OfferedSource] = []  # as the sender tells of them
        self._destinations: Destinations | None = None  # where they go, once it has told of all
        self._incoming: dict[int, _IncomingFile] = {}
        self._folders: list[tuple[str, FileEntry, int | None]] = []  # the mode of what was there
        self._remaining = 0  # bytes of the current file that may come
        self._current = 0  # the number of the file whose bytes come
        self._last_entry = 0  # the number of the last entry
        self._last_file = 0  # the number of the last file that was dealt with
        self._acked_bytes, self._acked_at = 0, 0.0  # the position that was acknowledged, and when
        self._size = self._files = 0
        self.troubles, self.entries = [], []
        try:
            while self._on_frame(*self._recv_acking()):
                pass
        except FileTrouble as trouble:
            stream.send_error(trouble)
            raise
        except (ProtocolError, struct.error) as error:
            reason = str(error)
            stream.send_error(FileTrouble("", reason))
            raise ProtocolError(f"The sender said what no sender says: {reason}") from None
        finally:
            for known in self._incoming.values():
                if known.part:
                    known.part.keep_for_resume()
            stream.stop()

    def _recv_acking(self) -> tuple[FrameType, memoryview]:
        stream = self._stream
        unsaid, now = stream.received_bytes - self._acked_bytes, time.monotonic()
        is_much = unsaid >= ACK_EACH and now - self._acked_at >= ACK_AFTER
        if is_much or (unsaid and not stream.has_input() and not stream.has_input(PAUSE)):
            self._acked_bytes, self._acked_at = stream.received_bytes, now
            stream.send_later(FrameType.ACK, ACK_BODY.pack(self._acked_bytes, self._last_file))
            stream.flush()
        return stream.recv()

    def _on_frame(self, word: FrameType, body: memoryview) -> bool:
        """Deal with one frame; False: that was all."""
        if word is FrameType.DATA:
            self._on_data(body)
        elif word is FrameType.BODY:
            self._on_body(*BODY_START.unpack(body))
        elif word in self._handlers:
            self._handlers[word](from_body(body))
        elif word is FrameType.PING:
            self._stream.send_later(FrameType.PONG)
            self._stream.flush()
        elif word is FrameType.FINISH:
            self._finish()
            return False
        elif word is not FrameType.ALIVE:
            raise ProtocolError(f"A sender does not say {word.name}.")
        return True

    @staticmethod
    def _on_error(words: dict[str, Any]) -> None:
        raise trouble_from_dict(words)

    def _on_start(self, words: dict[str, Any]) -> None:
        """Hear what is coming, and find out where it will be."""
        if self._destinations:
            raise ProtocolError("A second start.")
        self._sources += read_sources(words.get("tops"))
        if len(self._sources) > MOST_SOURCES:
            raise ProtocolError("More sources were told of than one can remember.")
        if words.get("more"):
            return
        self._quota = TransferQuota(words)
        left_out = words.get("left_out")
        lines = left_out[:MOST_TOLD] if isinstance(left_out, list) else []
        self.start = {
            "files": self._quota.files,
            "size": self._quota.size,
            "left_out": [str(line)[:LONGEST_TOLD] for line in lines],
        }
        names = [source.name for source in self._sources]
        news = check_requested_names(names, self._asked) if self._asked else []
        places = find_places(self._sources, self._destination, self._folder)
        self.targets = places.targets
        for word, name in news:
            self._on_name(word, name)
        if not self._is_dry:
            places.prepare()
        self._destinations = places
        ready = {"place": places.root, "is_folder": places.is_folder, "dry": self._is_dry}
        self._stream.send_json(FrameType.READY, ready)

    @property
    def _started_destinations(self) -> Destinations:
        if self._destinations is None:
            raise ProtocolError("Something came before the start.")
        return self._destinations

    # --- entries ---

    def _on_entry(self, words: dict[str, Any]) -> None:
        places, number, entry = self._started_destinations, number_of(words), entry_from_dict(words)
        if number <= self._last_entry:
            raise ProtocolError(f"Entry {number} comes after entry {self._last_entry}.")
        self._last_entry = number
        self._quota.count(entry)
        if entry.kind == "file" and not self._is_dry:
            if len(self._incoming) >= MOST_AHEAD:
                raise ProtocolError("More files were told of than one can remember.")
            self._incoming[number] = _IncomingFile(entry, None)
        have: dict[str, Any] = {"number": number, "size": 0, "sha256": ""}
        try:
            self._create_or_expect(places, number, entry, have, asks=words.get("asks") is True)
        except FileTrouble as trouble:
            if trouble.code in {TroubleCode.UNSAFE, TroubleCode.WORDS}:
                raise
            self._fail_file(number, trouble)
        if number in self._incoming and words.get("asks") is True:
            self._stream.send_json(FrameType.HAVE, have)

    def _create_or_expect(
        self,
        places: Destinations,
        number: int,
        entry: FileEntry,
        have: dict[str, Any],
        *,
        asks: bool,
    ) -> None:
        """Make a folder or a link, or know of a file that is coming; find what `have` lacks."""
        place = places.path_of(entry)
        try:
            if self._is_dry:
                self._quota.hold(entry.path, place)
                self.entries.append((entry, place))
            elif entry.kind == "folder":
                self._make_folder(places, entry, place)
            elif entry.kind == "link":
                self._make_link(places, entry, place)
            else:
                part = PartialFile(place, entry, self._mask)
                self._incoming[number] = _IncomingFile(entry, part)
                if asks:
                    have["size"], have["sha256"] = part.find_resumable()
        except OSError as error:
            raise trouble_from_os(error, place) from None

    def _make_folder(self, places: Destinations, entry: FileEntry, place: str) -> None:
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
    def _make_link(places: Destinations, entry: FileEntry, place: str) -> None:
        """Make a link to a folder inside, seen from where the link is."""
        target = places.target_of(entry, place)
        if os.path.islink(place) and os.readlink(place) == target:
            return
        if os.path.lexists(place):
            raise FileTrouble(place, "something is in the place of a link", TroubleCode.OTHER)
        os.symlink(target.replace("/", os.sep), place, target_is_directory=True)

    # --- bytes ---

    def _on_body(self, number: int, at: int) -> None:
        known = self._incoming.get(number)
        if known is None or number <= self._last_file or self._current:
            raise ProtocolError(f"File {number} was never told of, or another one has not ended.")
        if at > known.entry.size:
            raise ProtocolError(f"{at} bytes of {known.entry.size} are to be kept.")
        self._current, self._remaining = number, known.entry.size - at
        self._size += at
        if known.part:
            self._started_destinations.path_of(
                known.entry
            )  # meanwhile a link may have come on the way to it
            self._try_on_current(known.part.open_at, at)

    def _on_data(self, data: memoryview) -> None:
        known = self._incoming.get(self._current)
        if known is None:
            raise ProtocolError("Bytes came of no file.")
        self._remaining -= len(data)
        if self._remaining < 0:
            raise ProtocolError("More came of a file than there is.")
        if known.part and data:
            self._size += len(data)
            self._try_on_current(known.part.write, data)
        self._on_progress(self._size, self._files)

    def _on_end(self, words: dict[str, Any]) -> None:
        number = number_of(words)
        known = self._incoming.get(number)
        if known is None or number != self._current:
            raise ProtocolError(f"File {number} ends, and has not begun.")
        digest = read_digest(words.get("sha256"))
        if known.part:
            self._try_on_current(known.part.finish, digest)
        known = self._incoming.pop(number)
        if known.part:  # it did not fail just now
            self._files += 1
        else:
            self._quota.uncount(known.entry)
        self._current, self._last_file = 0, number
        self._on_progress(self._size, self._files)

    def _try_on_current(self, do: Callable[[Any], None], argument: Any) -> None:
        """Do something with the current file; if that fails, what comes of it is dropped."""
        number = self._current
        try:
            do(argument)
        except OSError as error:
            part = self._incoming[number].part
            self._fail_file(number, trouble_from_os(error, part.place if part else ""))
        except FileTrouble as trouble:
            self._fail_file(number, trouble)

    def _fail_file(self, number: int, trouble: FileTrouble) -> None:
        """Tell of one file's trouble; on a full disk nothing else would go better."""
        known = self._incoming.get(number)
        if trouble.code is TroubleCode.FULL:
            raise trouble
        if known and known.part:
            known.part.discard()
            self._incoming[number] = known._replace(part=None)
        if trouble.code is not TroubleCode.DAMAGED:  # that is sent again, and the sender counts
            append_trouble(self.troubles, trouble)
        self._stream.send_json(FrameType.FAILED, {**trouble.to_dict(), "number": number})

    def _on_failed(self, words: dict[str, Any]) -> None:
        """The sender could not send a file, or is to send it again."""
        number = number_of(words)
        known = self._incoming.pop(number, None)
        if known is None and (number or words.get("again")):
            raise ProtocolError(f"File {number} failed, and was never told of.")
        if known:
            self._quota.uncount(known.entry)
            if known.part:
                known.part.discard()
        if number == self._current:
            self._current = 0
        if not words.get("again"):
            append_trouble(self.troubles, trouble_from_dict(words))

    def _finish(self) -> None:
        """Give the folders their modes and times, the inner ones first: all is done."""
        if self._incoming:
            raise ProtocolError("That was all, and files are missing that were told of.")
        for place, entry, before in reversed(self._folders):
            set_mode_and_time(place, entry, self._mask, before)
        self._stream.send_json(FrameType.OVER, {"files": self._files, "size": self._size})


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
