"""Somebody dies during a running cell: what is left, what is said, and nothing twice."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.real_jupyter import StartedKernel, started_kernel, wait_for
from tests.real_parts import real_part
from tests.whole.talk import Talk
from tests.whole.test_life import there, value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

LINES = 60
COUNT = f"""
import time
for i in range({LINES}):
    print('line', i, flush=True)
    time.sleep(0.05)
done = 'yes'
"""
WAIT = 40.0  # seconds


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A kernelspec for the far Python."""
    return here.add_remote("deaths", env={"PYDEVD_DISABLE_FILE_VALIDATION": "1"}, **python_remote)


@pytest.fixture
def kernel(spec: str, far: FarSide) -> Iterator[StartedKernel]:
    """A kernel of the test's own, that leaves nothing."""
    with started_kernel(spec) as started:
        yield started
    wait_for(lambda: not there(far), what="the far side is empty")


@pytest.fixture
def talk(kernel: StartedKernel) -> Talk:
    """A conversation with a kernel that works."""
    talk = Talk(kernel.client)
    talk.case(lambda talk: talk.run("kept = 'since before'; import os"))
    return talk


def evaluator(far: FarSide) -> psutil.Process:
    """Find the evaluator: the process that answers for a session."""
    folder = far.home / ".local/share/remoter-kernel/sessions"
    pids = {json.loads(path.read_text()).get("pid") for path in folder.glob("*/door.json")}
    found = [process for process in there(far) if process.pid in pids]
    assert len(found) == 1, found
    return found[0]


def session(far: FarSide) -> Path:
    """Return the folder of the session that the evaluator answers for."""
    pid, folder = evaluator(far).pid, far.home / ".local/share/remoter-kernel/sessions"
    doors = folder.glob("*/door.json")
    return next(door.parent for door in doors if json.loads(door.read_text()).get("pid") == pid)


def is_replaced(far: FarSide, dead: psutil.Process) -> bool:
    """Does another evaluator answer in place of the dead one?"""
    with contextlib.suppress(AssertionError, psutil.Error, ValueError):
        return evaluator(far).pid != dead.pid
    return False


def kill_evaluator(far: FarSide) -> None:
    """Kill the evaluator, and wait until another one is there."""
    first = evaluator(far)
    first.kill()
    wait_for(lambda: is_replaced(far, first), seconds=WAIT, what="another evaluator")


def heard(talk: Talk, cell: str) -> list[dict[str, Any]]:
    """Return what came on iopub in a cell so far."""
    return [
        message
        for channel, message in talk.heard
        if channel == "iopub" and message["parent_header"].get("msg_id") == cell
    ]


def text(talk: Talk, cell: str) -> str:
    """Return what a cell printed so far."""
    said = heard(talk, cell)
    return "".join(m["content"]["text"] for m in said if m["msg_type"] == "stream")


def lines(talk: Talk, cell: str) -> list[int]:
    """Return the numbers of the lines that came in a cell so far."""
    return [int(number) for number in re.findall(r"line (\d+)\n", text(talk, cell))]


def replies(talk: Talk, cell: str) -> list[dict[str, Any]]:
    """Return the replies to a cell."""
    return [
        message["content"]
        for channel, message in talk.heard
        if channel == "shell" and message["parent_header"].get("msg_id") == cell
    ]


def over(talk: Talk, *cells: str) -> None:
    """Wait until cells have their reply and their idle."""
    talk.listen(lambda: all(talk._is_done(cell) for cell in cells), seconds=WAIT)


