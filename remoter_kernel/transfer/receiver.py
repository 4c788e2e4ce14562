"""Receives files, and believes no sender: nothing lands but in the place of what was asked for.

House rules of this file:

- Every name is checked before anything is touched; one that leads out ends the transfer.
- So does a sender that sends more than it has announced, or more than this end can remember.
- A file gets its name once it is whole and its checksum compared; what was cut stays as a part.
- One file's trouble is reported, and the others go on; a full disk ends the transfer.
- The receiver acknowledges soon, as the sender waits for that, but not more often than it must.

Each source has its place, and nothing of it is written beside that. Where links on the way lead is
checked before anything is touched, and once more before bytes are written: what was not there at
first may be a link by then, that the sender has sent.
"""

from __future__ import annotations

import os
import reprlib
import struct
import time
from dataclasses import dataclass, field
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

MOST_AHEAD = 1024  # files that a sender may announce ahead of their bytes
PAUSE = 0.002  # seconds to wait for more frames, which are acknowledged together
ACK_EACH = 256 * 1024  # bytes
ACK_AFTER = 0.003  # seconds: each acknowledgement wakes four processes, so a fast path has fewer

MOST_CHECKED = 10_000  # folders that are remembered as checked
LEADS_OUT = "a link that is there leads out of the folder that is to be written"


class _IncomingFile(NamedTuple):
    """A file that the sender has announced."""

    entry: FileEntry
    part: PartialFile | None  # None: it was refused, and its bytes are dropped


class _ReceiveRun:
    """The state of one run: of one connection from the sender."""

    def __init__(self, stream: FramedStream) -> None:
        self.stream = stream
        self.sources: list[OfferedSource] = []  # as the sender lists them
        self.places: Destinations | None = None  # where they go, once it has listed all
        self.quota: TransferQuota | None = None
        self.incoming: dict[int, _IncomingFile] = {}
        self.remaining = 0  # bytes of the current file that may come
        self.current = 0  # the number of the file whose bytes come; 0: none
        self.last_entry = 0  # the number of the last entry
        self.last_file = 0  # the number of the last file that was dealt with
        self.acked = 0, 0.0  # the position that was acknowledged, and when
        self.size = self.files = 0

    def recv(self) -> tuple[FrameType, memoryview]:
        """Return the next frame; acknowledge those before it, soon, but not each by itself."""
        stream, (acked, acked_at) = self.stream, self.acked
        unacked, now = stream.received_bytes - acked, time.monotonic()
        is_much = unacked >= ACK_EACH and now - acked_at >= ACK_AFTER
        # With nothing more to read, the sender may be waiting for this acknowledgement.
        if is_much or (unacked and not stream.has_input() and not stream.has_input(PAUSE)):
            self.acked = stream.received_bytes, now
            stream.send_later(FrameType.ACK, ACK_BODY.pack(self.acked[0], self.last_file))
            stream.flush()
        return stream.recv()


