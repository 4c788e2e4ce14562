"""Cuts, black holes and silence between front and sshd: every line once, in order, in its cell."""

from __future__ import annotations

import contextlib
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from bench.proxy import Proxy
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

LINES = 300
BLACK_HOLE = 20.0  # seconds
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
def talk(
    here: JupyterHere, sshd: RealSshd, far: FarSide, path: Proxy, tmp_path: Any
) -> Iterator[Talk]:
    """A conversation with a far kernel over that path."""
    config = sshd.ssh_config(tmp_path / "ssh_config", "cut", extra=f"Port {path.port}")
    # The key is known by the sshd's own port; the path has another.
    known = sshd.known_hosts.read_text().replace(str(sshd.port), str(path.port))
    (tmp_path / "known").write_text(known)
    text = config.read_text().replace(str(sshd.known_hosts), str(tmp_path / "known"))
    config.write_text(text)
    spec = here.add_remote("cut", host="cut", ssh_config=config, python=str(far.python))
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        yield talk


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


def test_a_black_hole_loses_no_line(talk: Talk, path: Proxy) -> None:
    """Twenty seconds in which nothing passes and nothing is closed cost no line."""
    cell = talk.queue(COUNT % 0.02)
    talk.listen(lambda: len(lines(talk, cell)) > 30, seconds=WAIT)
    path.stall()
    repair = time.monotonic() + BLACK_HOLE
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: is_over(talk, cell), seconds=BLACK_HOLE)
    assert time.monotonic() >= repair - 1
    path.resume()
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
    talk.listen(lambda: any(m["msg_type"] == "execute_input" for _, m in talk.heard))
    path.stall()
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: is_over(talk, cell), seconds=1.5)  # it ends there meanwhile
    path.cut()
    path.resume()
    talk.listen(lambda: is_over(talk, cell), seconds=WAIT)
    assert lines(talk, cell) == [1]


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
    shown = [m["content"]["data"] for _, m in talk.heard if m["msg_type"] == "execute_result"]
    assert shown[-1]["text/plain"] == "'yes'"
    wait_for(sshd.logins)
