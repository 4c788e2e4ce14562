"""A path to a server that fails in the middle of whatever is being said."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

ENDS_WITHIN = 5.0  # seconds


class FailingPath:
    """A way to a server that ends, or falls silent, after so many bytes from there."""

    def __init__(self, port: int, after: int, *, silent: bool = False, noise: bytes = b"") -> None:
        self._target = port
        self._after = after
        self._silent = silent
        self._noise = noise
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._thread.join(ENDS_WITHIN)
        for one in (self._listener, *self._open):
            one.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            near.sendall(self._noise)
            upwards = threading.Thread(target=self._up, args=(near, far), daemon=True)
            upwards.start()
            left = self._after
            while left and (data := far.recv(min(left, 65536))):
                near.sendall(data)
                left -= len(data)
            if self._silent:
                while near.recv(65536) and far.recv(65536):
                    pass
            near.shutdown(socket.SHUT_RDWR)
            far.shutdown(socket.SHUT_RDWR)
            upwards.join(ENDS_WITHIN)

    @staticmethod
    def _up(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
