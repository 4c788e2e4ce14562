"""JupyterLab in a browser, in the morning: a login with a code, and a notebook of the night."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from tests.lab_visits import sessions, visit
from tests.real_jupyter import wait_for
from tests.real_lab import Cell, Lab, LabServer, one_person
from tests.real_parts import real_part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext

    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround

WHO = "import getpass; print('ran as', getpass.getuser())"
LASTS = 1.0  # seconds that a login is kept
EPOCHS = 20
NIGHT = f"""import time
for epoch in range(1, {EPOCHS + 1}):
    time.sleep(0.5)
    print("epoch", epoch, flush=True)"""
WHOLE = "".join(f"epoch {epoch}\n" for epoch in range(1, EPOCHS + 1))


# --------------------------------------------------------------- a login with a code


def answer(lab: Lab, cell: Cell, says: str, word: str, picture: str = "") -> str:
    """Type into the box that a cell shows, once it asks for that; return its prompt."""
    box = cell.place.locator(".jp-Stdin").filter(has_text=re.compile(says))
    entry = box.locator(".jp-Stdin-input")
    entry.fill(word)
    assert entry.get_attribute("type") == "password"
    text = box.locator(".jp-Stdin-prompt").inner_text()
    if picture:
        lab.picture(picture)
    entry.press("Enter")
    return text


def test_a_code_is_asked_for_in_the_cell(
    here: JupyterHere,
    ground: LoginGround,
    browser: Browser,
    lab_server: LabServer,
    tmp_path: Path,
) -> None:
    """Password, then code, each in the server's words and hidden; then the cell's own result."""
    way = ground.open(ground.kind("password and code"), "cluster")
    spec = here.add_remote(
        "cluster",
        way.alias,
        ssh_config=way.config,
        transport="paramiko",
        python=way.python,
        login_lifetime=LASTS,
    )
    password, code = way.questions
    with visit(browser, lab_server, spec, tmp_path) as lab:
        lab.hide_files()
        cell = lab.begin(WHO)
        words = [password.answer(), code.answer()]
        prompts = [
            answer(lab, cell, r"\] Password", words[0]),
            answer(lab, cell, code.says, words[1], "logins-code"),
        ]
        assert all(re.match(r"\[cluster \(127\.0\.0\.1\S*\)\] ", each) for each in prompts), prompts
        cell.says(f"ran as {way.user}\n")
        assert cell.is_over().endswith(f"ran as {way.user}\n")
        shown = lab.page.locator(".jp-NotebookPanel").inner_text()
        assert not any(word in shown for word in words)


# --------------------------------------------------------------- a night without Jupyter


@pytest.fixture
def remote(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[str]:
    """A remote that only this test uses; its sessions are ended."""
    here.add_remote("gpu-box", **python_remote)
    yield "gpu-box"
    here.remoter("stop", "--all", "gpu-box")
    wait_for(lambda: not sessions(here, "gpu-box"), what="no session is left")


@pytest.fixture
def person(browser: Browser) -> Iterator[BrowserContext]:
    """Somebody with a browser."""
    with one_person(browser) as person:
        yield person


def reopen(person: BrowserContext, server: LabServer, pictures: Path) -> Lab:
    """Open the notebook in a new tab."""
    lab = Lab(person.new_page(), server, pictures)
    lab.open("night.ipynb")
    lab.is_idle()
    return lab


@pytest.mark.slow
def test_a_notebook_of_the_night(
    here: JupyterHere, remote: str, person: BrowserContext, tmp_path: Path
) -> None:
    """Jupyter is killed during a cell; the notebook joins its session and gets what it missed."""
    real_part("jupyterlab")
    folder = tmp_path / "notebooks"
    with LabServer(folder, tmp_path / "evening") as server:
        server.write_notebook("night.ipynb", "", kernel=f"remoter-{remote}")
        lab = reopen(person, server, tmp_path)
        lab.begin("kept = 'since before'").is_over()
        night = lab.begin(NIGHT)
        lab.press("save")
        night.says("epoch 3\n")
        server.kill()
        lab.page.close()
    (session,) = [each["id"] for each in sessions(here, remote)]
    wait_for(lambda: WHOLE in here.remoter("outputs", session).stdout, seconds=60)

    with LabServer(folder, tmp_path / "morning") as server:
        lab = reopen(person, server, tmp_path)
        lab.hide_files()
        assert f"epoch {EPOCHS}" not in lab.cell(1).text()
        said = lab.run("kept")
        assert said.startswith(f"[remoter] Joined session {session} of this notebook, begun ")
        assert f"%remoter outputs, or remoter outputs {session} --into night.ipynb" in said
        assert said.endswith("'since before'")
        missed = lab.run("%remoter outputs")
        assert f"epoch {EPOCHS}\n" in missed
        assert "epoch 1\n" not in missed
        lab.scroll_up()
        lab.picture("sleeps-morning")
        lab.save()
        filled = here.remoter("outputs", session, "--into", str(folder / "night.ipynb"))
        assert "Filled 1 cell" in filled.stdout, filled
        lab.page.close()
        assert reopen(person, server, tmp_path).cell(1).text() == WHOLE
        server.end_kernels()
    assert nbformat.read(folder / "night.ipynb", 4).cells[1].outputs[0].text == WHOLE
