"""What the evaluator says itself, in the child's place: notes, and answers to what it cannot."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.wire.frames import Bytes, Channel, pack, to_json
from remoter_kernel.wire.messages import HEADER, PARENT, Voice, header_of

if TYPE_CHECKING:
    from remoter_kernel.daemon.door import Guest
    from remoter_kernel.daemon.journal import Journal
    from remoter_kernel.errors import TooLarge

MOST_INFO = 256 * 1024  # bytes of what a kernel says of itself: every greeting carries it
_log = logging.getLogger(__name__)


class Request(NamedTuple):
    """Something a front asked of the child and has no answer to yet."""

    front: bytes
    channel: Channel
    number: int
    parts: list[Bytes]
    header: dict[str, Any]


class Speaker:
    """Writes into the journal what the fronts should hear; sounds like the child."""

    def __init__(self, journal: Journal) -> None:
        """Remember where it is said."""
        self.kernel_info: dict[str, Any] = {}  # empty while there is no child to sound like
        self._journal = journal
        self._voice = Voice(b"")

    def sound_like(self, header: dict[str, Any], kernel_info: dict[str, Any]) -> None:
        """Take over the session and the user's name of a child's message."""
        self._voice.speak_as(str(header.get("session", "")), str(header.get("username", "")))
        if len(to_json(kernel_info)) > MOST_INFO:  # whoever asks the kernel itself hears all of it
            kernel_info = {**kernel_info, "banner": "", "help_links": []}
        self.kernel_info = kernel_info

    def describe(self) -> dict[str, Any]:
        """Return whom the front has to sound like."""
        if not self.kernel_info:
            return {"kernel_info": {}, "session": "", "username": ""}
        return {
            "kernel_info": self.kernel_info,
            "session": self._voice.session,
            "username": self._voice.username,
        }

    def note(self, event: str, **words: Any) -> None:
        """Tell the fronts what has become of the child."""
        why = str(words.get("why", "")).partition("\n")[0]  # after that come its own words
        _log.info("Event %s. %s", event, why)
        self._journal.append(Channel.NOTE, pack([to_json({"event": event, **words})]))

    def note_visit(self, guest: Guest) -> None:
        """Write down that a front came or went; the fronts need not hear of it."""
        words = {"event": "came" if guest.pump else "went", "front": guest.name.hex()}
        body = pack([to_json(words)])
        self._journal.append(Channel.NOTE, body, front=guest.name, is_from_front=True)

    def publish(
        self, kind: str, content: dict[str, Any], parent: dict[str, Any] | None = None
    ) -> None:
        """Say something to all on iopub."""
        parts = self._voice.compose(kind, content, parent, topic=f"kernel.{kind}".encode())
        self._journal.append(Channel.IOPUB, pack(parts))

    def tell(self, request: Request, sentence: str) -> None:
        """Say a sentence in a cell; nobody reads what is said under anything else."""
        if request.header.get("msg_type") == "execute_request":
            words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
            self.publish("stream", words, request.header)

    def tell_missing(self, parts: list[Bytes], error: TooLarge) -> None:
        """Say in a cell what the child has published in it that cannot be carried."""
        kind = header_of(parts[HEADER]).get("msg_type")
        text = f"[remoter] Something of this cell ({kind}) is missing here. {error}\n"
        self.publish("stream", {"name": "stderr", "text": text}, header_of(parts[PARENT]))

    def in_place_of(self, parts: list[Bytes], error: TooLarge) -> bytes:
        """Return the body of an answer that says why that of the child cannot be carried."""
        trouble = {"ename": type(error).__name__, "evalue": str(error), "traceback": [str(error)]}
        kind = str(header_of(parts[HEADER]).get("msg_type"))
        return pack(
            self._voice.compose(kind, {"status": "error", **trouble}, header_of(parts[PARENT]))
        )

    def end(self, request: Request) -> None:
        """Say that the child is done with a request."""
        self.publish("status", {"execution_state": "idle"}, request.header)

    def answer_error(
        self,
        request: Request,
        name: str,
        why: str,
        *,
        has_begun: bool = False,
        has_ended: bool = False,
    ) -> None:
        """Answer a request with an error: error, reply, idle (unless that was said)."""
        trouble = {"ename": name, "evalue": why, "traceback": [f"{name}: {why}"]}
        reply = {"status": "error", **trouble}
        self._answer(request, reply, trouble, has_begun=has_begun, has_ended=has_ended)

    def answer_aborted(self, request: Request) -> None:
        """Answer a request that is not carried out because one before it failed."""
        self._answer(request, {"status": "aborted"}, None, has_begun=False)

    def reply(self, request: Request, content: dict[str, Any]) -> None:
        """Reply to a request, and no more."""
        kind = str(request.header.get("msg_type", "")).replace("_request", "_reply")
        parts = self._voice.compose(kind, content, request.header)
        self._journal.append(request.channel, pack(parts), front=request.front)

    def _answer(
        self,
        request: Request,
        reply: dict[str, Any],
        trouble: dict[str, Any] | None,
        *,
        has_begun: bool,
        has_ended: bool = False,
    ) -> None:
        kind = str(request.header.get("msg_type", ""))
        is_shell = request.channel is Channel.SHELL
        if is_shell and not has_begun:
            self.publish("status", {"execution_state": "busy"}, request.header)
        if kind == "execute_request":
            reply["execution_count"] = 0
            if trouble:
                self.publish("error", trouble, request.header)
        self.reply(request, reply)
        if is_shell and not has_ended:
            self.end(request)
