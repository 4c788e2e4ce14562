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

# An honest peer has at most its credit in flight, up to 64 MiB in frames of 64 KiB: 1,024 of them.
# This many are already more than is read in one go. While they wait, libzmq reads nothing more
# from the connection: nothing is lost, and the rest stays with the sender.
MOST_UNREAD = 256  # frames
# We answer each ping with a pong, which a hostile peer need not read. With an honest one, what
# waits here is our own requests, as far as there is credit for them.
MOST_UNSENT = 65_536  # frames
POLL_EVERY = 1.0  # seconds
ANSWERS_WITHIN = 1.0  # seconds, where this process has grown and nothing has come
MOST_GROWTH = 128 * 1024 * 1024  # bytes

LARGEST_NUMBER = 2**63  # of an item; it must fit the header, and no conversation is so long


def dealer_socket(
    context: zmq.Context[zmq.Socket[bytes]], server_key: bytes, public_key: bytes, secret_key: bytes
) -> zmq.Socket[bytes]:
    """Return a socket for whoever connects it, once its monitor is watched."""
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0  # what is unsent is in the outbox, and must not delay the exit
    dealer.maxmsgsize = MOST_FRAME  # a larger one ends the connection
    dealer.rcvhwm = MOST_UNREAD
    dealer.sndhwm = MOST_UNSENT
    dealer.reconnect_ivl = -1  # never: the link dials anew, for the old port may be another's
    dealer.curve_serverkey = server_key
    dealer.curve_publickey = public_key
    dealer.curve_secretkey = secret_key
    return dealer


class MessageMemoryGuard:
    """Notices that libzmq holds a message whose last frame does not come.

    None of libzmq's bounds counts such frames, and no option tells how much they are. That this
    process grows while nothing comes out of the socket is a reason to probe: behind a message
    without end no answer comes through.
    """

    def __init__(self) -> None:
        import psutil  # noqa: PLC0415 - commands that only ask something have no such socket

        self._process = psutil.Process()
        self._before = self._memory_in_use()
        self._received = -1

    def has_grown(self, received: int) -> bool:
        """Compare with the last call; `received`: bytes that came out of the socket so far."""
        now = self._memory_in_use()
        has_grown = received == self._received and now - self._before > MOST_GROWTH
        if has_grown or received != self._received:
            self._received, self._before = received, now
        return has_grown

    def _memory_in_use(self) -> int:
        return int(self._process.memory_info().rss)


class AnotherWay(Unreachable):
    """The last way led to nobody, and the dialer knows another one: the link tries that at once."""


class Welcome(NamedTuple):
    """What the evaluator sends first; its numbers are pairs of the lanes: (bulk, urgent)."""

    fields: dict[str, Any]
    received: tuple[int, int]  # the last of our items that the evaluator has
    first_numbers: tuple[int, int]  # the item before the first one that it will send


def parse_welcome(frame: bytes) -> Welcome:
    """Read the frame that answers a HELLO; `ProtocolError` if it is no WELCOME."""
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
    """Refuse a WELCOME that has received more than was sent: our next items would be dropped."""
    if any(there > here for there, here in zip(received, sent, strict=True)):
        what = f"It has seen {list(received)}, but only {list(sent)} was said here."
        raise ProtocolError(f"The session's greeting was refused: {what}")


def _parse_pair(numbers: Any) -> tuple[int, int]:
    bulk, urgent = map(int, numbers)
    if not (0 <= bulk < LARGEST_NUMBER and 0 <= urgent < LARGEST_NUMBER):
        raise ProtocolError("A number that cannot be.")
    return bulk, urgent
