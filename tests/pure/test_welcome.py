"""What the evaluator says first is understood, or refused in a sentence."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as some

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.session.dealer_socket import check_received, parse_welcome
from remoter_kernel.protocol.frames import FrameHeader, MessageType, encode_message, to_json

numbers = some.one_of(
    some.none(),
    some.text(),
    some.lists(some.one_of(some.integers(), some.floats(), some.text(), some.none()), max_size=3),
)


def test_a_greeting_has_two_pairs_of_numbers():
    """Bulk, then urgent."""
    frame = encode_message(
        FrameHeader(MessageType.WELCOME), to_json({"seen": [1, 2], "begin": [3, 4], "id": "x"})
    )
    assert parse_welcome(frame)[1:] == ((1, 2), (3, 4))


@given(numbers, numbers)
def test_numbers_that_cannot_be_are_refused(seen, begin):
    """Infinity, words, too few, too many, too large: nothing but a ProtocolError."""
    frame = encode_message(
        FrameHeader(MessageType.WELCOME), to_json({"seen": seen, "begin": begin})
    )
    with contextlib.suppress(ProtocolError):
        for pair in parse_welcome(frame)[1:]:
            assert all(0 <= number < 2**63 for number in pair)


@given(some.binary(max_size=200))
def test_garbage_is_refused(data):
    """Before anything was agreed on, anybody may be there."""
    with pytest.raises(ProtocolError):
        parse_welcome(data)


def test_who_hangs_up_says_why():
    """The reason is shown, and not more of it than a sentence or two."""
    frame = encode_message(
        FrameHeader(MessageType.BYE), to_json({"why": "It was stopped. " + "x" * 10_000})
    )
    with pytest.raises(ProtocolError, match=r"It was stopped\.") as caught:
        parse_welcome(frame)
    assert len(str(caught.value)) < 1100


def test_a_greeting_that_has_seen_more_than_was_said_is_refused():
    """Nothing of what is said afterwards would be taken for new."""
    check_received((3, 2), (3, 2))
    for seen in ((4, 2), (3, 3), (2**62, 0)):
        with pytest.raises(ProtocolError, match="was said here"):
            check_received(seen, (3, 2))
