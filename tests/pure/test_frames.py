"""The words of the wire: what is said is what is heard, and nothing else is heard at all."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from remoter_kernel.errors import ProtocolError, TooLarge
from remoter_kernel.protocol.frames import (
    MOST_ITEM,
    MOST_PARTS,
    MOST_WORDS,
    Channel,
    FrameHeader,
    MessageType,
    decode_messages,
    encode_message,
    from_json,
    pack_parts,
    to_json,
    unpack_parts,
)

numbers = some.integers(0, 2**64 - 1)
heads = some.builds(
    FrameHeader,
    some.sampled_from(MessageType),
    some.sampled_from(Channel),
    numbers,
    numbers,
    numbers,
    numbers,
    numbers,
    numbers,
    numbers,
)


@given(some.lists(some.tuples(heads, some.binary()), min_size=1))
def test_sayings_come_back_as_they_were(sayings):
    """Encoding, joining and decoding sayings changes nothing."""
    frame = b"".join(encode_message(head, body) for head, body in sayings)
    assert [(head, bytes(body)) for head, body in decode_messages(frame)] == sayings


@given(some.lists(some.binary()))
def test_parts_come_back_byte_for_byte(parts):
    """Packing and unpacking changes no byte."""
    assert [bytes(part) for part in unpack_parts(pack_parts(parts))] == parts


@given(some.binary())
def test_garbage_is_refused_or_read_but_never_breaks(garbage):
    """Any bytes in any place are read or are a ProtocolError."""
    for read in (lambda frame: list(decode_messages(frame)), unpack_parts, from_json):
        with contextlib.suppress(ProtocolError):
            read(garbage)


@given(some.lists(some.binary(), min_size=1), some.data())
def test_a_truncated_body_is_refused(parts, data):
    """A body that lost its end is never taken for a shorter one."""
    body = pack_parts(parts)
    length = data.draw(some.integers(0, len(body) - 1))
    with pytest.raises(ProtocolError):
        unpack_parts(body[:length])


def test_another_protocol_number_is_a_polite_sentence():
    """A peer of another version is told which two versions met."""
    frame = bytearray(encode_message(FrameHeader(MessageType.PING)))
    frame[2] = 9
    with pytest.raises(ProtocolError, match="protocol 9, this one speaks 1"):
        list(decode_messages(bytes(frame)))


@given(heads, some.binary(), some.data())
def test_a_truncated_frame_is_refused(head, body, data):
    """A frame that lost its end is never taken for a shorter one."""
    frame = encode_message(head, body)
    length = data.draw(some.integers(0, len(frame) - 1))
    with pytest.raises(ProtocolError):
        list(decode_messages(frame[:length]))


def test_json_that_is_no_object_is_refused():
    """A greeting is an object."""
    assert from_json(to_json({"a": 1})) == {"a": 1}
    with pytest.raises(ProtocolError):
        from_json(b"[1]")


@pytest.mark.parametrize("count", [0, 5, 8, 9, 10_001, MOST_PARTS])
def test_many_parts_come_back(count):
    """As many as a message may have."""
    assert [bytes(part) for part in unpack_parts(pack_parts([b"x"] * count))] == [b"x"] * count


def test_what_is_more_than_is_carried_is_refused_by_who_packs_it():
    """Who sends it hears that in a sentence; who is sent it all the same does not take it."""
    with pytest.raises(TooLarge, match=r"65,537 buffers is too large to be carried"):
        pack_parts([b""] * (MOST_PARTS + 1))
    with pytest.raises(TooLarge, match=r"2,147 MB are the most"):
        pack_parts([b"", Long()])
    with pytest.raises(ProtocolError):
        unpack_parts(struct.pack("!I", MOST_PARTS + 1) + bytes(8 * (MOST_PARTS + 1)))
    with pytest.raises(ProtocolError):
        from_json(b'"' + b"x" * MOST_WORDS + b'"')


class Long(bytes):
    """A part that nobody has the memory for."""

    __slots__ = ()

    def __len__(self):
        return MOST_ITEM
