"""Where fronts ask: it is written down, then passed on.

What a front asks for is written before the child gets it, so that a request that may have
run is never run again, and no answer to a prompt is taken for that to the next one. Only
orders, which may as well be carried out twice, do not wait for a disk.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Callable

from remoter_kernel.daemon.interrupts import Interrupts
from remoter_kernel.daemon.past import HANDED
from remoter_kernel.daemon.requests import Requests
from remoter_kernel.daemon.speaker import Request, Speaker
from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.frames import LANE, Bytes, Channel, Head, Lane, from_json, pack
from remoter_kernel.wire.messages import (
    CELL_OF_VSCODE,
    CONTENT,
    HEADER,
    METADATA,
    TOPIC,
    content_of,
    header_of,
    parts_of,
    source_mark,
)

if TYPE_CHECKING:
    from remoter_kernel.daemon.child import Child
    from remoter_kernel.daemon.door import Door, Guest
    from remoter_kernel.daemon.journal import Journal
    from remoter_kernel.daemon.registry import Session

STUBBORN = 2  # interrupts of one cell after which the person hears what else can be done


class Desk:
    """Takes what fronts ask for, in the order in which they ask."""

    def __init__(self, session: Session, journal: Journal, door: Door, speaker: Speaker) -> None:
        """Remember."""
        self.requests = Requests(speaker)
        self.interrupts = Interrupts(self.requests, door.reactor.later)
        self.interrupts.strike = self._strike
        self.interrupts.on_over = self.serve_waiting
        # The child, if it gets what comes on this channel at once.
        self.child_for: Callable[[Channel], Child | None] = lambda _channel: None
        self.on_order: Callable[[str], None] = lambda _order: None  # restart, stop, finish
        self.on_cell: Callable[[str], None] = lambda _cell: None  # a notebook's cell is run
        # What the child may have got already, from an evaluator whose journal is damaged.
        self.on_doubt: Callable[[Request], None] = lambda _request: None
        self._session = session
        self._journal = journal
        self._door = door
        self._speaker = speaker

    def take(self, guest: Guest, head: Head, body: Bytes) -> None:
        """Take one item of a front: write it down, then pass it on (or the other way)."""
        channel = head.channel
        parts: list[Bytes] = list(parts_of(channel, body))
        then: Callable[[], None] = lambda: None  # noqa: E731 - a default
        is_held = False
        if channel is Channel.ORDER:
            self._obey(guest, head, parts)
        else:
            header = header_of(parts[HEADER])
            request = Request(guest.name, channel, head.number, parts, header)
            self._note_cell(request)
            is_held = channel is Channel.SHELL and self._taker_of(request) is None
            then = partial(self._hold if is_held else self._hand_over, request)
            if head.number <= guest.doubtful[LANE[channel]]:
                is_held, then = False, partial(self.on_doubt, request)
        if channel is Channel.STDIN:
            body = pack([*parts[:CONTENT], b"{}"])  # a password, perhaps
        self._journal.append(
            channel,
            bytes(body),
            front=guest.name,
            own=head.number,
            is_from_front=True,
            is_held=is_held,
            then=lambda: self._have_kept(guest, head, len(body), then),
        )

    def serve_waiting(self) -> None:
        """The child takes requests now: whoever waits gets its turn."""
        for request in list(self.requests.waiting):
            self._release(request)

    def cut_short(self) -> str:
        """Interrupt what runs, as Jupyter does before it ends a kernel; return which cell it was.

        A busy kernel hears of its end only then, and may take along what it has started outside
        of its process group. What is being interrupted already is not interrupted once more.
        """
        if self.interrupts.is_under_way:
            self.interrupts.hurry()
            return ""
        cell = self.requests.running()
        if cell is None:
            return ""
        self._strike()
        return str(cell.header.get("msg_id", ""))

    @staticmethod
    def _have_kept(guest: Guest, head: Head, size: int, then: Callable[[], None]) -> None:
        guest.talk.keep(LANE[head.channel], head.number, size)
        if guest.pump:
            guest.pump.give_credit()
            if head.channel is Channel.ORDER:
                guest.pump.acknowledge()  # the front may be waiting to leave
        then()

    def _note_cell(self, request: Request) -> None:
        """Note which cell of which notebook this is, where the client says so."""
        about = request.parts[METADATA]
        if request.header.get("msg_type") == "execute_request" and b"cellId" in bytes(about):
            cell = str(header_of(about).get("cellId") or "")
            if cell.startswith(CELL_OF_VSCODE):  # a number, not what the file calls it
                cell = source_mark(str(content_of(request.parts).get("code", "")))
            self.on_cell(cell)

    def _hand_over(self, request: Request) -> None:
        self.requests.touch()
        is_shell = request.channel is Channel.SHELL
        if is_shell and self.requests.is_void(request):
            return
        child = self._taker_of(request)
        if child is None:
            self.requests.waiting.append(request)
            return
        if request.channel is not Channel.STDIN:
            self.requests.asked[request.header.get("msg_id", "")] = request
        child.say(request.channel, request.parts)

    def _taker_of(self, request: Request) -> Child | None:
        """Return the child if it gets this request at once."""
        is_queued = request.channel is Channel.SHELL and not request.header.get("subshell_id")
        if is_queued and self.interrupts.is_under_way:
            return None
        return self.child_for(request.channel)

    def _hold(self, request: Request) -> None:
        """Let a request wait, unless the child has become ready while it was written."""
        if self.requests.is_void(request):
            return
        self.requests.waiting.append(request)
        if self._taker_of(request):
            self._release(request)

    def _release(self, request: Request) -> None:
        """Hand over what has waited. First that is written: it may run only once."""

        def go() -> None:
            if request in self.requests.waiting:  # nobody has interrupted it meanwhile
                self.requests.waiting.remove(request)
                self._hand_over(request)

        if request.channel is Channel.SHELL:
            words = {"mark": HANDED, "request": request.header.get("msg_id", "")}
            self._journal.mark(words, go)
        else:
            go()

    def _obey(self, guest: Guest, head: Head, parts: list[Bytes]) -> None:
        """Do what a front wants done: `{"order": interrupt | restart | stop | keep | finish}`."""
        words = from_json(parts[TOPIC])
        order = words.get("order")
        if order == "interrupt":
            self._interrupt(guest, head, words.get("cells") or [])
        elif order == "restart":
            self.requests.restart(guest.name, head.mark)
            self.on_order(order)
        elif order == "stop":
            self.on_order(order)
        elif order in {"keep", "finish"}:
            with contextlib.suppress(OSError):  # whoever said it knows it, too
                self._session.amend(**{order: True})
            if order == "finish":
                self.on_order(order)
        else:
            message = f"An order that is not known: {order!r}."
            raise ProtocolError(message)

    def _interrupt(self, guest: Guest, head: Head, cells: list[str]) -> None:
        """Stop the running cell; else the first that a front had asked for and that never began.

        `cells`: those that had no reply there. If all of them have ended since, whatever runs
        now was not meant.
        """
        requests, kept = self.requests, guest.talk.kept[Lane.BULK]
        has_unbegun = requests.has_unbegun(guest.name, head.mark, kept)
        if cells and not has_unbegun and requests.asked.keys().isdisjoint(cells):
            return
        cell = requests.running()
        name = str(cell.header.get("msg_id", "")) if cell else ""
        self._door.hold_back([name] if cell else [])
        if cell and self.child_for(Channel.CONTROL):
            self.interrupts.aim(name, guest.name, head.mark)
            if requests.count_interrupt() == STUBBORN:
                self._speaker.tell(
                    cell,
                    "The kernel has not heeded the interrupt so far. To end it, "
                    f"variables and all: remoter stop {self._session.id}",
                )
        elif has_unbegun:
            requests.interrupt(guest.name, head.mark)
        else:
            self._strike()

    def _strike(self) -> None:
        child = self.child_for(Channel.CONTROL)
        if child:
            child.interrupt()
