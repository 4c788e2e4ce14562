"""Carries an interrupt to the cell that was meant, and no other.

A kernel between two cells loses an interrupt, or lets it hit the next one; and when a cell fails
it calls off whatever waits in its queue. So an interrupt waits until its cell has begun, and what
comes after it waits with us until that cell is over.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Callable, NamedTuple

from remoter_kernel.protocol.messages import content_of
from remoter_kernel.protocol.requests import ENDS, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.evaluator.kernel_queue import Cancellations
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Call, Timer
    from remoter_kernel.protocol.requests import Request, Requests

SETTLES_WITHIN = 0.1  # seconds after which an interrupt ends a cell, and not R while it prepares
CALLS_OFF_WITHIN = 0.05  # seconds from a cell's reply until its kernel takes another one
REPLIES_WITHIN = 0.5  # seconds from a cell's idle, if its reply comes at all
BEGINS_WITHIN = 1.0  # seconds; a cell that was never heard to run may do so all the same


class PendingInterrupt(NamedTuple):
    """The cell that is being interrupted; by which front, and after which of its requests."""

    cell: str
    client: bytes
    barrier: int


class Interrupts:
    """The interrupt that is under way, if there is one."""

    def __init__(
        self,
        requests: Requests,
        cancellations: Cancellations,
        later: Callable[[float, Call], Timer],
    ) -> None:
        """`later` is the reactor's."""
        self.interrupt_kernel: Callable[[], None] = lambda: None  # interrupts the child, now
        self.on_over: Callable[[], None] = lambda: None  # others get their turn
        self.on_no_reply: Callable[[Request], None] = lambda _request: None  # clients wait for one
        self._requests = requests
        self._cancellations = cancellations
        self._last_count: tuple[str, int] = ("", 0)  # which cell was interrupted, and how often
        self._call_later = later
        self._pending: PendingInterrupt | None = None
        self._interruptible_from: dict[
            str, float
        ] = {}  # cells that run: from when on they can be hit
        self._timer: Timer | None = None
        requests.observe(self._on_request_end, *ENDS)

    @property
    def is_under_way(self) -> bool:
        """Must others wait, so that this hits or calls off none of them?"""
        return self._pending is not None

    def schedule(self, cell: str, client: bytes, mark: int) -> None:
        """Interrupt a cell that the child has, as soon as that can be done."""
        self._pending = PendingInterrupt(cell, client, mark)
        ready = self._interruptible_from.get(cell)
        if ready is None:
            self._start_timer(BEGINS_WITHIN, self._on_begin_timeout)
        elif (left := ready - time.monotonic()) > 0:
            self._start_timer(left, self._fire)
        else:
            self._fire()

    def count(self, cell: str) -> int:
        """Count an interrupt of a cell; return how many there have been of it."""
        before, times = self._last_count
        self._last_count = (cell, times + 1 if cell == before else 1)
        return self._last_count[1]

    def fire_now(self) -> None:
        """Let nothing wait any longer: the kernel is about to end, whatever an interrupt hits."""
        if self._timer:
            self._cancel_timer()
            self._fire()

    def on_begin(self, cell: str, *, is_running: bool = True) -> None:
        """Hear that the child begins with a request: `busy`, then (`is_running`) `execute_input`.

        Silent ones have no input. R needs long for its first one, and would die in between.
        """
        request = self._requests.get(cell)
        if request is None or not request.is_cell or request.stage >= Stage.REPLIED:
            return
        wait = SETTLES_WITHIN if is_running else BEGINS_WITHIN
        self._interruptible_from[cell] = time.monotonic() + wait
        if self._timer and self._pending and self._pending.cell == cell:
            self._start_timer(wait, self._fire)

    def on_reply(self, request: Request, reply: Sequence[Bytes]) -> None:
        """Hear the child's reply: the cells that were to follow a stopped one are called off."""
        stopped = self._pending
        if stopped and stopped.cell == request.id and content_of(reply).get("status") != "ok":
            self._cancellations.abort(stopped.client, stopped.barrier)
        self._on_request_end(request)

    def on_idle(self, cell: str) -> None:
        """Hear that the child is done with a request.

        An interrupt at the very end of a cell may take its reply: ipykernel gives none then.
        """
        if self._pending and self._pending.cell == cell:
            self._cancel_timer()
            self._call_later(REPLIES_WITHIN, partial(self._on_reply_timeout, self._pending))

    def clear(self) -> None:
        """The child is at nothing that it was asked, or gone."""
        self._cancel_timer()
        self._pending = None
        self._interruptible_from.clear()

    def _fire(self) -> None:
        self._timer = None
        self.interrupt_kernel()

    def _on_begin_timeout(self) -> None:
        """Interrupt what the child is at: a widget's call, or a cell that nobody heard begin."""
        self._fire()
        if self._pending:
            self._finish(self._pending)

    def _on_reply_timeout(self, stopped: PendingInterrupt) -> None:
        """Have a cell answered whose reply does not come; those behind it are called off."""
        if self._pending is not stopped:
            return
        request = self._requests.get(stopped.cell)
        if request and request.is_open and request.is_idle:
            self._cancellations.abort(stopped.client, stopped.barrier)
            self.on_no_reply(request)
        self._finish(stopped)

    def _on_request_end(self, request: Request, _before: Stage | None = None) -> None:
        """Note that a request is over, with a reply or without one: nothing waits behind it."""
        self._interruptible_from.pop(request.id, None)
        stopped = self._pending
        if stopped and stopped.cell == request.id:
            self._cancel_timer()
            self._call_later(CALLS_OFF_WITHIN, partial(self._finish, stopped))

    def _start_timer(self, seconds: float, call: Call) -> None:
        self._cancel_timer()
        self._timer = self._call_later(seconds, call)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _finish(self, stopped: PendingInterrupt) -> None:
        if self._pending is stopped:
            self._pending = None
            self.on_over()
