"""Takes in what the child says: writes it down, and notes what has become of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.daemon.pieces import in_pieces
from remoter_kernel.daemon.records import EVERYONE
from remoter_kernel.errors import TooLarge
from remoter_kernel.wire.frames import Bytes, Channel, pack
from remoter_kernel.wire.messages import HEADER, PARENT, execution_state, header_of
from remoter_kernel.wire.requests import BUSY, IDLE, Stage, has_idle

if TYPE_CHECKING:
    from remoter_kernel.daemon.adoption import Adoption
    from remoter_kernel.daemon.desk import Desk
    from remoter_kernel.daemon.door import Door
    from remoter_kernel.daemon.journal import Journal
    from remoter_kernel.daemon.past import Past
    from remoter_kernel.daemon.speaker import Speaker


class Ear:
    """Hears one child after the other."""

    def __init__(
        self, journal: Journal, door: Door, desk: Desk, speaker: Speaker, past: Past | None
    ) -> None:
        """Remember; `past` is that of an evaluator that died, and left its child."""
        self.adoption: Adoption | None = None  # while it is under way
        self.cut_short = ""  # the cell that is interrupted because its kernel ends
        self._journal = journal
        self._door = door
        self._speaker = speaker
        self._requests = desk.requests
        self._interrupts = desk.interrupts
        self._past = past

    def hear(self, channel: Channel, parts: list[Bytes]) -> None:
        """Take in one message."""
        if self.cut_short and self._ends_what_is_cut_short(channel, parts):
            return  # nobody has interrupted it: it hears that its kernel has ended, and why
        if channel is Channel.IOPUB:
            self._hear_published(parts)
        else:
            self._hear_answer(channel, parts)

    def _ends_what_is_cut_short(self, channel: Channel, parts: list[Bytes]) -> bool:
        if header_of(parts[PARENT]).get("msg_id") != self.cut_short:
            return False
        is_error = channel is Channel.IOPUB and header_of(parts[HEADER])["msg_type"] == "error"
        is_idle = channel is Channel.IOPUB and execution_state(parts) == IDLE
        return channel is Channel.SHELL or is_error or is_idle

    def _hear_published(self, parts: list[Bytes]) -> None:
        state = execution_state(parts)
        if self.adoption:
            self.adoption.hear(parts)
        asker = str(header_of(parts[PARENT]).get("msg_id", "")) if state else ""
        # Of what was not given to it the kernel can know only from an evaluator before this one.
        least = Stage.RECEIVED if self._past and self._past.is_damaged else Stage.SENT
        is_of_one = state in {BUSY, IDLE}
        heard = self._requests.on_state(asker, state, least=least) if is_of_one else None
        if heard and not heard.is_new:
            return  # clients take a second idle for that of a later cell
        try:
            for piece in in_pieces(parts):
                self._journal.append(Channel.IOPUB, pack(piece))
        except TooLarge as error:
            self._speaker.tell_missing(parts, error)
        if state == IDLE:
            self._door.is_hurried = True
            self._interrupts.note_idle(asker)
        elif heard:
            if self.adoption:
                self.adoption.end(heard.passed)
            self._interrupts.note_begin(asker, is_running=False)
        elif b'"execute_input"' in bytes(parts[HEADER]):
            self._interrupts.note_begin(str(header_of(parts[PARENT]).get("msg_id", "")))

    def _hear_answer(self, channel: Channel, parts: list[Bytes]) -> None:
        """Hear a reply, or a question."""
        asker = str(header_of(parts[PARENT]).get("msg_id", ""))
        request = self._requests.get(asker)
        if request and not (request.is_open and request.stage >= Stage.SENT):
            request = None
        if request is None and not (self._past and self._past.is_damaged):
            return
        self._door.is_hurried |= channel is not Channel.SHELL  # after a reply comes "idle"
        if channel is not Channel.STDIN:
            self._requests.touch()
            if request:
                is_sure = self.adoption is None  # else a reply before it may be lost
                if self.adoption:
                    self.adoption.hear_reply(request)
                self._requests.on_reply(asker, has_idle=has_idle(parts), is_from_kernel=is_sure)
                self._interrupts.note_end(request, parts)
            elif self._past:
                self._past.answered.add(asker)
        try:
            body = pack(parts)
        except TooLarge as error:
            body = self._speaker.in_place_of(parts, error)
        # Where nobody can tell any more who asked, each client knows whether it did.
        self._journal.append(channel, body, front=request.client if request else EVERYONE)
