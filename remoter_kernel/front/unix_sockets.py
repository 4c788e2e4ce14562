"""Who is at the other end of a unix socket, where the system tells."""

from __future__ import annotations

import socket
import struct
import sys

LOCAL_PEERCRED = 0x001  # of macOS and FreeBSD, at the level of the socket's own protocol (0)


def peer_uid(sock: socket.socket) -> int:
    """Return the user id of whoever listens at, or has connected, the other end; -1: not known."""
    try:
        if sys.platform == "linux":
            found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _process, uid, _group = struct.unpack("iII", found)  # struct ucred
            return int(uid)
        if sys.platform == "darwin" or sys.platform.startswith("freebsd"):
            found = sock.getsockopt(0, LOCAL_PEERCRED, struct.calcsize("IIh16I"))
            _version, uid = struct.unpack_from("II", found)  # struct xucred
            return int(uid)
    except (OSError, struct.error):
        pass
    return -1
