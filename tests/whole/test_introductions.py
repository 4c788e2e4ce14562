"""Clients that start kernels themselves: what they say first, restart by relaunch, reopening."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import nbformat
import pytest
from jupyter_client.connect import write_connection_file

from remoter_kernel.local.session import machine
from tests.real_jupyter import wait_for
from tests.real_parts import real_part
from tests.whole.test_sessions import Front, a_front, asked, marked_there

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere

OWN = {"store_history": False, "stop_on_error": False}  # how it runs code of its own
WIDGETS = "import sys as _VSCODE_sys\nseen = globals().get('seen', 0) + 1\nprint('8.1')"


@pytest.fixture
def remote(
    here: JupyterHere, python_remote: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The name of a remote of the test's own; its sessions are ended after it."""
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setenv("VSCODE_PID", "1")  # whoever comes from there will say its notebook
    name = f"raw-{secrets.token_hex(4)}"
    here.add_remote(name, **python_remote)
    yield name
    asked(here, "stop", "--all", name)
    wait_for(lambda: not marked_there(name), what="the far side is empty")


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A notebook with the cell `kept = 41`."""
    path = tmp_path / "a b.ipynb"
    write(path, "kept = 41", "kept + 1")
    return path


def write(path: Path, *sources: str) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))


def opened(tmp_path: Path, remote: str) -> Any:
    """Start a proxy as a raw client does: new ports and a new key each time."""
    name = tmp_path / f"kernel-{secrets.token_hex(4)}.json"
    write_connection_file(str(name), key=secrets.token_hex(16).encode())
    return a_front(name, remote)


def begin(front: Front, notebook: Path) -> None:
    """Run start-up code as VS Code does for Python: one after the other."""
    began = time.monotonic()
    front.run(WIDGETS, **OWN)
    assert time.monotonic() - began < 5.0
    front.run(f'import os\n__vsc_ipynb_file__ = "{notebook}"', **OWN)


def run(front: Front, code: str, notebook: Path, number: int = 0) -> str:
    """Run a person's cell as VS Code does."""
    cell = f"vscode-notebook-cell:{quote(str(notebook))}#W{number}sZmlsZQ%3D%3D"
    return front.run(code, metadata={"cellId": cell}, stop_on_error=False)


def sessions(here: JupyterHere, remote: str) -> list[str]:
    """List the living sessions of a remote."""
    found = json.loads(asked(here, "sessions", remote, "--json"))["sessions"]
    own = [each for each in found if each["remote"] == remote]
    return [each["id"] for each in own if each["state"] not in {"ended", "dead"}]


def test_a_day_with_one_notebook(
    here: JupyterHere, remote: str, notebook: Path, tmp_path: Path
) -> None:
    """Restarted it is fresh, opened again it is as it was left; it is one session all the time."""
    with opened(tmp_path, remote) as front:
        begin(front, notebook)
        assert run(front, "kept = 41", notebook) == ""
        # What was answered before it could run has run, once, before the first cell.
        assert run(front, "print(seen, __vsc_ipynb_file__)", notebook, 1) == f"1 {notebook}\n"
    (session,) = sessions(here, remote)

    with opened(tmp_path, remote) as front:  # at once: that is how this client restarts
        begin(front, notebook)
        assert run(front, "'kept' in globals(), seen", notebook) == "(False, 1)"
        assert sessions(here, remote) == [session]
        assert run(front, "kept = 41", notebook) == ""
    left = time.monotonic()
    wait_for(
        lambda: time.monotonic() > left + machine.RESTART_WITHIN,
        what="it is no restart any more",
    )

    with opened(tmp_path, remote) as front:
        begin(front, notebook)
        said = run(front, "kept + 1", notebook, 1)
        assert said.startswith(f"[remoter] Joined session {session} of this notebook")
        assert said.endswith("42")
        assert sessions(here, remote) == [session]


def test_what_is_not_its_own_is_not_joined(
    here: JupyterHere, remote: str, notebook: Path, tmp_path: Path
) -> None:
    """Another notebook opened at once, and another one under the same name."""
    other = tmp_path / "other.ipynb"
    write(other, "kept = 41")
    with opened(tmp_path, remote) as front:
        begin(front, notebook)
        run(front, "kept = 41", notebook)
    (first,) = sessions(here, remote)
    with opened(tmp_path, remote) as front:
        begin(front, other)
        assert run(front, "'kept' in globals()", other) == "False"
    notebook.unlink()
    write(notebook, "something = 'else'")
    for sign in (here.folder / "state/left").iterdir():  # as if it were later
        sign.unlink()
    with opened(tmp_path, remote) as front:
        begin(front, notebook)
        said = run(front, "'kept' in globals()", notebook)
        assert f"Session {first} of this notebook is there, too: remoter attach {first}" in said
        assert said.endswith("False")
    assert len(sessions(here, remote)) == 3


def test_a_session_that_is_gone_is_begun_afresh_by_a_restart(
    here: JupyterHere, remote: str, notebook: Path, tmp_path: Path
) -> None:
    with opened(tmp_path, remote) as front:
        begin(front, notebook)
        run(front, "kept = 41", notebook)
        asked(here, "stop", *sessions(here, remote))
    with opened(tmp_path, remote) as front:
        begin(front, notebook)
        assert run(front, "'kept' in globals()", notebook) == "False"


def test_r_names_its_notebook_with_the_first_cell(
    here: JupyterHere,
    python_remote: dict[str, Any],
    remote: str,
    notebook: Path,
    tmp_path: Path,
) -> None:
    """There is no start-up code; nothing is begun before it is known what for."""
    real_part("irkernel")
    here.add_remote(remote, language="R", kernel="ir", **python_remote)
    write(notebook, "kept <- 41", "kept + 1")
    with opened(tmp_path, remote) as front:
        wait_for(front.client.is_alive, what="the front is there")
        assert sessions(here, remote) == []
        assert run(front, "kept <- 41", notebook) == ""
    with opened(tmp_path, remote) as front:
        assert run(front, "exists('kept')", notebook) == "[1] FALSE"
        assert run(front, "kept <- 41", notebook) == ""
    for sign in (here.folder / "state/left").iterdir():  # as if it were later
        sign.unlink()
    with opened(tmp_path, remote) as front:
        assert run(front, "kept + 1", notebook, 1).endswith("[1] 42")
    assert len(sessions(here, remote)) == 1


def test_a_client_that_says_nothing_of_a_notebook_gets_a_session(
    here: JupyterHere, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not VS Code has it soon, whatever it does."""
    monkeypatch.delenv("VSCODE_PID")
    with opened(tmp_path, remote):
        wait_for(lambda: sessions(here, remote), seconds=20, what="a session")
