"""What a kernel finds around it there: shell lines, variables, folders; and a start that hangs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator.timeouts import SLOW_AFTER
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import Talk
from tests.whole.test_life import there, value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide


@pytest.fixture
def work(far: FarSide) -> Iterator[Path]:
    """A folder of the far user's, with a blank in its name."""
    with far.folder() as folder:
        inside = folder / "a b"
        inside.mkdir()
        far.give(inside)
        yield inside


def test_the_folder_of_the_notebook_is_called_there_as_the_map_says(
    here: JupyterHere, python_remote: dict[str, Any], work: Path, tmp_path: Path
) -> None:
    notebooks = tmp_path / "notebooks"
    (notebooks / work.name).mkdir(parents=True)
    spec = here.add_remote(
        "mapped", cwd="notebook", path_map={str(notebooks): str(work.parent)}, **python_remote
    )
    with started_kernel(spec, cwd=str(notebooks / work.name)) as kernel:
        code = "import os; os.path.basename(os.getcwd())"
        assert value(Talk(kernel.client), code) == repr(work.name)


def test_a_folder_that_no_map_knows_is_told_in_the_cell(
    here: JupyterHere, python_remote: dict[str, Any], tmp_path: Path
) -> None:
    spec = here.add_remote("unmapped", cwd="notebook", path_map={"~": "~"}, **python_remote)
    with started_kernel(spec, cwd=str(tmp_path)) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        (error,) = [m["content"] for _, m in talk.heard if m["msg_type"] == "error"]
        assert f'path_map = {{ "{tmp_path}"' in error["evalue"]


def test_variables_and_lines_reach_the_kernel_and_the_logins_own_stay(
    here: JupyterHere, python_remote: dict[str, Any], far: FarSide
) -> None:
    spec = here.add_remote(
        "around",
        init=("export FROM_LINE=line", "echo noise; echo more >&2"),
        env={"FROM_TABLE": "$HOME/x", "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
        **python_remote,
    )
    with started_kernel(spec) as kernel:
        code = "import os; [os.environ.get(n) for n in ('FROM_LINE', 'FROM_TABLE', 'HOME')]"
        assert value(Talk(kernel.client), code) == str(["line", f"{far.home}/x", str(far.home)])


@pytest.mark.slow
def test_a_line_that_never_ends_is_told_with_what_ends_it(
    here: JupyterHere, python_remote: dict[str, Any], far: FarSide
) -> None:
    """The cell says so after a while; an interrupt ends the cell, and stop the session."""
    spec = here.add_remote(
        "endless", init=("echo 'asking the licence server'; sleep 600",), **python_remote
    )
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue("1")
        said = lambda: str([m["content"] for _, m in talk.heard if m["msg_type"] == "stream"])  # noqa: E731
        talk.listen(lambda: "has not started within" in said(), seconds=SLOW_AFTER + 15)
        assert "sleep 600" in said()
        assert "asking the licence server" in said()
        session = said().partition("remoter stop ")[2].split(".")[0]
        kernel.manager.interrupt_kernel()
        talk.listen(lambda: talk._is_done(cell))
        assert here.remoter("stop", session).returncode == 0
        wait_for(lambda: not there(far), what="the far side is empty")
    with contextlib.suppress(Exception):
        kernel.manager.shutdown_kernel(now=True)
