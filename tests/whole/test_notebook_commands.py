"""`jupyter execute`, `jupyter nbconvert --execute` and `jupyter run`, with a remote kernel."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Any

import pytest

from tests import notebooks
from tests.real_jupyter import wait_for
from tests.real_parts import real_part
from tests.whole.test_life import there

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

CELLS = ["import getpass\ngetpass.getuser()", "print(6 * 7)"]
WRITES = {
    "execute": ("jupyter-execute", "in.ipynb", "--output=out"),
    "nbconvert": (
        *("jupyter-nbconvert", "--execute", "in.ipynb"),
        *("--to=notebook", "--output=out"),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _parts() -> None:
    real_part("nbclient")


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A kernelspec for the far Python."""
    return here.add_remote("commands", env=notebooks.ENVIRONMENT, **python_remote)


@pytest.fixture(scope="module")
def reasons(here: JupyterHere, sshd: RealSshd, python_remote: dict[str, Any]) -> dict[str, str]:
    """Remotes with which no kernel comes to be, and what is said of each."""
    return notebooks.bad_remotes(here, sshd, python_remote)


@pytest.mark.parametrize("name", WRITES)
def test_a_notebook_is_run_there(
    name: str, spec: str, another_user: FarSide, tmp_path: Path
) -> None:
    """The kernel is the one that the notebook names, and the outputs are the far user's."""
    notebooks.write(tmp_path / "in.ipynb", CELLS, spec)
    ran = notebooks.command(*WRITES[name], folder=tmp_path)
    assert ran.code == 0, ran.err
    who, product = notebooks.code_cells(tmp_path / "out.ipynb")
    assert notebooks.text(who) == repr(another_user.user) != repr(getpass.getuser())
    assert notebooks.text(product) == "42\n"
    wait_for(lambda: not there(another_user), what="the far side is empty")


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("remote", ["closed", "no-kernel"])
def test_no_kernel_comes_to_be(
    name: str, remote: str, reasons: dict[str, str], tmp_path: Path
) -> None:
    """The last thing that is printed is why."""
    notebooks.write(tmp_path / "in.ipynb", CELLS, f"remoter-{remote}")
    ran = notebooks.command(*WRITES[name], folder=tmp_path)
    assert ran.code == 1
    assert reasons[remote] in ran.err.strip().splitlines()[-1], ran.err
    assert "Kernel died" not in ran.err
    assert not (tmp_path / "out.ipynb").exists()


def test_a_kernel_dies(spec: str, far: FarSide, tmp_path: Path) -> None:
    """`jupyter execute` says how, and nothing is left."""
    notebooks.write(tmp_path / "in.ipynb", ["import os; os._exit(3)", *CELLS], spec)
    ran = notebooks.command(*WRITES["execute"], folder=tmp_path)
    assert ran.code == 1
    assert "it ended with exit code 3" in ran.err
    wait_for(lambda: not there(far), seconds=30, what="the far side is empty")


def test_a_script_is_run_there(spec: str, another_user: FarSide, tmp_path: Path) -> None:
    """`jupyter run` shows what it prints, and fails where it does."""
    script = tmp_path / "script.py"
    script.write_text("import getpass\nprint(getpass.getuser(), 6 * 7)\n")
    ran = notebooks.command("jupyter-run", "--kernel", spec, script, folder=tmp_path)
    assert (ran.code, ran.out) == (0, f"{another_user.user} 42\n"), ran.err
    script.write_text("1 / 0\n")
    ran = notebooks.command("jupyter-run", "--kernel", spec, script, folder=tmp_path)
    assert ran.code == 1
    assert "ZeroDivisionError" in ran.err
    wait_for(lambda: not there(another_user), what="the far side is empty")
