"""Which requests an interrupt or a restart has overtaken: they were sent before it (pure).

An interrupt comes by the urgent lane, and may be here before what it is meant for. It says up to
which number its client had sent requests by then.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remoter_kernel.protocol.requests import Request


class CancelReason(Enum):
    """What a request that was overtaken is answered."""

    INTERRUPTED = "interrupted"  # the first cell: as if it had begun and been interrupted
    ABORTED = "called off"  # those behind it
    RESTARTED = "restarted"  # it was meant for the kernel before


class Cancellations:
    """By client: up to which number, and by what."""

    def __init__(self) -> None:
        self._interrupted: dict[bytes, int] = {}
        self._to_interrupt: set[bytes] = set()  # clients whose next cell is the first one
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
        self._interrupted.pop(client, None)

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
