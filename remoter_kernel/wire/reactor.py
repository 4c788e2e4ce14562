"""One thread that waits: for sockets, for the clock, for word from other threads.

A poll loop of our own instead of asyncio: a ZeroMQ socket under asyncio costs more per
message than all that this program does with the message.
"""

from __future__ import annotations

import heapq
import itertools
import socket
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Tuple

import zmq

Call = Callable[[], None]


class Timer:
    """A call to be made later, unless it is cancelled."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Call) -> None:
        """Remember when (seconds on the monotonic clock) and what."""
        self.due = due
        self.call: Call | None = call

    def cancel(self) -> None:
        """Make sure that the call is not made any more."""
        self.call = None


class Reactor:
    """A poll loop. All but `call` belongs to the thread that runs it."""

    def __init__(self) -> None:
        """Remember; nothing waits before `run`."""
        self._poller = zmq.Poller()
        self._handlers: Dict[Any, Call] = {}
        self._timers: List[Tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._calls: Deque[Call] = deque()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._is_running = False
        self.after_pass: Call = lambda: None
        self.watch(self._ear, self._hear)

    def watch(self, source: Any, on_readable: Call) -> None:  # noqa: ANN401 - socket, ZeroMQ or plain
        """Call back while a socket has something to read."""
        self._handlers[_key(source)] = on_readable
        self._poller.register(source, zmq.POLLIN)

    def unwatch(self, source: Any) -> None:  # noqa: ANN401 - socket, ZeroMQ or plain
        """Stop calling back for a socket."""
        if self._handlers.pop(_key(source), None):
            self._poller.unregister(source)

    def later(self, seconds: float, call: Call) -> Timer:
        """Make a call after some seconds."""
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def call(self, call: Call) -> None:
        """Have a call made in the reactor's thread; from any thread."""
        self._calls.append(call)
        try:
            self._mouth.send(b"!")
        except (BlockingIOError, OSError):
            pass  # full: it will wake up anyway; closed: nobody is there to hear

    def run(self) -> None:
        """Wait and call back until `stop`."""
        self._is_running = True
        while self._is_running:
            self._one_pass()

    def stop(self) -> None:
        """Let `run` return after this pass."""
        self._is_running = False

    def close(self) -> None:
        """Give back the sockets that wake it."""
        self._ear.close()
        self._mouth.close()

    def _one_pass(self) -> None:
        for source, _ in self._poller.poll(self._patience()):
            handler = self._handlers.get(_key(source))
            if handler:
                handler()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call:
                timer.call()
        for _ in range(len(self._calls)):
            self._calls.popleft()()
        self.after_pass()

    def _patience(self) -> int | None:
        if self._calls:
            return 0
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0, int((self._timers[0][0] - time.monotonic()) * 1000) + 1)

    def _hear(self) -> None:
        try:
            self._ear.recv(4096)
        except BlockingIOError:
            pass


def _key(source: Any) -> Any:  # noqa: ANN401 - what the poller returns for it
    return source if isinstance(source, zmq.Socket) else getattr(source, "fileno", lambda: source)()
