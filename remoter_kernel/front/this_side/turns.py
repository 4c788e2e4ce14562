"""One cell at a time, on whichever side: cells run in the order in which they were asked for.

House rules of this file:

- While no cell is asked for on this side, every cell passes, and nothing is remembered.
- A cell here waits for the reply and the `idle` of those before it there; those behind wait
  for its end.
- A cell that fails calls off those that wait behind it, if it says so (`stop_on_error`), as a
  kernel does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from remoter_kernel.wire.messages import content_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remoter_kernel.front.jupyter.mouth import Route

REPLY, IDLE = "reply", "idle"


class CellHere(Protocol):
    """A cell that needs this side."""

    route: Route

    def begin(self) -> None:
        """Start; `Turns.end` is called when it is over."""

    def interrupt(self) -> None:
        """End soon."""


class _Place(NamedTuple):
    """A place in the queue; without a cell here it is one for the other side."""

    route: Route
    cell: CellHere | None


class Turns:
    """Whose turn it is."""

    def __init__(
        self,
        under_way: Callable[[], Iterable[Route]],
        may_begin: Callable[[], bool],
        say: Callable[[Route], None],
        call_off: Callable[[Route], None],
    ) -> None:
        """Remember. `under_way` lists the cells there without a reply, `say` sends one there.

        `may_begin`: is it known whose session what is said here must carry?
        """
        self._under_way = under_way
        self._may_begin = may_begin
        self._say = say
        self._call_off = call_off
        self._queue: deque[_Place] = deque()
        self._here: CellHere | None = None
        self._awaited: dict[str, set[str]] = {}  # what has yet to come, by message id
        self._routes: dict[str, Route] = {}  # the same cells

    @property
    def is_used(self) -> bool:
        """Does any cell need this side just now?"""
        return bool(self._here or self._queue)

    @property
    def here(self) -> CellHere | None:
        """The cell that runs on this side."""
        return self._here

    @property
    def running(self) -> tuple[Route, ...]:
        """The same, as one in which a person may be asked something."""
        return (self._here.route,) if self._here else ()

    def has(self, name: str) -> bool:
        """Does this cell, by its message id, wait for its turn, or run on this side?"""
        return any(_name(each) == name for each in (*self.running, *(p.route for p in self._queue)))

    def take_here(self, cell: CellHere) -> None:
        """Run a cell on this side as soon as it is its turn."""
        self._queue.append(_Place(cell.route, cell))
        if len(self._queue) == 1 and self._here is None:
            self._await_others()
        self.look()

    def take_there(self, route: Route) -> bool:
        """Hold back a cell for the other side; False: it may go at once."""
        if not self.is_used:
            return False
        self._queue.append(_Place(route, None))
        return True

    def hear_reply(self, route: Route, status: str) -> None:
        """Hear how a cell there ended."""
        name = _name(route)
        if name not in self._awaited:
            return
        self._tick(name, REPLY)
        if status != "ok" and stops_others(route):
            self._call_off_all()
        self.look()

    def hear_idle(self, name: str) -> None:
        """Hear that the other side is done with something."""
        if name in self._awaited:
            self._tick(name, IDLE)
            self.look()

    def hear_lost(self) -> None:
        """Look for cells there that will not be answered from there: this side has done so."""
        left = {_name(route) for route in self._under_way()}
        for name in [name for name in self._awaited if name not in left]:
            is_unanswered = REPLY in self._awaited.pop(name)
            if is_unanswered and stops_others(self._routes[name]):
                self._call_off_all()
            self._routes.pop(name)
        self.look()

    def end(self, *, is_well: bool) -> None:
        """Hear that the cell on this side is over."""
        cell, self._here = self._here, None
        if cell and not is_well and stops_others(cell.route):
            self._call_off_all()
        self._go_on()

    def interrupt(self) -> bool:
        """Interrupt the cell on this side; False: it is not at work."""
        if self._here:
            self._here.interrupt()
            return True
        if self._awaited or not self._queue:
            return False
        self._call_off(self._queue.popleft().route)  # it waits for a session that is being made
        self._call_off_all()
        return True

    def look(self) -> None:
        """Begin with the cell at the head of the queue, if its time has come."""
        is_next_here = self._queue and self._queue[0].cell
        if self._here or self._awaited or not is_next_here or not self._may_begin():
            return
        self._here = self._queue.popleft().cell
        if self._here:
            self._here.begin()

    def _go_on(self) -> None:
        while self._queue and self._queue[0].cell is None:
            self._say(self._queue.popleft().route)
        self._await_others()
        self.look()

    def _await_others(self) -> None:
        self._routes = {_name(route): route for route in self._under_way()} if self._queue else {}
        self._awaited = {name: {REPLY, IDLE} for name in self._routes}

    def _tick(self, name: str, what: str) -> None:
        self._awaited[name].discard(what)
        if not self._awaited[name]:
            del self._awaited[name]
            del self._routes[name]

    def _call_off_all(self) -> None:
        queue, self._queue = self._queue, deque()
        for place in queue:
            self._call_off(place.route)


def _name(route: Route) -> str:
    return str(route.header.get("msg_id", ""))


def stops_others(route: Route) -> bool:
    """Are cells that wait behind this one called off when it fails?"""
    return bool(content_of(route.parts).get("stop_on_error", True))
