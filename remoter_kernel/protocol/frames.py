"""Wire format: a ZeroMQ frame holds one message or several, each a header and a body (pure).

A header has a fixed size, so that nothing needs to be parsed to be numbered. A body
is either JSON (`HELLO`, `WELCOME`, `BYE`) or packed parts (`ITEM`): what it holds
of a Jupyter message stays byte for byte what the sender made it.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from remoter_kernel.errors import ProtocolError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROTOCOL = 1  # stands in the first frame of every message
MAGIC = b"rk"

Bytes = Union[bytes, memoryview]

_HEAD = struct.Struct("!2sBBBxQQQQQQQQ")  # 70 bytes
_COUNT = struct.Struct("!I")
_LENGTH = struct.Struct("!Q")
_HEADER, _PARENT = 1, 2  # which parts of a Jupyter message its headers are
# Made once, for the numbers of parts that most messages have.
_FEW = tuple(struct.Struct(f"!I{count}Q") for count in range(9))

# What one end may make the other hold. The sender refuses what is more, so that a person is told;
# to the receiver it is a breach of the protocol.
MOST_BUFFERS = 65_536  # of one message
MOST_PARTS = 5 + MOST_BUFFERS  # its topic, header, parent header, metadata and content come first
MOST_ITEM = 2**31 - 2**16  # bytes of one item: one read of a journal gives no more
MOST_WORDS = 1024 * 1024  # bytes of JSON of our own: greetings, events, commands
MOST_FRAME = 1024 * 1024  # bytes: 64 KiB of items at most, or one greeting


class MessageType(IntEnum):
    """What a message is for."""

    HELLO = 1  # of a proxy: its name, what it has received
    WELCOME = 2  # of the evaluator: what it has received, the kernel's state
    ITEM = 3  # one numbered item
    ACK = 4  # nothing but numbers and credit
    PING = 5
    PONG = 6
    BYE = 7  # this connection ends, and why
    PART = 8  # a slice of an item that is too large to go in one piece; its last is an ITEM


class Channel(IntEnum):
    """Where an item belongs. The first four are Jupyter's."""

    SHELL = 0
    CONTROL = 1
    STDIN = 2
    IOPUB = 3
    EVENT = 4  # the evaluator's: ready, died, failed
    COMMAND = 5  # the proxy's: interrupt, restart, stop


class Lane(IntEnum):
    """Order is kept inside a lane; the urgent one never waits for the other.

    So an interrupt passes megabytes of outputs that wait for credit.
    """

    BULK = 0
    URGENT = 1


# A dict is several times faster than MessageType(...), and this is done for every message.
_MESSAGE_TYPES = {int(kind): kind for kind in MessageType}
CHANNELS = {int(channel): channel for channel in Channel}

LANE = {
    Channel.SHELL: Lane.BULK,
    Channel.IOPUB: Lane.BULK,
    Channel.EVENT: Lane.BULK,
    Channel.CONTROL: Lane.URGENT,
    Channel.STDIN: Lane.URGENT,
    Channel.COMMAND: Lane.URGENT,
}


class FrameHeader(NamedTuple):
    """The header of a message. Every message carries all of its sender's numbers.

    number, previous: this item, and the one before it in its lane; 0 where there is none.
    barrier: the last bulk item that was there before this urgent one overtook it.
    acked_bulk, acked_urgent: the sender keeps all up to these; the receiver may forget them.
    offset: where in the item this slice of it begins, in bytes.
    credit: bulk bytes that the receiver may send by this connection, from its beginning on.
    """

    type: MessageType
    channel: Channel = Channel.EVENT
    number: int = 0
    previous: int = 0
    barrier: int = 0
    offset: int = 0
    acked_bulk: int = 0
    acked_urgent: int = 0
    credit: int = 0


def encode_message(head: FrameHeader, body: Bytes = b"") -> bytes:
    """Return the bytes of one message; several may simply stand one after the other."""
    return _HEAD.pack(MAGIC, PROTOCOL, *head, len(body)) + body


