"""All commands and tunnels of a login over one OpenSSH master: ours, or the person's own.

Speaks with an OpenSSH master process through its socket (PROTOCOL.mux of OpenSSH). One connection
makes one request. We pass the master the descriptors that it is to read and write: no process
stands between it and us, and an end of file at its end is one at ours at once.

A master sees all that goes to the host behind it, and nobody but the master has checked that
host's key: we use none that another user of this machine runs, wherever its socket is.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

from remoter_kernel.local.login.login import (
    CONNECT_FAILED,
    FORBIDDEN,
    ChannelOpenError,
    ConnectionClosed,
    ResponseTimeout,
)
from remoter_kernel.local.login.openssh.stream_channel import ChannelStreams, OpenSSHTransport
from remoter_kernel.local.login.remote_command import RemoteCommand
from remoter_kernel.local.private_sockets import peer_uid, read_exactly
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

ANSWERS_WITHIN = 5.0  # seconds; the master is on this machine
ENDS_WITHIN = 2.0  # seconds

# PROTOCOL.mux of OpenSSH: what is asked, and what is answered.
HELLO, VERSION = 0x00000001, 4
NEW_SESSION, ALIVE_CHECK, NEW_FORWARD = 0x10000002, 0x10000004, 0x10000008
DENIED, FAILED, EXITED, ALIVE, OPENED = range(0x80000002, 0x80000007)
STREAMS = {NEW_SESSION: 3, NEW_FORWARD: 2}  # so many descriptors does each need
NO_ESCAPE = 0xFFFFFFFF
REQUEST = 1  # its number: one connection makes only one
LARGEST_ANSWER = 64 * 1024  # bytes of one answer: real ones have some dozens


class MuxStreams(ChannelStreams):
    """What one connection to the master has begun."""

    def __init__(self, connection: Mux, socket_path: Path, ends: Sequence[int]) -> None:
        super().__init__(*ends)
        self._mux = connection
        self._socket_path = socket_path
        self._is_over = False

    def wait(self) -> int | None:
        """Wait until the command ends."""
        status = self._mux.wait_for_exit()
        self._is_over = True
        return status

    def terminate(self) -> None:
        """Hang up."""
        was_over, self._is_over = self._is_over, True
        self._mux.close()
        if not was_over:
            wake_master(self._socket_path)


class MuxTransport(OpenSSHTransport):
    """A living master at `socket_path`; `open` it, `close_and_join` it."""

    def __init__(self, socket_path: Path, *, is_ours: bool, round_trip: float = math.inf) -> None:
        super().__init__(round_trip)
        self._socket_path = socket_path
        self._is_ours = is_ours
        self._process_id = 0  # of the master, from `open` until it is ended
        self._watch_mux: Mux | None = None
        self._watcher: threading.Thread | None = None

    def open(self) -> None:
        """Connect, and stay so: a master that ends is noticed, and ours stays for us."""
        self._watch_mux = Mux(self._socket_path, ANSWERS_WITHIN)
        try:
            self._process_id = self._watch_mux.process_id()
        except BaseException as error:
            self._watch_mux.close()
            if isinstance(error, MuxError):
                raise ConnectionClosed from None
            raise
        self.active = True
        self._watcher = Thread(
            self._wait_for_master_exit,
            args=(self._watch_mux,),
            name="ssh-master",
            on_error=lambda _error: self.abort(),
        )
        self._watcher.start()

    def _wait_for_master_exit(self, mux: Mux) -> None:
        mux.wait_for_exit()
        self.active = False

    # --- channels ---

    def open_session(self, command: str, seconds: float) -> MuxStreams:
        """Start a command."""
        no_terminal_x11_agent_subsystem = (0, 0, 0, 0)
        words = ("", *no_terminal_x11_agent_subsystem, NO_ESCAPE, "", command)
        try:
            return self._open_streams(seconds, NEW_SESSION, *words)
        except MuxError:
            raise ChannelOpenError(CONNECT_FAILED) from None

    def open_forward(self, host: str, port: int, seconds: float) -> MuxStreams:
        """Have the server connect to there."""
        try:
            return self._open_streams(seconds, NEW_FORWARD, "", host, port)
        except MuxError:
            # The master does not say why. What would surely answer, if it were allowed, does.
            code = FORBIDDEN if self._forbids_forwarding(seconds) else CONNECT_FAILED
            raise ChannelOpenError(code) from None

    def _forbids_forwarding(self, seconds: float) -> bool:
        """Try to reach the sshd that we talk with: it listens, so a refusal is a rule."""
        running = RemoteCommand(self)
        deadline = time.monotonic() + seconds
        try:
            running.start("echo $SSH_CONNECTION", b"", deadline)
            words = running.wait(deadline).stdout.split()
            where = words[-2].decode(), int(words[-1])
            self._open_streams(seconds, NEW_FORWARD, "", *where).close()
        except MuxError:
            return True
        except (IndexError, ValueError, ChannelOpenError):
            return False
        finally:
            running.close()
        return False

    def _open_streams(self, seconds: float, request: int, *words: int | str) -> MuxStreams:
        if not self.active:
            raise ConnectionClosed
        connection = Mux(self._socket_path, seconds)
        pipes = [os.pipe() for _ in range(STREAMS[request])]
        # We write to stdin, and read from the others.
        ours = [pipes[0][1], *(pipe[0] for pipe in pipes[1:])]
        theirs = [pipes[0][0], *(pipe[1] for pipe in pipes[1:])]
        opened = MuxStreams(connection, self._socket_path, ours)
        began = time.perf_counter()
        try:
            connection.open(theirs, request, *words)
        except BaseException:
            connection.close()
            opened.close_streams()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.round_trip = min(self.round_trip, time.perf_counter() - began)
        return opened

    def check_alive(self) -> None:
        """Find out whether the master lives: its end and a channel's come at the same time."""
        if not master_answers(self._socket_path, ANSWERS_WITHIN):
            self.active = False

    # --- the end ---

    def abort(self) -> None:
        """Drop everything without a goodbye; the person's own master lives on."""
        if self.active:
            self._signal_master(signal.SIGKILL)
        super().abort()

    def close_and_join(self) -> None:
        """End what was begun, and the master if it is ours; leave no thread behind."""
        if not self.active:
            self._is_ours = False  # it has ended: its number may be another process's by now
        super().close_and_join()

    def _end_connection(self) -> None:
        watcher = self._watcher
        if self._is_ours and watcher is not None:
            self._signal_master(signal.SIGTERM)  # it removes its socket
            watcher.join(ENDS_WITHIN)
            if watcher.is_alive():
                self._signal_master(signal.SIGKILL)
        if self._watch_mux is not None:
            self._watch_mux.close()
        if watcher is not None:
            watcher.join(ENDS_WITHIN)

    def _signal_master(self, number: int) -> None:
        if self._is_ours:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._process_id, number)


