"""Ends a kernel that goes on without one of its ports, as R does: it would never be ready.

Another process may take a port between the moment when it is chosen and the one when the kernel
binds it. The kernel's log tells; it is in a home, which may hang, so a thread reads it.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Callable

from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.protocol.reactor import Reactor

PORT_TAKEN = "Address already in use"  # what such a kernel prints
LOOK_EVERY = 2.0  # seconds
TRIES = 3  # to start a kernel


class PortConflicts:
    """Looks at one start after the other."""

    def __init__(self, reactor: Reactor) -> None:
        """Remember; nothing is looked at yet."""
        self._reactor = reactor
        self._disk = Worker("kernel log", reactor.call_soon_threadsafe)
        self._tries = 1

    def watch(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        """Look at a child again and again while it starts."""
        self._reactor.call_later(LOOK_EVERY, partial(self._poll, kernel, is_starting))

    def check_ports(self, kernel: KernelProcess, then: Callable[[], None]) -> None:
        """Go on if it has all its ports, perhaps that for questions apart; else end it."""
        self._disk.submit(kernel.log_tail, partial(self._on_log_tail, kernel, then))

    def read_log_tail(self, kernel: KernelProcess, then: Callable[[str], None]) -> None:
        """Go on with the last words of a child, whose disk may hang, or fail."""
        self._disk.submit(kernel.log_tail, then, lambda _error: then(""))

    def should_retry(self, last_words: str) -> bool:
        """May another try help a kernel that has ended with these words?"""
        if not self._reports_port_taken(last_words):
            return False
        self._tries += 1
        return True

    def reset(self) -> None:
        """A kernel is ready: the next start has all its tries again."""
        self._tries = 1

    def _poll(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        if is_starting():
            self.check_ports(kernel, lambda: None)
            self.watch(kernel, is_starting)

    def _on_log_tail(self, kernel: KernelProcess, then: Callable[[], None], said: str) -> None:
        if self._reports_port_taken(said):
            kernel.signal(signal.SIGKILL)
        else:
            then()

    def _reports_port_taken(self, said: str) -> bool:
        return self._tries < TRIES and PORT_TAKEN in said
