"""Cuts, black holes and silence between proxy and sshd: every line once, in order, in its cell."""

from __future__ import annotations

import contextlib
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest

from bench.proxy import Proxy
from tests.real_jupyter import StartedKernel, started_kernel, wait_for
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

LINES = 300
ASLEEP = 6.0  # seconds
COUNT = f"""
import time
for i in range({LINES}):
    print('line', i, flush=True)
    time.sleep(%s)
"""
WAIT = 60.0  # seconds from a repaired link to the end of a cell


@pytest.fixture
def path(sshd: RealSshd) -> Iterator[Proxy]:
    """A breakable path to the sshd."""
    with Proxy(sshd.port) as proxy:
        yield proxy


@pytest.fixture
def kernel(
    here: JupyterHere, sshd: RealSshd, far: FarSide, path: Proxy, tmp_path: Path
) -> Iterator[StartedKernel]:
    """A far kernel over that path."""
    config = tmp_path / "ssh_config"
    # The key is known by the sshd's own port; the path has another.
    name = f"[127.0.0.1]:{sshd.port}"
    sshd.ssh_config(config, "cut", extra=f"Port {path.port}\nHostKeyAlias {name}")
    spec = here.add_remote("cut", host="cut", ssh_config=config, python=str(far.python))
    with started_kernel(spec) as started:
        yield started


@pytest.fixture
def talk(kernel: StartedKernel) -> Talk:
    """A conversation with it, over a link that is up."""
    talk = Talk(kernel.client)
    talk.case(lambda talk: talk.run("1"))
    return talk


def lines(talk: Talk, cell: str) -> list[int]:
    """Return the numbers of the lines that came in a cell so far."""
    text = "".join(
        message["content"]["text"]
        for channel, message in talk.heard
        if channel == "iopub"
        and message["msg_type"] == "stream"
        and message["parent_header"].get("msg_id") == cell
    )
    return [int(number) for number in re.findall(r"line (\d+)\n", text)]


def has_more(talk: Talk, cell: str, than: int) -> bool:
    """Have more lines than that come in a cell?"""
    return len(lines(talk, cell)) > than


def is_over(talk: Talk, cell: str) -> bool:
    """Has this cell its reply and its idle?"""
    return talk._is_done(cell)


def test_three_cuts_lose_no_line(talk: Talk, path: Proxy) -> None:
    """Three resets in a cell of 300 lines: all 300 lines arrive, once, in order."""
    cell = talk.queue(COUNT % 0.02)
    for until in (50, 120, 190):
        talk.listen(partial(has_more, talk, cell, until), seconds=WAIT)
        assert path.cut() > 0
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert lines(talk, cell) == list(range(LINES))


def test_a_cell_that_is_run_while_the_link_is_down_runs_once(talk: Talk, path: Proxy) -> None:
    """A cell sent into a dead link runs when the link is back, and only once."""
    talk.case(lambda talk: talk.run("ran = 0"))
    path.stall()
    cell = talk.queue("ran += 1\nprint('line', ran)")
    path.cut()
    path.resume()
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert lines(talk, cell) == [1]
    again = talk.queue("print('line', ran)")
    talk.listen(lambda: is_over(talk, again), seconds=WAIT)
    assert lines(talk, again) == [1]


def test_a_reply_that_was_lost_on_the_way_comes(talk: Talk, path: Proxy) -> None:
    """A cut between a cell's end and its reply: the reply comes, and the cell runs once."""
    talk.case(lambda talk: talk.run("runs = []"))
    cell = talk.queue("runs.append(1)\nimport time; time.sleep(0.5)\nprint('line', len(runs))")
    talk.listen(lambda: talk.has_begun(cell))
    path.stall()
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: is_over(talk, cell), seconds=1.5)  # it ends there meanwhile
    path.cut()
    path.resume()
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert lines(talk, cell) == [1]


def results(talk: Talk, cell: str) -> list[str]:
    """Return what a cell showed as its result."""
    return [
        message["content"]["data"]["text/plain"]
        for _, message in talk.heard
        if message["msg_type"] == "execute_result"
        and message["parent_header"].get("msg_id") == cell
    ]


@pytest.mark.parametrize("is_asked_before", [True, False])
def test_a_question_survives_a_cut(talk: Talk, path: Proxy, *, is_asked_before: bool) -> None:
    """A cell that asks is answered, whether the cut comes after the question or before it."""
    cell = talk.queue("import time\ntime.sleep(0.3)\ninput('? ')")
    if is_asked_before:
        talk.listen(lambda: bool(talk._of("stdin")))
    else:
        talk.listen(lambda: talk.has_begun(cell))
    path.cut()
    talk.listen(lambda: bool(talk._of("stdin")), seconds=WAIT)
    talk.send("input_reply", {"value": "yes"}, channel="stdin")
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert results(talk, cell) == ["'yes'"]
    assert len(talk._of("stdin")) == 1


def test_an_interrupt_that_is_pressed_while_the_link_is_down(talk: Talk, path: Proxy) -> None:
    """It is answered here at once, and ends the cell there when the link is back."""
    cell = talk.queue("import time\nprint('started', flush=True)\ntime.sleep(600)")
    talk.until_said("started")
    path.stall()
    talk.ask("interrupt_request", channel="control")
    path.cut()
    path.resume()
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    (reply,) = [m for m in talk._of("shell") if m["parent_header"].get("msg_id") == cell]
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    after = talk.queue("1 + 1")
    talk.listen(lambda: is_over(talk, after), seconds=WAIT)
    assert results(talk, after) == ["2"]


def test_a_restart_that_is_pressed_while_the_link_is_down(
    kernel: StartedKernel, talk: Talk, path: Proxy
) -> None:
    """It is carried out at the next login: the variables are gone before anything runs."""
    talk.case(lambda talk: talk.run("kept = 1"))
    path.stall()
    kernel.manager.restart_kernel()
    path.cut()
    path.resume()
    kernel.client.wait_for_ready(timeout=WAIT)
    talk = Talk(kernel.client)
    cell = talk.queue("'kept' in globals()")
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert results(talk, cell) == ["False"]


def test_many_cuts_under_a_flood(talk: Talk, path: Proxy) -> None:
    """Ten resets while megabytes flow lose nothing and repeat nothing."""
    code = "for i in range(3000):\n    print('line', i)\n    print('x' * 2000)"
    cell = talk.queue(code)
    for cut in range(10):
        with contextlib.suppress(AssertionError):
            before = len(lines(talk, cell))
            talk.listen(partial(has_more, talk, cell, before), seconds=5)
        path.cut()
        if is_over(talk, cell):
            assert cut > 0
            break
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert lines(talk, cell) == list(range(3000))


def test_a_sshd_that_is_restarted(talk: Talk, sshd: RealSshd) -> None:
    """The sshd itself goes and comes back: the session is the same one."""
    talk.case(lambda talk: talk.run("kept = 'yes'"))
    sshd.stop_listening()
    cell = talk.queue("kept")
    sshd.start()
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert results(talk, cell) == ["'yes'"]
    wait_for(sshd.logins)