def test_an_evaluator_is_killed_during_a_cell(talk: Talk, far: FarSide) -> None:
    """Another one takes over: the cell goes on, says what may be missing, and nothing is twice."""
    pid = int(value(talk, "os.getpid()"))
    cell = talk.queue(COUNT)
    queued = talk.queue("len(kept), done")
    talk.listen(lambda: len(lines(talk, cell)) > 5)
    first = evaluator(far)
    first.kill()
    over(talk, cell, queued)
    seen = lines(talk, cell)
    assert seen == sorted(set(seen))
    assert seen[:5] == list(range(5))
    assert seen[-1] == LINES - 1
    assert text(talk, cell).count("may be missing") == 1
    assert [reply["status"] for reply in replies(talk, cell)] == ["ok"]
    assert [reply["status"] for reply in replies(talk, queued)] == ["ok"]
    assert not [m for _, m in talk.heard if m["msg_type"] == "error"]
    shown = [m["content"]["data"] for m in heard(talk, queued) if m["msg_type"] == "execute_result"]
    assert shown == [{"text/plain": "(12, 'yes')"}]
    assert value(talk, "kept, os.getpid()") == f"('since before', {pid})"
    assert evaluator(far).pid != first.pid


def test_a_cell_that_ends_without_any_evaluator(talk: Talk, far: FarSide, sshd: RealSshd) -> None:
    """Its reply is lost: an error says so, it is not run again, what it did is there."""
    talk.case(lambda talk: talk.run("runs = []"))
    code = "import time\nprint('going', flush=True)\nruns.append(1)\ntime.sleep(1.5)"
    cell = talk.queue(code)
    queued = talk.queue("runs.append(2)")
    talk.listen(lambda: "going" in text(talk, cell))
    sshd.stop_listening()
    evaluator(far).kill()
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: talk._is_done(cell), seconds=3.0)
    sshd.start()
    later = talk.queue("print(runs)")
    over(talk, cell, queued, later)
    (error,) = [m["content"] for m in heard(talk, cell) if m["msg_type"] == "error"]
    assert "may be missing" in error["evalue"]
    kinds = [m["msg_type"] for m in heard(talk, cell)]
    assert kinds[-2:] == ["error", "status"]
    assert len(replies(talk, cell)) == len(replies(talk, queued)) == 1
    assert text(talk, later).endswith("[1, 2]\n")  # after a notice that it waits


BETWEEN = """
import os, time
def between():
    del kernel.post_handler_hook
    {}
kernel = get_ipython().kernel
kernel.post_handler_hook = between
print('line 0')
"""


@pytest.mark.parametrize("is_heard", [True, False])
def test_an_evaluator_is_killed_between_a_reply_and_its_idle(
    talk: Talk, far: FarSide, sshd: RealSshd, *, is_heard: bool
) -> None:
    """The cell ends once, and is told: a reply proves no outputs, and the idle may be unheard."""
    cell = talk.queue(BETWEEN.format("time.sleep(1.5)"))
    talk.listen(lambda: bool(replies(talk, cell)))
    if is_heard:
        kill_evaluator(far)
    else:
        sshd.stop_listening()
        evaluator(far).kill()
        with contextlib.suppress(AssertionError):
            talk.listen(lambda: False, seconds=2.5)
        sshd.start()
    over(talk, cell)
    kinds = [m["msg_type"] for m in heard(talk, cell)]
    assert text(talk, cell).count("may be missing") == 1
    assert len(replies(talk, cell)) == kinds.count("execute_input") == 1
    assert (kinds.count("status"), kinds[-1]) == (2, "status")
    assert value(talk, "kept") == "'since before'"


def test_a_child_dies_between_a_reply_and_its_idle(talk: Talk) -> None:
    """The cell has its result, hears how its kernel died, and ends."""
    cell = talk.queue(BETWEEN.format("time.sleep(0.3); os.kill(os.getpid(), 9)"))
    over(talk, cell)
    assert [each["status"] for each in replies(talk, cell)] == ["ok"]
    assert re.search(r"line 0\n\[remoter\] The kernel died: .*SIGKILL", text(talk, cell))
    assert [m["msg_type"] for m in heard(talk, cell)][-2:] == ["stream", "status"]
    wait_for(lambda: value(talk, "1") == "1")


def test_evaluators_are_killed_again_and_again(talk: Talk, far: FarSide) -> None:
    """Three deaths in one cell: no line twice, the variables are there."""
    cell = talk.queue(COUNT.replace("0.05", "0.15"))
    for least in (5, 15, 25):
        talk.listen(lambda least=least: max(lines(talk, cell), default=0) > least, seconds=WAIT)  # type: ignore[misc]
        kill_evaluator(far)
    over(talk, cell)
    seen = lines(talk, cell)
    assert seen == sorted(set(seen))
    assert seen[-1] == LINES - 1
    assert value(talk, "kept, done") == "('since before', 'yes')"


