"""Looks at a file in Arrow's form before it is read: it must not become much more than it is.

Its reader believes what stands in it: how large buffers are once they are unpacked, which bytes
are whose, how many values there are. A few numbers of its tables (flatbuffers) tell enough.

Runs in kernels, which have polars and perhaps nothing else that knows this form.
"""

from __future__ import annotations

from typing import Any

from remoter_kernel.local.objects.codecs.values import CodecError

MAGIC = b"ARROW1"
CONTINUES = b"\xff\xff\xff\xff"  # stands before a message's length, but in old files
DICTIONARY, BATCH = 2, 3  # kinds of messages
BLOCK, PAIR = 24, 16  # bytes of what stands in lists: of a place in the file, of two numbers
MANY_EMPTY_ROWS = 1 << 24  # values that take no room at all


def check_arrow(data: bytes) -> None:
    """Refuse a file that would become much more than its own bytes."""
    end = len(data) - len(MAGIC) - 4
    if end < len(MAGIC) or data[:6] != MAGIC or data[-6:] != MAGIC:
        raise CodecError("The other side sent a frame that is not in Arrow's form.")
    begin = end - _read_integer(data, end, 4)
    footer = begin + _read_integer(data, begin, 4)
    left = len(data)
    for name in (2, 3):  # dictionaries, batches
        for place in _places(data, _field(data, footer, name), BLOCK):
            offset, ahead = _read_integer(data, place, 8), _read_integer(data, place + 8, 4)
            body = _read_integer(data, place + 16, 8)
            left -= ahead + body
            if min(offset, ahead, body) < 0 or offset + ahead + body > len(data) or left < 0:
                raise CodecError("The other side sent a frame with pieces that overlap.")
            _check_message(data, offset, body)


def _check_message(data: bytes, offset: int, body: int) -> None:
    begin = offset + 4 * (data[offset : offset + 4] == CONTINUES) + 4
    message = begin + _read_integer(data, begin, 4)
    kind = _field(data, message, 1)
    batch = _table(data, _field(data, message, 2))
    which = _read_integer(data, kind, 1) if kind else 0
    if which == DICTIONARY:
        batch = _table(data, _field(data, batch, 1))
    elif which != BATCH:
        raise CodecError("The other side sent a frame with a piece of an unknown kind.")
    if _field(data, batch, 3):
        raise CodecError(
            "The other side sent a frame that is compressed: how large it is, none knows."
        )
    left = body
    for place in _places(data, _field(data, batch, 2), PAIR):
        start, size = _read_integer(data, place, 8), _read_integer(data, place + 8, 8)
        left -= size
        if min(start, size, left) < 0 or start + size > body:
            raise CodecError("The other side sent a frame with pieces that overlap.")
    most = max(8 * len(data), MANY_EMPTY_ROWS)  # each value has a bit, or no room at all
    length = _field(data, batch, 0)
    nodes = _places(data, _field(data, batch, 1), PAIR)
    if any(
        not 0 <= _read_integer(data, at, 8) <= most
        for at in [*nodes, *([length] if length else [])]
    ):
        raise CodecError("The other side sent a frame that claims more rows than it has.")


def _read_integer(data: bytes, at: int, size: int) -> int:
    if not 0 <= at <= len(data) - size:
        raise CodecError("The other side sent a frame that points out of itself.")
    return int.from_bytes(data[at : at + size], "little", signed=True)


def _table(data: bytes, at: int) -> int:
    """Return where the table begins that is pointed to."""
    if not at:
        raise CodecError("The other side sent a frame without all its parts.")
    return at + _read_integer(data, at, 4)


def _field(data: bytes, table: int, index: int) -> int:
    """Return where a field of a table is; 0: it has none."""
    names = table - _read_integer(data, table, 4)
    if 4 + 2 * index + 2 > _read_integer(data, names, 2):
        return 0
    offset = _read_integer(data, names + 4 + 2 * index, 2)
    return table + offset if offset else 0


def _places(data: bytes, at: int, size: int) -> Any:
    """Return where each thing of a list is."""
    if not at:
        return range(0)
    begin = _table(data, at)
    count = _read_integer(data, begin, 4)
    if not 0 <= count <= (len(data) - begin) // size:
        raise CodecError("The other side sent a frame that points out of itself.")
    first = begin + 4
    return range(first, first + count * size, size)
