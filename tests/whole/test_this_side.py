"""Cells that run on this side (`%%local`, `%local`): in order with all others."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.real_jupyter import started_kernel, wait_for
from tests.real_parts import real_part
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere, StartedKernel
    from tests.real_users import FarSide
    from tests.whole.talk import Message, Transcript

WHO = "import getpass; getpass.getuser()"


@pytest.fixture(scope="module")
def kernel(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[StartedKernel]:
    """A kernel of a remote whose cells may use this side."""
    spec = here.add_remote("both", local="allow", **python_remote)
    with started_kernel(spec) as kernel:
        Talk(kernel.client).case(lambda talk: talk.run("1"))
        yield kernel


@pytest.fixture
def talk(kernel: StartedKernel) -> Talk:
    """Somebody who talks to it."""
    return Talk(kernel.client)


def run(talk: Talk, code: str, **options: Any) -> Transcript:
    """Run one cell."""
    return talk.case(lambda talk: talk.run(code, **options))


def iopub(said: Transcript, request: int = 0) -> list[Message]:
    """What came under one request."""
    return said[f"iopub under request {request}"]


def text_of(said: Transcript, request: int = 0) -> str:
    """All text that came under one request."""
    return "".join(
        message["content"].get("text") or message["content"].get("data", {}).get("text/plain", "")
        for message in iopub(said, request)
    )


def reply(said: Transcript, request: int = 0) -> Message:
    """Return the content of a request's reply."""
    (message,) = said[f"shell under request {request}"]
    return message["content"]


def kernels_here(kernel: StartedKernel) -> list[psutil.Process]:
    """The kernels that the proxy has started here."""
    found = []
    for child in psutil.Process(kernel.pid).children():
        with contextlib.suppress(psutil.ZombieProcess):
            found += [child] if "ipykernel_launcher" in child.cmdline() else []
    return found


def test_it_runs_here_and_its_result_comes_in_its_cell(talk: Talk, far: FarSide) -> None:
    """Another user there than here proves it; names of one side are not those of the other."""
    assert text_of(run(talk, f"%%local\n{WHO}")) == repr(getpass.getuser())
    assert text_of(run(talk, WHO)) == repr(far.user)
    run(talk, "%local x = 'here'")
    run(talk, "x = 'there'")
    assert text_of(run(talk, "%local x")) == "'here'"
    assert text_of(run(talk, "x")) == "'there'"


def test_it_comes_as_from_any_kernel(talk: Talk) -> None:
    """Busy, what was typed, outputs, idle: all with the session of the far kernel."""
    said = run(talk, "%%local\nimport sys\nprint('a')\nprint('b', file=sys.stderr)\n6 * 7")
    kinds = [message["type"] for message in iopub(said)]
    assert kinds[0] == "status"
    assert kinds[-1] == "status"
    assert {"execute_input", "stream", "execute_result"} <= set(kinds)
    typed = next(each for each in iopub(said) if each["type"] == "execute_input")
    assert typed["content"]["code"].startswith("%%local\nimport")
    sessions = {message["header"]["session"] for _, message in talk.heard}
    there = run(talk, "1")
    assert len(sessions) == 1
    assert sessions == {message["header"]["session"] for _, message in talk.heard}
    assert reply(said)["status"] == reply(there)["status"] == "ok"


def test_each_kind_of_output_comes(talk: Talk) -> None:
    """A figure, a display that is updated, an error with its traceback."""
    figure = run(talk, "%%local\n%matplotlib inline\nimport matplotlib.pyplot as p\np.plot([1, 2])")
    assert any("image/png" in each["content"].get("data", {}) for each in iopub(figure))
    shown = run(talk, "%%local\nh = display('one', display_id='d')\nh.update('two')")
    kinds = [message["type"] for message in iopub(shown)]
    assert kinds[2:4] == ["display_data", "update_display_data"]
    failed = run(talk, "%%local\ndef f():\n    1 / 0\nf()")
    (error,) = [each["content"] for each in iopub(failed) if each["type"] == "error"]
    assert error["ename"] == "ZeroDivisionError"
    assert "1 / 0" in re.sub(r"\x1b\[[\d;]*m", "", "".join(error["traceback"]))
    assert reply(failed)["status"] == "error"


def test_it_asks_in_its_cell(talk: Talk) -> None:
    """`input()` here and there, one after the other: each gets its own answer."""
    said = talk.case(lambda talk: talk.run("%%local\ninput('here? ')", answers=["Ada"]))
    assert text_of(said) == "'Ada'"
    said = talk.case(lambda talk: talk.run("input('there? ')", answers=["Bob"]))
    assert text_of(said) == "'Bob'"


def test_cells_of_both_sides_run_one_after_the_other(talk: Talk) -> None:
    """Run all: each begins when the one before it has ended, whichever side it is on."""
    code = "import time; a = time.monotonic_ns(); time.sleep(0.05); print(a, time.monotonic_ns())"
    sides = ["", "%%local\n", "", "", "%%local\n", "%%local\n", ""]
    said = talk.case(lambda talk: talk.done(*[talk.queue(f"{side}{code}") for side in sides]))
    spans = [list(map(int, text_of(said, number).split())) for number in range(len(sides))]
    moments = [moment for span in spans for moment in span]
    assert moments == sorted(moments)


