"""Relays stdin and stdout to one port: the way to an evaluator where sshd forbids forwarding.

When either side ends, both do: the link above must see a cut as a cut.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Callable

from remoter_kernel.protocol.threads import Thread

AT_ONCE = 64 * 1024  # bytes
CONNECT_WITHIN = 10.0  # seconds
GREETING = b"REMOTER bridge\n"


def main(host: str, port: str) -> None:
    """Connect, greet, relay."""
    try:
        handle = socket.create_connection((host, int(port)), CONNECT_WITHIN)
    except OSError as error:
        sys.stderr.write(f"nothing listens at {host}:{port} ({error})\n")
        sys.exit(1)
    handle.settimeout(None)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a cell's request is small
    _write_stdout(GREETING)  # the other end sends nothing before this: a banner may come first
    inwards = lambda: os.read(0, AT_ONCE), handle.sendall
    Thread(_copy, name="inwards", args=inwards, on_error=lambda _error: os._exit(1)).start()
    _copy(lambda: handle.recv(AT_ONCE), _write_stdout)


def _copy(read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    """Copy until an end or an error; then end the process, also for the other direction."""
    with contextlib.suppress(OSError):
        while data := read():
            write(data)
    os._exit(0)


def _write_stdout(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
