"""papermill runs notebooks there: parameters, failures, deaths, and remotes that are not there."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests import notebooks
from tests.real_jupyter import wait_for
from tests.real_parts import real_part
from tests.whole.test_life import there
from tests.whole.test_nbclient_notebooks import outputs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.notebooks import Ran
    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # papermill's own

CELLS = [
    "# parameters\nx = 1\nname = 'nobody'",
    "x, name",
    "import sys\nprint('to stderr', file=sys.stderr)",
    "import pandas\npandas.DataFrame({'a': range(x), 'b': name})",
    "%matplotlib inline\nimport matplotlib.pyplot as plot",
    "plot.plot(range(x))\nplot.title(name);",
    "from IPython.display import HTML, display\ndisplay(HTML('<b>bold</b>'), {'a': 1})",
    "for i in range(200):\n    print('line', i)",
    "handle = display(0, display_id=True)\nfor i in range(5):\n    handle.update(i)",
    *(f"x = x + {number}\nprint(x)\nx * {number}" for number in range(20)),
    "x",
]
SOON = 20.0  # seconds: some, of which most are the machine's that runs the tests


@pytest.fixture(scope="module", autouse=True)
def _parts() -> None:
    real_part("papermill")


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A kernelspec for the far Python."""
    return here.add_remote("mill", env=notebooks.ENVIRONMENT, **python_remote)


@pytest.fixture(scope="module")
def reasons(here: JupyterHere, sshd: RealSshd, python_remote: dict[str, Any]) -> dict[str, str]:
    """Remotes with which no kernel comes to be, and what is said of each."""
    return notebooks.bad_remotes(here, sshd, python_remote)


def papermill(folder: Path, *options: str) -> Ran:
    """Run papermill on `in.ipynb`, as a person or a scheduler does."""
    words = ["papermill", "in.ipynb", "out.ipynb", "--no-progress-bar", *options]
    return notebooks.command(*words, folder=folder)


def execute(folder: Path, **options: Any) -> Any:
    """Run papermill on `in.ipynb`, as a program does."""
    from papermill import execute_notebook

    source, target = folder / "in.ipynb", folder / "out.ipynb"
    return execute_notebook(source, target, progress_bar=False, **options)


def test_gives_what_a_local_kernel_gives(
    spec: str, here: JupyterHere, far: FarSide, tmp_path: Path
) -> None:
    """Thirty cells with parameters have the outputs and counts of a local run."""
    plain = notebooks.plain_spec(here, far)
    assert len(CELLS) == 30
    notebooks.write(tmp_path / "in.ipynb", CELLS, "nobody's")
    ran = papermill(tmp_path, "-k", spec, "-p", "x", "3", "-p", "name", "somebody")
    assert ran.code == 0, ran.err
    there_ran = notebooks.read(tmp_path / "out.ipynb")
    here_ran = execute(tmp_path, parameters={"x": 3, "name": "somebody"}, kernel_name=plain)
    ours, theirs = map(notebooks.join_streams, (there_ran, here_ran))
    assert outputs(ours) == outputs(theirs)
    injected = there_ran.cells[1]
    assert injected.metadata.tags == ["injected-parameters"]
    assert notebooks.text(there_ran.cells[2]) == "(3, 'somebody')"
    assert [cell.execution_count for cell in there_ran.cells] == list(range(1, 32))


def test_a_cell_fails(spec: str, far: FarSide, tmp_path: Path) -> None:
    """The error is the far one, and the output notebook has what came until then."""
    from papermill.exceptions import PapermillExecutionError

    cells = ["print('before')", "import json\njson.loads('{')", "print('never')"]
    notebooks.write(tmp_path / "in.ipynb", cells, spec)
    with pytest.raises(PapermillExecutionError) as raised:
        execute(tmp_path)
    assert raised.value.ename == "JSONDecodeError"
    assert "/usr/lib/python3" in str(raised.value)  # the far Python's own library
    before, failed, never = notebooks.code_cells(tmp_path / "out.ipynb")
    assert notebooks.text(before) == "before\n"
    assert [output.ename for output in failed.outputs] == ["JSONDecodeError"]
    assert not never.outputs
    wait_for(lambda: not there(far), what="the far side is empty")


