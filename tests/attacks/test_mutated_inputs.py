"""Ten million inputs that are nearly right: nothing breaks, and nothing grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("REMOTER_MUTATIONS", "10000000"))
SEED = int(os.environ.get("REMOTER_SEED", "1"))
PROCESSES = 2
MOST_GROWTH = 16 * 1024 * 1024  # bytes, from a tenth of the way to its end
MUTATOR = Path(__file__).with_name("mutator.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_readers_are_given_broken_inputs() -> None:
    """Each byte that comes from elsewhere is chosen by whoever likes to see something break."""
    running = [
        subprocess.Popen(
            [sys.executable, str(MUTATOR), str(SEED + number), str(ROUNDS // PROCESSES)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    went = [json.loads(process.communicate()[0]) for process in running]
    counts: Counter[str] = Counter()
    for each in went:
        counts.update(each["counts"])
    for name, count in counts.most_common():
        took = sum(each["microseconds"].get(name, 0.0) for each in went) / len(went)
        print(f"{count:>10,}  {took:7.1f} µs  {name}")
    seconds = max(each["seconds"] for each in went)
    total = sum(counts.values())
    print(f"{total:>10,}  in {seconds:.0f} s, {total / seconds:,.0f} a second")
    grown = ", ".join(f"{each['grown'] / 1e6:.1f} MB" for each in went)
    print(f"Since a tenth of the way each process grew by: {grown}.")
    assert [fault for each in went for fault in each["faults"]] == []
    assert total >= ROUNDS // PROCESSES * PROCESSES
    assert max(each["grown"] for each in went) < MOST_GROWTH
