"""One client of a keeper: its requests, its answers, and the tunnels that are its own."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING

from remoter_kernel.local.login.keeper.endpoint import Message, Reply, receive_message, send_message
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from remoter_kernel.local.login.tunnel import Tunnel


class ConnectedClient:
    """A proxy or a command at the other end of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()  # steps and questions may come from two threads
        self.is_gone = False
        self.may_ask = False  # is a person there who can be asked?
        self.place = ""  # where they sit, as in "in analysis.ipynb"
        # Called in the thread that reads: by what it answers, while it waits for a login.
        self.on_answer: Callable[[Message], None] = lambda _message: None
        self.on_end: Callable[[], None] = lambda: None
        self._tunnels: list[Tunnel] = []
        self._reader = Thread(self._read, name="keeper-ear", on_error=self._on_read_end)

    def requests(self) -> Iterator[Reply]:
        """Yield what it asks for, until it goes."""
        self._reader.start()
        while (received := self._requests.get()) is not None:
            yield received

    def send(self, message: Message, *blobs: bytes) -> None:
        """Send it something; nothing happens if it is gone."""
        with contextlib.suppress(OSError), self._send_lock:
            send_message(self._connection, message, *blobs)

    def close(self) -> None:
        """Hang up: its tunnels end."""
        self._mark_gone()
        while self._tunnels:
            self._tunnels.pop().close()
        with contextlib.suppress(OSError):
            self._connection.close()

    # --- its tunnels ---

    def register_tunnel(self, tunnel: Tunnel) -> Message:
        """Keep a tunnel for as long as the client stays."""
        with self._lock:
            self._tunnels = [each for each in self._tunnels if each.is_open] + [tunnel]
            if not self.is_gone:
                return {"address": tunnel.address, "secret": tunnel.secret.hex()}
        tunnel.close()  # it went while the tunnel was opened
        return {}

    @property
    def has_tunnels(self) -> bool:
        """Would it miss the login?"""
        return any(tunnel.is_open for tunnel in list(self._tunnels))

    @property
    def received(self) -> int:
        """How many bytes have come for it so far."""
        return sum(tunnel.received for tunnel in self._tunnels)

    def send_step(self, step: str) -> None:
        """Tell which step of a login begins."""
        self.send({"step": step})

    # --- its own thread ---

    def _read(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, LookupError, TypeError):
            while True:
                message, blobs = receive_message(self._connection)
                # Answers come while the client's request, a login, is being served.
                if "do" in message:
                    self._requests.put((message, blobs))
                else:
                    self.on_answer(message)
        self._on_read_end()

    def _on_read_end(self, _error: BaseException | None = None) -> None:
        self._mark_gone()
        self._requests.put(None)

    def _mark_gone(self) -> None:
        with self._lock:
            self.is_gone = True
        self.on_end()
