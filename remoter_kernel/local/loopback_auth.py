"""Proofs for TCP on loopback, where there are no unix sockets and anybody may connect.

Two kinds. The keeper and who visits it share a key that stands in a file of this person alone:
both prove that they know it, the keeper first, each in its own role, within one deadline. A tunnel
has a secret that its user was told: it comes before all else. ZeroMQ cannot send one; what it
carries is proven by CURVE, and only a process of this person is let through to the other end.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET_SIZE = 32  # bytes of a key, a secret, a nonce and a proof
HANDSHAKE_WITHIN = 5.0  # seconds for all of a proof
SECRET_WITHIN = 1.0  # seconds for a tunnel's secret: its user sends it at once
ZMTP_SIGNATURE = b"\xff"  # how ZeroMQ's greeting begins
KEEPER_ROLE, CLIENT_ROLE = b"keeper", b"visitor"


def authenticate_as_client(connection: socket.socket, key: bytes, port: int) -> bool:
    """Let the keeper prove itself, and only then prove that we know the key, too."""
    mine = secrets.token_bytes(SECRET_SIZE)
    with _deadline(connection, HANDSHAKE_WITHIN) as read:
        connection.sendall(mine)
        theirs, proof = read(SECRET_SIZE), read(SECRET_SIZE)
        if not hmac.compare_digest(proof, _digest(key, KEEPER_ROLE, mine, theirs, port)):
            return False
        connection.sendall(_digest(key, CLIENT_ROLE, mine, theirs, port))
        return True
    return False


def authenticate_as_keeper(connection: socket.socket, key: bytes, port: int) -> bool:
    """Prove that we know the key, and let the visitor do so."""
    mine = secrets.token_bytes(SECRET_SIZE)
    with _deadline(connection, HANDSHAKE_WITHIN) as read:
        theirs = read(SECRET_SIZE)
        connection.sendall(mine + _digest(key, KEEPER_ROLE, theirs, mine, port))
        return hmac.compare_digest(read(SECRET_SIZE), _digest(key, CLIENT_ROLE, theirs, mine, port))
    return False


def is_authenticated(connection: socket.socket, secret: bytes) -> bool:
    """Does whoever has connected to a tunnel know its secret, or is it our own ZeroMQ?"""
    with _deadline(connection, SECRET_WITHIN) as read:
        if connection.recv(1, socket.MSG_PEEK) == ZMTP_SIGNATURE and secret[:1] != ZMTP_SIGNATURE:
            return _is_peer_own_process(connection)
        return hmac.compare_digest(read(SECRET_SIZE), secret)
    return False


def new_secret() -> bytes:
    """Make a tunnel's secret, which does not begin as ZeroMQ does."""
    while (secret := secrets.token_bytes(SECRET_SIZE))[:1] == ZMTP_SIGNATURE:
        pass
    return secret


def _digest(key: bytes, role: bytes, client_nonce: bytes, keeper_nonce: bytes, port: int) -> bytes:
    words = b"|".join((role, client_nonce, keeper_nonce, str(port).encode()))
    return hmac.digest(key, words, "sha256")


class _DeadlineReader:
    """Reads from a connection until a deadline; what is late or ends early is an OSError."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + seconds

    def __call__(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            # Seconds for each piece would let a stranger hold us for as long as it likes.
            self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
            more = self._connection.recv(size - len(data))
            if not more:
                raise ConnectionError("it ended before it was proven")
            data += more
        return data


@contextlib.contextmanager
def _deadline(connection: socket.socket, seconds: float) -> Iterator[_DeadlineReader]:
    """Read within a time; what goes wrong ends the block, and is no proof."""
    with contextlib.suppress(OSError):
        connection.settimeout(seconds)
        yield _DeadlineReader(connection, seconds)
        connection.settimeout(None)


def _is_peer_own_process(connection: socket.socket) -> bool:
    """Is the socket at the other end of a loopback connection one of this person's processes?"""
    import psutil  # noqa: PLC0415 - only where there are no unix sockets

    address = connection.getpeername()
    with contextlib.suppress(psutil.Error):
        me = psutil.Process().username()
        for each in psutil.net_connections("tcp4"):
            if each.laddr == address and each.pid is not None:
                return bool(psutil.Process(each.pid).username() == me)
    return False
