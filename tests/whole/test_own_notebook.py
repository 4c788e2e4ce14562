"""A notebook finds its session again: after a night, a crash, a new Jupyter; and only its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest
from jupyter_client.connect import write_connection_file

from bench.proxy import Proxy
from remoter_kernel.local.login.keeper.endpoint import end_logins
from tests.conftest import is_keeper, marked
from tests.real_jupyter import wait_for
from tests.real_parts import real_part
from tests.real_server import JupyterServer, text_of
from tests.whole.test_sessions import Front, a_front, asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_server import Page
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

TICKS = {
    "python": """import time
for i in range(30):
    print('tick', i, flush=True)
    time.sleep(0.1)""",
    "R": """for (i in 0:29) {
    cat('tick', i, '\\n'); flush.console()
    Sys.sleep(0.1)
}""",
}


@pytest.fixture(params=["python", "R"])
def language(request: pytest.FixtureRequest) -> str:
    """What the far kernel speaks."""
    if request.param == "R":
        real_part("irkernel")
    return str(request.param)


@pytest.fixture
def remote(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[str]:
    """The name of a remote of the test's own; its sessions are ended after it."""
    name = f"own-{secrets.token_hex(4)}"
    here.add_remote(name, **python_remote)
    yield name
    asked(here, "stop", "--all", name)
    wait_for(lambda: not evaluators(), what="the far side is empty")


def evaluators() -> list[psutil.Process]:
    """List what runs there for sessions of this module."""
    ours = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
    mine = [p for p in marked() if p.pid not in ours and not is_keeper(p)]
    return [p for p in mine if "sshd" not in p.name()]


def sessions(here: JupyterHere, remote: str) -> dict[str, dict[str, Any]]:
    """Return the living sessions of a remote by their ids."""
    found = json.loads(asked(here, "sessions", remote, "--json"))["sessions"]
    own = [each for each in found if each["remote"] == remote]
    return {each["id"]: each for each in own if each["state"] not in {"ended", "dead"}}


def written(path: Path, **cells: str) -> Path:
    """Write a notebook with these cells, by their ids; return where it is."""
    nodes = [nbformat.v4.new_code_cell(source, id=name) for name, source in cells.items()]
    nodes.insert(0, nbformat.v4.new_markdown_cell("# night\n\n“é” \\u00e9", id="title"))
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=nodes)) + "\n")
    return path


# --------------------------------------------------------------- night and morning


def run(page: Page, code: str, cell: str = "") -> tuple[str, str]:
    """Run a cell to its end; return what it showed, and what it said on stderr."""
    name = page.run(code, cell=cell)
    said = list(page.until_idle(name))
    results = [each["content"].get("data", {}).get("text/plain", "") for each in said]
    return text_of(said) + "".join(results), text_of(said, "stderr")


