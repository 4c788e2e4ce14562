"""What of a kernel's message others can rely on: it may say anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import Bytes, Channel
from remoter_kernel.protocol.messages import HEADER, PARENT, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_headers(channel: Channel, parts: Sequence[Bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read header and parent header; a `ProtocolError` if others could not rely on them."""
    header, parent = header_of(parts[HEADER]), header_of(parts[PARENT])
    kind = header.get("msg_type")
    if not isinstance(kind, str) or not isinstance(parent.get("msg_id", ""), str):
        raise ProtocolError("A message whose headers are not as the protocol has them.")
    if channel is not Channel.IOPUB or kind == "status":
        content_of(parts)
    return header, parent


def strict_execution_state(parts: Sequence[Bytes]) -> str:
    """Return the state that a status message tells."""
    return str(content_of(parts).get("execution_state"))


def is_startup_message(
    header: dict[str, Any], parent: dict[str, Any], parts: Sequence[Bytes]
) -> bool:
    """Is this what a kernel says once, as it begins, to whoever listens already?

    On a busy machine it comes late, when the kernel answers already. Nobody asked for it, and
    clients (ipykernel's own tests, for one) take what comes then for an answer to them.
    """
    if parent:
        return False
    kind = str(header["msg_type"])
    is_starting = kind == "status" and strict_execution_state(parts) == "starting"
    return is_starting or kind == "iopub_welcome"
