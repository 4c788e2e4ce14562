"""How many bytes may be on their way to us: measured as it goes (pure: no I/O, no clock).

House rules of this file:

- What the path holds is bandwidth x delay. Twice that keeps it full; more would only be a
  queue, and whatever is said last would wait behind it.
- The delay is the shortest round trip of this wire, since all others had a queue in them.
- The bandwidth is the best of the last few rounds; a round is a round trip long, and its rate
  is the best of any time that long which ended in it. What counts is what has been *kept*: a
  front that paces its client makes the other end wait.
- While each round is faster than those before, the window was what limited it.
- `now` is an argument, in seconds on any clock that only goes forward.
"""

from __future__ import annotations

from collections import deque

LEAST = 256 * 1024  # bytes
MOST = 64 * 1024 * 1024  # bytes
SHORTEST_ROUND = 0.010  # seconds: on shorter ones, the machines are what limits
LEAST_COUNTED = 32 * 1024  # bytes: less in a round says nothing of the path
SAMPLES = 16  # positions that are remembered of one round
ROUNDS = 8  # how many are remembered
GROWS_BY = 1.25  # a round that is faster by this was limited by the window before
FLAT_AFTER = 3  # rounds without that: the path is full
FULL, SEARCHING = 2, 4  # times what the path seems to hold


class ReceiveWindow:
    """The window of one conversation; the size found on one wire is where the next begins."""

    def __init__(self, size: int = LEAST) -> None:
        """Remember where to begin, in bytes."""
        self.size = size
        self.shortest: float | None = None  # round trip of this wire, in seconds
        self._rates: deque[float] = deque(maxlen=ROUNDS)  # bytes per second
        self._fastest = 0.0  # of all rounds of this wire
        self._flat = 0  # rounds without growth
        self._round: tuple[float, float] = (0.0, 0.0)  # when it began, and its rate so far
        self._samples: deque[tuple[float, int]] = deque()  # time and position

    def begin(self) -> None:
        """Start over on a new wire: another path, perhaps."""
        self.shortest = None
        self._rates.clear()
        self._fastest = 0.0
        self._flat = 0
        self._round = (0.0, 0.0)
        self._samples.clear()

    def on_round_trip(self, seconds: float) -> None:
        """Hear how long a round trip took."""
        self.shortest = min(seconds, self.shortest or seconds)

    def on_acked(self, position: int, now: float) -> None:
        """Hear that all bytes of this wire up to a position have been kept."""
        grains = self._samples
        before = grains[-1][1] if grains else 0
        if self.shortest is None or position == before:
            return
        trip = max(self.shortest, SHORTEST_ROUND)
        while len(grains) > 1 and grains[1][0] <= now - trip:
            grains.popleft()
        since = grains[0][1] if grains else 0
        if len(grains) > 1 and now - grains[-2][0] < trip / SAMPLES:
            grains.pop()
        grains.append((now, position))
        self._measure(position - since, trip, now)

    def _measure(self, size: int, trip: float, now: float) -> None:
        """Take in how many bytes came during one round trip up to now."""
        began, rate = self._round
        if now - began > trip:
            if rate:
                self._end_round(rate)
            began, rate = now, 0.0
        if size >= LEAST_COUNTED:
            rate = max(rate, size / trip)
        self._round = (began, rate)
        best = max(self._rates, default=0.0)
        if not max(best, rate):
            return
        times = SEARCHING if self._flat < FLAT_AFTER else FULL
        self.size = int(min(MOST, max(LEAST, times * max(best, rate) * trip)))

    def _end_round(self, rate: float) -> None:
        self._rates.append(rate)
        if rate > self._fastest * GROWS_BY:
            self._fastest, self._flat = rate, 0
        else:
            self._flat += 1
