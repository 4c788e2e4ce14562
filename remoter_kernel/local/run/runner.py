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
REACHED_WITHIN = 600.0  # seconds; each step of the way there has a limit of its own
READY_WITHIN = 90.0  # seconds: a kernel on a cold network disk takes its time
ACKNOWLEDGED_WITHIN = 3.0  # seconds
END_WITHIN = 5.0  # seconds from an interrupt to the end of what took too long
LOST_AFTER = 3.0  # seconds: most cuts are mended before anyone need know
ASK_AFTER = 0.1  # seconds: what was printed before the question comes by another socket there
END_OF_INPUT = "\x04"  # as an answer, it means that there is none

FAILED = 1
_R_ERROR = "ERROR"
# As an R script's `quit` is made to say it: "Error", in whatever language R speaks, and a colon.
_QUIT = re.compile(r"\S+\s?.\s*quit\(status = (-?\d+)\)")


class LeftRunning(RemoterError):
    """A person has left what goes on there."""

    exit_code = 130


class TookTooLong(RemoterError):
    """What was run was not done in time."""


@dataclass
class SubmittedCell:
    """What was asked: whom its outputs go to, and its reply once that is there."""

    id: str
    code_cell: CodeCell
    show: Show
    ask: Ask | None
    reply: dict[str, Any] | None = None
    is_idle: bool = False

    @property
    def is_over(self) -> bool:
        """Has it its reply, and all its outputs? What was called off has none."""
        is_aborted = (self.reply or {}).get("status") == "aborted"
        return is_aborted or (self.reply is not None and self.is_idle)


