"""Where fronts ask: it is written down, then passed on.

What a front asks for is written before the child gets it, so that a request that may have
run is never run again, and no answer to a prompt is taken for that to the next one. Only
orders, which may as well be carried out twice, do not wait for a disk.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Callable

from remoter_kernel.daemon.past import HANDED
from remoter_kernel.daemon.requests import Requests
from remoter_kernel.daemon.speaker import Request, Speaker
from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.frames import LANE, Bytes, Channel, Head, Lane, from_json, pack, unpack
from remoter_kernel.wire.messages import CONTENT, HEADER, TOPIC, header_of

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
        # The child, if it gets what comes on this channel at once.
        self.child_for: Callable[[Channel], Child | None] = lambda _channel: None
        self.on_order: Callable[[str], None] = lambda _order: None  # restart, stop
        # What the child may have got already, from an evaluator whose journal is damaged.
        self.on_doubt: Callable[[Request], None] = lambda _request: None
        self._session = session
        self._journal = journal
        self._door = door
        self._speaker = speaker

    def take(self, guest: Guest, head: Head, body: Bytes) -> None:
        """Take one item of a front: write it down, then pass it on (or the other way)."""
        parts: list[Bytes] = list(unpack(body))
        channel = head.channel
        then: Callable[[], None] = lambda: None  # noqa: E731 - a default
        is_held = False
        if channel is Channel.ORDER:
            self._obey(guest, head, parts)
        else:
            if len(parts) <= CONTENT:
                message = "A message without all its parts."
                raise ProtocolError(message)
            header = header_of(parts[HEADER])
            request = Request(guest.name, channel, head.number, parts, header)
            is_held = channel is Channel.SHELL and self.child_for(channel) is None
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

    @staticmethod
    def _have_kept(guest: Guest, head: Head, size: int, then: Callable[[], None]) -> None:
        guest.talk.keep(LANE[head.channel], head.number, size)
        if guest.pump:
            guest.pump.give_credit()
            if head.channel is Channel.ORDER:
                guest.pump.acknowledge()  # the front may be waiting to leave
        then()

    def _hand_over(self, request: Request) -> None:
        self.requests.touch()
        is_shell = request.channel is Channel.SHELL
        if is_shell and self.requests.is_void(request):
            return
        child = self.child_for(request.channel)
        if child is None:
            self.requests.waiting.append(request)
            return
        if request.channel is not Channel.STDIN:
            self.requests.asked[request.header.get("msg_id", "")] = request
        child.say(request.channel, request.parts)

    def _hold(self, request: Request) -> None:
        """Let a request wait, unless the child has become ready while it was written."""
        if self.requests.is_void(request):
            return
        self.requests.waiting.append(request)
        if self.child_for(request.channel):
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
        """Do what a front wants done: `{"order": interrupt | restart | stop | keep}`."""
        if not parts:
            message = "An order without words."
            raise ProtocolError(message)
        order = from_json(parts[TOPIC]).get("order")
        if order == "interrupt":
            self._interrupt(guest, head)
        elif order == "restart":
            self.requests.restart(guest.name, head.mark)
            self.on_order(order)
        elif order == "stop":
            self.on_order(order)
        elif order == "keep":
            about = self._session.read("session.json")
            with contextlib.suppress(OSError):  # whoever said it knows it, too
                self._session.write("session.json", {**about, "keep": True})
        else:
            message = f"An order that is not known: {order!r}."
            raise ProtocolError(message)

    def _interrupt(self, guest: Guest, head: Head) -> None:
        cell = self.requests.running()
        self._door.hold_back([str(cell.header.get("msg_id", ""))] if cell else [])
        child = self.child_for(Channel.CONTROL)
        if child:
            child.interrupt()
            if cell and self.requests.count_interrupt() == STUBBORN:
                text = (
                    "[remoter] The kernel has not heeded the interrupt so far. To end it, "
                    f"variables and all: remoter stop {self._session.id}\n"
                )
                self._speaker.publish("stream", {"name": "stderr", "text": text}, cell.header)
        self.requests.interrupt(guest.name, head.mark, guest.talk.kept[Lane.BULK])
