"""What the link promises in an outage, with a real sshd at the end of a path that breaks.

Each test has the length that makes a kernel's owner worry; those that are longer than a minute
are marked slow, and a scaled copy of them runs always.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.whole.outages import LANGUAGES, PYTHON, Language, Outage, R, far_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

LINES = 300
NOTICED_WITHIN = 10.0  # seconds
BACK_WITHIN = 5.0  # seconds


def slow(*values: object) -> object:
    """Mark what takes longer than `make test` has."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> Iterator[Outage]:
    """A kernel of the language that the test names, over a path of its own."""
    language: Language = getattr(request, "param", PYTHON)
    with far_kernel(language, here, sshd, far, tmp_path) as outage:
        yield outage


both = pytest.mark.parametrize("place", LANGUAGES.values(), ids=LANGUAGES, indirect=True)
in_r = pytest.mark.parametrize("place", [R], ids=["R"], indirect=True)


@in_r
def test_three_cuts_lose_no_line_of_r(place: Outage) -> None:
    """Three resets in a cell of 300 lines: all 300 lines arrive, once, in order."""
    cell = place.talk.queue(place.language.count(LINES, 0.02))
    for until in (50, 120, 190):
        place.lines_come(cell, until)
        assert place.path.cut() > 0
    place.end(cell)
    assert place.lines(cell) == list(range(LINES))


@both
@pytest.mark.parametrize(("hole", "pause"), [(14.0, 0.02), slow(40.0, 0.1)])
def test_a_network_that_vanishes_costs_no_line(place: Outage, hole: float, pause: float) -> None:
    """A black hole is noticed within 10 s; five seconds after it all has come, once, in order."""
    cell = place.talk.queue(place.language.count(LINES, pause))
    place.lines_come(cell, 30)
    place.path.vanish()
    begun = time.monotonic()
    noticed = place.until_noticed()
    place.listen_for(hole - (time.monotonic() - begun))
    assert not place.is_over(cell)
    place.path.resume()
    back = place.end(cell)
    print(f"FIGURE hole={hole} noticed={noticed:.1f} back={back:.2f}")
    assert place.lines(cell) == list(range(LINES))
    assert noticed < NOTICED_WITHIN
    assert back < BACK_WITHIN


@both
@pytest.mark.parametrize("hole", [16.0, slow(120.0), slow(600.0)])
def test_cells_that_wait_behind_a_running_one(place: Outage, hole: float) -> None:
    """The network is gone for long: each queued cell runs once, in order, with its own output."""
    language, talk = place.language, place.talk
    running = talk.queue(language.count(LINES, 0.02))
    place.lines_come(running, 30)
    place.path.vanish()
    begun = time.monotonic()
    cells = [talk.queue(language.append.format(n=n)) for n in range(5)]
    place.listen_for(hole - (time.monotonic() - begun))
    place.path.resume()
    back = place.end(running, *cells)
    print(f"FIGURE hole={hole} back={back:.2f}")
    assert place.lines(running) == list(range(LINES))
    assert [place.lines(cell)[-1:] for cell in cells] == [[n + 1] for n in range(5)]
    assert place.replies(running, *cells) == [["ok"]] * 6
    final = talk.queue(language.all)
    place.end(final)
    assert place.text(final).strip() == "0 1 2 3 4"
    assert back < BACK_WITHIN
