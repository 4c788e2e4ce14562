"""Jupyter messages as parts: composed, signed, checked, and read no further than needed.

The parts of a message are [topic, header, parent header, metadata, content, *buffers].
They travel as they are; only identities and signatures are made anew at each end of the link.

jupyter_client is imported only for what is odd in a message of ours: to import it takes a proxy,
or a command, longer than all the rest of its start.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import MOST_WORDS, Bytes, Channel, unpack_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOL = "5.4"  # of Jupyter's messages
LARGE = 64 * 1024  # bytes of content that are better not copied
DELIMITER = b"<IDS|MSG>"
CELL_OF_VSCODE = "vscode-notebook-cell:"  # begins the address that VS Code has for a cell
# What reading a message may raise that is not as it should be: a kernel may send anything.
ODD = (
    ProtocolError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
TOPIC, HEADER, PARENT, METADATA, CONTENT, BUFFERS = range(6)


class MessageSigner:
    """Composes, signs and checks messages with the key of one connection file."""

    def __init__(self, key: bytes, scheme: str = "hmac-sha256", session: str = "") -> None:
        """`session` becomes `header.session` of what is composed."""
        self._key = key
        self._digest = scheme.removeprefix("hmac-")
        self.session = session or str(uuid.uuid4())
        self.username = os.environ.get("USER", "username")  # as Jupyter's own Session has it
        self._count = 0  # of messages

    def set_identity(self, session: str, username: str) -> None:
        """Compose in a kernel's name from now on; what is empty stays as it is."""
        self.session = session or self.session
        self.username = username or self.username

    def compose(
        self,
        kind: str,
        content: dict[str, Any],
        parent: dict[str, Any] | None = None,
        *,
        topic: bytes = b"",
        metadata: dict[str, Any] | None = None,
    ) -> list[Bytes]:
        """Make the parts of a message; `parent` is the header that it answers."""
        self._count += 1
        header = {
            "msg_id": f"{self.session}_{os.getpid()}_{self._count}",
            "msg_type": kind,
            "username": self.username,
            "session": self.session,
            "date": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"),
            "version": PROTOCOL,
        }
        # As it is, if only with an id: clients may leave it out, and readers rely on it.
        parent_header = {"msg_id": "", **parent} if parent else {}
        words = (header, parent_header, metadata or {}, content)
        return [topic, *map(_to_ascii_json, words)]

    def sign(self, parts: Sequence[Bytes]) -> list[Bytes]:
        """Return the frames to send, without identities: delimiter, signature, the rest."""
        return [DELIMITER, self._signature(parts[HEADER:BUFFERS]), *parts[HEADER:]]

    def check(self, frames: Sequence[bytes]) -> tuple[list[bytes], list[Bytes]]:
        """Return identities and parts of signed frames; a `ProtocolError` if they are not."""
        try:
            at = list(frames).index(DELIMITER)
        except ValueError as error:
            raise ProtocolError("A message without a delimiter.") from error
        identities, signature, rest = list(frames[:at]), frames[at + 1 : at + 2], frames[at + 2 :]
        if not signature or len(rest) < BUFFERS - HEADER:
            raise ProtocolError("A message without all its parts.")
        expected = self._signature(rest[: BUFFERS - HEADER])
        if self._key and not hmac.compare_digest(expected, signature[0]):
            raise ProtocolError("A message whose signature does not match.")
        return identities, [b"", *rest]

    def _signature(self, parts: Sequence[Bytes]) -> bytes:
        """Sign as the Jupyter protocol says; no key means no signature."""
        if not self._key:
            return b""
        # In one call: jupyter_client's own way takes seven, and this is done for every message.
        if len(parts[-1]) < LARGE:
            return hmac.digest(self._key, b"".join(parts), self._digest).hex().encode()
        signature = hmac.new(self._key, digestmod=self._digest)
        for part in parts:
            signature.update(part)
        return signature.hexdigest().encode()


