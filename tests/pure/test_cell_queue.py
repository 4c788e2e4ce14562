"""Whose turn it is: cells run in the order in which they were asked for, on either side."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.local.proxy.here.cell_queue import CellQueue
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import MessageSigner, header_of
from remoter_kernel.protocol.requests import Request, Requests, Stage


def a_route(**words):
    parts = MessageSigner(b"").compose("execute_request", {"code": "x", **words})
    return Request(Channel.SHELL, parts, header_of(parts[1]))


class CellHere:
    """A cell on this side that begins and ends as the test says."""

    def __init__(self, ground, route):
        self.ground, self.request = ground, route
        self.interrupts = 0

    def start(self):
        self.ground.running.append(("here", self.request))

    def interrupt(self):
        self.interrupts += 1


class Ground:
    """Both sides, and what has become of each cell."""

    def __init__(self):
        self.requests = Requests()
        self.running = []
        self.off = []
        self.may_begin = True
        self.turns = CellQueue(self.requests, lambda: self.may_begin, self.say, self.call_off)
        self.requests.observe(self.turns.on_move)

    @property
    def there(self):
        """The cells there without an end."""
        return [each for each in self.requests if each.stage >= Stage.QUEUED and not each.is_here]

    def say(self, route):
        self.requests.move(route, Stage.QUEUED)
        self.running.append(("there", route))

    def call_off(self, route):
        self.requests.move(route, Stage.CANCELLED)
        self.off.append(route)

    def ask_here(self, **words):
        cell = CellHere(self, self.requests.add(a_route(**words)))
        self.turns.enqueue_local(cell)
        return cell

    def ask_there(self, **words):
        route = self.requests.add(a_route(**words))
        if not self.turns.enqueue_remote(route):
            self.say(route)
        return route

    def end_here(self, *, is_well=True):
        self.requests.move(self.turns.running_local.request, Stage.DONE)
        self.turns.on_local_over(is_well=is_well)

    def reply(self, route, status="ok"):
        self.requests.on_reply(route.id)
        self.turns.on_reply(route, status)

    def idle(self, route):
        self.requests.on_state(route.id, "idle")
        self.turns.on_idle(route.id)

    def end_there(self, status="ok"):
        route = self.there[0]
        self.reply(route, status)
        self.idle(route)

    def lose_all_there(self):
        """The link gave up: this side answers what that one will not."""
        for route in self.there:
            self.requests.move(route, Stage.FAILED)
        self.turns.start_next()


@given(st.lists(st.sampled_from(["here", "there", "end"]), max_size=40))
def test_cells_begin_in_order_and_sides_take_turns(steps):
    """Never does a cell here run beside another; all begin, in order; nothing is called off."""
    ground, asked = Ground(), []
    for step in [*steps, *["end"] * 60]:
        if step == "here":
            asked.append(("here", ground.ask_here().request))
        elif step == "there":
            asked.append(("there", ground.ask_there()))
        elif ground.turns.running_local:
            assert not ground.there
            ground.end_here()
        elif ground.there:
            ground.end_there()
    assert ground.running == asked
    assert not ground.off
    assert not ground.turns.is_active


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
    ground.reply(there)
    assert ground.turns.running_local is None
    ground.idle(there)
    assert ground.turns.running_local


def test_failures_call_off_what_waits():
    """On either side, unless the cell that failed says otherwise."""
    ground = Ground()
    ground.ask_there()
    here, behind = ground.ask_here(), ground.ask_there()
    ground.end_there("error")
    assert ground.off == [here.request, behind]
    ground = Ground()
    ground.ask_here()
    behind = ground.ask_there()
    ground.end_here(is_well=False)
    assert ground.off == [behind]
    ground = Ground()
    ground.ask_here(stop_on_error=False)
    ground.ask_there()
    ground.end_here(is_well=False)
    assert not ground.off
    assert len(ground.there) == 1


def test_cells_that_are_lost_there_hold_up_nobody():
    """The link gave up, and this side has answered them."""
    ground = Ground()
    ground.ask_there(stop_on_error=False)
    cell = ground.ask_here()
    ground.lose_all_there()
    assert ground.turns.running_local is cell
    ground = Ground()
    ground.ask_there()
    cell = ground.ask_here()
    ground.lose_all_there()
    assert ground.off == [cell.request]


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
    assert ground.off == [cell.request]