def test_many_cells_wait_when_the_evaluator_is_killed(talk: Talk, far: FarSide) -> None:
    """Many queued cells, three deaths: each has run once, in order, with one reply and an end."""
    talk.case(lambda talk: talk.run("import time; ran = []"))
    cells = [
        talk.queue(f"ran.append({number}); time.sleep(0.02)", stop_on_error=False)
        for number in range(150)
    ]
    for number in (10, 60, 110):
        talk.listen(lambda number=number: bool(heard(talk, cells[number])), seconds=WAIT)  # type: ignore[misc]
        kill_evaluator(far)
    over(talk, *cells)
    assert [len(replies(talk, cell)) for cell in cells] == [1] * 150
    assert value(talk, "ran == list(range(150))") == "True"


def test_a_prompt_waits_when_the_evaluator_is_killed(talk: Talk, far: FarSide) -> None:
    """What is typed after the death reaches the cell that asked before it."""
    cell = talk.queue("print('<', input('who? '), '>')")
    talk.listen(lambda: bool(talk._of("stdin")))
    kill_evaluator(far)
    talk.send("input_reply", {"value": "me"}, channel="stdin")
    over(talk, cell)
    assert "< me >" in text(talk, cell)
    journal = (session(far) / "journal").read_bytes()
    assert b"who? " in journal
    assert b'"value"' not in journal


def test_a_question_that_nobody_heard(
    talk: Talk, far: FarSide, sshd: RealSshd, kernel: StartedKernel
) -> None:
    """What was asked between two evaluators is told, and what to do: an interrupt ends it."""
    cell = talk.queue("import time; print('going', flush=True); time.sleep(1)")
    asks = talk.queue("input('who? ')", stop_on_error=False)
    talk.listen(lambda: "going" in text(talk, cell))
    sshd.stop_listening()
    evaluator(far).kill()
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: False, seconds=1.5)  # it asks meanwhile
    sshd.start()
    talk.listen(lambda: "nobody has heard it: interrupt" in text(talk, cell), seconds=WAIT)
    assert not talk._of("stdin")
    kernel.manager.interrupt_kernel()
    over(talk, cell, asks)
    assert [len(replies(talk, one)) for one in (cell, asks)] == [1, 1]
    assert value(talk, "kept") == "'since before'"


