"""How a keeper and its visitors talk: JSON words, bytes behind them, errors by their names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from remoter_kernel import errors
from remoter_kernel.errors import RemoterError
from remoter_kernel.front import questions
from remoter_kernel.front.ssh import outcome

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOOK_EVERY = 0.2  # seconds between two looks at whether a wait was called off
PERSONAL = ("SSH_AUTH_SOCK", "KRB5CCNAME", "PATH")  # variables of whoever logs in
BLOBS = "blobs"  # how many frames of bytes follow
ENDED = "ended"  # of a command that said less than was waited for: its status


def send_message(connection: Connection, words: dict[str, Any], *blobs: bytes) -> None:
    """Say something; `blobs` are bytes that belong to it."""
    connection.send_bytes(json.dumps({**words, BLOBS: len(blobs)}).encode())
    for blob in blobs:
        connection.send_bytes(blob)


def receive_message(connection: Connection) -> tuple[dict[str, Any], list[bytes]]:
    """Hear something; EOFError or OSError when the other end is gone."""
    words: dict[str, Any] = json.loads(connection.recv_bytes())
    return words, [connection.recv_bytes() for _ in range(words.pop(BLOBS))]


def error_to_message(error: RemoterError) -> tuple[dict[str, Any], list[bytes]]:
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
