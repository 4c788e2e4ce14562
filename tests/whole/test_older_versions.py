"""Sessions that older versions have begun: found, joined, read and ended by this one.

What each of those versions runs there, and what it leaves, is kept in `tests/data`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

from tests.real_jupyter import StartedKernel, started_kernel, wait_for
from tests.real_parts import real_part
from tests.whole.talk import Talk
from tests.whole.test_console import Terminal
from tests.whole.test_life import errors, there, value
from tests.whole.test_sessions import asked, told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_client.manager import KernelManager

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

DATA = Path(__file__).parents[1] / "data"
# Where each version puts the program that runs there; {} stands for the first digits of its hash.
PLACES = {
    "91edf56": ".cache/remoter-kernel",
    "6f583aa": ".local/share/remoter-kernel/programs/{:.16}",
}
SESSIONS = ".local/share/remoter-kernel/sessions"
NOBODY = "0" * 40  # a client's key that no client has
# What a version asks of its program there, as far as it is the same for all sessions.
REQUEST = {
    "client_key": NOBODY,
    "session": "",
    "kernel": "python3",
    "arguments": [],
    "notebook": "",
    "script": "",
    "laptop": "",
    "cells": [],
    "fronts": [],
    "init": [],
    "env": {},
    "cwd": "",
    "idle_timeout": 72 * 3600.0,
    "journal_limit": 2**30,
    "waiting_limit": 8 * 2**20,
    "orders": [],
}
COUNT = """
import time
for number in range(40):
    print('line', number, flush=True)
    time.sleep(0.05)
"""
WAIT = 40.0  # seconds


@dataclass
class Before:
    """A version before this one, and how to begin sessions with it."""

    version: str
    far: FarSide
    config: Path
    remote: str

    @property
    def content(self) -> bytes:
        """The program that it runs there."""
        return (DATA / f"evaluator-{self.version}.pyz").read_bytes()

    @property
    def archive(self) -> Path:
        """Where that program is there, in the home."""
        name = hashlib.sha256(self.content).hexdigest()
        return Path(PLACES[self.version].format(name)) / f"{name}.pyz"

    def begin(self, kernel_id: str, **more: Any) -> str:
        """Begin a session as that version does; return its id."""
        folder, archive = self.archive.parent, self.archive
        self._ssh(f"umask 077; mkdir -p {folder} && cat > {archive}", self.content)
        request = {**REQUEST, "remote": self.remote, "kernel_id": kernel_id, **more}
        stdin = json.dumps(request).encode() + b"\n"
        answer = self._ssh(f'{self.far.python} "$HOME/{archive}"', stdin)
        words = json.loads(answer.partition(b"REMOTER ")[2])
        assert words["joined"] is False, words
        return str(words["session"])

    def _ssh(self, command: str, stdin: bytes) -> bytes:
        words = ["ssh", "-F", str(self.config), "real", command]
        return subprocess.run(words, input=stdin, check=True, capture_output=True).stdout


def known_by(key: bytes) -> str:
    """Return what sessions know a kernel by: it must be the same in every version."""
    return hashlib.sha256(b"remoter kernel\0" + key).hexdigest()[:24]


@pytest.fixture(params=PLACES)
def before(
    request: pytest.FixtureRequest, here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> Iterator[Before]:
    """A version, and a remote of the test's own; nothing runs there any more afterwards."""
    real_part("ssh")
    remote = f"old-{secrets.token_hex(3)}"
    here.add_remote(remote, **python_remote)
    version = Before(request.param, far, python_remote["ssh_config"], remote)
    yield version
    if there(far):  # it has not ended with its kernel
        asked(here, "stop", "--all", remote)
    wait_for(lambda: not there(far), what="the far side is empty")
    (far.home / version.archive).unlink(missing_ok=True)


@dataclass
class Joined:
    """A session of an older version, joined by a kernel of Jupyter's."""

    session: str
    kernel: StartedKernel
    talk: Talk

    @property
    def pid(self) -> int:
        """The process number of the far kernel."""
        return int(value(self.talk, "__import__('os').getpid()"))


@contextlib.contextmanager
def joining(before: Before, **more: Any) -> Iterator[Joined]:
    """Begin a session, and let Jupyter start the kernel whose session it is."""
    begun: list[str] = []

    def begin(manager: KernelManager) -> None:
        begun.append(before.begin(known_by(manager.session.key), **more))

    with started_kernel(f"remoter-{before.remote}", before=begin) as kernel:
        yield Joined(begun[-1], kernel, Talk(kernel.client))


@pytest.fixture
def joined(before: Before) -> Iterator[Joined]:
    """A session of an older version, joined."""
    with joining(before) as joined:
        yield joined


# --------------------------------------------------------------- sessions that run