@pytest.mark.timing
@pytest.mark.parametrize("name", ["closed", "wrong-key", "no-python", "no-kernel"])
def test_no_kernel_comes_to_be(name: str, reasons: dict[str, str], tmp_path: Path) -> None:
    """The last thing that papermill prints is why, and that soon."""
    notebooks.write(tmp_path / "in.ipynb", ["print('never')"], f"remoter-{name}")
    ran = papermill(tmp_path)
    assert ran.code == 1
    assert reasons[name] in ran.err.strip().splitlines()[-1], ran.err
    assert "Kernel died" not in ran.err
    assert "remoter_kernel" not in ran.err, "a traceback of ours"
    assert ran.seconds < SOON


@pytest.mark.timing
def test_a_refused_connection_is_told_at_once(reasons: dict[str, str], tmp_path: Path) -> None:
    """Within a few seconds, papermill's own start aside."""
    from papermill.exceptions import PapermillExecutionError

    notebooks.write(tmp_path / "in.ipynb", ["print('never')"], "remoter-closed")
    began = time.monotonic()
    with pytest.raises(PapermillExecutionError, match=reasons["closed"]):
        execute(tmp_path)
    print(f"a refused connection was told after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < SOON / 2


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("import os; os._exit(3)", "it ended with exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it was killed by signal 9"),
    ],
)
def test_a_kernel_dies(death: str, reason: str, spec: str, far: FarSide, tmp_path: Path) -> None:
    """It ends, and says how it died; nothing is run in another kernel, nothing is left."""
    cells = ["kept = 1\nprint('before')", death, "print('never')"]
    notebooks.write(tmp_path / "in.ipynb", cells, spec)
    ran = papermill(tmp_path)
    assert ran.code == 1
    assert reason in ran.err
    assert "KernelDied" in ran.err
    before, died, never = notebooks.code_cells(tmp_path / "out.ipynb")
    assert notebooks.text(before) == "before\n"
    *told, error = died.outputs
    assert reason in error.evalue
    assert len(told) == ("signal" in reason)  # that its last outputs may be missing
    assert not never.outputs
    wait_for(lambda: not there(far), seconds=30, what="the far side is empty")


def test_a_kernel_dies_and_the_client_goes_on(spec: str, far: FarSide, tmp_path: Path) -> None:
    """One that ignores errors gets no further: the next cells hear the same, then all is over."""
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    cells = ["kept = 1", "import os; os._exit(3)", "print('never')", "print('never')"]
    path = notebooks.write(tmp_path / "in.ipynb", cells, spec)
    notebook = notebooks.read(path)
    with contextlib.suppress(DeadKernelError):  # or the notebook ends before the proxy does
        NotebookClient(notebook, allow_errors=True).execute()
    names = [error["ename"] for error in notebooks.errors(notebook)]
    assert len(names) >= 2
    assert set(names) == {"KernelDied"}
    assert not any(notebooks.text(cell) for cell in notebook.cells)
    wait_for(lambda: not there(far), seconds=30, what="the far side is empty")


def test_the_connection_breaks(spec: str, sshd: RealSshd, far: FarSide, tmp_path: Path) -> None:
    """A cut in a cell is no failure: each line is there, once, and so is the next cell."""
    with far.folder() as folder:
        count = "import time\nfor i in range(40):\n    print('line', i, flush=True)\n"
        cells = [f"open('{folder}/begun', 'w').close()\n{count}    time.sleep(0.1)", "i"]
        notebooks.write(tmp_path / "in.ipynb", cells, spec)
        begun = (folder / "begun").exists

        def cut() -> None:
            wait_for(begun, seconds=60, what="the cell has begun")
            sshd.cut_all()

        thread = threading.Thread(target=cut)
        thread.start()
        execute(tmp_path)
        thread.join()
        assert begun()
    counted, last = notebooks.code_cells(tmp_path / "out.ipynb")
    assert notebooks.text(counted) == "".join(f"line {i}\n" for i in range(40))
    assert notebooks.text(last) == "39"


def test_r(here: JupyterHere, python_remote: dict[str, Any], tmp_path: Path) -> None:
    """A notebook in R has its parameters, too."""
    real_part("irkernel")
    spec = here.add_remote("mill-r", language="R", kernel="ir", **python_remote)
    cells = ["# parameters\nx <- 1", "cat(x * 2)", "x + 1"]
    notebooks.write(tmp_path / "in.ipynb", cells, spec, "R")
    ran = papermill(tmp_path, "-p", "x", "3")
    assert ran.code == 0, ran.err
    shown = notebooks.code_cells(tmp_path / "out.ipynb")
    assert [notebooks.text(cell) for cell in shown[-2:]] == ["6", "[1] 4"]
