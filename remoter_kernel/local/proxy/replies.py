"""What the proxy itself sends to Jupyter's clients: replies, errors, text in cells, states.

Busy and idle go out once for each request, whoever sends them first: this process in the remote
kernel's place, or that kernel.
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from remoter_kernel import __version__
from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.local.proxy.request_queries import first_running_cell
from remoter_kernel.local.proxy.sockets import notice_text
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import HEADER, PARENT, execution_state, header_of
from remoter_kernel.protocol.requests import BUSY, IDLE, Request, Requests, Stage
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.local.proxy.sockets import Sockets
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor

Header = dict[str, Any]
IopubMessage = tuple[str, dict[str, Any]]  # type and content of a message on iopub
Result = TypeVar("Result")

BUSY_AND_IDLE = {BUSY, IDLE}
EMPTY_REPLIES: dict[str, dict[str, Any]] = {
    "complete_request": {"matches": [], "metadata": {}},
    "inspect_request": {"found": False, "data": {}, "metadata": {}},
    "history_request": {"history": []},
    "comm_info_request": {"comms": {}},
}
# What a client sends while a person types; a late answer is worse than an empty one.
INTERACTIVE_REQUESTS = {
    "is_complete_request",
    "complete_request",
    "inspect_request",
    "history_request",
}
# By these a client colours text and names a script, before the kernel says so itself.
MIME_TYPE_AND_EXTENSION = {"python": ("text/x-python", ".py"), "R": ("text/x-r-source", ".r")}


class ReplySender:
    """Sends with the sockets' signer, and notes in the table what clients have heard."""

    def __init__(self, sockets: Sockets, kernel_id: str, requests: Requests | None = None) -> None:
        self._sockets = sockets
        self._kernel_id = kernel_id
        self._requests = Requests() if requests is None else requests
        self.last_state = ""  # what clients take for the kernel's state

    # Replies ---------------------------------------------------------------------------

    def reply(
        self,
        request: Request,
        content: dict[str, Any],
        *,
        has_states: bool = False,
        end: Stage = Stage.DONE,
        why: str = "answered on this side",
    ) -> None:
        """Send busy, the error of a cell, the reply, idle; the request is at its `end` then.

        `has_states`: the remote kernel sends busy and idle itself.
        """
        # What was sent is the remote kernel's still: its late reply finds the request over.
        request.is_here |= request.stage < Stage.QUEUED
        if not has_states:
            self.send_state(request, BUSY)
        if request.is_cell and content.get("status") == "error":
            # A kernel sends a cell's error twice: clients show that on iopub, not the reply's.
            error = {key: content[key] for key in ("ename", "evalue", "traceback")}
            self.publish("error", error, request.header)
        kind = request.type.replace("_request", "_reply")
        reply = self._sockets.voice.compose(kind, content, request.header)
        self._sockets.reply(request.channel, request.identities, reply)
        if has_states:
            self._on_replied(request, why)
        else:
            self.send_state(request, IDLE)
            self._requests.move(request, end, why)

    def reply_error(self, request: Request, error: RemoterError) -> None:
        """Reply with the reason why nothing comes of a request; empty where that harms nobody."""
        reply = empty_reply(request) or error_reply(request, error)
        self.reply(request, reply, end=Stage.FAILED, why=type(error).__name__)

    def reject(self, request: Request, error: RemoterError) -> None:
        """Refuse what cannot be sent; what has no reply (of a widget) is answered by a text."""
        if request.type.endswith("_request"):
            self.reply_error(request, error)
            return
        # Many clients show no stream whose parent is a widget's message: the log has it, too.
        sys.stderr.write(notice_text(str(error)))
        self.send_state(request, BUSY)
        self.notify(request.header, str(error))
        self.send_state(request, IDLE)
        self._requests.move(request, Stage.FAILED, type(error).__name__)

    def reply_aborted(self, request: Request) -> None:
        """Reply to a cell as a kernel does where one before it has failed."""
        content = {"status": "aborted", "execution_count": 0}
        self.reply(request, content, end=Stage.CANCELLED, why="one before it failed")

    def send_input_request(self, request: Request, content: dict[str, Any]) -> str:
        """Put a question to whoever has sent a request; return the message's id."""
        parts = self._sockets.voice.compose("input_request", content, request.header)
        # A kernel knows our session and could count our messages: it must not guess the id of
        # this question and give its own question the same one.
        name = secrets.token_hex(16)
        parts[HEADER] = to_json({**header_of(parts[HEADER]), "msg_id": name})
        self._sockets.reply(Channel.STDIN, request.identities, parts)
        return name

    # On iopub --------------------------------------------------------------------------

    def publish(self, kind: str, content: dict[str, Any], header: Header | None = None) -> None:
        """Send a message to all on iopub; `header`: that of the request in which it stands.

        A state that clients have heard of this request is not sent again.
        """
        parent = header or {}
        name, state = str(parent.get("msg_id", "")), content.get("execution_state")
        is_state = kind == "status" and state in BUSY_AND_IDLE and bool(name)
        if is_state and not self._requests.on_local_state(name, str(state)):
            return
        self._compose_and_publish(kind, content, header)
        # Any kernel sends this idle, too, in the middle of a cell: an interrupt is over soon.
        if state == IDLE and parent.get("msg_type") != "interrupt_request":
            self.republish_busy(name)

    def send_state(self, request: Request, state: str) -> None:
        """Publish busy or idle in a request, unless clients have heard it."""
        self.publish("status", {"execution_state": state}, request.header)

    def write(self, header: Header, text: str, name: str = "stderr") -> None:
        """Print text in the cell with this header."""
        self.publish("stream", {"name": name, "text": text}, header)

    def notify(self, header: Header, sentence: str) -> None:
        """Print a line of ours in the cell with this header."""
        self.write(header, notice_text(sentence))

    def republish_busy(self, ended: str = "") -> None:
        """Say again that a cell runs; `ended`: the id of the request whose idle was just sent.

        Clients take any `idle` for the kernel's state, also that of a request which the other
        kernel, or this process, has answered beside the cell.
        """
        cell = first_running_cell(self._requests, but=ended)
        if cell:
            self._requests.on_local_state(cell.id, BUSY)
            self._compose_and_publish("status", {"execution_state": BUSY}, cell.header)

    def _compose_and_publish(
        self, kind: str, content: dict[str, Any], header: Header | None
    ) -> None:
        # As ipykernel has them: some clients subscribe to one kind alone.
        topic = f"kernel.{self._kernel_id}.{kind}".encode()
        if kind == "status":
            self.last_state = str(content.get("execution_state"))
        self._sockets.publish(self._sockets.voice.compose(kind, content, header, topic=topic))

    # The local kernel's messages -------------------------------------------------------

    def forward_local(self, channel: Channel, request: Request | None, parts: list[Bytes]) -> None:
        """Send on what the local kernel sent; `request`: whose it is, else it is for all on iopub.

        It gets the remote kernel's session: some clients drop messages of any other one.
        """
        voice = self._sockets.voice
        header = {**header_of(parts[HEADER]), "session": voice.session, "username": voice.username}
        parts[HEADER] = to_json(header)
        if channel is Channel.IOPUB:
            state = execution_state(parts)
            name = str(header_of(parts[PARENT]).get("msg_id", ""))
            if state not in BUSY_AND_IDLE or self._requests.on_local_state(name, state):
                self.last_state = state or self.last_state
                self._sockets.publish(parts)
        elif request is not None:
            self._sockets.reply(channel, request.identities, parts)
            if channel is not Channel.STDIN:
                self._on_replied(request, "answered by the kernel on this side")

    def _on_replied(self, request: Request, why: str) -> None:
        # Reply and idle come by two sockets: either may be the last one.
        self._requests.move(request, Stage.DONE if request.is_idle else Stage.REPLIED, why)


