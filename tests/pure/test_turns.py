"""Cells of this side and of the kernel run in the order in which they were asked for."""

from __future__ import annotations

import pytest

from remoter_kernel.front.mouth import Route
from remoter_kernel.front.turns import Turns
from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import Voice, header_of


class Queue:
    """Cells that are run one after the other; what became of them is written down."""

    def __init__(self):
        self.at_kernel: list[str] = []
        self.story: list[str] = []
        self.routes: dict[str, Route] = {}
        self.turns = Turns(lambda: bool(self.at_kernel), self.answer)

    def answer(self, route, reply):
        (name,) = [name for name, each in self.routes.items() if each is route]
        self.story.append(f"{name} {reply['status']}")

    def cell(self, name, **content):
        parts = Voice(b"").compose("execute_request", {"code": name, **content})
        self.routes[name] = Route(Channel.SHELL, [], header_of(parts[1]), parts)
        return self.routes[name]

    def kernels(self, name):
        route = self.cell(name)

        def begin():
            self.at_kernel.append(name)
            self.story.append(name)

        if not self.turns.holds(route, begin):
            begin()

    def ours(self, name, **content):
        route = self.cell(name, **content)

        def begin():
            self.story.append(name)
            self.turns.start(route, lambda: self.story.append(f"{name} stopped"))

        self.turns.add(route, begin)

    def kernel_ends(self, name, status="ok"):
        self.at_kernel.remove(name)
        self.turns.note_reply(self.routes[name], {"status": status})

    def we_end(self, name, *, is_error=False):
        self.turns.end(self.routes[name], is_error=is_error)


@pytest.fixture
def queue():
    return Queue()


def test_each_waits_for_those_before_it(queue):
    queue.kernels("a")
    queue.ours("put")
    queue.ours("get")
    queue.kernels("b")
    queue.kernels("c")
    assert queue.story == ["a"]
    queue.kernel_ends("a")
    assert queue.story == ["a", "put"]
    queue.we_end("put")
    assert queue.story == ["a", "put", "get"]
    queue.we_end("get")
    assert queue.story == ["a", "put", "get", "b", "c"]


def test_after_an_error_the_rest_is_aborted_and_what_comes_later_runs(queue):
    queue.ours("put")
    queue.kernels("a")
    queue.ours("get")
    queue.we_end("put", is_error=True)
    assert queue.story == ["put", "a aborted", "get aborted"]
    queue.kernels("b")
    queue.ours("again")
    queue.kernel_ends("b", "error")
    assert queue.story[3:] == ["b", "again aborted"]


def test_a_cell_may_want_the_rest_to_go_on(queue):
    """VS Code sends `stop_on_error: false`."""
    queue.ours("put", stop_on_error=False)
    queue.kernels("a")
    queue.we_end("put", is_error=True)
    assert queue.story == ["put", "a"]


def test_an_interrupt_is_for_the_cell_that_is_at_work(queue):
    queue.kernels("a")
    queue.ours("put")
    assert not queue.turns.interrupt()
    queue.kernel_ends("a")
    assert queue.turns.interrupt()
    assert queue.story == ["a", "put", "put stopped"]
