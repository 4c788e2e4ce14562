"""What a notebook of a stranger tries to get of this machine by a yes to something else."""

from __future__ import annotations

import contextlib
import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.connect import write_connection_file

from remoter_kernel.local.login.prompts import OWN_TAG
from remoter_kernel.local.proxy.identity import ClientNotebookDetector
from tests.pure.test_notebook_detector import Clock, a_request
from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk
from tests.whole.test_sessions import a_front
from tests.whole.test_this_side import iopub, kernels_here, reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere, StartedKernel
    from tests.real_users import FarSide

NO_REMOTE = "[remoter] No remote is configured: this kernel runs on this machine, as you."


class Notebook:
    """A stranger's notebook, in a folder beside something secret."""

    def __init__(self, kernel: StartedKernel, folder: Path, there: Path) -> None:
        self.kernel = kernel
        self.folder = folder
        self.there = there
        self.secret = folder.parent / "secret.txt"
        self.secret.write_text("TOP-SECRET")

    def run(self, code: str, *answers: str, **options: Any) -> tuple[list[str], str]:
        """Run a cell; return what it asked, and its error."""
        talk = Talk(self.kernel.client)
        said = talk.case(partial(Talk.run, code=code, answers=answers, **options))
        assert "GAVE UP" not in said, said
        asked = [each["content"]["prompt"] for each in said.get("stdin under request 0", ())]
        return asked, reply(said).get("evalue", "")

    def arrived(self) -> list[str]:
        """The names of what is there."""
        return sorted(path.name for path in self.there.iterdir())


@pytest.fixture
def notebook(
    request: pytest.FixtureRequest,
    here: JupyterHere,
    far: FarSide,
    python_remote: dict[str, Any],
    tmp_path: Path,
) -> Iterator[Notebook]:
    """One whose remote says `ask`, or what the parameter says."""
    rule = getattr(request, "param", "ask")
    folder = tmp_path.resolve() / "from-a-stranger"
    folder.mkdir()
    with far.folder() as there:
        spec = here.add_remote(f"stranger-{rule}", local=rule, cwd=str(there), **python_remote)
        with started_kernel(spec, cwd=str(folder)) as kernel:
            Talk(kernel.client).case(lambda talk: talk.run("1"))
            yield Notebook(kernel, folder, there)


def test_a_yes_to_one_file_is_no_yes_to_code(notebook: Notebook) -> None:
    """The first cell sends a harmless file, so that the next one runs code here unasked."""
    (notebook.folder / "data.csv").write_text("1,2")
    (asked,), trouble = notebook.run("%remoter put data.csv ./", "yes")
    assert asked.startswith(f"{OWN_TAG}%remoter put wants to read files here: it sends data.csv ")
    assert f"send any file below {notebook.folder} to the remote, and nothing else" in asked
    assert trouble == ""
    for code in ("%%local\n1", "%local 1", "%remoter push x", "%remoter pull x"):
        (asked,), trouble = notebook.run(code, "no")
        assert "wants to run code here" in asked
        assert "run any code on this machine, with your files and your rights" in asked
        assert "was not allowed" in trouble
        assert "nobody can be asked" in notebook.run(code, allow_stdin=False)[1]
    assert not kernels_here(notebook.kernel)
    (asked,), trouble = notebook.run("%remoter get data.csv copy.csv", "no")
    assert "wants to write files here" in asked
    assert not (notebook.folder / "copy.csv").exists()


@pytest.mark.parametrize("notebook", ["ask", "allow"], indirect=True)
def test_a_link_in_the_folder_shows_where_it_leads(notebook: Notebook) -> None:
    """`data.csv` of the notebook's folder is a link to a private key."""
    (notebook.folder / "data.csv").symlink_to(notebook.secret)
    (notebook.folder / "data").symlink_to(notebook.secret.parent)
    for word, place in (("data.csv", notebook.secret), ("data", notebook.secret.parent)):
        (asked,), trouble = notebook.run(f"%remoter put {word} ./", "no")
        assert f"outside of this notebook's folder (1 of 1):\n  {place}\n" in asked
        assert f"The remote gets it as {word}." in asked
        assert "was not allowed" in trouble
        assert (
            "nobody can be asked" in notebook.run(f"%remoter put {word} ./", allow_stdin=False)[1]
        )
    assert notebook.arrived() == []
    (asked,), trouble = notebook.run("%remoter put data.csv ./", "yes")
    assert trouble == ""
    assert (notebook.there / "data.csv").read_text() == "TOP-SECRET"


@pytest.mark.parametrize("notebook", ["allow"], indirect=True)
def test_a_link_in_the_folder_is_not_written_through(notebook: Notebook) -> None:
    """`sub` of the notebook's folder is a link to the home, `out` one to a file there."""
    (notebook.there / "profile").write_text("echo owned")
    (notebook.folder / "sub").symlink_to(notebook.secret.parent)
    (notebook.folder / "out").symlink_to(notebook.secret)
    for word, place in (("sub/", notebook.secret.parent), ("out", notebook.secret)):
        (asked,), _ = notebook.run(f"%remoter get profile {word}", "no")
        assert f"wants to write outside of this notebook's folder (1 of 1):\n  {place}\n" in asked
    assert notebook.secret.read_text() == "TOP-SECRET"
    assert not (notebook.secret.parent / "profile").exists()


