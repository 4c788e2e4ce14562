"""Clients of a listener: what makes no sense ends one connection; who has left costs little."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator.listener import Listener
from remoter_kernel.evaluator.message_writer import MessageWriter
from remoter_kernel.evaluator.records import read_journal
from remoter_kernel.evaluator.recovery import RecoveredState
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    decode_messages,
    encode_message,
    from_json,
    pack_parts,
    to_json,
    unpack_parts,
)
from remoter_kernel.protocol.messages import MessageSigner
from tests.there.test_journal import Desk as Disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remoter_kernel.evaluator.listener import Client
    from remoter_kernel.protocol.frames import Bytes

ME = b"front--1"


class Calls:
    """A reactor whose timers nobody makes go off."""

    def __init__(self) -> None:
        self.bugs: list[Exception] = []
        self.on_bug = self.bugs.append

    def call_later(self, _seconds: float, _call: Any) -> Any:
        return SimpleNamespace(cancel=lambda: None)

    def call_soon_threadsafe(self, call: Any) -> None:
        call()


class Ground:
    """A door on a real journal; what it sends is kept, and what it takes in is written down."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.reactor = disk, Calls()
        session: Any = SimpleNamespace(id="7f3a9c")
        self.door = Listener(self.reactor, session, disk.journal)  # type: ignore[arg-type]
        self.speaker = MessageWriter(disk.journal)
        self.door.on_item = self.take
        self.door.on_refused = self.speaker.reply_refused
        self.sent: list[bytes] = []
        self.door._send = lambda _identity, frame: self.sent.append(frame)  # type: ignore[assignment, method-assign]
        self.trouble: Exception | None = None
        self.taken: list[int] = []

    def take(self, guest: Client, head: FrameHeader, body: Bytes) -> None:
        """Be what the evaluator does with an item: write it, then say that it is kept."""
        if b"poison" in bytes(body) and self.trouble:
            raise self.trouble
        self.taken.append(head.number)
        self.disk.journal.append(
            head.channel,
            bytes(body),
            client=guest.name,
            client_number=head.number,
            is_from_client=True,
            then=lambda: guest.stream.ack(Lane.BULK, head.number, len(body)),
        )

    def greet(self, name: bytes = ME, seen: list[int] | None = None) -> None:
        """Let a proxy come in."""
        words = {"front": name.hex(), "seen": seen}
        self.door._handshake(name, encode_message(FrameHeader(MessageType.HELLO), to_json(words)))
        self.hear(FrameHeader(MessageType.ACK, credit=10**9), name=name)

    def hear(
        self, *heads: FrameHeader, bodies: tuple[bytes, ...] = (b"",), name: bytes = ME
    ) -> None:
        """Let a proxy say something, in one frame."""
        frame = b"".join(
            encode_message(head, body) for head, body in zip(heads, bodies, strict=True)
        )
        self.door._pumps[name].on_frame(frame)

    def said(self) -> list[tuple[FrameHeader, bytes]]:
        """Return what was sent since."""
        self.door._flush()
        sent, self.sent[:] = list(self.sent), []
        return [(head, bytes(body)) for frame in sent for head, body in decode_messages(frame)]

    def close(self) -> None:
        self.door._socket.close()
        self.door._zap.socket.close()
        self.door._context.term()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    disk = Disk(tmp_path / "journal")
    ground = Ground(disk)
    yield ground
    ground.close()
    disk.journal.close()


def request(code: str, kind: str = "execute_request") -> bytes:
    """Return the packed parts of a request."""
    return pack_parts(MessageSigner(b"").compose(kind, {"code": code}))


def item(number: int, channel: Channel = Channel.SHELL) -> FrameHeader:
    return FrameHeader(MessageType.ITEM, channel, number, number - 1)


def messages(said: list[tuple[FrameHeader, bytes]]) -> list[tuple[str, dict[str, Any]]]:
    """Return type and content of what came for Jupyter."""
    found = []
    for head, body in said:
        if head.type is MessageType.ITEM and head.channel in {Channel.IOPUB, Channel.SHELL}:
            _, header, _, _, content, *_ = map(bytes, unpack_parts(body))
            found.append((json.loads(header)["msg_type"], json.loads(content)))
    return found


@pytest.mark.parametrize("trouble", [KeyError("a bug"), ProtocolError("It makes no sense.")])
def test_a_request_that_cannot_be_taken_in_is_answered_and_passed_over(
    ground: Ground, trouble: Exception
) -> None:
    """Whoever asked hears why; its neighbours are taken in; it is kept once those before it are."""
    ground.trouble = trouble
    ground.greet()
    bodies = request("first"), request("poison"), request("last")
    ground.hear(item(1), item(2), item(3), bodies=bodies)
    guest = ground.door.clients[ME]
    assert guest.stream.acked[Lane.BULK] == 0  # nothing is on the disk so far
    is_breach = isinstance(trouble, ProtocolError)
    if is_breach:
        assert ground.said()[-1][0].type is MessageType.BYE
        assert guest.pump is None
        ground.greet(seen=[0, 0])
        assert guest.stream.received[Lane.BULK] == 2
        ground.hear(item(3), bodies=(request("last"),))
    assert ground.taken == [1, 3]
    assert len(ground.reactor.bugs) == (not is_breach)
    ground.disk.settle()
    assert guest.stream.acked[Lane.BULK] == 3
    said = messages(ground.said())
    assert [kind for kind, _ in said] == ["status", "error", "execute_reply", "status"]
    assert said[2][1]["ename"] == "RequestRefused"
    assert "could not be read there" in said[2][1]["evalue"]


