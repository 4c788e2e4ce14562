"""What the child gets, and when: nothing that is not written, but for an interrupt."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator.listener import Client
from remoter_kernel.evaluator.message_writer import MessageWriter
from remoter_kernel.evaluator.outbox import ClientOutbox
from remoter_kernel.evaluator.records import read_journal
from remoter_kernel.evaluator.request_handler import RequestHandler
from remoter_kernel.protocol.frames import Channel, FrameHeader, MessageType, pack_parts, to_json
from remoter_kernel.protocol.requests import Requests
from remoter_kernel.protocol.stream import ReliableStream
from tests.there.test_journal import ME
from tests.there.test_journal import Desk as Disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.protocol.frames import Bytes


class Child:
    """What a child is given."""

    def __init__(self) -> None:
        self.given: list[Channel] = []
        self.interrupts = 0

    def send(self, channel: Channel, _parts: list[Bytes]) -> None:
        self.given.append(channel)

    def interrupt(self) -> None:
        self.interrupts += 1


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """A journal on a real disk, that is written when `settle` says so."""
    disk = Disk(tmp_path / "journal")
    yield disk
    disk.journal.close()


@pytest.fixture
def child() -> Child:
    """A child that is ready."""
    return Child()


@pytest.fixture
def desk(disk: Disk, child: Child) -> RequestHandler:
    """The desk in front of that child."""
    door: Any = SimpleNamespace(
        reactor=SimpleNamespace(call_later=lambda _seconds, _call: None),
        journal=disk.journal,
        limit_output=lambda _cells: None,
    )
    session: Any = SimpleNamespace(id="7f3a9c")
    desk = RequestHandler(session, door, MessageWriter(disk.journal))
    desk.kernel_for = lambda _channel: cast("Any", child)
    return desk


@pytest.fixture
def guest(disk: Disk) -> Client:
    """A proxy that has no wire at the moment."""
    outbox = ClientOutbox(disk.journal, ME)
    return Client(ME, outbox, ReliableStream(outbox))


def message(kind: str, **content: str) -> bytes:
    """Return the packed parts of a message."""
    header = {"msg_type": kind, "msg_id": kind}
    return pack_parts([b"", *(json.dumps(each).encode() for each in (header, {}, {}, content))])


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL, Channel.STDIN])
def test_what_is_not_written_is_not_passed_on(disk, desk, child, guest, channel):
    """If the evaluator died now, the proxy would say it again: so the child has not got it."""
    desk.on_item(
        guest, FrameHeader(MessageType.ITEM, channel, 5), message("any_request", value="secret")
    )
    assert child.given == []
    assert set(guest.stream.acked.values()) == {0}
    disk.settle()
    assert child.given == [channel]
    assert 5 in guest.stream.acked.values()
    (record,) = read_journal(disk.journal.path)
    assert (record.client_number, b"secret" in record.body) == (5, channel is not Channel.STDIN)


def test_an_interrupt_waits_for_no_disk(disk, desk, child, guest):
    """It reaches the child before it is written."""
    order = pack_parts([to_json({"order": "interrupt"})])
    desk.on_item(guest, FrameHeader(MessageType.ITEM, Channel.COMMAND, 5), order)
    assert child.interrupts == 1
    assert disk.journal.written == 0


def test_what_an_evaluator_before_may_have_passed_on_is_not_passed_on_again(
    disk, desk, child, guest
):
    """It is written and confirmed, and somebody makes sure of it; an answer to a prompt is not."""
    doubts = []
    desk.on_possible_duplicate = doubts.append
    guest.maybe_received = dict.fromkeys(guest.maybe_received, 5)
    desk.on_item(guest, FrameHeader(MessageType.ITEM, Channel.SHELL, 5), message("execute_request"))
    desk.on_item(guest, FrameHeader(MessageType.ITEM, Channel.SHELL, 6), message("execute_request"))
    disk.settle()
    assert [request.number for request in doubts] == [5]
    assert child.given == [Channel.SHELL]


def test_the_table_of_an_evaluator_that_died_is_gone_on_with_also_if_it_is_empty(disk):
    table = Requests()
    reactor = SimpleNamespace(call_later=lambda _seconds, _call: None)
    door: Any = SimpleNamespace(reactor=reactor, journal=disk.journal)
    desk = RequestHandler(cast("Any", None), door, MessageWriter(disk.journal), table)
    assert desk.requests is table


@pytest.mark.parametrize("header", [{}, {"msg_id": 3}, {"msg_id": None}])
def test_a_request_without_an_id_is_refused(desk, guest, header):
    words = {"msg_type": "execute_request", **header}
    body = pack_parts([b"", *(json.dumps(each).encode() for each in (words, {}, {}, {}))])
    with pytest.raises(ProtocolError, match="msg_id"):
        desk.on_item(guest, FrameHeader(MessageType.ITEM, Channel.SHELL, 1), body)
    assert len(desk.requests) == 0
