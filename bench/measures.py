"""What is measured on a running kernel; each function gives figures by the name of their row."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from bench.ground import beside_kernel

if TYPE_CHECKING:
    from bench.client import Kernel, Message
    from bench.ground import Ground
    from bench.proxy import Proxy

    Figures = dict[str, list[float]]

TEXT = 20_000_000  # bytes
TEXT_CODE = f"line = 'x' * 999\nfor _ in range({TEXT // 1000}):\n    print(line)"
DISPLAYS = 2_000
DISPLAY_CODE = f"for number in range({DISPLAYS}):\n    display(number)"
# The loop ends without a traceback: IPython takes ten times as long to format one as an interrupt
# takes to arrive.
LOOP_CODE = """
import time
try:
    print('on', flush=True)
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    pass
"""
SETTLE = 0.3  # seconds a loop runs before it is interrupted
MEGABYTE = 1e6


@dataclass(frozen=True)
class Effort:
    """How often and how long things are measured in one visit."""

    cells: int
    interrupts: int
    idle_seconds: float
    printing: float  # seconds the cell takes that meets the faults
    hole: float  # seconds nothing comes through


def empty_cells(kernel: Kernel, proxy: Proxy, effort: Effort) -> Figures:
    """Time empty cells, and count what one puts on the wire."""
    for _ in range(3):
        kernel.run("pass")
    up, down = proxy.bytes_up, proxy.bytes_down
    times = [kernel.run("pass") * 1000 for _ in range(effort.cells)]
    return {
        "empty cell": times,
        "wire up": [(proxy.bytes_up - up) / effort.cells],
        "wire down": [(proxy.bytes_down - down) / effort.cells],
    }


def text(kernel: Kernel) -> Figures:
    """Time 20 MB of printed lines, and see that all came."""
    got = 0

    def count(_: str, message: Message) -> None:
        nonlocal got
        if message["msg_type"] == "stream":
            got += len(message["content"]["text"])

    seconds = kernel.run(TEXT_CODE, on_message=count)
    if got != TEXT:
        raise ValueError(f"{got} of {TEXT} bytes of text came")
    return {"text": [seconds]}


def displays(kernel: Kernel) -> Figures:
    """Time 2,000 small displays, and see that all came, in order."""
    got: list[str] = []

    def keep(_: str, message: Message) -> None:
        if message["msg_type"] == "display_data":
            got.append(message["content"]["data"]["text/plain"])

    seconds = kernel.run(DISPLAY_CODE, on_message=keep)
    if got != [str(number) for number in range(DISPLAYS)]:
        raise ValueError(f"{len(got)} of {DISPLAYS} displays came, or not in order")
    return {"displays": [seconds]}


def interrupts(kernel: Kernel, effort: Effort) -> Figures:
    """Time from an interrupt to the end of a loop that sleeps."""
    times = []
    for _ in range(effort.interrupts):
        request = kernel.send(LOOP_CODE)
        for _, message in kernel.messages(time.perf_counter() + 30):
            if message["msg_type"] == "stream":
                break
        time.sleep(SETTLE)
        begun = time.perf_counter()
        kernel.interrupt()
        kernel.wait_for_end(request)
        times.append((time.perf_counter() - begun) * 1000)
    return {"interrupt": times}


def load(kernel: Kernel, ground: Ground, effort: Effort) -> Figures:
    """Take memory and idle CPU of what each side runs beside the kernel itself.

    The kernel is asked every few seconds whether it is alive, as jupyter_server does; the
    processes that sshpyk starts for that are children of ours, so our children count as near.
    """
    near, far = beside_kernel(ground.near()), beside_kernel(ground.far())
    begun = time.perf_counter()
    near_before, far_before = _cpu(near) + _reaped_cpu(), _cpu(far)
    with kernel.watched():
        time.sleep(effort.idle_seconds)
    seconds = time.perf_counter() - begun
    return {
        "near memory": [memory(near)],
        "far memory": [memory(far)],
        "near cpu": [(_cpu(near) + _reaped_cpu() - near_before) / seconds * 100],
        "far cpu": [(_cpu(far) - far_before) / seconds * 100],
    }


def percentile(samples: list[float], share: float) -> float:
    """Give the sample below which `share` of all samples lie."""
    if len(samples) < 2:
        return samples[0]
    return statistics.quantiles(samples, n=1000, method="inclusive")[round(share * 1000) - 1]


def _cpu(processes: list[psutil.Process]) -> float:
    """Add up the CPU seconds of these processes (and of children that they waited for)."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _reaped_cpu() -> float:
    """CPU seconds of our own children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)


def memory(processes: list[psutil.Process]) -> float:
    """Add up resident memory, in MB."""
    total = 0.0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MEGABYTE