@pytest.mark.parametrize("sides", [("%%local\n", ""), ("", "%%local\n")])
def test_a_cell_that_fails_calls_off_those_behind_it(talk: Talk, sides: tuple[str, str]) -> None:
    """On either side, and unless it says that it does not."""
    first, second = sides

    def says(talk: Talk) -> None:
        cells = [
            talk.queue(f"{first}import time; time.sleep(0.3); 1 / 0"),
            talk.queue(f"{second}2"),
            talk.queue(f"{first}3"),
        ]
        talk.done(*cells)

    said = talk.case(says)
    assert [reply(said, number)["status"] for number in range(3)] == ["error", *2 * ["aborted"]]
    said = talk.case(
        lambda talk: talk.done(
            talk.queue(f"{first}1 / 0", stop_on_error=False), talk.queue(f"{second}2")
        )
    )
    assert reply(said, 1)["status"] == "ok"


def test_an_interrupt_hits_the_side_that_is_at_work(talk: Talk) -> None:
    """The cell here ends; that behind it there runs, and is not hit."""

    def says(talk: Talk) -> None:
        here = talk.queue(
            "%%local\nimport time\nprint('on', flush=True)\ntime.sleep(60)", stop_on_error=False
        )
        there = talk.queue("import time; time.sleep(0.5); 'unharmed'")
        talk.until_line("on")
        talk.send("interrupt_request", {}, channel="control")
        talk.done(here, there)

    said = talk.case(says)
    assert reply(said)["ename"] == "KeyboardInterrupt"
    assert text_of(said, 1) == "'unharmed'"


@pytest.mark.parametrize("side", ["%%local\n", ""])
def test_an_idle_of_something_else_is_not_the_last_word(talk: Talk, side: str) -> None:
    """While a cell is at work the kernel counts as busy, whatever either side answers meanwhile."""
    states: list[str] = []

    def is_busy() -> bool:
        said = [message for _, message in talk.heard if message["msg_type"] == "status"]
        states[:] = [message["content"]["execution_state"] for message in said]
        return states[-1] == "busy"

    def says(talk: Talk) -> None:
        cell = talk.queue(f"{side}import time\nprint('on', flush=True)\ntime.sleep(60)")
        talk.until_line("on")
        talk.ask("is_complete_request", {"code": "%local 1"})
        talk.listen(is_busy)
        if side:  # the other kernel's shell is free
            talk.ask("kernel_info_request")
            talk.listen(is_busy)
        talk.send("interrupt_request", {}, channel="control")
        talk.done(cell)

    said = talk.case(says)
    assert reply(said)["ename"] == "KeyboardInterrupt"
    assert not is_busy(), states


def test_a_cell_that_waits_for_the_other_side_is_called_off_with_it(talk: Talk) -> None:
    """An interrupt of a cell there ends that, and what waits behind it here does not run."""

    def says(talk: Talk) -> None:
        there = talk.queue("import time; print('on', flush=True); time.sleep(60)")
        here = talk.queue("%local called_off = 1")
        talk.until_line("on")
        talk.send("interrupt_request", {}, channel="control")
        talk.done(there, here)

    said = talk.case(says)
    assert reply(said)["ename"] == "KeyboardInterrupt"
    assert reply(said, 1)["status"] == "aborted"
    assert text_of(run(talk, "%local 'called_off' in globals()")) == "False"


def test_widgets_work(talk: Talk) -> None:
    """A comm of this side: opened in the cell, listed with the others, heard by its kernel."""
    widget = "from ipywidgets import IntSlider\ns = IntSlider()\ndisplay(s)"
    there = talk.case(lambda talk: talk.run(widget))
    assert "comm_open" in {message["type"] for message in iopub(there)}
    handler = "s.observe(lambda change: print('moved to', change['new']), 'value')"
    talk.case(lambda talk: talk.run(f"%%local\n{widget}\n{handler}"))
    ours = [m for _, m in talk.heard if m["msg_type"] == "comm_open"]
    model = next(m["content"] for m in ours if "IntSliderModel" in str(m["content"]["data"]))
    comms = talk.ask("comm_info_request", {"target_name": "jupyter.widget"})["comms"]
    assert model["comm_id"] in comms
    assert len(comms) >= 2 * len(ours)
    moved = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
    said = talk.case(
        lambda talk: talk.tell("comm_msg", {"comm_id": model["comm_id"], "data": moved})
    )
    assert "moved to 7" in text_of(said)
    assert text_of(run(talk, "%local s.value")) == "7"


