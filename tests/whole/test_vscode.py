"""What VS Code's notebooks do with a kernel, done by its own packages to one that is far away."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.raw_client import RawClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.raw_client import Notebook
    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[Path]:
    """The kernel.json of a remote that only these tests use; its sessions end with them."""
    name = f"code-{os.getpid()}"
    here.add_remote(name, **python_remote)
    yield here.data / f"kernels/remoter-{name}/kernel.json"
    here.remoter("stop", "--all", name)


@pytest.fixture(scope="module")
def client(here: JupyterHere) -> Iterator[RawClient]:
    """One window for the module."""
    with RawClient(here.folder / "client.log") as client:
        yield client


@pytest.fixture
def notebook(client: RawClient, spec: Path, tmp_path: Path) -> Iterator[Notebook]:
    """A notebook of the test's own, which is open."""
    file = tmp_path / "a.ipynb"
    notebook = client.open(spec, file)
    yield notebook
    notebook.close()


def test_it_starts_and_its_own_code_runs_before_the_first_cell(
    notebook: Notebook, far: FarSide
) -> None:
    """It answers from here at once; what the client runs first has run there by then."""
    widgets, start_up = notebook.started["said"]
    assert widgets["status"] == start_up["status"] == "ok"
    assert widgets["text"].startswith("widgets 8.")
    assert start_up["text"] == ""
    cell = notebook.run("import getpass; print(getpass.getuser(), __vsc_ipynb_file__)")
    assert cell.text == f"{far.user} {notebook.file}\n"
    assert cell.reply["execution_count"] == 1
