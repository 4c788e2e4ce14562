"""A client's own start-up code, which it waits for: answered at once, run before anything else.

VS Code waits for its code before it sends the person's first cell. That is the cell in which a
login may ask, and the one that says which notebook it is: neither could come without an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.session import machine
from remoter_kernel.protocol.requests import BUSY, IDLE, Request, Requests, Stage

if TYPE_CHECKING:
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.link import Link

MOST_HELD = 20  # pieces of code that are kept


@dataclass
class ClientStartupCode:
    """Start-up code that was answered as if it had run."""

    requests: Requests
    replies: ReplySender
    link: Link
    _held: list[Request] = field(default_factory=list)

    def reply_early(self, request: Request) -> bool:
        """Reply if it is start-up code; before there is a session, keep it for that."""
        if not is_startup_code(request):
            return False
        reply = {"status": "ok", "execution_count": 0, "payload": [], "user_expressions": {}}
        self.replies.reply(request, reply)
        if not self.link.ever_connected:  # else its kernel has run such code once already
            # Clients have heard all states of it: what the kernel sends later is not passed on.
            states = {BUSY, IDLE}
            kept = Request(request.channel, request.parts, request.header, states=states)
            self.requests.add(kept)
            self.requests.move(kept, Stage.HELD, "start-up code, answered already")
            self._held.append(kept)
            if len(self._held) > MOST_HELD:
                self.requests.move(self._held.pop(0), Stage.CANCELLED, "there is too much of it")
        return True

    def send_held(self) -> None:
        """Send what is to run before anything else, once."""
        held, self._held = self._held, []
        for request in held:
            self.link.send(request.channel, list(request.parts))
            # Its client was answered: the reply from there is for nobody.
            self.requests.move(request, Stage.QUEUED)
            self.requests.move(request, Stage.DONE, "nobody waits for its reply")


def is_startup_code(request: Request) -> bool:
    """Is this a client's own code, which wants nothing back?"""
    if not request.is_cell:
        return False
    # With user_expressions it waits for their values, which only the kernel knows.
    return is_client_code(request.content) and not request.content.get("user_expressions")


def is_client_code(content: dict[str, Any]) -> bool:
    """Is what is to be run a client's own code, in which nobody can be asked anything?"""
    if content.get("silent"):
        return not content.get("allow_stdin", True)
    # VS Code does not call its code silent, but keeps it out of the history. It starts kernels by
    # itself, and not by Jupyter's launcher, which gives them its process number.
    return not (content.get("store_history", True) or machine.has_pid())
