"""Runs code in a session without Jupyter: what `remoter run`, `check` and `demo` need."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoteLacks, RemoterError, Unreachable
from remoter_kernel.front.link import Link, State
from remoter_kernel.wire.frames import Channel, from_json, to_json
from remoter_kernel.wire.messages import (
    HEADER,
    PARENT,
    TOPIC,
    Voice,
    content_of,
    header_of,
)
from remoter_kernel.wire.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.front.dialer import SessionDialer

READY_WITHIN = 90.0  # seconds: a kernel on a cold network disk takes its time
LEAVE_WITHIN = 3.0  # seconds


@dataclass
class _Cell:
    """What is running: whom its outputs go to, and its reply once that is there."""

    id: str
    show: Callable[[str, dict[str, Any]], None]
    ask: Callable[[str, bool], str] | None
    reply: dict[str, Any] | None = None
    is_idle: bool = False


class Runner:
    """One session of its own, from `start` to `stop`. Blocks; belongs to one thread."""

    def __init__(self, dialer: SessionDialer) -> None:
        """Remember; `start` begins."""
        self.dialer = dialer
        self.reactor = Reactor()
        self.link = Link(self.reactor, dialer)
        self.kernel_info: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}  # how long each step of the start took
        self._voice = Voice(b"")
        self._trouble: RemoterError | None = None
        self._cell: _Cell | None = None
        self.link.on_item = self._hear
        self.link.on_change = self._note_change

    def start(self) -> None:
        """Connect and wait until the kernel is ready; a `RemoterError` says why it is not."""
        began = time.monotonic()
        self.link.wake()
        limit = began + READY_WITHIN
        self.reactor.run_until(lambda: bool(self.kernel_info or self._trouble), limit)
        if self._trouble:
            raise self._trouble
        if not self.kernel_info:
            raise RemoteLacks(
                f"The kernel was not ready within {READY_WITHIN:.0f} seconds.",
                "Try again, or see with `remoter check` how far it comes.",
                remote=self.dialer.remote.name,
            )
        self.seconds["kernel"] = time.monotonic() - began

    def run(
        self,
        code: str,
        show: Callable[[str, dict[str, Any]], None],
        ask: Callable[[str, bool], str] | None = None,
    ) -> dict[str, Any]:
        """Run code; `show(kind, content)` gets each output as it comes. Return the reply.

        `ask(prompt, is_secret)` answers `input()`. Ctrl-C interrupts the far side.
        """
        words = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": ask is not None,
            "stop_on_error": True,
        }
        parts = self._voice.compose("execute_request", words)
        cell = self._cell = _Cell(header_of(parts[HEADER])["msg_id"], show, ask)
        self.link.say(Channel.SHELL, parts)
        before = signal.signal(signal.SIGINT, lambda *_: self.reactor.call(self.interrupt))
        try:
            self.reactor.run_until(lambda: bool((cell.reply and cell.is_idle) or self._trouble))
        finally:
            signal.signal(signal.SIGINT, before)
        if cell.reply is None and self._trouble:
            raise self._trouble
        return cell.reply or {}

    def interrupt(self) -> None:
        """Interrupt what is running there."""
        self.link.say(Channel.ORDER, [to_json({"order": "interrupt"})])

    def stop(self) -> None:
        """End the session, wait until that is heard, and close."""
        if self.link.has_met:
            self.link.say(Channel.ORDER, [to_json({"order": "stop"})])
            limit = time.monotonic() + LEAVE_WITHIN
            self.reactor.run_until(lambda: not self.link.unacknowledged, limit)
        self.close()

    def close(self) -> None:
        """Give everything back; the session stays."""
        self.link.close()
        self.dialer.close()
        self.reactor.close()

    def _hear(self, channel: Channel, parts: list[memoryview]) -> None:
        if channel is Channel.NOTE:
            self._hear_note(from_json(parts[TOPIC]))
            return
        cell = self._cell
        if cell is None or header_of(parts[PARENT]).get("msg_id") != cell.id:
            return
        kind = str(header_of(parts[HEADER]).get("msg_type", ""))
        content = content_of(parts)
        if channel is Channel.SHELL:
            cell.reply = content
        elif channel is Channel.STDIN and cell.ask:
            answer = cell.ask(str(content.get("prompt", "")), bool(content.get("password")))
            self.link.say(Channel.STDIN, self._voice.compose("input_reply", {"value": answer}))
        elif kind == "status":
            cell.is_idle = content.get("execution_state") == "idle"
        else:
            cell.show(kind, content)

    def _hear_note(self, words: dict[str, Any]) -> None:
        if words.get("event") == "ready":
            self.kernel_info = dict(words["kernel_info"])
        elif words.get("event") == "failed":
            remote = self.dialer.remote.name
            self._trouble = RemoteLacks(str(words.get("why")), remote=remote)

    def _note_change(self, state: State) -> None:
        if state is State.UP:
            welcome = self.link.welcome
            self._hear_note({"event": welcome.get("state"), **welcome})
        elif state is State.FAILED:
            error = self.link.error or Unreachable("The link failed.")
            self._trouble = error
