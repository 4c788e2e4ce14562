"""One request, one table: what is with each request, at either end of the link (pure).

    RECEIVED → HELD → QUEUED → SENT → ACCEPTED → RUNNING → REPLIED → DONE
                                                           FAILED, CANCELLED

The proxy's stages: HELD waits in the proxy for its turn, a login or the kernel's readiness; QUEUED
is in the link's outbox; SENT has left by a connection; ACCEPTED is in the evaluator's journal;
RUNNING: its `busy` has come; REPLIED has its reply, and its `idle` is still to come.

The evaluator's: RECEIVED is being written to the journal; HELD is written and waits for the
kernel; QUEUED is written and next; SENT was given to the kernel. It knows no ACCEPTED.

A stage only grows. Reply and idle come by two sockets and so in either order: a request is DONE
when both have come. A kernel works on one request of its main shell at a time: where the next one
begins, the kernel has sent all that belongs to the one before.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import CONTENT, content_of
from remoter_kernel.protocol.output_backlog import COMM_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remoter_kernel.protocol.frames import Bytes

EXECUTE = "execute_request"
BUSY, IDLE = "busy", "idle"
NO_REPLY = "the kernel gave no reply"
MOST_ON_CONTROL = 1000  # unanswered requests that are kept: some kernels answer few there
MOST_ENDED = 1000  # requests that are over and whose ids are still known
BUSY_WITHIN = 1.0  # seconds from a reply until all has come that was published before it
ABORTED_WITHIN = 256  # bytes of the content of a reply that says no more than `aborted`
MOST_ROWS = 100  # requests that are described
LONGEST_WORD = 64  # characters of an id or a type, in a description

_log = logging.getLogger(__name__)


class Stage(IntEnum):
    """How far a request has come; the last three are ends."""

    RECEIVED = 0
    HELD = 1
    QUEUED = 2
    SENT = 3
    ACCEPTED = 4
    RUNNING = 5
    REPLIED = 6
    DONE = 7
    FAILED = 8
    CANCELLED = 9


ENDS = (Stage.DONE, Stage.FAILED, Stage.CANCELLED)
OUTGOING = (Stage.HELD, Stage.QUEUED, Stage.SENT)  # a new request for the remote goes to one first


@dataclass(eq=False)
class Request:
    """A message to the kernel, of a client or of the proxy itself."""

    channel: Channel
    parts: Sequence[Bytes]
    header: dict[str, Any]
    client: bytes = b""  # the id of the proxy that sent it; the evaluator alone needs that
    identities: list[bytes] = field(default_factory=list)  # ZeroMQ's, of Jupyter's client
    number: int = 0  # in the link's outbox; 0: it was not put there
    stage: Stage = Stage.RECEIVED
    why: str = ""  # the reason of the last move
    since: float = 0.0  # when that was, on the monotonic clock
    # Which of busy and idle clients were sent, and which of them came from the kernel: the proxy
    # sends a busy early, and the evaluator answers in the place of a kernel that has died.
    states: set[str] = field(default_factory=set)
    states_from_kernel: set[str] = field(default_factory=set)
    is_here: bool = False  # does the proxy answer it, or a kernel beside the proxy run it?

    @cached_property
    def id(self) -> str:
        """The `msg_id`."""
        return str(self.header.get("msg_id", ""))

    @cached_property
    def type(self) -> str:
        """The `msg_type`."""
        return str(self.header.get("msg_type", ""))

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content, read once; a `ProtocolError` if it is no JSON object."""
        return content_of(self.parts)

    @cached_property
    def expects_reply(self) -> bool:
        """Does Jupyter's protocol have a reply to it?"""
        return self.channel is not Channel.STDIN and self.type not in COMM_TYPES

    @cached_property
    def is_cell(self) -> bool:
        """Does it run code?"""
        return self.type == EXECUTE

    @property
    def stops_on_error(self) -> bool:
        """Is it cancelled when a cell before it fails?"""
        try:
            return bool(self.content.get("stop_on_error", True))
        except ProtocolError:
            return True  # Jupyter's default

    @cached_property
    def is_in_turn(self) -> bool:
        """Does it wait for those before it? One in a subshell (JEP 91), or on control, does not."""
        return self.channel is Channel.SHELL and not self.header.get("subshell_id")

    @property
    def is_idle(self) -> bool:
        """Were clients sent its idle?"""
        return IDLE in self.states

    @property
    def is_over(self) -> bool:
        """Has it come to an end?"""
        return self.stage >= Stage.DONE

    @property
    def is_open(self) -> bool:
        """Does it lack a reply that is still to come?"""
        return self.stage < Stage.REPLIED


class StateChange(NamedTuple):
    """What a busy or an idle tells."""

    is_new: bool  # False: clients know it, and take a second idle for that of a later cell
    finished_before: list[Request]  # have their reply, and their idle will not come any more


Observer = Callable[[Request, Stage], None]


