"""A long text in several messages: the same text, and each a message of its own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from remoter_kernel.evaluator.kernel_output import split_stream

HEADER = json.dumps({"msg_id": "a-1", "msg_type": "stream"}).encode()

text = some.text(some.sampled_from('ab \n\r\\"n\b\x1bü€😀\t'), max_size=400)


def message(content: bytes) -> list:
    """Return the parts of a stream message."""
    return [b"stream.stdout", HEADER, b"{}", b"{}", content]


def texts(pieces: list[list]) -> str:
    """Return what a client would show."""
    return "".join(json.loads(bytes(piece[4]))["text"] for piece in pieces)


@given(text, some.booleans(), some.sampled_from([(", ", ": "), (",", ":")]))
def test_pieces_say_what_the_whole_said(said, is_ascii, separators):
    """Whatever is printed, and however its JSON is written, the pieces are that text."""
    words = {"name": "stdout", "text": said}
    content = json.dumps(words, ensure_ascii=is_ascii, separators=separators).encode()
    pieces = split_stream(message(content), 20)
    assert texts(pieces) == said
    assert all(len(bytes(piece[4])) < 20 + 40 for piece in pieces[:-1])
    ids = [json.loads(bytes(piece[1]))["msg_id"] for piece in pieces]
    assert len(set(ids)) == len(ids)


def test_lines_stay_whole():
    """Text with lines is cut where one ends."""
    said = "".join(f"line {number}\n" for number in range(100))
    pieces = split_stream(message(json.dumps({"name": "stdout", "text": said}).encode()), 100)
    assert len(pieces) > 5
    assert all(json.loads(bytes(piece[4]))["text"].endswith("\n") for piece in pieces)


@pytest.mark.parametrize(
    "content",
    [
        {"name": "stdout", "text": "a \n" * 100, "more": "words"},
        {"text": "a \n" * 100, "name": "stdout"},
        {"data": {"text/plain": "a \n" * 100}},
        {"name": "stdout", "text": "x" * 1000},
        {"name": "stdout", "text": "\\" * 1000},
    ],
)
def test_what_is_not_plainly_text_stays_whole(content):
    """Other keys, another order, no place to cut: nothing is touched."""
    parts = message(json.dumps(content).encode())
    assert split_stream(parts, 20) == [parts]
