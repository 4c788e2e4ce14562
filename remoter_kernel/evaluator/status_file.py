"""What a session says of itself to those who do not knock: two files in its folder.

`state.json` is how it is, written at most once a second; `cells.json` is which cells of
notebooks were run in it, written with each new one. By a thread of its own: a slow disk
holds up nothing.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.protocol.frames import Lane
from remoter_kernel.protocol.requests import Requests
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from remoter_kernel.evaluator.journal import Journal
    from remoter_kernel.evaluator.listener import Listener
    from remoter_kernel.evaluator.registry import Session
    from remoter_kernel.protocol.reactor import Reactor, Timer

EVERY = 1.0  # seconds between two writings
RETRY_AFTER = 5.0  # seconds: a full disk may have room again
STATUS_FILE = "state.json"
CELLS = "cells.json"
MOST_CELLS = 10_000  # that are remembered
LONGEST_CELL = 64  # characters of a cell's id in a notebook file
ROUTINE = {"busy", "idle"}  # states that come and go with each request
_log = logging.getLogger(__name__)


class StatusWriter:
    """Keeps `state.json` as true as a second allows."""

    def __init__(
        self, reactor: Reactor, session: Session, journal: Journal, listener: Listener
    ) -> None:
        """Remember; `open` begins."""
        self.reactor = reactor
        self.requests = Requests()  # the session's, once there is a supervisor
        self._session = session
        self._journal = journal
        self._listener = listener
        self._state = ""
        self._since = time.time()
        self._timer: Timer | None = None
        self._written_at = 0.0
        self._clients: dict[str, dict[str, Any]] = {}
        self._cells: dict[str, None] = {}  # in the order in which they were run first
        self._written_cells = 0  # how many of them are written
        self._unwritten: dict[str, dict[str, Any]] = {}  # by file: only the newest counts
        self._is_writing = False
        self._disk = Worker("board", reactor.call_soon_threadsafe)

    def open(self) -> None:
        """Go on from what an evaluator before this one knew of its fronts, and begin."""
        known = self._session.read(STATUS_FILE).get("fronts") or {}
        self._clients = {name: {**words, "here": False} for name, words in known.items()}
        self._cells = dict.fromkeys(read_cells(self._session))
        self._written_cells = len(self._cells)

    def close(self) -> None:
        """Write the last word."""
        self._is_writing = True  # the loop has ended: nobody would go on
        self._write_status()
        for name, words in self._unwritten.items():
            self._disk.submit(partial(self._session.write, name, words))
        self._disk.close(EVERY)

    def add_cell(self, cell: str) -> None:
        """Hear that a cell with this id is run."""
        if 0 < len(cell) <= LONGEST_CELL and len(self._cells) < MOST_CELLS:
            self._cells.setdefault(cell)

    def update(self, state: str) -> None:
        """Hear how the kernel is; what has changed is on the board within a second."""
        if len(self._cells) > self._written_cells:
            self._written_cells = len(self._cells)
            self._write_async(CELLS, {"cells": list(self._cells)})
        if state != self._state:
            level = logging.DEBUG if {state, self._state} == ROUTINE else logging.INFO
            _log.log(level, "The session is %s (before: %s).", state, self._state or "new")
            self._state, self._since = state, time.time()
        if self._timer is None:
            wait = self._written_at + EVERY - time.monotonic()
            self._timer = self.reactor.call_later(max(wait, 0.0), self._write_status)

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
            "last": self._journal.last,
            "written": time.time(),
            "requests": self.requests.describe(),
            "fronts": {name: dict(known) for name, known in self._clients.items()},
        }
        self._write_async(STATUS_FILE, words)

    def _write_async(self, name: str, words: dict[str, Any]) -> None:
        self._unwritten[name] = words
        if not self._is_writing:
            self._is_writing = True
            self._write_next()

    def _write_next(self, _result: None = None) -> None:
        """Write one file after the other; while a disk hangs, nothing piles up."""
        if not self._unwritten:
            self._is_writing = False
            return
        name = next(iter(self._unwritten))
        words = self._unwritten.pop(name)

        def try_again(_error: Exception) -> None:
            self._unwritten.setdefault(name, words)  # unless there is something newer
            self.reactor.call_later(RETRY_AFTER, self._write_next)

        self._disk.submit(partial(self._session.write, name, words), self._write_next, try_again)


def read_cells(session: Session) -> list[str]:
    """Return the ids of the notebook cells that were run in a session."""
    cells = session.read(CELLS).get("cells")
    return [cell for cell in cells if isinstance(cell, str)] if isinstance(cells, list) else []
