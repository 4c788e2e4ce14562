"""What jupyter_server is given, it passes on: all in order, never more than it takes."""

from __future__ import annotations

import heapq
import itertools
import json
from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some

from remoter_kernel.local.session.iopub_pacer import IopubPacer
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.output_backlog import INTERRUPTED_LIMIT
from tests.pure.test_output_backlog import said, stream

WINDOW = 3.0  # seconds


class Server:
    """Counts as jupyter_server does, with the same exceptions."""

    def __init__(self) -> None:
        self.came: deque[tuple[float, int]] = deque()
        self.size = 0
        self.dropped = 0

    def hear(self, parts: list, now: float) -> None:
        kind = json.loads(bytes(parts[1]))["msg_type"]
        if kind == "status" and json.loads(bytes(parts[4]))["execution_state"] == "idle":
            self.came.clear()
            self.size = 0
        if kind in {"status", "comm_open", "execute_input"}:
            return
        while self.came and now >= self.came[0][0]:
            self.size -= self.came.popleft()[1]
        size = sum(map(len, parts[1:])) if kind == "stream" else 0
        self.came.append((now + WINDOW, size))
        self.size += size
        is_too_much = self.size / WINDOW > 1_000_000
        self.dropped += is_too_much or len(self.came) / WINDOW > 1000


class World:
    """A reactor without a machine: time goes on when everyone waits."""

    def __init__(self, lateness: float = 0.0) -> None:
        self.now = 0.0
        self.calls: list = []
        self.order = itertools.count()
        self.server = Server()
        self.heard: list[tuple[Channel, Any]] = []
        self.kept: list[int] = []
        self.kept_bytes = 0
        self.lateness = lateness
        self.pacer = IopubPacer(self, lambda: self.now, self.give)  # type: ignore[arg-type]

    def call_later(self, seconds: float, call: Any) -> object:
        heapq.heappush(self.calls, (self.now + seconds, next(self.order), call))
        return call

    def give(self, channel: Channel, parts: list) -> None:
        self.heard.append((channel, parts))
        if channel is Channel.IOPUB:
            late = self.lateness if len(self.heard) % 2 else 0.0  # some messages take their time
            self.server.hear(parts, self.now + late)

    def keep(self, number: int, size: int) -> None:
        self.kept.append(number)
        self.kept_bytes += size

    def take(self, number: int, parts: list, channel: Channel = Channel.IOPUB) -> None:
        self.pacer.add(channel, parts, number, sum(map(len, parts)), self.keep)

    def go_on(self, until: float) -> None:
        while self.calls and self.calls[0][0] <= until:
            self.now, _, call = heapq.heappop(self.calls)
            call()
        self.now = until

    def text(self) -> str:
        """Return what a client was shown."""
        return "".join(
            json.loads(bytes(parts[4]))["text"]
            for channel, parts in self.heard
            if channel is Channel.IOPUB and b'"stream"' in bytes(parts[1])
        )


@settings(max_examples=40, deadline=None)
@given(
    some.lists(
        some.tuples(
            some.integers(1, 400),
            some.integers(1, 800_000),
            some.floats(0, 5),
            some.booleans(),
        ),
        max_size=8,
    ),
    some.floats(0, 0.2),
)
def test_nothing_is_dropped_and_all_comes_in_order(bursts, lateness):
    """Bursts of any size and pauses between them: the server drops nothing, and has all."""
    world = World(lateness)
    number, whole, size = 0, "", 0
    for count, amount, pause, is_reply in bursts:
        for _ in range(count):
            number += 1
            text = f"{number} {'x' * (amount // count)}\n"
            whole += text
            parts = stream(text)
            size += sum(map(len, parts))
            world.take(number, parts)
        if is_reply:
            number += 1
            size += len(b"reply")
            world.take(number, [b"reply"], Channel.SHELL)
        world.go_on(world.now + pause)
    world.go_on(1000)
    assert world.server.dropped == 0
    assert world.text() == whole
    assert world.kept == list(range(1, number + 1))
    assert world.kept_bytes == size


def test_a_reply_comes_after_its_outputs():
    """A reply waits for the text before it, though it is not paced itself."""
    world = World()
    for number in range(1, 101):
        world.take(number, stream("x" * 50_000))
    world.take(101, [b"reply"], Channel.SHELL)
    assert all(channel is Channel.IOPUB for channel, _ in world.heard)
    world.go_on(60)
    assert world.heard[-1] == (Channel.SHELL, [b"reply"])
    assert len(world.text()) == 5_000_000


def test_small_things_pass_at_once():
    """A cell that prints a little and shows two thousand displays, bar the last, waits for none."""
    world = World()
    for number in range(1, 1001):
        world.take(number, said("display_data", {"data": {}, "transient": {}}))
    assert len(world.heard) == 1000
    assert not world.calls


def test_many_small_things_come_below_the_limit():
    """Five thousand displays cannot be joined: all come, and the server drops none."""
    world = World()
    for number in range(1, 5001):
        world.take(number, said("display_data", {"data": {}, "transient": {}}))
    world.go_on(60)
    assert len(world.heard) == 5000
    assert world.server.dropped == 0


def test_what_comes_while_others_wait_comes_after_them():
    """Though there is room again, and nobody has looked yet: order is kept."""
    world = World()
    for number in range(1, 8):
        world.take(number, stream(f"{number} " + "x" * 90_000, name=f"std{number}"))
    assert world.calls
    world.now += 1.0
    world.take(8, stream("8 ", name="stderr"))
    world.go_on(60)
    assert world.kept == list(range(1, 9))
    assert world.text().endswith("8 ")


def test_a_new_cell_begins_with_a_full_allowance():
    """The server counts anew with each idle, and so do we: "Run All" is not slowed down."""
    world = World()
    for number in range(1, 60, 2):
        world.take(number, stream("x" * 300_000))
        world.take(number + 1, said("status", {"execution_state": "idle"}))
    assert not world.calls
    assert world.server.dropped == 0


def test_an_output_that_says_idle_is_no_end_of_a_cell():
    """The server does not count anew with it: what follows has to wait."""
    world = World()
    for number in range(1, 60, 2):
        world.take(number, stream("x" * 300_000))
        world.take(number + 1, said("comm_msg", {"state": "idle", "data": {}}))
    assert world.calls
    world.go_on(1000)
    assert world.server.dropped == 0


def test_an_interrupted_cell_is_soon_at_its_end():
    """Of what is paced at most 64 KiB more comes, with a note; the reply follows within 2 s."""
    world = World()
    for number in range(1, 101):
        world.take(number, stream(f"{number}\n" * 10_000))
    before = len(world.text())
    world.pacer.interrupt("one")
    world.take(101, [b"reply"], Channel.SHELL)
    world.go_on(2.0)
    assert world.heard[-1] == (Channel.SHELL, [b"reply"])
    assert len(world.text()) - before < INTERRUPTED_LIMIT + 500
    assert "held back" in world.text()
    assert world.kept[-1] == 101


def test_one_text_larger_than_the_limit_comes_in_pieces():
    """A single message of 5 MB is what the server would drop; in pieces it does not."""
    world = World()
    world.take(1, stream("x" * 5_000_000))
    assert world.kept == []
    world.go_on(60)
    assert world.server.dropped == 0
    assert world.text() == "x" * 5_000_000
    assert world.kept == [1]
    signed = [tuple(map(bytes, parts[1:])) for _, parts in world.heard]
    assert len(set(signed)) == len(signed)  # a client would take the same twice for a replay
