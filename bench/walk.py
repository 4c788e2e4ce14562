"""`python -m bench.walk`: which functions of ours one cell goes through, counted by a profiler.

A real session: jupyter_client, the proxy, a keeper, OpenSSH's sshd, the evaluator, ipykernel. Of
one cell (`print(1)`) it counts the calls from one function of ours to another, in all threads of
the proxy and of the evaluator, from the moment before the request is sent until its reply and its
idle have come and the evaluator has been told so. Of the keeper it counts bytes.

House rules of this file:

- What looks after a session whether or not anything runs is no part of the walk. A cell during
  which any of that happened (`HOUSEKEEPING`) is not counted, and another one is run.
- A measured cell follows another one by less than a second, so that what is written at most once
  a second (`state.json`) is not written in it.
- How many messages share a turn of a loop is a matter of luck, and of how busy the machine is. So
  each figure is the median of several cells, beside the least and the most of them, and what is
  to be compared is measured one right after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import spy
from bench.client import Kernel
from bench.ground import Ground
from bench.peers import Remoter
from bench.proxy import Proxy
from remoter_kernel.evaluator.status_file import StatusWriter
from remoter_kernel.local.proxy.sockets import Sockets
from remoter_kernel.local.session.link import Link
from remoter_kernel.local.session.machine import SuspendDetector
from remoter_kernel.protocol.link_connection import LinkConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = tuple[int, str, str]  # as `Spy` writes it

CODE = "print(1)"
PROCESSES = ("proxy", "evaluator")
CELLS = 10
TRIES = 12  # times so many cells, until enough of them were without housekeeping
MOST_NUMBER = 255  # of a cell: it is told by a byte
TIMERS = 1.0  # seconds from one look of most timers to the next
SETTLE = 0.4  # seconds between two cells: what the one before has left to do is done
ACKNOWLEDGED = 0.2  # seconds after the reply and the idle: an acknowledgement waits for 0.1
WRITTEN_WITHIN = 10.0  # seconds; a process writes at its next call, so with its next timer
HOUSEKEEPING: tuple[Callable[..., object], ...] = (
    LinkConnection._check_alive,  # noqa: SLF001 - is the other end alive?
    LinkConnection._on_pong,  # noqa: SLF001 - it is
    StatusWriter._write_status,  # noqa: SLF001 - `state.json`
    SuspendDetector._poll,  # noqa: SLF001 - has this machine slept?
    Link._check_memory,  # noqa: SLF001 - does the other end send a message without end?
    Sockets._echo_heartbeat,  # noqa: SLF001 - a client asks whether the proxy lives
)


@dataclass
class Node:
    """A call, and those that it made."""

    name: str
    who_called: str
    inside: list[Node] = field(default_factory=list)
    times: int = 1  # in a row, each with the same calls in it

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes two calls the same."""
        return (self.name, self.who_called, *((each.shape, each.times) for each in self.inside))


@dataclass(frozen=True)
class Walk:
    """What one process did for one cell."""

    calls: list[Call]

    @property
    def direct(self) -> int:
        """Calls from one function of ours to another."""
        return sum(who == spy.DIRECT for _, _, who in self.calls)

    @property
    def by_others(self) -> int:
        """Calls of ours that a library made: `contextlib`, `logging`, a thread's beginning."""
        return len(self.calls) - self.direct

    @property
    def functions(self) -> Counter[str]:
        """How often each function was called."""
        return Counter(name for _, name, _ in self.calls)

    def tree(self) -> list[Node]:
        """Return the calls in their order, those that repeat themselves in a row as one."""
        nodes = [Node(name, who) for _, name, who in self.calls]
        top: list[Node] = []
        for (caller, _, _), node in zip(self.calls, nodes, strict=True):
            (nodes[caller].inside if caller >= 0 else top).append(node)
        for node in reversed(nodes):
            node.inside = _merged(node.inside)
        return _merged(top)


def _merged(nodes: list[Node]) -> list[Node]:
    merged: list[Node] = []
    for node in nodes:
        if merged and merged[-1].shape == node.shape:
            merged[-1].times += 1
        else:
            merged.append(node)
    return merged


class WatchedGround(Ground):
    """A ground on which Python, on both sides, imports `spy` first."""

    @property
    def spies(self) -> Path:
        """The folder that is on PYTHONPATH."""
        return self.folder / "spies"

    def _near_environment(self) -> dict[str, str]:
        self.spies.mkdir()
        shutil.copyfile(spy.__file__, self.spies / "sitecustomize.py")
        (self.spies / spy.FLAG).write_bytes(bytes(1))
        return {**super()._near_environment(), "PYTHONPATH": str(self.spies)}

    def _far_environment(self) -> str:
        return f"{super()._far_environment()} PYTHONPATH={self.spies}"

    def turn_to(self, cell: int) -> None:
        """Have the calls of this cell written down from now on; 0: of none."""
        with (self.spies / spy.FLAG).open("r+b") as file:
            file.write(bytes([cell]))

    def walks(self, cell: int) -> dict[str, Walk]:
        """Read what was written down of a cell."""
        until = time.monotonic() + WRITTEN_WITHIN
        places = {name: self.spies / f"{name}-{cell}.json" for name in PROCESSES}
        while not all(place.exists() for place in places.values()):
            if time.monotonic() > until:
                raise TimeoutError("a process has not told of its calls")
            time.sleep(0.01)
        return {name: Walk(json.loads(place.read_text())) for name, place in places.items()}


