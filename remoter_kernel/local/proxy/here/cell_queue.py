"""One cell at a time, on whichever machine: cells run in the order in which they were sent.

House rules of this file:

- While no local cell is asked for, every cell passes.
- A local cell waits for the reply and the `idle` of those before it in the remote kernel; those
  behind it wait for its end.
- A cell that fails aborts those that wait behind it, if it says so (`stop_on_error`), as a kernel
  does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from remoter_kernel.local.proxy.request_queries import remote_cells, unfinished_remote_cells
from remoter_kernel.protocol.requests import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.protocol.requests import Request, Requests


class LocalQueuedCell(Protocol):
    """A cell that needs this machine."""

    request: Request

    def start(self) -> None:
        """Start; `CellQueue.on_local_over` is called when it is over."""

    def interrupt(self) -> None:
        """End soon."""


class _Slot(NamedTuple):
    """A place in the queue; without a local cell it is one for the remote kernel."""

    request: Request
    cell: LocalQueuedCell | None


@dataclass
class CellQueue:
    """Which cell runs next. What became of remote ones is in the table of requests."""

    requests: Requests
    may_begin: Callable[[], bool]  # is it known whose session a local cell's messages must carry?
    send_remote: Callable[[Request], None]
    abort: Callable[[Request], None]
    running_local: LocalQueuedCell | None = None
    _queue: deque[_Slot] = field(default_factory=deque)
    _has_failed: bool = False  # did a remote cell that stops those behind it get no reply?

    @property
    def is_active(self) -> bool:
        """Does any cell need this machine just now?"""
        return bool(self.running_local or self._queue)

    def on_move(self, request: Request, before: Stage) -> None:
        """Note that the proxy has answered a remote cell itself, as its kernel will not."""
        is_lost = request.stage in {Stage.FAILED, Stage.CANCELLED} and before >= Stage.QUEUED
        # Its kernel would have aborted those behind it, which are held here.
        if is_lost and self._queue and request.is_cell:
            self._has_failed |= request.stops_on_error

    def enqueue_local(self, cell: LocalQueuedCell) -> None:
        """Run a cell here as soon as those before it are over."""
        cell.request.is_here = True
        self._queue.append(_Slot(cell.request, cell))
        self.start_next()
        self._hold(cell.request)  # one that has begun is beyond that stage, and stays there

    def enqueue_remote(self, request: Request) -> bool:
        """Hold back a cell for the remote kernel; False: it may be sent at once."""
        if not self.is_active:
            return False
        self._queue.append(_Slot(request, None))
        self._hold(request)
        return True

    def on_reply(self, request: Request, status: str) -> None:
        """Go on after a remote cell's reply; `status`: that of the reply."""
        if self._queue and status != "ok" and request.stops_on_error:
            self._abort_all()
        self.start_next()

    def on_idle(self, _name: str) -> None:
        """Go on after an idle of the remote kernel: reply and idle come in either order."""
        self.start_next()

    def on_local_over(self, *, is_well: bool) -> None:
        """Go on after the local cell."""
        cell, self.running_local = self.running_local, None
        if cell and not is_well and cell.request.stops_on_error:
            self._abort_all()
        # All of them at once: the remote kernel has a queue of its own.
        while self._queue and self._queue[0].cell is None:
            self.send_remote(self._queue.popleft().request)
        self.start_next()

    def interrupt(self) -> bool:
        """Interrupt the local cell, or one that would be next; False: a remote one runs."""
        if self.running_local:
            self.running_local.interrupt()
            return True
        # A remote cell that runs is interrupted there, by the handler.
        if not self._queue or remote_cells(self.requests):
            return False
        self.abort(self._queue.popleft().request)  # it waits for its session
        self._abort_all()
        return True

    def start_next(self) -> None:
        """Start the first cell of the queue, if it is a local one and nothing runs."""
        if self._has_failed:
            self._abort_all()
        if self.running_local or not self._queue or not self.may_begin():
            return
        if unfinished_remote_cells(self.requests):  # all before it: those behind it are held
            return
        request, self.running_local = self._queue.popleft()
        if self.running_local:
            self.requests.move(request, Stage.RUNNING, "on this side")
            self.running_local.start()

    def _hold(self, request: Request) -> None:
        self.requests.move(request, Stage.HELD, "it waits for the cells before it")

    def _abort_all(self) -> None:
        self._has_failed = False
        queue, self._queue = self._queue, deque()
        for place in queue:
            self.abort(place.request)