@dataclass
class Receiver:
    """Receives into one place; may be `run` again on another stream after a cut."""

    destination: str  # as a person writes it, in `folder`
    folder: str
    on_progress: Callable[[int, int], None] = lambda _size, _files: None  # bytes, files
    asked: Sequence[str] = ()  # the words in which the sender was asked for its sources, if it was
    # Called, before anything is written, for such a word without a name, with its source's name.
    on_name: Callable[[str, str], None] = lambda _word, _name: None
    is_dry: bool = False
    start: dict[str, Any] = field(init=False, default_factory=dict)  # what the sender announces
    entries: list[tuple[FileEntry, str]] = field(init=False)  # of a dry run: what would go where
    targets: list[str] = field(init=False, default_factory=list)  # where each source will be
    troubles: list[FileTrouble] = field(init=False)
    _run: _ReceiveRun = field(init=False)  # the last one

    def run(self, stream: FramedStream) -> None:
        """Receive all that comes; raise Cut, or the trouble that ends it."""
        self._run = run = _ReceiveRun(stream)
        self.troubles, self.entries = [], []
        try:
            while self._on_frame(*run.recv()):
                pass
        except FileTrouble as trouble:
            stream.send_error(trouble)
            raise
        except (ProtocolError, struct.error) as error:
            reason = str(error)
            stream.send_error(FileTrouble("", reason))
            raise ProtocolError(f"The sender said what no sender says: {reason}") from None
        finally:
            for known in run.incoming.values():
                if known.part:
                    known.part.keep_for_resume()
            stream.stop()

    def _on_frame(self, word: FrameType, body: memoryview) -> bool:
        """Handle one frame; False: that was all."""
        handlers = {
            FrameType.START: self._on_start,
            FrameType.ENTRY: self._on_entry,
            FrameType.END: self._on_end,
            FrameType.FAILED: self._on_failed,
        }
        if word is FrameType.DATA:
            self._on_data(body)
        elif word is FrameType.BODY:
            self._on_body(*BODY_START.unpack(body))
        elif word in handlers:
            handlers[word](from_body(body))
        elif word is FrameType.ERROR:
            raise trouble_from_dict(from_body(body))
        elif word is FrameType.PING:
            self._run.stream.send_later(FrameType.PONG)
            self._run.stream.flush()
        elif word is FrameType.FINISH:
            self._finish()
            return False
        elif word is not FrameType.ALIVE:
            raise ProtocolError(f"A sender does not say {word.name}.")
        return True

    def _on_start(self, words: dict[str, Any]) -> None:
        """Learn what is coming, and find out where it will be; answer READY."""
        run = self._run
        if run.places:
            raise ProtocolError("A second start.")
        run.sources += read_sources(words.get("tops"))
        if len(run.sources) > MOST_SOURCES:
            raise ProtocolError("More sources were told of than one can remember.")
        if words.get("more"):
            return
        run.quota = TransferQuota(words)
        left_out = words.get("left_out")
        lines = left_out[:MOST_TOLD] if isinstance(left_out, list) else []
        self.start = {
            "files": run.quota.files,
            "size": run.quota.size,
            "left_out": [str(line)[:LONGEST_TOLD] for line in lines],
        }
        names = [source.name for source in run.sources]
        news = check_requested_names(names, self.asked) if self.asked else []
        places = find_places(run.sources, self.destination, self.folder)
        self.targets = places.targets
        for word, name in news:
            self.on_name(word, name)
        if not self.is_dry:
            places.prepare()
        run.places = places
        ready = {"place": places.root, "is_folder": places.is_folder, "dry": self.is_dry}
        run.stream.send_json(FrameType.READY, ready)

    def _started(self) -> tuple[Destinations, TransferQuota]:
        if self._run.places is None or self._run.quota is None:
            raise ProtocolError("Something came before the start.")
        return self._run.places, self._run.quota

    # --- entries ---

    def _on_entry(self, words: dict[str, Any]) -> None:
        run, (places, quota) = self._run, self._started()
        number, entry = number_of(words), entry_from_dict(words)
        if number <= run.last_entry:
            raise ProtocolError(f"Entry {number} comes after entry {run.last_entry}.")
        run.last_entry = number
        quota.count(entry)
        if entry.kind == "file" and not self.is_dry:
            if len(run.incoming) >= MOST_AHEAD:
                raise ProtocolError("More files were told of than one can remember.")
            run.incoming[number] = _IncomingFile(entry, None)
        asks = words.get("asks") is True
        size, digest = 0, ""  # of what is there already
        try:
            part = self._make_or_expect(number, entry)
            if part and asks:
                size, digest = part.find_resumable()
        except OSError as error:
            self._fail_file(number, trouble_from_os(error, places.path_of(entry)))
        except FileTrouble as trouble:
            if trouble.code in {TroubleCode.UNSAFE, TroubleCode.WORDS}:
                raise
            self._fail_file(number, trouble)
        if number in run.incoming and asks:
            have = {"number": number, "size": size, "sha256": digest}
            run.stream.send_json(FrameType.HAVE, have)

    def _make_or_expect(self, number: int, entry: FileEntry) -> PartialFile | None:
        """Make a folder or a link; return the part of a file that is coming."""
        places, quota = self._started()
        place = places.path_of(entry)
        if self.is_dry:
            quota.hold(entry.path, place)
            self.entries.append((entry, place))
        elif entry.kind == "folder":
            quota.hold(entry.path, place)
            places.make_folder(entry, place)
        elif entry.kind == "link":
            places.make_link(entry, place)
        else:
            part = PartialFile(place, entry, places.mask)
            self._run.incoming[number] = _IncomingFile(entry, part)
            return part
        return None

    # --- bytes ---

    def _on_body(self, number: int, at: int) -> None:
        run, known = self._run, self._run.incoming.get(number)
        if known is None or number <= run.last_file or run.current:
            raise ProtocolError(f"File {number} was never told of, or another one has not ended.")
        if at > known.entry.size:
            raise ProtocolError(f"{at} bytes of {known.entry.size} are to be kept.")
        run.current, run.remaining = number, known.entry.size - at
        run.size += at
        if known.part:
            # Checked again, as meanwhile the sender may have sent a link on the way to it.
            self._started()[0].path_of(known.entry)
            self._try_on_current(known.part.open_at, at)

    def _on_data(self, data: memoryview) -> None:
        run, known = self._run, self._run.incoming.get(self._run.current)
        if known is None:
            raise ProtocolError("Bytes came of no file.")
        run.remaining -= len(data)
        if run.remaining < 0:
            raise ProtocolError("More came of a file than there is.")
        if known.part and data:
            run.size += len(data)
            self._try_on_current(known.part.write, data)
        self.on_progress(run.size, run.files)

    def _on_end(self, words: dict[str, Any]) -> None:
        run, number = self._run, number_of(words)
        known = run.incoming.get(number)
        if known is None or number != run.current:
            raise ProtocolError(f"File {number} ends, and has not begun.")
        digest = read_digest(words.get("sha256"))
        if known.part:
            self._try_on_current(known.part.finish, digest)
        known = run.incoming.pop(number)
        if known.part:  # it did not fail just now
            run.files += 1
        else:
            self._started()[1].uncount(known.entry)
        run.current, run.last_file = 0, number
        self.on_progress(run.size, run.files)

    def _try_on_current(self, do: Callable[[Any], None], argument: Any) -> None:
        """Do something with the current file; if that fails, the rest of it is dropped."""
        number = self._run.current
        try:
            do(argument)
        except OSError as error:
            part = self._run.incoming[number].part
            self._fail_file(number, trouble_from_os(error, part.place if part else ""))
        except FileTrouble as trouble:
            self._fail_file(number, trouble)

    def _fail_file(self, number: int, trouble: FileTrouble) -> None:
        """Report one file's trouble, and go on; raise it on a full disk, where all would fail."""
        known = self._run.incoming.get(number)
        if trouble.code is TroubleCode.FULL:
            raise trouble
        if known and known.part:
            known.part.discard()
            self._run.incoming[number] = known._replace(part=None)
        if trouble.code is not TroubleCode.DAMAGED:  # that is sent again, and the sender counts
            append_trouble(self.troubles, trouble)
        self._run.stream.send_json(FrameType.FAILED, {**trouble.to_dict(), "number": number})

    def _on_failed(self, words: dict[str, Any]) -> None:
        """Drop a file that the sender could not send, or is about to send again."""
        run, number = self._run, number_of(words)
        known = run.incoming.pop(number, None)
        if known is None and (number or words.get("again")):
            raise ProtocolError(f"File {number} failed, and was never told of.")
        if known:
            self._started()[1].uncount(known.entry)
            if known.part:
                known.part.discard()
        if number == run.current:
            run.current = 0
        if not words.get("again"):
            append_trouble(self.troubles, trouble_from_dict(words))

    def _finish(self) -> None:
        run = self._run
        if run.incoming:
            raise ProtocolError("That was all, and files are missing that were told of.")
        if run.places:
            run.places.finish()
        run.stream.send_json(FrameType.OVER, {"files": run.files, "size": run.size})


