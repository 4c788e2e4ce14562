"""The ZeroMQ socket of a link, with bounds on what the other end can make it hold.

What libzmq holds is out of our sight until it is a whole message, so its own bounds come first;
those of the conversation (credit, the size of an item) follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import zmq

from remoter_kernel.errors import ProtocolError, Unreachable
from remoter_kernel.protocol.frames import MOST_FRAME, MessageType, decode_messages, from_json
from remoter_kernel.protocol.link_connection import LONGEST_REASON

if TYPE_CHECKING:
    from collections.abc import Sequence

# An honest end has at most its credit on its way, up to 64 MiB in frames of 64 KiB: 1,024 of them.
# This many are already more than is read in one go. While they wait, libzmq reads nothing more
# from the connection: nothing is lost, and what else there is stays with the one who says it.
MOST_UNREAD = 256  # frames
# We answer a ping with a pong, and whoever pings need not take any. In honest hands what waits
# here is our own requests, as far as there is credit for them.
MOST_UNSENT = 65_536  # frames
POLL_EVERY = 1.0  # seconds
ANSWERS_WITHIN = 1.0  # seconds, where this process has grown and nothing has come
MOST_GROWTH = 128 * 1024 * 1024  # bytes

LARGEST_NUMBER = 2**63  # no conversation is so long


def dealer_socket(
    context: zmq.Context[zmq.Socket[bytes]], server_key: bytes, public_key: bytes, secret_key: bytes
) -> zmq.Socket[bytes]:
    """Return a socket that is about to be connected, by whoever watches how that goes."""
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.maxmsgsize = MOST_FRAME
    dealer.rcvhwm = MOST_UNREAD
    dealer.sndhwm = MOST_UNSENT
    dealer.reconnect_ivl = -1  # cut means cut
    dealer.curve_serverkey = server_key
    dealer.curve_publickey = public_key
    dealer.curve_secretkey = secret_key
    return dealer


class MessageMemoryGuard:
    """What libzmq holds of a message whose last frame has not come.

    None of its bounds counts that, and nothing tells how much it is. That this process grows
    while nothing comes out of the socket is a reason to ask: behind a message without end no
    answer comes through.
    """

    def __init__(self) -> None:
        """Begin with what this process has now."""
        import psutil  # noqa: PLC0415 - commands that only ask something have no such socket

        self._process = psutil.Process()
        self._before = self._memory_in_use()
        self._received = -1

    def has_grown(self, received: int) -> bool:
        """Look, every now and then; `received`: bytes that have come out of the socket so far."""
        now = self._memory_in_use()
        has_grown = received == self._received and now - self._before > MOST_GROWTH
        if has_grown or received != self._received:
            self._received, self._before = received, now
        return has_grown

    def _memory_in_use(self) -> int:
        return int(self._process.memory_info().rss)


# What the evaluator says first: how the session is, and where each end was.
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
