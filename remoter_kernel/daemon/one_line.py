"""Says how a command there went in one line, `REMOTER {json}`: what is wrong is in it, too.

Other lines are noise (a banner, for instance). Needs only what Python brings.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.errors import RemoterError

if TYPE_CHECKING:
    from collections.abc import Iterable

Answer = tuple[dict[str, Any], "Iterable[bytes]"]  # what is in the line, and what follows it


def answer(fulfil: Callable[[dict[str, Any]], Answer]) -> None:
    """Read one wish, a JSON object, from stdin, and answer it."""
    rest: Iterable[bytes] = ()
    try:
        words, rest = fulfil(json.loads(sys.stdin.readline()))
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        words = {"lacks": "room", "what": f"{error.strerror}{place}"}
    except RemoterError as error:
        words = {"lacks": "reader", "what": str(error)}
    except Exception as error:  # noqa: BLE001 - the one line is all that is heard of us
        traceback.print_exc()
        words = {"lacks": "luck", "what": f"{type(error).__name__}: {error}"}
    out = sys.stdout.buffer
    out.write(b"REMOTER " + json.dumps(words).encode() + b"\n")
    for chunk in rest:
        out.write(chunk)
    out.flush()
