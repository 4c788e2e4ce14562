"""Each command and each tunnel an ssh of its own: where OpenSSH has no masters (Windows)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING

from remoter_kernel.local.login.login_process import NO_WINDOW
from remoter_kernel.local.login.openssh.openssh_argv import standalone_argv
from remoter_kernel.local.login.openssh.stream_channel import StreamChannel
from remoter_kernel.local.login.paramiko_channel import (
    ChannelOpenError,
    ConnectionClosed,
    ResponseTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from remoter_kernel.local.login.paramiko_channel import ChannelReceiver

ENDS_WITHIN = 2.0  # seconds
MOST_SAID = 64 * 1024  # bytes
FORBIDDEN, CONNECT_FAILED = 1, 2  # RFC 4254, 5.1
OPEN_CONFIRMED = b"open confirm rwindow"  # at LogLevel DEBUG2
OPEN_FORBIDDEN = b"open failed: administratively prohibited"
OPEN_FAILED = b"open failed: "


class ProcessStreams:
    """One ssh process, and this side's ends of its streams."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        pipes = [os.pipe() for _ in range(3)]
        self.stdin, self.stdout, self.stderr = pipes[0][1], pipes[1][0], pipes[2][0]
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=pipes[0][0],
                stdout=pipes[1][1],
                stderr=pipes[2][1],
                env=environment,
                start_new_session=True,
                creationflags=NO_WINDOW,
            )
        except OSError:
            for descriptor in (self.stdin, self.stdout, self.stderr):
                os.close(descriptor)
            raise ConnectionClosed from None
        finally:
            for descriptor in (pipes[0][0], pipes[1][1], pipes[2][1]):
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


class ProcessTransport:
    """Knows how to log in: each errand does so by itself."""

    def __init__(
        self,
        options: Callable[[str], list[str]],
        host: str,
        environment: Mapping[str, str],
        round_trip: float,
    ) -> None:
        self.active = True
        self.round_trip = round_trip  # seconds
        self._options = options  # for a LogLevel
        self._host = host
        self._environment = environment
        self._lock = threading.Lock()
        self._channels: set[StreamChannel] = set()

    def new_channel(self, receiver: ChannelReceiver) -> StreamChannel:
        """Make a channel that is not open yet."""
        channel = StreamChannel(self, receiver)
        with self._lock:
            self._channels.add(channel)
        return channel

    def remove_channel(self, channel: StreamChannel) -> None:
        """Drop a channel that is over."""
        with self._lock:
            self._channels.discard(channel)

    def open_session(self, command: str, seconds: float) -> ProcessStreams:  # noqa: ARG002 (it begins at once)
        """Start an ssh with this command; a login that fails is how the command ends."""
        if not self.active:
            raise ConnectionClosed
        argv = standalone_argv(self._options("ERROR"), host=self._host, command=command)
        return ProcessStreams(argv, self._environment)

    def open_forward(self, host: str, port: int, seconds: float) -> ProcessStreams:
        """Start an ssh that connects to there; raise Refused, Closed or TooLate."""
        if not self.active:
            raise ConnectionClosed
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        argv = standalone_argv(self._options("DEBUG2"), "-W", where, host=self._host)
        streams = ProcessStreams(argv, self._environment)
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            streams.terminate()

        alarm = threading.Timer(seconds, give_up)
        alarm.daemon = True
        alarm.start()
        try:
            _wait_for_forward(streams)
        except BaseException:
            streams.terminate()
            for descriptor in (streams.stdin, streams.stdout, streams.stderr):
                os.close(descriptor)
            if is_late.is_set():
                raise ResponseTimeout from None
            raise
        finally:
            alarm.cancel()
            alarm.join()
        return streams

    def check_alive(self) -> None:
        """There is no connection but those of the errands."""

    def abort(self) -> None:
        """Drop everything."""
        self.active = False
        for channel in self._open_channels():
            channel.mark_ended()

    def close_and_join(self) -> None:
        """End what was begun."""
        self.abort()
        for channel in self._open_channels():
            channel.join(ENDS_WITHIN)

    def _open_channels(self) -> list[StreamChannel]:
        with self._lock:
            return list(self._channels)


def _wait_for_forward(streams: ProcessStreams) -> None:
    """Read what ssh says until the connection there is open, or is not to be."""
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
