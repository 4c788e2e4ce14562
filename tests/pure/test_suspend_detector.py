"""Time that was not lived through is noticed, by a wall clock and late timers alone."""

from __future__ import annotations

from typing import Any

import pytest

from remoter_kernel.local.session.machine import POLL_EVERY, SUSPENDED_FOR, SuspendDetector


class World:
    """A reactor whose timers wait for somebody to make them go off."""

    def __init__(self) -> None:
        self.now = 1e9
        self.call: Any = None
        self.wakings = 0
        awakening = SuspendDetector(self, self.wake, lambda: self.now)  # type: ignore[arg-type]
        awakening.start()

    def call_later(self, seconds: float, call: Any) -> None:
        assert seconds == POLL_EVERY
        self.call = call

    def wake(self) -> None:
        self.wakings += 1

    def pass_by(self, seconds: float) -> None:
        """Let the wall clock go on, and the timer go off."""
        self.now += seconds
        self.call()


@pytest.mark.parametrize(
    ("passed", "wakings"),
    [
        (POLL_EVERY, 0),
        (POLL_EVERY + SUSPENDED_FOR - 0.1, 0),  # a busy machine
        (POLL_EVERY + SUSPENDED_FOR + 0.1, 1),
        (8 * 3600.0, 1),  # a night
        (-3600.0, 1),  # somebody has set the clock
        (0.0, 0),
    ],
)
def test_time_that_is_missing_is_noticed(passed: float, wakings: int) -> None:
    """Only more than a busy machine's lateness counts, and each time counts once."""
    world = World()
    world.pass_by(POLL_EVERY)
    world.pass_by(passed)
    world.pass_by(POLL_EVERY)
    world.pass_by(POLL_EVERY)
    assert world.wakings == wakings
