"""Code that the front itself runs in a kernel, on either side: silent, and heard by nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import HEADER, PARENT, MessageSigner, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.local.proxy.here.local_kernel import LocalKernel
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.frames import Bytes

    OnDone = Callable[[RemoterError | None], None]


class NotRun(RemoterError):
    """What was to run in a kernel did not come to its end."""


class InternalExec:
    """One at a time; `then(error)` is called when it is over."""

    def __init__(self, link: Link, local_kernel: LocalKernel) -> None:
        """Remember."""
        self._link = link
        self._local_kernel = local_kernel
        self._voice = MessageSigner(b"")
        self._remote_mark = b""  # stands in the parent header of what comes of errands there
        self._request_id = ""  # of the request that is under way
        self._number = 0  # the same in the link's outbox
        self._is_remote = False
        self._waiting_local: tuple[str, OnDone] | None = None  # waits for the kernel here
        self._on_done: OnDone = lambda _error: None

    # --- to the kernels ---

    def run_remotely(self, code: str, then: OnDone) -> None:
        """Run code in the far kernel."""
        self._remote_mark = self._voice.session.encode()
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
        return bool(self._remote_mark) and self._remote_mark in bytes(parts[PARENT])

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
