"""Real networks behind this host: each sees only its neighbours, so the way in is by jumping.

This host - gate - middle - deep: three network namespaces in a row, joined by pairs of virtual
cables. Nobody routes; a process gets on only by logging in on the next one.
"""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from tests.real_parts import run_quietly
from tests.real_sshd import ENDS_WITH_US, Place
from tests.real_users import own_name, own_number

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("gate", "middle", "deep")
GONE_WITHIN = 10.0  # seconds


class Networks:
    """The three of them, between enter and exit."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}

    def __enter__(self) -> Self:
        remove_networks()
        before: list[str] = []  # which namespace the cable comes from; none: this host
        for number, name in enumerate(NAMES):
            namespace = own_name(name)
            # 198.18.0.0/15 is for trials: no network that a host is in has such addresses.
            near, far = (f"198.18.{own_number() % 256}.{4 * number + end}" for end in (1, 2))
            cable = _cable() if not before else "out"
            run_quietly(["ip", "netns", "add", namespace])
            run_quietly(["ip", "-n", namespace, "link", "set", "lo", "up"])
            made = ["link", "add", cable, "type", "veth", "peer", "name", "in", "netns", namespace]
            run_quietly(["ip", *before, *made])
            run_quietly(["ip", *before, "address", "add", f"{near}/30", "dev", cable])
            run_quietly(["ip", *before, "link", "set", cable, "up"])
            run_quietly(["ip", "-n", namespace, "address", "add", f"{far}/30", "dev", "in"])
            run_quietly(["ip", "-n", namespace, "link", "set", "in", "up"])
            self.places[name] = Place(
                far, (*ENDS_WITH_US, "nsenter", f"--net=/run/netns/{namespace}")
            )
            before = ["-n", namespace]
        return self

    def __exit__(self, *_: object) -> None:
        remove_networks()


def remove_networks() -> None:
    """Remove the three with all their processes; fine if there are none."""
    for name in NAMES:
        namespace = own_name(name)
        if not Path("/run/netns", namespace).exists():
            continue
        _end_all_in(namespace)
        run_quietly(["ip", "netns", "delete", namespace])
    with contextlib.suppress(RuntimeError):  # it goes with its other end, a little later
        run_quietly(["ip", "link", "delete", _cable()])


def _cable() -> str:
    return f"jump-{own_number():04x}"


def _inside(namespace: str) -> Iterator[psutil.Process]:
    for pid in run_quietly(["ip", "netns", "pids", namespace]).split():
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(int(pid))


def _end_all_in(namespace: str) -> None:
    deadline = time.monotonic() + GONE_WITHIN
    while (left := list(_inside(namespace))) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=1.0)
