"""The window finds what a path holds, over paths of any width and length."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from remoter_kernel.protocol.stream import LEAST, MOST, SHORTEST_ROUND, ReceiveWindow


@dataclass
class Path:
    """A sender with enough to say, a narrow path with a queue before it, and a window."""

    width: float  # bytes per second
    trip: float  # seconds

    def __post_init__(self) -> None:
        self.packet = int(max(4096, self.width * self.trip / 50))
        self.window = ReceiveWindow()
        self.window.on_round_trip(self.trip)
        self.now = 0.0
        self.sent = self.kept = 0
        self.free_at = 0.0  # when the narrow part has carried all that was sent
        self.under_way: list[tuple[float, int]] = []  # when a position is kept
        self.credits: list[tuple[float, int]] = []  # when the sender hears of a credit
        self.credit = 0
        self.queue = 0.0  # seconds that the last packet waited
        self.sizes: list[int] = []
        self.give_credit()

    def give_credit(self) -> None:
        self.credits.append((self.now + self.trip / 2, self.kept + self.window.size))

    def run(self, seconds: float, pace: float = float("inf")) -> None:
        """Let it flow; `pace` is how many bytes per second are kept."""
        until = self.now + seconds
        kept_at = self.now
        while True:
            while self.sent < self.credit:
                self.free_at = max(self.free_at, self.now) + self.packet / self.width
                self.sent += self.packet
                kept_at = max(kept_at, self.free_at + self.trip / 2) + self.packet / pace
                self.queue = self.free_at - self.now
                self.under_way.append((kept_at, self.sent))
            self.now = min(times[0][0] for times in (self.under_way, self.credits) if times)
            if self.now > until:
                return
            if self.credits and self.credits[0][0] == self.now:
                self.credit = max(self.credit, self.credits.pop(0)[1])
                continue
            _, self.kept = self.under_way.pop(0)
            self.window.on_acked(self.kept, self.now)
            self.sizes.append(self.window.size)
            self.give_credit()


widths = some.floats(1e5, 2e8)
trips = some.floats(0.0005, 0.3)


@settings(max_examples=60, deadline=None)
@given(widths, trips)
def test_what_is_in_flight_stays_near_what_the_path_holds(width, trip):
    """A flood fills the path, and nothing that is said then waits long behind it."""
    path = Path(width, trip)
    path.run(max(30 * trip, 0.5))
    begun, kept = path.now, path.kept
    path.run(10 * max(trip, SHORTEST_ROUND))
    holds = width * max(trip, SHORTEST_ROUND)
    assert path.window.size <= max(LEAST, 2.6 * holds)
    assert path.queue <= (path.window.size + path.packet) / width
    if holds < MOST / 4:
        # One packet may be on its way at either end of the measurement.
        assert (path.kept - kept + path.packet) / (path.now - begun) > 0.7 * width


@pytest.mark.parametrize("trip", [0.02, 0.05, 0.2])
def test_it_doubles_each_round_trip_while_it_is_what_limits(trip):
    """A wide path is found soon: at the least, each round trip carries twice the one before."""
    path = Path(1e9, trip)
    sizes = []
    for _ in range(6):
        path.run(trip)
        sizes.append(path.window.size)
    for before, after in pairwise(sizes[1:]):
        assert after >= min(2 * before, MOST // 2)


def test_a_listener_who_paces_makes_the_other_end_wait():
    """What is not kept counts as not carried, however fast it came."""
    path = Path(1e8, 0.05)
    path.run(1.0)
    assert path.window.size > 4 * LEAST
    path.run(5.0, pace=7e5)
    assert path.window.size == LEAST


def test_the_next_wire_begins_where_this_one_ended():
    """After a cut there is no searching from the beginning; a narrower path is found, too."""
    path = Path(5e7, 0.05)
    path.run(2.0)
    size = path.window.size
    assert size > 4 * LEAST
    path.window.begin()
    assert path.window.size == size
    narrow = Path(1e6, 0.05)
    narrow.window = path.window
    narrow.window.on_round_trip(0.05)
    narrow.run(10.0)
    assert narrow.window.size == LEAST


def test_what_is_said_in_quiet_times_narrows_nothing():
    """A few bytes now and then are no measure of a path."""
    path = Path(5e7, 0.05)
    path.run(2.0)
    size, now, kept = path.window.size, path.now, path.kept
    for number in range(1, 100):
        path.window.on_acked(kept + 1000 * number, now + number)
    assert path.window.size == size
