"""What VS Code's notebooks do with a kernel, done by its own packages to one that is far away."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

from tests.raw_client import RawClient
from tests.real_jupyter import wait_for
from tests.real_parts import real_part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.raw_client import Cell, Notebook
    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround
    from tests.real_users import FarSide


RESTARTS_WITHIN = 5.0  # seconds after the end of a proxy in which the next one is a restart


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[Path]:
    """The kernel.json of a remote that only these tests use; its sessions end with them."""
    name = f"code-{os.getpid()}"
    here.add_remote(name, **python_remote)
    yield spec_of(here, name)
    here.remoter("stop", "--all", name)


def spec_of(here: JupyterHere, remote: str) -> Path:
    """The file that VS Code reads to start a kernel of this remote."""
    return here.data / f"kernels/remoter-{remote}/kernel.json"


@pytest.fixture(scope="module")
def client(here: JupyterHere) -> Iterator[RawClient]:
    """One window for the module."""
    with RawClient(here.folder / "client.log") as client:
        yield client


@pytest.fixture
def notebook(client: RawClient, spec: Path, tmp_path: Path) -> Iterator[Notebook]:
    """A notebook of the test's own, which is open."""
    with opened(client, spec, tmp_path / "a.ipynb") as notebook:
        yield notebook


@contextlib.contextmanager
def opened(client: RawClient, spec: Path, file: Path) -> Iterator[Notebook]:
    """A notebook, until it is closed."""
    notebook = client.open(spec, file)
    try:
        yield notebook
    finally:
        notebook.close()


def test_it_starts_and_its_own_code_runs_before_the_first_cell(
    notebook: Notebook, far: FarSide
) -> None:
    """It answers from here at once; what the client runs first has run there by then."""
    widgets, start_up = notebook.started["said"]
    assert widgets["status"] == start_up["status"] == "ok"
    assert widgets["text"] == ""  # answered before it ran; where a widget comes, it asks again
    assert start_up["text"] == ""
    cell = notebook.run("import getpass; print(getpass.getuser(), __vsc_ipynb_file__)")
    assert cell.text == f"{far.user} {notebook.file}\n"
    assert cell.reply["execution_count"] == 1


# ------------------------------------------------------------------ cells


def test_cells_come_one_after_the_other(notebook: Notebook) -> None:
    """Two hundred results, each in its own cell, counted as they were run."""
    for number in range(1, 201):
        cell = notebook.run(f"print('said', {number}); {number} ** 2")
        assert cell.text == f"said {number}\n{number**2}"
        assert cell.reply["execution_count"] == number
        kinds = list(dict.fromkeys(event["event"] for event in cell.events))
        assert kinds == ["status", "execute_input", "stream", "execute_result"]
        assert cell.of("status")[-1] == {"execution_state": "idle"}


def test_an_error_does_not_stop_what_waits_behind_it(notebook: Notebook) -> None:
    """Nothing is aborted: whether the next cell runs is for the client to say."""
    code = ["import time; time.sleep(1); 1/0", "print('second')", "print('third')"]
    failed, second, third = [notebook.send(each) for each in code]
    assert notebook.done(failed).reply["status"] == "error"
    assert "ZeroDivisionError" in failed.text
    assert notebook.done(second).text == "second\n"
    assert notebook.done(third).text == "third\n"


def test_a_running_cell_is_interrupted(notebook: Notebook) -> None:
    """By a message; the next cell finds the kernel as it was."""
    cell = notebook.send("kept = 5\nimport time\nprint('on')\nwhile True: time.sleep(0.01)")
    notebook.until(lambda: cell.text == "on\n")
    assert notebook.interrupt()["status"] == "ok"
    assert notebook.done(cell).reply["ename"] == "KeyboardInterrupt"
    assert notebook.run("kept").text == "5"


def test_a_cell_asks(notebook: Notebook) -> None:
    """Both kinds of question, by the one identity that all sockets have."""
    cell = notebook.send("import getpass; print(input('who? ') + getpass.getpass('what? '))")
    notebook.until(lambda: cell.of("input_request"))
    notebook.answer("me ")
    notebook.until(lambda: len(cell.of("input_request")) > 1)
    notebook.answer("a word")
    assert notebook.done(cell).text == "me a word\n"
    shown = [(each["prompt"], each["password"]) for each in cell.of("input_request")]
    assert shown == [("who? ", False), ("what? ", True)]


