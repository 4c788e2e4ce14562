"""What the evaluator says first: how the session is, and where each end was (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError, Unreachable
from remoter_kernel.protocol.frames import MessageType, decode_messages, from_json
from remoter_kernel.protocol.pump import LONGEST_REASON

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_NUMBER = 2**63  # no conversation is so long


class AnotherWay(Unreachable):
    """The last way led to nobody, and the dialer knows another one: that is tried at once."""


class Welcome(NamedTuple):
    """A greeting: its words, and two pairs of numbers (bulk, urgent)."""

    fields: dict[str, Any]
    received: tuple[int, int]  # of ours, there
    first_numbers: tuple[int, int]  # of theirs, here


def parse_welcome(frame: bytes) -> Welcome:
    """Read the frame that answers a HELLO; `ProtocolError` if it is no greeting."""
    try:
        ((head, body),) = decode_messages(frame)
        words = from_json(body)
        if head.type is MessageType.WELCOME:
            return Welcome(words, _parse_pair(words["seen"]), _parse_pair(words["begin"]))
        why = str(words.get("why", f"{head.type.name} came before WELCOME."))
    except (ProtocolError, LookupError, TypeError, ValueError, OverflowError) as error:
        why = str(error)
    raise ProtocolError(f"The session's greeting was refused: {why[:LONGEST_REASON]}")


def check_received(received: tuple[int, int], sent: Sequence[int]) -> None:
    """Refuse a greeting that has seen more than was ever said: nothing more would be heard."""
    if any(there > here for there, here in zip(received, sent, strict=True)):
        what = f"It has seen {list(received)}, but only {list(sent)} was said here."
        raise ProtocolError(f"The session's greeting was refused: {what}")


def _parse_pair(numbers: Any) -> tuple[int, int]:
    bulk, urgent = map(int, numbers)
    if not (0 <= bulk < LARGEST_NUMBER and 0 <= urgent < LARGEST_NUMBER):
        raise ProtocolError("A number that cannot be.")
    return bulk, urgent
