"""Gives requests to the kernel: what is written, from the head of its queue alone.

House rules of this file:

- A request enters its queue when it comes, and leaves it when the kernel gets it. So requests
  reach the kernel in the order in which they came, whatever the disk does meanwhile.
- It may run only once, also if this evaluator dies: so it is given away only when the journal
  says that it may have been. That is what its own record says, unless it was written as held;
  then a mark says so later.
- A kernel has a queue for its main shell, one for its subshells, one for control. An answer to
  `input()` waits for no kernel: one that is not there has not asked.

An interrupt comes by the urgent lane, and may be here before what it is meant for. It says up to
which number its client had sent requests by then.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Callable

from remoter_kernel.evaluator.recovery import DISPATCHED
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.requests import Requests, Stage

if TYPE_CHECKING:
    from remoter_kernel.evaluator.journal import Journal
    from remoter_kernel.protocol.requests import Request

Queue = tuple[Channel, bool]


class KernelQueue:
    """What waits for the kernel: one queue for each of the kernel's own."""

    def __init__(
        self,
        requests: Requests,
        journal: Journal,
        *,
        takes: Callable[[Request], bool],
        send: Callable[[Request], None],
        answers: Callable[[Request], bool],
    ) -> None:
        """`takes`: would the kernel take a request now? `send` gives it to the kernel.

        `answers` answers it in the kernel's place, if it is not for the kernel any more.
        """
        self._takes, self._send, self._answers = takes, send, answers
        self._requests = requests
        self._journal = journal
        self._queues: dict[Queue, deque[Request]] = {}
        # Those that the journal has as held; True: a mark is being written that they go now.
        self._held: dict[Request, bool] = {}

    def add(self, request: Request) -> bool:
        """Take in a request that is about to be written; return whether it is to be as held."""
        queue = self._queue_of(request)
        is_behind_held = bool(queue) and queue[-1] in self._held  # it must not go first
        is_shell = request.channel is Channel.SHELL
        is_held = is_shell and (is_behind_held or not self._takes(request))
        if is_held:
            self._held[request] = False
        queue.append(request)
        return is_held

    def restore(self, request: Request) -> None:
        """Take in a request that an evaluator before this one has written as held."""
        self._held[request] = False
        self._queue_of(request).append(request)

    def on_written(self, request: Request) -> None:
        """Go on with a request that is in the journal now."""
        queue = self._queue_of(request)
        if self._answers(request):
            self._remove(queue, request)
        else:
            self._requests.move(request, Stage.HELD if request in self._held else Stage.QUEUED)
        self._dispatch_from(queue)

    def dispatch_waiting(self) -> None:
        """Go on: the kernel may take more than before."""
        for queue in self._queues.values():
            self._dispatch_from(queue)

    def answer_cancelled(self) -> None:
        """Answer at once what waits and is not for the kernel any more."""
        for queue in self._queues.values():
            # What is being written is answered by `on_written`: never before the journal has it.
            for request in [each for each in queue if each.stage is not Stage.RECEIVED]:
                if self._answers(request):
                    self._remove(queue, request)
            self._dispatch_from(queue)

    def _dispatch_from(self, queue: deque[Request]) -> None:
        while queue:
            head = queue[0]
            if head.stage >= Stage.SENT:  # or over: somebody has answered it meanwhile
                self._remove(queue, head)
            elif head.stage is Stage.RECEIVED or not self._takes(head):
                return
            elif self._answers(head):
                self._remove(queue, head)
            elif head.stage is Stage.HELD:
                self._record_release(queue)
                return
            else:
                self._remove(queue, head)
                self._requests.move(head, Stage.SENT)  # first: the kernel's busy may come at once
                self._send(head)

    def _remove(self, queue: deque[Request], request: Request) -> None:
        self._held.pop(request, None)
        queue.remove(request)  # as a rule the first: that costs no search

    def _record_release(self, queue: deque[Request]) -> None:
        """Write that the held ones at the head may have been given away; then they are."""
        for request in queue:
            if request.stage is not Stage.HELD:
                return
            # All at once: one write of the disk for each would be slow after a long start.
            if not self._held[request]:
                self._held[request] = True
                words = {"mark": DISPATCHED, "request": request.id}
                self._journal.append_marker(words, partial(self._on_released, request))

    def _on_released(self, request: Request) -> None:
        self._requests.move(request, Stage.QUEUED)
        self._dispatch_from(self._queue_of(request))

    def _queue_of(self, request: Request) -> deque[Request]:
        is_subshell = request.channel is Channel.SHELL and not request.is_in_turn
        return self._queues.setdefault((request.channel, is_subshell), deque())


class CancelReason(Enum):
    """Why a request is answered in the kernel's place."""

    INTERRUPTED = "interrupted"  # the first cell: as if it had begun and been interrupted
    ABORTED = "called off"  # those behind it, as ipykernel does after an error
    RESTARTED = "restarted"  # it was meant for the kernel before


class Cancellations:
    """Up to which number of its requests each client has interrupted or restarted the kernel."""

    def __init__(self) -> None:
        self._interrupted: dict[bytes, int] = {}
        # Clients whose next cell is the one that they meant: it is answered as if it had run.
        self._to_interrupt: set[bytes] = set()
        self._restarted: dict[bytes, int] = {}

    def interrupt(self, client: bytes, number: int) -> None:
        """A client has interrupted what it had sent up to a number."""
        self._interrupted[client] = number
        self._to_interrupt.add(client)

    def abort(self, client: bytes, number: int) -> None:
        """The same, and the cell that it was meant for has been interrupted."""
        self._interrupted[client] = number
        self._to_interrupt.discard(client)

    def restart(self, client: bytes, number: int) -> None:
        """A client has restarted the kernel."""
        self._restarted[client] = number
        self._interrupted.pop(client, None)  # whatever it covers, the restart covers, too

    def reason_for(self, request: Request) -> CancelReason | None:
        """Say how a request is to be answered in the kernel's place; None: the kernel gets it."""
        client = request.client
        if request.number <= self._restarted.get(client, 0):
            return CancelReason.RESTARTED
        if not request.is_cell or request.number > self._interrupted.get(client, 0):
            return None
        if client in self._to_interrupt:
            self._to_interrupt.remove(client)
            return CancelReason.INTERRUPTED
        return CancelReason.ABORTED if request.stops_on_error else None
