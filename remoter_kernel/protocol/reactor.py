"""An event loop for one thread: sockets, timers, calls from other threads.

Our own instead of asyncio: a ZeroMQ socket under asyncio costs more per message than all that
this program does with the message.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import signal
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable

import zmq

if TYPE_CHECKING:
    from collections.abc import Iterator

Call = Callable[[], None]
_log = logging.getLogger(__name__)


def ignore(*_args: object) -> None:
    """Do nothing: what a call-back does until somebody sets another one."""


def messages(handle: zmq.Socket[bytes], most: int = 200) -> Iterator[list[bytes]]:
    """Yield what waits on a ZeroMQ socket; after `most` of them others get their turn."""
    # To ask first is cheaper than an exception at the end of what is mostly one message.
    for _ in range(most):
        if handle.closed or not int(handle.get(zmq.EVENTS)) & zmq.POLLIN:
            return
        yield handle.recv_multipart(zmq.NOBLOCK)


class Timer:
    """A call to be made later, unless it is cancelled."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Call) -> None:
        """`due` is in seconds on the monotonic clock."""
        self.due = due
        self.call: Call | None = call

    def cancel(self) -> None:
        """Make sure that the call is not made any more."""
        self.call = None


class Reactor:
    """The loop. All but `call_soon_threadsafe` belongs to the thread that runs it."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Call] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()  # for timers that are due at the same time
        self._calls: deque[Call] = deque()
        self._wakeup_in, self._wakeup_out = socket.socketpair()
        self._wakeup_in.setblocking(False)
        self._wakeup_out.setblocking(False)
        self._is_running = False
        self.after_pass: Call | None = None  # called once after each round of call-backs
        self.on_bug: Callable[[Exception], None] = _raise_bug
        self.add_reader(self._wakeup_in, self._on_wakeup)

    def add_reader(self, source: Any, on_readable: Call) -> None:
        """Call back while a socket has something to read."""
        self._handlers[_source_key(source)] = on_readable
        self._poller.register(source, zmq.POLLIN)

    def remove_reader(self, source: Any) -> None:
        """Stop calling back for a socket."""
        if self._handlers.pop(_source_key(source), None):
            self._poller.unregister(source)

    def call_later(self, seconds: float, call: Call) -> Timer:
        """Make a call after some seconds."""
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def call_soon_threadsafe(self, call: Call) -> None:
        """Have a call made in the reactor's thread; from any thread."""
        self._calls.append(call)
        # Full: it will wake up anyway. Closed: the loop has ended.
        with contextlib.suppress(OSError):
            self._wakeup_out.send(b"!")

    def call_without_wakeup(self, call: Call) -> None:
        """Have a call made in the reactor's thread with the next pass; from any thread."""
        self._calls.append(call)

    def wake_on_signals(self) -> None:
        """Wake up for signals; for the main thread's reactor alone.

        Python runs a signal's handler between two instructions of its own: without this, it waits
        until zmq_poll returns for another reason.
        """
        signal.set_wakeup_fd(self._wakeup_out.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Wait and call back until `stop`."""
        self._is_running = True
        while self._is_running:
            self._one_pass()

    def run_until(self, is_done: Callable[[], bool], limit: float | None = None) -> None:
        """Wait and call back until something is true, or the monotonic clock says `limit`."""
        timer = self.call_later(limit - time.monotonic(), lambda: None) if limit else None
        while not is_done() and (limit is None or time.monotonic() < limit):
            self._one_pass()
        if timer:
            timer.cancel()

    def stop(self) -> None:
        """Let `run` return after this pass."""
        self._is_running = False

    def close(self) -> None:
        """Close the sockets that wake it."""
        self._wakeup_in.close()
        self._wakeup_out.close()

    def _one_pass(self) -> None:
        for call in self._due_calls():
            try:
                call()
            except Exception as error:  # noqa: BLE001, PERF203 - one bad call must not end all others
                _log.error("A call failed; the others go on.", exc_info=error)
                self.on_bug(error)

    def _due_calls(self) -> Iterator[Call]:
        """Wait, then yield the calls of one pass; each sees what those before it have changed."""
        while self._timers and self._timers[0][2].call is None:  # cancelled: wake up for none
            heapq.heappop(self._timers)
        timeout = None
        if self._calls:
            timeout = 0
        elif self._timers:
            # Rounded up: a poll that ends before the timer is due would be one for nothing.
            timeout = max(0, int((self._timers[0][0] - time.monotonic()) * 1000) + 1)
        for source, _ in self._poller.poll(timeout):
            # Looked up only now: a call before this one may have closed the socket. The poller
            # gives back what `_source_key` makes of a source.
            handler = self._handlers.get(source)
            if handler:
                yield handler
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call:
                yield timer.call
        for _ in range(len(self._calls)):  # what these calls add has its turn in the next pass
            yield self._calls.popleft()
        if self.after_pass:
            yield self.after_pass

    def _on_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup_in.recv(4096)


def _raise_bug(error: Exception) -> None:
    raise error


def _source_key(source: Any) -> Any:
    return source if isinstance(source, zmq.Socket) else getattr(source, "fileno", lambda: source)()
