"""A thread of ours does not die in silence, and a worker keeps a slow thing out of the loop."""

from __future__ import annotations

import ast
import logging
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import remoter_kernel
from remoter_kernel.logs import reason
from remoter_kernel.protocol.threads import Thread, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN = 10.0  # seconds


def fail(error: BaseException) -> None:
    """Raise it."""
    raise error


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), SystemExit(3)])
def test_what_a_thread_did_not_catch_is_logged_and_handed_on(error, caplog):
    """Whatever it is: who started the thread hears of it, and the log has it."""
    told: list[BaseException] = []
    thread = Thread(fail, name="writes", args=(error,), on_error=told.append)
    thread.start()
    thread.join(WITHIN)
    assert told == [error]
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    assert "writes" in line.getMessage()
    assert type(error).__name__ in line.getMessage()


def test_a_thread_that_ends_as_it_should_tells_nothing(caplog):
    """No error, no word; and no such thread keeps a process alive."""
    told: list[BaseException] = []
    thread = Thread(told.clear, name="clears", on_error=told.append)
    assert thread.daemon
    thread.start()
    thread.join(WITHIN)
    assert (told, caplog.records) == ([], [])


class Loop:
    """The calls that a worker wants made in the loop's thread: this one."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.worker = Worker("a disk", self.calls.put)
        self.heard: list[Any] = []

    def make_one(self) -> None:
        self.calls.get(timeout=WITHIN)()


def test_a_job_holds_up_nobody_and_its_result_comes_back_to_the_loop():
    """Jobs are done in their order, in one other thread; results are heard in this one."""
    loop = Loop()
    go = threading.Event()
    loop.worker.submit(
        lambda: (go.wait(WITHIN), threading.current_thread().name)[1], loop.heard.append
    )
    loop.worker.submit(lambda: 2, loop.heard.append)
    assert loop.calls.empty()
    go.set()
    loop.make_one()
    loop.make_one()
    assert loop.heard == ["a disk", 2]
    loop.worker.close(WITHIN)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyError("pid")])
def test_a_job_that_fails_is_told_and_the_next_one_is_done(error, caplog):
    """One bad job ends neither the worker nor the other jobs."""
    loop = Loop()
    loop.worker.submit(lambda: fail(error), on_error=loop.heard.append)
    loop.worker.submit(lambda: "after", loop.heard.append)
    loop.make_one()
    loop.make_one()
    assert loop.heard == [error, "after"]
    assert reason(error) in caplog.text
    loop.worker.close(WITHIN)


def test_every_thread_of_the_program_is_such_a_thread():
    """Nobody starts one in another way: what goes wrong in that would be heard by nobody."""
    folder = Path(remoter_kernel.__file__).parent
    found = [
        f"{path.relative_to(folder)}:{node.lineno}"
        for path in folder.rglob("*.py")
        if path.name != "logs.py"  # which they write to
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (node.args or node.keywords)
        and ast.unparse(node.func) in {"threading.Thread", "_thread.start_new_thread"}
    ]
    assert found == []
