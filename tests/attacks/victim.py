"""A real link to whatever is at an address, and how much it makes this process grow.

Reads the address and keys from its command line; says in one JSON line how it went.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import zmq

from remoter_kernel.local.session.link import Link, LinkState, SessionEndpoint
from remoter_kernel.protocol.reactor import Reactor

if TYPE_CHECKING:
    from remoter_kernel.errors import RemoterError

ENOUGH = 600 * 1024 * 1024  # bytes: where nothing stops it, this ends it
WITHIN = 60.0  # seconds


class Dialer:
    """Leads to the address that was given."""

    has_asked = False

    def __init__(self, endpoint: str, keys: tuple[bytes, bytes, bytes]) -> None:
        self._line = SessionEndpoint(endpoint, *keys, lambda: None)

    def dial(self) -> SessionEndpoint:
        return self._line

    def abort(self) -> None:
        """There is nothing to cut."""

    def on_no_welcome(self, error: RemoterError) -> RemoterError:
        """There is nothing to doubt."""
        return error


class Plain(zmq.Socket):
    """A socket without CURVE: whoever attacks makes frames that libzmq would never make."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("curve_"):
            super().__setattr__(name, value)


class PlainContext(zmq.Context):
    """Makes such sockets."""

    _socket_class = Plain


class Holding:
    """A pacer whose client takes nothing for now: all of it waits."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def add(self, *item: Any) -> None:
        self.waiting.append(item)


def main(endpoint: str, server_key: str, public_key: str, secret_key: str, most: str) -> None:
    reactor = Reactor()
    keys = server_key.encode(), public_key.encode(), secret_key.encode()
    link = Link(reactor, Dialer(endpoint, keys))
    errors: list[str] = []

    def note(state: LinkState) -> None:
        if state in {LinkState.FAILED, LinkState.WAITING}:
            errors.append(str(link.error))
            reactor.stop()

    if int(most):
        link._conversation.stream.most_item = int(most)
    if not server_key:
        link._context = PlainContext()
    link.on_state = note
    link.pacer = Holding()  # type: ignore[assignment]
    process = psutil.Process()
    before = peak = process.memory_info().rss
    is_over = threading.Event()

    def tell() -> None:
        words = {"grown": peak - before, "state": link.state.value, "errors": errors}
        print(json.dumps(words), flush=True)

    def watch() -> None:
        nonlocal peak
        until = time.monotonic() + WITHIN
        while not is_over.wait(0.005):
            peak = max(peak, process.memory_info().rss)
            if peak - before > ENOUGH or time.monotonic() > until:
                tell()
                os._exit(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    link.connect()
    reactor.run()
    is_over.set()
    watcher.join()
    tell()
    link.close()
    reactor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
