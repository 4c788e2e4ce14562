"""An evaluator that was held up for a while hears all that its kernel said meanwhile, in order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator.records import read_journal
from remoter_kernel.protocol.frames import Channel, unpack_parts
from remoter_kernel.protocol.messages import HEADER, PARENT, header_of
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import Talk
from tests.whole.test_deaths import evaluator, heard, over, replies, session, text
from tests.whole.test_life import there, value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

MANY = 3000
SHOW = """
import os, pathlib, sys, threading, time
from IPython.display import display
folder = pathlib.Path({folder!r})
while not (folder / "go").exists(): time.sleep(0.01)
for number in range({many}):
    display(number)
    # ZeroMQ in the kernel drops what is more than 1,000 messages ahead of its own thread.
    if number % 100 == 0: time.sleep(0.01)
sys.stdout.flush()
"""
LATER = "threading.Timer(0.5, (folder / 'done').touch).start()"


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A kernelspec for the far Python."""
    return here.add_remote("held", **python_remote)


@pytest.fixture
def talk(spec: str, far: FarSide) -> Iterator[Talk]:
    """A conversation with a kernel of the test's own."""
    with started_kernel(spec) as started:
        yield Talk(started.client)
    wait_for(lambda: not there(far), what="the far side is empty")


@pytest.fixture
def folder(far: FarSide) -> Iterator[Path]:
    """A folder that both sides can write to."""
    with far.folder() as folder:
        folder.chmod(0o777)
        yield folder


def run_unheard(talk: Talk, far: FarSide, folder: Path, how: str) -> str:
    """Run a cell that shows many numbers while its evaluator is stopped; `how` it goes on."""
    value(talk, "1")
    ended = session(far) / "exit.json"
    cell = talk.queue(SHOW.format(folder=str(folder), many=MANY) + how)
    talk.listen(lambda: talk.has_begun(cell))
    process = evaluator(far)
    begun = time.monotonic()
    process.suspend()
    try:
        (folder / "go").touch()
        wait_for(lambda: (folder / "done").exists() or ended.exists())
    finally:
        process.resume()
    assert time.monotonic() - begun < 10
    over(talk, cell)
    return cell


def shown(talk: Talk, cell: str) -> list[int]:
    """Return the numbers that came, in their order."""
    said = [m["content"]["data"] for m in heard(talk, cell) if m["msg_type"] == "display_data"]
    return [int(data["text/plain"]) for data in said]


def journaled(folder: Path, cell: str) -> list[str]:
    """Return what the journal has of a cell: kinds of messages, in their order."""
    kinds = []
    for record in read_journal(folder / "journal"):
        if record.is_marker or record.channel not in {Channel.IOPUB, Channel.SHELL}:
            continue
        parts = unpack_parts(record.body)
        if header_of(parts[PARENT]).get("msg_id") == cell:
            kinds.append(str(header_of(parts[HEADER])["msg_type"]))
    return kinds


def test_all_comes_before_the_reply(talk: Talk, far: FarSide, folder: Path) -> None:
    """In the journal, too."""
    cell = run_unheard(talk, far, folder, LATER)
    assert shown(talk, cell) == list(range(MANY))
    kinds = journaled(session(far), cell)
    assert kinds[: kinds.index("execute_reply")].count("display_data") == MANY


def test_all_comes_before_a_kernel_has_ended_in_order(
    talk: Talk, far: FarSide, folder: Path
) -> None:
    """`exit()`: the cell ends well."""
    cell = run_unheard(talk, far, folder, "exit()")
    assert shown(talk, cell) == list(range(MANY))
    assert [each["status"] for each in replies(talk, cell)] == ["ok"]
    assert "missing" not in text(talk, cell)


@pytest.mark.parametrize(
    ("how", "doubts"),
    [("time.sleep(0.5)\nos._exit(3)", 0), ("time.sleep(0.5)\nos.kill(os.getpid(), 9)", 1)],
)
def test_all_comes_before_the_news_of_a_death(talk: Talk, far: FarSide, folder: Path, how, doubts):
    """Of a kernel that was killed its last outputs may be missing, and the cell says so once."""
    cell = run_unheard(talk, far, folder, how)
    assert shown(talk, cell) == list(range(MANY))
    kinds = [m["msg_type"] for m in heard(talk, cell)]
    assert kinds[: kinds.index("error")].count("display_data") == MANY
    said = text(talk, cell) + "".join(each["evalue"] for each in replies(talk, cell))
    assert said.count("may be missing") == doubts
