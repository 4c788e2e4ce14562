"""What VS Code's notebooks do with a kernel, done by its own packages to one that is far away."""

from __future__ import annotations

import contextlib
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.raw_client import RawClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.raw_client import Cell, Notebook
    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround
    from tests.real_users import FarSide


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
