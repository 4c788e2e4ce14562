"""`remoter run` with notebooks, and runs that go on by themselves (`--detach`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from tests.real_jupyter import wait_for
from tests.real_parts import real_part
from tests.whole.test_console import Terminal
from tests.whole.test_run import REMOTER, box, living, sessions, shell, stats

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real_jupyter import JupyterHere

__all__ = ["box", "stats"]  # fixtures

TICKS = "import time\nfor i in range(40):\n    print('tick', i, flush=True)\n    time.sleep(0.1)\n"


def write_notebook(path: Path, *sources: str, language: str = "python", **tags: str) -> None:
    """Write a notebook whose code cells say this; `tags`: by the cell's number, as `c1`."""
    cells = [nbformat.v4.new_markdown_cell("# A title", id="title")]
    for number, source in enumerate(sources):
        name = f"c{number}"
        metadata = {"tags": [tags[name]]} if name in tags else {}
        stale = [nbformat.v4.new_output("stream", name="stdout", text="of another run")]
        cell = nbformat.v4.new_code_cell(source, id=name, metadata=metadata, outputs=stale)
        cells.append(cell)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"mine": [1, 2]})
    notebook.metadata["kernelspec"] = {"name": "x", "display_name": "x", "language": language}
    nbformat.write(notebook, path)


def read(path: Path) -> Any:
    """Read a notebook that must be valid."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


# --------------------------------------------------------------- notebooks


def test_a_notebook_prints_as_a_script_does(box: str, tmp_path: Path) -> None:
    """Its cells in order, until the first error; one that may fail does not end it."""
    write_notebook(
        tmp_path / "n.ipynb",
        "x = 6; print('first')",
        "1 / 0",
        "print('skipped')",
        "x * 7",
        "raise KeyError('here')",
        "print('never')",
        c1="raises-exception",
        c2="skip-execution",
    )
    ran = shell(f"remoter run {box} n.ipynb", tmp_path)
    assert (ran.stdout, ran.returncode) == ("first\n42\n", 1)
    assert "KeyError" in ran.stderr


def test_the_executed_notebook(here: JupyterHere, box: str, tmp_path: Path) -> None:
    """As if it had been run in Jupyter: outputs, counts, the remote's kernel, nothing stale."""
    write_notebook(
        tmp_path / "n.ipynb",
        "import sys; print(sys.argv[1:]); print('b', file=sys.stderr)",
        "from IPython.display import HTML, display; h = display(HTML('<b>1</b>'), display_id=True)",
        "h.update(HTML('<b>2</b>')); {'a': 1}",
        "1 / 0",
        "print('never')",
    )
    ran = shell(f"remoter run {box} -o out.ipynb n.ipynb deep", tmp_path)
    assert (ran.stdout, ran.returncode) == ("", 1)
    assert "ZeroDivisionError" in ran.stderr
    assert "Ran 4 cells; wrote out.ipynb." in ran.stderr
    notebook = read(tmp_path / "out.ipynb")
    assert notebook.metadata["mine"] == [1, 2]
    assert notebook.metadata.kernelspec.name == f"remoter-{box}"
    assert notebook.metadata.language_info.codemirror_mode["name"] == "ipython"
    title, *cells = notebook.cells
    assert title.source == "# A title"
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, None]
    kinds = [[output.output_type for output in cell.outputs] for cell in cells]
    assert kinds == [["stream"] * 2, ["display_data"], ["execute_result"], ["error"], []]
    assert cells[0].outputs[0].text == "['deep']\n"
    assert cells[1].outputs[0].data["text/html"] == "<b>2</b>"
    assert cells[2].outputs[0].execution_count == 3
    assert not living(here, box)


def test_a_timeout_writes_what_there_is(box: str, tmp_path: Path) -> None:
    """The cell that took too long has its outputs so far; the rest were not run."""
    write_notebook(tmp_path / "n.ipynb", "print(1)", "print(2); import time; time.sleep(60)", "3")
    ran = shell(f"remoter run {box} --timeout 2s -o n.ipynb --force n.ipynb", tmp_path)
    assert ran.returncode == 1
    _, first, second, third = read(tmp_path / "n.ipynb").cells
    assert first.outputs[0].text == "1\n"
    assert [each.output_type for each in second.outputs] == ["stream", "error"]
    assert (third.execution_count, third.outputs) == (None, [])


