"""Where proxies ask: it is written down, then passed on.

What a client asks for is written before the kernel gets it, so that a request that may have
run is never run again, and no answer to a prompt is taken for that to the next one. Only
commands, which may as well be carried out twice, do not wait for a disk.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Callable

from remoter_kernel.daemon.cancellations import Cancellations, CancelReason
from remoter_kernel.daemon.dispatch import Dispatcher
from remoter_kernel.daemon.interrupts import Interrupts
from remoter_kernel.daemon.message_writer import log_failure_of
from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.frames import (
    LANE,
    Bytes,
    Channel,
    FrameHeader,
    Lane,
    from_json,
    pack_parts,
)
from remoter_kernel.wire.messages import (
    CELL_OF_VSCODE,
    CONTENT,
    HEADER,
    METADATA,
    TOPIC,
    header_of,
    parts_of,
    source_mark,
)
from remoter_kernel.wire.requests import BUSY, Request, Requests, Stage

if TYPE_CHECKING:
    from remoter_kernel.daemon.journal import Journal
    from remoter_kernel.daemon.kernel_process import KernelProcess
    from remoter_kernel.daemon.listener import Client, Listener
    from remoter_kernel.daemon.message_writer import MessageWriter
    from remoter_kernel.daemon.registry import Session

STUBBORN = 2  # interrupts of one cell after which the person hears what else can be done


class RequestHandler:
    """Takes what clients ask for, in the order in which they ask."""

    def __init__(
        self,
        session: Session,
        journal: Journal,
        door: Listener,
        speaker: MessageWriter,
        requests: Requests | None = None,
    ) -> None:
        """`requests`: those of an evaluator that has died."""
        self.requests = Requests() if requests is None else requests
        self.cancellations = Cancellations()
        self.dispatcher = Dispatcher(
            self.requests, journal, takes=self._takes, send=self._send, answers=self._answers
        )
        for request in self.requests.at(Stage.HELD):
            self.dispatcher.restore(request)
        self.interrupts = Interrupts(self.requests, self.cancellations, door.reactor.later)
        self.interrupts.interrupt_kernel = self._strike
        self.interrupts.on_over = self.dispatcher.serve
        self.interrupts.on_no_reply = self._end_interrupted
        # The child, if it gets what comes on this channel at once.
        self.kernel_for: Callable[[Channel], KernelProcess | None] = lambda _channel: None
        self.on_command: Callable[[str], None] = lambda _order: None  # restart, stop, finish
        self.on_cell: Callable[[str], None] = lambda _cell: None  # a notebook's cell is run
        # What the child may have got already, from an evaluator whose journal is damaged.
        self.on_possible_duplicate: Callable[[Request], None] = lambda _request: None
        self._session = session
        self._journal = journal
        self._listener = door
        self._writer = speaker

    def take(self, guest: Client, head: FrameHeader, body: Bytes) -> None:
        """Take one item of a client: write it down, then pass it on (or the other way)."""
        channel = head.channel
        parts: list[Bytes] = list(parts_of(channel, body))
        then: Callable[[], None] = lambda: None  # noqa: E731 - a default
        is_held = False
        request: Request | None = None
        if channel is Channel.COMMAND:
            self._obey(guest, head, parts)
        else:
            header = header_of(parts[HEADER])
            if not isinstance(header.get("msg_id"), str):
                raise ProtocolError("A request whose header has no msg_id.")
            request = Request(channel, parts, header, client=guest.name, number=head.number)
            self._note_cell(request)
            self.requests.add(request)
            if head.number <= guest.maybe_received[LANE[channel]]:
                then = partial(self.on_possible_duplicate, request)
            else:
                self.dispatcher.add(request)
                is_held, then = request.is_held, partial(self.dispatcher.on_written, request)
        if channel is Channel.STDIN:
            body = pack_parts([*parts[:CONTENT], b"{}"])  # a password, perhaps
        try:
            self._journal.append(
                channel,
                bytes(body),
                front=guest.name,
                own=head.number,
                is_from_front=True,
                is_held=is_held,
                then=lambda: self._have_kept(guest, head, len(body), then),
            )
        except Exception:  # it is refused, and nobody waits behind it
            if request:
                self.requests.move(request, Stage.FAILED, "it could not be taken in")
            raise

    def cut_short(self) -> str:
        """Interrupt what runs, as Jupyter does before it ends a kernel; return which cell it was.

        A busy kernel hears of its end only then, and may take along what it has started outside
        of its process group. What is being interrupted already is not interrupted once more.
        """
        if self.interrupts.is_under_way:
            self.interrupts.hurry()
            return ""
        cell = self.requests.running
        if cell is None:
            return ""
        self._strike()
        return cell.id

    def fail_all(self, name: str, why: str, *, is_cut: bool = False) -> None:
        """Answer every request that the kernel can answer no more, and end what it has answered.

        `is_cut`: the kernel may have had something to say that its system never got.
        """
        running = self.requests.running
        for request in self.requests:
            has_replied = request.stage is Stage.REPLIED
            is_last = is_cut and (BUSY in request.states or request is running)
            told = why if has_replied else ""  # else an error says it
            log_failure_of(partial(self._tell_end, request, told, is_cut=is_last))
            if has_replied:
                self.requests.move(request, Stage.DONE, why)
            elif request.stage >= Stage.SENT:
                self.fail(request, name, why)

    def fail(self, request: Request, name: str, why: str) -> None:
        """Answer a request that the kernel can answer no more."""
        if request.expects_reply:
            log_failure_of(partial(self._writer.answer_error, request, name, why))
        self.requests.move(request, Stage.FAILED, why)

    def _tell_end(self, request: Request, told: str, *, is_cut: bool) -> None:
        """Say in a cell that its kernel has ended, and end it if it has its reply."""
        if is_cut:
            self._writer.begin(request)
            told = f"{told} The last outputs of this cell may be missing.".lstrip()
        if told:
            self._writer.tell(request, told)
        if request.stage is Stage.REPLIED:
            self._writer.end(request)

    @staticmethod
    def _have_kept(guest: Client, head: FrameHeader, size: int, then: Callable[[], None]) -> None:
        guest.stream.keep(LANE[head.channel], head.number, size)
        if guest.pump:
            guest.pump.give_credit()
            if head.channel is Channel.COMMAND:
                guest.pump.acknowledge()  # the front may be waiting to leave
        then()

    def _note_cell(self, request: Request) -> None:
        """Note which cell of which notebook this is, where the client says so."""
        about = request.parts[METADATA]
        if request.is_cell and b"cellId" in bytes(about):
            cell = str(header_of(about).get("cellId") or "")
            if cell.startswith(CELL_OF_VSCODE):  # a number, not what the file calls it
                cell = source_mark(str(request.content.get("code", "")))
            self.on_cell(cell)

    # For the queues -------------------------------------------------------------------

    def _takes(self, request: Request) -> bool:
        is_late = request.is_in_turn and self.interrupts.is_under_way
        return not is_late and self.kernel_for(request.channel) is not None

    def _send(self, request: Request) -> None:
        child = self.kernel_for(request.channel)
        if child:
            child.say(request.channel, list(request.parts))
        if request.channel is Channel.STDIN:
            self.requests.move(request, Stage.DONE)

    def _answers(self, request: Request) -> bool:
        """Answer a request that an interrupt or a restart has overtaken; False: none has."""
        if request.channel is Channel.STDIN:
            is_asked = self._takes(request)
            if not is_asked:
                self.requests.move(request, Stage.CANCELLED, "no kernel has asked")
            return not is_asked
        answer = self.cancellations.answer_to(request)
        if answer is CancelReason.INTERRUPTED:
            self._writer.answer_error(request, "KeyboardInterrupt", "Interrupted before it began.")
        elif answer and request.expects_reply:
            self._writer.answer_aborted(request)
        if answer:
            self.requests.move(request, Stage.CANCELLED, answer.value)
        return answer is not None

    def _obey(self, guest: Client, head: FrameHeader, parts: list[Bytes]) -> None:
        """Do what a front wants done: `{"order": interrupt | restart | stop | keep | finish}`."""
        words = from_json(parts[TOPIC])
        order = words.get("order")
        if order == "interrupt":
            self._interrupt(guest, head, words.get("cells") or [])
        elif order == "restart":
            self.cancellations.restart(guest.name, head.barrier)
            self.dispatcher.answer_overtaken()
            self.on_command(order)
        elif order == "stop":
            self.on_command(order)
        elif order in {"keep", "finish"}:
            with contextlib.suppress(OSError):  # whoever said it knows it, too
                self._session.amend(**{order: True})
            if order == "finish":
                self.on_command(order)
        else:
            message = f"An order that is not known: {order!r}."
            raise ProtocolError(message)

    def _interrupt(self, guest: Client, head: FrameHeader, cells: list[str]) -> None:
        """Stop the running cell; else the first that a front had asked for and that never began.

        `cells`: those that had no reply there. If all of them have ended since, whatever runs
        now was not meant.
        """
        requests, kept = self.requests, guest.stream.acked[Lane.BULK]
        has_unbegun = head.barrier > kept or any(
            each.client == guest.name and each.stage in {Stage.HELD, Stage.QUEUED}
            for each in requests
        )
        if cells and not has_unbegun and not any(map(self._is_at_kernel, cells)):
            return
        cell = requests.running
        self._listener.hold_back([cell.id] if cell else [])
        if cell and self.kernel_for(Channel.CONTROL):
            self.interrupts.aim(cell.id, guest.name, head.barrier)
            if self.interrupts.count(cell.id) == STUBBORN:
                self._writer.tell(
                    cell,
                    "The kernel has not heeded the interrupt so far. To end it, "
                    f"variables and all: remoter stop {self._session.id}",
                )
        elif has_unbegun:
            self.cancellations.interrupt(guest.name, head.barrier)
            self.dispatcher.answer_overtaken()
        else:
            self._strike()

    def _is_at_kernel(self, name: str) -> bool:
        request = self.requests.get(str(name))
        return request is not None and request.is_open and request.stage >= Stage.SENT

    def _end_interrupted(self, request: Request) -> None:
        """Reply to a cell that was interrupted and whose kernel is done with it without a reply."""
        self._writer.reply_error(request, "KeyboardInterrupt", "Interrupted at its end.")
        self.requests.move(request, Stage.FAILED, "interrupted, and the kernel gave no reply")

    def _strike(self) -> None:
        child = self.kernel_for(Channel.CONTROL)
        if child:
            child.interrupt()
