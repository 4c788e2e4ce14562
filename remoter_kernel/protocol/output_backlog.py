r"""What waits for a receiver that cannot keep up: joined, collapsed, held back if it is too much.

Pure: no I/O, no clock. House rules of the backlog:

- Items are given out in their order. Numbers only grow; they have gaps where something was left
  out.
- Neighbouring texts of one stream and cell become one, and lose what a terminal would have
  overwritten. `clear_output` takes away what waits of its cell; an update of a display takes
  away the update before it.
- When more text of one cell waits than is allowed, only its head and its tail stay, and one
  notice in between says how much went. Of an interrupted cell much less stays, and no head.
- Results, displays, errors, replies, statuses and comms are never held back.

House rules of the terminal text: what a terminal would have overwritten is left out; what a person
sees at the end stays.

- `\r` goes back to the line's first column, `\b` back by one, and what is written there covers
  what was there. Terminals and notebooks agree on no more than that, so no more is used.
- A line is a list of segments with `\r` between them. One that a later one covers leaves no
  trace, so it goes. Nothing is ever rewritten: whatever stays was printed just so.
- Where a text begins is not known: its first segment stands in some column, and stays.
- A colour's escape sequence has characters (for a notebook) and no columns (for a terminal), so a
  segment counts as covered only if it is by both counts, and only if colours are off before and
  after it. Nothing is covered across any other control character.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.protocol import messages
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    METADATA,
    PARENT,
    content_of,
    header_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.protocol.frames import Bytes

BACKLOG_LIMIT = 8 * 1024 * 1024  # bytes of one cell's text
INTERRUPTED_LIMIT = 64 * 1024  # bytes of an interrupted cell's text
TAIL = 8  # the part of what is allowed that stays when it was too much
JOINED = 64 * 1024  # bytes: a text this large is not made larger
FULL = 2  # times what one cell may have waiting, all cells together
MOST_ITEMS = 20_000
MOST_HELD = 2**63  # bytes: what says more is no notice of ours
CELLS_REMEMBERED = 50  # that were interrupted
COMM_TYPES = frozenset({"comm_open", "comm_msg", "comm_close"})
HELD_BACK = "remoter_held_back"  # in the metadata of a notice: bytes

_COLOUR = re.compile(r"\x1b\[([0-9;]*)m")
_RESET = frozenset({"", "0", "00"})
_BREAK = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BACK = re.compile(r"(\x08+)")


class OutputKind(Enum):
    """What can become of an item that waits."""

    OTHER = "other"  # it is passed on
    TEXT = "text"
    NOTICE = "note"  # stands for text that was held back
    OUTPUT = "output"  # goes when its cell is cleared
    CLEAR = "clear"
    UPDATE = "update"  # goes when the same display is updated again


@dataclass(eq=False)  # one that is equal to another one is still not that one
class BacklogItem:
    """One item that waits; `payload` is whatever the owner of the backlog wants back."""

    number: int
    payload: Any
    kind: OutputKind = OutputKind.OTHER
    cell: CellBacklog | None = None
    is_gone: bool = False  # given out, or left out
    name: str = ""  # of the stream, or of the display
    parts: Sequence[Bytes] = ()
    texts: list[str] = field(default_factory=list)  # joined only when it is given out
    size: int = 0  # bytes of text
    held_back: int = 0  # bytes of text that were held back out of it


@dataclass(eq=False)
class CellBacklog:
    """What waits of one cell; `key` is the request's id."""

    key: str
    size: int = 0  # bytes of text
    texts: deque[BacklogItem] = field(default_factory=deque)
    clearable: deque[BacklogItem] = field(default_factory=deque)
    notice: BacklogItem | None = None
    clears_next: BacklogItem | None = None  # a `clear_output` that waits for the next output


class Coalesced(NamedTuple):
    """What comes next: as it was (`parts` is None), or what was made of it."""

    number: int
    parts: list[Bytes] | None
    payload: Any