@dataclass
class Figures:
    """What several cells took."""

    walks: dict[str, list[Walk]] = field(default_factory=lambda: {each: [] for each in PROCESSES})
    up: list[int] = field(default_factory=list)  # bytes through the keeper, SSH and all
    down: list[int] = field(default_factory=list)
    left_out: int = 0  # cells with housekeeping in them

    def typical(self, process: str) -> Walk:
        """Return the walk that is nearest to the median."""
        walks = self.walks[process]
        middle = statistics.median(walk.direct for walk in walks)
        return min(walks, key=lambda walk: abs(walk.direct - middle))

    def text(self) -> Iterator[str]:
        """Tell all of it, line by line."""
        cells = len(self.up)
        yield f"One cell, {CODE}, in functions of ours; medians of {cells} cells (least to most)."
        yield f"{self.left_out} more had housekeeping in them and are left out."
        yield ""
        for process, walks in self.walks.items():
            yield (
                f"{process + ':':<11}{_spread([walk.direct for walk in walks])} calls "
                f"of {_spread([len(walk.functions) for walk in walks])} functions; "
                f"a library called {_spread([walk.by_others for walk in walks])} more"
            )
        pairs = zip(*self.walks.values(), strict=True)
        totals = [sum(walk.direct for walk in pair) for pair in pairs]
        yield f"{'both:':<11}{_spread(totals)} calls"
        yield f"{'keeper:':<11}{_spread(self.up)} bytes up, {_spread(self.down)} bytes down"
        for process in PROCESSES:
            walk = self.typical(process)
            yield from ("", f"The walk through the {process}: {walk.direct} calls.", "")
            yield from _tree_text(walk.tree(), 0)
            yield from ("", f"How often the {process} calls what:", "")
            yield from (f"{times:5} {name}" for name, times in walk.functions.most_common())

    def as_json(self) -> dict[str, Any]:
        """Return all of it for a program."""
        processes = {
            process: {
                "calls": statistics.median(walk.direct for walk in walks),
                "by_libraries": statistics.median(walk.by_others for walk in walks),
                "functions": statistics.median(len(walk.functions) for walk in walks),
                "each_cell": [walk.direct for walk in walks],
                "times": dict(self.typical(process).functions.most_common()),
                "walk": self.typical(process).calls,
            }
            for process, walks in self.walks.items()
        }
        keeper = {
            "bytes_up": statistics.median(self.up),
            "bytes_down": statistics.median(self.down),
        }
        return {**processes, "keeper": keeper, "code": CODE, "left_out": self.left_out}


def _spread(figures: list[int]) -> str:
    return f"{statistics.median(figures):,.0f} ({min(figures):,} to {max(figures):,})"


def _tree_text(nodes: list[Node], depth: int) -> Iterator[str]:
    for node in nodes:
        times = f"{node.times}x " if node.times > 1 else ""
        who = "" if node.who_called == spy.DIRECT else f"  ({node.who_called})"
        yield f"{'  ' * depth}{times}{node.name}{who}"
        yield from _tree_text(node.inside, depth + 1)


def measure(cells: int) -> Figures:
    """Start a session and count the calls of so many cells."""
    figures = Figures()
    with WatchedGround() as ground, Proxy(ground.sshd.port) as path:
        ground.aim(path)
        peer = Remoter()
        kernel = Kernel(peer.prepare(ground), ground.folder / "kernel.log")
        try:
            kernel.start()
            for number in range(1, min(cells * TRIES, MOST_NUMBER) + 1):
                if len(figures.up) < cells:
                    _measure_cell(figures, kernel, ground, path, number)
        finally:
            kernel.stop()
            peer.make_cold(ground)
            ground.forget_proxy()
    if not figures.up:
        raise TimeoutError("no cell was without housekeeping")
    return figures


def _measure_cell(
    figures: Figures, kernel: Kernel, ground: WatchedGround, path: Proxy, number: int
) -> None:
    time.sleep(random.uniform(0.0, TIMERS))  # else each cell would meet the same timer
    kernel.run(CODE)
    time.sleep(SETTLE)
    up, down = path.bytes_up, path.bytes_down
    ground.turn_to(number)
    kernel.run(CODE)
    time.sleep(ACKNOWLEDGED)
    ground.turn_to(0)
    up, down = path.bytes_up - up, path.bytes_down - down
    walks = ground.walks(number)
    names = {_name(each) for each in HOUSEKEEPING}
    if any(names.intersection(walk.functions) for walk in walks.values()):
        figures.left_out += 1
        return
    figures.up.append(up)
    figures.down.append(down)
    for process, walk in walks.items():
        figures.walks[process].append(walk)


def _name(function: Callable[..., object]) -> str:
    """Name a function as `spy` does."""
    return f"{function.__module__.removeprefix(f'{spy.OURS}.')}.{function.__qualname__}"


def main() -> int:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.walk", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--cells", type=int, default=CELLS, metavar="N", help="cells to count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    wish = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)
    busy = os.getloadavg()[0]
    figures = measure(wish.cells)
    for line in figures.text():
        print(line)
    print(f"\nLoad average before: {busy:.1f}")
    if wish.json:
        wish.json.write_text(json.dumps(figures.as_json(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
