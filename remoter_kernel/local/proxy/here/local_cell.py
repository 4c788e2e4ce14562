"""One cell that runs on this machine, from the question whether it may to its `idle`.

And code that this process itself runs in a kernel, local or remote: silent, seen by nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.proxy.replies import AnsweredCell, run_in_thread
from remoter_kernel.protocol.frames import Bytes, Channel, to_json
from remoter_kernel.protocol.messages import (
    BUFFERS,
    CONTENT,
    HEADER,
    METADATA,
    PARENT,
    TOPIC,
    MessageSigner,
    content_of,
    header_of,
)
from remoter_kernel.protocol.requests import BUSY, IDLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.local.proxy.here.local_kernel import LocalKernel
    from remoter_kernel.local.proxy.here.permission import Permission
    from remoter_kernel.local.proxy.prompter import StdinPrompter
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

OnDone = Callable[[RemoterError | None], None]


class CalledOff(RemoterError):
    """A cell on this side was interrupted before it ran."""


class NotRun(RemoterError):
    """What was to run in a kernel did not come to its end."""


@dataclass(frozen=True)
class LocalCellContext:
    """What of the proxy local cells and transfers of objects need."""

    reactor: Reactor
    replies: ReplySender
    prompter: StdinPrompter
    permission: Permission
    internal_exec: InternalExec
    link: Link
    dialer: SessionDialer
    language: Callable[[], str]  # of the remote kernel
    count: Callable[[], int]  # the number of the last cell there
    # Folders on the remote that could not be removed: the next transfer tries again.
    leftover_folders: list[str] = field(default_factory=list)


@dataclass
class LocalCell:
    """A cell with `%%local` or `%local`."""

    request: Request
    code: str
    context: LocalCellContext
    require_permission: Callable[[], None]  # blocks, and raises if the cell may not run here
    on_over: Callable[[bool], None]  # with whether all was well
    has_exited: bool = False  # did it end its kernel, with `exit`?
    _is_sent: bool = False
    _is_over: bool = False
    _is_idle: bool = False
    _status: str = ""  # of the kernel's reply, once that has come

    def __post_init__(self) -> None:
        self._kernel = self.context.internal_exec.local_kernel

    def start(self) -> None:
        """Ask whether it may run; then start the kernel, which calls `run`."""
        self.context.replies.send_state(
            self.request, BUSY
        )  # before a question: it is asked in this cell
        run_in_thread(
            self.context.reactor,
            "permission",
            self.require_permission,
            self._start_kernel,
            self.fail,
        )

    def _start_kernel(self, _result: None) -> None:
        if not self._is_over:  # it may have been interrupted meanwhile
            self._kernel.start()

    def run(self) -> None:
        """Send it to the kernel, which is ready."""
        if not (self._is_over or self._is_sent):
            # The kernel may say twice that it is ready: the code runs once.
            self._is_sent = True
            self._kernel.send(
                Channel.SHELL, for_local_kernel(self.request.parts, {"code": self.code})
            )

    def interrupt(self) -> None:
        """Interrupt it, or end it while it has yet to be run."""
        if self._is_sent:
            self._kernel.interrupt()
        else:
            self.fail(CalledOff("the cell was interrupted before it ran on this side."))

    def on_message(self, kind: str, parts: list[Bytes]) -> list[Bytes]:
        """Note what the kernel sends in it; return that as clients should see it, if at all."""
        if kind not in {"status", "execute_input", "execute_reply"}:
            return parts
        content = content_of(parts)
        if kind == "status":
            is_idle = content.get("execution_state") == IDLE
            self._is_idle |= is_idle
            return parts if is_idle else []  # busy was sent before the question
        if kind == "execute_input":  # other clients show what was typed, with its %%local
            content["code"] = self.request.content.get("code", "")
        else:
            payload = content.get("payload") or []
            # A client that is told to exit would do so, and this is not its kernel.
            content["payload"] = [each for each in payload if each.get("source") != "ask_exit"]
            self.has_exited = len(content["payload"]) != len(payload)
            self._status = str(content.get("status"))
        parts[CONTENT] = to_json(content)
        return parts

    def finish_if_done(self) -> None:
        """End it if reply and idle have come: either may be the last one."""
        if self._status and self._is_idle and not self._is_over:
            self._is_over = True
            self.on_over(self._status == "ok")

    def fail(self, error: RemoterError) -> None:
        """End it with an error of ours."""
        if self._is_over:
            return
        self._is_over = True
        # A kernel may die between its reply and its idle.
        if self._status:  # it has its reply: only the idle will not come any more
            self.context.replies.send_state(self.request, IDLE)
        else:
            AnsweredCell(self.context.replies, self.request, count=1).fail(error)
        self.on_over(False)


def for_local_kernel(parts: Sequence[Bytes], changes: dict[str, Any]) -> list[Bytes]:
    """Return a client's request as the local kernel should get it; `changes`: to its content.

    Its header stays, so that outputs name it as their parent.
    """
    header = header_of(parts[HEADER])
    header.pop("subshell_id", None)  # of the remote kernel: the local one does not know it
    content = to_json({**content_of(parts), **changes}) if changes else parts[CONTENT]
    return [
        parts[TOPIC],
        to_json(header),
        *parts[HEADER + 1 : METADATA + 1],
        content,
        *parts[BUFFERS:],
    ]


@dataclass
class InternalExec:
    """Runs code of ours, one piece at a time; `then(error)` is called when it is over."""

    link: Link
    local_kernel: LocalKernel
    remote_mark: bytes = b""  # stands in the parent header of what comes of it from there
    _signer: MessageSigner = field(default_factory=lambda: MessageSigner(b""))
    _request_id: str = ""  # of the request that runs
    _number: int = 0  # its number in the link's outbox
    _is_remote: bool = False
    _waiting_local: tuple[str, OnDone] | None = None  # code that waits for the local kernel
    _on_done: OnDone | None = None

    # --- to the kernels ---

    def run_remotely(self, code: str, then: OnDone) -> None:
        """Run code in the remote kernel."""
        self.remote_mark = self._signer.session.encode()
        parts = self._signer.compose("execute_request", _silent(code))
        self._request_id = str(header_of(parts[HEADER])["msg_id"])
        self._is_remote, self._on_done = True, then
        self._number = self.link.send(Channel.SHELL, parts)

    def run_locally(self, code: str, then: OnDone) -> None:
        """Run code in the local kernel, which may have to be started."""
        # One at a time: `CellQueue` lets one local cell run.
        self._waiting_local = code, then
        self.local_kernel.start()

    def on_local_ready(self) -> None:
        """Send what waits for the local kernel."""
        waiting, self._waiting_local = self._waiting_local, None
        if waiting:
            code, self._on_done = waiting
            self._is_remote = False
            self._request_id = self.local_kernel.send_request("execute_request", _silent(code))

    def interrupt(self) -> None:
        """Interrupt what runs."""
        if self._request_id and self._is_remote:
            # Its id goes along, so that no cell of a client is hit.
            command = {"order": "interrupt", "cells": [self._request_id]}
            self.link.send(Channel.COMMAND, [to_json(command)])
        elif self._request_id:
            self.local_kernel.interrupt()

    # --- from the kernels ---

    def on_message(self, parts: Sequence[Bytes]) -> None:
        """Handle what comes of code of ours, from either kernel; only its reply matters."""
        header, parent = header_of(parts[HEADER]), header_of(parts[PARENT])
        # A reply to what was given up may come late.
        if header.get("msg_type") != "execute_reply" or parent.get("msg_id") != self._request_id:
            return
        content = content_of(parts)
        if content.get("status") == "ok":
            self._finish(None)
        else:
            why = f"{content.get('ename') or 'interrupted'}: {content.get('evalue') or ''}"
            self._finish(NotRun(f"The kernel did not carry that out ({why.rstrip(': ')})."))

    def on_local_died(self, error: RemoterError) -> None:
        """End what ran in the local kernel, or waited for it."""
        waiting, self._waiting_local = self._waiting_local, None
        if waiting:
            waiting[1](error)
        elif self._request_id and not self._is_remote:
            self._finish(error)

    def on_link_failed(self, error: RemoterError, *, is_over: bool) -> None:
        """End what was never sent; what may be running there is waited for."""
        if self._request_id and self._is_remote:
            # What was sent may have been done: its reply says so once the link is back.
            withdrawn = self.link.cancel_unsent(Channel.SHELL, self._number)
            if withdrawn or is_over or not self.link.ever_connected:
                self._finish(error)

    def _finish(self, error: RemoterError | None) -> None:
        then, self._on_done, self._request_id = self._on_done, None, ""
        if then:
            then(error)


def _silent(code: str) -> dict[str, Any]:
    return {
        "code": code,
        "silent": True,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,  # the cells that wait behind it are not ours to abort
    }