class OfferedSource(NamedTuple):
    """A source, as the sender lists it."""

    name: str
    is_folder: bool


class TransferTarget(NamedTuple):
    """Where a source goes."""

    place: str
    real: str  # without links: what is inside of a folder stays below it
    is_folder: bool


def read_sources(tops: object) -> list[OfferedSource]:
    """Read the sources of a START; ProtocolError if they are nonsense."""
    if not isinstance(tops, list) or not tops:
        raise ProtocolError("A start without sources.")
    sources = []
    for top in tops:
        if not isinstance(top, dict):
            raise ProtocolError("A source is no object.")
        name = str(top.get("name", ""))
        if len(name) > LONGEST or len(safe_names(name)) != 1:
            raise ProtocolError(f"A source is called {reprlib.repr(name)}.")
        sources.append(OfferedSource(name, top.get("is_folder") is True))
    return sources


class Destinations:
    """The places of all sources of one transfer, and the folders that are made in them."""

    def __init__(self, root: str, tops: dict[str, TransferTarget], *, is_folder: bool) -> None:
        self.root = root  # what was named here, without links
        self.is_folder = is_folder  # is it one that the sources go into?
        self.mask = read_umask()
        self._tops = tops
        self._checked: set[str] = set()  # folders that are there, and inside of their tops
        # Folders that were sent, each with the mode of what was there before.
        self._folders: list[tuple[str, FileEntry, int | None]] = []

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
            if len(self._checked) >= MOST_CHECKED:
                self._checked.clear()
            if os.path.isdir(folder):  # where nothing is yet, the sender may put a link
                self._checked.add(folder)
        return place

    def _top_of(self, path: str) -> tuple[TransferTarget, list[str]]:
        first, *rest = safe_names(path)
        top = self._tops.get(first)
        if top is None:
            raise FileTrouble(path, NOT_ASKED_FOR, TroubleCode.UNSAFE)
        return top, rest

    def check_inside(self, place: str, path: str) -> Path:
        """Return the real place; raise FileTrouble if a link on the way to it leads out."""
        real = Path(os.path.realpath(place))
        if not real.is_relative_to(self._top_of(path)[0].real):
            raise FileTrouble(path, LEADS_OUT, TroubleCode.UNSAFE)
        return real

    def make_folder(self, entry: FileEntry, place: str) -> None:
        """Make a folder that can be written into; `finish` gives it its own mode and time."""
        if os.path.islink(place):
            self.check_inside(place, entry.path)  # its mode and time will be set
        before = None
        if os.path.isdir(place):
            before = os.stat(place).st_mode
        else:
            os.mkdir(place, 0o700 | (0o777 if entry.mode is None else entry.mode))  # less the umask
        self._folders.append((place, entry, before))

    def make_link(self, entry: FileEntry, place: str) -> None:
        """Make a link to a folder inside its source, seen from where the link is."""
        folder = self.check_inside(os.path.dirname(place), entry.path)
        depth = len(folder.relative_to(self._top_of(entry.path)[0].real).parts)
        target = safe_target(entry.target, depth)
        if os.path.islink(place) and os.readlink(place) == target:
            return
        if os.path.lexists(place):
            raise FileTrouble(place, "something is in the place of a link", TroubleCode.OTHER)
        os.symlink(target.replace("/", os.sep), place, target_is_directory=True)

    def finish(self) -> None:
        """Give the folders their modes and times: what is put into a folder changes its time."""
        for place, entry, before in reversed(self._folders):  # the inner ones first
            set_mode_and_time(place, entry, self.mask, before)


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
