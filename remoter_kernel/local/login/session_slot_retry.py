"""The commands that run on one login, for servers that have room for few at once (MaxSessions).

Many clients share a login: when several start a command at the same moment, one may have to wait
until another's command is over.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remoter_kernel.local.login.remote_command import RemoteCommand

RETRY_EVERY = 0.1  # seconds: no server sends anything when it has room again
# A server counts a session until its channel is closed at both ends: a busy one takes its time.
FREE_WITHIN = 5.0  # seconds between the end of a command and that of its session on the server


class SessionSlotRetry:
    """Knows the commands that hold a session just now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: list[RemoteCommand] = []
        self._freed_at = -FREE_WITHIN

    def add(self, command: RemoteCommand) -> None:
        """Count one more."""
        with self._lock:
            self._commands = [*self._running(), command]

    def discard(self, command: RemoteCommand) -> None:
        """Forget one that was not started: it would seem to run for ever."""
        with self._lock:
            self._commands = [each for each in self._commands if each is not command]

    @property
    def is_any_running(self) -> bool:
        """Is a command under way?"""
        with self._lock:
            return bool(self._running())

    def wait_for_slot(self, deadline: float) -> bool:
        """Wait a moment after a refusal; False: to ask again is of no use."""
        now = time.monotonic()
        with self._lock:
            if now >= deadline or not (self._running() or now < self._freed_at + FREE_WITHIN):
                return False
        time.sleep(RETRY_EVERY)
        return True

    def _running(self) -> list[RemoteCommand]:
        """Return those that have not ended; note when it was seen that one has."""
        running = [each for each in self._commands if not each.is_over]
        if len(running) < len(self._commands):
            self._freed_at = time.monotonic()
        self._commands = running
        return running
