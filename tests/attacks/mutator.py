"""Gives every reader broken inputs, so many of them, from one seed; says in JSON how that went."""

from __future__ import annotations

import json
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks.targets import TARGETS, Target

IN_A_ROW = 50  # inputs of one target
WARM = 0.1  # of all inputs: from then on nothing may grow
SHOWN = 5  # faults
ODD = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\0" * 8,
    b"[",
    b"{",
    b'"',
    b"-1",
    b"1e999",
)


def mutated(rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """Return an input that is nearly right."""
    data = bytearray(seeds[int(rng.random() * len(seeds))])
    for _ in range(1 + int(rng.random() * 3)):
        at = int(rng.random() * (len(data) + 1))
        kind = rng.random()
        if kind < 0.5 and at < len(data):
            data[at] = int(rng.random() * 256)
        elif kind < 0.6:
            del data[at:]
        elif kind < 0.7:
            del data[at : at + 1 + int(rng.random() * 8)]
        elif kind < 0.8:
            odd = ODD[int(rng.random() * len(ODD))]
            data[at : at + len(odd)] = odd
        elif kind < 0.9:
            other = seeds[int(rng.random() * len(seeds))]
            begin = int(rng.random() * len(other))
            data[at:at] = other[begin : begin + int(rng.random() * 40)]
        else:
            data[at:at] = data[at : at + 16]
    return bytes(data)


def give(target: Target, data: bytes, faults: list[str]) -> None:
    try:
        target.read(data)
    except target.errors:
        pass
    except Exception:  # noqa: BLE001 - that is what is looked for
        faults.append(f"{target.name} was given {data!r}\n{traceback.format_exc()}")


def run(seed: int, rounds: int) -> dict[str, Any]:
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    faults: list[str] = []
    turns = [target for target in TARGETS for _ in range(target.share)]
    rng.shuffle(turns)
    for target in TARGETS:  # what is imported late is imported now
        for data in target.seeds * IN_A_ROW:
            give(target, data, faults)
    process = psutil.Process()
    begin, done, warm = time.monotonic(), 0, 0
    while done < rounds and len(faults) < SHOWN:
        target = turns[done // IN_A_ROW % len(turns)]
        began = time.perf_counter()
        for _ in range(IN_A_ROW):
            give(target, mutated(rng, target.seeds), faults)
        seconds[target.name] += time.perf_counter() - began  # type: ignore[assignment]
        counts[target.name] += IN_A_ROW
        done += IN_A_ROW
        if not warm and done >= rounds * WARM:
            warm = process.memory_info().rss
    return {
        "counts": counts,
        "microseconds": {name: seconds[name] / counts[name] * 1e6 for name in counts},
        "seconds": time.monotonic() - begin,
        "grown": process.memory_info().rss - warm,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "faults": faults[:SHOWN],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of numpy, about what it is given
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
