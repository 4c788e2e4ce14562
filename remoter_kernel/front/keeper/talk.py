"""How a keeper and its visitors talk: JSON words, bytes behind them, errors by their names."""

from __future__ import annotations

import json
import socket
import struct
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import answer_challenge, deliver_challenge
from typing import TYPE_CHECKING, Any

from remoter_kernel import errors
from remoter_kernel.errors import RemoterError
from remoter_kernel.front import questions
from remoter_kernel.front.ssh import outcome

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PROVES_WITHIN = 5.0  # seconds for each half of a proof
LOOK_EVERY = 0.2  # seconds between two looks at whether a wait was called off
PERSONAL = ("SSH_AUTH_SOCK", "KRB5CCNAME", "PATH")  # variables of whoever logs in
BLOBS = "blobs"  # how many frames of bytes follow
ENDED = "ended"  # of a command that said less than was waited for: its status


def prove_each_other(connection: Connection, key: bytes, *, is_keeper: bool) -> bool:
    """Let both ends prove that they know the key; one that does not, or is silent, is left."""
    steps = (deliver_challenge, answer_challenge)
    try:
        _prepare(connection, PROVES_WITHIN)
        for step in steps if is_keeper else reversed(steps):
            step(connection, key)
        _prepare(connection, 0.0)
    # Python itself asserts that what comes has the right form.
    except (OSError, EOFError, ValueError, AssertionError, AuthenticationError):
        connection.close()
        return False
    return True


def _prepare(connection: Connection, seconds: float) -> None:
    """Let reading end after some seconds (0: never), and let small frames go out at once.

    The system would keep the second of two small frames back for 40 ms.
    """
    is_windows = sys.platform == "win32"
    limit = (
        struct.pack("I", int(seconds * 1000)) if is_windows else struct.pack("ll", int(seconds), 0)
    )
    handle = socket.socket(fileno=connection.fileno())
    try:
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    finally:
        handle.detach()


def send(connection: Connection, words: dict[str, Any], *blobs: bytes) -> None:
    """Say something; `blobs` are bytes that belong to it."""
    connection.send_bytes(json.dumps({**words, BLOBS: len(blobs)}).encode())
    for blob in blobs:
        connection.send_bytes(blob)


def receive(connection: Connection) -> tuple[dict[str, Any], list[bytes]]:
    """Hear something; EOFError or OSError when the other end is gone."""
    words: dict[str, Any] = json.loads(connection.recv_bytes())
    return words, [connection.recv_bytes() for _ in range(words.pop(BLOBS))]


def told(error: RemoterError) -> tuple[dict[str, Any], list[bytes]]:
    """Return an error as words."""
    words = {
        "error": type(error).__name__,
        "what": error.what,
        "advice": error.advice,
        "remote": error.remote,
    }
    if isinstance(error, outcome.CommandEnded):
        return {**words, ENDED: error.status}, [error.stdout, error.stderr]
    return words, []


def raise_told(words: dict[str, Any], blobs: list[bytes]) -> None:
    """Raise the error that words tell of, if they do."""
    name = words.get("error")
    if not name:
        return
    if ENDED in words:
        raise outcome.CommandEnded(outcome.Ran(blobs[0], blobs[1], words[ENDED]))
    for rooms in (errors, questions, outcome):
        known = getattr(rooms, name, None)
        if isinstance(known, type) and issubclass(known, RemoterError):
            raise known(words["what"], words["advice"], remote=words["remote"])
    raise RemoterError(words["what"], words["advice"], remote=words["remote"])
