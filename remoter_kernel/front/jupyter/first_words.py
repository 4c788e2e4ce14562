"""A client's own code, which it waits for before anything can run: answered at once, run first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.front.session import parent
from remoter_kernel.wire.messages import content_of

if TYPE_CHECKING:
    from remoter_kernel.front.jupyter.mouth import Mouth, Route
    from remoter_kernel.wire.frames import Bytes

MOST = 20  # pieces of code that are kept


class FirstWords:
    """What was answered as if it had run.

    VS Code waits for its own start-up code before it sends the person's first cell: the one
    in which a login may ask, and the one that says which notebook it is.
    """

    def __init__(self, mouth: Mouth) -> None:
        """Remember."""
        self._mouth = mouth
        self._kept: list[list[Bytes]] = []

    def answer(self, route: Route, *, is_kept: bool) -> bool:
        """Answer it if it can be; `is_kept`: it is to run before anything else."""
        if not may_be_answered(route):
            return False
        if is_kept:
            self._kept = [*self._kept, list(route.parts)][-MOST:]
        reply = {"status": "ok", "execution_count": 0, "payload": [], "user_expressions": {}}
        self._mouth.reply(route, reply)
        return True

    def take(self) -> list[list[Bytes]]:
        """Return what is to run before anything else, once."""
        kept, self._kept = self._kept, []
        return kept


def may_be_answered(route: Route) -> bool:
    """Is this a client's own code, which wants nothing back?"""
    if route.header.get("msg_type") != "execute_request":
        return False
    content = content_of(route.parts)
    return is_own_code(content) and not content.get("user_expressions")


def is_own_code(content: dict[str, Any]) -> bool:
    """Is what is to be run a client's own code, in which nobody can be asked anything?

    VS Code, which starts kernels itself, does not call it silent, but keeps it out of the history.
    """
    if content.get("silent"):
        return not content.get("allow_stdin", True)
    return not (content.get("store_history", True) or parent.is_named())