def test_no_name_is_hidden_among_many(notebook: Notebook) -> None:
    """The telling one of many names was cut out of the question."""
    names = [f"measurement-{number:02}.csv" for number in range(12)]
    for name in names:
        (notebook.folder / name).write_text("1")
    words = [*names[:6], str(notebook.secret), *names[6:]]
    asked, trouble = notebook.run(f"%remoter put {' '.join(words)} in/", "yes", "no")
    first, second = asked
    assert "it sends 13 sources (13 files, " in first
    assert "1 of 13 is outside of this notebook's folder, and asked about next." in first
    assert f"\n  {notebook.secret}\n" in second
    assert "was not allowed" in trouble
    assert notebook.arrived() == []


def test_a_pattern_that_matches_a_link_asks_about_it(notebook: Notebook) -> None:
    """Patterns are resolved before the question; what was asked about is what is sent."""
    (notebook.folder / "a.csv").write_text("1")
    (notebook.folder / "b.csv").symlink_to(notebook.secret)
    asked, _ = notebook.run("%remoter put *.csv in/", "yes", "no")
    assert f"\n  {notebook.secret}\n" in asked[1]
    assert notebook.arrived() == []


@pytest.mark.parametrize("notebook", ["allow"], indirect=True)
@pytest.mark.parametrize("verb", ["put", "get"])
def test_what_changes_while_a_person_thinks_is_not_what_was_asked_about(
    notebook: Notebook, verb: str
) -> None:
    """The place leads to something else when the answer comes."""
    outside = notebook.folder.parent / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("harmless")
    (notebook.there / "b.txt").write_text("from there")
    talk = Talk(notebook.kernel.client)
    talk.case(lambda _talk: None)
    place = outside / "a.txt" if verb == "put" else outside
    code = f"%remoter put {place} ./" if verb == "put" else f"%remoter get b.txt {place}/"
    cell = talk.queue(code)
    talk.listen(lambda: bool(talk._of("stdin")))
    (outside / "a.txt").unlink()
    if verb == "put":
        (outside / "a.txt").symlink_to(notebook.secret)
    else:
        outside.rmdir()
        outside.symlink_to(notebook.secret.parent)
    talk.send("input_reply", {"value": "yes"}, channel="stdin")
    talk.done(cell)
    (error,) = [m["content"]["evalue"] for _, m in talk.heard if m["msg_type"] == "error"]
    assert ("by now" if verb == "get" else "cannot be read here") in error
    assert not (notebook.secret.parent / "b.txt").exists()
    assert "TOP-SECRET" not in [path.read_text() for path in notebook.there.iterdir()]


def test_a_cell_does_not_say_which_notebook_it_is_of() -> None:
    """The line of VS Code's own code, in a stranger's cell, names another notebook of this side."""
    heard: list[str] = []
    introduction = ClientNotebookDetector(Clock(), heard.append)  # type: ignore[arg-type]
    introduction.start()
    line = '__vsc_ipynb_file__ = "/home/ada/private.ipynb"'
    introduction.on_request(a_request(code=line, store_history=True))
    assert heard == [""]


# ------------------------------------------------------------------- no remote at all


@pytest.fixture
def nowhere(here: JupyterHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    """A client of the kernel that the packaged kernelspec starts, without any remote."""
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "none.toml"))
    key = secrets.token_hex(16).encode()
    file = Path(write_connection_file(str(tmp_path / "kernel.json"), key=key)[0])
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(a_front(file, ""))
        stack.callback(front.run, "%remoter stop")
        yield front.talk


def test_a_kernel_without_a_remote_says_that_it_runs_here(nowhere: Talk) -> None:
    """A notebook names that kernelspec: its cells run on this machine, with no word of it.

    Above the outputs of the first cell that shows any, once; silent requests say nothing.
    """
    silent = nowhere.case(lambda talk: talk.run("1", silent=True, store_history=False))
    assert not [each for each in iopub(silent) if each["type"] == "stream"]
    said = nowhere.case(lambda talk: talk.run("print('ran')"))
    kinds = [each["type"] for each in iopub(said)]
    texts = [each["content"]["text"] for each in iopub(said) if each["type"] == "stream"]
    assert texts[0].startswith(NO_REMOTE)
    assert texts[1:] == ["ran\n"]
    assert kinds.index("stream") < kinds.index("execute_input")
    said = nowhere.case(lambda talk: talk.run("print('again')"))
    assert [each["content"]["text"] for each in iopub(said) if each["type"] == "stream"] == [
        "again\n"
    ]