def test_it_is_joined_listed_interrupted_read_and_stopped(
    joined: Joined, before: Before, here: JupyterHere
) -> None:
    """A morning with it: each cell is busy and idle once, and every command knows the session."""
    talk, session = joined.talk, joined.session
    said = talk.case(lambda talk: talk.run("kept = 'there'\nprint('hello')\n6 * 7"))
    messages = said["iopub under request 0"]
    kinds = [each["content"].get("execution_state", each["type"]) for each in messages]
    assert not errors(messages), errors(messages)
    assert kinds == ["busy", "execute_input", "stream", "execute_result", "idle"]
    assert session in status(talk)

    pid = joined.pid

    def is_listed() -> bool:
        about = told(here, before.remote, session)
        return (about["state"], about["fronts"]) == ("busy", 1)

    def interrupts(talk: Talk) -> None:
        cell = talk.queue("import time; print('on', flush=True); time.sleep(60)")
        talk.until_line("on")
        wait_for(is_listed, what="it is listed, with what it does")
        joined.kernel.manager.interrupt_kernel()
        talk.done(cell)

    said = talk.case(interrupts)
    assert [each["ename"] for each in errors(said["iopub under request 0"])] == [
        "KeyboardInterrupt"
    ]
    assert value(talk, "kept") == "'there'"

    text = asked(here, "outputs", session)
    assert (
        "In [1]: kept = 'there'\n        print('hello')\n        6 * 7\nhello\nOut[1]: 42" in text
    )
    log = asked(here, "log", session)
    assert "asked for: import time" in log
    assert "asked to interrupt" in log
    assert asked(here, "report", before.remote)

    assert asked(here, "stop", session) == f"{before.remote}/{session} was stopped.\n"
    assert not psutil.pid_exists(pid)


def test_a_console_attaches_to_it_and_leaves_it(
    joined: Joined, before: Before, here: JupyterHere, tmp_path: Path
) -> None:
    """`remoter attach`: the variables are there, for both; `exit` leaves the session running."""
    real_part("tmux")
    real_part("jupyter-console")
    joined.talk.case(lambda talk: talk.run("kept = 'since before'"))
    remoter = str(Path(sys.executable).with_name("remoter"))
    with Terminal(tmp_path, [remoter, "attach", joined.session]) as console:
        console.wait_for("]:")
        console.type("kept")
        console.wait_for("'since before'")
        console.type("kept = 'of the console'")
        console.type("exit")
        wait_for(console.is_over, seconds=30, what="the console has ended")
    assert value(joined.talk, "kept") == "'of the console'"


def test_its_kernel_is_restarted_and_shut_down_by_jupyter(
    before: Before, here: JupyterHere, far: FarSide
) -> None:
    """The session stays through a restart, and ends with Jupyter's shutdown."""
    with joining(before) as joined:
        joined.talk.case(lambda talk: talk.run("gone = 1"))
        pid = joined.pid
        joined.kernel.manager.restart_kernel()
        joined.kernel.client.wait_for_ready(timeout=WAIT)
        joined.talk = talk = Talk(joined.kernel.client)
        assert value(talk, "'gone' in globals()") == "False"
        assert joined.pid != pid
        assert joined.session in status(talk)
    wait_for(lambda: not there(far), what="the far side is empty")
    assert told(here, before.remote, joined.session)["why"] == "It was stopped."


def test_its_evaluator_is_killed_and_this_versions_takes_over(
    before: Before, here: JupyterHere, far: FarSide
) -> None:
    """In a running cell, which had to wait at first: nothing runs twice, and it goes on."""
    with contextlib.ExitStack() as stack:
        go = stack.enter_context(far.folder()) / "go"
        waits = f"until test -e {go}; do sleep 0.1; done"  # the cells come before their kernel
        joined = stack.enter_context(joining(before, init=[waits]))
        talk, session = joined.talk, joined.session
        folder = far.home / SESSIONS / session
        evaluator = lambda: json.loads((folder / "door.json").read_text())["pid"]  # noqa: E731
        first = evaluator()

        def dies(talk: Talk) -> None:
            codes = (f"ran = [*globals().get('ran', ()), 1]{COUNT}", "ran.append(2)")
            cells = [talk.queue(code) for code in codes]
            wait_for(lambda: b"ran.append(2)" in (folder / "journal").read_bytes())
            go.touch()
            talk.until_said("line 5\n")
            os.kill(first, signal.SIGKILL)
            talk.listen(lambda: all(map(talk._is_done, cells)), seconds=WAIT)

        said = talk.case(dies)
        texts = [each["content"].get("text", "") for each in said["iopub under request 0"]]
        assert "".join(texts).count("may be missing") == 1
        assert "line 39\n" in "".join(texts)
        replies = [said[f"shell under request {number}"] for number in (0, 1)]
        assert [each["content"]["status"] for reply in replies for each in reply] == ["ok", "ok"]
        assert value(talk, "ran") == "[1, 2]"
        assert session in status(talk)
        assert evaluator() != first
        assert "ran.append(2)" in asked(here, "outputs", session)
        # What this version starts in its place is its own, from the program on.
        pid = joined.pid
        joined.kernel.manager.restart_kernel()
        joined.kernel.client.wait_for_ready(timeout=WAIT)
        assert value(Talk(joined.kernel.client), "'ran' in globals()") == "False"
        assert not psutil.pid_exists(pid)


