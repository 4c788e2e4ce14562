"""What comes of a session and cannot be taken in is told to whom it concerns, and passed over."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from remoter_kernel.errors import Overrun, ProtocolError, RemoterError
from remoter_kernel.local.proxy.failures import FailedLink, UndeliverableMessageNotice
from remoter_kernel.local.proxy.replies import ReplySender
from remoter_kernel.local.session.inbound import InboundItems
from remoter_kernel.local.session.iopub_pacer import IopubPacer
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    pack_parts,
    to_json,
)
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    PARENT,
    MessageSigner,
    content_of,
    header_of,
)
from remoter_kernel.protocol.requests import Request, Requests, Stage
from remoter_kernel.protocol.stream import MemoryOutbox, ReliableStream
from tests.pure.test_output_backlog import said, stream


class Side:
    """Whoever takes in what comes of a session; it stumbles over some of it."""

    def __init__(self, *, is_paced: bool) -> None:
        self.now = 0.0
        self.call_later: list[Any] = []
        self.bugs: list[Exception] = []
        self.taken: list[bytes] = []
        self.refused: list[tuple[Channel, str]] = []
        self.reactor: Any = SimpleNamespace(call_later=self._wait, on_bug=self.bugs.append)
        self.pacer = IopubPacer(self.reactor, lambda: self.now, self._deliver) if is_paced else None  # type: ignore[arg-type]
        self.talk = ReliableStream(MemoryOutbox())
        self.talk.begin()
        self.talk.open((0, 0))
        self.talk._connection.granted_credit = 10**9
        self.room = True
        self.flushes = 0
        self.intake = InboundItems(self, self.talk)  # type: ignore[arg-type]
        self.intake.on_connection()

    def _wait(self, _seconds: float, call: Any) -> Any:
        self.call_later.append(call)
        return call

    def _deliver(self, channel: Channel, parts: Any) -> None:
        self.on_item(channel, parts)

    def on_item(self, _channel: Channel, parts: Any) -> None:
        content = bytes(parts[CONTENT])
        if b"poison" in content:
            raise ValueError("a bug")
        self.taken.append(content)

    def has_room(self) -> bool:
        return self.room

    def flush(self) -> None:
        self.flushes += 1

    def on_rejected(self, channel: Channel, _parts: Any, error: Exception) -> None:
        self.refused.append((channel, str(error)))

    def hear(self, number: int, body: bytes, channel: Channel = Channel.IOPUB) -> None:
        """Be the pump."""
        head = FrameHeader(MessageType.ITEM, channel, number, number - 1)
        whole = self.talk.receive(head, body)
        assert whole is not None
        try:
            self.intake.on_item(head, whole)
        except ProtocolError as error:
            self.intake.reject(head, whole, error)

    def go_on(self) -> None:
        """Let time go on until nothing waits."""
        while self.call_later:
            self.now += 10
            self.call_later.pop(0)()


@pytest.mark.parametrize("is_paced", [False, True])
def test_what_cannot_be_taken_in_is_told_and_what_follows_comes_in_order(*, is_paced: bool) -> None:
    """However it comes, at once or after a wait, it is kept in its turn and its credit is given."""
    side = Side(is_paced=is_paced)
    texts = [f"{number} " + "x" * 90_000 for number in range(12)]
    size = 0
    for number, text in enumerate(texts, 1):
        shown = "poison" if number in {3, 9} else text
        body = pack_parts(said("display_data", {"data": shown}))
        size += len(body)
        side.hear(number, body)
    side.go_on()
    assert [json.loads(each)["data"] for each in side.taken] == [
        *texts[:2],
        *texts[3:8],
        *texts[9:],
    ]
    assert side.refused == [(Channel.IOPUB, "a bug")] * 2
    assert [str(bug) for bug in side.bugs] == ["a bug"] * 2
    assert side.talk.acked[Lane.BULK] == 12
    assert side.talk.acked_bytes == size


@pytest.mark.parametrize("is_paced", [False, True])
def test_what_no_evaluator_should_say_is_kept_after_what_waits_before_it(*, is_paced: bool) -> None:
    """An item without parts: what waits before it is kept no sooner than it is given."""
    side = Side(is_paced=is_paced)
    for number in range(1, 8):
        side.hear(number, pack_parts(stream("x" * 90_000, name=f"std{number}")))
    side.hear(8, pack_parts([b"too few"]))
    assert (side.talk.acked[Lane.BULK] == 8) != is_paced
    side.go_on()
    assert side.talk.acked[Lane.BULK] == 8
    assert side.refused == [(Channel.IOPUB, "A message without all its parts.")]
    assert not side.bugs


@pytest.mark.parametrize("is_paced", [False, True])
def test_while_clients_take_nothing_it_gives_no_credit(*, is_paced: bool) -> None:
    """What came is held in order, bad things, too; a question does not wait; then all goes on."""
    side = Side(is_paced=is_paced)
    side.room = False
    number = 0
    for number in range(1, 6):
        side.hear(number, pack_parts(said("display_data", {"data": number})))
    side.hear(6, pack_parts([b"too few"]))
    side.hear(7, pack_parts(said("execute_reply", {"data": 7})), Channel.SHELL)
    head = FrameHeader(MessageType.ITEM, Channel.STDIN, 8, 0)
    side.intake.on_item(head, pack_parts(said("input_request", {"data": 8})))
    assert [json.loads(each)["data"] for each in side.taken] == [8]
    assert side.talk.acked[Lane.BULK] == 0
    assert side.talk.acked_bytes == 0
    assert len(side.call_later) == 1
    side.call_later.pop(0)()
    assert len(side.taken) == 1
    side.room = True
    side.go_on()
    assert [json.loads(each)["data"] for each in side.taken] == [8, 1, 2, 3, 4, 5, 7]
    assert side.talk.acked[Lane.BULK] == 7
    assert side.talk.acked_bytes > 0
    assert side.flushes or is_paced  # a pacer tells of it itself


def test_a_session_that_is_left_behind_gives_what_was_held() -> None:
    """Whether anybody takes it or not."""
    side = Side(is_paced=False)
    side.room = False
    side.hear(1, pack_parts(said("display_data", {"data": 1})))
    side.intake.deliver_all()
    assert len(side.taken) == 1


def test_what_the_session_cannot_read_any_more_is_told() -> None:
    """It sends a note in the place of the record."""
    side = Side(is_paced=False)
    side.on_item = lambda _channel, parts: side.taken.append(bytes(parts[0]))  # type: ignore[method-assign]
    note = to_json({"event": "unreadable", "why": "Record 3 cannot be read."})
    side.hear(1, pack_parts([note]), Channel.EVENT)
    assert side.refused == [(Channel.EVENT, "Record 3 cannot be read.")]
    assert side.talk.acked[Lane.BULK] == 1


class Client:
    """What a client hears."""

    def __init__(self) -> None:
        self.voice = MessageSigner(b"")
        self.heard: list[tuple[str, dict[str, Any], str]] = []
        self.requests = Requests()
        self.mouth = ReplySender(self, "kernel", self.requests)  # type: ignore[arg-type]
        self.refused = UndeliverableMessageNotice(self.mouth, self.requests)

    def ask(self, kind: str, name: str) -> Request:
        parts = said(kind, {"code": "1"})
        parts[HEADER] = to_json({"msg_type": kind, "msg_id": name})
        header = header_of(parts[HEADER])
        request = Request(Channel.SHELL, parts, header, identities=[b"me"])
        return self.requests.add(request, Stage.SENT)

    def publish(self, parts: Any) -> None:
        kind = str(header_of(parts[HEADER])["msg_type"])
        self.heard.append((kind, content_of(parts), header_of(parts[PARENT]).get("msg_id", "")))

    def reply(self, _channel: Channel, identities: list[bytes], parts: Any) -> None:
        assert identities == [b"me"]
        self.publish(parts)


def test_an_output_that_is_missing_is_told_once_in_its_cell() -> None:
    """Not once for each of thousands."""
    client = Client()
    for cell in ("one", "one", "two"):
        client.refused.report(Channel.IOPUB, said("display_data", {}, cell), ValueError("a bug"))
    assert [(kind, cell) for kind, _, cell in client.heard] == [
        ("stream", "one"),
        ("stream", "two"),
    ]
    assert client.heard[0][1]["text"] == (
        "[remoter] Something of this cell (display_data) is missing here: ValueError: a bug.\n"
    )


@pytest.mark.parametrize("kind", ["execute_request", "inspect_request"])
def test_a_reply_that_is_missing_is_answered_by_an_error(kind: str) -> None:
    client = Client()
    request = client.ask(kind, "one")
    reply = said(kind.replace("request", "reply"), {"status": "ok"}, "one")
    client.refused.report(Channel.SHELL, reply, RemoterError("It makes no sense."))
    assert not request.is_open
    kinds = [each for each, _, _ in client.heard]
    expected = ["error"] * (kind == "execute_request") + [kind.replace("request", "reply")]
    assert kinds == expected
    content, asker = client.heard[-1][1:]
    assert (content["status"], asker) == ("error", request.id)
    assert "It makes no sense." in content["evalue"]


def test_a_cell_that_is_idle_becomes_so() -> None:
    """Whatever was wrong with that message."""
    client = Client()
    parts = said("status", {"execution_state": "idle"}, "one")
    client.refused.report(Channel.IOPUB, parts, ValueError("a bug"))
    assert client.heard == [("status", {"execution_state": "idle"}, "one")]


@pytest.mark.parametrize(
    "parts", [[], [b""], [b"", b"\xff", b"[]", b"", b""], [b"", b"{}", b'{"msg_id": 5}', b"", b""]]
)
@pytest.mark.parametrize("channel", list(Channel))
def test_odd_parts_are_told_of_as_far_as_it_can_be(channel: Channel, parts: list[bytes]) -> None:
    """Nothing of them is relied on."""
    client = Client()
    client.refused.report(channel, parts, ProtocolError("It makes no sense."))
    assert all(kind in {"stream", "status"} for kind, _, _ in client.heard)


def test_a_link_that_ends_for_good_is_told_in_the_cell_that_waits() -> None:
    """A session that sends more than it may: the cell may be running there, and hears why."""
    client = Client()
    request = client.ask("execute_request", "one")
    link: Any = SimpleNamespace(cancel_unsent=lambda _channel, _number: False, ever_connected=True)
    nobody: Any = SimpleNamespace()
    failed = FailedLink(link, client.requests, client.mouth, nobody, nobody)
    error = Overrun("The other end sent more than it was given credit for.", "Restart the kernel.")
    failed.fail_pending(error, is_final=False, allows_stdin=True)
    ((kind, content, cell),) = client.heard
    assert (kind, cell) == ("stream", "one")
    assert "more than it was given credit for. Restart the kernel." in content["text"]
    assert request.is_open
