"""Notices that this machine was asleep, or that this process was stopped for a while.

No system tells all programs that it wakes up. But the monotonic clock of most stands still
meanwhile, and every timer is late by the wall clock: that can be seen anywhere.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.protocol.reactor import Reactor

POLL_EVERY = 2.0  # seconds
SUSPENDED_FOR = 3.0  # seconds that are missing; a busy machine is late by less


class SuspendDetector:
    """Calls back when time has passed that this process has not lived through."""

    def __init__(
        self,
        reactor: Reactor,
        on_resume: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Remember; `clock` is the wall's, in seconds."""
        self._reactor = reactor
        self._on_resume = on_resume
        self._clock = clock
        self._due = 0.0

    def start(self) -> None:
        """Look at the clock from now on."""
        self._due = self._clock() + POLL_EVERY
        self._reactor.call_later(POLL_EVERY, self._poll)

    def _poll(self) -> None:
        # A clock that was set, forwards or back, looks the same, and to look after the link
        # once too often does no harm.
        was_away = abs(self._clock() - self._due) > SUSPENDED_FOR
        self.start()
        if was_away:
            self._on_resume()
