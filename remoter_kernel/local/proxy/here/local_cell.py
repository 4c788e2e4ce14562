"""One cell that runs on this side, from the question whether it may to its `idle`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.proxy.canned_replies import error_content
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
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.local.proxy.here.local_kernel import LocalKernel
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

if TYPE_CHECKING:
    OnDone = Callable[[RemoterError | None], None]


class CalledOff(RemoterError):
    """A cell on this side was interrupted before it ran."""


class LocalCell:
    """A cell with `%%local` or `%local`."""

    def __init__(
        self,
        request: Request,
        code: str,
        *,
        kernel: LocalKernel,
        replies: ReplySender,
        reactor: Reactor,
        require_permission: Callable[[], None],
        on_over: Callable[[bool], None],
    ) -> None:
        """Remember; `require_permission` blocks, and raises if the cell may not run here."""
        self.request = request
        self.has_exited = False  # did it end its kernel, with `exit`?
        self._code = code
        self._kernel = kernel
        self._replies = replies
        self._reactor = reactor
        self._require_permission = require_permission
        self._on_over = on_over
        self._is_sent = self._is_over = False
        self._reply: Sequence[Bytes] | None = None
        self._is_idle = False

    def start(self) -> None:
        """Ask whether it may run, start the kernel, run it."""
        self._replies.publish("status", {"execution_state": "busy"}, self.request.header)
        Thread(self._check_permission, name="permission").start()

    def interrupt(self) -> None:
        """Interrupt it, or call it off while it has yet to be run."""
        if self._is_sent:
            self._kernel.interrupt()
        else:
            self.fail(CalledOff("the cell was interrupted before it ran on this side."))

    def _check_permission(self) -> None:
        try:
            self._require_permission()
        except RemoterError as error:
            self._reactor.call_soon_threadsafe(partial(self.fail, error))
        except Exception as error:  # noqa: BLE001 - a bug must reach the cell, too
            trouble = RemoterError(f"That failed unexpectedly: {type(error).__name__}: {error}")
            self._reactor.call_soon_threadsafe(partial(self.fail, trouble))
        else:
            self._reactor.call_soon_threadsafe(self._start_kernel)

    def _start_kernel(self) -> None:
        if not self._is_over:
            self._kernel.start()

    def run(self) -> None:
        """Run it: the kernel is there."""
        if self._is_over or self._is_sent:
            return
        self._is_sent = True
        self._kernel.send(Channel.SHELL, for_local_kernel(self.request.parts, {"code": self._code}))

    def on_message(self, kind: str, parts: list[Bytes]) -> list[Bytes]:
        """Look at what the kernel says in it; return that as clients should see it, if at all."""
        content = content_of(parts) if kind in {"status", "execute_input", "execute_reply"} else {}
        if kind == "status":
            is_idle = content.get("execution_state") == "idle"
            self._is_idle |= is_idle
            return parts if is_idle else []  # that it is busy was said before it was asked about
        if kind == "execute_input":  # other clients show what was typed
            content["code"] = content_of(self.request.parts).get("code", "")
            parts[CONTENT] = to_json(content)
        elif kind == "execute_reply":
            payload = content.get("payload") or []
            # A client that is asked to end would, and this is not its kernel.
            content["payload"] = [each for each in payload if each.get("source") != "ask_exit"]
            self.has_exited = len(content["payload"]) != len(payload)
            parts[CONTENT] = to_json(content)
            self._reply = parts
        return parts

    def finish_if_done(self) -> None:
        """Be over, if all has come."""
        if self._reply is not None and self._is_idle and not self._is_over:
            self._is_over = True
            self._on_over(content_of(self._reply).get("status") == "ok")

    def fail(self, error: RemoterError) -> None:
        """End it with an error of our own."""
        if self._is_over:
            return
        self._is_over = True
        if self._reply is None:
            trouble = error_content(type(error).__name__, str(error))
            reply: dict[str, Any] = {"status": "error", **trouble, "execution_count": 1}
            self._replies.publish("error", trouble, self.request.header)
            self._replies.reply(self.request, reply, is_quiet=True)
        self._replies.publish("status", {"execution_state": "idle"}, self.request.header)
        self._on_over(False)


def for_local_kernel(parts: Sequence[Bytes], words: dict[str, Any]) -> list[Bytes]:
    """Return a client's request as the kernel on this side should get it.

    Its header stays, so that outputs name it as their parent; a subshell of the other side's
    kernel means nothing here.
    """
    header = header_of(parts[HEADER])
    header.pop("subshell_id", None)
    content = to_json({**content_of(parts), **words}) if words else parts[CONTENT]
    return [
        parts[TOPIC],
        to_json(header),
        *parts[HEADER + 1 : METADATA + 1],
        content,
        *parts[BUFFERS:],
    ]


# Code that the front itself runs in a kernel, on either side: silent, and heard by nobody else.
class NotRun(RemoterError):
    """What was to run in a kernel did not come to its end."""


class InternalExec:
    """One at a time; `then(error)` is called when it is over."""

    def __init__(self, link: Link, local_kernel: LocalKernel) -> None:
        """Remember."""
        self._link = link
        self._local_kernel = local_kernel
        self._voice = MessageSigner(b"")
        self.remote_mark = b""  # stands in the parent header of what comes of errands there
        self._request_id = ""  # of the request that is under way
        self._number = 0  # the same in the link's outbox
        self._is_remote = False
        self._waiting_local: tuple[str, OnDone] | None = None  # waits for the kernel here
        self._on_done: OnDone = lambda _error: None

    # --- to the kernels ---

    def run_remotely(self, code: str, then: OnDone) -> None:
        """Run code in the far kernel."""
        self.remote_mark = self._voice.session.encode()
        parts = self._voice.compose("execute_request", _silent(code))
        self._request_id, self._is_remote, self._on_done = _message_id(parts), True, then
        self._number = self._link.send(Channel.SHELL, parts)

    def run_locally(self, code: str, then: OnDone) -> None:
        """Run code in the kernel on this side, which may have to be started."""
        self._waiting_local = code, then
        self._local_kernel.start()

    def on_local_ready(self) -> None:
        """Hear that the kernel on this side is there."""
        wanted, self._waiting_local = self._waiting_local, None
        if wanted:
            code, self._on_done = wanted
            self._is_remote = False
            self._request_id = self._local_kernel.send_request("execute_request", _silent(code))

    def interrupt(self) -> None:
        """Interrupt what is under way."""
        if self._request_id and self._is_remote:
            words = {"order": "interrupt", "cells": [self._request_id]}
            self._link.send(Channel.COMMAND, [to_json(words)])
        elif self._request_id:
            self._local_kernel.interrupt()

    # --- from the kernels ---

    def is_internal(self, parts: Sequence[Bytes]) -> bool:
        """Does this come of an errand there?"""
        return bool(self.remote_mark) and self.remote_mark in bytes(parts[PARENT])

    def on_message(self, parts: Sequence[Bytes]) -> None:
        """Hear what comes of an errand, on either side."""
        header, parent = header_of(parts[HEADER]), header_of(parts[PARENT])
        if header.get("msg_type") != "execute_reply" or parent.get("msg_id") != self._request_id:
            return
        content = content_of(parts)
        if content.get("status") == "ok":
            self._finish(None)
        else:
            said = f"{content.get('ename') or 'interrupted'}: {content.get('evalue') or ''}"
            self._finish(NotRun(f"The kernel did not carry that out ({said.rstrip(': ')})."))

    def on_local_died(self, error: RemoterError) -> None:
        """Hear that the kernel on this side is gone."""
        wanted, self._waiting_local = self._waiting_local, None
        if wanted:
            wanted[1](error)
        elif self._request_id and not self._is_remote:
            self._finish(error)

    def on_link_failed(self, error: RemoterError, *, is_over: bool) -> None:
        """Hear that the link gave up; what may be running there is waited for."""
        if self._request_id and self._is_remote:
            withdrawn = self._link.cancel_unsent(Channel.SHELL, self._number)
            if withdrawn or is_over or not self._link.ever_connected:
                self._finish(error)

    def _finish(self, error: RemoterError | None) -> None:
        then, self._on_done, self._request_id = self._on_done, lambda _error: None, ""
        then(error)


def _silent(code: str) -> dict[str, Any]:
    return {
        "code": code,
        "silent": True,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }


def _message_id(parts: Sequence[Bytes]) -> str:
    return str(header_of(parts[HEADER])["msg_id"])