def test_what_is_typed_is_completed_and_explained_here(talk: Talk) -> None:
    """Positions are those of the whole cell; other cells are for the other side."""
    run(talk, "%%local\nonly_here = 1\ndef explained():\n    'A sentence.'")
    code = "%%local\nonly_h"
    answer = talk.ask("complete_request", {"code": code, "cursor_pos": len(code)})
    assert answer["matches"] == ["only_here"]
    assert code[answer["cursor_start"] : answer["cursor_end"]] == "only_h"
    code = "%local explained"
    answer = talk.ask("inspect_request", {"code": code, "cursor_pos": len(code), "detail_level": 0})
    assert "A sentence." in answer["data"]["text/plain"]
    code = "%remoter put a ./"
    answer = talk.ask("inspect_request", {"code": code, "cursor_pos": 12, "detail_level": 0})
    assert "Send files of this side there" in answer["data"]["text/plain"]
    answer = talk.ask("complete_request", {"code": "only_h", "cursor_pos": 6})
    assert "only_here" not in answer["matches"]
    assert talk.ask("is_complete_request", {"code": "%%local\nx = 1"})["status"] == "incomplete"
    assert talk.ask("is_complete_request", {"code": "%%local\nx = 1\n"})["status"] == "complete"


def test_a_kernel_here_that_dies_is_told_and_replaced(talk: Talk) -> None:
    """Its cell says so; the other side is not touched."""
    run(talk, "kept = 'kept'")
    said = run(talk, "%%local\nimport os\nos._exit(3)")
    assert "this side died" in reply(said)["evalue"]
    assert text_of(run(talk, "%local 1 + 1")) == "2"
    assert text_of(run(talk, "kept")) == "'kept'"


def test_it_may_end_itself(talk: Talk) -> None:
    """`exit` in a cell here ends that kernel, and no client."""
    said = run(talk, "%local exit")
    assert not reply(said).get("payload")
    assert text_of(run(talk, "%local 2 + 2")) == "4"


def test_it_is_started_late_and_ends_with_its_front(
    here: JupyterHere, python_remote: dict[str, Any]
) -> None:
    """In the proxy's folder, without Jupyter's variables; killed proxies leave none behind."""
    spec = here.add_remote("both-2", local="allow", **python_remote)
    environment = {**os.environ, "JPY_INTERRUPT_EVENT": "7"}
    with started_kernel(spec, env=environment, cwd=str(here.data)) as kernel:
        talk = Talk(kernel.client)
        run(talk, "1")
        assert not kernels_here(kernel)
        names = "sorted(k for k in os.environ if k.startswith('JPY_'))"
        said = run(talk, f"%%local\nimport os\nprint(os.getcwd(), {names})")
        assert text_of(said).strip() == f"{here.data} ['JPY_PARENT_PID']"
        (process,) = kernels_here(kernel)
        psutil.Process(kernel.pid).kill()
        wait_for(lambda: not process.is_running(), seconds=20, what="the kernel here has ended")
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=30)
        run(talk, "%local 1")
        (process,) = kernels_here(kernel)
    wait_for(lambda: not process.is_running(), what="the kernel here has ended")
    here.remoter("stop", "--all", "both-2")


def test_no_far_side_is_needed(here: JupyterHere) -> None:
    """Where the remote cannot be reached, cells here run all the same."""
    with started_kernel(here.add_remote("nowhere", host="127.0.0.1:1", local="allow")) as kernel:
        talk = Talk(kernel.client)
        assert text_of(run(talk, f"%local {WHO}")) == repr(getpass.getuser())
        assert reply(run(talk, "1"))["status"] == "error"


def test_a_person_is_asked_once(here: JupyterHere, python_remote: dict[str, Any]) -> None:
    """No: nothing runs. Where nobody can be asked: nothing runs. Yes: until the kernel restarts."""
    with started_kernel(here.add_remote("asking", **python_remote)) as kernel:
        talk = Talk(kernel.client)
        said = talk.case(lambda talk: talk.run("%local 1 + 1", answers=["no"]))
        assert "was not allowed" in reply(said)["evalue"]
        (asked,) = said["stdin under request 0"]
        assert "%local wants to run code here" in asked["content"]["prompt"]
        said = run(talk, "%local 1 + 1", allow_stdin=False)
        assert "nobody can be asked" in reply(said)["evalue"]
        assert not kernels_here(kernel)
        said = talk.case(lambda talk: talk.run("%local 1 + 1", answers=["yes"]))
        assert text_of(said) == "2"
        assert text_of(run(talk, "%local 3 + 3", allow_stdin=False)) == "6"


def test_words_that_make_no_sense_are_refused(talk: Talk) -> None:
    """And nothing runs."""
    for code in ("%%local x\n1", "%local 1\n2"):
        assert "stands alone" in reply(run(talk, code))["evalue"]


def test_a_notebook_that_nobody_watches_runs_on_both_sides(
    here: JupyterHere, python_remote: dict[str, Any], tmp_path: Path
) -> None:
    """Nbclient runs one cell after the other, and gets each output in its place."""
    real_part("nbclient")
    import nbclient
    import nbformat

    cells = ["x = 20", "%remoter pull x", "%%local\nx += 1\nprint(x)", "%remoter push x", "2 * x"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    spec = here.add_remote("unwatched", local="allow", **python_remote)
    client = nbclient.NotebookClient(
        notebook, kernel_name=spec, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert notebook.cells[2].outputs[0].text == "21\n"
    assert notebook.cells[4].outputs[0].data["text/plain"] == "42"
