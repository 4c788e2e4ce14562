"""Records on their way: in pieces of any size, whole at the end."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.journal_entries import JournalEntry, encode_entry, split_entries

records = st.builds(
    JournalEntry,
    number=st.integers(0, 2**63),
    time=st.floats(0, 1e10),
    channel=st.sampled_from(Channel),
    is_from_client=st.booleans(),
    client=st.binary(min_size=8, max_size=8),
    body=st.binary(max_size=40),
    is_marker=st.booleans(),
)


@given(st.lists(records, max_size=5), st.lists(st.integers(1, 60), max_size=20))
def test_records_come_whole_out_of_any_pieces(said, sizes):
    """However the bytes are cut, the records are those that went in, and nothing is left."""
    data = b"".join(map(encode_entry, said))
    found, rest = [], b""
    for size in [*sizes, len(data)]:
        piece, data = data[:size], data[size:]
        some, rest = split_entries(rest + piece)
        found += some
    assert (found, rest) == (said, b"")


def test_a_channel_that_is_not_known_is_refused():
    """Bytes that are no record are told from one."""
    with pytest.raises(ProtocolError):
        split_entries(b"\xff" * 64)


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused(data):
    """Nothing but a ProtocolError, and what is left is no more than came."""
    with contextlib.suppress(ProtocolError):
        found, rest = split_entries(data, 50)
        assert all(len(said.body) <= 50 for said in found)
        assert len(rest) <= 36 + 50
