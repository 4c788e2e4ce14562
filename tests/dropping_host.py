"""This machine as a host behind a gateway that takes forwarded connections and drops them.

The built-in host's own server, but for what DROPS names: "tunnel", "bridge" (a command that was
to be the way to a session ends at once), "answer" (the login is cut while a session starts).
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

from remoter_kernel.local.login import embedded_server

DROPS = os.environ.get("DROPS", "").split(",")


class _Dropping(embedded_server._ServerInterface):
    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        if "tunnel" not in DROPS:
            return super().check_channel_direct_tcpip_request(chanid, origin, destination)
        ours, theirs = socket.socketpair()
        theirs.close()
        self.sockets[chanid] = ours
        return 0

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        if "bridge" in DROPS and b" bridge " in command:
            command = b"echo no such thing >&2; exit 3"
        if "answer" in DROPS and b"exec" in command and b" ask" not in command:
            command = b"(" + command + b") >/dev/null; kill -9 $PPID"
        return super().check_channel_exec_request(channel, command)


if __name__ == "__main__":
    embedded_server._ServerInterface = _Dropping  # type: ignore[misc]
    embedded_server.main(Path(sys.argv[1]))
