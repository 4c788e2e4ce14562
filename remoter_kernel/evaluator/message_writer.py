"""Messages that the evaluator makes itself: events, and answers in the kernel's place."""

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

KNOWN = ("msg_id", "msg_type", "session", "username", "date", "version")  # fields of a header
LONG = 1000  # characters of such a field
MOST_INFO = 256 * 1024  # bytes of a kernel_info_reply that are kept: every WELCOME carries them
_log = logging.getLogger(__name__)


class MessageWriter:
    """Writes messages to clients into the journal, with the identity of the kernel."""

    def __init__(self, journal: Journal) -> None:
        self.kernel_info: dict[str, Any] = {}  # empty while there is no kernel
        self._journal = journal
        self._signer = MessageSigner(b"")

    def adopt_identity(self, header: dict[str, Any], kernel_info: dict[str, Any]) -> None:
        """Take over the session and the user's name of a kernel's message."""
        self._signer.set_identity(str(header.get("session", "")), str(header.get("username", "")))
        if len(to_json(kernel_info)) > MOST_INFO:  # a client's own request gets all of it
            kernel_info = {**kernel_info, "banner": "", "help_links": []}
        self.kernel_info = kernel_info

    def describe_identity(self) -> dict[str, Any]:
        """Return the identity with which the proxy has to answer."""
        if not self.kernel_info:
            return {"kernel_info": {}, "session": "", "username": ""}
        return {
            "kernel_info": self.kernel_info,
            "session": self._signer.session,
            "username": self._signer.username,
        }

    def write_event(self, event: str, **words: Any) -> None:
        """Tell clients what has become of the kernel."""
        why = str(words.get("why", "")).partition("\n")[0]  # after that comes what it has printed
        _log.info("Event %s. %s", event, why)
        self._journal.append(Channel.EVENT, pack_parts([to_json({"event": event, **words})]))

    def log_connection(self, client: Client) -> None:
        """Write down that a client came or went; as a client's record, for no other client."""
        words = {"event": "came" if client.pump else "went", "front": client.name.hex()}
        body = pack_parts([to_json(words)])
        self._journal.append(Channel.EVENT, body, client=client.name, is_from_client=True)

    def publish(
        self, kind: str, content: dict[str, Any], parent: dict[str, Any] | None = None
    ) -> None:
        """Publish something on iopub, for all clients."""
        parts = self._signer.compose(kind, content, parent, topic=f"kernel.{kind}".encode())
        self._journal.append(Channel.IOPUB, pack_parts(parts))

    def write_stderr(self, request: Request, sentence: str) -> None:
        """Write a sentence into a cell; under other requests, clients show no outputs."""
        if request.is_cell:
            words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
            self.publish("stream", words, request.header)

    def report_lost_output(self, parts: list[Bytes], error: TooLarge) -> None:
        """Say in a cell which of its outputs is missing, since it is too large."""
        kind, parent = _msg_type(parts), _known_fields(parts, PARENT)
        text = f"[remoter] Something of this cell ({kind}) is missing here. {error}\n"
        if not parent.get("msg_id"):  # no cell shows it: evaluator.log has it
            sys.stderr.write(text)
        self.publish("stream", {"name": "stderr", "text": text}, parent)

    def substitute_reply(self, parts: list[Bytes], error: TooLarge) -> bytes:
        """Return the body of a reply, or question, that says why the kernel's own is too large."""
        kind, parent = _msg_type(parts), _known_fields(parts, PARENT)
        words: dict[str, Any] = {"prompt": f"{error} ", "password": False}
        if kind != "input_request":
            trouble = {"ename": type(error).__name__, "evalue": str(error)}
            words = {"status": "error", **trouble, "traceback": [str(error)]}
        return pack_parts(self._signer.compose(kind, words, parent))

    def reply_refused(
        self, client: Client, head: FrameHeader, body: Bytes, error: Exception
    ) -> None:
        """Answer a request that could not be taken in; without a reply, by a text on stderr."""
        if head.channel is not Channel.SHELL and head.channel is not Channel.CONTROL:
            return
        parts: list[Bytes] = list(unpack_parts(body))
        header = _known_fields(parts, HEADER)
        request = Request(head.channel, parts, header, client=client.name, number=head.number)
        problem = str(error).rstrip(".")
        if not isinstance(error, RemoterError):
            problem = f"{type(error).__name__}: {problem}"
        why = f"This request was not carried out, since it could not be read there: {problem}."
        if str(header.get("msg_type", "")).endswith("_request"):
            self.answer_error(request, "RequestRefused", why)
        elif header.get("msg_id"):
            self.publish("stream", {"name": "stderr", "text": f"[remoter] {why}\n"}, header)

    def write_busy(self, request: Request) -> None:
        """Publish that the kernel is busy with a request, unless clients know that."""
        if BUSY not in request.states:
            request.states.add(BUSY)
            self.publish("status", {"execution_state": BUSY}, request.header)

    def write_idle(self, request: Request) -> None:
        """Publish that the kernel is done with a request."""
        request.states.add(IDLE)  # so that the kernel's own, should it come, is not passed on
        self.publish("status", {"execution_state": IDLE}, request.header)

    def answer_error(self, request: Request, name: str, why: str) -> None:
        """Answer a request with an error: busy, error, reply, idle; no state twice."""
        trouble = {"ename": name, "evalue": why, "traceback": [f"{name}: {why}"]}
        self._answer(request, {"status": "error", **trouble}, trouble)

    def reply_error(self, request: Request, name: str, why: str) -> None:
        """Reply to a cell with an error, and no more: the kernel has published the rest."""
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
    """Write something on one request; if that fails, the others are answered all the same."""
    try:
        say()
    except Exception as error:  # noqa: BLE001 - a request may be odd in any way
        _log.exception("A request cannot be told of: %s", logs.reason(error))


def _known_fields(parts: list[Bytes], which: int) -> dict[str, Any]:
    """Return the fields of a header that clients need, without those that are odd or too long."""
    try:
        header = header_of(parts[which])
    except (ProtocolError, LookupError):
        return {}
    words = {key: header.get(key) for key in KNOWN}
    return {key: word for key, word in words.items() if isinstance(word, str) and len(word) <= LONG}


def _msg_type(parts: list[Bytes]) -> str:
    """Return the type of a message; of an odd reply, the one that its request should have."""
    asked = str(_known_fields(parts, PARENT).get("msg_type", "message"))
    return str(_known_fields(parts, HEADER).get("msg_type") or asked.replace("_request", "_reply"))
