"""A tunnel whose other end is a command there: its stdin and stdout, once it has said a line.

For servers that forbid TCP forwarding: the command connects there, and passes bytes on.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from remoter_kernel.local.login.login_results import CommandEnded, CompletedCommand
from remoter_kernel.local.login.paramiko_channel import ConnectionClosed, ResponseTimeout
from remoter_kernel.local.login.tunnel import Tunnel

if TYPE_CHECKING:
    from remoter_kernel.local.login.paramiko_channel import ChannelFactory

MOST_KEPT_OUTPUT = 4096  # bytes of what was said instead of the greeting: enough for a sentence


class CommandTunnel(Tunnel):
    """Opens like a tunnel; what a noisy shell says before the line `first_line` is dropped."""

    def __init__(self, transport: ChannelFactory, command: str, first_line: bytes) -> None:
        super().__init__(transport, "", 0)
        self._transport = transport
        self._command = command
        self._first_line = first_line
        self._has_first_line = False
        self._unmatched = b""  # what came before the greeting, from the last whole line on
        self._output_tails = {"stdout": b"", "stderr": b""}  # the last of it, for a sentence
        self._first_line_or_over = threading.Condition()

    def _open_channel(self, seconds: float) -> None:
        """Start the command and wait for its greeting; raise CommandEnded, too."""
        until = time.monotonic() + seconds
        self._channel.request_open("session")
        self._channel.wait_open(seconds)
        self._channel.exec_command(self._command)
        with self._first_line_or_over:
            is_heard = self._first_line_or_over.wait_for(
                lambda: self._has_first_line or self._is_over, max(0.0, until - time.monotonic())
            )
        if self._has_first_line:
            return
        if not is_heard:
            raise ResponseTimeout
        if not self._transport.active:
            raise ConnectionClosed
        status = self._channel.exit_status
        raise CommandEnded(
            CompletedCommand(
                self._output_tails["stdout"],
                self._output_tails["stderr"],
                -1 if status is None else status,
            )
        )

    # --- on the transport's thread ---

    def data_received(self, data: bytes) -> None:
        """Look for the greeting; what follows it is what the tunnel carries."""
        if self._has_first_line:
            super().data_received(data)
            return
        if not data:  # how the command ended is told after its last word: see `connection_lost`
            return
        self._keep_tail("stdout", data)
        *lines, self._unmatched = (self._unmatched + data).splitlines(keepends=True) or [b""]
        if self._unmatched.endswith(b"\n"):
            lines, self._unmatched = [*lines, self._unmatched], b""
        for place, line in enumerate(lines):
            if line.rstrip(b"\r\n") == self._first_line and line.endswith(b"\n"):
                rest = b"".join(lines[place + 1 :]) + self._unmatched
                self._channel.adjust_window(len(data) - len(rest))
                self._unmatched = b""
                with self._first_line_or_over:
                    self._has_first_line = True
                    self._first_line_or_over.notify_all()
                if rest:
                    super().data_received(rest)
                return
        self._channel.adjust_window(len(data))
        self._unmatched = self._unmatched[-MOST_KEPT_OUTPUT:]

    def extended_data_received(self, data: bytes) -> None:
        """Keep the last of what the command complains about."""
        self._keep_tail("stderr", data)
        super().extended_data_received(data)

    def connection_lost(self) -> None:
        """Let go of whoever waits for the greeting."""
        super().connection_lost()
        with self._first_line_or_over:
            self._first_line_or_over.notify_all()

    def _keep_tail(self, stream: str, data: bytes) -> None:
        self._output_tails[stream] = (self._output_tails[stream] + data)[-MOST_KEPT_OUTPUT:]
