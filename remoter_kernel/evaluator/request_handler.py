"""Handles requests of clients: append to the journal, and only then forward to the kernel.

So a request that may have run is never run again, whatever dies, and no answer to a prompt is
taken for that to the next one. Only commands, which may as well be carried out twice, do not wait
for a disk.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Callable

from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator.interrupts import Interrupts
from remoter_kernel.evaluator.kernel_queue import Cancellations, CancelReason, KernelQueue
from remoter_kernel.evaluator.message_writer import log_failure_of
from remoter_kernel.protocol.frames import (
    LANE,
    Bytes,
    Channel,
    FrameHeader,
    Lane,
    from_json,
    pack_parts,
)
from remoter_kernel.protocol.messages import (
    CELL_OF_VSCODE,
    CONTENT,
    HEADER,
    METADATA,
    TOPIC,
    header_of,
    parts_of,
    source_hash,
)
from remoter_kernel.protocol.reactor import ignore
from remoter_kernel.protocol.requests import BUSY, Request, Requests, Stage

if TYPE_CHECKING:
    from remoter_kernel.evaluator.kernel_process import KernelProcess
    from remoter_kernel.evaluator.listener import Client, Listener
    from remoter_kernel.evaluator.message_writer import MessageWriter
    from remoter_kernel.evaluator.registry import Session

STUBBORN = 2  # interrupts of one cell after which its person is told what else can be done


class RequestHandler:
    """Takes the requests and commands of all clients, in the order in which they come."""

    def __init__(
        self,
        session: Session,
        listener: Listener,
        writer: MessageWriter,
        requests: Requests | None = None,
    ) -> None:
        """`requests`: those of an evaluator that has died."""
        self.listener = listener
        self.writer = writer
        self._session = session
        self._journal = listener.journal
        self.requests = Requests() if requests is None else requests
        self.cancellations = Cancellations()
        self.dispatcher = KernelQueue(
            self.requests,
            self._journal,
            takes=self._can_dispatch,
            send=self._send,
            answers=self._answer_if_cancelled,
        )
        for request in self.requests.at(Stage.HELD):
            self.dispatcher.restore(request)
        self.interrupts = Interrupts(self.requests, self.cancellations, listener.reactor.call_later)
        self.interrupts.interrupt_kernel = self._send_interrupt
        self.interrupts.on_over = self.dispatcher.dispatch_waiting
        self.interrupts.on_no_reply = self._reply_interrupted
        # The kernel, if it may be sent at once what comes on this channel.
        self.kernel_for: Callable[[Channel], KernelProcess | None] = lambda _channel: None
        self.on_command: Callable[[str], None] = ignore  # restart, stop, finish
        self.on_cell: Callable[[str], None] = ignore  # a notebook's cell is run
        # What the kernel may have already, from an evaluator whose journal is damaged.
        self.on_possible_duplicate: Callable[[Request], None] = ignore

    def on_item(self, client: Client, head: FrameHeader, body: Bytes) -> None:
        """Take one item of a client: journal it, then forward it (commands the other way)."""
        channel = head.channel
        parts: list[Bytes] = list(parts_of(channel, body))
        then: Callable[[], None] = ignore
        is_held = False
        request: Request | None = None
        if channel is Channel.COMMAND:
            self._on_command(client, head, parts)
        else:
            header = header_of(parts[HEADER])
            if not isinstance(header.get("msg_id"), str):
                raise ProtocolError("A request whose header has no msg_id.")
            request = Request(channel, parts, header, client=client.name, number=head.number)
            self._record_cell_id(request)
            self.requests.add(request)
            if head.number <= client.maybe_received[LANE[channel]]:
                then = partial(self.on_possible_duplicate, request)
            else:
                is_held = self.dispatcher.add(request)
                then = partial(self.dispatcher.on_written, request)
        if channel is Channel.STDIN:  # a password, perhaps: the journal keeps that it came
            body = pack_parts([*parts[:CONTENT], b"{}"])
        try:
            self._journal.append(
                channel,
                bytes(body),
                client=client.name,
                client_number=head.number,
                is_from_client=True,
                is_held=is_held,
                then=lambda: self._on_persisted(client, head, len(body), then),
            )
        except Exception:  # it is refused: what comes behind it must not wait for it
            if request:
                self.requests.move(request, Stage.FAILED, "it could not be taken in")
            raise

    def interrupt_for_shutdown(self) -> str:
        """Interrupt what runs, as Jupyter does before it ends a kernel; return which cell it was.

        A busy kernel reads its shutdown_request only then, and may end what it has started outside
        of its process group. What is being interrupted already is not interrupted once more.
        """
        cell = self.requests.running
        if self.interrupts.is_under_way:
            self.interrupts.fire_now()
        elif cell:
            self._send_interrupt()
            return cell.id
        return ""

    def fail_all(self, name: str, why: str, *, is_cut: bool = False) -> None:
        """Answer every request that the kernel can answer no more, and end what it has answered.

        `is_cut`: outputs may have died in the kernel's own buffers.
        """
        running = self.requests.running
        for request in self.requests:
            has_replied = request.stage is Stage.REPLIED
            is_last = is_cut and (BUSY in request.states or request is running)
            sentence = why if has_replied else ""  # else an error says it
            log_failure_of(partial(self._report_kernel_end, request, sentence, is_cut=is_last))
            if has_replied:
                self.requests.move(request, Stage.DONE, why)
            elif request.stage >= Stage.SENT:
                self.fail(request, name, why)

    def fail(self, request: Request, name: str, why: str) -> None:
        """Answer a request that the kernel can answer no more."""
        if request.expects_reply:
            log_failure_of(partial(self.writer.answer_error, request, name, why))
        self.requests.move(request, Stage.FAILED, why)

    def _report_kernel_end(self, request: Request, why: str, *, is_cut: bool) -> None:
        """Say in a cell that its kernel has ended, and end it if it has its reply."""
        if is_cut:
            self.writer.write_busy(request)
            why = f"{why} The last outputs of this cell may be missing.".lstrip()
        if why:
            self.writer.write_stderr(request, why)
        if request.stage is Stage.REPLIED:
            self.writer.write_idle(request)

    @staticmethod
    def _on_persisted(
        client: Client, head: FrameHeader, size: int, then: Callable[[], None]
    ) -> None:
        client.stream.ack(LANE[head.channel], head.number, size)
        if client.pump:
            client.pump.send_credit()
            if head.channel is Channel.COMMAND:
                client.pump.send_ack()  # at once: the proxy may wait for it to exit
        then()

    def _record_cell_id(self, request: Request) -> None:
        """Note which cell of a notebook this is, where the client says so."""
        about = request.parts[METADATA]
        if request.is_cell and b"cellId" in bytes(about):
            cell = str(header_of(about).get("cellId") or "")
            if cell.startswith(CELL_OF_VSCODE):  # a number, not what the file calls it
                cell = source_hash(str(request.content.get("code", "")))
            self.on_cell(cell)

    # For the queues -------------------------------------------------------------------

    def _can_dispatch(self, request: Request) -> bool:
        is_late = request.is_in_turn and self.interrupts.is_under_way
        return not is_late and self.kernel_for(request.channel) is not None

    def _send(self, request: Request) -> None:
        kernel = self.kernel_for(request.channel)
        if kernel:
            kernel.send(request.channel, list(request.parts))
        if request.channel is Channel.STDIN:  # an answer has no reply
            self.requests.move(request, Stage.DONE)

    def _answer_if_cancelled(self, request: Request) -> bool:
        """Answer a request that an interrupt or a restart has overtaken; False: none has."""
        if request.channel is Channel.STDIN:
            is_asked = self._can_dispatch(request)
            if not is_asked:
                self.requests.move(request, Stage.CANCELLED, "no kernel has asked")
            return not is_asked
        answer = self.cancellations.reason_for(request)
        if answer is CancelReason.INTERRUPTED:
            self.writer.answer_error(request, "KeyboardInterrupt", "Interrupted before it began.")
        elif answer and request.expects_reply:
            self.writer.answer_aborted(request)
        if answer:
            self.requests.move(request, Stage.CANCELLED, answer.value)
        return answer is not None

    def _on_command(self, client: Client, head: FrameHeader, parts: list[Bytes]) -> None:
        """Carry out a command: `{"order": interrupt | restart | stop | keep | finish}`."""
        words = from_json(parts[TOPIC])
        order = words.get("order")
        if order == "interrupt":
            self._on_interrupt(client, head, words.get("cells") or [])
        elif order == "restart":
            # What the client sent before the restart must not run in the new kernel.
            self.cancellations.restart(client.name, head.barrier)
            self.dispatcher.answer_cancelled()
            self.on_command(order)
        elif order == "stop":
            self.on_command(order)
        elif order in {"keep", "finish"}:
            with contextlib.suppress(OSError):  # no room: the proxy that sent it knows it, too
                self._session.update(**{order: True})
            if order == "finish":
                self.on_command(order)
        else:
            raise ProtocolError(f"An order that is not known: {order!r}.")

    def _on_interrupt(self, client: Client, head: FrameHeader, cells: list[str]) -> None:
        """Interrupt the running cell; else the first of this client's that has not begun.

        `cells`: those without a reply when the person interrupted. If all of them have ended
        since, whatever runs now was not meant.
        """
        requests, kept = self.requests, client.stream.acked[Lane.BULK]
        # Beyond `kept`, this client has sent requests that are not here yet.
        has_unbegun = head.barrier > kept or any(
            each.client == client.name and each.stage in {Stage.HELD, Stage.QUEUED}
            for each in requests
        )
        sent = {each.id for each in requests if Stage.SENT <= each.stage < Stage.REPLIED}
        if cells and not has_unbegun and sent.isdisjoint(map(str, cells)):
            return
        cell = requests.running
        self.listener.limit_output([cell.id] if cell else [])
        if cell and self.kernel_for(Channel.CONTROL):
            self.interrupts.schedule(cell.id, client.name, head.barrier)
            if self.interrupts.count(cell.id) == STUBBORN:
                self.writer.write_stderr(
                    cell,
                    "The kernel has not heeded the interrupt so far. To end it, "
                    f"variables and all: remoter stop {self._session.id}",
                )
        elif has_unbegun:
            self.cancellations.interrupt(client.name, head.barrier)
            self.dispatcher.answer_cancelled()
        else:
            self._send_interrupt()

    def _reply_interrupted(self, request: Request) -> None:
        """Reply to an interrupted cell that the kernel was done with without a reply."""
        self.writer.reply_error(request, "KeyboardInterrupt", "Interrupted at its end.")
        self.requests.move(request, Stage.FAILED, "interrupted, and the kernel gave no reply")

    def _send_interrupt(self) -> None:
        kernel = self.kernel_for(Channel.CONTROL)
        if kernel:
            kernel.interrupt()