class OutputBacklog:
    """A queue for one receiver."""

    def __init__(self, most: int = BACKLOG_LIMIT, session: str = "") -> None:
        """`most`: bytes of one cell's text that may wait; `session`: its id, for the notice."""
        self.most = most
        self.session = session
        self._items: deque[BacklogItem] = deque()
        self._cells: dict[str, CellBacklog] = {}
        self._updates: dict[str, BacklogItem] = {}
        self._interrupted: dict[str, None] = {}
        self._size = 0  # bytes of text, of all cells
        self._skipped = 0  # the last number that was left out: a notice may stand for it

    def __len__(self) -> int:
        """Count what waits, with what will be left out."""
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Is what waits better left where it is?"""
        return self._size > FULL * self.most or len(self._items) > MOST_ITEMS

    def add(self, number: int, payload: Any, parts: Sequence[Bytes] | None) -> None:
        """Put something at the end; `parts` are those of an iopub message, else None."""
        item = BacklogItem(number, payload)
        if parts is not None:
            try:
                self._classify(item, parts)
            except messages.ODD:
                item = BacklogItem(number, payload)  # as it is: its receiver may understand it
        if item.kind is OutputKind.TEXT and self._join(item):
            return
        self._items.append(item)
        cell = item.cell
        if cell is None:
            return
        self._cells[cell.key] = cell
        cell.clearable.append(item)
        if item.kind is OutputKind.TEXT:
            cell.texts.append(item)
            self._add_size(cell, item.size)
            self._drop_old_text(cell)
        elif item.kind is OutputKind.NOTICE:
            cell.notice = cell.notice or item

    def pop(self) -> Coalesced | None:
        """Give out what comes next."""
        items = self._items
        self._skip_dropped()
        if not items:
            return None
        item = items.popleft()
        parts = self._take_out(item)
        self._skip_dropped()
        if item.kind is OutputKind.NOTICE:  # it stands for those behind it, too
            item.number = max(item.number, self._skipped)
        return Coalesced(item.number, parts, item.payload)

    def limit_text(self, *cells: str) -> None:
        """Let little of the text of these cells through, and of all that waits now."""
        for key in [*cells, *self._cells]:
            self._interrupted.pop(key, None)
            self._interrupted[key] = None
        while len(self._interrupted) > max(CELLS_REMEMBERED, len(self._cells)):
            del self._interrupted[next(iter(self._interrupted))]
        for cell in self._cells.values():
            self._drop_old_text(cell)

    # What it is ------------------------------------------------------------------------

    def _classify(self, item: BacklogItem, parts: Sequence[Bytes]) -> None:
        kind = str(header_of(parts[HEADER]).get("msg_type"))
        if kind == "stream":
            self._read_text(item, parts)
        elif kind == "clear_output":
            self._apply_clear_output(item, parts)
        elif kind == "update_display_data":
            self._update_display(item, _display_id(parts))
        elif kind in {"display_data", "execute_result", "error"}:
            cell = self._cell_of(parts)
            self._on_output(cell)
            if not _display_id(parts):  # else it is an update of other displays, too
                item.kind, item.cell = OutputKind.OUTPUT, cell
        elif kind in COMM_TYPES:
            self._stop_clearing()

    def _read_text(self, item: BacklogItem, parts: Sequence[Bytes]) -> None:
        content, cell = content_of(parts), self._cell_of(parts)
        held = _held_in(parts)
        self._on_output(cell)
        name, text = content.get("name"), content.get("text")
        # With more fields, or with buffers, joined texts would lose something.
        if len(content) != 2 or not isinstance(text, str) or len(parts) != CONTENT + 1:  # noqa: PLR2004 - name and text
            return
        item.cell, item.name, item.parts, item.texts = cell, str(name), parts, [text]
        item.size = _bytes(text)
        item.kind = OutputKind.TEXT
        if held:
            item.kind, item.size = OutputKind.NOTICE, held

    def _cell_of(self, parts: Sequence[Bytes]) -> CellBacklog:
        key = str(header_of(parts[PARENT]).get("msg_id", ""))
        return self._cells.get(key) or CellBacklog(key)

    # What goes -------------------------------------------------------------------------

    def _apply_clear_output(self, item: BacklogItem, parts: Sequence[Bytes]) -> None:
        cell, waits = self._cell_of(parts), content_of(parts).get("wait")
        item.kind, item.cell = OutputKind.CLEAR, cell
        cell.clears_next = item
        if not waits:
            self._on_output(cell)

    def _on_output(self, cell: CellBacklog) -> None:
        """Take away what a `clear_output` clears, now that something takes its place."""
        clear, cell.clears_next = cell.clears_next, None
        if clear is None:
            return
        is_waiting = bool(cell.clearable) and cell.clearable[-1] is clear
        for item in cell.clearable:
            if item is not clear:
                self._drop(item)
        # A later `clear_output` makes this one needless, too.
        cell.clearable = deque([clear] if is_waiting else ())

    def _stop_clearing(self) -> None:
        """Let nothing that waits be cleared any more: an Output widget may capture what follows."""
        for cell in self._cells.values():
            cell.clearable.clear()
            cell.clears_next = None

    def _update_display(self, item: BacklogItem, display: str) -> None:
        if not display:
            return
        if before := self._updates.get(display):
            self._drop(before)
        item.kind, item.name = OutputKind.UPDATE, display
        self._updates[display] = item

    def _drop(self, item: BacklogItem) -> None:
        if item.is_gone:
            return
        item.is_gone = True
        cell = item.cell
        if cell and item.kind is OutputKind.TEXT:
            cell.texts.remove(item)
            self._add_size(cell, -item.size)
        elif cell and cell.notice is item:
            cell.notice = None
        item.texts, item.parts, item.payload = [], (), None

    def _drop_old_text(self, cell: CellBacklog) -> None:
        """Let old text of a cell go if too much waits, and say so in its place."""
        is_cut = cell.key in self._interrupted
        most = min(self.most, INTERRUPTED_LIMIT) if is_cut else self.most
        texts, notice = cell.texts, cell.notice
        if cell.size <= most:
            return
        tail = most // 2 if is_cut else most // TAIL
        # The first text stays, as the head, unless it is the tail of what went before.
        has_head = (
            not is_cut and len(texts) > 1 and not (notice and notice.number < texts[0].number)
        )
        first = int(has_head)
        while cell.size > tail and len(texts) > first + 1:
            oldest = texts[first]
            size = oldest.size + oldest.held_back
            if cell.notice:
                self._drop(oldest)
                cell.notice.size += size
            else:
                del texts[first]
                self._add_size(cell, -oldest.size)
                oldest.kind, oldest.size, cell.notice = OutputKind.NOTICE, size, oldest
                oldest.texts = []
        if cell.size > most:
            self._shorten(cell, texts[-1], tail)

    def _shorten(self, cell: CellBacklog, item: BacklogItem, tail: int) -> None:
        """Cut one message that is too large by itself; without a notice it gets its own in it."""
        text = "".join(item.texts)
        end = text[-tail:]
        end = end[end.find("\n") + 1 :]  # from the begin of a line, if there is one
        held = item.size - _bytes(end)
        if cell.notice:
            cell.notice.size += held
        else:
            item.held_back += held
        item.texts = [end]
        self._add_size(cell, _bytes(end) - item.size)
        item.size = _bytes(end)
        item.payload = None

    # Text ------------------------------------------------------------------------------

    def _join(self, item: BacklogItem) -> bool:
        """Make a text part of the one before it, if they are neighbours."""
        last = self._items[-1] if self._items else None
        if last is None or last.is_gone or last.kind is not OutputKind.TEXT or last.size >= JOINED:
            return False
        cell = item.cell
        if cell is None or (last.cell, last.name) != (cell, item.name):
            return False
        last.number, last.parts, last.payload = item.number, item.parts, None
        last.texts += item.texts
        before, last.size = last.size, last.size + item.size
        if last.size >= JOINED:  # a progress bar is a few bytes by then, and may grow on
            _collapse(last)
        self._add_size(cell, last.size - before)
        self._drop_old_text(cell)
        return True

    def _add_size(self, cell: CellBacklog, size: int) -> None:
        cell.size += size
        self._size += size

    # Giving out ------------------------------------------------------------------------

    def _skip_dropped(self) -> None:
        """Pass over what was left out."""
        items = self._items
        while items and items[0].is_gone:
            self._skipped = items.popleft().number

    def _take_out(self, item: BacklogItem) -> list[Bytes] | None:
        """Take an item out of all lists; return its parts if they are not what they were."""
        item.is_gone = True
        if item.kind is OutputKind.UPDATE:
            del self._updates[item.name]
        cell = item.cell
        if cell is None:
            return None
        parts = None
        if item.kind is OutputKind.TEXT:
            cell.texts.popleft()
            self._add_size(cell, -item.size)
            size = item.size
            _collapse(item)
            if item.payload is None or item.size != size:
                lost = _held_back_notice(item.held_back, self.session) if item.held_back else ""
                parts = _compose(item, item.name, lost + item.texts[0])
        elif item.kind is OutputKind.NOTICE:
            cell.notice = None if cell.notice is item else cell.notice
            parts = _compose(item, "stderr", _held_back_notice(item.size, self.session), item.size)
        while cell.clearable and cell.clearable[0].is_gone:
            cell.clearable.popleft()
        if not (cell.clearable or cell.texts or cell.notice):
            self._cells.pop(cell.key, None)
        return parts


def _collapse(item: BacklogItem) -> None:
    text = "".join(item.texts)
    if has_overwritten(text):
        text = collapse(text)
        item.size = _bytes(text)
    item.texts = [text]


def _compose(item: BacklogItem, name: str, text: str, held: int = 0) -> list[Bytes]:
    """Make a stream message in the place of one that was there."""
    parts = list(item.parts)
    content = {"name": name, "text": text}
    try:
        parts[CONTENT] = json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only JSON's own escapes have that
        parts[CONTENT] = json.dumps(content).encode()
    if held:
        parts[METADATA] = json.dumps({HELD_BACK: held}).encode()
    return parts


def _held_back_notice(size: int, session: str) -> str:
    """Say how much is missing and where it is."""
    amount = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"  # noqa: PLR2004 - a tenth of a MB
    return (
        f"\n[{amount} of this cell's output were held back here. To have all of it: "
        f"`%remoter outputs` in a cell, or `remoter outputs {session or 'SESSION'}`.]\n"
    )


def _held_in(parts: Sequence[Bytes]) -> int:
    """Return how much text a notice says was held back; 0: it is no notice."""
    is_notice = HELD_BACK.encode() in bytes(parts[METADATA])  # without reading JSON: most are not
    held = header_of(parts[METADATA]).get(HELD_BACK) if is_notice else 0
    return held if isinstance(held, int) and 0 < held < MOST_HELD else 0


def _display_id(parts: Sequence[Bytes]) -> str:
    transient = content_of(parts).get("transient")
    return str(transient.get("display_id") or "") if isinstance(transient, dict) else ""


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def has_overwritten(text: str) -> bool:
    r"""Is there anything in a text that goes back?"""
    return "\r" in text or "\b" in text


def collapse(text: str) -> str:
    """Leave out of a text what it covers itself; it ends on the screen as it would have."""
    if not has_overwritten(text):
        return text
    lines: list[str] = []
    is_plain = False
    for line in text.split("\n"):
        collapsed, is_plain = _collapse_line(line, is_first=not lines, is_plain=is_plain)
        lines.append(collapsed)
    return "\n".join(lines)


def _collapse_line(line: str, *, is_first: bool, is_plain: bool) -> tuple[str, bool]:
    """Collapse one line; `is_plain`: no colour is on where it begins, and then where it ends."""
    kept: list[tuple[str, int]] = []  # segments that may still be covered, and their widths
    done: list[str] = []  # segments that stay
    for number, text in enumerate(line.split("\r")):
        segment = _apply_backspaces(text)
        width = _segment_width(segment)
        while kept and width >= kept[-1][1] and len(segment) >= len(kept[-1][0]):
            kept.pop()
        kept.append((segment, width))
        was_plain, is_plain = is_plain, _is_plain_after(segment, is_plain=is_plain)
        leaves_colour = "\x1b" in segment and not (was_plain and is_plain)
        if width < 0 or leaves_colour or (number == 0 and is_first):
            done += [earlier for earlier, _ in kept]
            kept = []
    return "\r".join(done + [segment for segment, _ in kept]), is_plain


def _segment_width(segment: str) -> int:
    """Count the columns of a segment; -1 if it does more than fill columns."""
    if segment.isascii() and segment.isprintable():
        return len(segment)
    bare = _COLOUR.sub("", segment)
    if _BREAK.search(bare):
        return -1
    return sum(map(_columns, bare))


def _columns(sign: str) -> int:
    if unicodedata.combining(sign) or unicodedata.category(sign) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def _is_plain_after(segment: str, *, is_plain: bool) -> bool:
    """Is no colour on after a segment, as far as can be known?"""
    colours = _COLOUR.findall(segment) if "\x1b" in segment else ()
    return colours[-1] in _RESET if colours else is_plain


def _apply_backspaces(segment: str) -> str:
    r"""Leave out what `\b` goes back to and the same segment covers: `a\bb` is `b`."""
    if "\b" not in segment:
        return segment
    before, *rest = _BACK.split(segment)
    for back, after in zip(rest[::2], rest[1::2]):
        size = len(back)
        left, right = before[-size:], after[:size]
        is_covered = len(left) == size == len(right)
        # One column each: over a wide or a combining character, terminals go back differently.
        if is_covered and (left + right).isascii() and (left + right).isprintable():
            before = before[:-size] + after
        else:
            before += back + after
    return before
