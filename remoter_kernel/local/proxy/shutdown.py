"""When a proxy ends, and what becomes of its session then."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.session import machine
from remoter_kernel.local.session.final_command import send_and_exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor, Timer

# Longer than jupyter_client takes from one to the other, and too short for a person to notice.
HOLD_INTERRUPT_FOR = 0.15  # seconds
POLL_PARENT_EVERY = 1.0  # seconds


@dataclass
class ShutdownPolicy:
    """Exits with a command for the session, or without one: then it stays."""

    reactor: Reactor
    link: Link
    dialer: SessionDialer
    find_remote: Callable[[], Remote]  # as it is configured now
    is_exiting: bool = field(default=False, init=False)
    _is_kept: bool = field(default=False, init=False)  # did a person say so?
    _held_interrupt: Timer | None = field(default=None, init=False)

    @property
    def keeps_session(self) -> bool:
        """Does the session stay when Jupyter shuts its kernel down?"""
        # A proxy that was given a session (`remoter attach`) is a client of it.
        is_attached = bool(self.dialer.session_request.session)
        return self._is_kept or is_attached or self.find_remote().on_shutdown == "keep"

    def keep_session(self) -> None:
        """Let the session stay, whatever is configured."""
        self._is_kept = True

    def start(self) -> None:
        """Exit on Jupyter's signal, or when Jupyter is gone: nobody could reach us any more."""
        self.reactor.wake_on_signals()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if machine.can_watch():
            self.reactor.call_later(POLL_PARENT_EVERY, self._poll_parent)

    def delay_interrupt(self, interrupt: Callable[[], Any]) -> None:
        """Interrupt; where the session stays, wait first whether a shutdown follows.

        jupyter_client interrupts a kernel just before it shuts it down: the cell would be lost.
        """
        if self.keeps_session:
            self._held_interrupt = self.reactor.call_later(HOLD_INTERRUPT_FOR, interrupt)
        else:
            interrupt()

    def exit(self, command: str) -> None:
        """End this process: "restart" the kernel, or "stop" the session if it does not stay."""
        if self.is_exiting:
            return
        self.is_exiting = True
        if command == "stop" and self.keeps_session:
            if self._held_interrupt:
                self._held_interrupt.cancel()
            self.reactor.stop()
            return
        send_and_exit(command, reactor=self.reactor, link=self.link, dialer=self.dialer)

    def _on_signal(self, number: int, _frame: object) -> None:
        # Ctrl-C in a terminal reaches all processes of it, this one, too, and means nothing. By
        # SIGTERM alone no session ends: a server that is killed leaves them.
        if number == signal.SIGTERM and not self.is_exiting:
            self.reactor.call_soon_threadsafe(self.reactor.stop)

    def _poll_parent(self) -> None:
        if machine.has_exited():
            self.reactor.stop()
        self.reactor.call_later(POLL_PARENT_EVERY, self._poll_parent)
