"""A client's own code, which it waits for before anything can run: answered at once, run first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.local.session import machine
from remoter_kernel.protocol.requests import BUSY, IDLE, Request, Requests, Stage

if TYPE_CHECKING:
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.link import Link

MOST_HELD = 20  # pieces of code that are kept


class ClientStartupCode:
    """What was answered as if it had run.

    VS Code waits for its own start-up code before it sends the person's first cell: the one
    in which a login may ask, and the one that says which notebook it is.
    """

    def __init__(self, requests: Requests, replies: ReplySender, link: Link) -> None:
        self._requests = requests
        self._replies = replies
        self._link = link
        self._held: list[Request] = []  # in their order; all of them are held

    def reply_early(self, request: Request) -> bool:
        """Answer it if it can be; before there is a session, it is to run before anything else."""
        if not is_startup_code(request):
            return False
        reply = {"status": "ok", "execution_count": 0, "payload": [], "user_expressions": {}}
        self._replies.reply(request, reply)
        if not self._link.ever_connected:
            self._hold(request)
        return True

    def _hold(self, answered: Request) -> None:
        """Hold it as a request that nobody waits for: all that it says was said."""
        heard = {BUSY, IDLE}
        kept = Request(answered.channel, answered.parts, answered.header, states=heard)
        self._requests.add(kept)
        self._requests.move(kept, Stage.HELD, "start-up code, answered already")
        self._held.append(kept)
        if len(self._held) > MOST_HELD:
            self._requests.move(self._held.pop(0), Stage.CANCELLED, "there is too much of it")

    def send_held(self) -> None:
        """Send what is to run before anything else, once."""
        kept, self._held = self._held, []
        for each in kept:
            self._link.send(each.channel, list(each.parts))
            self._requests.move(each, Stage.QUEUED)
            self._requests.move(each, Stage.DONE, "nobody waits for its reply")


def is_startup_code(request: Request) -> bool:
    """Is this a client's own code, which wants nothing back?"""
    if not request.is_cell:
        return False
    return is_client_code(request.content) and not request.content.get("user_expressions")


def is_client_code(content: dict[str, Any]) -> bool:
    """Is what is to be run a client's own code, in which nobody can be asked anything?

    VS Code, which starts kernels itself, does not call it silent, but keeps it out of the history.
    """
    if content.get("silent"):
        return not content.get("allow_stdin", True)
    return not (content.get("store_history", True) or machine.has_pid())
