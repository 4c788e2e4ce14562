"""What happens when the path is too narrow for the output, or breaks while it comes."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.client import Kernel
    from bench.measures import Figures
    from bench.proxy import Proxy

RTT = 0.05  # seconds
FLOOD_BITS_PER_SECOND = 10e6
FLOOD_CODE = "number = 0\nwhile True:\n    print(number, 'flood ' * 12)\n    number += 1"
FLOOD_SECONDS = 5.0
FLOOD_LIMIT = 60.0  # seconds from the interrupt; a figure of 60 means: not even then
CUT_LINES = 300
CUT_PAUSE = 0.03  # seconds between lines
CUT_CODE = (
    f"import time\nfor number in range({CUT_LINES}):\n"
    f"    print(number, flush=True)\n    time.sleep({CUT_PAUSE})"
)
CUTS_AT = (2.0, 4.5, 7.0)  # seconds after the first line
CUT_LIMIT = 45.0  # seconds from sending the cell; nine would do without faults
POLL_EVERY = 3.0  # seconds; jupyter_server asks this often whether a kernel is alive


def flood(kernel: Kernel) -> Figures:
    """Print without end for a while, then interrupt; times how long the cell goes on."""
    request = kernel.send(FLOOD_CODE)
    begun = time.perf_counter()
    try:
        for _ in kernel.messages(begun + FLOOD_SECONDS):
            pass
    except TimeoutError:
        pass  # which is how the flood's seconds end
    size = 0

    def count(_: str, message: dict[str, dict[str, str]]) -> None:
        nonlocal size
        size += len(message["content"].get("text", ""))

    begun = time.perf_counter()
    kernel.manager.interrupt_kernel()
    try:
        kernel.wait_for_end(request, on_message=count, seconds=FLOOD_LIMIT, may_fail=True)
    except TimeoutError:
        return {"flood": [FLOOD_LIMIT], "flood text": [size / 1e6]}
    return {"flood": [time.perf_counter() - begun], "flood text": [size / 1e6]}


def cuts(kernel: Kernel, proxy: Proxy) -> Figures:
    """Reset the connections three times while lines come: counts what arrives."""
    request = kernel.send(CUT_CODE)
    begun = time.perf_counter()
    lines: list[int] = []
    missing = {"shell", "iopub"}
    pending = list(CUTS_AT)
    first_line = poll_at = 0.0
    while missing and time.perf_counter() - begun < CUT_LIMIT:
        try:
            for name, message in kernel.messages(time.perf_counter() + 0.1):
                if message["parent_header"].get("msg_id") != request:
                    continue
                content = message["content"]
                if message["msg_type"] == "stream":
                    lines += map(int, content["text"].split())
                    first_line = first_line or time.perf_counter()
                elif name == "shell" or content.get("execution_state") == "idle":
                    missing.discard(name)
                break
        except TimeoutError:
            pass
        now = time.perf_counter()
        if first_line and pending and now - first_line >= pending[0]:
            pending.pop(0)
            proxy.cut()
        if now >= poll_at:
            kernel.manager.is_alive()
            poll_at = now + POLL_EVERY
    in_order = sorted(set(lines))
    return {
        "cut lines": [len(in_order)],
        "cut wrong": [sum(line >= following for line, following in pairwise(lines))],
        "cut ended": [0 if missing else 1],
    }
