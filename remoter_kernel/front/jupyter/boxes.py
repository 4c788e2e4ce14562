"""Input boxes in which this side has asked, also those that nobody can close any more.

Jupyter has no way to close an input box. What is typed into one whose question has moved, or was
taken back, is used for nothing. A client that does not say which question it answers may have
such a box open before any other one: the next thing that it answers was typed there.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.front.prompts import NeedsPerson, NotAnswered, Withdrawn
from remoter_kernel.wire.messages import METADATA, header_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from remoter_kernel.front.jupyter.mouth import Route

LOOK_EVERY = 0.1  # seconds between two looks at whether a question was taken back
WITHDRAWN_WITHIN = 2.0  # seconds
MOST = 20  # boxes that are left open, of all pages

Answer = queue.SimpleQueue[str | NotAnswered | NeedsPerson]


class PendingPrompt(NamedTuple):
    """A question that waits for its answer."""

    route: Route
    content: dict[str, Any]
    answer: Answer
    name: str = ""  # of the message that asked; none: it has yet to be asked


class Boxes:
    """The boxes that were opened, and those of them that were left open."""

    def __init__(self, is_exact: Callable[[Sequence[bytes]], bool]) -> None:
        """Remember; `is_exact`: does a client say which question it answers?"""
        self.headers: dict[str, dict[str, Any]] = {}  # of the cells, by the message that asked
        self._is_exact = is_exact
        self._left: list[PendingPrompt] = []
        self._pages: list[list[bytes]] = []  # clients that have run cells, the last ones

    def leave(self, asked: PendingPrompt) -> None:
        """A question is not open any more, and its box is."""
        if asked.name:
            self._left = [*self._left, asked][-MOST:]

    def take(self, asked: PendingPrompt) -> str:
        """Return the message of a box that was left open with the very same question, once."""
        for box in self._left:
            if box.route is asked.route and box.content == asked.content:
                self._left.remove(box)
                return box.name
        return ""

    def is_in_the_way(self, client: Sequence[bytes]) -> bool:
        """Could what a client answers next have been typed into a box that was left open?"""
        return bool(self._of(client)) and not self._is_exact(client)

    def typed_into(self, client: Sequence[bytes], parent: str) -> str:
        """Name the box into which that was typed if it was left open; `parent`: what it names."""
        if not self.is_in_the_way(client):
            return ""
        box = self._of(client)[0]
        return box.name if parent in {"", id_of(box.route)} else ""

    def close(self, name: str) -> None:
        """A person has closed one."""
        self._left = [box for box in self._left if box.name != name]

    def note_cell(self, route: Route) -> None:
        """A cell that is run again has closed the box that it showed before."""
        self._left = [box for box in self._left if not replaces(route, box.route)]
        if list(route.identities) not in self._pages:
            self._pages = [*self._pages, list(route.identities)][-MOST:]

    def close_of(self, client: Sequence[bytes], asked: PendingPrompt | None) -> None:
        """A client has interrupted, and with that closed its boxes.

        A server does that for one of its pages, and does not say for which: for that where the
        question is open, `asked`, if there is one. Boxes of other pages stay on their screens.
        """
        page = list(client)
        if page not in self._pages:
            if asked is None:
                self._left.clear()
                return
            page = list(asked.route.identities)
        self._left = [box for box in self._left if list(box.route.identities) != page]

    def _of(self, client: Sequence[bytes]) -> list[PendingPrompt]:
        return [box for box in self._left if list(box.route.identities) == list(client)]


def id_of(route: Route) -> str:
    """Return the message id of a request."""
    return str(route.header.get("msg_id", ""))


def last_page(cells: Sequence[Route]) -> Route | None:
    """Return the oldest cell of the page in which somebody has run one last."""
    if not cells:
        return None
    last = cells[-1]
    same = [each for each in cells if each.identities == last.identities]
    return next(each for each in same if not replaces(last, each))


def replaces(route: Route, before: Route) -> bool:
    """Is this the same cell of the same page, run again? What it showed before is gone."""
    cells = [header_of(each.parts[METADATA]).get("cellId") for each in (route, before)]
    is_same_page = route.identities == before.identities
    return route is not before and is_same_page and bool(cells[0]) and cells[0] == cells[1]


def wait_for(answer: Answer, withdrawn: threading.Event, take_back: Callable[[], object]) -> str:
    """Wait for an answer, as long as one is wanted; raise why there is none."""
    limit = LOOK_EVERY
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