class MuxError(Exception):
    """The master, or the server behind it, did not do what was asked."""


class Mux:
    """One connection to a master's socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        """Connect; raise ConnectionClosed where none answers, ResponseTimeout of a silent one."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._seconds: float | None = seconds  # for one answer
        self._sock.settimeout(seconds)
        try:
            self._sock.connect(str(path))
            _check_owner(self._sock, path)  # before a word is said to it
            self._send(HELLO, VERSION)
            kind, version, *_ = struct.unpack_from(">II", self._receive())
        except (OSError, struct.error) as error:
            self.close()
            raise (
                ResponseTimeout if isinstance(error, TimeoutError) else ConnectionClosed
            ) from None
        except BaseException:
            self.close()
            raise
        if (kind, version) != (HELLO, VERSION):
            self.close()
            raise ConnectionClosed

    def process_id(self) -> int:
        """Ask the master for its process id."""
        self._send(ALIVE_CHECK, REQUEST)
        return self._expect(ALIVE)

    def open(self, descriptors: Sequence[int], request: int, *words: int | str) -> None:
        """Have the master begin something that reads and writes these descriptors."""
        self._send(request, REQUEST, *words, descriptors=descriptors)
        self._expect(OPENED)

    def wait_for_exit(self) -> int | None:
        """Wait until the session's command ends; None where nobody says how."""
        self._seconds = None  # a command may run for as long as it likes
        with contextlib.suppress(ConnectionClosed, struct.error):
            while True:
                kind, _session, status, *_ = struct.unpack_from(">III", self._receive())
                if kind == EXITED:
                    return int(status)
        return None

    def close(self) -> None:
        """Hang up; what was begun by this connection ends."""
        with contextlib.suppress(OSError):  # wakes a thread that waits
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    # --- inside ---

    def _send(self, *words: int | str, descriptors: Sequence[int] = ()) -> None:
        body = b"".join(
            struct.pack(">I", word)
            if isinstance(word, int)
            else struct.pack(">I", len(word.encode())) + word.encode()
            for word in words
        )
        try:
            self._sock.sendall(struct.pack(">I", len(body)) + body)
            for descriptor in descriptors:
                one = array.array("i", [descriptor])
                # One descriptor to a message, with one byte: as `mm_send_fd` of OpenSSH does.
                self._sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, one)])
        except TimeoutError:
            raise ResponseTimeout from None
        except OSError:
            raise ConnectionClosed from None

    def _expect(self, wanted: int) -> int:
        """Read the answer to our request; give the number in it."""
        answer = self._receive()
        try:
            kind, _request, number = struct.unpack_from(">III", answer)
        except struct.error:
            raise ConnectionClosed from None
        if kind in (DENIED, FAILED):
            raise MuxError(answer[12:].decode(errors="replace"))
        if kind != wanted:
            raise ConnectionClosed
        return int(number)

    def _receive(self) -> bytes:
        deadline = None if self._seconds is None else time.monotonic() + self._seconds
        try:
            (size,) = struct.unpack(">I", read_exactly(self._sock, 4, deadline))
            if size > LARGEST_ANSWER:  # not a master
                raise ConnectionClosed
            return read_exactly(self._sock, size, deadline)
        except TimeoutError:
            raise ResponseTimeout from None
        except OSError:
            raise ConnectionClosed from None


def _check_owner(sock: socket.socket, path: Path) -> None:
    """Raise ConnectionClosed unless whoever listens there is the person whom we run for."""
    owner = peer_uid(sock)
    if owner < 0:  # this system does not say: the socket's file has an owner, too
        owner = path.lstat().st_uid
    if owner != os.geteuid():
        raise ConnectionClosed


def wake_master(path: Path) -> None:
    """Let a master look around, without waiting for it.

    One whose client hangs up in the middle of things marks the channel as over, and goes on
    to tell the server only when something else wakes it.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.2)
        sock.connect(str(path))
        sock.sendall(struct.pack(">III", 8, HELLO, VERSION))


def master_answers(path: Path, seconds: float = 2.0) -> bool:
    """Say whether a living master listens at that socket."""
    if not hasattr(socket, "AF_UNIX"):
        return False
    with (
        contextlib.suppress(ConnectionClosed, ResponseTimeout, MuxError),
        contextlib.closing(Mux(path, seconds)) as connection,
    ):
        return connection.process_id() > 0
    return False
