"""The commands that run on one login, for servers that have room for few at once (MaxSessions).

Many fronts share a login: when several come at the same moment, one may have to wait until
another's command is over.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remoter_kernel.local.login.remote_command import RemoteCommand

RETRY_EVERY = 0.1  # seconds: no server tells when it has room again
FREE_WITHIN = 1.0  # seconds between the end of a command and that of its session there


class SessionSlotRetry:
    """Knows the commands that hold a session just now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[RemoteCommand] = []
        self._freed_at = -FREE_WITHIN

    def add(self, command: RemoteCommand) -> None:
        """Hear of one more."""
        with self._lock:
            self._remove_ended()
            self._running.append(command)

    def discard(self, command: RemoteCommand) -> None:
        """Hear that one has not begun."""
        with self._lock:
            self._running = [each for each in self._running if each is not command]

    @property
    def is_any_running(self) -> bool:
        """Is a command under way?"""
        with self._lock:
            self._remove_ended()
            return bool(self._running)

    def wait_for_slot(self, deadline: float) -> bool:
        """Wait a moment after a refusal; False: to ask again is of no use."""
        now = time.monotonic()
        with self._lock:
            self._remove_ended()
            if now >= deadline or not (self._running or now < self._freed_at + FREE_WITHIN):
                return False
        time.sleep(RETRY_EVERY)
        return True

    def _remove_ended(self) -> None:
        command = [each for each in self._running if not each.is_over]
        if len(command) < len(self._running):
            self._freed_at = time.monotonic()
        self._running = command
