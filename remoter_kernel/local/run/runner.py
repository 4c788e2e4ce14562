"""Runs code in a session without Jupyter: what `remoter run`, `check` and `demo` need."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import ProtocolError, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local.history.transcript import NO_SENSE, format_duration
from remoter_kernel.local.run.code_to_run import CodeCell
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.link import Link, LinkState
from remoter_kernel.protocol.frames import Channel, from_json, to_json, unpack_parts
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    ODD,
    PARENT,
    TOPIC,
    MessageSigner,
    content_of,
    header_of,
)
from remoter_kernel.protocol.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.journal_entries import JournalEntry
    from remoter_kernel.protocol.reactor import Timer

if TYPE_CHECKING:
    Show = Callable[[str, dict[str, Any]], None]
    Ask = Callable[[str, bool], str]
REACHED_WITHIN = 600.0  # seconds; a person may be typing a code, and each step has its own limit
READY_WITHIN = 90.0  # seconds: a kernel on a cold network disk takes its time
ACKNOWLEDGED_WITHIN = 3.0  # seconds
END_WITHIN = 5.0  # seconds from an interrupt to the end of what took too long
LOST_AFTER = 3.0  # seconds: after most cuts the link is back sooner, and no hint is printed
ASK_AFTER = 0.1  # seconds: what was printed before comes by iopub, and may come after the question
END_OF_INPUT = "\x04"  # as ipykernel takes it: `input()` then raises EOFError

FAILED = 1
_R_ERROR = "ERROR"
# The error of our `quit` for R scripts: "Error" in the language of R's messages, a colon, our text.
_QUIT = re.compile(r"\S+\s?.\s*quit\(status = (-?\d+)\)")


class LeftRunning(RemoterError):
    """A person has left what goes on there."""

    exit_code = 130


class TookTooLong(RemoterError):
    """What was run was not done in time."""


@dataclass
class SubmittedCell:
    """A cell that was sent: whom its outputs go to, and its reply once that is there."""

    id: str
    code_cell: CodeCell
    show: Show
    ask: Ask | None
    reply: dict[str, Any] | None = None
    is_idle: bool = False

    @property
    def is_over(self) -> bool:
        """Has it its reply, and all its outputs? A kernel publishes none for an aborted one."""
        is_aborted = (self.reply or {}).get("status") == "aborted"
        return is_aborted or (self.reply is not None and self.is_idle)


class Runner:
    """One session of its own, from `start` to `stop`. Blocks; belongs to one thread."""

    def __init__(self, dialer: SessionDialer) -> None:
        self.dialer = dialer
        # By an id of its own it finds the session again whose start was lost with the link.
        dialer.session_request = replace(
            dialer.session_request,
            kernel_id=dialer.session_request.kernel_id or secrets.token_hex(12),
        )
        self.reactor = Reactor()
        self.link = Link(self.reactor, dialer)
        self.start_seconds = 0.0  # how long `start` took
        self.on_ctrl_c: Callable[[], None] = lambda: None  # Ctrl-C, for the first time
        # The link is gone for a while (None), or back after so many seconds.
        self.on_loss: Callable[[float | None], None] = lambda _seconds: None
        self._loss_timer: Timer | None = None
        self._ready: dict[str, Any] = {}  # the event that says so
        self._signer = MessageSigner(b"")
        self._error: RemoterError | None = None  # the first one
        self._cells: dict[str, SubmittedCell] = {}  # by message id
        self._ctrl_c_count = 0
        self.link.on_item = self._on_message
        self.link.on_state = self._on_link_state

    @property
    def kernel_info(self) -> dict[str, Any]:
        """The content of the kernel's kernel_info_reply; {} until it is ready."""
        info = self._ready.get("kernel_info")
        return info if isinstance(info, dict) else {}

    @property
    def is_encrypted(self) -> bool:
        """Are the sockets between the kernel and its evaluator?"""
        return bool(self._ready.get("encrypted"))

    @property
    def language(self) -> str:
        """The kernel's programming language."""
        info = self.kernel_info.get("language_info")
        return str(info.get("name") or "") if isinstance(info, dict) else ""

    @property
    def session(self) -> str:
        """The session's id."""
        return self.dialer.session_info.session if self.dialer.session_info else ""

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences to show a person at this start."""
        return self.dialer.session_info.notices if self.dialer.session_info else ()

    def start(self) -> None:
        """Connect and wait until the kernel is ready; a `RemoterError` says why it is not."""
        began = time.monotonic()
        self.link.connect()
        # Two limits: a question to a person, or a slow login shell, is no fault of the kernel.
        self.reactor.run_until(
            lambda: bool(self.link.ever_connected or self._error), began + REACHED_WITHIN
        )
        limit = time.monotonic() + READY_WITHIN
        self.reactor.run_until(
            lambda: bool(self.kernel_info or self._error) or not self.link.ever_connected, limit
        )
        if self._error:
            raise self._error
        advice = "Try again, or see with `remoter check` how far it comes."
        if not self.link.ever_connected:
            what = f"The session was not reached within {REACHED_WITHIN / 60:.0f} minutes."
            raise Unreachable(what, advice, remote=self._remote)
        if not self.kernel_info:
            what = f"The kernel was not ready within {READY_WITHIN:.0f} seconds."
            raise RemoteLacks(what, advice, remote=self._remote)
        self.start_seconds = time.monotonic() - began

    def run(self, code: str, show: Show, ask: Ask | None = None) -> dict[str, Any]:
        """Run code; `show(kind, content)` gets each output as it comes. Return the reply.

        `ask(prompt, is_secret)` answers `input()`. Ctrl-C interrupts the kernel.
        """
        cell = self.submit(CodeCell(code), show, ask)
        self.wait()
        del self._cells[cell.id]
        return cell.reply or {}

    def run_silently(self, code: str) -> None:
        """Send code of which nobody sees anything, unless it fails."""
        if code:
            self.submit(CodeCell(code), lambda _kind, _content: None, is_silent=True)

    def submit(
        self, piece: CodeCell, show: Show, ask: Ask | None = None, *, is_silent: bool = False
    ) -> SubmittedCell:
        """Send a cell; the kernel runs it after those before it."""
        words = {
            "code": piece.source,
            "silent": is_silent,
            "store_history": not is_silent,
            "user_expressions": {},
            "allow_stdin": ask is not None,
            # After an error, the kernel aborts all cells that were sent: they were sent at once.
            "stop_on_error": not piece.may_fail,
        }
        metadata = {"cellId": piece.cell_id} if piece.cell_id else {}
        parts = self._signer.compose("execute_request", words, metadata=metadata)
        cell = SubmittedCell(header_of(parts[HEADER])["msg_id"], piece, show, ask)
        self._cells[cell.id] = cell
        self.link.send(Channel.SHELL, parts)
        return cell

    def wait(self, most: float = 0.0) -> None:
        """Wait until all is done, or for so many seconds; a `RemoterError` says what came first.

        Ctrl-C interrupts what runs there; a second one leaves it running.
        """
        self._ctrl_c_count = 0
        too_long: list[RemoterError] = []

        def on_timeout() -> None:
            """Interrupt what takes too long; its traceback says where it was."""
            limit = format_duration(most)
            what = f"The code was not done within {limit} (--timeout), and was ended."
            too_long.append(TookTooLong(what, remote=self._remote))
            self.interrupt()
            self.reactor.call_later(END_WITHIN, partial(self._fail, too_long[0]))

        timer = self.reactor.call_later(most, on_timeout) if most else None
        with self._handling_ctrl_c():
            self.reactor.run_until(lambda: bool(self._is_done or self._error))
        if timer:
            timer.cancel()
        if too_long:
            raise too_long[0]
        if self._error and not self._is_done:
            raise self._error

    def interrupt(self) -> None:
        """Interrupt what is running there."""
        self._send_command("interrupt")

    def stop(self) -> None:
        """End the session, wait until the evaluator has acknowledged that, and close."""
        if self.link.state is LinkState.CLOSED:
            return
        limit = time.monotonic() + ACKNOWLEDGED_WITHIN
        if getattr(self.dialer.prompter, "is_asking", False):  # nobody will answer it any more
            self.dialer.abort()
        if not self.link.ever_connected:  # a session may be starting: then it has an id soon
            self.reactor.run_until(lambda: self.link.state is not LinkState.DIALLING, limit)
        if self.link.ever_connected and not self._is_unreachable:
            self._send_command("stop")
            self._wait_until_acknowledged()
            if self.link.unacknowledged:  # the next login to this remote delivers it
                kernel_id = self.dialer.session_request.kernel_id
                undelivered_commands.save_command(self._remote, kernel_id, self.session, "stop")
        elif not self.link.ever_connected:
            self.dialer.stop_orphan()
        self.close()

    def detach(self) -> None:
        """Close, and let the session go on until all cells are done.

        A `RemoterError` says that cells may not have got there.
        """
        self._wait_until_acknowledged()
        is_there = not self.link.unacknowledged  # before "finish" is sent: the cells count
        self._send_command("finish")
        self._wait_until_acknowledged()
        self.close()
        if not is_there:
            what = "The link was lost before all was handed over."
            raise Unreachable(what, "Run it again.", remote=self._remote)

    def close(self) -> None:
        """Give everything back; the session stays."""
        self.link.close()
        self.dialer.close()
        self.reactor.close()

    def _send_command(self, order: str) -> None:
        self.link.send(Channel.COMMAND, [to_json({"order": order})])

    def _wait_until_acknowledged(self) -> None:
        """Wait until all that was sent is acknowledged, or cannot be any more."""
        self.on_loss = lambda _seconds: None  # the command ends: no hint about the link now
        limit = time.monotonic() + ACKNOWLEDGED_WITHIN
        self.reactor.run_until(lambda: not self.link.unacknowledged or self._is_unreachable, limit)

    @property
    def _is_unreachable(self) -> bool:
        """Is there no session any more, or no way to it?"""
        return self.link.state is LinkState.FAILED

    # What ends the waiting ----------------------------------------------------------------

    @property
    def _is_done(self) -> bool:
        return all(cell.is_over for cell in self._cells.values())

    @contextlib.contextmanager
    def _handling_ctrl_c(self) -> Iterator[None]:
        before = signal.signal(
            signal.SIGINT, lambda *_: self.reactor.call_soon_threadsafe(self._on_ctrl_c)
        )
        self.reactor.wake_on_signals()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)  # the reactor's descriptor may be closed soon
            signal.signal(signal.SIGINT, before)

    def _on_ctrl_c(self) -> None:
        self._ctrl_c_count += 1
        if self._ctrl_c_count == 1:
            self.interrupt()
            self.on_ctrl_c()
        else:
            self._error = LeftRunning(*self.reattach_hint("goes on there"), remote=self._remote)

    def reattach_hint(self, what: str) -> tuple[str, str]:
        """Return what becomes of the session, and how a person comes back to it."""
        name = self.session
        advice = (
            f"`remoter outputs -f {name}` follows it, `remoter attach {name}` opens a console on "
            f"it, `remoter stop {name}` ends it."
        )
        return f"Session {name} {what}.", advice

    def _fail(self, error: RemoterError) -> None:
        self._error = self._error or error

    @property
    def _remote(self) -> str:
        return self.dialer.remote.name

    # From the link ------------------------------------------------------------------------

    def _on_message(self, channel: Channel, parts: list[memoryview]) -> None:
        if channel is Channel.EVENT:
            with contextlib.suppress(ProtocolError):
                self._on_event(from_json(parts[TOPIC]))
            return
        parent, header, content = (_read_part(parts, part) for part in (PARENT, HEADER, CONTENT))
        cell = self._cells.get(str((parent or {}).get("msg_id", "")))
        if cell is None:
            return
        if header is None or content is None:  # a reply that makes no sense still ends its cell
            cell.show("stream", {"name": "stderr", "text": NO_SENSE})
        kind, content = str((header or {}).get("msg_type", "")), content or {}
        if channel is Channel.SHELL:
            cell.reply = content
        elif channel is Channel.STDIN and cell.ask:
            self.reactor.call_later(ASK_AFTER, partial(self._ask, cell, content))
        elif kind == "status":
            cell.is_idle = content.get("execution_state") == "idle"
        else:
            cell.show(kind, content)

    def _ask(self, cell: SubmittedCell, content: dict[str, Any]) -> None:
        """Ask a person what `input()` asks; Ctrl-C at it interrupts the cell."""
        if cell.ask is None or cell.is_over:
            return
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            answer = cell.ask(str(content.get("prompt", "")), bool(content.get("password")))
        except KeyboardInterrupt:
            self._on_ctrl_c()
            return
        except EOFError:
            answer = END_OF_INPUT
        finally:
            signal.signal(signal.SIGINT, before)
        self.link.send(Channel.STDIN, self._signer.compose("input_reply", {"value": answer}))

    def _on_event(self, words: dict[str, Any]) -> None:
        if words.get("event") == "ready":
            self._ready = words
        elif words.get("event") == "failed":
            self._fail(RemoteLacks(str(words.get("why")), remote=self._remote))

    def _on_link_state(self, state: LinkState) -> None:
        if state is LinkState.UP:
            self._on_link_up()
            welcome = self.link.welcome  # the kernel may have been ready before we came
            self._on_event({"event": welcome.get("state"), **welcome})
        elif state is LinkState.FAILED:
            self._fail(self.link.error or Unreachable("The link failed."))
        elif (
            state is not LinkState.CLOSED and self.link.ever_connected and self._loss_timer is None
        ):
            self._loss_timer = self.reactor.call_later(LOST_AFTER, lambda: self.on_loss(None))

    def _on_link_up(self) -> None:
        loss, self._loss_timer = self._loss_timer, None
        if loss:
            loss.cancel()
            seconds = time.monotonic() - self.link.lost_at
            if seconds > LOST_AFTER:
                self.on_loss(seconds)


def _read_part(parts: Sequence[Bytes], part: int) -> dict[str, Any] | None:
    """Read one part of a message; None if it makes no sense."""
    try:
        return header_of(parts[part])
    except ODD:
        return None


def quit_status(content: dict[str, Any]) -> str | None:
    """Return the argument with which code ended itself (`sys.exit(…)`); None: it did not."""
    evalue = str(content.get("evalue", "")).strip()
    if content.get("ename") == "SystemExit":
        return "0" if evalue in {"", "None", "False"} else evalue
    found = _QUIT.fullmatch(evalue) if content.get("ename") == _R_ERROR else None
    return found[1] if found else None


def exit_code(reply: dict[str, Any]) -> int:
    """Return 0 for code that went well, or that ended itself so."""
    if reply.get("status") == "ok" or quit_status(reply) == "0":
        return 0
    return FAILED


def exit_code_of_all(replies: Iterable[dict[str, Any]]) -> int:
    """Return the exit code of cells that were sent together: that of the first to fail.

    A cell that was aborted before any had failed was not run, and so has not gone well.
    """
    for reply in replies:
        if reply.get("status") == "aborted":
            return FAILED
        if reply.get("status") != "ok":
            return exit_code(reply)
    return 0


class ExitCodeTracker:
    """How the code of a session ended, by its journal."""

    def __init__(self) -> None:
        self._may_fail: dict[str, bool] = {}  # by request: may it fail?
        self._replies: list[dict[str, Any]] = []  # of those that may not

    @property
    def is_open(self) -> bool:
        """Is there a request without a reply?"""
        return bool(self._may_fail)

    @property
    def exit_code(self) -> int:
        """Return that of the code, as far as it has got."""
        return FAILED if self.is_open else exit_code_of_all(self._replies)

    def add_record(self, said: JournalEntry) -> None:
        """Take in one record; one that makes no sense is left out."""
        if said.channel is not Channel.SHELL or said.is_marker:
            return
        try:
            parts = unpack_parts(said.body)
            header, content = header_of(parts[HEADER]), content_of(parts)
            if said.is_from_client and header.get("msg_type") == "execute_request":
                self._may_fail[str(header["msg_id"])] = not content.get("stop_on_error", True)
            elif header.get("msg_type") == "execute_reply":
                request = str(header_of(parts[PARENT]).get("msg_id"))
                if not self._may_fail.pop(request, True):
                    self._replies.append(content)
        except ODD:
            return