def test_an_evaluator_is_killed_before_its_child_is_ready(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> None:
    """What waited for the child runs once it is ready, once; a second death changes nothing."""
    spec = here.add_remote("deaths-slow", init=("sleep 2",), **python_remote)
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        path = session(far) / "child.json"
        first = path.read_text()
        cell = talk.queue("import os; os.kill(os.getpid(), 9)")
        over(talk, cell)
        waiting = [talk.queue(code) for code in ("n = globals().get('n', 0) + 1", "print('n', n)")]
        begun = wait_for(lambda: path.exists() and begun_since(path, first))
        wait_for(lambda: b"globals()" in (session(far) / "journal").read_bytes())
        kill_evaluator(far)
        over(talk, *waiting)
        assert text(talk, waiting[1]) == "n 1\n"
        assert path.read_text() == begun
        kill_evaluator(far)
        assert value(talk, "n") == "1"
        # The same, and it is still at it when its second evaluator dies.
        cell = talk.queue("import os; os.kill(os.getpid(), 9)")
        over(talk, cell)
        code = (
            "import time; n = globals().get('n', 0) + 1; print('going', flush=True); time.sleep(3)"
        )
        cell = talk.queue(code)
        talk.listen(lambda: "going" in text(talk, cell))
        kill_evaluator(far)
        over(talk, cell)
        assert value(talk, "n") == "1"
    wait_for(lambda: not there(far), what="the far side is empty")


def begun_since(path: Path, first: str) -> str:
    """Return what a warden has written of the kernel that it started after the first one."""
    now = path.read_text()
    return now if now != first and '"pid"' in now else ""


def test_an_interrupt_reaches_a_child_that_was_adopted(
    talk: Talk, far: FarSide, kernel: StartedKernel
) -> None:
    """While the child is too busy to answer its new evaluator, an interrupt still ends the cell."""
    cell = talk.queue("import time\nprint('going', flush=True)\ntime.sleep(300)")
    talk.listen(lambda: "going" in text(talk, cell))
    kill_evaluator(far)
    kernel.manager.interrupt_kernel()
    over(talk, cell)
    assert replies(talk, cell)[0]["ename"] == "KeyboardInterrupt"
    assert value(talk, "kept") == "'since before'"


def test_all_three_are_killed(talk: Talk, far: FarSide) -> None:
    """Nothing is left to adopt: the running and the queued cell hear why and when."""
    cell = talk.queue("import time\nprint('going', flush=True)\ntime.sleep(300)")
    queued = talk.queue("1")
    talk.listen(lambda: "going" in text(talk, cell))
    for process in there(far):
        if "sshd" not in process.name():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    over(talk, cell, queued)
    for each in (cell, queued):
        (error,) = [m["content"] for m in heard(talk, each) if m["msg_type"] == "error"]
        assert error["ename"] == "NoSuchSession"
        assert re.search(r"killed.*It ended at \d{4}-\d\d-\d\d \d\d:\d\d", error["evalue"])


def test_the_child_is_killed_while_it_has_no_evaluator(
    talk: Talk, far: FarSide, sshd: RealSshd
) -> None:
    """The warden writes down how it ended, though nobody listens; the cell hears it later."""
    pid, folder = int(value(talk, "os.getpid()")), session(far)
    cell = talk.queue("import time\nprint('going', flush=True)\ntime.sleep(300)")
    talk.listen(lambda: "going" in text(talk, cell))
    sshd.stop_listening()
    evaluator(far).kill()
    psutil.Process(pid).kill()
    wait_for((folder / "exit.json").exists, what="the warden's last words")
    sshd.start()
    over(talk, cell)
    (error,) = [m["content"] for m in heard(talk, cell) if m["msg_type"] == "error"]
    assert error["ename"] == "NoSuchSession"
    assert re.search(r"signal 9 \(SIGKILL\), having used up to \d+\.\d MiB", error["evalue"])


def test_the_port_is_somebody_elses_by_then(talk: Talk, far: FarSide, sshd: RealSshd) -> None:
    """What answers at the old port is not taken for the session: the proxy asks where it is."""
    port = json.loads((session(far) / "door.json").read_text())["port"]
    sshd.stop_listening()
    first = evaluator(far)
    first.kill()
    first.wait(10)
    knocks: list[bytes] = []
    with socket.create_server(("127.0.0.1", port)) as other:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with other.accept()[0] as knock:
                        knocks.append(knock.recv(10))
                        knock.sendall(b"220 welcome to another service\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            sshd.start()
            assert value(talk, "kept") == "'since before'"
        finally:
            other.shutdown(socket.SHUT_RDWR)
            thread.join(10)
    assert knocks


def test_a_session_process_of_sshd_is_killed(talk: Talk, sshd: RealSshd) -> None:
    """The login's own process dies: every line comes, once."""
    cell = talk.queue(COUNT)
    talk.listen(lambda: len(lines(talk, cell)) > 5)
    sshd.cut_all()
    over(talk, cell)
    assert lines(talk, cell) == list(range(LINES))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_dies_in_this_order(talk: Talk, number: signal.Signals) -> None:
    """Error, reply, idle, and no sooner than 200 ms later the news that it restarts."""
    cell = talk.queue(f"print('going', flush=True)\nos.kill(os.getpid(), {int(number)})")
    moments: dict[str, float] = {}

    def note() -> bool:
        for _, message in talk.heard:
            if message["parent_header"].get("msg_id") in (cell, None):
                state = message["content"].get("execution_state", "")
                moments.setdefault(f"{message['msg_type']} {state}".strip(), time.monotonic())
        return "status restarting" in moments

    talk.listen(note, seconds=WAIT)
    for order in (
        ["error", "status idle", "status restarting"],
        ["execute_reply", "status restarting"],
    ):
        assert sorted(order, key=list(moments).index) == order
    assert moments["status restarting"] - moments["status idle"] > 0.15
    error = next(m["content"] for m in heard(talk, cell) if m["msg_type"] == "error")
    assert number.name in error["evalue"]
    assert re.search(r"up to \d+\.\d MiB of memory", error["evalue"])
    wait_for(lambda: value(talk, "1") == "1")


@pytest.mark.timing
def test_a_kernel_that_does_not_heed_interrupts(
    talk: Talk, kernel: StartedKernel, here: JupyterHere, far: FarSide
) -> None:
    """The second interrupt says so, once, and names the command that ends it with SIGKILL."""
    talk.case(lambda talk: talk.run("import signal, time"))
    code = (
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "print('going', flush=True)\nwhile True: time.sleep(1)"
    )
    cell = talk.queue(code)
    talk.listen(lambda: "going" in text(talk, cell))
    kernel.manager.interrupt_kernel()
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: "heeded" in text(talk, cell), seconds=0.5)
    assert "heeded" not in text(talk, cell)
    for _ in range(3):
        kernel.manager.interrupt_kernel()
    talk.listen(lambda: "heeded" in text(talk, cell))
    name = text(talk, cell).partition("remoter stop ")[2].split()[0]
    begin = time.monotonic()
    assert here.remoter("stop", name).returncode == 0
    assert time.monotonic() - begin < 10
    assert text(talk, cell).count("heeded") == 1
    wait_for(lambda: not there(far), what="the far side is empty")


def test_an_evaluator_of_r_is_killed(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> None:
    """The same with R, whose kernel hears nobody while it is busy."""
    real_part("irkernel")
    spec = here.add_remote("deaths-r", language="R", kernel="ir", **python_remote)
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("kept <- 'since before'"))
        # What is printed comes after each whole expression: a loop would say all at its end.
        cell = talk.queue("cat('line 0\\n')\nSys.sleep(3)\ncat('line 1\\n')")
        queued = [talk.queue(code, stop_on_error=False) for code in ("cat(kept)", "stop('oh')")]
        talk.listen(lambda: bool(lines(talk, cell)))
        kill_evaluator(far)
        later = talk.queue("cat('later')")
        over(talk, cell, *queued, later)
        assert lines(talk, cell) == [0, 1]
        assert text(talk, cell).count("may be missing") == 1
        assert text(talk, queued[0]) == "since before"
        assert text(talk, later).endswith("later")
        said = [[each["status"] for each in replies(talk, one)] for one in (cell, *queued, later)]
        assert said == [["ok"], ["ok"], ["error"], ["ok"]]
    wait_for(lambda: not there(far), what="the far side is empty")


def test_a_question_of_r_after_its_evaluator_was_killed(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> None:
    """R finds a new evaluator's ear for questions once it has been idle; before, that is told."""
    real_part("irkernel")
    spec = here.add_remote("deaths-r", language="R", kernel="ir", **python_remote)
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue("cat('line 0\\n')\nSys.sleep(1)\nreadline('? ')")
        talk.listen(lambda: bool(lines(talk, cell)), seconds=WAIT)
        kill_evaluator(far)
        talk.listen(lambda: "nobody has heard it: interrupt" in text(talk, cell), seconds=WAIT)
        kernel.manager.interrupt_kernel()
        over(talk, cell)
        again = talk.queue("cat('<', readline('? '), '>')")
        talk.listen(lambda: bool(talk._of("stdin")), seconds=WAIT)
        talk.send("input_reply", {"value": "me"}, channel="stdin")
        over(talk, again)
        assert "< me >" in text(talk, again)
        assert [len(replies(talk, one)) for one in (cell, again)] == [1, 1]
    wait_for(lambda: not there(far), what="the far side is empty")
