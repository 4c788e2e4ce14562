"""What is with each request: nothing stays that is over, busy comes once, `status` tells more."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import QUIET, Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere, StartedKernel

MESSAGES, AT_ONCE = 10_000, 250
SIZE = 10_000  # bytes
GROWS_BY = 30e6  # bytes
TARGET = """
got = []
def opened(comm, message):
    comm.on_msg(lambda message: got.append(len(message["content"]["data"]["text"])))
get_ipython().kernel.comm_manager.register_target("counts", opened)
"""


@pytest.fixture
def kernel(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[StartedKernel]:
    """A kernel that is far away."""
    with started_kernel(here.add_remote("requests", **python_remote)) as kernel:
        yield kernel


def states(talk: Talk, name: str) -> list[str]:
    """Which states a request was said to have."""
    return [
        message["content"]["execution_state"]
        for _, message in talk.heard
        if message["msg_type"] == "status" and message["parent_header"].get("msg_id") == name
    ]


def open_requests(talk: Talk) -> str:
    """Return what `%remoter status --requests` says."""
    cell = talk.queue("%remoter status --requests")
    talk.done(cell)
    return "".join(
        message["content"]["text"]
        for _, message in talk.heard
        if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == cell
    )


def test_many_widget_messages_leave_nothing_behind(kernel: StartedKernel) -> None:
    """Nor does the end of their session answer any of them."""
    talk, front = Talk(kernel.client), psutil.Process(kernel.pid)
    talk.done(talk.queue(TARGET))
    talk.tell("comm_open", {"comm_id": "c", "target_name": "counts", "data": {}})
    content = {"comm_id": "c", "data": {"text": "x" * SIZE}}

    def send(count: int) -> None:
        for _ in range(count // AT_ONCE):
            talk.heard.clear()
            names = [talk.send("comm_msg", content) for _ in range(AT_ONCE)]
            talk.listen(partial(talk._is_idle, names[-1]))
            assert {tuple(states(talk, name)) for name in names} == {("busy", "idle")}

    send(2 * AT_ONCE)
    before = front.memory_info().rss
    send(MESSAGES - 2 * AT_ONCE)
    grown = front.memory_info().rss - before
    assert grown < GROWS_BY
    counted = talk.queue(f"print(len(got), set(got) == {{{SIZE}}})")
    talk.done(counted)
    talk.until_said(f"{MESSAGES} True\n")
    assert open_requests(talk).startswith("Here: no requests are open\n")
    talk.heard.clear()
    talk.done(talk.queue("%remoter stop"))
    lost = talk.queue("1")
    talk.done(lost)
    talk.listen(lambda: False, seconds=QUIET)
    assert {message["msg_type"] for channel, message in talk.heard if channel == "shell"} == {
        "execute_reply"
    }


def test_a_console_hears_once_that_its_cell_is_busy_however_late_the_kernel_says_so(
    kernel: StartedKernel,
) -> None:
    """It has asked whether the cell is complete; the kernel is at another cell meanwhile."""
    talk = Talk(kernel.client)
    talk.done(talk.queue("1"))  # from then on nobody answers in the kernel's place
    begun = time.monotonic()
    before = talk.queue("import time; time.sleep(1)")
    talk.listen(lambda: "busy" in states(talk, before))
    asked = talk.send("is_complete_request", {"code": "2"})
    cell = talk.queue("2")
    talk.listen(lambda: "busy" in states(talk, cell))
    assert time.monotonic() - begun < 1  # before the kernel can have begun with it
    talk.done(before, asked, cell)
    talk.listen(lambda: False, seconds=QUIET)
    assert states(talk, before) == ["busy", "idle"]
    # Once more after the idle of the one before it, which clients take for the kernel's.
    assert states(talk, cell) in (["busy", "idle"], ["busy", "busy", "idle"])


def test_status_tells_how_far_each_request_has_come_at_both_ends(kernel: StartedKernel) -> None:
    talk = Talk(kernel.client)
    talk.done(talk.queue("1"))
    running = talk.queue("import time\nwhile True: time.sleep(0.1)")
    talk.listen(partial(talk.has_begun, running))
    waiting = talk.queue("1")

    def is_told_at_both_ends() -> bool:
        """Each end writes what it knows a moment later."""
        here, _, there = open_requests(talk).partition("In session ")
        return " accepted " in here and there.count(" execute_request ") == 2

    wait_for(is_told_at_both_ends, what="word of both requests at both ends")
    here, there = open_requests(talk).split("In session ")
    (first, second) = here.removeprefix("Here:\n").splitlines()
    assert first.split()[:3] == [running, "execute_request", "running"]
    assert second.split()[:3] == [waiting, "execute_request", "accepted"]
    assert "in the session's journal" in second
    (first, second) = there.splitlines()[1:]
    assert first.split()[:3] == [running, "execute_request", "running"]
    assert second.split()[:3] == [waiting, "execute_request", "sent"]
    talk.send("interrupt_request", {}, channel="control")
    talk.done(running, waiting)
    assert open_requests(talk).startswith("Here: no requests are open\n")
