"""Answers what cannot be answered: a dead kernel, a link that failed, a message that is no use.

What never left this side is answered with the reason. What may be running there is not touched,
unless its session is gone.

Tells clients of what came from the session and could not be taken in here. It is gone for good, and
what followed it is there: whoever waits for it must hear so.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import NoSuchSession, ProtocolError, RemoterError
from remoter_kernel.local.login.prompts import NeedsPerson
from remoter_kernel.local.proxy import canned_replies
from remoter_kernel.local.proxy.request_queries import (
    find_open_remote,
    shows_output,
    unanswered_remote,
)
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import HEADER, PARENT, execution_state, header_of
from remoter_kernel.protocol.requests import IDLE, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.local.proxy.client_startup_code import ClientStartupCode
    from remoter_kernel.local.proxy.prompter import StdinPrompter
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request, Requests

LOST_THERE = (
    "The evaluator of this session was killed while its disk took nothing, and with it went the "
    "reply to this; outputs may be missing. It was not run again."
)
RUN_A_CELL = "Run a cell to be asked."
EXIT_AFTER = 3.0  # seconds in which somebody may yet ask
EXIT_AFTER_REPLY = 0.3  # seconds between the answer to another cell and the front's own end

MOST_CELLS = 50  # that have been told


@dataclass
class FailedLink:
    """Answers what waits when the link has failed."""

    link: Link
    requests: Requests
    replies: ReplySender
    prompter: StdinPrompter
    startup_code: ClientStartupCode

    def fail_pending(self, error: RemoterError, *, is_final: bool, allows_stdin: bool) -> None:
        """Answer what will not be answered from there.

        `is_final`: nothing of the session will ever come; `allows_stdin`: are there clients that
        allow questions? One that never does (nbclient) has nobody who would run another cell.
        """
        if isinstance(error, NeedsPerson):
            if self.prompter.can_prompt():  # a cell was run while nobody could be asked
                self.link.connect()
                return
            self._fail_until_prompt(error, allows_stdin=allows_stdin)
            error.advice = " ".join([error.advice.removesuffix(RUN_A_CELL), RUN_A_CELL]).strip()
        is_final |= isinstance(error, NoSuchSession)
        for request in unanswered_remote(self.requests):
            was_withdrawn = self.link.cancel_unsent(request.channel, request.number)
            if was_withdrawn or is_final or not self.link.ever_connected:
                self.replies.reply_error(request, error)
            elif shows_output(request):  # it may be running there, and does not say so any more
                self._write_stderr(request, str(error))
        if is_final:  # an idle that is still to come will not come any more
            for request in self.requests.at(Stage.REPLIED):
                self.replies.publish("status", {"execution_state": IDLE}, request.header)

    def _fail_until_prompt(self, error: RemoterError, *, allows_stdin: bool) -> None:
        """Nobody can be asked for now: end what need not wait."""
        for request in unanswered_remote(self.requests):
            is_unsaid = self.link.cancel_unsent(request.channel, request.number)
            if is_unsaid and self.startup_code.reply_early(request):
                continue
            if is_unsaid or not allows_stdin:
                self.replies.reply_error(request, error)
            elif shows_output(request):
                where = f"{error.remote}: " if error.remote else ""
                self._write_stderr(request, f"{where}{error.what} Run a cell to be asked.")

    def _write_stderr(self, request: Request, sentence: str) -> None:
        words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
        self.replies.publish("stream", words, request.header)


class OutputsMissing(RemoterError):
    """What was asked of a session is known to nobody there any more."""


def answer_what_is_lost_there(link: Link, requests: Requests, mouth: ReplySender) -> None:
    """Answer what an evaluator had confirmed, and its successor has never heard of."""
    for request in unanswered_remote(requests):
        if link.is_lost_there(request.channel, request.number):
            mouth.reply_error(request, OutputsMissing(LOST_THERE))


class KernelDied(RemoterError):
    """The kernel that ran the notebook is gone, and its variables with it."""


class DeadKernel:
    """What a client that never allows questions hears of a kernel that has died: why, then nothing.

    nbclient and papermill run a notebook to its end or not at all. They should see their kernel
    die, as they would see it of a local one, and no cell run in the one that follows it. Before
    that papermill asks who the kernel is, and shows the cell's error only if it gets an answer.
    """

    def __init__(
        self, reactor: Reactor, replies: ReplySender, exit_process: Callable[[], None]
    ) -> None:
        """`on_died` begins."""
        self._reactor = reactor
        self._replies = replies
        self._exit = exit_process
        self._error: KernelDied | None = None

    @property
    def is_dead(self) -> bool:
        """Is the kernel dead, and this front about to follow it?"""
        return self._error is not None

    def on_died(self, why: str) -> None:
        """Hear that the kernel has died."""
        self._error = KernelDied(why)
        self._reactor.call_later(EXIT_AFTER, self._exit)

    def reply_if_dead(self, cell: Request) -> bool:
        """Answer another cell with the reason, and leave; False: there is none."""
        if self._error is None:
            return False
        self._replies.reply_error(cell, self._error)
        self._reactor.call_later(EXIT_AFTER_REPLY, self._exit)
        return True


class UndeliverableMessageNotice:
    """Says so once in each cell, and in the place of each reply."""

    def __init__(self, replies: ReplySender, requests: Requests) -> None:
        """`requests` is the proxy's table."""
        self._replies = replies
        self._requests = requests
        self._shown_in: dict[str, None] = {}  # ids of cells

    def report(self, channel: Channel, parts: Sequence[Bytes], error: Exception) -> None:
        """Tell of one item, whose parts may be of any kind."""
        said = str(error).rstrip(".") or "no reason was given"
        why = said if isinstance(error, RemoterError) else f"{type(error).__name__}: {said}"
        header, parent = _header_or_empty(parts, HEADER), _header_or_empty(parts, PARENT)
        kind = header.get("msg_type", channel.name.lower())
        sys.stderr.write(f"[remoter] A message ({kind}) of the session was passed over: {why}.\n")
        if channel is Channel.SHELL or channel is Channel.CONTROL:
            self._reply_missing(parent, f"The reply came, and could not be taken in here: {why}.")
        elif channel is Channel.IOPUB and (state := execution_state(parts)):
            self._replies.publish("status", {"execution_state": state}, parent)
        elif channel is Channel.IOPUB or channel is Channel.STDIN:
            self._show_in(parent, f"Something of this cell ({kind}) is missing here: {why}.")
        elif cell := self._replies.running_cell():  # whose it was is not known
            self._show_in(cell.header, f"Something of the session is missing here: {why}.")

    def _reply_missing(self, parent: dict[str, Any], why: str) -> None:
        request = find_open_remote(self._requests, str(parent.get("msg_id", "")))
        if request is None:
            return
        trouble = canned_replies.error_content("ReplyMissing", why)
        reply = {"status": "error", **trouble}
        if request.is_cell:
            reply |= {"execution_count": 0, "user_expressions": {}, "payload": []}
        self._replies.finish_cell(request, reply, trouble if request.is_cell else None)

    def _show_in(self, cell: dict[str, Any], sentence: str) -> None:
        name = str(cell.get("msg_id", ""))
        if not name or name in self._shown_in:
            return
        self._shown_in[name] = None
        if len(self._shown_in) > MOST_CELLS:
            del self._shown_in[next(iter(self._shown_in))]
        words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
        self._replies.publish("stream", words, cell)


def _header_or_empty(parts: Sequence[Bytes], which: int) -> dict[str, Any]:
    try:
        return header_of(parts[which])
    except (ProtocolError, LookupError):
        return {}