def test_its_notebook_finds_it_again(
    before: Before, here: JupyterHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jupyter was closed for the update: its new kernel is another one, the notebook is not."""
    path = tmp_path / "a.ipynb"
    cell = nbformat.v4.new_code_cell("kept = 41", id="one")
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))
    laptop = here.folder / "state/laptop"
    laptop.parent.mkdir(exist_ok=True)
    shutil.copyfile(DATA / f"state-{before.version}" / "laptop", laptop)
    with joining(before, notebook=str(path), laptop=laptop.read_text()) as joined:
        joined.talk.case(lambda talk: talk.run("kept = 41", metadata={"cellId": "one"}))
        os.kill(joined.kernel.pid, signal.SIGKILL)
    with started_kernel(f"remoter-{before.remote}") as kernel:
        said = Talk(kernel.client).case(lambda talk: talk.run("print(kept + 1)"))
        texts = {
            m["content"]["name"]: m["content"]["text"]
            for m in said["iopub under request 0"]
            if m["type"] == "stream"
        }
        assert texts["stdout"] == "42\n"
        assert f"Joined session {joined.session}" in texts["stderr"]


def test_what_that_version_could_not_say_is_said_to_its_session(
    before: Before, here: JupyterHere
) -> None:
    """A stop that it wrote down while the link was down: carried out at the next login."""
    session = before.begin("0123456789ab")
    waits = here.folder / "state/orders" / before.remote / "0123456789ab.json"
    waits.parent.mkdir(parents=True)
    words = {"order": "stop", "kernel_id": "0123456789ab", "session": session}
    waits.write_text(json.dumps(words))
    with started_kernel(f"remoter-{before.remote}") as kernel:
        assert value(Talk(kernel.client), "1 + 1") == "2"
        assert told(here, before.remote, session)["state"] == "ended"
        assert not waits.exists()


def status(talk: Talk) -> str:
    """Return what `%remoter status` shows."""
    said = talk.case(lambda talk: talk.run("%remoter status"))["iopub under request 0"]
    return "".join(each["content"].get("text", "") for each in said)


# --------------------------------------------------------------- sessions that are over


@pytest.fixture(params=PLACES)
def over(request: pytest.FixtureRequest, far: FarSide) -> Iterator[str]:
    """A session that has ended just now, as far as its folder says; its id."""
    folder = far.home / SESSIONS / secrets.token_hex(3)
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o700)
            far.give(path)
    for file in (DATA / f"session-{request.param}").iterdir():
        shutil.copyfile(file, folder / file.name)
    about = json.loads((folder / "session.json").read_text())
    (folder / "session.json").write_text(json.dumps({**about, "ended": time.time()}))
    for path in folder.iterdir():
        far.give(path)
    yield folder.name
    shutil.rmtree(folder)


def test_what_is_over_is_listed_and_read(
    over: str, here: JupyterHere, python_remote: dict[str, Any], tmp_path: Path
) -> None:
    """Its cells and outputs as text, in a new notebook and in its own; and what happened."""
    here.add_remote("gpu-box", **python_remote)
    about = told(here, "gpu-box", over)
    assert (about["state"], about["why"]) == ("ended", "It was stopped.")
    assert (about["remote"], about["kernel"]) == ("gpu-box", "python3")
    assert about["notebook"] == "/home/ada/night.ipynb"

    text = asked(here, "outputs", over)
    assert "hello\nbeware\nOut[1]: 42\n" in text
    assert "<a plot>" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "line 199\n" in text

    asked(here, "outputs", over, "--notebook", str(tmp_path / "out.ipynb"))
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = {cell.id: cell for cell in notebook.cells}
    assert list(cells) == ["text", "plot", "error", "night"]
    assert cells["plot"].outputs[0].data["text/html"] == "<b>a plot</b>"
    assert cells["error"].outputs[0].ename == "ZeroDivisionError"
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    (tmp_path / "night.ipynb").write_text(nbformat.writes(notebook))
    filled = asked(here, "outputs", over, "--into", str(tmp_path / "night.ipynb"))
    assert "Filled 4 cells" in filled

    log = asked(here, "log", over)
    for words in (
        f"Session {over} began",
        "asked for: 1 / 0",
        "ZeroDivisionError",
        "It was stopped",
    ):
        assert words in log, log
