"""`make soak`: sessions at work for half an hour while everything goes wrong, and the bill.

The exit code is 1 if anything was lost without a word, came twice or out of order, or
stays behind. The same seed throws the same dice; how they fall in time is the machine's.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from typing import TYPE_CHECKING

from tests.soak.soak import Plan, Soak

if TYPE_CHECKING:
    from tests.soak.ledger import Count
    from tests.soak.soak import Bill

COLUMNS = ("sent", "delivered", "told", "lost", "doubled", "disordered", "wrong")


def main() -> int:
    """Soak as the command line asks for, and print the bill."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, help="the dice of an earlier run")
    parser.add_argument("--pythons", type=int, default=5, help="sessions of Python")
    parser.add_argument("--rs", type=int, default=3, help="sessions of R")
    parser.add_argument("--hurry", type=float, default=1.0, help="so many times as many faults")
    wish = parser.parse_args()
    # Whoever ends this process early gets its processes and folders cleared away, too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    seed = random.SystemRandom().randrange(10**6) if wish.seed is None else wish.seed
    say(f"Seed {seed}: {wish.pythons} sessions of Python, {wish.rs} of R, {wish.minutes:g} minutes")
    bill = Soak(Plan(seed, wish.minutes * 60, wish.pythons, wish.rs, wish.hurry), say).run()
    print(f"\nSeed {seed}, {wish.minutes:g} minutes\n")
    print(table(bill))
    return 0 if bill.is_clean else 1


def say(line: str) -> None:
    """Tell how it goes."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def table(bill: Bill) -> str:
    """Write the bill down for a person."""
    titles = [*COLUMNS, "recovery", "front, MiB", "evaluator, MiB"]
    lines = [f"{'':18}" + "".join(f"{title:>15}" for title in titles)]
    for row in bill.rows:
        memory = [
            f"{weights[0]:.0f} → {weights[-1]:.0f}" if weights else ""
            for weights in (row.front, row.evaluator)
        ]
        lines.append(
            _line(f"{row.name} {row.language}", row.count, f"{row.recovery:.1f} s", *memory)
        )
    slowest = max((row.recovery for row in bill.rows), default=0.0)
    lines += [_line("all", bill.total, f"{slowest:.1f} s"), "", "Faults:"]
    lines += [f"{count:6} × {name}" for name, count in bill.faults.most_common()]
    for title, said in (("Complaints", bill.complaints), ("Left behind", bill.left)):
        lines += ["", f"{title}: {len(said) or 'none'}", *(f"  {line}" for line in said)]
    return "\n".join(lines)


def _line(name: str, count: Count, *more: str) -> str:
    return f"{name:18}" + "".join(f"{value:>15}" for value in (*count.row, *more))


if __name__ == "__main__":
    sys.exit(main())
