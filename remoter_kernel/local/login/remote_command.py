"""One remote command: what it was given, what it has written so far, how it ended."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.login.login import (
    CommandEnded,
    CompletedCommand,
    ConnectionClosed,
    ResponseTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.login import ChannelFactory

MOST_OUTPUT = 64 * 1024 * 1024  # bytes: what we run says less by far
# A process that a command leaves behind may hold stdout open for ever. Once the command
# itself has ended, this long is enough for what it has still in its pipes.
LINGER = 1.0  # seconds
LINE_END = re.compile(rb"[\r\n]")


class RemoteCommand:
    """A session channel, and the command in it."""

    def __init__(self, transport: ChannelFactory) -> None:
        self._transport = transport
        self._channel = transport.new_channel(self)
        self._changed = threading.Condition()
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._exited_at = 0.0
        self._is_over = False

    # --- in this order ---

    def open(self) -> None:
        """Ask for the channel; return at once."""
        self._channel.request_open("session")

    def wait_open(self, seconds: float) -> None:
        """Wait for the channel; raises what `Channel` says."""
        self._channel.wait_open(seconds)

    @property
    def is_open(self) -> bool:
        """Say whether a command can still be started in it."""
        return bool(self._channel.is_open)

    @property
    def is_over(self) -> bool:
        """Say whether the command has ended."""
        return self._is_over

    def start(self, command: str, stdin: bytes, deadline: float) -> None:
        """Start the command and give it all of its input."""
        self._channel.exec_command(command)
        try:
            self._channel.send(stdin, deadline=deadline)
            self._channel.send_eof()  # else `cat` and its like would wait for more
        except ConnectionClosed:
            # A command may end without reading what it was given. A cut is another thing.
            if not self._transport.active:
                raise

    def wait(self, deadline: float) -> CompletedCommand:
        """Wait until the command has ended; raise ConnectionClosed or ResponseTimeout."""
        self._wait_for(lambda: self._is_over, deadline)
        self.close()
        return self._result()

    def wait_for_line(self, starts_with: bytes, deadline: float) -> bytes:
        """Wait until a line of stdout starts so, and return it; the command goes on.

        Raises CommandEnded if none came, ConnectionClosed or ResponseTimeout.
        """
        found: list[bytes] = []
        begins = looked = 0  # of the line that has no end yet: where it begins, what was looked at

        def look() -> bool:
            nonlocal begins, looked
            while not found and (end := LINE_END.search(self._stdout, looked)):
                line = bytes(self._stdout[begins : end.start()])
                if line.startswith(starts_with):
                    found.append(line)
                begins = looked = end.end()
            looked = len(self._stdout)
            return bool(found) or self._is_over

        self._wait_for(look, deadline)
        if not found:
            self.close()
            raise CommandEnded(self._result())
        return found[0]

    def close(self) -> None:
        """Hang up; whether the command ends of that is its own affair."""
        self._channel.close()

    # --- inside ---

    def _result(self) -> CompletedCommand:
        with self._changed:
            stdout, stderr = bytes(self._stdout), bytes(self._stderr)
        return CompletedCommand.of(stdout, stderr, self._channel.exit_status)

    def _wait_for(self, is_done: Callable[[], object], deadline: float) -> None:
        with self._changed:
            while not is_done():
                now = time.monotonic()
                # A process that the command has left behind may hold its pipes, and the channel.
                if self._exited_at and now >= self._exited_at + LINGER:
                    self._is_over = True
                    continue
                if now >= deadline:
                    raise ResponseTimeout
                until = min(deadline, self._exited_at + LINGER) if self._exited_at else deadline
                self._changed.wait(until - now)
                if len(self._stdout) + len(self._stderr) > MOST_OUTPUT:
                    raise RemoteLacks(
                        f"a command there said more than {MOST_OUTPUT >> 20} MiB.",
                        "Look at what its login shell prints at start.",
                    )
            # What a command has written before a cut may be half of it.
            if not self._transport.active and self._channel.exit_status is None:
                raise ConnectionClosed

    # --- on the transport's thread ---

    def data_received(self, data: bytes) -> None:
        """Keep what the command says."""
        self._append(self._stdout, data)

    def extended_data_received(self, data: bytes) -> None:
        """Keep what the command complains about."""
        self._append(self._stderr, data)

    def exit_status_received(self) -> None:
        """Learn that the command ended; more of its output may come."""
        with self._changed:
            self._exited_at = time.monotonic()
            self._changed.notify_all()

    def connection_lost(self) -> None:
        """Learn that no more will come."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _append(self, kept: bytearray, data: bytes) -> None:
        with self._changed:
            # After the line that was waited for nobody reads on; the command must not choke.
            if len(kept) <= MOST_OUTPUT:
                kept += data
            if self._exited_at:  # on a narrow path, much of its output may come after its end
                self._exited_at = time.monotonic()
            self._changed.notify_all()
        self._channel.adjust_window(len(data))
