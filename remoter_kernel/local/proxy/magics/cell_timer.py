"""Shows after a cell how long it took there, how long on the link, and how many bytes that were.

The time there lies between two messages of the remote kernel, busy and idle, by its own clock: no
clock here need agree with that. The rest of the time is the link's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.history.status_report import format_size
from remoter_kernel.local.proxy.request_queries import shows_output
from remoter_kernel.protocol.messages import CONTENT, HEADER, PARENT, content_of, header_of
from remoter_kernel.protocol.requests import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.requests import Request

LINE_ENDS = b'\\n"'  # so the text of a stream ends in JSON, if its line does


class Snapshot(NamedTuple):
    """A time here (seconds on the monotonic clock), and the bytes sent and received by then."""

    at: float
    sent: int
    received: int


NEVER = Snapshot(0.0, 0, 0)


@dataclass
class CellTimer:
    """Times the cells that run there, while it is on."""

    replies: ReplySender
    traffic: Callable[[], tuple[int, int]]  # returns the bytes sent and received so far
    clock: Callable[[], float] = time.monotonic
    is_on: bool = False
    _timed: dict[str, tuple[Request, Snapshot]] = field(default_factory=dict)  # by message id
    # The date of each busy, by message id: as the kernel's clock had it.
    _busy_dates: dict[str, object] = field(default_factory=dict)
    _previous_end: Snapshot = NEVER  # when the cell before was done
    _is_within_line: bool = False  # has the last text no line end? Then ours needs one first

    def enable(self, *, on: bool) -> None:
        """Turn it on or off; what runs is timed no more."""
        self.is_on = on
        if not on:
            self._timed.clear()
            self._busy_dates.clear()

    def on_move(self, request: Request, before: Stage) -> None:
        """Note when a cell for the remote kernel has come; forget one that is over."""
        # At its first move: after that it may have waited here for other cells.
        if before is Stage.RECEIVED and self.is_on and _must_time(request):
            self._timed[request.id] = request, self._snapshot()
        elif self._timed and request.is_over:
            self._timed.pop(request.id, None)
            self._busy_dates.pop(request.id, None)

    def on_output(self, parts: Sequence[Bytes]) -> None:
        """Look at an output that is about to be published; before an idle, show the times."""
        if not self._timed:
            return
        kind = bytes(parts[HEADER])
        if b'"status"' not in kind:  # in bytes, as of most outputs no more need be known
            is_text = b'"stream"' in kind
            self._is_within_line = is_text and LINE_ENDS not in bytes(parts[CONTENT][-6:])
            return
        try:  # a kernel may send anything
            name = str(header_of(parts[PARENT]).get("msg_id", ""))
            state = content_of(parts).get("execution_state")
            date = header_of(parts[HEADER]).get("date")
        except ProtocolError:
            return
        if state == "busy":
            self._busy_dates[name] = date
        elif state == "idle":
            # None where its busy came before the timer was turned on.
            begun = self._busy_dates.pop(name, None)
            if name in self._timed:
                self._show(*self._timed.pop(name), seconds_between(begun, date))

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.clock(), *self.traffic())

    def _show(self, request: Request, sent: Snapshot, there: float | None) -> None:
        now = self._snapshot()
        begun = max(sent, self._previous_end)  # until then it stood behind another cell
        self._previous_end = now
        line = format_timing(
            there, now.at - begun.at, now.sent - begun.sent, now.received - begun.received
        )
        newline = "\n" if self._is_within_line else ""
        self.replies.write(request.header, f"{newline}{line}\n")
        self._is_within_line = False


def _must_time(request: Request) -> bool:
    is_on_its_way = request.stage in {Stage.HELD, Stage.QUEUED} and not request.is_here
    return is_on_its_way and shows_output(request)


def format_timing(there: float | None, whole: float, sent: int, received: int) -> str:
    """Return the line; `there`: seconds by the kernel's clock, if they are known."""
    traffic = f"{format_size(sent)} sent, {format_size(received)} received"
    if there is None:
        return f"[remoter] {whole:.3f} s in all, {traffic}"
    # A clock there that was set meanwhile gives any number.
    link = max(0.0, whole - there)
    return f"[remoter] {there:.3f} s there, {link:.3f} s on the link, {traffic}"


def seconds_between(begin: object, end: object) -> float | None:
    """Return the time between two dates of one clock; None if they are none."""
    fromisoformat = datetime.fromisoformat
    try:
        # Python 3.11 is the first that reads the Z at the end of a date.
        return max(0.0, (fromisoformat(str(end)) - fromisoformat(str(begin))).total_seconds())
    except (TypeError, ValueError):
        return None
