"""Records of a journal as `remoter log` and `outputs` get them over a login's stdout (pure).

They come one after the other, and in pieces of any size: what is not whole yet waits for
the next piece.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import CHANNELS, MOST_ITEM, Bytes, Channel

_HEAD = struct.Struct("!QdBBB8sQ")  # number, time, channel, is_from_client, is_marker, client, size


class JournalEntry(NamedTuple):
    """One record of a session's journal; `time` is in seconds since 1970.

    is_marker: it tells of the journal itself: what is missing, or went to make room.
    """

    number: int
    time: float
    channel: Channel
    is_from_client: bool
    client: bytes
    body: Bytes
    is_marker: bool = False


def encode_entry(entry: JournalEntry) -> bytes:
    """Return the bytes of an entry."""
    flags = (entry.channel, entry.is_from_client, entry.is_marker)
    return _HEAD.pack(entry.number, entry.time, *flags, entry.client, len(entry.body)) + entry.body


def split_entries(data: bytes, most: int = MOST_ITEM) -> tuple[list[JournalEntry], bytes]:
    """Return the whole entries of some bytes, and what is left of a torn one.

    `most` is how many bytes a body can have; one that claims more is a `ProtocolError`, before
    the caller waits for the rest of it.
    """
    found, at = [], 0
    while len(data) - at >= _HEAD.size:
        number, when, channel, is_from_client, is_marker, client, size = _HEAD.unpack_from(data, at)
        if channel not in CHANNELS:
            raise ProtocolError(f"A record of a channel that is not known ({channel}).")
        if size > most:
            raise ProtocolError(f"A record claims {size:,} bytes, and its journal has {most:,}.")
        begin = at + _HEAD.size
        if begin + size > len(data):
            break
        at = begin + size
        origin = CHANNELS[channel], bool(is_from_client), client
        found.append(JournalEntry(number, when, *origin, data[begin:at], bool(is_marker)))
    return found, data[at:]