def test_an_evaluator_that_comes_after_this_one_does_not_ask_for_it_again(
    ground: Ground, tmp_path: Path
) -> None:
    """That it was here is written down; it is no request, and no damage."""
    ground.trouble = ValueError("a bug")
    ground.greet()
    ground.hear(item(1), bodies=(request("poison"),))
    order = FrameHeader(MessageType.ITEM, Channel.COMMAND, 2, 0)
    ground.hear(order, bodies=(pack_parts([b'{"order": "poison"}']),))
    ground.disk.settle()
    past = RecoveredState()
    for record in read_journal(tmp_path / "journal"):
        past.apply(record)
    assert past.seen[ME] == {Lane.BULK: 1, Lane.URGENT: 2}
    assert not list(past.requests)
    assert past.is_seen_exact(ME, Lane.BULK)


def test_no_word_of_an_answer_to_a_question_is_told(ground: Ground, tmp_path: Path) -> None:
    """It may be a password, and an error may quote it."""
    ground.trouble = ValueError("poison 123456")
    ground.greet()
    head = FrameHeader(MessageType.ITEM, Channel.STDIN, 1, 0)
    ground.hear(head, bodies=(request("poison 123456", "input_reply"),))
    ground.disk.settle()
    assert [str(bug) for bug in ground.reactor.bugs] == ["An answer to a question (ValueError)."]
    assert b"123456" not in (tmp_path / "journal").read_bytes()


def test_what_an_error_cannot_be_told_of_is_passed_over_all_the_same(ground: Ground) -> None:
    """Whoever tells may stumble over the same thing."""
    ground.trouble = ValueError("a bug")

    def fail(*_: Any) -> None:
        raise LookupError

    ground.door.on_refused = fail
    ground.greet()
    ground.hear(item(1), item(2), bodies=(request("poison"), request("next")))
    assert ground.taken == [2]
    assert [type(bug) for bug in ground.reactor.bugs] == [ValueError, LookupError]


def test_a_record_that_the_disk_does_not_give_is_told_in_its_place(ground: Ground) -> None:
    """It was asked for often enough; all that follows comes."""
    journal = ground.disk.journal
    bad = journal.last + 2
    ground.greet(seen=[0, 0])
    for text in ("before", "unreadable", "behind"):
        ground.speaker.publish("stream", {"name": "stdout", "text": text})
    journal.unreadable[bad] = "Input/output error"
    said = ground.said()
    assert [content["text"] for _, content in messages(said)] == ["before", "behind"]
    notes = [from_json(unpack_parts(body)[0]) for head, body in said
             if head.channel is Channel.EVENT
             and head.type is MessageType.ITEM]  # fmt: skip
    assert [(note["event"], note["number"]) for note in notes] == [("unreadable", bad)]
    assert ground.door.clients[ME].pump is not None


def calls_per_output(ground: Ground, departed: int) -> int:
    """Return how many calls it takes to send ten outputs to one proxy, where others have left."""
    for number in range(departed):
        name = number.to_bytes(8, "big")
        ground.greet(name)
        ground.speaker.publish("stream", {"name": "stdout", "text": "x"})
        ground.door._flush()
        ground.door._pumps[name].end(ProtocolError("It hung up."))
    ground.greet()
    ground.said()
    count = 0

    def note(_frame: object, _event: str, _argument: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        for _ in range(10):
            ground.speaker.publish("stream", {"name": "stdout", "text": "x"})
            ground.door.flush_soon()
            ground.door._flush()
    finally:
        sys.setprofile(None)
    said = messages(ground.said())
    assert len(said) == 10
    return count


def test_clients_that_have_left_cost_nothing(tmp_path: Path) -> None:
    """An output costs the same whether ten or a thousand have left; the last one is waited for."""
    counts = []
    for departed in (0, 10, 1000):
        disk = Disk(tmp_path / f"journal {departed}")
        ground = Ground(disk)
        counts.append(calls_per_output(ground, departed))
        ground.close()
        disk.journal.close()
    none, few, many = counts
    assert many == few
    assert many < 2 * none


def test_one_that_left_and_comes_back_has_all_that_was_said(ground: Ground) -> None:
    """Also where others have left since, so that nobody has looked after it."""
    ground.greet(seen=[0, 0])
    for number in range(300):
        ground.speaker.publish("display_data", {"data": number})
        if number % 100 == 50:
            for name in (ME, b"another1", b"another2"):
                pump = ground.door._pumps.get(name)
                if pump:
                    pump.end(ProtocolError("It hung up."))
                else:
                    ground.greet(name)
        ground.door._flush()
    ground.sent.clear()
    if ME in ground.door._pumps:
        ground.door._pumps[ME].end(ProtocolError("It hung up."))
    ground.greet(seen=[0, 0])
    shown: list[int] = []
    while found := [content["data"] for _, content in messages(ground.said())]:
        shown += found
    assert shown == list(range(300))


def test_what_was_half_said_by_one_that_left_is_not_kept(ground: Ground) -> None:
    """It begins anew when it comes back."""
    ground.greet()
    ground.hear(FrameHeader(MessageType.PART, Channel.SHELL, 1, 0), bodies=(bytes(65536),))
    talk = ground.door.clients[ME].stream
    assert talk._connection.partial_in
    ground.door._pumps[ME].end(ProtocolError("It hung up."))
    assert not talk._connection.partial_in
