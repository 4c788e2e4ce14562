"""After a cell: how long it took there by the clock there, and the rest by the clock here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remoter_kernel.local.proxy.magics.cell_timer import CellTimer, format_timing, seconds_between
from remoter_kernel.protocol.requests import Requests, Stage
from tests.pure.test_requests import request

HEADER = {"msg_id": "a"}


class World:
    """A timer, a clock and a link."""

    def __init__(self):
        self.now, self.traffic, self.said = 100.0, (0, 0), []
        replies: Any = self
        self.timer = CellTimer(replies, lambda: self.traffic, lambda: self.now)
        self.timer.enable(on=True)
        self.requests = Requests()
        self.requests.observe(self.timer.on_move)

    def write(self, header, text):
        self.said.append((header["msg_id"], text))

    def ask(self, name="a", **content):
        cell = self.requests.add(request(name, content={"code": "x", **content}))
        self.requests.move(cell, Stage.QUEUED)
        return cell

    def hear(self, kind, content, date="2026-01-01T00:00:00Z", name="a"):
        header = {"msg_type": kind, "date": date}
        parts = [b"", *(json.dumps(each).encode() for each in (header, {"msg_id": name}, {}))]
        self.timer.on_output([*parts, json.dumps(content).encode()])

    def status(self, state, second, name="a"):
        self.hear("status", {"execution_state": state}, f"1999-01-01T00:00:{second:06.3f}Z", name)


def test_the_time_there_needs_no_common_clock():
    """Its clock is decades behind: 1.5 s there, and what is left of 2 s is the link's."""
    world = World()
    world.ask()
    world.status("busy", 10.0)
    world.now, world.traffic = 102.0, (300, 4096)
    world.status("idle", 11.5)
    (name, text) = world.said[0]
    assert name == "a"
    expected = "[remoter] 1.500 s there, 0.500 s on the link, 300 bytes sent, 4.0 KiB received\n"
    assert text == expected


def test_a_cell_behind_another_counts_from_the_end_of_that():
    """Both were asked for at once: the second did not wait for the link."""
    world = World()
    world.ask("a")
    world.ask("b")
    world.status("busy", 0)
    world.now = 110.0
    world.status("idle", 9.9)
    world.status("busy", 9.9, "b")
    world.now = 111.0
    world.status("idle", 10.8, "b")
    assert "0.900 s there, 0.100 s on the link" in world.said[1][1]


@pytest.mark.parametrize(
    ("text", "newline"), [("half a line", "\n"), ("a line\n", ""), ("é\n", ""), ('"', "\n")]
)
def test_it_stands_on_a_line_of_its_own(text, newline):
    world = World()
    world.ask()
    world.hear("stream", {"name": "stdout", "text": text})
    world.status("idle", 1)
    assert world.said[0][1].startswith(f"{newline}[remoter]")


def test_what_nobody_sees_and_what_others_run_is_not_timed():
    """Silent cells, cells of other proxies, and all cells while it is off."""
    world = World()
    world.ask(silent=True)
    world.status("idle", 1)
    world.status("idle", 1, "of another front")
    world.timer.enable(on=False)
    world.ask()
    world.status("idle", 1)
    assert world.said == []


def test_a_cell_that_gets_no_idle_is_forgotten():
    """It was answered on this side, say."""
    world = World()
    world.requests.move(world.ask(), Stage.FAILED)
    world.status("idle", 1)
    assert world.said == []


def test_dates_that_are_none_leave_the_whole_time():
    assert seconds_between("2026-01-01", "yesterday") is None
    assert seconds_between(None, None) is None
    assert seconds_between("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00") is None
    assert (
        format_timing(None, 2.0, 0, 0) == "[remoter] 2.000 s in all, 0 bytes sent, 0 bytes received"
    )
