"""Whose turn it is: cells run in the order in which they were asked for, on either side."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.front.jupyter.mouth import Route
from remoter_kernel.front.this_side.turns import Turns
from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import Voice, header_of


def a_route(**words):
    parts = Voice(b"").compose("execute_request", {"code": "x", **words})
    return Route(Channel.SHELL, [], header_of(parts[1]), parts)


class CellHere:
    """A cell on this side that begins and ends as the test says."""

    def __init__(self, ground, route):
        self.ground, self.route = ground, route
        self.interrupts = 0

    def begin(self):
        self.ground.running.append(("here", self.route))

    def interrupt(self):
        self.interrupts += 1


class Ground:
    """Both sides, and what has become of each cell."""

    def __init__(self):
        self.there = []  # without a reply
        self.running = []
        self.off = []
        self.may_begin = True
        self.turns = Turns(lambda: self.there, lambda: self.may_begin, self.say, self.off.append)

    def say(self, route):
        self.there.append(route)
        self.running.append(("there", route))

    def ask_here(self, **words):
        route = a_route(**words)
        cell = CellHere(self, route)
        self.turns.take_here(cell)
        return cell

    def ask_there(self, **words):
        route = a_route(**words)
        if not self.turns.take_there(route):
            self.say(route)
        return route

    def end_there(self, status="ok"):
        route = self.there.pop(0)
        self.turns.hear_reply(route, status)
        self.turns.hear_idle(route.header["msg_id"])


@given(st.lists(st.sampled_from(["here", "there", "end"]), max_size=40))
def test_cells_begin_in_order_and_sides_take_turns(steps):
    """Never does a cell here run beside another; all begin, in order; nothing is called off."""
    ground, asked = Ground(), []
    for step in [*steps, *["end"] * 60]:
        if step == "here":
            asked.append(("here", ground.ask_here().route))
        elif step == "there":
            asked.append(("there", ground.ask_there()))
        elif ground.turns.here:
            assert not ground.there
            ground.turns.end(is_well=True)
        elif ground.there:
            ground.end_there()
    assert ground.running == asked
    assert not ground.off
    assert not ground.turns.is_used


def test_without_cells_here_nothing_is_held():
    """As if it were not there."""
    ground = Ground()
    for _ in range(3):
        ground.ask_there()
    assert len(ground.there) == 3


def test_the_idle_is_waited_for_and_not_the_reply_alone():
    """Else the cell here would be busy before the one there is idle."""
    ground = Ground()
    there = ground.ask_there()
    ground.ask_here()
    ground.turns.hear_reply(there, "ok")
    assert ground.turns.here is None
    ground.turns.hear_idle(there.header["msg_id"])
    assert ground.turns.here


def test_failures_call_off_what_waits():
    """On either side, unless the cell that failed says otherwise."""
    ground = Ground()
    ground.ask_there()
    here, behind = ground.ask_here(), ground.ask_there()
    ground.end_there("error")
    assert ground.off == [here.route, behind]
    ground = Ground()
    ground.ask_here()
    behind = ground.ask_there()
    ground.turns.end(is_well=False)
    assert ground.off == [behind]
    ground = Ground()
    ground.ask_here(stop_on_error=False)
    ground.ask_there()
    ground.turns.end(is_well=False)
    assert not ground.off
    assert len(ground.there) == 1


def test_cells_that_are_lost_there_hold_up_nobody():
    """The link gave up, and this side has answered them."""
    ground = Ground()
    ground.ask_there(stop_on_error=False)
    cell = ground.ask_here()
    ground.there.clear()
    ground.turns.hear_lost()
    assert ground.turns.here is cell
    ground = Ground()
    ground.ask_there()
    cell = ground.ask_here()
    ground.there.clear()
    ground.turns.hear_lost()
    assert ground.off == [cell.route]


def test_an_interrupt_is_for_whoever_is_at_work():
    """A cell here; else, not this side; a cell that waits for its session is called off."""
    ground = Ground()
    assert not ground.turns.interrupt()
    cell = ground.ask_here()
    assert ground.turns.interrupt()
    assert cell.interrupts == 1
    ground = Ground()
    ground.ask_there()
    ground.ask_here()
    assert not ground.turns.interrupt()
    ground = Ground()
    ground.may_begin = False
    cell = ground.ask_here()
    assert ground.turns.interrupt()
    assert ground.off == [cell.route]
