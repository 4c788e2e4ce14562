"""Records of a journal on their way to somebody who asked for them (pure).

They come one after the other, and in pieces of any size: what is not whole yet waits for
the next piece.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import CHANNELS, MOST_ITEM, Bytes, Channel

_HEAD = struct.Struct("!QdBBB8sQ")  # number, time, channel, flags, front, size


class JournalEntry(NamedTuple):
    """One thing that was said in a session; `time` is in seconds since 1970.

    is_mark: it says something of the journal itself: what is missing, or went to make room.
    """

    number: int
    time: float
    channel: Channel
    is_from_client: bool
    client: bytes
    body: Bytes
    is_marker: bool = False


def encode_entry(said: JournalEntry) -> bytes:
    """Return the bytes of a record."""
    flags = (said.channel, said.is_from_client, said.is_marker)
    return _HEAD.pack(said.number, said.time, *flags, said.client, len(said.body)) + said.body


def split_entries(data: bytes, most: int = MOST_ITEM) -> tuple[list[JournalEntry], bytes]:
    """Return the whole records of some bytes, and what is left of a torn one.

    `most` is how many bytes a record can have; one that claims more is a `ProtocolError`, before
    anybody waits for the rest of it.
    """
    found, at = [], 0
    while len(data) - at >= _HEAD.size:
        number, when, channel, is_from_front, is_mark, front, size = _HEAD.unpack_from(data, at)
        if channel not in CHANNELS:
            raise ProtocolError(f"A record of a channel that is not known ({channel}).")
        if size > most:
            raise ProtocolError(f"A record claims {size:,} bytes, and its journal has {most:,}.")
        begin = at + _HEAD.size
        if begin + size > len(data):
            break
        body = data[begin : begin + size]
        said = JournalEntry(number, when, CHANNELS[channel], bool(is_from_front), front, body)
        found.append(said._replace(is_marker=bool(is_mark)))
        at = begin + size
    return found, data[at:]
