"""What fronts have asked of the child: handed over, waiting for it, void before it came."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from remoter_kernel.daemon.asked import Asked
from remoter_kernel.wire.messages import content_of

if TYPE_CHECKING:
    from remoter_kernel.daemon.speaker import Request, Speaker


class Requests:
    """Where each request is, and which ones an interrupt or a restart has overtaken."""

    def __init__(self, speaker: Speaker) -> None:
        """Remember who answers what the child never gets."""
        self.asked = Asked()  # handed to the child
        self.waiting: deque[Request] = deque()  # until the child is ready
        self._speaker = speaker
        self._void: dict[bytes, int] = {}  # per front: interrupted before it arrived
        self._interrupted = ("", 0)  # which request, and how often
        self._busy_until = time.monotonic()

    def is_void(self, request: Request) -> bool:
        """Answer a request that was interrupted before it got here; else return False."""
        until = abs(self._void.get(request.front, 0))
        if request.number > until or request.header.get("msg_type") != "execute_request":
            return False
        is_first = self._void[request.front] > 0
        if is_first:
            self._void[request.front] = -until
            self._speaker.answer_error(request, "KeyboardInterrupt", "Interrupted before it began.")
            return True
        if not content_of(request.parts).get("stop_on_error", True):
            return False
        self._speaker.answer_aborted(request)
        return True

    def interrupt(self, front: bytes, mark: int) -> None:
        """Void what a front had asked for up to `mark` and what the child has not got yet."""
        self._void[front] = mark
        for request in [item for item in self.waiting if item.front == front]:
            if self.is_void(request):
                self.waiting.remove(request)

    def call_off(self, front: bytes, mark: int) -> None:
        """Void the same, behind a cell that was interrupted itself."""
        self._void[front] = -mark

    def has_unbegun(self, front: bytes, mark: int, kept: int) -> bool:
        """Is there anything that a front had asked for up to `mark` and that never got here?"""
        return mark > kept or any(request.front == front for request in self.waiting)

    def restart(self, front: bytes, mark: int) -> None:
        """Void what a front had asked for before its restart, without a word."""
        self._void[front] = -mark
        kept = [item for item in self.waiting if item.front != front or item.number > mark]
        self.waiting = deque(kept)

    def running(self) -> Request | None:
        """Return the cell that the child is at, as far as one knows."""
        cells = (r for r in self.asked.values() if r.header.get("msg_type") == "execute_request")
        return next(cells, None)

    def count_interrupt(self) -> int:
        """Return how often the running cell has been interrupted, this time included."""
        running = self.running()
        asker = str(running.header.get("msg_id", "")) if running else ""
        before, times = self._interrupted
        self._interrupted = (asker, times + 1 if asker == before else 1)
        return self._interrupted[1] if running else 0

    def answer_all(self, name: str, why: str) -> None:
        """Answer every request that the child can answer no more, and end what it has answered."""
        asked = self.asked
        for request in asked.ending.values():
            self._speaker.tell(request, f"{why} The last outputs of this cell may be missing.")
            self._speaker.end(request)
        for asker, request in asked.items():
            has_ended = asked.is_idle(asker)
            self._speaker.answer_error(request, name, why, has_begun=True, has_ended=has_ended)
        asked.clear()

    def touch(self) -> None:
        """Note that something is going on."""
        self._busy_until = time.monotonic()

    def idle_for(self) -> float:
        """Return for how many seconds nothing has been going on."""
        return time.monotonic() - self._busy_until
