"""Somebody dies, or stops, while a page at a real jupyter_server shows a running cell."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

from tests.real_jupyter import MARK, wait_for
from tests.real_parts import lack, real_part
from tests.real_server import JupyterServer, Page, text_of
from tests.whole.test_deaths import evaluator, is_replaced, session
from tests.whole.test_life import there

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

LINES = 60
COUNT = f"""
import time
for i in range({LINES}):
    print('line', i, flush=True)
    time.sleep(0.1)
done = 'yes'
"""


@pytest.fixture(scope="module")
def server(here: JupyterHere, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """A jupyter_server that starts again what has died."""
    real_part("jupyter_server")
    log = tmp_path_factory.mktemp("server") / "log"
    often = "--KernelRestarter.time_to_dead=1.0"  # seconds between two looks at a proxy
    with JupyterServer(here.folder / "notebooks", log, often) as server:
        yield server


@pytest.fixture
def page(
    server: JupyterServer, here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> Iterator[Page]:
    """A notebook with a far Python."""
    spec = here.add_remote("dies", env={"PYDEVD_DISABLE_FILE_VALIDATION": "1"}, **python_remote)
    with opened(server, spec, far) as page:
        finish(page, page.run("kept = 'since before'; import os", allow_stdin=True))
        yield page


@pytest.fixture
def page_of_r(
    server: JupyterServer, here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> Iterator[Page]:
    """A notebook with a far R."""
    real_part("irkernel")
    spec = here.add_remote("dies-r", language="R", kernel="ir", **python_remote)
    with opened(server, spec, far) as page:
        finish(page, page.run("kept <- 'since before'", allow_stdin=True))
        yield page


@contextlib.contextmanager
def opened(server: JupyterServer, spec: str, far: FarSide) -> Iterator[Page]:
    """A notebook of the test's own, that leaves nothing."""
    page = server.open(spec, f"{spec}-{time.time_ns()}.ipynb")
    try:
        yield page
    finally:
        page.close()
    wait_for(lambda: not there(far), what="the far side is empty")


def front(page: Page) -> psutil.Process:
    """Find the proxy: the process that Jupyter started with this kernel's connection file."""
    file = f"kernel-{page.kernel}.json"
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if any(word.endswith(file) for word in words_of(process))
    ]
    assert len(found) == 1, found
    return found[0]


