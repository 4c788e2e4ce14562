"""Decides when a session that no client uses ends, and when a start takes too long.

Tells whoever waits that a kernel has been starting for long: a shell line may never end. What the
kernel printed is in a home, which may hang, so a thread reads it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.protocol.requests import Stage
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.evaluator.listener import Client, Listener
    from remoter_kernel.evaluator.message_writer import MessageWriter
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request, Requests

CHECK_IDLE_EVERY = 60.0  # seconds
DEFAULT_TIMEOUT = 72 * 3600.0  # seconds without any front and anything to do
FIRST_CLIENT_WITHIN = 300.0  # seconds: whoever asked for a session comes to it at once, or never
FINISHED_FOR = 1.0  # seconds: the last outputs come after the last reply

SLOW_AFTER = 20.0  # seconds: on a cold network disk a kernel takes its time
CHECK_START_EVERY = 2.0  # seconds, for a cell in which to say it
LINES = 3  # of what the kernel printed


class IdleTimeout:
    """How long an idle session may live: its `idle_timeout`, or until it is finished."""

    def __init__(
        self, reactor: Reactor, listener: Listener, requests: Requests, stop: Callable[[str], None]
    ) -> None:
        """Remember; `stop(why)` ends the session."""
        self._reactor = reactor
        self._listener = listener
        self._requests = requests
        self._stop = stop
        self._limit = DEFAULT_TIMEOUT
        self._first_client_within = FIRST_CLIENT_WITHIN
        self._has_had_client = False

    def start(self, session_request: dict[str, Any], *, is_finishing: bool) -> None:
        """Look around from now on."""
        self._limit = float(session_request.get("idle_timeout") or DEFAULT_TIMEOUT)
        self._first_client_within = float(
            session_request.get("greeted_within") or FIRST_CLIENT_WITHIN
        )
        self._reactor.call_later(0.0, self._check_idle)
        if not session_request.get("is_adopted"):  # what was used before is not thrown away
            self._check_first_client()
            self._reactor.call_later(self._first_client_within, self._stop_without_client)
        if is_finishing:
            self.stop_when_idle()

    def stop_when_idle(self) -> None:
        """End the session as soon as all that was asked of it is done and no front is here."""
        if self._is_in_use or self._requests.idle_for() < FINISHED_FOR:
            self._reactor.call_later(FINISHED_FOR / 2, self.stop_when_idle)
        else:
            self._stop("All that was asked of it was done.")

    @property
    def _is_in_use(self) -> bool:
        requests = self._requests
        return self._listener.has_clients or requests.is_busy or requests.has_undispatched

    def _check_first_client(self) -> None:
        before = self._listener.on_client_change

        def notice(client: Client) -> None:
            self._has_had_client = True
            before(client)

        self._listener.on_client_change = notice

    def _stop_without_client(self) -> None:
        """End a session that no front has ever come to: its start was cut, or the way to it."""
        if not (self._has_had_client or self._is_in_use):
            minutes = self._first_client_within / 60
            self._stop(f"Nobody has come to it within {minutes:.0f} minutes of its start.")

    def _check_idle(self) -> None:
        """End a session that has no front and nothing to do for too long."""
        if self._is_in_use:
            self._requests.mark_activity()
        if self._requests.idle_for() > self._limit:
            self._stop(f"It was idle, without any client, for {self._limit / 3600:.0f} hours.")
        self._reactor.call_later(min(CHECK_IDLE_EVERY, max(1.0, self._limit / 4)), self._check_idle)


class SlowStartNotice:
    """Watches one start after the other."""

    def __init__(
        self,
        reactor: Reactor,
        session: str,
        requests: Requests,
        writer: MessageWriter,
        session_request: dict[str, Any],
    ) -> None:
        """Remember; `session_request` has the lines that a kernel begins with (`init`)."""
        self._reactor = reactor
        self._session = session
        self._requests = requests
        self._writer = writer
        self._disk = Worker("slow start", reactor.call_soon_threadsafe)
        self._init = list(session_request.get("init") or ())

    def watch(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        """Begin to watch a child."""
        self._reactor.call_later(SLOW_AFTER, partial(self._poll, kernel, is_starting))

    def _poll(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        if not is_starting():
            return
        cell = next((each for each in self._requests.cells() if each.stage < Stage.SENT), None)
        if cell is None:
            self._reactor.call_later(CHECK_START_EVERY, partial(self._poll, kernel, is_starting))
            return
        tell = partial(self._report, cell, is_starting)
        self._disk.submit(partial(kernel.log_tail, LINES), tell)

    def _report(self, cell: Request, is_starting: Callable[[], bool], said: str) -> None:
        if not is_starting():
            return
        begins = f" It begins with: {'; '.join(self._init)}." if self._init else ""
        words = f" So far it has printed: {said}" if said else ""
        self._writer.write_stderr(
            cell,
            f"The kernel has not started within {SLOW_AFTER:.0f} s.{begins} To end it: "
            f"remoter stop {self._session}.{words}",
        )
