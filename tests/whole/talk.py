"""Hold a conversation with a kernel, write down every message, and make two such comparable.

A *case* is a few requests; its transcript lists the messages of each channel under the
request that caused them, in the order in which they came.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jupyter_client.blocking.client import BlockingKernelClient

LIMIT = 20.0  # seconds that any one request may take
QUIET = 0.05  # seconds of silence that end a case

Message = dict[str, Any]
Transcript = dict[str, list[Message]]  # "iopub under request 1": messages


class GaveUpError(AssertionError):
    """A kernel did not say what a case waited for."""


class Talk:
    """One client's side of a conversation, case by case."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client
        self.heard: list[tuple[str, Message]] = []
        self._requests: list[str] = []  # message ids of this case
        self._before: set[str] = set()  # message ids of the cases before
        self._sockets = {
            "shell": client.shell_channel.socket,
            "iopub": client.iopub_channel.socket,
            "stdin": client.stdin_channel.socket,
            "control": client.control_channel.socket,
        }
        self._poller = zmq.Poller()
        for socket in self._sockets.values():
            self._poller.register(socket, zmq.POLLIN)

    # --- cases ---

    def case(self, says: Callable[[Talk], None]) -> Transcript:
        """Run one case and return what was heard."""
        self.listen(lambda: False, seconds=QUIET)
        self._before.update(self._requests)
        self._requests, self.heard = [], []
        try:
            says(self)
        except GaveUpError as gave_up:
            return {**self._transcript(), "GAVE UP": [{"type": str(gave_up)}]}
        self.listen(lambda: False, seconds=QUIET)
        return self._transcript()

    # --- to the kernel ---

    def send(
        self,
        kind: str,
        content: Mapping[str, Any],
        *,
        channel: str = "shell",
        buffers: Iterable[bytes] = (),
        metadata: Mapping[str, Any] = {},
        header: Mapping[str, Any] = {},
    ) -> str:
        """Send one request and return its id."""
        session = self.client.session
        message = session.msg(kind, dict(content), metadata=dict(metadata))
        message["header"].update(header)
        self._requests.append(message["header"]["msg_id"])
        session.send(self._sockets[channel], message, buffers=list(buffers) or None)
        return str(message["header"]["msg_id"])

    def queue(self, code: str, **options: Any) -> str:
        """Send a cell and do not wait for it."""
        metadata = options.pop("metadata", {})
        header = options.pop("header", {})
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": True,
            **options,
        }
        return self.send("execute_request", content, metadata=metadata, header=header)

    def run(self, code: str, *, answers: Iterable[str] = (), **options: Any) -> None:
        """Run a cell to its end, and answer what it asks."""
        request = self.queue(code, **options)
        for answer in answers:
            asked = len(self._of("stdin"))
            self.listen(partial(self._has_asked, request, asked))
            self.send("input_reply", {"value": answer}, channel="stdin")
        self.done(request)

    def ask(self, kind: str, content: Mapping[str, Any] = {}, **options: Any) -> Message:
        """Send a request that has a reply; return the reply's content."""
        request = self.send(kind, content, **options)
        self.done(request, channel=options.get("channel", "shell"))
        return next(
            dict(message["content"])
            for channel, message in self.heard
            if channel != "iopub" and message["parent_header"].get("msg_id") == request
        )

    def tell(self, kind: str, content: Mapping[str, Any], **options: Any) -> None:
        """Send a message that has no reply, and wait until it has been handled."""
        request = self.send(kind, content, **options)
        self.listen(lambda: self._is_idle(request))

    # --- from the kernel ---

    def done(self, *requests: str, channel: str = "shell") -> None:
        """Wait until these requests have their replies and their idle."""
        self.listen(lambda: all(self._is_done(each, channel) for each in requests))

    def has_begun(self, request: str) -> bool:
        """Does the kernel run this cell, or has it?"""
        return any(
            message["msg_type"] == "execute_input"
            and message["parent_header"].get("msg_id") == request
            for _, message in self.heard
        )

    def until_said(self, text: str) -> None:
        """Wait until this text has come in a stream."""
        self.listen(lambda: any(text in said for said in self._streams()))

    def until_line(self, line: str) -> None:
        """Wait until this line has come in a stream, by itself: "on" is a part of "session"."""
        self.listen(lambda: any(line in said.splitlines() for said in self._streams()))

    def _streams(self) -> Iterator[str]:
        for message in self._of("iopub"):
            if message["msg_type"] == "stream":
                yield message["content"].get("text", "")

    def comm_id(self) -> str:
        """Return the id of the comm that was opened last."""
        opened = [m for m in self._of("iopub") if m["msg_type"] == "comm_open"]
        if not opened:
            message = "no comm was opened"
            raise GaveUpError(message)
        return str(opened[-1]["content"]["comm_id"])

    def listen(self, enough: Callable[[], bool], *, seconds: float = LIMIT) -> None:
        """Take in messages until there is enough; short limits pass in silence."""
        until = time.monotonic() + seconds
        while not enough():
            left = until - time.monotonic()
            if left <= 0:
                if seconds <= QUIET:
                    return
                message = f"waited {seconds:.0f} s"
                raise GaveUpError(message)
            ready = dict(self._poller.poll(int(left * 1000) + 1))
            for channel, socket in self._sockets.items():
                if socket in ready:
                    _, message = self.client.session.recv(socket)
                    self.heard.append((channel, message))
                    until = max(until, time.monotonic() + min(seconds, QUIET))

    def _has_asked(self, request: str, before: int) -> bool:
        return len(self._of("stdin")) > before or self._is_done(request)

    def _of(self, wanted: str) -> list[Message]:
        return [message for channel, message in self.heard if channel == wanted]

    def _is_done(self, request: str, channel: str = "shell") -> bool:
        return self._is_idle(request) and any(
            message["parent_header"].get("msg_id") == request for message in self._of(channel)
        )

    def _is_idle(self, request: str) -> bool:
        return any(
            message["msg_type"] == "status"
            and message["content"]["execution_state"] == "idle"
            and message["parent_header"].get("msg_id") == request
            for message in self._of("iopub")
        )

    # --- what is comparable ---

    def _transcript(self) -> Transcript:
        transcript: Transcript = {}
        for channel, message in self.heard:
            said = transcript.setdefault(f"{channel} {self._parent(message)}", [])
            told = _comparable(message)
            if said and _are_one_stream(said[-1], told):
                said[-1]["content"]["text"] += told["content"]["text"]
            else:
                said.append(told)
        return {place: [_anonymous(each) for each in said] for place, said in transcript.items()}

    def _parent(self, message: Message) -> str:
        parent = (message.get("parent_header") or {}).get("msg_id")
        if parent in self._requests:
            return f"under request {self._requests.index(parent)}"
        if parent in self._before:
            return "under an earlier case"
        return "under nothing of ours"