def words_of(process: psutil.Process) -> list[str]:
    """Return a process's command line."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def is_another(page: Page, dead: psutil.Process) -> bool:
    """Has Jupyter started another proxy?"""
    with contextlib.suppress(AssertionError):
        return front(page) != dead
    return False


def finish(page: Page, *cells: str) -> None:
    """Wait until cells have their reply and their idle."""
    page.listen(lambda: all(page.is_over(cell) for cell in cells))


def lines(text: str) -> list[int]:
    """Return the numbers of the lines in a text."""
    return [int(number) for number in re.findall(r"line (\d+) ?\n", text)]


def seen(page: Page, cell: str) -> list[int]:
    """Return the numbers of the lines that a page has shown in a cell so far."""
    return lines(text_of(page.of(cell)))


def shown(page: Page, code: str) -> str:
    """Run a cell; return all its text, and its value."""
    cell = page.run(code, allow_stdin=True)
    finish(page, cell)
    values = [each["content"].get("data", {}).get("text/plain", "") for each in page.of(cell)]
    return text_of(page.of(cell)) + text_of(page.of(cell), "stderr") + "".join(values)


def kill_front(page: Page) -> None:
    """Kill the proxy; return once Jupyter has said so and started another one."""
    dead, begun = front(page), len(page.states())
    dead.kill()
    page.listen(lambda: "restarting" in page.states()[begun:], seconds=20)
    wait_for(lambda: is_another(page, dead), seconds=20)


def test_a_front_is_killed_twice_during_a_cell(page: Page, here: JupyterHere, far: FarSide) -> None:
    """The variables are there, the cell went on, and what was missed can be had, whole."""
    folder, path = session(far), here.folder / "notebooks" / "missed.ipynb"
    write_notebook(path)
    cell = page.run(COUNT, cell="counts", allow_stdin=True)
    page.listen(lambda: len(seen(page, cell)) > 10)
    for _ in range(2):
        last = seen(page, cell)[-1]
        kill_front(page)
        # What the new proxy shows is not lost on a page, though JupyterLab has no cell for it.
        page.listen(lambda last=last: seen(page, cell)[-1] > last)  # type: ignore[misc]
    assert shown(page, "kept, done, os.getppid()").startswith("('since before', 'yes'")
    missed = lines(shown(page, "%remoter outputs"))
    assert missed == list(range(missed[0], LINES))
    assert session(far) == folder
    ran = here.remoter("outputs", folder.name, "--into", str(path))
    assert ran.returncode == 0, ran
    (filled,) = nbformat.read(path, 4).cells
    assert lines("".join(each["text"] for each in filled.outputs)) == list(range(LINES))


def write_notebook(path: Path) -> None:
    """Write a notebook with the one cell that counts, as it was saved before it ran."""
    cell = nbformat.v4.new_code_cell(COUNT, id="counts")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


def test_an_evaluator_is_killed_during_a_cell(page: Page, far: FarSide) -> None:
    """The cell goes on, says once what may be missing, and Jupyter hears of no restart."""
    cell = page.run(COUNT, allow_stdin=True)
    page.listen(lambda: len(seen(page, cell)) > 10)
    first, begun = evaluator(far), len(page.states())
    first.kill()
    finish(page, cell)
    assert is_replaced(far, first)
    before = seen(page, cell)
    assert before == sorted(set(before))
    assert (before[0], before[-1]) == (0, LINES - 1)
    moment = r"(\S+ \S+ \S+)"  # date, time, zone
    gap = re.findall(f"outputs between {moment} and {moment} may be missing", warned(page, cell))
    assert len(gap) == 1
    assert gap[0][0] <= gap[0][1]
    assert "restarting" not in page.states()[begun:]
    assert shown(page, "kept, done") == "('since before', 'yes')"


def test_a_child_is_killed_during_a_cell(page: Page) -> None:
    """Running and queued cell say how it died, then Jupyter hears `restarting`, then all works."""
    pid = int(shown(page, "os.getpid()"))
    cell = page.run(COUNT, allow_stdin=True)
    queued = [page.run(code, allow_stdin=True) for code in ("print('never')", "1")]
    page.listen(lambda: len(seen(page, cell)) > 10)
    first = front(page)
    psutil.Process(pid).kill()
    hears_of_a_death(page, cell, *queued)
    assert shown(page, "'kept' in globals(), 1 + 1") == "(False, 2)"
    assert front(page) == first


def test_a_child_dies_of_a_client_that_allows_no_questions(
    server: JupyterServer, here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> None:
    """Its proxy follows it; Jupyter starts another one, whose fresh kernel runs the next cell."""
    spec = here.add_remote("mute", env={"PYDEVD_DISABLE_FILE_VALIDATION": "1"}, **python_remote)
    with opened(server, spec, far) as page:
        finish(page, page.run("kept = 1"))
        first, cell = front(page), page.run("import os; os._exit(3)")
        finish(page, cell)
        told = [each["content"].get("evalue", "") for each in page.of(cell)]
        assert any("it ended with exit code 3" in each for each in told)
        wait_for(lambda: is_another(page, first), seconds=20)
        page.listen(lambda: "restarting" in page.states())
        cell = page.run("'kept' in globals(), 6 * 7")
        finish(page, cell)
        values = [each["content"].get("data", {}).get("text/plain") for each in page.of(cell)]
        assert "(False, 42)" in values


def test_a_child_is_killed_by_the_kernels_own_killer(page: Page) -> None:
    """Out of memory: the cell hears of signal 9, and of the memory that was in use."""
    pid = int(shown(page, "os.getpid()"))
    with at_most(300 * 1024 * 1024, pid) as group:
        cell = page.run("waste = bytearray(b'x') * 500_000_000", allow_stdin=True)
        page.listen(lambda: "restarting" in page.states())
        assert "oom_kill 1" in (group / "memory.oom_control").read_text()
    (error,) = [each for each in page.of(cell) if each["msg_type"] == "error"]
    used = re.search(
        r"SIGKILL.*used up to (\d+)\.\d MiB.*runs out of memory", str(error["content"])
    )
    assert used, error
    assert 200 <= int(used[1]) <= 400
    assert shown(page, "1 + 1") == "2"


@contextlib.contextmanager
def at_most(size: int, pid: int) -> Iterator[Path]:
    """Let a process have so many bytes of memory and no more: the real killer comes for it."""
    groups = Path("/sys/fs/cgroup/memory")
    if not os.access(groups, os.W_OK):
        lack("no memory cgroups here", "run the tests as root, with cgroups of version 1")
    group = groups / f"{MARK}-{pid}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(size))
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        group.rmdir()


def test_a_child_of_r_is_killed_during_a_cell(page_of_r: Page) -> None:
    """The same with R."""
    pid = int(shown(page_of_r, "cat(Sys.getpid())"))
    cell = page_of_r.run("cat('line 0\\n')\nSys.sleep(60)", allow_stdin=True)
    queued = page_of_r.run("cat('never')", allow_stdin=True)
    page_of_r.listen(lambda: seen(page_of_r, cell))
    psutil.Process(pid).kill()
    hears_of_a_death(page_of_r, cell, queued)
    assert shown(page_of_r, "cat(exists('kept'), 1 + 1)") == "FALSE 2"


def hears_of_a_death(page: Page, *cells: str) -> None:
    """Wait until a page has heard `restarting`; each cell must have had its end before it."""
    page.listen(lambda: "restarting" in page.states())
    order = [id(each) for each in page.heard]
    news = next(e for e in page.heard if e["content"].get("execution_state") == "restarting")
    for cell in cells:
        said = page.of(cell)
        (error,) = [each for each in said if each["msg_type"] == "error"]
        (reply,) = [each for each in said if each["msg_type"] == "execute_reply"]
        assert reply["content"]["status"] == "error"
        assert re.search(r"SIGKILL.*up to \d+\.\d MiB of memory", error["content"]["evalue"])
        assert page.is_over(cell)
        for each in said:
            assert order.index(id(each)) < order.index(id(news))
        assert "never" not in text_of(said)


def test_a_front_of_r_is_killed_during_a_cell(page_of_r: Page) -> None:
    """The variables are there, and what was missed can be had, whole."""
    cell = page_of_r.run("cat('line 0\\n')\nSys.sleep(6)\ncat('line 1\\n')", allow_stdin=True)
    page_of_r.listen(lambda: seen(page_of_r, cell))
    kill_front(page_of_r)
    assert shown(page_of_r, "cat(kept)").endswith("since before")
    assert lines(shown(page_of_r, "%remoter outputs"))[-1] == 1


def test_a_process_of_sshd_is_killed_during_a_cell(page: Page, sshd: RealSshd) -> None:
    """Every line comes, once, and nothing is said of it."""
    cell = page.run(COUNT, allow_stdin=True)
    page.listen(lambda: len(seen(page, cell)) > 10)
    sshd.cut_all()
    finish(page, cell)
    assert seen(page, cell) == list(range(LINES))
    assert warned(page, cell) == ""


def warned(page: Page, cell: str) -> str:
    """Return what came on stderr in a cell."""
    return text_of(page.of(cell), "stderr")


def test_a_front_is_stopped_for_a_while(page: Page) -> None:
    """Ten seconds of SIGSTOP, longer than a silent wire lives: every line comes, once."""
    cell = page.run(COUNT, allow_stdin=True)
    page.listen(lambda: len(seen(page, cell)) > 10)
    process, begun = front(page), len(page.states())
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(AssertionError, match="not within"):
            page.listen(lambda: len(seen(page, cell)) == LINES, 10.0)
    finally:
        process.send_signal(signal.SIGCONT)
    finish(page, cell)
    assert seen(page, cell) == list(range(LINES))
    assert front(page) == process
    assert "restarting" not in page.states()[begun:]
