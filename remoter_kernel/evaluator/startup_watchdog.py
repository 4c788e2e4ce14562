"""Tells whoever waits that a kernel has been starting for long: a shell line may never end.

What the kernel printed is in a home, which may hang, so a thread reads it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.protocol.requests import Stage
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.evaluator.message_writer import MessageWriter
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request, Requests

SLOW_AFTER = 20.0  # seconds: on a cold network disk a kernel takes its time
LOOK_EVERY = 2.0  # seconds, for a cell in which to say it
LINES = 3  # of what the kernel printed


class StartupWatchdog:
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
            self._reactor.call_later(LOOK_EVERY, partial(self._poll, kernel, is_starting))
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
