"""Relays stdin and stdout to one port: the way to an evaluator where forwarding is forbidden.

When either side ends, both do: whoever talks through it must see a cut as a cut.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from remoter_kernel.protocol.threads import Thread

AT_ONCE = 64 * 1024  # bytes
CONNECT_WITHIN = 10.0  # seconds
GREETING = b"REMOTER bridge\n"


def main(host: str, port: str) -> None:
    """Connect, greet, relay."""
    try:
        there = socket.create_connection((host, int(port)), CONNECT_WITHIN)
    except OSError as error:
        sys.stderr.write(f"nothing listens at {host}:{port} ({error})\n")
        sys.exit(1)
    there.settimeout(None)
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _write_stdout(GREETING)
    Thread(_copy_stdin, name="inwards", args=(there,), on_error=lambda _error: os._exit(1)).start()
    with contextlib.suppress(OSError):
        while True:
            data = there.recv(AT_ONCE)
            if not data:
                break
            _write_stdout(data)
    os._exit(0)


def _copy_stdin(there: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data = os.read(0, AT_ONCE)
            if not data:
                break
            there.sendall(data)
    os._exit(0)


def _write_stdout(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
