"""Speaks with an OpenSSH master process through its socket (PROTOCOL.mux of OpenSSH).

One connection makes one request. The master is given the descriptors that it is to read and
write, so no process stands between it and us, and an end of file there is one here at once.

A master hears all that goes to the host behind it, and nobody has checked that host's key but
the master: one that another user of this machine runs is none of ours, wherever its socket is.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

from remoter_kernel.local.login.paramiko_channel import ConnectionClosed, ResponseTimeout
from remoter_kernel.local.unix_sockets import peer_uid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HELLO, VERSION = 0x00000001, 4
NEW_SESSION, ALIVE_CHECK, NEW_FORWARD = 0x10000002, 0x10000004, 0x10000008
DENIED, FAILED, EXITED, ALIVE, OPENED = (
    0x80000002,
    0x80000003,
    0x80000004,
    0x80000005,
    0x80000006,
)
NO_ESCAPE = 0xFFFFFFFF
REQUEST = 1  # its number: one connection makes only one
LARGEST_ANSWER = 64 * 1024  # bytes of one answer: real ones have some dozens


class MuxError(Exception):
    """The master, or the server behind it, did not do what was asked."""


class Mux:
    """One connection to a master's socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        """Connect; raise Closed where no master answers, TooLate where one is silent."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._seconds: float | None = seconds  # for one answer
        self._sock.settimeout(seconds)
        try:
            self._sock.connect(str(path))
            _check_owner(self._sock, path)
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

    def open_session(self, command: str, descriptors: Sequence[int]) -> None:
        """Start a command; the descriptors are its stdin, stdout and stderr."""
        no_terminal_x11_agent_subsystem = (0, 0, 0, 0)
        words = (*no_terminal_x11_agent_subsystem, NO_ESCAPE, "", command)
        self._send(NEW_SESSION, REQUEST, "", *words, descriptors=descriptors)
        self._expect(OPENED)

    def open_forward(self, host: str, port: int, descriptors: Sequence[int]) -> None:
        """Connect to `host`:`port` from there; the descriptors are what is sent and received."""
        self._send(NEW_FORWARD, REQUEST, "", host, port, descriptors=descriptors)
        self._expect(OPENED)

    def wait_for_exit(self) -> int | None:
        """Wait until the session's command ends; None where nobody says how."""
        self._seconds = None
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
        until = None if self._seconds is None else time.monotonic() + self._seconds
        (size,) = struct.unpack(">I", self._read(4, until))
        if size > LARGEST_ANSWER:
            raise ConnectionClosed
        return self._read(size, until)

    def _read(self, size: int, until: float | None) -> bytes:
        data = b""
        while len(data) < size:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise ResponseTimeout
            try:
                self._sock.settimeout(left)
                more = self._sock.recv(size - len(data))
            except TimeoutError:
                raise ResponseTimeout from None
            except OSError:
                raise ConnectionClosed from None
            if not more:
                raise ConnectionClosed
            data += more
        return data


def _check_owner(sock: socket.socket, path: Path) -> None:
    """Raise Closed unless whoever listens there is the person whom we run for."""
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
    try:
        connection = Mux(path, seconds)
    except (ConnectionClosed, ResponseTimeout):
        return False
    try:
        return connection.process_id() > 0
    except (ConnectionClosed, ResponseTimeout, MuxError):
        return False
    finally:
        connection.close()
