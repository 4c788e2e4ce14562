"""One cell at a time, on whichever side: cells run in the order in which they were asked for.

House rules of this file:

- While no cell is asked for on this side, every cell passes.
- A cell here waits for the reply and the `idle` of those before it there; those behind wait
  for its end.
- A cell that fails calls off those that wait behind it, if it says so (`stop_on_error`), as a
  kernel does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from remoter_kernel.local.proxy.request_queries import remote_cells, unfinished_remote_cells
from remoter_kernel.protocol.requests import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.protocol.requests import Request, Requests


class LocalQueuedCell(Protocol):
    """A cell that needs this side."""

    request: Request

    def start(self) -> None:
        """Start; `CellQueue.on_local_over` is called when it is over."""

    def interrupt(self) -> None:
        """End soon."""


class _Slot(NamedTuple):
    """A place in the queue; without a cell here it is one for the other side."""

    request: Request
    cell: LocalQueuedCell | None


class CellQueue:
    """Whose turn it is. What becomes of a cell there is in the table of requests."""

    def __init__(
        self,
        requests: Requests,
        may_begin: Callable[[], bool],
        send_remote: Callable[[Request], None],
        abort: Callable[[Request], None],
    ) -> None:
        """`send_remote` sends a cell to the other side.

        `may_begin`: is it known whose session what is said here must carry?
        """
        self._requests = requests
        self._may_begin = may_begin
        self._send_remote = send_remote
        self._abort = abort
        self._queue: deque[_Slot] = deque()
        self._running_local: LocalQueuedCell | None = None
        self._has_failed = False  # did a cell there that stops those behind it get no reply?

    @property
    def is_active(self) -> bool:
        """Does any cell need this side just now?"""
        return bool(self._running_local or self._queue)

    @property
    def running_local(self) -> LocalQueuedCell | None:
        """The cell that runs on this side."""
        return self._running_local

    def on_move(self, request: Request, before: Stage) -> None:
        """Note that a cell there was answered from this side, as the other one will not."""
        is_lost = request.stage in {Stage.FAILED, Stage.CANCELLED} and before >= Stage.QUEUED
        if is_lost and self._queue and request.is_cell:
            self._has_failed |= request.stops_on_error

    def enqueue_local(self, cell: LocalQueuedCell) -> None:
        """Run a cell on this side as soon as it is its turn."""
        cell.request.is_here = True
        self._queue.append(_Slot(cell.request, cell))
        self.start_next()
        self._hold(cell.request)

    def enqueue_remote(self, request: Request) -> bool:
        """Hold back a cell for the other side; False: it may go at once."""
        if not self.is_active:
            return False
        self._queue.append(_Slot(request, None))
        self._hold(request)
        return True

    def on_reply(self, request: Request, status: str) -> None:
        """Hear how a cell there ended."""
        if self._queue and status != "ok" and request.stops_on_error:
            self._abort_all()
        self.start_next()

    def on_idle(self, _name: str) -> None:
        """Hear that the other side is done with something."""
        self.start_next()

    def on_link_failed(self) -> None:
        """Hear that cells there were answered from this side."""
        self.start_next()

    def on_local_over(self, *, is_well: bool) -> None:
        """Hear that the cell on this side is over."""
        cell, self._running_local = self._running_local, None
        if cell and not is_well and cell.request.stops_on_error:
            self._abort_all()
        while self._queue and self._queue[0].cell is None:
            self._send_remote(self._queue.popleft().request)
        self.start_next()

    def interrupt(self) -> bool:
        """Interrupt the cell on this side; False: it is not at work."""
        if self._running_local:
            self._running_local.interrupt()
            return True
        if not self._queue or remote_cells(self._requests):
            return False
        self._abort(self._queue.popleft().request)  # it waits for a session that is being made
        self._abort_all()
        return True

    def start_next(self) -> None:
        """Begin with the cell at the head of the queue, if its time has come.

        All cells there that have no end yet stand before it: those behind it are held back.
        """
        if self._has_failed:
            self._abort_all()
        if self._running_local or not self._queue or not self._may_begin():
            return
        if unfinished_remote_cells(self._requests):
            return
        request, self._running_local = self._queue.popleft()
        if self._running_local:
            self._requests.move(request, Stage.RUNNING, "on this side")
            self._running_local.start()

    def _hold(self, request: Request) -> None:
        self._requests.move(request, Stage.HELD, "it waits for the cells before it")

    def _abort_all(self) -> None:
        self._has_failed = False
        queue, self._queue = self._queue, deque()
        for place in queue:
            self._abort(place.request)
