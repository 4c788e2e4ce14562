"""Input boxes in which this side has asked, also those that nobody can close any more.

Jupyter has no way to close an input box. What is typed into one whose question has moved, or was
taken back, is used for nothing. A client that does not say which question it answers may have
such a box open before any other one: the next thing that it answers was typed there.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.local.login.prompts import NeedsPerson, NotAnswered, Withdrawn
from remoter_kernel.protocol.messages import METADATA, header_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from remoter_kernel.protocol.requests import Request

POLL_EVERY = 0.1  # seconds between two looks at whether a question was taken back
WITHDRAWN_WITHIN = 2.0  # seconds
MOST_OPEN = 20  # boxes that are left open, of all pages

AnswerQueue = queue.SimpleQueue[str | NotAnswered | NeedsPerson]


class PendingPrompt(NamedTuple):
    """A question that waits for its answer."""

    request: Request
    content: dict[str, Any]
    answer: AnswerQueue
    message_id: str = ""  # of the message that asked; none: it has yet to be asked


class InputBoxes:
    """The boxes that were opened, and those of them that were left open."""

    def __init__(self, is_naming: Callable[[Sequence[bytes]], bool]) -> None:
        """Remember; `is_naming`: does a client say which question it answers?"""
        self.headers: dict[str, dict[str, Any]] = {}  # of the cells, by the message that asked
        self._is_naming = is_naming
        self._left_open: list[PendingPrompt] = []
        self._clients: list[list[bytes]] = []  # clients that have run cells, the last ones

    def leave_open(self, asked: PendingPrompt) -> None:
        """A question is not open any more, and its box is."""
        if asked.message_id:
            self._left_open = [*self._left_open, asked][-MOST_OPEN:]

    def reopen(self, asked: PendingPrompt) -> str:
        """Return the message of a box that was left open with the very same question, once."""
        for box in self._left_open:
            if box.request is asked.request and box.content == asked.content:
                self._left_open.remove(box)
                return box.message_id
        return ""

    def is_ambiguous(self, client: Sequence[bytes]) -> bool:
        """Could what a client answers next have been typed into a box that was left open?"""
        return bool(self._left_open_at(client)) and not self._is_naming(client)

    def left_open_for(self, client: Sequence[bytes], parent: str) -> str:
        """Name the box into which that was typed if it was left open; `parent`: what it names."""
        if not self.is_ambiguous(client):
            return ""
        box = self._left_open_at(client)[0]
        return box.message_id if parent in {"", message_id(box.request)} else ""

    def close(self, name: str) -> None:
        """A person has closed one."""
        self._left_open = [box for box in self._left_open if box.message_id != name]

    def on_cell(self, request: Request) -> None:
        """A cell that is run again has closed the box that it showed before."""
        self._left_open = [box for box in self._left_open if not is_rerun_of(request, box.request)]
        if list(request.identities) not in self._clients:
            self._clients = [*self._clients, list(request.identities)][-MOST_OPEN:]

    def on_interrupt(self, client: Sequence[bytes], asked: PendingPrompt | None) -> None:
        """A client has interrupted, and with that closed its boxes.

        A server does that for one of its pages, and does not say for which: for that where the
        question is open, `asked`, if there is one. Boxes of other pages stay on their screens.
        """
        page = list(client)
        if page not in self._clients:
            if asked is None:
                self._left_open.clear()
                return
            page = list(asked.request.identities)
        self._left_open = [box for box in self._left_open if list(box.request.identities) != page]

    def _left_open_at(self, client: Sequence[bytes]) -> list[PendingPrompt]:
        return [box for box in self._left_open if list(box.request.identities) == list(client)]


def message_id(request: Request) -> str:
    """Return the message id of a request."""
    return str(request.header.get("msg_id", ""))


def oldest_of_last_client(cells: Sequence[Request]) -> Request | None:
    """Return the oldest cell of the page in which somebody has run one last."""
    if not cells:
        return None
    last = cells[-1]
    same = [each for each in cells if each.identities == last.identities]
    return next(each for each in same if not is_rerun_of(last, each))


def is_rerun_of(request: Request, before: Request) -> bool:
    """Is this the same cell of the same page, run again? What it showed before is gone."""
    cells = [header_of(each.parts[METADATA]).get("cellId") for each in (request, before)]
    is_same_page = request.identities == before.identities
    return request is not before and is_same_page and bool(cells[0]) and cells[0] == cells[1]


def wait_for_answer(
    answer: AnswerQueue, withdrawn: threading.Event, take_back: Callable[[], object]
) -> str:
    """Wait for an answer, as long as one is wanted; raise why there is none."""
    limit = POLL_EVERY
    while True:
        try:
            said = answer.get(timeout=limit)
            break
        except queue.Empty:
            if limit == WITHDRAWN_WITHIN:  # this process is ending
                raise Withdrawn from None
            if withdrawn.is_set():
                take_back()  # and says so, unless an answer has just come
                limit = WITHDRAWN_WITHIN
    if isinstance(said, str):
        return said
    raise said