class Requests:
    """The one table of requests. `move` alone changes a stage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._observers: dict[Stage, list[Observer]] = {stage: [] for stage in Stage}
        self.is_logged = True
        self.moves = 0  # how often a request changed its stage
        self._clock = clock
        self._active_at = clock()
        # Dicts without values are ordered sets: to take one out costs the same wherever it stands.
        self._open: dict[Request, None] = {}  # all that are not over, in the order of coming
        self._by_id: dict[str, list[Request]] = {}  # the same; a client may use an id twice
        self._cells: dict[Request, None] = {}  # those that run code
        self._at_kernel: dict[Request, None] = {}  # those on shell that the kernel was given
        self._on_control: dict[Request, None] = {}  # those on control that it was given
        self._ended: dict[str, set[str]] = {}  # the `states` of those that are over, by id

    def __iter__(self) -> Iterator[Request]:
        """Go through all that are not over, in the order in which they came."""
        return iter(list(self._open))  # a copy: whoever goes through them moves them

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request: Request) -> bool:
        return request in self._open

    def add(self, request: Request, stage: Stage = Stage.RECEIVED) -> Request:
        """Take a request into the table."""
        self._open[request] = None
        self._by_id.setdefault(request.id, []).append(request)
        if request.is_cell:
            self._cells[request] = None
        request.since = self._active_at = self._clock()
        if stage is not Stage.RECEIVED:
            self.move(request, stage)
        return request

    def get(self, name: str) -> Request | None:
        """Return the request with this id; of several the first that lacks its reply."""
        found = self._by_id.get(name, ())
        # Stages are compared here, and below, and not asked by a property: this is done several
        # times for every message, and a call of Python costs more than the comparison.
        unanswered = (each for each in found if each.stage < Stage.REPLIED)
        return next(unanswered, found[0] if found else None)

    def move(self, request: Request, stage: Stage, why: str = "") -> bool:
        """Put a request into a later stage; False: it is there, or beyond it, already.

        Nothing else changes a stage. What is over is forgotten.
        """
        before = request.stage
        # A late busy or reply of what was answered in its place changes nothing any more.
        if stage <= before or request not in self._open:
            return False
        request.stage, request.why = stage, why
        request.since = self._active_at = self._clock()
        self.moves += 1
        if self.is_logged and _log.isEnabledFor(logging.INFO):
            reason = f", {why}" if why else ""
            # A client may send ids and types of any length.
            name = request.id[:LONGEST_WORD], request.type[:LONGEST_WORD]
            _log.info("request %s (%s): %s -> %s%s", *name, before.name, stage.name, reason)
        if stage >= Stage.DONE:
            self._forget(request)
        elif stage >= Stage.SENT:
            self._on_sent(request)
        for observer in self._observers[stage]:  # last: they may move this request on
            observer(request, before)
        return True

    def observe(self, observer: Observer, *stages: Stage) -> None:
        """Call `observer` with each request that reaches one of these stages, and the one it left.

        Without stages: with each move.
        """
        for stage in stages or Stage:
            self._observers[stage].append(observer)

    def mark_activity(self) -> None:
        """Note that something is going on."""
        self._active_at = self._clock()

    def idle_for(self) -> float:
        """Return for how many seconds nothing has been going on."""
        return self._clock() - self._active_at

    # What the kernel sends --------------------------------------------------------------

    def on_state(self, name: str, state: str, *, least: Stage = Stage.RECEIVED) -> StateChange:
        """Note that the kernel begins with a request ("busy"), or is done with it ("idle").

        Each comes once. A request that was answered in the kernel's place may still be at its
        kernel, which then sends both once more. `least`: the stage below which it cannot be.
        """
        found = self._by_id.get(name, ())
        unheard = (each for each in found if state not in each.states_from_kernel)
        request = next((each for each in unheard if each.stage >= least), None)
        if request is None:
            return StateChange(self._is_new_of_ended(name, state), [])
        is_new = state not in request.states
        request.states.add(state)
        request.states_from_kernel.add(state)
        passed: list[Request] = []
        if state == BUSY:
            passed = [
                each
                for each in self._given_before(request)
                if each.stage is Stage.REPLIED or not each.expects_reply
            ]
            self.move(request, Stage.RUNNING, "busy")
            for each in passed:
                self.move(each, Stage.DONE, "the kernel is at the next one")
        elif state == IDLE and (request.stage is Stage.REPLIED or not request.expects_reply):
            self.move(request, Stage.DONE, "idle")
        return StateChange(is_new, finished_before=[each for each in passed if not each.is_idle])

    def on_local_state(self, name: str, state: str) -> bool:
        """Note that a state is sent in the kernel's place; False: clients know it already.

        The kernel may send it later: then it is not new.
        """
        found = self._by_id.get(name, ())
        request = next((each for each in found if state not in each.states), None)
        if request is None:
            return self._is_new_of_ended(name, state)
        request.states.add(state)
        if state == IDLE and request.stage is Stage.REPLIED:
            self.move(request, Stage.DONE, "idle")
        return True

    def on_reply(
        self, name: str, *, has_idle: bool = True, is_from_kernel: bool = False
    ) -> Request | None:
        """Note the reply to a request, and return that; None: nobody waits for it.

        `has_idle`: is an idle to be expected? `is_from_kernel`: the reply comes straight from the
        kernel, so that no evaluator can have answered, out of turn, in its place.
        """
        request = self.get(name)
        if request is None or request.stage >= Stage.REPLIED:
            return None
        is_idle = IDLE in request.states
        is_awaited = request.channel is Channel.SHELL and has_idle and not is_idle
        unanswered = self.unanswered_before(request, is_from_kernel=is_from_kernel)
        self.move(request, Stage.REPLIED if is_awaited else Stage.DONE, "reply")
        for each in unanswered:
            self.move(each, Stage.DONE, NO_REPLY)
        return request

    # Questions ---------------------------------------------------------------------------

    @property
    def has_undispatched(self) -> bool:
        """Is there a request that the kernel was not given yet?"""
        return any(request.stage < Stage.SENT for request in self._open)

    def at(self, *stages: Stage) -> list[Request]:
        """List those in one of these stages, in the order in which they came."""
        return [request for request in self._open if request.stage in stages]

    def each_cell(self) -> Iterator[Request]:
        """Go through the cells without a reply, in the order in which they came.

        Without a copy: whoever goes through them must not move any.
        """
        return (cell for cell in self._cells if cell.is_open)

    def cells(self) -> list[Request]:
        """List the cells without a reply, in the order in which they came."""
        return list(self.each_cell())

    @property
    def running(self) -> Request | None:
        """The cell that the kernel is at, as far as is known."""
        at_it = (each for each in self._at_kernel if each.is_cell and each.is_open)
        return next((each for each in at_it if not each.is_idle), None)

    @property
    def is_busy(self) -> bool:
        """Has the kernel anything to do, as far as is known?

        Three things do not count: what it is done with and never answers, requests for its
        state, and what it never begins with: some kernels ignore types that they do not know.
        """
        at_it = (each for each in self._at_kernel if each.is_cell or BUSY in each.states)
        return any(each.stage < Stage.REPLIED and IDLE not in each.states for each in at_it)

    def describe(self) -> list[dict[str, Any]]:
        """Describe those that are not over, for people and programs: no content."""
        now = self._clock()
        return [
            {
                "id": request.id[:LONGEST_WORD],
                "type": request.type[:LONGEST_WORD],
                "channel": request.channel.name.lower(),
                "stage": request.stage.name.lower(),
                "why": request.why,
                "seconds": round(max(0.0, now - request.since), 1),
            }
            for request, _ in zip(self._open, range(MOST_ROWS))
        ]

    def unanswered_before(self, replied: Request, *, is_from_kernel: bool = False) -> list[Request]:
        """List what the kernel was done with before it replied to a later request.

        Replies come by one socket and in order: those will get none. Nor will one that the kernel
        ignored: not even its busy has come (by another socket, and so perhaps a little later).
        """
        before = self._clock() - BUSY_WITHIN

        def is_done(each: Request) -> bool:
            is_ignored = not each.is_cell and BUSY not in each.states and each.since < before
            return each.is_idle or (is_from_kernel and is_ignored)

        earlier = self._given_before(replied)
        return [each for each in earlier if each.stage < Stage.REPLIED and is_done(each)]

    # -------------------------------------------------------------------------------------

    def _given_before(self, request: Request) -> list[Request]:
        """List what the kernel got on its main shell before a request, if it got that one."""
        if not request.is_in_turn or request not in self._at_kernel:
            return []
        earlier = itertools.takewhile(lambda each: each is not request, self._at_kernel)
        return [each for each in earlier if each.is_in_turn]

    def _is_new_of_ended(self, name: str, state: str) -> bool:
        """Note a state of a request that is over, or of one that was never in this table."""
        states = self._ended.get(name)
        if states is None:
            return name not in self._by_id
        is_new = state not in states
        states.add(state)
        return is_new

    def _on_sent(self, request: Request) -> None:
        if request.is_here:  # the remote kernel never gets it
            return
        if request.channel is Channel.SHELL:
            self._at_kernel.setdefault(request)
        elif request.channel is Channel.CONTROL:
            self._on_control.setdefault(request)
            if len(self._on_control) > MOST_ON_CONTROL:  # else the table grew without bound
                self.move(next(iter(self._on_control)), Stage.DONE, NO_REPLY)

    def _forget(self, request: Request) -> None:
        del self._open[request]
        for some in (self._cells, self._at_kernel, self._on_control):
            some.pop(request, None)
        same = self._by_id[request.id]
        same.remove(request)
        if not same:
            del self._by_id[request.id]
        self._ended.pop(request.id, None)  # so that it stands at the end again
        self._ended[request.id] = request.states
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]


def has_idle(reply: Sequence[Bytes]) -> bool:
    """Does an idle come with this reply? R's kernel sends none for a cell that it aborts."""
    content = reply[CONTENT]
    return len(content) >= ABORTED_WITHIN or b'"aborted"' not in bytes(content)
