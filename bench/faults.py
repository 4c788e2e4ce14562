"""What happens when the path is too narrow for the output, or breaks while it comes.

Each fault has a limit; a peer whose cell is not over by then gets `NEVER`, and the run goes on.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from bench.ground import beside_kernel
from bench.measures import memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.client import Kernel, Message
    from bench.ground import Ground
    from bench.measures import Effort, Figures
    from bench.proxy import Proxy

    Fault = tuple[float, Callable[[], object]]  # seconds after the first line, what happens then

NEVER = math.inf
RTT = 0.05  # seconds
FLOOD_BITS_PER_SECOND = 10e6
FLOOD_CODE = "number = 0\nwhile True:\n    print(number, 'flood ' * 12)\n    number += 1"
FLOOD_SECONDS = 5.0
FLOOD_LIMIT = 120.0  # seconds from the interrupt
WEIGH_EVERY = 0.25  # seconds
LINES = 300
LINES_CODE = (
    "import time\n"
    "for number in range({lines}):\n"
    "    print(number, flush=True)\n"
    "    time.sleep({pause})"
)
CUTS_AT = (1 / 6, 3 / 6, 5 / 6)  # of the printing
HOLE_AT = 1 / 6  # of the printing
LATE = 45.0  # seconds a cell may be late


def flood(kernel: Kernel, ground: Ground) -> Figures:
    """Print without end for a while, then interrupt; times how long the cell goes on."""
    processes = beside_kernel(ground.near())
    weights = [memory(processes)]
    weighed_at = time.perf_counter()
    size = 0

    def count(_: str, message: Message) -> None:
        nonlocal size, weighed_at
        size += len(message["content"].get("text", ""))
        if (now := time.perf_counter()) >= weighed_at + WEIGH_EVERY:
            weighed_at = now
            weights.append(memory(processes))

    with kernel.watched():
        request = kernel.send(FLOOD_CODE)
        # The flood has no end of its own: its seconds are over.
        with contextlib.suppress(TimeoutError):
            kernel.wait_for_end(request, on_message=count, seconds=FLOOD_SECONDS)
        size, begun = 0, time.perf_counter()
        kernel.interrupt()
        seconds = NEVER
        with contextlib.suppress(TimeoutError):
            kernel.wait_for_end(request, on_message=count, seconds=FLOOD_LIMIT, may_fail=True)
            seconds = time.perf_counter() - begun
    figures = {"flood idle": [seconds], "flood text": [size / 1e6]}
    if processes:
        weights.append(memory(processes))
        figures["flood memory"] = [max(weights) - weights[0]]
    return figures


def resets(kernel: Kernel, proxy: Proxy, effort: Effort) -> Figures:
    """Reset every connection three times while lines come."""
    faults: list[Fault] = [(effort.printing * share, proxy.cut) for share in CUTS_AT]
    return _lines("resets", kernel, effort, faults, over_at=effort.printing)


def black_hole(kernel: Kernel, proxy: Proxy, effort: Effort) -> Figures:
    """Let nothing through for a while; then the connections go on as if nothing had been."""
    return _hole("hole", kernel, proxy, effort, proxy.resume)


def outage(kernel: Kernel, proxy: Proxy, effort: Effort) -> Figures:
    """Let nothing through for a while; then no connection is known, and new ones are welcome."""

    def come_back() -> None:
        proxy.cut()
        proxy.resume()

    return _hole("outage", kernel, proxy, effort, come_back)


def _hole(
    name: str, kernel: Kernel, proxy: Proxy, effort: Effort, come_back: Callable[[], object]
) -> Figures:
    """Let nothing through from early in the printing until after its end."""
    begin = effort.printing * HOLE_AT
    end = begin + effort.hole
    faults: list[Fault] = [(begin, proxy.stall), (end, come_back)]
    try:
        return _lines(name, kernel, effort, faults, over_at=end)
    finally:
        # Whatever happened, the kernel can be stopped.
        proxy.resume()


def _lines(
    name: str, kernel: Kernel, effort: Effort, faults: list[Fault], *, over_at: float
) -> Figures:
    """Print lines through faults; counts what comes, and times idle from `over_at` on."""
    texts: list[str] = []
    timers = [threading.Timer(at, fault) for at, fault in faults]
    first_line_at = 0.0

    def keep(_: str, message: Message) -> None:
        nonlocal first_line_at
        if message["msg_type"] != "stream" or message["content"]["name"] != "stdout":
            return
        texts.append(message["content"]["text"])
        if not first_line_at:
            first_line_at = time.perf_counter()
            for timer in timers:
                timer.start()

    seconds = NEVER
    try:
        with kernel.watched(), contextlib.suppress(TimeoutError):
            request = kernel.send(LINES_CODE.format(lines=LINES, pause=effort.printing / LINES))
            kernel.wait_for_end(request, on_message=keep, seconds=over_at + LATE)
            seconds = time.perf_counter() - first_line_at - over_at
    finally:
        for timer in timers:
            timer.cancel()
            if timer.is_alive():
                timer.join()
    lines = [int(line) for line in "".join(texts).split()]
    return {
        f"{name} lines": [len(set(lines))],
        f"{name} wrong": [sum(line >= following for line, following in pairwise(lines))],
        f"{name} idle": [seconds],
    }
