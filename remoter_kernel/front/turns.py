"""Cells that this side answers in their turn: after those that were run before, before the rest.

*Run all* must mean the same as with a kernel that does it all itself: `%remoter get` fetches
what the cell above has written, and the cell below finds it. Meanwhile the cells behind it wait
here; all that is no cell passes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.wire.messages import content_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.front.mouth import Route

    Answer = Callable[[Route, dict[str, Any]], None]


class _Waiting(NamedTuple):
    route: Route
    begin: Callable[[], None]
    is_ours: bool


class Turns:
    """The cells that wait here, and the one of ours that is at work. One thread's."""

    def __init__(self, is_busy: Callable[[], bool], answer: Answer) -> None:
        """Remember; `is_busy`: has a cell been passed on that has no reply yet?"""
        self._is_busy = is_busy
        self._answer = answer
        self._queue: deque[_Waiting] = deque()
        self._running: Route | None = None
        self._stop: Callable[[], None] = lambda: None

    @property
    def running(self) -> tuple[Route, ...]:
        """The cell of ours that is at work, if one is."""
        return (self._running,) if self._running else ()

    @property
    def must_wait(self) -> bool:
        """Must a cell that is run now wait for one of ours?"""
        return bool(self._running or self._queue)

    def holds(self, route: Route, begin: Callable[[], None]) -> bool:
        """Let a cell of the kernel wait, if it must; `begin` passes it on later."""
        if self.must_wait:
            self._queue.append(_Waiting(route, begin, is_ours=False))
            return True
        return False

    def add(self, route: Route, begin: Callable[[], None]) -> None:
        """Let a cell of ours come when it is its turn; whoever begins it says `start`, `end`."""
        self._queue.append(_Waiting(route, begin, is_ours=True))
        self.look()

    def start(self, route: Route, stop: Callable[[], None]) -> None:
        """One of ours is at work, and `stop` ends it, which is told by `end`."""
        self._running, self._stop = route, stop

    def end(self, route: Route, *, is_error: bool) -> None:
        """One of ours is done; after an error those behind it do not run, as with a kernel."""
        if self._running is route:
            self._running, self._stop = None, lambda: None
        if is_error and content_of(route.parts).get("stop_on_error", True):
            self._abort_all()
        self.look()

    def note_reply(self, route: Route, reply: dict[str, Any]) -> None:
        """The kernel has answered a cell."""
        is_error = reply.get("status") in {"error", "aborted"}
        if is_error and content_of(route.parts).get("stop_on_error", True):
            self._abort_all()
        self.look()

    def interrupt(self) -> bool:
        """Stop the one that is at work; False: none is, and the kernel is meant."""
        if self._running is None:
            return False
        self._stop()
        return True

    def look(self) -> None:
        """Let those come whose turn it is."""
        while self._queue and not self._running:
            if self._queue[0].is_ours and self._is_busy():
                return
            self._queue.popleft().begin()

    def _abort_all(self) -> None:
        waiting, self._queue = self._queue, deque()
        for each in waiting:
            self._answer(each.route, {"status": "aborted"})
