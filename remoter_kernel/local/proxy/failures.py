"""Answers what cannot be answered: the link failed, the kernel died, a message cannot be read.

What was never sent is answered with the reason. What may be running there is left alone, unless its
session is gone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import NoSuchSession, ProtocolError, RemoterError
from remoter_kernel.local.login.prompts import NeedsPerson
from remoter_kernel.local.proxy.replies import error_reply
from remoter_kernel.local.proxy.request_queries import (
    find_open_remote,
    first_running_cell,
    shows_output,
    unanswered_remote,
)
from remoter_kernel.local.proxy.sockets import notice_text
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
EXIT_AFTER = 3.0  # seconds from a kernel's death in which somebody may yet ask
EXIT_AFTER_REPLY = 0.3  # seconds between the reply to another cell and this process's own end
MOST_CELLS = 50  # cells of which is known that they have their notice


class OutputsMissing(RemoterError):
    """What was asked of a session is known to nobody there any more."""


class KernelDied(RemoterError):
    """The kernel that ran the notebook is gone, and its variables with it."""


class ReplyMissing(RemoterError):
    """A reply came and could not be read."""


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
        # The next cell that is run dials again, and is the one in which to ask.
        if isinstance(error, NeedsPerson):
            if self.prompter.can_prompt():  # a cell was run while nobody could be asked
                self.link.connect()
                return
            self._fail_until_prompt(error, allows_stdin=allows_stdin)
            error.advice = " ".join([error.advice.removesuffix(RUN_A_CELL), RUN_A_CELL]).strip()
        is_final |= isinstance(error, NoSuchSession)
        for request in unanswered_remote(self.requests):
            was_withdrawn = self.link.cancel_unsent(request.channel, request.number)
            # What has left this machine may be running there; else nobody will answer it.
            if was_withdrawn or is_final or not self.link.ever_connected:
                self.replies.reply_error(request, error)
            elif shows_output(request):  # it may be running there, and sends nothing for now
                self.replies.notify(request.header, str(error))
        if is_final:  # the idle of what has its reply would come from the same session
            for request in self.requests.at(Stage.REPLIED):
                self.replies.send_state(request, IDLE)

    def _fail_until_prompt(self, error: RemoterError, *, allows_stdin: bool) -> None:
        """End what need not wait until somebody can be asked."""
        for request in unanswered_remote(self.requests):
            was_withdrawn = self.link.cancel_unsent(request.channel, request.number)
            if was_withdrawn and self.startup_code.reply_early(request):
                continue
            if was_withdrawn or not allows_stdin:
                self.replies.reply_error(request, error)
            elif shows_output(request):
                where = f"{error.remote}: " if error.remote else ""
                self.replies.notify(request.header, f"{where}{error.what} {RUN_A_CELL}")


def fail_lost_requests(link: Link, requests: Requests, replies: ReplySender) -> None:
    """Answer what one evaluator has confirmed, and the next one knows nothing of."""
    for request in unanswered_remote(requests):
        if link.is_lost_there(request.channel, request.number):
            replies.reply_error(request, OutputsMissing(LOST_THERE))


@dataclass
class DeadKernel:
    """Shows a client that never allows questions its kernel's death: an error, then this exit.

    nbclient and papermill run a notebook to its end or not at all: no cell may run in the kernel
    that follows. Before the exit papermill asks who the kernel is, and shows the cell's error only
    if that is answered.
    """

    reactor: Reactor
    replies: ReplySender
    exit_process: Callable[[], None]
    error: KernelDied | None = None  # while there is one, this process is about to exit

    def on_died(self, why: str) -> None:
        """Exit soon."""
        self.error = KernelDied(why)
        self.reactor.call_later(EXIT_AFTER, self.exit_process)

    def reply_if_dead(self, cell: Request) -> bool:
        """Reply to another cell with the reason, and exit sooner; False: no kernel has died."""
        if self.error is None:
            return False
        self.replies.reply_error(cell, self.error)
        self.reactor.call_later(EXIT_AFTER_REPLY, self.exit_process)
        return True


@dataclass
class UndeliverableMessageNotice:
    """Tells clients of a message of the session that cannot be read: once in each cell.

    It is gone for good, and what followed it is there: whoever waits for it must hear so.
    """

    replies: ReplySender
    requests: Requests
    _shown_in: dict[str, None] = field(default_factory=dict)  # ids of cells, the oldest first

    def report(self, channel: Channel, parts: Sequence[Bytes], error: Exception) -> None:
        """Tell of one message, whose parts may be anything."""
        sentence = str(error).rstrip(".") or "no reason was given"
        is_ours = isinstance(error, RemoterError)
        why = sentence if is_ours else f"{type(error).__name__}: {sentence}"
        header, parent = _header_or_empty(parts, HEADER), _header_or_empty(parts, PARENT)
        kind = header.get("msg_type", channel.name.lower())
        sys.stderr.write(notice_text(f"A message ({kind}) of the session was passed over: {why}."))
        if channel is Channel.SHELL or channel is Channel.CONTROL:
            request = find_open_remote(self.requests, str(parent.get("msg_id", "")))
            if request:
                missing = ReplyMissing(f"The reply came, and could not be taken in here: {why}.")
                self.replies.reply(request, error_reply(request, missing), has_states=True)
        elif channel is Channel.IOPUB and (state := execution_state(parts)):
            # A state needs nothing but its parent: a cell must not stay busy for ever.
            self.replies.publish("status", {"execution_state": state}, parent)
        elif channel is Channel.IOPUB or channel is Channel.STDIN:
            self._show_in(parent, f"Something of this cell ({kind}) is missing here: {why}.")
        elif cell := first_running_cell(self.requests):  # an event: whose it was is not known
            self._show_in(cell.header, f"Something of the session is missing here: {why}.")

    def _show_in(self, cell: dict[str, Any], sentence: str) -> None:
        name = str(cell.get("msg_id", ""))
        if not name or name in self._shown_in:  # of a flood, one line
            return
        # In order of coming: the oldest one is forgotten first.
        self._shown_in[name] = None
        if len(self._shown_in) > MOST_CELLS:
            del self._shown_in[next(iter(self._shown_in))]
        self.replies.notify(cell, sentence)


def _header_or_empty(parts: Sequence[Bytes], which: int) -> dict[str, Any]:
    try:
        return header_of(parts[which])
    except (ProtocolError, LookupError):
        return {}