def test_a_notebook_in_r(stats: str, tmp_path: Path) -> None:
    """Its values are displays, its error ends it; what follows is not run."""
    write_notebook(tmp_path / "n.ipynb", "x <- 6", "x * 7", "stop('few')", "1", language="R")
    ran = shell(f"remoter run {stats} n.ipynb -o out.ipynb", tmp_path)
    assert ran.returncode == 1
    notebook = read(tmp_path / "out.ipynb")
    assert notebook.metadata.language_info.name == "R"
    _, _, value, error, never = notebook.cells
    assert value.outputs[0].data["text/plain"] == "[1] 42"
    assert error.outputs[0].output_type == "error"
    assert (never.execution_count, never.outputs) == (None, [])


# --------------------------------------------------------------- that go on by themselves


def test_a_detached_run_outlives_its_terminal(here: JupyterHere, box: str, tmp_path: Path) -> None:
    """Its terminal is killed; it is followed to its end, and its session ends by itself."""
    real_part("tmux")
    (tmp_path / "ticks.py").write_text(TICKS)
    line = f"{REMOTER} run {box} --detach {tmp_path}/ticks.py; exec cat"
    with Terminal(tmp_path, ["bash", "-c", line]) as terminal:
        terminal.wait_for("To follow it: remoter outputs -f ")
        screen = terminal.screen()
    name = screen.split()[0]
    assert f"remoter outputs -f {name}" in screen
    followed = here.remoter("outputs", "-f", name)
    assert followed.stdout == "".join(f"tick {i}\n" for i in range(40))
    assert (followed.stderr, followed.returncode) == ("", 0)
    (about,) = [each for each in sessions(here, box) if each["id"] == name]
    assert (about["state"], about["why"]) == ("ended", "All that was asked of it was done.")
    again = here.remoter("outputs", name)
    assert again.stdout == followed.stdout


def test_a_run_whose_terminal_goes_is_left_running(
    here: JupyterHere, box: str, tmp_path: Path
) -> None:
    """SIGHUP is no wish to end it: it goes on, and ends its session by itself."""
    real_part("tmux")
    with Terminal(tmp_path, [REMOTER, "run", box, "-c", TICKS]) as terminal:
        terminal.wait_for("tick 1\n")
    (session,) = living(here, box)
    followed = here.remoter("outputs", "--follow", session["id"])
    assert "tick 39" in followed.stdout
    assert followed.returncode == 0
    assert not living(here, box)


def test_what_fails_detached_is_told_to_whoever_follows(
    here: JupyterHere, stats: str, tmp_path: Path
) -> None:
    """In R, too: text to stdout, the error to stderr, and exit code 1."""
    (tmp_path / "a.R").write_text("cat(commandArgs(TRUE)); cat('\\n'); stop('too few')\n")
    ran = shell(f"remoter run {stats} --json --detach a.R one", tmp_path)
    assert ran.returncode == 0, ran.stderr
    name = json.loads(ran.stdout)["session"]
    followed = here.remoter("outputs", "-f", f"{stats}/{name}")
    assert (followed.stdout, followed.returncode) == ("one\n", 1)
    assert "too few" in followed.stderr


@pytest.mark.slow
def test_a_detached_notebook_runs_to_its_end(here: JupyterHere, box: str, tmp_path: Path) -> None:
    """All its cells, though nobody is there; a notebook is made of it later."""
    write_notebook(
        tmp_path / "n.ipynb", "import time; time.sleep(1)", "x = 1; print('two')", "x + 2"
    )
    ran = shell(f"remoter run {box} --detach n.ipynb", tmp_path)
    name = ran.stdout.strip()
    assert here.remoter("outputs", "-f", name).stdout == "two\n3\n"
    assert here.remoter("outputs", name, "--into", str(tmp_path / "n.ipynb")).returncode == 0
    assert [len(cell.outputs) for cell in read(tmp_path / "n.ipynb").cells[1:]] == [0, 1, 1]


def test_a_run_that_is_stopped_is_told_to_whoever_follows(
    here: JupyterHere, box: str, tmp_path: Path
) -> None:
    """`remoter stop` ends it: 1, and a sentence."""
    name = shell(f"remoter run {box} --detach -c 'import time; time.sleep(600)'", tmp_path).stdout
    name = name.strip()
    wait_for(lambda: [each["state"] for each in living(here, box)] == ["busy"], seconds=20)
    assert here.remoter("stop", name).returncode == 0
    followed = here.remoter("outputs", "-f", name)
    assert followed.returncode == 1
    assert f"Session {name} ended before its code did. It was stopped." in followed.stderr
