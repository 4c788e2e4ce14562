"""How a keeper and its clients talk: JSON words, bytes behind them, errors by their names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from remoter_kernel import errors
from remoter_kernel.errors import RemoterError
from remoter_kernel.local.login import login_results, prompts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

POLL_EVERY = 0.2  # seconds between two looks at whether a wait was called off
FORWARDED_ENV = ("SSH_AUTH_SOCK", "KRB5CCNAME", "PATH")  # variables of whoever logs in
BLOBS = "blobs"  # how many frames of bytes follow
EXIT_STATUS = "ended"  # of a command that said less than was waited for: its status


def send_message(connection: Connection, message: dict[str, Any], *blobs: bytes) -> None:
    """Say something; `blobs` are bytes that belong to it."""
    connection.send_bytes(json.dumps({**message, BLOBS: len(blobs)}).encode())
    for blob in blobs:
        connection.send_bytes(blob)


def receive_message(connection: Connection) -> tuple[dict[str, Any], list[bytes]]:
    """Hear something; EOFError or OSError when the other end is gone."""
    message: dict[str, Any] = json.loads(connection.recv_bytes())
    return message, [connection.recv_bytes() for _ in range(message.pop(BLOBS))]


def error_to_message(error: RemoterError) -> tuple[dict[str, Any], list[bytes]]:
    """Return an error as words."""
    message = {
        "error": type(error).__name__,
        "what": error.what,
        "advice": error.advice,
        "remote": error.remote,
    }
    if isinstance(error, login_results.CommandEnded):
        return {**message, EXIT_STATUS: error.status}, [error.stdout, error.stderr]
    return message, []


def raise_from_message(message: dict[str, Any], blobs: list[bytes]) -> None:
    """Raise the error that words tell of, if they do."""
    name = message.get("error")
    if not name:
        return
    if EXIT_STATUS in message:
        raise login_results.CommandEnded(
            login_results.CompletedCommand(blobs[0], blobs[1], message[EXIT_STATUS])
        )
    for rooms in (errors, prompts, login_results):
        known = getattr(rooms, name, None)
        if isinstance(known, type) and issubclass(known, RemoterError):
            raise known(message["what"], message["advice"], remote=message["remote"])
    raise RemoterError(message["what"], message["advice"], remote=message["remote"])
