"""How many bytes may be on their way to us: measured as it goes (pure: no I/O, no clock).

House rules of this file:

- What the path holds is bandwidth x delay. Twice that keeps it full; more would only be a
  queue, and whatever is said last would wait behind it.
- The delay is the shortest round trip of this wire, since all others had a queue in them.
- The bandwidth is the best of the last few rounds; a round is a round trip long. What counts
  is what has been *kept*: a front that paces its client makes the other end wait.
- While each round is faster than those before, the window was what limited it.
- `now` is an argument, in seconds on any clock that only goes forward.
"""

from __future__ import annotations

from collections import deque

LEAST = 256 * 1024  # bytes
MOST = 64 * 1024 * 1024  # bytes
SHORTEST_ROUND = 0.010  # seconds: on shorter ones, the machines are what limits
LONGEST_ROUND = 4  # round trips: nothing came for a while, and that says nothing of the path
LEAST_COUNTED = 32 * 1024  # bytes: less in a round says nothing of the path either
ROUNDS = 8  # how many are remembered
GROWS_BY = 1.25  # a round that is faster by this was limited by the window before
FLAT_AFTER = 3  # rounds without that: the path is full
FULL, SEARCHING = 2, 4  # times what the path seems to hold


class Window:
    """The window of one conversation; the size found on one wire is where the next begins."""

    def __init__(self, size: int = LEAST) -> None:
        """Remember where to begin, in bytes."""
        self.size = size
        self.shortest: float | None = None  # round trip of this wire, in seconds
        self._rates: deque[float] = deque(maxlen=ROUNDS)  # bytes per second
        self._best = 0.0
        self._flat = 0  # rounds without growth
        self._began: tuple[int, float] | None = None  # position and time

    def begin(self) -> None:
        """Start over on a new wire: another path, perhaps."""
        self.shortest = None
        self._rates.clear()
        self._best = 0.0
        self._flat = 0
        self._began = None

    def note_trip(self, seconds: float) -> None:
        """Hear how long a round trip took."""
        self.shortest = min(seconds, self.shortest or seconds)

    def note_kept(self, position: int, now: float) -> None:
        """Hear that all bytes of this wire up to a position have been kept."""
        if self.shortest is None:
            return
        if self._began is None:
            self._began = (position, now)
            return
        begin, began = self._began
        if position == begin:
            return
        trip = max(self.shortest, SHORTEST_ROUND)
        if now - began < trip:
            return
        self._began = (position, now)
        if now - began > LONGEST_ROUND * trip or position - begin < LEAST_COUNTED:
            return
        self._take((position - begin) / (now - began), trip)

    def _take(self, rate: float, trip: float) -> None:
        self._rates.append(rate)
        if rate > self._best * GROWS_BY:
            self._best, self._flat = rate, 0
        else:
            self._flat += 1
        times = SEARCHING if self._flat < FLAT_AFTER else FULL
        self.size = int(min(MOST, max(LEAST, times * max(self._rates) * trip)))