def test_what_may_follow_is_known(notebook: Notebook) -> None:
    """Completion knows what the cells have defined there."""
    notebook.run("a_long_name_of_there = 1")
    assert "a_long_name_of_there" in notebook.complete("a_long_na")["matches"]


def test_a_widget_lives(notebook: Notebook) -> None:
    """It is shown, and what a person does to it is known there."""
    code = "import ipywidgets; slider = ipywidgets.IntSlider(3); display(slider)"
    [shown] = notebook.run(code).of("display_data")
    model = shown["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    notebook.change(model, value=77)
    assert notebook.run("slider.value").text == "77"


def test_a_figure_is_shown(notebook: Notebook) -> None:
    """As a picture, of the kind that the client's own start-up code may have chosen."""
    cell = notebook.run("import matplotlib.pyplot as plot\n_ = plot.plot([1, 4, 9])")
    [shown] = cell.of("display_data")
    assert base64.b64decode(shown["data"]["image/png"]).startswith(b"\x89PNG")


def test_a_kernel_that_died_is_there_for_the_next_cell(notebook: Notebook) -> None:
    """The cell hears how it died. Neither does the front end, nor does it say `restarting`.

    For the one VS Code would call the kernel dead, after the other it sends nothing any more.
    """
    cell = notebook.run("import os; os._exit(3)")
    assert "exit code 3" in cell.text
    # More than one, since the word comes a moment after the end of the cell.
    assert [notebook.run(f"print({number})").text for number in range(3)] == ["0\n", "1\n", "2\n"]
    assert "restarting" not in notebook.states
    assert not notebook.ends


def test_another_language_needs_nothing_of_its_own(
    here: JupyterHere, python_remote: dict[str, Any], client: RawClient, tmp_path: Path
) -> None:
    """For R the client runs nothing before the first cell."""
    real_part("irkernel")
    name = f"r-{os.getpid()}"
    here.add_remote(name, language="R", kernel="ir", **python_remote)
    with opened(client, spec_of(here, name), tmp_path / "r.ipynb") as notebook:
        assert notebook.started["said"] == []
        assert notebook.run("cat(6 * 7)").text == "42"
        assert notebook.run("stop('no')").reply["status"] == "error"
    here.remoter("stop", "--all", name)


# ------------------------------------------------------------------ ends and beginnings


def session_of(notebook: Notebook) -> str:
    """The id of the session that it is in."""
    return notebook.run("%remoter status").text.partition("session")[2].split()[0]


def state_of(here: JupyterHere, spec: Path, session: str) -> str:
    """What the far side says of a session."""
    asked = here.remoter("sessions", spec.parent.name.removeprefix("remoter-"), "--json")
    told = json.loads(asked.stdout)["sessions"]
    return str(next(each["state"] for each in told if each["id"] == session))


def test_what_is_closed_leaves_nothing_here_and_stays_there(
    here: JupyterHere, client: RawClient, spec: Path, tmp_path: Path
) -> None:
    """Closing is no shutdown: the running cell goes on, and its outputs are kept."""
    with opened(client, spec, tmp_path / "a.ipynb") as notebook:
        session = session_of(notebook)
        front = psutil.Process(notebook.pid)
        cell = notebook.send("import time; print('begun'); time.sleep(3); print('done there')")
        notebook.until(lambda: cell.text)
    assert not front.is_running()
    assert not list((here.folder / "jupyter-runtime").glob("kernel-v3*"))
    assert not notebook.ends
    wait_for(lambda: state_of(here, spec, session) == "idle", seconds=30, what="it stays there")
    assert "done there" in here.remoter("outputs", session).stdout


def test_a_front_ends_with_a_window_that_was_killed(
    here: JupyterHere, spec: Path, tmp_path: Path
) -> None:
    """Nobody could reach it any more, and its session would count as one that is in use."""
    with RawClient(here.folder / "killed.log") as client:
        notebook = client.open(spec, tmp_path / "a.ipynb")
        session = session_of(notebook)
        front = psutil.Process(notebook.pid)
        client.process.kill()
        # Whoever inherits it may never look after it.
        wait_for(lambda: has_ended(front), seconds=20, what="the front is gone")
    wait_for(lambda: state_of(here, spec, session) == "idle", seconds=30, what="it stays there")


def has_ended(process: psutil.Process) -> bool:
    """Does it run no more?"""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# ------------------------------------------------------------------ logins that ask


def has_asked(cell: Cell, times: int) -> bool:
    """Has there been a question in this cell, so many times?"""
    return len(cell.of("input_request")) == times


def test_the_first_cell_of_the_person_is_asked_and_the_clients_own_code_is_not(
    here: JupyterHere, ground: LoginGround, client: RawClient, tmp_path: Path
) -> None:
    """What the client runs first is answered at once, and runs first once somebody is in."""
    way = ground.way("password and code")
    name = f"asks-{os.getpid()}"
    here.add_remote(name, way.alias, ssh_config=way.config, python=way.python, kernel="python3")
    with opened(client, spec_of(here, name), tmp_path / "b.ipynb") as notebook:
        assert [each["status"] for each in notebook.started["said"]] == ["ok", "ok"]
        assert [each["asked"] for each in notebook.started["said"]] == [0, 0]
        cell = notebook.send("'not now'")
        notebook.until(partial(has_asked, cell, 1))
        notebook.interrupt()
        assert notebook.done(cell).reply["status"] == "error"
        notebook.answer("")  # the box that VS Code takes away sends this
        cell = notebook.send("import getpass; print(getpass.getuser(), __vsc_ipynb_file__)")
        for number, question in enumerate(way.questions, 1):
            notebook.until(partial(has_asked, cell, number))
            asked = cell.of("input_request")[-1]
            assert re.search(question.says, asked["prompt"])
            assert asked["password"] is True
            notebook.answer(question.answer())
        assert notebook.done(cell).text == f"{way.user} {notebook.file}\n"
        assert cell.reply["execution_count"] == 1
        assert len(cell.of("input_request")) == len(way.questions)
    here.remoter("stop", "--all", name)


# ------------------------------------------------------------------ the same session again


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A notebook that is saved, with two cells."""
    file = tmp_path / "saved.ipynb"
    cells = [nbformat.v4.new_code_cell(code) for code in ("here = 1", "here")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    return file


def test_a_restart_by_relaunch_gives_a_fresh_kernel_in_the_same_session(
    client: RawClient, spec: Path, saved: Path
) -> None:
    """The button ends the proxy and starts another from the same process at once."""
    with opened(client, spec, saved) as notebook:
        notebook.run("here = 1")
        before = session_of(notebook)
        old = psutil.Process(notebook.pid)
        cell = notebook.send("print('on')\nwhile True: pass")  # why one restarts
        notebook.until(lambda: cell.text)
        notebook.restart()
        wait_for(lambda: not old.is_running(), what="the old front is gone")
        assert notebook.run("'here' in globals()").text.endswith("False")
        assert session_of(notebook) == before
        assert notebook.run("__vsc_ipynb_file__").text == f"'{saved}'"


def test_what_is_closed_and_opened_again_is_joined(
    client: RawClient, spec: Path, saved: Path
) -> None:
    """Some seconds later it is no restart: what was computed is there."""
    with opened(client, spec, saved) as notebook:
        notebook.run("here = 1")
        before = session_of(notebook)
    closed = time.monotonic()
    wait_for(lambda: time.monotonic() > closed + RESTARTS_WITHIN + 1, what="it is no restart")
    with opened(client, spec, saved) as notebook:
        first = notebook.run("print(here)")
        assert first.text.endswith("1\n")
        assert f"Joined session {before}" in first.text
        assert session_of(notebook) == before


def test_a_window_that_is_loaded_again_joins_at_once(
    here: JupyterHere, client: RawClient, spec: Path, saved: Path
) -> None:
    """Another process opens the notebook: however soon that is, it is no restart."""
    with RawClient(here.folder / "reloaded.log") as first:
        notebook = first.open(spec, saved)
        notebook.run("here = 1")
        before = session_of(notebook)
    with opened(client, spec, saved) as notebook:
        assert notebook.run("print(here)").text.endswith("1\n")
        assert session_of(notebook) == before
