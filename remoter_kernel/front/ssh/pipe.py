"""A tunnel whose other end is a command there: its stdin and stdout, once it has said a line.

For servers that forbid TCP forwarding: the command connects there, and passes bytes on.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from remoter_kernel.front.ssh.channel import Closed, TooLate
from remoter_kernel.front.ssh.outcome import CommandEnded, Ran
from remoter_kernel.front.ssh.tunnel import Tunnel

if TYPE_CHECKING:
    from remoter_kernel.front.ssh.channel import Channels

KEPT = 4096  # bytes of what was said instead of the greeting: enough for a sentence


class Pipe(Tunnel):
    """Opens like a tunnel; what a noisy shell says before the line `greeting` is dropped."""

    def __init__(self, transport: Channels, command: str, greeting: bytes) -> None:
        super().__init__(transport, "", 0)
        self._transport = transport
        self._command = command
        self._greeting = greeting
        self._is_greeted = False
        self._unread = b""  # what came before the greeting, from the last whole line on
        self._said = {"stdout": b"", "stderr": b""}  # the last of it, for a sentence
        self._greeted_or_over = threading.Condition()

    def _open_channel(self, seconds: float) -> None:
        """Start the command and wait for its greeting; raise CommandEnded, too."""
        until = time.monotonic() + seconds
        self._channel.start("session")
        self._channel.wait_open(seconds)
        self._channel.run(self._command)
        with self._greeted_or_over:
            is_heard = self._greeted_or_over.wait_for(
                lambda: self._is_greeted or self._is_over, max(0.0, until - time.monotonic())
            )
        if self._is_greeted:
            return
        if not is_heard:
            raise TooLate
        if not self._transport.active:
            raise Closed
        status = self._channel.exit_status
        raise CommandEnded(
            Ran(self._said["stdout"], self._said["stderr"], -1 if status is None else status)
        )

    # --- on the transport's thread ---

    def arrived(self, data: bytes) -> None:
        """Look for the greeting; what follows it is what the tunnel carries."""
        if self._is_greeted:
            super().arrived(data)
            return
        if not data:  # how the command ended is told after its last word: see `ended`
            return
        self._remember("stdout", data)
        *lines, self._unread = (self._unread + data).splitlines(keepends=True) or [b""]
        if self._unread.endswith(b"\n"):
            lines, self._unread = [*lines, self._unread], b""
        for place, line in enumerate(lines):
            if line.rstrip(b"\r\n") == self._greeting and line.endswith(b"\n"):
                rest = b"".join(lines[place + 1 :]) + self._unread
                self._channel.give_back(len(data) - len(rest))
                self._unread = b""
                with self._greeted_or_over:
                    self._is_greeted = True
                    self._greeted_or_over.notify_all()
                if rest:
                    super().arrived(rest)
                return
        self._channel.give_back(len(data))
        self._unread = self._unread[-KEPT:]

    def arrived_aside(self, data: bytes) -> None:
        """Keep the last of what the command complains about."""
        self._remember("stderr", data)
        super().arrived_aside(data)

    def ended(self) -> None:
        """Let go of whoever waits for the greeting."""
        super().ended()
        with self._greeted_or_over:
            self._greeted_or_over.notify_all()

    def _remember(self, stream: str, data: bytes) -> None:
        self._said[stream] = (self._said[stream] + data)[-KEPT:]
