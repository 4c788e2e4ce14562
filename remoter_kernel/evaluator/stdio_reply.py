"""Replies to a command that runs over a login in one line, `REMOTER {json}`, errors included.

Other lines on stdout are noise (a banner, for instance). Needs only what Python brings.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.errors import RemoterError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Errors of a file system that takes nothing from us; others have other reasons.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

Answer = tuple[dict[str, Any], "Iterable[bytes]"]  # what is in the line, and what follows it


def reply_to_stdin(fulfil: Callable[[dict[str, Any]], Answer]) -> None:
    """Read one request, a JSON object, from stdin, and answer it."""
    rest: list[Iterable[bytes]] = []

    def read_and_fulfil() -> dict[str, Any]:
        words, chunks = fulfil(json.loads(sys.stdin.readline()))
        rest.append(chunks)
        return words

    words = result_or_error(read_and_fulfil)
    out = sys.stdout.buffer
    out.write(b"REMOTER " + json.dumps(words).encode() + b"\n")
    for chunks in rest:
        for chunk in chunks:
            out.write(chunk)
    out.flush()


def result_or_error(do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result, or in the same form why there is none."""
    try:
        return do()
    except OSError as error:
        traceback.print_exc()
        place = f" ({error.filename})" if error.filename else ""
        lacks = "room" if error.errno in NO_ROOM else "luck"
        return {"lacks": lacks, "what": f"{error.strerror or error}{place}"}
    except RemoterError as error:
        return {"lacks": "reader", "what": str(error)}
    except Exception as error:  # noqa: BLE001 - the one line is all that the other end gets
        traceback.print_exc()
        return {"lacks": "luck", "what": f"{type(error).__name__}: {error}"}
