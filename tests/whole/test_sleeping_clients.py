"""A kernel shows hundreds of megabytes to a client that reads none of it for now, then all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.real_jupyter import started_kernel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

WITHIN = 30.0  # seconds
COUNT, SIZE = 2500, 192 * 1024  # displays, and bytes of each: almost 500 MB
GROWTH = 192 * 1024 * 1024  # bytes: the most credit, which is 64 MiB, and what holds it
SHOW = f"""
import pathlib, time
from IPython.display import display
for number in range({COUNT}):
    time.sleep(0.002)  # a kernel drops what it says faster than it is heard
    display({{"text/plain": str(number), "x/y": "x" * {SIZE}}}, raw=True)
pathlib.Path("~/shown").expanduser().touch()
"""


def settle(process: psutil.Process, shown: Path) -> int:
    """Wait until all is shown and a process grows no more; return the most it had, in bytes."""
    most, since, until = 0, time.monotonic(), time.monotonic() + WITHIN
    while time.monotonic() - since < 3.0 or not shown.exists():
        assert time.monotonic() < until
        now = process.memory_info().rss
        if now > most + 2**20:
            most, since = now, time.monotonic()
        time.sleep(0.05)  # between two looks
    return most


@pytest.mark.parametrize("is_under_server", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_a_client_does_not_read_stays_with_the_session(
    here: JupyterHere,
    far: FarSide,
    python_remote: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_under_server: bool,
) -> None:
    """The process on this side stays small; when the client reads again, nothing is missing."""
    if is_under_server:
        monkeypatch.setenv("JPY_SESSION_NAME", "here.ipynb")
    with started_kernel(here.add_remote("sleeping", **python_remote)) as kernel:
        client = kernel.client
        proxy = psutil.Process(kernel.pid)
        assert client.execute_interactive("1", timeout=WITHIN)["content"]["status"] == "ok"
        (far.home / "shown").unlink(missing_ok=True)
        before = proxy.memory_info().rss
        cell = client.execute(SHOW)
        assert settle(proxy, far.home / "shown") - before < GROWTH
        numbers, state = [], ""
        while state != "idle":
            said = client.get_iopub_msg(timeout=WITHIN)
            if said["parent_header"].get("msg_id") == cell:
                state = said["content"].get("execution_state", "")
                if said["msg_type"] == "display_data":
                    numbers.append(int(said["content"]["data"]["text/plain"]))
        assert numbers == list(range(COUNT))
        assert client.get_shell_msg(timeout=WITHIN)["content"]["status"] == "ok"
        assert proxy.memory_info().rss - before < GROWTH
        (far.home / "shown").unlink()
