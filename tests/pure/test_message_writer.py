"""What the evaluator says in the child's place, whatever the child has said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remoter_kernel.errors import TooLarge
from remoter_kernel.evaluator.message_writer import MessageWriter
from remoter_kernel.protocol.frames import MOST_WORDS, Channel, pack_parts, unpack_parts

ERROR = TooLarge("A message of 3,000 MB is too large to be carried.")
HUGE = json.dumps({"msg_id": "one", "msg_type": "execute_request", "x": "x" * MOST_WORDS}).encode()
ODD = [b"{}", b"[]", b"\xff", b"", b'{"msg_type": 5, "msg_id": {}}', b"[" * 100_000, HUGE]


class Book:
    """A journal that is only a list."""

    def __init__(self) -> None:
        self.said: list[tuple[Channel, list[Any]]] = []

    def append(self, channel: Channel, body: bytes, **_: Any) -> None:
        self.said.append((channel, [bytes(part) for part in unpack_parts(body)]))


@pytest.mark.parametrize("header", ODD)
@pytest.mark.parametrize("parent", ODD)
def test_what_cannot_be_carried_is_told_whatever_its_headers_are(
    header: bytes, parent: bytes
) -> None:
    """In the cell, if it can be known; in a reply, of the type that was asked for."""
    book = Book()
    speaker = MessageWriter(book)  # type: ignore[arg-type]
    parts: list[Any] = [b"", header, parent, b"{}", b"{}"]
    speaker.report_lost_output(parts, ERROR)
    ((channel, told),) = book.said
    assert channel is Channel.IOPUB
    assert b"is missing here. A message of 3,000 MB" in told[4]
    reply = [bytes(part) for part in unpack_parts(speaker.substitute_reply(parts, ERROR))]
    assert json.loads(reply[4])["status"] == "error"
    if parent == HUGE:
        assert json.loads(told[2])["msg_id"] == json.loads(reply[2])["msg_id"] == "one"
    if (header, parent) == (b"{}", HUGE):
        assert json.loads(reply[1])["msg_type"] == "execute_reply"


def test_a_question_that_cannot_be_carried_is_a_question_still() -> None:
    """The cell waits for an answer, and its person reads why this is all there is."""
    speaker = MessageWriter(Book())  # type: ignore[arg-type]
    parts: list[Any] = [b"", b'{"msg_type": "input_request"}', b"{}", b"{}", b"{}"]
    content = json.loads(bytes(unpack_parts(speaker.substitute_reply(parts, ERROR))[4]))
    assert content == {"prompt": f"{ERROR} ", "password": False}


def test_headers_that_are_too_large_are_refused_where_they_are_said() -> None:
    """Whoever hears them would end the wire."""
    with pytest.raises(TooLarge, match=r"whose headers have 1\.0 MB is too large to be carried"):
        pack_parts([b"", HUGE, b"{}", b"{}", b"{}"])
    with pytest.raises(TooLarge, match="1 MB are the most"):
        pack_parts([b"", b"{}", HUGE, b"{}", b"{}"])
    assert pack_parts([b"", b"{}", b"{}", b"{}", HUGE])
