"""A long text becomes several messages, so that each has a number of its own (pure).

A kernel that prints much sends megabytes in one message, and only whole messages can be
held back or go first. Text is cut where a line ends, or before a space, in the bytes of its
JSON: nothing is parsed. What is not plainly a stream's text stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from remoter_kernel.protocol.messages import CONTENT, HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.protocol.frames import Bytes

PIECE = 128 * 1024  # bytes

_NAME_FIRST = re.compile(rb'\{\s*"name"\s*:\s*"std(?:out|err)"\s*,\s*"text"\s*:\s*"')
_END = re.compile(rb'"\s*\}\Z')
_ANOTHER_KEY = re.compile(rb'"\s*,\s*"')  # inside of a JSON string, each quote follows a backslash
_ID = re.compile(rb'("msg_id"\s*:\s*"[^"\\]*)')


def split_stream(parts: list[Bytes], most: int = PIECE) -> list[list[Bytes]]:
    """Return a message as one or several; all but the last have about `most` bytes of text."""
    if len(parts) != CONTENT + 1 or len(parts[CONTENT]) <= 2 * most:
        return [parts]
    content = bytes(parts[CONTENT])
    start, end = _NAME_FIRST.match(content), _END.search(content, len(content) - 8)
    if not start or not end or _ANOTHER_KEY.search(content, start.end(), end.start()):
        return [parts]
    opening, closing = content[: start.end()], content[end.start() :]
    header = bytes(parts[HEADER])
    pieces: list[list[Bytes]] = []
    for text in _split_text(content[start.end() : end.start()], most):
        piece = list(parts)
        piece[CONTENT] = b"".join([opening, text, closing])
        if pieces:
            piece[HEADER] = _ID.sub(rb"\g<1>.%d" % len(pieces), header, count=1)
        pieces.append(piece)
    return pieces


def _split_text(text: bytes, most: int) -> Iterator[bytes]:
    begin = 0
    while len(text) - begin > 2 * most:
        # Any backslash and n: where they mean no newline, they are still nothing to fall apart.
        end = text.rfind(b"\\n", begin, begin + most) + len(b"\\n")
        if end <= begin + 1:
            end = text.rfind(b" ", begin + 1, begin + most)
        if end <= begin:
            break
        yield text[begin:end]
        begin = end
    yield text[begin:]