class Runner:
    """One session of its own, from `start` to `stop`. Blocks; belongs to one thread."""

    def __init__(self, dialer: SessionDialer) -> None:
        """Remember; `start` begins."""
        self.dialer = dialer
        # With a name of its own it finds the session again whose start it did not hear of.
        dialer.session_request = replace(
            dialer.session_request,
            kernel_id=dialer.session_request.kernel_id or secrets.token_hex(12),
        )
        self.reactor = Reactor()
        self.link = Link(self.reactor, dialer)
        self.kernel_info: dict[str, Any] = {}
        self.is_encrypted = False  # is the kernel, there?
        self.seconds: dict[str, float] = {}  # how long each step of the start took
        self.on_ctrl_c: Callable[[], None] = lambda: None  # Ctrl-C, for the first time
        # The link is gone for a while (None), or back after so many seconds.
        self.on_loss: Callable[[float | None], None] = lambda _seconds: None
        self._loss_timer: Timer | None = None
        self._voice = MessageSigner(b"")
        self._error: RemoterError | None = None
        self._cells: dict[str, SubmittedCell] = {}
        self._timeout_error: RemoterError | None = None
        self._ctrl_c_count = 0
        self._is_closed = False
        self.link.on_item = self._on_message
        self.link.on_state = self._on_link_state

    @property
    def language(self) -> str:
        """What the kernel speaks."""
        info = self.kernel_info.get("language_info")
        return str(info.get("name") or "") if isinstance(info, dict) else ""

    @property
    def session(self) -> str:
        """The session's id."""
        return self.dialer.session_info.session if self.dialer.session_info else ""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should hear of this start."""
        return self.dialer.session_info.notices if self.dialer.session_info else ()

    def start(self) -> None:
        """Connect and wait until the kernel is ready; a `RemoterError` says why it is not."""
        began = time.monotonic()
        self.link.connect()
        # A person may be asked, or a login shell be slow: that is no fault of the kernel.
        self.reactor.run_until(
            lambda: bool(self.link.ever_connected or self._error), began + REACHED_WITHIN
        )
        limit = time.monotonic() + READY_WITHIN
        self.reactor.run_until(
            lambda: bool(self.kernel_info or self._error) or not self.link.ever_connected, limit
        )
        if self._error:
            raise self._error
        if not self.link.ever_connected:
            raise Unreachable(
                f"The session was not reached within {REACHED_WITHIN / 60:.0f} minutes.",
                "Try again, or see with `remoter check` how far it comes.",
                remote=self.dialer.remote.name,
            )
        if not self.kernel_info:
            raise RemoteLacks(
                f"The kernel was not ready within {READY_WITHIN:.0f} seconds.",
                "Try again, or see with `remoter check` how far it comes.",
                remote=self.dialer.remote.name,
            )
        self.seconds["kernel"] = time.monotonic() - began

    def run(self, code: str, show: Show, ask: Ask | None = None) -> dict[str, Any]:
        """Run code; `show(kind, content)` gets each output as it comes. Return the reply.

        `ask(prompt, is_secret)` answers `input()`. Ctrl-C interrupts the far side.
        """
        cell = self.submit(CodeCell(code), show, ask)
        self.wait()
        del self._cells[cell.id]
        return cell.reply or {}

    def run_silently(self, code: str) -> None:
        """Run code of which nobody sees anything, unless it fails."""
        if code:
            self.submit(CodeCell(code), lambda _kind, _content: None, is_silent=True)

    def submit(
        self, piece: CodeCell, show: Show, ask: Ask | None = None, *, is_silent: bool = False
    ) -> SubmittedCell:
        """Ask for a piece to be run, after those before it."""
        words = {
            "code": piece.source,
            "silent": is_silent,
            "store_history": not is_silent,
            "user_expressions": {},
            "allow_stdin": ask is not None,
            "stop_on_error": not piece.may_fail,
        }
        metadata = {"cellId": piece.cell_id} if piece.cell_id else {}
        parts = self._voice.compose("execute_request", words, metadata=metadata)
        cell = SubmittedCell(header_of(parts[HEADER])["msg_id"], piece, show, ask)
        self._cells[cell.id] = cell
        self.link.send(Channel.SHELL, parts)
        return cell

    def wait(self, most: float = 0.0) -> None:
        """Wait until all is done, or for so many seconds; a `RemoterError` says what came first.

        Ctrl-C interrupts what runs there. Who presses it again leaves it running.
        """
        self._ctrl_c_count = 0
        timer = self.reactor.call_later(most, lambda: self._on_timeout(most)) if most else None
        with self._handling_ctrl_c():
            self.reactor.run_until(lambda: bool(self._is_done or self._error))
        if timer:
            timer.cancel()
        error = self._timeout_error or (None if self._is_done else self._error)
        if error:
            raise error

    def interrupt(self) -> None:
        """Interrupt what is running there."""
        self._send_command("interrupt")

    def stop(self) -> None:
        """End the session, wait until that is heard, and close."""
        if self._is_closed:
            return
        limit = time.monotonic() + ACKNOWLEDGED_WITHIN
        if getattr(self.dialer.prompter, "is_asking", False):  # nobody here will answer it
            self.dialer.abort()
        if not self.link.ever_connected:  # it may be about to begin
            self.reactor.run_until(lambda: self.link.state is not LinkState.DIALLING, limit)
        if self.link.ever_connected and not self._is_unreachable:
            self._send_command("stop")
            self._wait_until_acknowledged()
            if self.link.unacknowledged:
                remote, name = self.dialer.remote.name, self.dialer.session_request.kernel_id
                undelivered_commands.save_command(remote, name, self.session, "stop")
        elif not self.link.ever_connected:
            self.dialer.stop_orphan()
        self.close()

    def detach(self) -> None:
        """Let the session go on, end once all is done, and close.

        A `RemoterError` says that what was asked may not have got there.
        """
        self._wait_until_acknowledged()
        is_there = not self.link.unacknowledged
        self._send_command("finish")
        self._wait_until_acknowledged()
        self.close()
        if not is_there:
            what = "The link was lost before all was handed over."
            raise Unreachable(what, "Run it again.", remote=self.dialer.remote.name)

    def close(self) -> None:
        """Give everything back; the session stays."""
        self._is_closed = True
        self.link.close()
        self.dialer.close()
        self.reactor.close()

    def _send_command(self, order: str) -> None:
        self.link.send(Channel.COMMAND, [to_json({"order": order})])

    def _wait_until_acknowledged(self) -> None:
        """Wait until what was said has arrived, or nobody can hear it any more."""
        self.on_loss = lambda _seconds: None  # whoever leaves need not know
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
            signal.set_wakeup_fd(-1)
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

    def _on_timeout(self, most: float) -> None:
        """Interrupt what takes too long; it has a moment to say where it was."""
        what = f"The code was not done within {format_duration(most)} (--timeout), and was ended."
        self._timeout_error = TookTooLong(what, remote=self._remote)
        self.interrupt()
        self.reactor.call_later(END_WITHIN, lambda: self._fail(self._timeout_error))

    def _fail(self, error: RemoterError | None) -> None:
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
        if header is None or content is None:  # it counts all the same: somebody waits for it
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
        """Put a question to a person; Ctrl-C at it interrupts what has asked."""
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
        self.link.send(Channel.STDIN, self._voice.compose("input_reply", {"value": answer}))

    def _on_event(self, words: dict[str, Any]) -> None:
        if words.get("event") == "ready":
            info = words.get("kernel_info")
            self.kernel_info = info if isinstance(info, dict) else {}
            self.is_encrypted = bool(words.get("encrypted"))
        elif words.get("event") == "failed":
            self._fail(RemoteLacks(str(words.get("why")), remote=self._remote))

    def _on_link_state(self, state: LinkState) -> None:
        if state is LinkState.UP:
            self._on_link_up()
            welcome = self.link.welcome
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
    """Return with which word code ended itself (`sys.exit(…)`); None: it did not."""
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
    """Return the exit code of pieces that were asked for together: that of the first to fail.

    What was called off before anything had failed was not run, and so has not gone well.
    """
    for reply in replies:
        if reply.get("status") == "aborted":
            return FAILED
        if reply.get("status") != "ok":
            return exit_code(reply)
    return 0


class ExitCodeTracker:
    """How the code of a session ended, by what its journal says."""

    def __init__(self) -> None:
        """Begin with nothing asked."""
        self._may_fail: dict[str, bool] = {}  # by request: may it fail?
        self._replies: list[dict[str, Any]] = []  # of those that may not

    @property
    def is_open(self) -> bool:
        """Has something been asked that was never answered?"""
        return bool(self._may_fail)

    @property
    def exit_code(self) -> int:
        """Return that of the code, as far as it has got."""
        return FAILED if self.is_open else exit_code_of_all(self._replies)

    def add_record(self, said: JournalEntry) -> None:
        """Take in one record; one that makes no sense says nothing."""
        if said.channel is not Channel.SHELL or said.is_marker:
            return
        try:
            parts = unpack_parts(said.body)
            header, content = header_of(parts[HEADER]), content_of(parts)
            if said.is_from_client and header.get("msg_type") == "execute_request":
                self._may_fail[str(header["msg_id"])] = not content.get("stop_on_error", True)
            elif header.get("msg_type") == "execute_reply":
                may_fail = self._may_fail.pop(str(header_of(parts[PARENT]).get("msg_id")), True)
                if not may_fail:
                    self._replies.append(content)
        except ODD:
            return