@dataclass
class AnsweredCell:
    """A cell that this process answers itself: busy, its code, what it prints, its reply, idle."""

    replies: ReplySender
    request: Request
    count: int  # its execution count

    def start(self) -> None:
        """Say that it runs; other clients are shown what was typed."""
        self.replies.send_state(self.request, BUSY)
        code = str(self.request.content.get("code", ""))
        self.publish("execute_input", {"code": code, "execution_count": self.count})

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        """Send a message of it on iopub."""
        self.replies.publish(kind, content, self.request.header)

    def write(self, text: str, name: str = "stdout") -> None:
        """Print text in it."""
        self.replies.write(self.request.header, text, name)

    def finish(self, messages: Iterable[IopubMessage] = (), payload: Sequence[Any] = ()) -> None:
        """Publish what came of it, and reply; `payload`: what its client is to do then."""
        for kind, content in messages:
            self.publish(kind, content)
        reply = {"execution_count": self.count, "payload": list(payload)}
        self.replies.reply(self.request, {"status": "ok", "user_expressions": {}, **reply})

    def fail(self, error: RemoterError) -> None:
        """Reply with an error."""
        reply = {"execution_count": self.count, "payload": []}
        self.replies.reply(self.request, {"status": "error", **reply, **error_content(error)})


def run_in_thread(
    reactor: Reactor,
    name: str,
    work: Callable[[], Result],
    on_result: Callable[[Result], None],
    on_error: Callable[[RemoterError], None],
) -> None:
    """Do the work of a cell in a thread; one of the two is called in the proxy's own then."""

    def run() -> None:
        try:
            result = work()
        except RemoterError as error:
            reactor.call_soon_threadsafe(partial(on_error, error))
        except Exception as error:  # noqa: BLE001 - a bug, too, must end the cell
            unexpected = f"That failed unexpectedly: {type(error).__name__}: {error}"
            reactor.call_soon_threadsafe(partial(on_error, RemoterError(unexpected)))
        else:
            reactor.call_soon_threadsafe(partial(on_result, result))

    Thread(run, name=name).start()