def _comparable(message: Message) -> Message:
    """Leave out ids and times, keep everything else."""
    header = message.get("header") or {}
    parent = message.get("parent_header") or {}
    metadata = dict(message.get("metadata") or {})
    if "started" in metadata:
        metadata["started"] = "<time>"
    return {
        "type": message["msg_type"],
        "header": {k: v for k, v in header.items() if k not in ("msg_id", "session", "date")},
        "parent": parent.get("msg_type"),
        "parent keys": sorted(parent),
        "metadata": metadata,
        "content": message.get("content"),
        "buffers": [bytes(buffer) for buffer in message.get("buffers") or ()],
    }


def _are_one_stream(one: Message, next_one: Message) -> bool:
    return (
        one["type"] == next_one["type"] == "stream"
        and one["content"]["name"] == next_one["content"]["name"]
    )


SAME_BUT_FOR = (
    (re.compile(r"ipykernel_\d+"), "ipykernel_<pid>"),
    (re.compile(r"\b\d+(\.\d+)?(e[+-]\d+)? ?(ns|us|µs|μs|ms|s|min)\b"), "<time>"),
    (re.compile(r"\b0x[0-9a-f]{6,16}\b"), "<address>"),
    (re.compile(r"/tmp/remoter-test-\w+"), "<folder>"),
    (re.compile(r"_port\": \d+"), '_port": 1'),
    (re.compile(r"\\nTip: .*?\\n"), r"\\nTip: <any>\\n"),  # IPython's banner has one at random
)
AN_ID = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}(?:_\d+_\d+)?(?![0-9a-f])"
)


def _anonymous(message: Message) -> Message:
    """Replace ids, times, addresses and process numbers, each id by a number of its own."""
    buffers = message.pop("buffers")
    if message["content"].get("ename") == "KeyboardInterrupt":
        # Which line an interrupt meets is chance, of a kernel that runs here, too.
        message["content"]["traceback"] = message["content"]["traceback"][-1:]
    text = json.dumps(message, ensure_ascii=False, sort_keys=True, default=str)
    for pattern, name in SAME_BUT_FOR:
        text = pattern.sub(name, text)
    seen: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[0] not in seen:
            seen.append(match[0])
        return f"<id {seen.index(match[0])}>"

    told: Message = json.loads(AN_ID.sub(number, text))
    with contextlib.suppress(KeyError):
        told["metadata"]["engine"] = "<engine>" if told["metadata"]["engine"] else ""
    told["buffers"] = buffers
    return told
