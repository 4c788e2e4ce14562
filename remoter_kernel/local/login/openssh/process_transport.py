"""Each command and each tunnel an ssh of its own: where OpenSSH has no masters (Windows)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING

from remoter_kernel.local.login.login import (
    CONNECT_FAILED,
    FORBIDDEN,
    ChannelOpenError,
    ConnectionClosed,
    ResponseTimeout,
)
from remoter_kernel.local.login.openssh.login_process import NO_WINDOW
from remoter_kernel.local.login.openssh.openssh_argv import standalone_argv
from remoter_kernel.local.login.openssh.stream_channel import ChannelStreams, OpenSSHTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ENDS_WITHIN = 2.0  # seconds
MOST_SAID = 64 * 1024  # bytes
OPEN_CONFIRMED = b"open confirm rwindow"  # at LogLevel DEBUG2
OPEN_FORBIDDEN = b"open failed: administratively prohibited"
OPEN_FAILED = b"open failed: "


class ProcessStreams(ChannelStreams):
    """One ssh process."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        (stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr) = (
            os.pipe(),
            os.pipe(),
            os.pipe(),
        )
        super().__init__(our_stdin, our_stdout, our_stderr)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
                creationflags=NO_WINDOW,
            )
        except OSError:
            self.close_streams()
            raise ConnectionClosed from None
        finally:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)

    def wait(self) -> int | None:
        """Wait until the command, and ssh with it, ends."""
        return self._process.wait()

    def terminate(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ProcessTransport(OpenSSHTransport):
    """Knows how to log in: each command and each connection does so by itself."""

    def __init__(
        self,
        options: Callable[[str], list[str]],
        host: str,
        environment: Mapping[str, str],
        round_trip: float,
    ) -> None:
        super().__init__(round_trip)
        self.active = True
        self._options = options  # for a LogLevel
        self._host = host
        self._environment = environment

    def _start_ssh(self, log_level: str, *more: str, command: str = "") -> ProcessStreams:
        if not self.active:
            raise ConnectionClosed
        argv = standalone_argv(self._options(log_level), *more, host=self._host, command=command)
        return ProcessStreams(argv, self._environment)

    def open_session(self, command: str, seconds: float) -> ProcessStreams:  # noqa: ARG002 (it begins at once)
        """Start an ssh with this command; a login that fails is how the command ends."""
        # Its stderr is the command's: what ssh would say of itself must not stand in it.
        return self._start_ssh("ERROR", command=command)

    def open_forward(self, host: str, port: int, seconds: float) -> ProcessStreams:
        """Start an ssh that connects to there."""
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # -W says only at DEBUG2 that the connection is there.
        streams = self._start_ssh("DEBUG2", "-W", where)
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            streams.terminate()

        alarm = threading.Timer(seconds, give_up)  # a pipe cannot be read with a timeout on Windows
        alarm.daemon = True
        alarm.start()
        try:
            _wait_for_forward(streams)
        except BaseException:
            streams.close()
            if is_late.is_set():
                raise ResponseTimeout from None
            raise
        finally:
            alarm.cancel()
            alarm.join()
        return streams


def _wait_for_forward(streams: ProcessStreams) -> None:
    """Read what ssh says until the connection is open, or is not to be."""
    said = b""
    while OPEN_CONFIRMED not in said:
        more = os.read(streams.stderr, 65536)
        said = (said + more)[-MOST_SAID:]
        if OPEN_FORBIDDEN in said:
            raise ChannelOpenError(FORBIDDEN)
        if OPEN_FAILED in said:
            raise ChannelOpenError(CONNECT_FAILED)
        if not more:
            raise ConnectionClosed
