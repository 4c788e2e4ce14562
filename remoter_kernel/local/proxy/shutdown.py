"""When a front ends, and what becomes of its session then."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.session import machine
from remoter_kernel.local.session.final_command import send_and_exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor, Timer

HOLD_INTERRUPT_FOR = 0.15  # seconds
POLL_PARENT_EVERY = 1.0  # seconds


class ShutdownPolicy:
    """Leaves with an order for the session, or without one: then it stays."""

    def __init__(
        self, reactor: Reactor, link: Link, dialer: SessionDialer, find_remote: Callable[[], Remote]
    ) -> None:
        """Remember; `find_remote` returns the remote as it is configured now."""
        self.is_exiting = False
        self._reactor = reactor
        self._link = link
        self._dialer = dialer
        self._find_remote = find_remote
        self._keeps_session = bool(dialer.session_request.session)
        self._held_interrupt: Timer | None = None

    @property
    def keeps_session(self) -> bool:
        """Does the session stay when Jupyter shuts its kernel down?"""
        return self._keeps_session or self._find_remote().on_shutdown == "keep"

    def keep_session(self) -> None:
        """Let it stay."""
        self._keeps_session = True

    def start(self) -> None:
        """End when Jupyter says so by a signal, or is gone: nobody could reach us any more."""
        self._reactor.wake_on_signals()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if machine.can_watch():
            self._reactor.call_later(POLL_PARENT_EVERY, self._poll_parent)

    def delay_interrupt(self, interrupt: Callable[[], Any]) -> None:
        """Interrupt; where the session stays, wait first: Jupyter does so before each shutdown."""
        if self.keeps_session:
            self._held_interrupt = self._reactor.call_later(HOLD_INTERRUPT_FOR, interrupt)
        else:
            interrupt()

    def exit(self, order: str) -> None:
        """End this process: "restart" the kernel, or "stop" the session if it does not stay."""
        if self.is_exiting:
            return
        self.is_exiting = True
        if order == "stop" and self.keeps_session:
            if self._held_interrupt:
                self._held_interrupt.cancel()
            self._reactor.stop()
            return
        send_and_exit(order, reactor=self._reactor, link=self._link, dialer=self._dialer)

    def _on_signal(self, number: int, _frame: object) -> None:
        """End: the session stays. Ctrl-C in a terminal reaches us, too, and means nothing."""
        if number == signal.SIGTERM and not self.is_exiting:
            self._reactor.call_soon_threadsafe(self._reactor.stop)

    def _poll_parent(self) -> None:
        if machine.has_exited():
            self._reactor.stop()
        self._reactor.call_later(POLL_PARENT_EVERY, self._poll_parent)