def test_a_night_without_jupyter(
    here: JupyterHere, python_remote: dict[str, Any], remote: str, language: str, tmp_path: Path
) -> None:
    """Proxy and server are killed in a long cell; in the morning all is there, nothing twice."""
    if language == "R":
        here.add_remote(remote, language="R", kernel="ir", **python_remote)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = {"setup": "kept <- 41" if language == "R" else "kept = 41", "night": TICKS[language]}
    path = written(folder / "night.ipynb", **cells, other="'untouched'")
    before = path.read_text()

    with contextlib.suppress(psutil.NoSuchProcess), JupyterServer(folder, tmp_path / "1") as server:
        page = server.open(f"remoter-{remote}", "night.ipynb")
        run(page, cells["setup"], "setup")
        night = page.run(cells["night"], cell="night")
        page.listen(lambda: "tick 3" in text_of(page.of(night)))
        fronts = psutil.Process(server._process.pid).children()
        server._process.kill()
        for front in fronts:
            front.kill()
        page.socket.close()
    ((session, about),) = sessions(here, remote).items()
    wait_for(lambda: "tick 29" in asked(here, "outputs", session), seconds=30)
    assert about["notebook"] == str(path)

    with JupyterServer(folder, tmp_path / "2") as server:
        page = server.open(f"remoter-{remote}", "night.ipynb")
        silent = page.say("execute_request", {"code": "1", "silent": True})
        assert "Joined" not in text_of(list(page.until_idle(silent)), "stderr")
        first = page.run("kept + 1")
        said = list(page.until_idle(first))
        joined = text_of(said, "stderr")
        assert joined.startswith(f"[remoter] Joined session {session} of this")
        assert f"remoter outputs {session} --into night.ipynb" in joined
        assert text_of(said, "stderr").count("Joined") == 1
        assert run(page, "kept + 1") == ("[1] 42" if language == "R" else "42", "")
        assert list(sessions(here, remote)) == [session]
        assert "Filled 1 cell" in asked(here, "outputs", session, "--into", str(path))
        page.close()

    after = nbformat.read(path, as_version=4)
    nbformat.validate(after)
    (output,) = after.cells[2].outputs
    assert [line.split() for line in output.text.splitlines()] == [
        ["tick", str(number)] for number in range(30)
    ]
    after.cells[2].outputs, after.cells[2].execution_count = [], None
    assert nbformat.writes(after) + "\n" == before


# --------------------------------------------------------------- who joins what


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook, for which each proxy is started as jupyter_server would."""
    path = written(tmp_path / "a.ipynb", one="kept = 1", two="kept")
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))
    return path


@pytest.fixture
def fronts(remote: str, tmp_path: Path) -> Iterator[Any]:
    """Starts proxies, each with a connection file of its own, unless one is named."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, file: str = "") -> Front:
            name = file or f"{secrets.token_hex(4)}.json"
            path = tmp_path / name
            if not path.exists():
                write_connection_file(str(path), key=secrets.token_hex(16).encode())
            return stack.enter_context(a_front(path, remote, *words))

        yield start


def begin(front: Front, code: str = "kept = 1", cell: str = "one") -> str:
    """Run the notebook's first cell; return what it said."""
    return front.run(code, metadata={"cellId": cell})


def shown_in(front: Front, cell: str) -> str:
    """Return all text that a cell showed."""
    contents = [
        message["content"]
        for _, message in front.talk.heard
        if message["parent_header"].get("msg_id") == cell
    ]
    results = [content.get("data", {}).get("text/plain", "") for content in contents]
    return "".join([content.get("text", "") for content in contents] + results)


def session_of(front: Front) -> str:
    """Return the id of a proxy's session."""
    return front.run("%remoter status").partition("session")[2].split()[0]


def test_a_front_joins_what_a_dead_one_has_left(fronts: Any, notebook: Path) -> None:
    """Variables, a line that says so and that a cell runs; a restart of the proxy finds it, too."""
    first = fronts()
    begin(first)
    first.talk.queue("import time; print('on', flush=True); time.sleep(3)")
    first.talk.until_line("on")
    session = session_of(first)
    first.kill()
    second = fronts(file="second.json")
    said = second.run("kept")
    assert said.startswith(f"[remoter] Joined session {session} of this notebook, begun ")
    assert "A cell is still running there." in said
    assert said.endswith("1")
    second.kill()
    again = fronts(file="second.json")
    assert again.run("kept") == "1"
    assert session_of(again) == session


def test_a_new_notebook_of_the_same_name_is_nobodys_heir(
    fronts: Any, notebook: Path, here: JupyterHere, remote: str
) -> None:
    """Another Untitled.ipynb begins afresh, and hears of the session; not of an ended one."""
    first = fronts()
    begin(first)
    session = session_of(first)
    first.kill()
    written(notebook, other="kept = 2")
    second = fronts()
    said = second.run("'kept' in dir()")
    told = f"[remoter] Session {session} of this notebook is there, too: remoter attach {session}\n"
    assert said == f"{told}False"
    assert second.run("1") == "1"
    asked(here, "stop", "--all", remote)
    notebook.write_text("{")
    assert fronts().run("'kept' in dir()") == "False"