# The contents of replies (pure) -------------------------------------------------------------


def cached_kernel_info(last_seen: dict[str, Any] | None, language: str) -> dict[str, Any]:
    """Return what is known of the remote kernel: its last answer, else its language alone."""
    if last_seen:
        return last_seen
    mimetype, extension = MIME_TYPE_AND_EXTENSION.get(language, ("text/plain", ".txt"))
    return {
        "status": "ok",
        "protocol_version": "5.4",
        "implementation": "remoter",
        "implementation_version": __version__,
        "language_info": {
            "name": language,
            "version": "",
            "mimetype": mimetype,
            "file_extension": extension,
        },
        "banner": "A remote kernel; it says more of itself once it is reached.",
        "help_links": [],
        "supported_features": [],
        "debugger": False,
    }


def empty_reply(request: Request) -> dict[str, Any] | None:
    """Return the reply that harms nobody, or None where there is none."""
    if request.type == "is_complete_request":
        return {"status": "unknown"}
    if request.type not in EMPTY_REPLIES:
        return None
    reply = {"status": "ok", **EMPTY_REPLIES[request.type]}
    if request.type == "complete_request":
        try:
            cursor = request.content.get("cursor_pos", 0)
        except ProtocolError:  # odd, and of no weight for an empty answer
            cursor = 0
        reply |= {"cursor_start": cursor, "cursor_end": cursor}
    return reply


def error_reply(request: Request, error: RemoterError) -> dict[str, Any]:
    """Return the reply to a request that has failed."""
    reply = {"status": "error", **error_content(error)}
    if request.is_cell:  # clients read the count of any reply to a cell; 0 numbers none
        reply |= {"execution_count": 0, "user_expressions": {}, "payload": []}
    return reply


def error_content(error: RemoterError) -> dict[str, Any]:
    """Return the content of an `error` message: a sentence, no traceback of ours."""
    name, sentence = error.name or type(error).__name__, str(error)
    return {
        "ename": name,
        "evalue": sentence,
        "traceback": [f"\x1b[0;31m{name}\x1b[0m: {sentence}"],
    }
