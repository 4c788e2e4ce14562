"""Whether the system still holds bytes that one end of a connection on this machine has sent.

Where a receiver was held up, its buffer overflows, and what was dropped is sent again only some
time later, up to seconds after the receiver reads on. Silence alone does not tell that from
the end of what was sent.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

CONNECTIONS = Path("/proc/net/tcp")


def has_bytes_in_flight(sender: int, receiver: int) -> bool:
    """Do bytes wait on the way from one port to another? False where no system tells it."""
    try:
        lines = CONNECTIONS.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False  # Linux alone has it
    for line in lines:
        _, local, remote, _, queues, *_ = line.split()
        ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        unsent, _, unread = queues.partition(":")
        is_one = (ports == (sender, receiver) and int(unsent, 16)) or (
            ports == (receiver, sender) and int(unread, 16)
        )
        if is_one:
            return True
    return False


def connection_ports(handle: int) -> tuple[int, int]:
    """Return the other port and our own of a connection that ZeroMQ has; zeros if unknown."""
    if not sys.platform.startswith("linux"):
        return 0, 0
    try:
        with socket.socket(fileno=os.dup(handle)) as copy:
            return int(copy.getpeername()[1]), int(copy.getsockname()[1])
    except (OSError, IndexError):
        return 0, 0  # it is closed again, or no TCP
