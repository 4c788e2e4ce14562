"""Handles a kernel's messages: appends them to the journal, and moves the requests they tell of.

A long text becomes several messages, so that each has a number of its own. A kernel that prints
much sends megabytes in one message, and only whole messages can be held back or go first. Text is
cut where a line ends, or before a space, in the bytes of its JSON: nothing is parsed. What is not
plainly a stream's text stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from remoter_kernel.errors import TooLarge
from remoter_kernel.evaluator.records import EVERYONE
from remoter_kernel.protocol.frames import Bytes, Channel, pack_parts
from remoter_kernel.protocol.messages import CONTENT, HEADER, KernelMessage
from remoter_kernel.protocol.requests import BUSY, IDLE, Stage, has_idle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.evaluator.recovery import InDoubtRequests, RecoveredState
    from remoter_kernel.evaluator.request_handler import RequestHandler

PIECE = 128 * 1024  # bytes
_NAME_FIRST = re.compile(rb'\{\s*"name"\s*:\s*"std(?:out|err)"\s*,\s*"text"\s*:\s*"')
_END = re.compile(rb'"\s*\}\Z')
_ANOTHER_KEY = re.compile(rb'"\s*,\s*"')  # inside of a JSON string, each quote follows a backslash
_ID = re.compile(rb'("msg_id"\s*:\s*"[^"\\]*)')


class KernelOutputHandler:
    """Handles the messages of one kernel after the other."""

    def __init__(self, handler: RequestHandler, recovered: RecoveredState | None) -> None:
        """`recovered` is that of an evaluator that died, and left its kernel."""
        self.recovery: InDoubtRequests | None = None  # while it is under way
        self.interrupted_at_end = ""  # the cell that is interrupted because its kernel ends
        self._listener = handler.listener
        self._journal = handler.listener.journal
        self._writer = handler.writer
        self._requests = handler.requests
        self._interrupts = handler.interrupts
        self._recovered = recovered

    def on_message(self, message: KernelMessage) -> None:
        """Take in one message."""
        if self.interrupted_at_end and self._is_end_of_interrupted(message):
            return  # no client interrupted it: it gets an error that says why its kernel ended
        if message.channel is Channel.IOPUB:
            self._on_iopub(message)
        else:
            self._on_reply(message)

    def _is_end_of_interrupted(self, message: KernelMessage) -> bool:
        if message.parent_id != self.interrupted_at_end:
            return False
        is_last = message.type == "error" or message.state == IDLE
        return message.channel is Channel.SHELL or (message.channel is Channel.IOPUB and is_last)

    def _on_iopub(self, message: KernelMessage) -> None:
        state, parent_id, parts = message.state, message.parent_id, message.parts
        if self.recovery:
            self.recovery.on_iopub(parts)
        # What this evaluator did not send, the kernel can have only from one before it.
        least = Stage.RECEIVED if self._recovered and self._recovered.is_damaged else Stage.SENT
        is_of_one = state in {BUSY, IDLE}
        change = self._requests.on_state(parent_id, state, least=least) if is_of_one else None
        if change and not change.is_new:
            return  # clients take a second idle for that of a later cell
        # Journaled before `on_idle`: what that sets off must not stand before it in the journal.
        try:
            for piece in split_stream(parts):
                self._journal.append(Channel.IOPUB, pack_parts(piece))
        except TooLarge as error:
            self._writer.report_lost_output(parts, error)
        if state == IDLE:
            self._listener.flush_now = True  # a person sees the cell end: nothing more will follow
            self._interrupts.on_idle(parent_id)
        elif change:
            if self.recovery:
                self.recovery.on_next_request(change.finished_before)
            self._interrupts.on_begin(parent_id, is_running=False)  # busy: it may be a silent one
        elif message.type == "execute_input":
            self._interrupts.on_begin(parent_id)

    def _on_reply(self, message: KernelMessage) -> None:
        """Take in a reply, or a question (`input_request`)."""
        channel, parent_id, parts = message.channel, message.parent_id, message.parts
        request = self._requests.get(parent_id)
        if request and not Stage.SENT <= request.stage < Stage.REPLIED:
            request = None
        if request is None and not (self._recovered and self._recovered.is_damaged):
            return
        # A reply on shell waits for the idle that follows it: both share a frame.
        self._listener.flush_now |= channel is not Channel.SHELL
        if channel is not Channel.STDIN:
            self._requests.mark_activity()
            if request:
                is_sure = self.recovery is None  # else an earlier reply may be lost
                if self.recovery:
                    self.recovery.on_reply(request)
                self._requests.on_reply(parent_id, has_idle=has_idle(parts), is_from_kernel=is_sure)
                self._interrupts.on_reply(request, parts)
            elif self._recovered:
                self._recovered.answered.add(parent_id)
        try:
            body = pack_parts(parts)
        except TooLarge as error:
            body = self._writer.substitute_reply(parts, error)
        # Where a damaged journal cannot tell who asked, all get it: each client knows its own.
        self._journal.append(channel, body, client=request.client if request else EVERYONE)


def split_stream(parts: list[Bytes], most: int = PIECE) -> list[list[Bytes]]:
    """Return a message as one or several; all but the last have about `most` bytes of text."""
    if len(parts) != CONTENT + 1 or len(parts[CONTENT]) <= 2 * most:
        return [parts]
    content = bytes(parts[CONTENT])
    start, end = _NAME_FIRST.match(content), _END.search(content, len(content) - 8)
    if not start or not end or _ANOTHER_KEY.search(content, start.end(), end.start()):
        return [parts]
    opening, closing = content[: start.end()], content[end.start() :]
    header = bytes(parts[HEADER])
    pieces: list[list[Bytes]] = []
    for text in _split_text(content[start.end() : end.start()], most):
        piece = list(parts)
        piece[CONTENT] = b"".join([opening, text, closing])
        if pieces:
            piece[HEADER] = _ID.sub(rb"\g<1>.%d" % len(pieces), header, count=1)
        pieces.append(piece)
    return pieces


def _split_text(text: bytes, most: int) -> Iterator[bytes]:
    begin = 0
    while len(text) - begin > 2 * most:
        # Any backslash and n: also in an escaped backslash before an n, this is no bad place.
        end = text.rfind(b"\\n", begin, begin + most) + len(b"\\n")
        if end <= begin + 1:
            end = text.rfind(b" ", begin + 1, begin + most)
        if end <= begin:
            break
        yield text[begin:end]
        begin = end
    yield text[begin:]
