"""What a session tells of itself to whoever asks no evaluator: two files in its folder.

`state.json` is its status, written at most once a second; `cells.json` lists the cells of
notebooks that were run in it, written with each new one. A thread of its own writes them: a slow
disk holds up nothing.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.protocol.frames import Lane
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from remoter_kernel.evaluator.listener import Listener
    from remoter_kernel.evaluator.registry import Session
    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.requests import Requests

EVERY = 1.0  # seconds between two writings
RETRY_AFTER = 5.0  # seconds: a full disk may have room again
STATUS_FILE = "state.json"
CELLS = "cells.json"
MOST_CELLS = 10_000  # that are remembered
LONGEST_CELL = 64  # characters of a cell's id in a notebook file
ROUTINE = {"busy", "idle"}  # states that come and go with each request
_log = logging.getLogger(__name__)


class _FileWriter:
    """Writes files of a session in a thread; while a disk hangs, nothing piles up."""

    def __init__(self, session: Session, reactor: Reactor) -> None:
        self._session = session
        self._reactor = reactor
        self._disk = Worker("board", reactor.call_soon_threadsafe)
        self._unwritten: dict[str, dict[str, Any]] = {}  # by file: only the newest counts
        self._is_writing = False

    def write(self, name: str, words: dict[str, Any]) -> None:
        """Write a file as soon as the one before it is written."""
        self._unwritten[name] = words
        if not self._is_writing:
            self._is_writing = True
            self._write_next()

    def _write_next(self, _result: None = None) -> None:
        if not self._unwritten:
            self._is_writing = False
            return
        name = next(iter(self._unwritten))
        words = self._unwritten.pop(name)

        def try_again(_error: Exception) -> None:
            self._unwritten.setdefault(name, words)  # unless there is something newer
            self._reactor.call_later(RETRY_AFTER, self._write_next)

        self._disk.submit(partial(self._session.write, name, words), self._write_next, try_again)

    def close(self) -> None:
        """Write what is left, if the disk takes it soon: the loop that would go on has ended."""
        for name, words in self._unwritten.items():
            self._disk.submit(partial(self._session.write, name, words))
        self._disk.close(EVERY)


class StatusWriter:
    """Keeps `state.json` as true as a second allows."""

    def __init__(self, session: Session, listener: Listener, requests: Requests) -> None:
        self._session = session
        self._listener = listener
        self._requests = requests
        self._state = ""
        self._since = time.time()
        self._timer: Timer | None = None
        self._written_at = 0.0
        self._clients: dict[str, dict[str, Any]] = {}
        self._cells: dict[str, None] = {}  # in the order in which they were run first
        self._written_cells = 0  # how many of them are written
        self._files = _FileWriter(session, listener.reactor)

    def open(self) -> None:
        """Go on from what an evaluator before this one knew of its clients, and begin."""
        # For `remoter outputs`: what a client had acknowledged that will never come back.
        known = self._session.read(STATUS_FILE).get("fronts") or {}
        self._clients = {name: {**words, "here": False} for name, words in known.items()}
        self._cells = dict.fromkeys(read_cells(self._session))
        self._written_cells = len(self._cells)

    def close(self) -> None:
        """Write the last status; the loop has ended."""
        self._write_status()
        self._files.close()

    def add_cell(self, cell: str) -> None:
        """Note that a cell with this id is run."""
        if 0 < len(cell) <= LONGEST_CELL and len(self._cells) < MOST_CELLS:
            self._cells.setdefault(cell)

    def update(self, state: str) -> None:
        """Note that something has changed, and the kernel's state; the file has it in a second."""
        if len(self._cells) > self._written_cells:
            self._written_cells = len(self._cells)
            self._files.write(CELLS, {"cells": list(self._cells)})
        if state != self._state:
            level = logging.DEBUG if {state, self._state} == ROUTINE else logging.INFO
            _log.log(level, "The session is %s (before: %s).", state, self._state or "new")
            self._state, self._since = state, time.time()
        if self._timer is None:
            wait = self._written_at + EVERY - time.monotonic()
            self._timer = self._listener.reactor.call_later(max(wait, 0.0), self._write_status)

    def _write_status(self) -> None:
        self._timer = None
        self._written_at = time.monotonic()
        for client in self._listener.clients.values():
            known = self._clients.setdefault(client.name.hex(), {})
            known.update(here=client.pump is not None, taken=client.outbox.acked[Lane.BULK])
            known.update(kernel_id=client.kernel_id, laptop=client.laptop)
        words = {
            "state": self._state,
            "since": self._since,
            "last": self._listener.journal.last,
            "written": time.time(),
            "requests": self._requests.describe(),
            # Copies: the thread that writes them must not see them change.
            "fronts": {name: dict(known) for name, known in self._clients.items()},
        }
        self._files.write(STATUS_FILE, words)


def read_cells(session: Session) -> list[str]:
    """Return the ids of the notebook cells that were run in a session."""
    cells = session.read(CELLS).get("cells")  # of any version, or of a bad disk
    return [cell for cell in cells if isinstance(cell, str)] if isinstance(cells, list) else []