def test_a_copy_begins_afresh_and_a_renamed_one_hears_why(
    fronts: Any, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another path joins nothing; where the old file is gone, a line names the session."""
    first = fronts()
    begin(first)
    session = session_of(first)
    first.kill()
    other = notebook.with_name("b.ipynb")
    shutil.copy(notebook, other)
    monkeypatch.setenv("JPY_SESSION_NAME", str(other))
    assert fronts().run("'kept' in dir()") == "False"
    notebook.rename(notebook.with_name("c.ipynb"))
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook.with_name("c.ipynb")))
    said = fronts().run("'kept' in dir()")
    assert f"Session {session} has cells of this notebook, as a.ipynb, and is there, too" in said
    assert said.endswith("False")


def test_a_copy_beside_a_living_one_has_a_kernel_of_its_own(
    fronts: Any, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicated, saved as, or of the same name in another folder: all have the same cells."""
    first = fronts()
    begin(first)
    other = notebook.parent / "other" / notebook.name
    other.parent.mkdir()
    shutil.copy(notebook, other)
    monkeypatch.setenv("JPY_SESSION_NAME", str(other))
    second = fronts()
    assert begin(second, "'kept' in dir()") == "False"
    begin(second, "kept = 2")
    assert first.run("kept") == "1"
    own = session_of(second)
    first.kill()
    second.kill()
    again = fronts()
    assert again.run("kept").startswith(f"[remoter] Joined session {own} of this")
    assert again.run("kept") == "2"
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))
    last = fronts()
    last.run("1")
    assert last.run("kept") == "1"


