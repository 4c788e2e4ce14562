"""What the evaluator says itself, in the child's place: notes, and answers to what it cannot."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel import logs
from remoter_kernel.errors import ProtocolError, RemoterError, TooLarge
from remoter_kernel.protocol.frames import (
    Bytes,
    Channel,
    FrameHeader,
    pack_parts,
    to_json,
    unpack_parts,
)
from remoter_kernel.protocol.messages import HEADER, PARENT, MessageSigner, header_of
from remoter_kernel.protocol.requests import BUSY, IDLE, Request

if TYPE_CHECKING:
    from remoter_kernel.evaluator.journal import Journal
    from remoter_kernel.evaluator.listener import Client

KNOWN = ("msg_id", "msg_type", "session", "username", "date", "version")  # words of a header
LONG = 1000  # characters of such a word
MOST_INFO = 256 * 1024  # bytes of what a kernel says of itself: every greeting carries it
_log = logging.getLogger(__name__)


class MessageWriter:
    """Writes into the journal what the fronts should hear; sounds like the child."""

    def __init__(self, journal: Journal) -> None:
        """Remember where it is said."""
        self.kernel_info: dict[str, Any] = {}  # empty while there is no child to sound like
        self._journal = journal
        self._signer = MessageSigner(b"")

    def adopt_identity(self, header: dict[str, Any], kernel_info: dict[str, Any]) -> None:
        """Take over the session and the user's name of a child's message."""
        self._signer.set_identity(str(header.get("session", "")), str(header.get("username", "")))
        if len(to_json(kernel_info)) > MOST_INFO:  # whoever asks the kernel itself hears all of it
            kernel_info = {**kernel_info, "banner": "", "help_links": []}
        self.kernel_info = kernel_info

    def describe_identity(self) -> dict[str, Any]:
        """Return whom the front has to sound like."""
        if not self.kernel_info:
            return {"kernel_info": {}, "session": "", "username": ""}
        return {
            "kernel_info": self.kernel_info,
            "session": self._signer.session,
            "username": self._signer.username,
        }

    def write_event(self, event: str, **words: Any) -> None:
        """Tell the fronts what has become of the child."""
        why = str(words.get("why", "")).partition("\n")[0]  # after that come its own words
        _log.info("Event %s. %s", event, why)
        self._journal.append(Channel.EVENT, pack_parts([to_json({"event": event, **words})]))

    def log_connection(self, client: Client) -> None:
        """Write down that a front came or went; the fronts need not hear of it."""
        words = {"event": "came" if client.pump else "went", "front": client.name.hex()}
        body = pack_parts([to_json(words)])
        self._journal.append(Channel.EVENT, body, client=client.name, is_from_client=True)

    def publish(
        self, kind: str, content: dict[str, Any], parent: dict[str, Any] | None = None
    ) -> None:
        """Say something to all on iopub."""
        parts = self._signer.compose(kind, content, parent, topic=f"kernel.{kind}".encode())
        self._journal.append(Channel.IOPUB, pack_parts(parts))

    def write_stderr(self, request: Request, sentence: str) -> None:
        """Say a sentence in a cell; nobody reads what is said under anything else."""
        if request.is_cell:
            words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
            self.publish("stream", words, request.header)

    def report_lost_output(self, parts: list[Bytes], error: TooLarge) -> None:
        """Say in a cell what the child has published in it that cannot be carried."""
        kind, parent = _msg_type(parts), _parent_header(parts)
        text = f"[remoter] Something of this cell ({kind}) is missing here. {error}\n"
        if not parent.get("msg_id"):  # no cell shows it: the log has it
            sys.stderr.write(text)
        self.publish("stream", {"name": "stderr", "text": text}, parent)

    def substitute_reply(self, parts: list[Bytes], error: TooLarge) -> bytes:
        """Return the body of an answer that says why that of the child cannot be carried."""
        kind, parent = _msg_type(parts), _parent_header(parts)
        words: dict[str, Any] = {"prompt": f"{error} ", "password": False}
        if kind != "input_request":
            trouble = {"ename": type(error).__name__, "evalue": str(error)}
            words = {"status": "error", **trouble, "traceback": [str(error)]}
        return pack_parts(self._signer.compose(kind, words, parent))

    def reply_refused(
        self, client: Client, head: FrameHeader, body: Bytes, error: Exception
    ) -> None:
        """Answer a request that could not be taken in; what has no reply is answered by a text."""
        if head.channel is not Channel.SHELL and head.channel is not Channel.CONTROL:
            return
        parts: list[Bytes] = list(unpack_parts(body))
        header = _known_fields(parts, HEADER)
        request = Request(head.channel, parts, header, client=client.name, number=head.number)
        problem = _error_text(error)
        why = f"This request was not carried out, since it could not be read there: {problem}."
        if str(header.get("msg_type", "")).endswith("_request"):
            self.answer_error(request, "RequestRefused", why)
        elif header.get("msg_id"):
            self.publish("stream", {"name": "stderr", "text": f"[remoter] {why}\n"}, header)

    def write_busy(self, request: Request) -> None:
        """Say that the kernel is busy with a request, unless that was said."""
        if BUSY not in request.states:
            request.states.add(BUSY)
            self.publish("status", {"execution_state": BUSY}, request.header)

    def write_idle(self, request: Request) -> None:
        """Say that the kernel is done with a request."""
        request.states.add(IDLE)  # so that nobody hears it a second time, should it come
        self.publish("status", {"execution_state": IDLE}, request.header)

    def answer_error(self, request: Request, name: str, why: str) -> None:
        """Answer a request with an error: busy, error, reply, idle, without what was heard."""
        trouble = {"ename": name, "evalue": why, "traceback": [f"{name}: {why}"]}
        self._answer(request, {"status": "error", **trouble}, trouble)

    def reply_error(self, request: Request, name: str, why: str) -> None:
        """Reply to a cell with an error, and no more: the kernel has said the rest."""
        trouble = {"ename": name, "evalue": why, "traceback": [f"{name}: {why}"]}
        self.reply(request, {"status": "error", "execution_count": 0, **trouble})

    def answer_aborted(self, request: Request) -> None:
        """Answer a request that is not carried out because one before it failed."""
        self._answer(request, {"status": "aborted"}, None)

    def reply(self, request: Request, content: dict[str, Any]) -> None:
        """Reply to a request, and no more."""
        kind = request.type.replace("_request", "_reply")
        parts = self._signer.compose(kind, content, request.header)
        self._journal.append(request.channel, pack_parts(parts), client=request.client)

    def _answer(
        self, request: Request, reply: dict[str, Any], trouble: dict[str, Any] | None
    ) -> None:
        is_shell = request.channel is Channel.SHELL
        if is_shell:
            self.write_busy(request)
        if request.is_cell:
            reply["execution_count"] = 0
            if trouble:
                self.publish("error", trouble, request.header)
        self.reply(request, reply)
        if is_shell and not request.is_idle:
            self.write_idle(request)


def log_failure_of(say: Callable[[], None]) -> None:
    """Say something of one request; if that goes wrong, the others are answered all the same."""
    try:
        say()
    except Exception as error:  # noqa: BLE001 - a request may be odd in any way
        _log.exception("A request cannot be told of: %s", logs.reason(error))


def _known_fields(parts: list[Bytes], which: int) -> dict[str, Any]:
    """Return what clients need of a header; nothing of one that is none, or too large."""
    try:
        header = header_of(parts[which])
    except (ProtocolError, LookupError):
        return {}
    words = {key: header.get(key) for key in KNOWN}
    return {key: word for key, word in words.items() if isinstance(word, str) and len(word) <= LONG}


def _parent_header(parts: list[Bytes]) -> dict[str, Any]:
    return _known_fields(parts, PARENT)


def _msg_type(parts: list[Bytes]) -> str:
    """Return the type of a message; of an odd answer, the one that was asked for."""
    asked = str(_parent_header(parts).get("msg_type", "message"))
    return str(_known_fields(parts, HEADER).get("msg_type") or asked.replace("_request", "_reply"))


def _error_text(error: Exception) -> str:
    said = str(error).rstrip(".")
    return said if isinstance(error, RemoterError) else f"{type(error).__name__}: {said}"