def decode_messages(frame: Bytes) -> Iterator[tuple[FrameHeader, memoryview]]:
    """Yield the messages of a frame; a `ProtocolError` tells where it stops making sense."""
    view = memoryview(frame)
    if not view:
        raise ProtocolError("An empty frame arrived.")
    while view:  # views only: a frame's bytes are not copied
        if len(view) < _HEAD.size:
            message = f"A message began with {len(view)} bytes where {_HEAD.size} were due."
            raise ProtocolError(message)
        magic, protocol, kind, channel, *numbers, size = _HEAD.unpack_from(view)
        if magic != MAGIC or protocol != PROTOCOL:
            raise _wrong_protocol(magic, protocol)
        try:
            head = FrameHeader(_MESSAGE_TYPES[kind], CHANNELS[channel], *numbers)
        except KeyError as error:
            message = f"A message of a kind or channel that is not known ({kind}, {channel})."
            raise ProtocolError(message) from error
        end = _HEAD.size + size
        if len(view) < end:
            raise ProtocolError(f"A body of {size} bytes arrived in {len(view) - _HEAD.size}.")
        yield head, view[_HEAD.size : end]
        view = view[end:]


def _wrong_protocol(magic: bytes, protocol: int) -> ProtocolError:
    if magic != MAGIC:
        return ProtocolError("Something that does not speak this protocol is at the other end.")
    message = f"The other end speaks protocol {protocol}, this one speaks {PROTOCOL}."
    return ProtocolError(message, "Update the older of the two.")


def pack_parts(parts: Sequence[Bytes]) -> bytes:
    """Join parts into one body: their count, their lengths, then the bytes.

    `TooLarge` says what is more than the other end takes.
    """
    count = len(parts)
    lengths = [len(part) for part in parts]
    if count > MOST_PARTS or sum(lengths) > MOST_ITEM - MOST_WORDS:
        raise _too_large(count, sum(lengths))
    if count > _PARENT and lengths[_HEADER] + lengths[_PARENT] > MOST_WORDS:
        said = f"A message whose headers have {sum(lengths[_HEADER : _PARENT + 1]) / 1e6:,.1f} MB"
        most = f"{MOST_WORDS / 1e6:,.0f} MB are the most."
        raise TooLarge(f"{said} is too large to be carried.", most)
    head = _FEW[count] if count < len(_FEW) else struct.Struct(f"!I{count}Q")
    return b"".join([head.pack(count, *lengths), *parts])


def _too_large(count: int, size: int) -> TooLarge:
    said = f"A message of {size / 1e6:,.1f} MB with {max(0, count + MOST_BUFFERS - MOST_PARTS):,}"
    most = f"{MOST_BUFFERS:,} buffers and {MOST_ITEM / 1e6:,.0f} MB are the most."
    return TooLarge(f"{said} buffers is too large to be carried.", most)


def unpack_parts(body: Bytes) -> list[memoryview]:
    """Split a body into its parts, without a copy: they are views of it."""
    view = memoryview(body)
    if len(view) < _COUNT.size:
        raise ProtocolError("A body too short to be one arrived.")
    (count,) = _COUNT.unpack_from(view)
    start = _COUNT.size + count * _LENGTH.size
    if count > MOST_PARTS or len(view) < start:
        raise ProtocolError(f"A body that claims {count} parts arrived in {len(view)} bytes.")
    parts = []
    head = _FEW[count] if count < len(_FEW) else struct.Struct(f"!I{count}Q")
    for length in head.unpack_from(view)[1:]:
        parts.append(view[start : start + length])
        start += length
    if start != len(view):
        raise ProtocolError(f"A body of {len(view)} bytes claims to have {start}.")
    return parts


def to_json(words: dict[str, Any]) -> bytes:
    """Return the bytes of a JSON body."""
    return json.dumps(words, separators=(",", ":")).encode()


def from_json(body: Bytes) -> dict[str, Any]:
    """Read a JSON body; anything but an object is a `ProtocolError`."""
    if len(body) > MOST_WORDS:
        raise ProtocolError(f"A body of {len(body)} bytes arrived where {MOST_WORDS} are the most.")
    try:
        words = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("A body that should be JSON is not.") from error
    if not isinstance(words, dict):
        raise ProtocolError("A body that should be a JSON object is not.")
    return words
