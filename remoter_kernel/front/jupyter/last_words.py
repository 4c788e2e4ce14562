"""What a client that never allows questions hears of a kernel that has died: why, then nothing.

nbclient and papermill run a notebook to its end or not at all. They should see their kernel
die, as they would see it of a local one, and no cell run in the one that follows it. Before
that papermill asks who the kernel is, and shows the cell's error only if it gets an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.front.jupyter.mouth import Mouth, Route
    from remoter_kernel.wire.reactor import Reactor

STAYS_FOR = 3.0  # seconds in which somebody may yet ask
LAST_WORDS = 0.3  # seconds between the answer to another cell and the front's own end


class KernelDied(RemoterError):
    """The kernel that ran the notebook is gone, and its variables with it."""


class LastWords:
    """Answers in a dead kernel's place for a moment, and then leaves."""

    def __init__(self, reactor: Reactor, mouth: Mouth, leave: Callable[[], None]) -> None:
        """Remember; `begin` begins."""
        self._reactor = reactor
        self._mouth = mouth
        self._leave = leave
        self._error: KernelDied | None = None

    @property
    def have_begun(self) -> bool:
        """Is the kernel dead, and this front about to follow it?"""
        return self._error is not None

    def begin(self, why: str) -> None:
        """Hear that the kernel has died."""
        self._error = KernelDied(why)
        self._reactor.later(STAYS_FOR, self._leave)

    def refuse(self, route: Route) -> bool:
        """Answer another cell with the reason, and leave; False: there is none."""
        if self._error is None:
            return False
        self._mouth.answer_error(route, self._error)
        self._reactor.later(LAST_WORDS, self._leave)
        return True
