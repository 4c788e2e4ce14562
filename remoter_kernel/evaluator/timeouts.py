"""When an unused session ends, and the notice in a cell that a kernel's start takes long.

A shell line of a kernel's `init` may never end. What the kernel has printed is in a home, which may
hang, so a thread reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.protocol.requests import Stage
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.evaluator.listener import Listener
    from remoter_kernel.evaluator.message_writer import MessageWriter
    from remoter_kernel.protocol.requests import Request, Requests

CHECK_IDLE_EVERY = 60.0  # seconds
DEFAULT_TIMEOUT = 72 * 3600.0  # seconds without any client and anything to do
FIRST_CLIENT_WITHIN = 300.0  # seconds: whoever asked for a session comes to it at once, or never
FINISHED_FOR = 1.0  # seconds: the last outputs come after the last reply

SLOW_AFTER = 20.0  # seconds: on a cold network disk a kernel takes its time
CHECK_START_EVERY = 2.0  # seconds, for a cell in which to say it
LINES = 3  # of what the kernel printed


@dataclass
class IdleTimeout:
    """How long an idle session may live: its `idle_timeout`, or until it is finished."""

    listener: Listener
    requests: Requests
    stop: Callable[[str], None]  # ends the session; the argument says why
    limit: float = DEFAULT_TIMEOUT

    def start(self, session_request: dict[str, Any], *, is_finishing: bool) -> None:
        """Look around from now on."""
        self.limit = float(session_request.get("idle_timeout") or DEFAULT_TIMEOUT)
        self._check_idle()
        if not session_request.get("is_adopted"):  # what was used before is not thrown away
            seconds = float(session_request.get("greeted_within") or FIRST_CLIENT_WITHIN)
            call = partial(self._stop_without_client, seconds)
            self.listener.reactor.call_later(seconds, call)
        if is_finishing:
            self.stop_when_idle()

    def stop_when_idle(self) -> None:
        """End the session as soon as all its requests are done and no client is connected."""
        if self._is_in_use or self.requests.idle_for() < FINISHED_FOR:
            self.listener.reactor.call_later(FINISHED_FOR / 2, self.stop_when_idle)
        else:
            self.stop("All that was asked of it was done.")

    @property
    def _is_in_use(self) -> bool:
        requests = self.requests
        return self.listener.has_clients or requests.is_busy or requests.has_undispatched

    def _stop_without_client(self, seconds: float) -> None:
        """End a session that no client has ever come to: its start was cut, or the way to it."""
        if not (self.listener.visits or self._is_in_use):
            why = f"Nobody has come to it within {seconds / 60:.0f} minutes of its start."
            self.stop(why)

    def _check_idle(self) -> None:
        """End a session that has no client and nothing to do for too long."""
        if self._is_in_use:
            self.requests.mark_activity()
        if self.requests.idle_for() > self.limit:
            self.stop(f"It was idle, without any client, for {self.limit / 3600:.0f} hours.")
        wait = min(CHECK_IDLE_EVERY, max(1.0, self.limit / 4))
        self.listener.reactor.call_later(wait, self._check_idle)


class SlowStartNotice:
    """Says in a waiting cell that a kernel has been starting for long; serves each start."""

    def __init__(
        self,
        listener: Listener,
        requests: Requests,
        writer: MessageWriter,
        init: Sequence[str] = (),
    ) -> None:
        """`init`: the shell lines that a kernel begins with."""
        self._reactor = listener.reactor
        self._session = listener.session.id
        self._requests = requests
        self._writer = writer
        self._disk = Worker("slow start", listener.reactor.call_soon_threadsafe)
        self._init = init

    def watch(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        """Begin to watch a kernel."""
        self._reactor.call_later(SLOW_AFTER, partial(self._poll, kernel, is_starting))

    def _poll(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        if not is_starting():
            return
        cell = next((each for each in self._requests.cells() if each.stage < Stage.SENT), None)
        if cell is None:  # nobody waits, or only those who see no cell
            self._reactor.call_later(CHECK_START_EVERY, partial(self._poll, kernel, is_starting))
            return
        report = partial(self._report, cell, is_starting)
        self._disk.submit(partial(kernel.log_tail, LINES), report)

    def _report(self, cell: Request, is_starting: Callable[[], bool], printed: str) -> None:
        if not is_starting():
            return
        begins = f" It begins with: {'; '.join(self._init)}." if self._init else ""
        words = f" So far it has printed: {printed}" if printed else ""
        self._writer.write_stderr(
            cell,
            f"The kernel has not started within {SLOW_AFTER:.0f} s.{begins} To end it: "
            f"remoter stop {self._session}.{words}",
        )