def _to_ascii_json(words: Any) -> bytes:
    """Return JSON that is ASCII: half of a surrogate pair, as clients may send, has no UTF-8."""
    try:
        return json.dumps(words, allow_nan=False).encode()
    except (TypeError, ValueError):  # Jupyter cleans what is no JSON
        from jupyter_client.session import json_packer  # noqa: PLC0415 - see above

        return bytes(json_packer(words))


def parts_of(channel: Channel, body: Bytes) -> list[memoryview]:
    """Return the parts of an item; a `ProtocolError` if one is missing that readers rely on."""
    parts = unpack_parts(body)
    if channel is Channel.EVENT or channel is Channel.COMMAND:
        if not parts:
            raise ProtocolError("A note or an order without words.")
    elif len(parts) <= CONTENT:
        raise ProtocolError("A message without all its parts.")
    elif len(parts[HEADER]) + len(parts[PARENT]) > MOST_WORDS:  # JSON grows when it is read
        raise ProtocolError("A message whose headers are larger than any message's are.")
    return parts


def header_of(part: Bytes) -> dict[str, Any]:
    """Read a header (or parent header); a `ProtocolError` if it is none.

    What is no UTF-8 in it (a file's name that a kernel prints) is replaced, as Jupyter does.
    """
    try:
        header = json.loads(str(part, "utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("A header that is not JSON.") from error
    if not isinstance(header, dict):
        raise ProtocolError("A header that is not an object.")
    return header


def content_of(parts: Sequence[Bytes]) -> dict[str, Any]:
    """Read the content of a message."""
    return header_of(parts[CONTENT])


def source_hash(source: str) -> str:
    """Return an id for a cell whose client does not send one: a hash of its text.

    Empty for an empty cell. It has a space, which no id of nbformat has.
    """
    text = source.replace("\r\n", "\n").strip()
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return f"source {digest[:24]}" if text else ""


def is_silent(content: dict[str, Any]) -> bool:
    """Is this the content of a client's own code, of which a person sees nothing?

    VS Code does not set `silent` for its own code, but keeps it out of the history.
    """
    return bool(content.get("silent")) or not content.get("store_history", True)


def execution_state(parts: Sequence[Bytes]) -> str:
    """Return what a status message says: busy, idle, starting, restarting; "" for any other.

    Its type decides: an output may say "idle", too.
    """
    # Most messages are none, which a search in the bytes tells without reading any JSON.
    if len(parts) <= CONTENT or b'"status"' not in bytes(parts[HEADER]):
        return ""
    try:
        if header_of(parts[HEADER]).get("msg_type") != "status":
            return ""
        state = content_of(parts).get("execution_state")
    except ProtocolError:
        return ""
    return state if isinstance(state, str) else ""


class KernelMessage(NamedTuple):
    """A message of a kernel; what every reader needs of its headers is read once."""

    channel: Channel
    parts: list[Bytes]
    header: dict[str, Any]
    parent: dict[str, Any]
    type: str
    parent_id: str  # the id of the request that it belongs to; "" if it belongs to none
    state: str  # what a status message tells; "" of any other

    @property
    def is_startup_message(self) -> bool:
        """Is this what a kernel says once, as it begins, to whoever listens already?

        On a busy machine it comes late, when the kernel answers already. Nobody asked for it, and
        clients (ipykernel's own tests, for one) take what comes then for an answer to them.
        """
        return not self.parent and (self.state == "starting" or self.type == "iopub_welcome")


def read_message(channel: Channel, parts: list[Bytes]) -> KernelMessage:
    """Read the headers of a message; a `ProtocolError` if others could not rely on them."""
    header, parent = header_of(parts[HEADER]), header_of(parts[PARENT])
    kind, parent_id = header.get("msg_type"), parent.get("msg_id", "")
    if not isinstance(kind, str) or not isinstance(parent_id, str):
        raise ProtocolError("A message whose headers are not as the protocol has them.")
    state: object = ""
    # The content of an output is not read: it may be large, and clients alone need it.
    if channel is not Channel.IOPUB or kind == "status":
        content = content_of(parts)
        state = content.get("execution_state") if kind == "status" else ""
    state = state if isinstance(state, str) else ""
    return KernelMessage(channel, parts, header, parent, kind, parent_id, state)