def test_a_notebook_that_was_moved_back_finds_its_session(
    fronts: Any, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was moved to, it began afresh; back in its place, what it had there is there."""
    first = fronts()
    begin(first)
    first.kill()
    moved = notebook.rename(notebook.with_name("moved.ipynb"))
    monkeypatch.setenv("JPY_SESSION_NAME", str(moved))
    there = fronts()
    assert there.run("'kept' in dir()").endswith("False")
    there.kill()
    moved.rename(notebook)
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))
    back = fronts()
    assert back.run("kept").startswith("[remoter] Joined session")
    assert back.run("kept") == "1"


@pytest.fixture
def detour(
    sshd: RealSshd, far: FarSide, remote: str, tmp_path: Path
) -> Iterator[tuple[Proxy, str]]:
    """A breakable path to the same remote, and the configuration of proxies that take it."""
    config, remotes = tmp_path / "detour", tmp_path / "detour.toml"
    with Proxy(sshd.port) as path:
        name = f"[127.0.0.1]:{sshd.port}"
        sshd.ssh_config(config, "detour", extra=f"Port {path.port}\nHostKeyAlias {name}")
        words = {"host": "detour", "ssh_config": str(config), "python": str(far.python)}
        lines = [f"{key} = {json.dumps(word)}" for key, word in words.items()]
        remotes.write_text("\n".join([f"[remotes.{remote}]", *lines, ""]))
        yield path, str(remotes)


def test_a_front_whose_link_is_down_keeps_its_session(
    fronts: Any,
    notebook: Path,
    here: JupyterHere,
    remote: str,
    detour: tuple[Proxy, str],
) -> None:
    """Nobody joins behind its back; once both proxies are gone there are two: a third is told."""
    path, config = detour
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMOTER_CONFIG", config)
        first = fronts()
    begin(first)
    session = session_of(first)
    path.__exit__(None, None, None)  # cut, and nobody listens there any more
    wait_for(lambda: sessions(here, remote)[session]["fronts"] == 0, what="it is cut")
    second = fronts()
    assert f"Session {session} of this notebook is there, too" in begin(second, "kept = 2")
    other = session_of(second)
    assert first.process.poll() is None
    first.kill()
    second.kill()
    third = fronts()
    said = third.run("'kept' in dir()")
    assert "of this notebook are there, too: remoter attach " in said
    assert said.endswith("\nFalse")
    assert {session, other} < set(said.split())


def test_a_laptop_that_died_is_not_waited_for(
    fronts: Any, notebook: Path, detour: tuple[Proxy, str]
) -> None:
    """The far side still takes the dead proxy for connected; the laptop knows better."""
    path, config = detour
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMOTER_CONFIG", config)
        first = fronts()
    begin(first)
    session = session_of(first)
    path.stall()
    first.kill()
    assert fronts().run("kept").startswith(f"[remoter] Joined session {session}")


def test_a_front_of_another_laptop_keeps_the_session(
    fronts: Any, notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is attached from elsewhere is there, whoever else is gone."""
    first = fronts()
    begin(first)
    session = session_of(first)
    with monkeypatch.context() as patch:
        patch.setenv("REMOTER_STATE", str(tmp_path / "another laptop"))
        guest, stranger = fronts("--session", session), fronts()
        assert stranger.run("'kept' in dir()") == "False"  # its own notebook of the same path
        assert guest.run("kept") == "1"
        first.kill()
    assert f"Session {session} of this notebook is there, too" in fronts().run("1")
    with monkeypatch.context() as patch:
        patch.setenv("REMOTER_STATE", str(tmp_path / "another laptop"))
        for each in (guest, stranger):
            each.kill()
        end_logins()


def test_two_at_once_do_not_both_join(fronts: Any, notebook: Path, sshd: RealSshd) -> None:
    """One gets the session, the other begins afresh and hears of it."""
    first = fronts()
    begin(first)
    session = session_of(first)
    first.kill()
    sshd.stop_listening()
    both = [fronts(), fronts()]
    for front in both:
        front.run("1")  # it cannot log in, and tries again when a cell is run
    sshd.start()
    cells = [front.talk.queue("'kept' in dir()") for front in both]
    for front, cell in zip(both, cells, strict=True):
        front.talk.done(cell)
    said = sorted(shown_in(front, cell) for front, cell in zip(both, cells, strict=True))
    assert [text[-5:].strip() for text in said] == ["True", "False"]
    assert said[0].startswith(f"[remoter] Joined session {session}")
    assert said[1].startswith(f"[remoter] Session {session}")


def test_a_restart_that_was_written_down_comes_first(
    fronts: Any, notebook: Path, here: JupyterHere, sshd: RealSshd, remote: str
) -> None:
    """Pressed while the link was down, by a proxy that is gone: carried out before one joins."""
    first = fronts()
    begin(first)
    session = session_of(first)
    sshd.stop_listening()
    first.talk.send("shutdown_request", {"restart": True}, channel="control")
    first.process.wait(10)
    sshd.start()
    second = fronts()
    said = second.run("'kept' in dir()")
    assert said.startswith(f"[remoter] Joined session {session}")
    assert said.endswith("False")


def test_a_notebook_that_a_cell_runs_is_another(
    fronts: Any, notebook: Path, remote: str, tmp_path: Path
) -> None:
    """`!jupyter execute b.ipynb` has the environment of the notebook it is run in."""
    real_part("nbclient")
    first = fronts()
    begin(first)
    first.kill()
    other = written(tmp_path / "b.ipynb", one="'kept' in dir()")
    command = [str(Path(sys.executable).with_name("jupyter-execute")), "--inplace", str(other)]
    subprocess.run([*command, f"--kernel_name=remoter-{remote}"], check=True, timeout=60)
    (output,) = nbformat.read(other, as_version=4).cells[1].outputs
    assert output.data["text/plain"] == "False"


def test_a_kernel_does_not_hear_of_the_notebook(
    here: JupyterHere, notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cell starts on this machine must not be taken for the notebook's own."""
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "none.toml"))
    file, _ = write_connection_file(str(tmp_path / "k.json"), key=b"k")
    del file
    with a_front(tmp_path / "k.json", "") as front:
        assert front.run("import os; 'JPY_SESSION_NAME' in os.environ").endswith("\nFalse")
        front.run("%remoter stop")
