"""Delays an interrupt until it hits the cell that was meant, and no other.

SIGINT between two cells is lost or hits the next one, and when a cell fails its kernel aborts
whatever waits in its queue. So an interrupt waits until its cell has begun, and what comes after
it waits in the evaluator until that cell is over.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Callable, NamedTuple

from remoter_kernel.protocol.messages import content_of
from remoter_kernel.protocol.reactor import ignore
from remoter_kernel.protocol.requests import ENDS, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.evaluator.kernel_queue import Cancellations
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Call, Timer
    from remoter_kernel.protocol.requests import Request, Requests

# Seconds from `execute_input` until an interrupt ends the cell: before, R would die, which still
# prepares it.
SETTLES_WITHIN = 0.1
CALLS_OFF_WITHIN = 0.05  # seconds from a cell's reply until its kernel takes another one
REPLIES_WITHIN = 0.5  # seconds from a cell's idle, if its reply comes at all
BEGINS_WITHIN = 1.0  # seconds; a cell may run without a sign of it, if it is silent


class PendingInterrupt(NamedTuple):
    """The cell that is being interrupted; by which client, and after which of its requests."""

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
        """`later` is the reactor's `call_later`."""
        self.interrupt_kernel: Callable[[], None] = ignore
        self.on_over: Callable[[], None] = ignore  # others get their turn
        self.on_no_reply: Callable[[Request], None] = ignore  # its client waits for one
        self._requests = requests
        self._cancellations = cancellations
        self._last_count: tuple[str, int] = ("", 0)  # which cell was interrupted, and how often
        self._call_later = later
        self._pending: PendingInterrupt | None = None
        self._interruptible_from: dict[str, float] = {}  # running cells: when they can be hit
        self._timer: Timer | None = None
        requests.observe(self._on_request_end, *ENDS)

    @property
    def is_under_way(self) -> bool:
        """Must other cells wait, so that the interrupt neither hits nor aborts them?"""
        return self._pending is not None

    def schedule(self, cell: str, client: bytes, barrier: int) -> None:
        """Interrupt a cell that the kernel has, as soon as it can be hit.

        `barrier`: the last number that the client had sent when it interrupted.
        """
        self._pending = PendingInterrupt(cell, client, barrier)
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
        """Send a delayed interrupt: the kernel is about to end, so it may hit anything."""
        if self._timer:
            self._cancel_timer()
            self._fire()

    def on_begin(self, cell: str, *, is_running: bool = True) -> None:
        """Note that the kernel begins with a request: `busy`, then (`is_running`) `execute_input`.

        Silent cells have no `execute_input`. R takes long from one to the other in its first cell,
        and an interrupt would kill it there.
        """
        request = self._requests.get(cell)
        if request is None or not request.is_cell or request.stage >= Stage.REPLIED:
            return
        wait = SETTLES_WITHIN if is_running else BEGINS_WITHIN
        self._interruptible_from[cell] = time.monotonic() + wait
        if self._timer and self._pending and self._pending.cell == cell:
            self._start_timer(wait, self._fire)  # instead of the wait for its begin

    def on_reply(self, request: Request, reply: Sequence[Bytes]) -> None:
        """Take in a reply; if an interrupted cell did not end well, those behind it are aborted."""
        stopped = self._pending
        if stopped and stopped.cell == request.id and content_of(reply).get("status") != "ok":
            self._cancellations.abort(stopped.client, stopped.barrier)
        self._on_request_end(request)

    def on_idle(self, cell: str) -> None:
        """Note that the kernel is done with a request.

        An interrupt at the very end of a cell may take its reply: ipykernel sends none then.
        """
        if self._pending and self._pending.cell == cell:
            self._cancel_timer()
            self._call_later(REPLIES_WITHIN, partial(self._on_reply_timeout, self._pending))

    def clear(self) -> None:
        """Forget the interrupt: the kernel has no request, or is gone."""
        self._cancel_timer()
        self._pending = None
        self._interruptible_from.clear()

    def _fire(self) -> None:
        self._timer = None
        self.interrupt_kernel()

    def _on_begin_timeout(self) -> None:
        """Interrupt what the kernel is at: a comm message, or a cell whose begin went unnoticed."""
        self._fire()
        if self._pending:
            self._finish(self._pending)

    def _on_reply_timeout(self, stopped: PendingInterrupt) -> None:
        """Have a cell answered whose reply does not come; those behind it are aborted."""
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
            # A kernel that aborts its queue after an error does so for a moment (ipykernel's
            # `_abort_queues`): what it gets meanwhile would be aborted, too.
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
