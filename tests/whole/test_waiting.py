"""While the link is down: a cell that waits says so, and what it said goes away again."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.local.history.executions import CellExecution
from tests.real_jupyter import started_kernel, wait_for
from tests.real_parts import real_part
from tests.whole.talk import Talk
from tests.whole.test_console import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd

WAITING = "Waiting for the link to waits"


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A kernelspec for the far Python."""
    return here.add_remote("waits", **python_remote)


@pytest.fixture
def talk(spec: str) -> Iterator[Talk]:
    """A conversation with a far kernel."""
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        yield talk


@contextlib.contextmanager
def no_network(sshd: RealSshd) -> Iterator[None]:
    """End every login, and let nobody in meanwhile."""
    sshd.stop_listening()
    try:
        yield
    finally:
        sshd.start()


def text_of(talk: Talk, cell: str) -> str:
    """Return all text that has come in a cell."""
    return "".join(m["content"]["text"] for m in said_in(talk, cell) if m["msg_type"] == "stream")


def said_in(talk: Talk, cell: str) -> list[dict[str, Any]]:
    """Return what was published in a cell."""
    return [m for _, m in talk.heard if m["parent_header"].get("msg_id") == cell]


def left_in(talk: Talk, cell: str) -> list[str]:
    """Return the text that a notebook shows in a cell at the end."""
    run = CellExecution(cell, "")
    for message in said_in(talk, cell):
        if message["msg_type"] == "stream":
            run.add({"output_type": "stream", **message["content"]})
        elif message["msg_type"] == "clear_output":
            assert not message["content"]["wait"]
            run.clear()
    return [output["text"] for output in run.outputs]


def test_a_cell_that_waits_says_so_until_the_link_is_back(talk: Talk, sshd: RealSshd) -> None:
    """The notice is there while nothing can come, and nothing of it is left at the end."""
    with no_network(sshd):
        cells = [talk.queue("print('ran')"), talk.queue("x = 1")]
        talk.listen(lambda: all(WAITING in text_of(talk, cell) for cell in cells))
    talk.done(*cells)
    assert [left_in(talk, cell) for cell in cells] == [["ran\n"], []]


def test_a_running_cell_shows_nothing_odd(talk: Talk, sshd: RealSshd) -> None:
    """A cell that was running when the link was lost has its own output, and no more."""
    code = "import time\nfor i in range(4):\n    print(i, flush=True)\n    time.sleep(0.5)"
    cell = talk.queue(code)
    talk.listen(lambda: "0\n" in text_of(talk, cell))
    with no_network(sshd):
        wait_for(lambda: "up for" not in status(talk))
    talk.done(cell)
    assert text_of(talk, cell) == "0\n1\n2\n3\n"
    kinds = {m["msg_type"] for m in said_in(talk, cell)} - {"execute_reply"}
    assert kinds == {"status", "execute_input", "stream"}


def test_a_silent_request_says_nothing(talk: Talk, sshd: RealSshd) -> None:
    """What no person has asked for shows no notice."""
    with no_network(sshd):
        wait_for(lambda: "up for" not in status(talk))
        silent = talk.queue("1", silent=True)
        loud = talk.queue("1")
        talk.listen(lambda: WAITING in text_of(talk, loud))
        assert said_in(talk, silent) == []
    talk.done(silent, loud)


def status(talk: Talk) -> str:
    """Return what `%remoter status` says, asked amid all else."""
    cell = talk.queue("%remoter status")
    talk.done(cell)
    return text_of(talk, cell)


def test_verbs_answer_while_the_link_is_down(talk: Talk, sshd: RealSshd) -> None:
    """Status, help and keep are answered here; log says that only the far side knows."""
    with no_network(sshd):
        wait_for(lambda: "next try in" in status(talk))
        assert "last error" in status(talk)
        cell = talk.queue("%remoter log")
        talk.done(cell)
        (error,) = [m for m in said_in(talk, cell) if m["msg_type"] == "error"]
        assert "The link is down" in error["content"]["evalue"]
        cell = talk.queue("%remoter help")
        talk.done(cell)
        assert "%remoter status" in text_of(talk, cell)
    wait_for(lambda: "up for" in status(talk), seconds=5.0)
    assert "after 1 cut" in status(talk)
    talk.done(talk.queue("1"))


def test_a_console_shows_the_notice_and_takes_it_away(
    here: JupyterHere, sshd: RealSshd, spec: str, tmp_path: Path
) -> None:
    """At a terminal, too, the line goes away when the link is back."""
    real_part("tmux")
    real_part("jupyter-console")
    with Terminal(tmp_path, [sys.executable, "-m", "jupyter_console", "--kernel", spec]) as console:
        console.wait_for("In [1]:")
        console.type("2 + 2")
        console.wait_for("Out[1]: 4")
        with no_network(sshd):
            console.type("3 + 4")
            console.wait_for(WAITING)
        console.wait_for("Out[2]: 7")
        assert WAITING not in console.screen()
        assert "Out[1]: 4" in console.screen()
        console.type("exit")
        wait_for(console.is_over, seconds=30, what="the console has ended")
