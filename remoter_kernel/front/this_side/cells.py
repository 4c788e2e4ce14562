"""Cells that need this side: which they are, whose turn it is, and what else concerns them.

The far kernel's messages pass by here, too: what waits for a cell there has to see it end.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError, Usage
from remoter_kernel.front.jupyter import answers
from remoter_kernel.front.this_side.carrying import CarryCell, ObjectTransferContext
from remoter_kernel.front.this_side.cell import LocalCell, for_this_side
from remoter_kernel.front.this_side.comms import CommsHere
from remoter_kernel.front.this_side.kernel import ThisSide
from remoter_kernel.front.this_side.own_code import OwnCode
from remoter_kernel.front.this_side.permission import AccessKind, Wanted
from remoter_kernel.front.this_side.text import (
    LocalCode,
    answered_outside,
    asked_inside,
    completeness,
    local_code,
    wanted_by,
)
from remoter_kernel.wire.frames import Bytes, Channel, to_json
from remoter_kernel.wire.messages import (
    CONTENT,
    HEADER,
    PARENT,
    content_of,
    execution_state,
    header_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.front.jupyter.mouth import Mouth, Route
    from remoter_kernel.front.session.link import Link
    from remoter_kernel.front.this_side.permission import Permission
    from remoter_kernel.front.this_side.turns import Turns
    from remoter_kernel.wire.reactor import Reactor

TYPED = {"complete_request", "inspect_request", "is_complete_request"}  # while a cell is written
RUNS = "runs code of this notebook in a Python kernel here"


class CellsHere:
    """What of a notebook runs here."""

    def __init__(
        self,
        reactor: Reactor,
        mouth: Mouth,
        permission: Permission,
        link: Link,
        turns: Turns,
    ) -> None:
        """Remember; `carrier` has to be set."""
        self.carrier: ObjectTransferContext
        self._reactor = reactor
        self._mouth = mouth
        self._permission = permission
        self._turns = turns
        self._side = ThisSide(reactor)
        self._side.on_message = self._hear
        self._side.on_ready = self._begin
        self._side.on_end = self._lose
        self.own_code = OwnCode(link, self._side)
        self._comms = CommsHere()
        self._asked: dict[str, tuple[Route, int]] = {}  # completion and the like, by message id

    def close(self) -> None:
        """End the kernel here."""
        self._side.close()

    # From Jupyter ----------------------------------------------------------------------

    def take_cell(self, route: Route) -> bool:
        """Take a cell that needs this side, or has to wait for one; False: it is neither."""
        code = str(route.content.get("code", ""))
        try:
            wanted = wanted_by(code)
        except Usage as error:
            self._mouth.answer_error(route, error)
            return True
        if isinstance(wanted, LocalCode):
            self._turns.take_here(self._local_cell(route, wanted))
        elif wanted is not None:
            self._turns.take_here(CarryCell(route, wanted, self.carrier, self._end))
        return wanted is not None

    def take_other(self, kind: str, route: Route) -> bool:
        """Take any other request that is for this side; False: it is not."""
        if self._comms.is_ours(kind, route.parts):
            self._side.say(Channel.SHELL, for_this_side(route.parts, {}))
            return True
        if kind not in TYPED:
            return False
        content = route.content
        code = str(content.get("code", ""))
        complete = completeness(code) if kind == "is_complete_request" else None
        if complete:
            self._mouth.reply(route, complete)
            return True
        local = local_code(code)
        if local is None:
            return False
        words = asked_inside(content, local)
        if words is None or not self._side.is_ready or self._turns.here:  # late is worse than empty
            self._mouth.reply(route, answers.empty_reply(kind, content) or {})
            return True
        self._asked[str(route.header.get("msg_id", ""))] = route, local.begin
        self._side.say(Channel.SHELL, for_this_side(route.parts, words))
        return True

    # From the far side -----------------------------------------------------------------

    def take_own(self, parts: Sequence[Bytes]) -> bool:
        """Take what comes of an errand of ours there; False: it does not."""
        is_own = self.own_code.is_own(parts)
        if is_own:
            self.own_code.hear(parts)
        return is_own

    def lose(self, error: RemoterError, *, is_over: bool) -> None:
        """Hear that the link gave up, and that what waited for it was answered on this side."""
        if is_over:
            self.carrier.asker.forget(is_here=False)
        self.own_code.lose_there(error, is_over=is_over)
        self._turns.hear_lost()

    def notice(self, parts: Sequence[Bytes]) -> None:
        """Look at what is published there: a cell here may wait for that."""
        if not self._turns.is_used or execution_state(parts) != "idle":
            return
        if self._turns.here:
            self._mouth.remind()
        self._turns.hear_idle(str(header_of(parts[PARENT]).get("msg_id", "")))

    def notice_reply(self, route: Route, parts: Sequence[Bytes]) -> None:
        """Look at a reply from there: a cell here may wait for that."""
        if self._turns.is_used and route.header.get("msg_type") == "execute_request":
            self._turns.hear_reply(route, str(content_of(parts).get("status")))

    def amend(self, route: Route, parts: Sequence[Bytes]) -> Sequence[Bytes]:
        """Return a reply from there as clients should see it: with the comms that live here."""
        if route.header.get("msg_type") != "comm_info_request":
            return parts
        return self._comms.add_to(parts, route.content.get("target_name"))

    # The kernel here -------------------------------------------------------------------

    def _local_cell(self, route: Route, local: LocalCode) -> LocalCell:
        wanted = Wanted(local.verb, AccessKind.RUN, RUNS)
        return LocalCell(
            route,
            local.code,
            side=self._side,
            mouth=self._mouth,
            reactor=self._reactor,
            demand=partial(self._permission.demand, wanted, route),
            on_over=self._end,
        )

    def _begin(self) -> None:
        self.own_code.begin_here()
        cell = self._turns.here
        if isinstance(cell, LocalCell):
            cell.run()

    def _end(self, is_well: bool) -> None:  # noqa: FBT001 - called with that alone
        cell = self._turns.here
        if isinstance(cell, LocalCell) and cell.has_left:
            self._side.stop()
            self._comms.forget()
            self.carrier.asker.forget(is_here=True)
        self._turns.end(is_well=is_well)

    def _lose(self, error: RemoterError) -> None:
        """The kernel here is gone: so are its comms, and whoever waits for it hears why."""
        self._comms.forget()
        self.carrier.asker.forget(is_here=True)
        self.own_code.lose_here(error)
        asked, self._asked = self._asked, {}
        for route, _ in asked.values():
            self._mouth.answer_error(route, error)
        cell = self._turns.here
        if isinstance(cell, LocalCell):
            cell.fail(error)

    def _hear(self, channel: Channel, parts: list[Bytes]) -> None:
        """Pass on what the kernel here says."""
        parent = header_of(parts[PARENT])
        if self._side.is_own(parent):
            self.own_code.hear(parts)
            return
        header = header_of(parts[HEADER])
        kind, name = str(header.get("msg_type", "")), str(parent.get("msg_id", ""))
        self._comms.note(kind, parts)
        cell = self._turns.here
        is_of_cell = isinstance(cell, LocalCell) and name == cell.route.header.get("msg_id")
        if isinstance(cell, LocalCell) and is_of_cell:
            shown = cell.hear(kind, parts)
            if shown:
                self._show(channel, cell.route, shown)
            cell.settle()
        elif channel is Channel.IOPUB:
            self._mouth.pass_on(channel, None, parts)
            if kind == "status":
                self._mouth.remind()
        elif name in self._asked:
            route, begin = self._asked.pop(name)
            parts[CONTENT] = to_json(answered_outside(content_of(parts), begin))
            self._mouth.pass_on(channel, route, parts)

    def _show(self, channel: Channel, route: Route, parts: list[Bytes]) -> None:
        """Show what the kernel here says in a cell."""
        send = partial(self._mouth.pass_on, channel, route)
        if channel is Channel.STDIN:
            answer = partial(self._side.say, channel)
            self.carrier.asker.relay(route, parts, send, answer, is_here=True)
        else:
            send(parts)
