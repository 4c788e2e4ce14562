"""The soak in small: two sessions, twenty seconds, other dice each time (a failure tells them)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.real_parts import real_part
from tests.soak.soak import Plan, Soak

if TYPE_CHECKING:
    from tests.real_users import FarSide

SEED = random.SystemRandom().randrange(10**6)
PLAN = Plan(seed=SEED, seconds=20, pythons=1, rs=1, hurry=4)


def test_nothing_is_lost_in_bad_weather(far: FarSide) -> None:
    """Cells of all kinds while the link breaks and somebody dies: every message, once."""
    for part in ("sshd", "irkernel", "gcc"):
        real_part(part)
    bill = Soak(PLAN, lambda _line: None).run()
    assert bill.is_clean, (SEED, bill.complaints, bill.left, bill.faults)
    assert bill.total.sent > 100
    assert bill.faults.total() > 5
