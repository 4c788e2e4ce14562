"""What the child was asked and what of it is not over (pure).

A request is over when its reply and its idle were heard, which come by two sockets and so in
either order. A child is at one request at a time (but for subshells): where the next begins,
the one before has said all that it ever will.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import CONTENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.daemon.speaker import Request
    from remoter_kernel.wire.frames import Bytes

ABORTED_WITHIN = 256  # bytes of the content of a reply that says no more than `aborted`


class Asked(dict[str, "Request"]):
    """The requests that the child has and has not replied to, by message id."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.ending: dict[str, Request] = {}  # has its reply, and its idle was not heard yet
        self._idle: set[str] = set()  # its idle was heard before its reply

    def take_over(self, other: Asked) -> None:
        """Know what another knew."""
        self.update(other)
        self.ending.update(other.ending)
        self._idle.update(other._idle)

    def take_reply(self, asker: str, parts: Sequence[Bytes]) -> Request | None:
        """Hear the reply to a request, and return that request."""
        request = self.pop(asker, None)
        content = parts[CONTENT]
        is_aborted = len(content) < ABORTED_WITHIN and b'"aborted"' in bytes(content)
        if asker in self._idle:
            self._idle.discard(asker)
        elif request and request.channel is Channel.SHELL and not is_aborted:  # R gives no idle
            self.ending[asker] = request
        return request

    def take_state(self, asker: str, state: str) -> list[Request]:
        """Hear that the child begins with a request ("busy"), or that it is done ("idle").

        Return those with a reply whose idle will not come any more.
        """
        request = self.get(asker)
        if state == "idle" and self.ending.pop(asker, None) is None and request:
            self._idle.add(asker)
        elif state == "busy" and request and is_one_by_one(request):
            passed = [key for key, each in self.ending.items() if is_one_by_one(each)]
            return [self.ending.pop(key) for key in passed]
        return []

    def forget(self, asker: str) -> Request | None:
        """Take out a request that has no reply, and needs none from the child any more."""
        self._idle.discard(asker)
        return self.pop(asker, None)

    def is_idle(self, asker: str) -> bool:
        """Was the idle of a request heard that has no reply?"""
        return asker in self._idle

    def clear(self) -> None:
        """Forget everything: there is no such child any more."""
        super().clear()
        self.ending.clear()
        self._idle.clear()


def is_one_by_one(request: Request) -> bool:
    """Does a request wait for those before it?"""
    return request.channel is Channel.SHELL and not request.header.get("subshell_id")
