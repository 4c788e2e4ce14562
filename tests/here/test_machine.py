"""What this machine is known by, which proxies live on it, and whose notebook a proxy is for."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.local.session import machine, notebook_identity
from remoter_kernel.local.session.machine import LivenessLock, live_kernel_ids, machine_id
from remoter_kernel.local.session.notebook_identity import (
    NotebookIdentity,
    cell_fingerprints,
    is_notebook_file,
)
from remoter_kernel.protocol.messages import source_hash
from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAY_ID = "from remoter_kernel.local.session.machine import machine_id; input(); print(machine_id())"
LIVE = """
from remoter_kernel.local.session.machine import LivenessLock
presence = LivenessLock("k1")
print(presence.acquire(), flush=True)
input()
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, which is not there yet."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@contextlib.contextmanager
def another(code: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run code in a process of its own until its stdin ends."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        yield process


def test_the_id_is_made_once_even_by_many_at_once(state):
    """Six processes that find none say the same one; nobody else may read it."""
    with contextlib.ExitStack() as stack:
        all_of_them = [stack.enter_context(another(SAY_ID)) for _ in range(6)]
        for process in all_of_them:  # each waits for this line, imports done
            process.stdin.write("\n")
        said = {process.communicate()[0].strip() for process in all_of_them}
    assert said == {machine_id()}
    assert len(machine_id()) == 24
    assert stat.S_IMODE((state / "laptop").stat().st_mode) == 0o600


def test_a_torn_id_is_made_anew_and_none_where_nothing_can_be_written(state, monkeypatch):
    """What is no id is not taken for one; without a place for it, nobody is known."""
    known = machine_id()
    (state / "laptop").write_text(known[:7])
    assert machine_id() not in {known, known[:7], ""}
    (state / "file").touch()
    monkeypatch.setenv("REMOTER_STATE", str(state / "file"))
    assert machine_id() == ""
    assert not LivenessLock("k").acquire()


def test_a_front_lives_until_its_process_ends(state):
    """However it ends; two of one kernel (a restart) are one life, and signs of dead ones go."""
    assert live_kernel_ids() == set()
    own = LivenessLock("k1")
    assert own.acquire()
    with another(LIVE) as process:
        assert process.stdout.readline() == "True\n"
        own.release()
        assert live_kernel_ids() == {"k1"}
        process.kill()
        process.wait()
        assert live_kernel_ids() == set()
    assert list((state / "fronts").iterdir()) == []


def test_a_stopped_front_lives(state):
    """A lid that is closed, a process that is frozen: it will be back."""
    import signal

    with another(LIVE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        assert live_kernel_ids() == {"k1"}
        process.kill()


def test_who_looks_does_not_disturb_who_comes(state):
    """A sign that was taken for a dead one's before it was locked is made again."""
    with another("from remoter_kernel.local.session.machine import live_kernel_ids\n"
                 "print(flush=True)\nwhile True: live_kernel_ids()") as looking:  # fmt: skip
        looking.stdout.readline()
        for _ in range(200):
            presence = LivenessLock("k1")
            assert presence.acquire()
            assert live_kernel_ids() == {"k1"}
            presence.release()
        looking.kill()
    wait_for(lambda: not live_kernel_ids())


def test_where_nothing_can_be_locked_nobody_is_dead(state, monkeypatch):
    """Who cannot be judged is left alone."""
    (state / "fronts").mkdir(parents=True)
    (state / "fronts" / "k1-00").touch()

    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(machine, "try_lock", refuse)
    assert not LivenessLock("k2").acquire()
    assert "k1" in live_kernel_ids()


# Whose notebook -------------------------------------------------------------------------


def test_a_name_that_the_parent_has_itself_is_anothers(tmp_path):
    """A script in a notebook's kernel runs another notebook: it has the first one's environment."""
    path = str(tmp_path / "a.ipynb")
    with another("input()", JPY_SESSION_NAME=path) as jupyter:
        parent = {"JPY_PARENT_PID": str(jupyter.pid)}
        seen = [
            notebook_identity.notebook_from_environment({"JPY_SESSION_NAME": path, **parent}),
            notebook_identity.notebook_from_environment({"JPY_SESSION_NAME": f"{path}2", **parent}),
        ]
        jupyter.communicate("\n")
    assert seen == ["", f"{path}2"]
    gone = {"JPY_PARENT_PID": str(jupyter.pid)}
    assert notebook_identity.notebook_from_environment({"JPY_SESSION_NAME": path, **gone}) == path
    assert notebook_identity.notebook_from_environment({}) == ""


def a_notebook(*ids: object) -> str:
    cells = [{"cell_type": "markdown", "id": name, "source": "1"} for name in ids]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (a_notebook("a", "b-2"), ("a", "b-2")),
        (a_notebook(), ()),
        (a_notebook("a", None, 5, "", "no spaces", "x" * 65, ["a"]), ("a",)),
        ('{"cells": [{"cell_type": "code"}, 5, null]}', ()),
        ('{"cells": 5}', ()),
        ("[]", ()),
        ("{", ()),
        ("[" * 100_000, ()),
        ("\ud800", ()),
        ("", ()),
    ],
)
def test_a_notebook_file_is_read_with_care(tmp_path, text, ids):
    """What is no notebook, or an old one, has no ids."""
    path = tmp_path / "a.ipynb"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert cell_fingerprints(path) == ids


def test_code_is_known_by_its_text_too(tmp_path):
    """For clients that do not say the ids: a text or a list of lines, Windows' lines or ours."""
    path = tmp_path / "a.ipynb"
    sources = ["a = 1\nb = 2\n", ["a = 1\r\n", "b = 2"], "c", "", " \n", 5, None]
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": s} for s in sources]}))
    first, second, third = cell_fingerprints(path)
    assert first == second == source_hash("a = 1\nb = 2")
    assert third != first


def test_what_is_no_notebook_file_claims_nothing(tmp_path, monkeypatch):
    """A console, a folder, a path from nowhere, a file that is too large: no cells, no proxies."""
    path = tmp_path / "a.ipynb"
    path.write_text(a_notebook("a"))
    script = tmp_path / "a.py"
    script.write_text(a_notebook("a"))
    (tmp_path / "folder.ipynb").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("", "a.ipynb", str(script), str(tmp_path / "folder.ipynb"), f"{path}-1-console"):
        assert not is_notebook_file(name)
        with NotebookIdentity(name, "laptop").request_fields() as words:
            assert words == {"notebook": name, "laptop": "laptop"}
    with NotebookIdentity(str(path), "laptop").request_fields() as words:
        assert (words["cells"], words["fronts"]) == (("a",), ())
    with NotebookIdentity(str(path), "").request_fields() as words:
        assert words == {"notebook": str(path), "laptop": ""}
    monkeypatch.setattr(notebook_identity, "LARGEST", 10)
    assert cell_fingerprints(path) == ()
    assert cell_fingerprints(tmp_path / "none.ipynb") == ()


def test_claims_for_one_notebook_are_made_in_turn(tmp_path):
    """Who asks while another is at it waits: what it sees is what the other has done."""
    path = tmp_path / "a.ipynb"
    path.write_text(a_notebook("a"))
    code = f"""
from remoter_kernel.local.session.notebook_identity import NotebookIdentity
print("asks", flush=True)
with NotebookIdentity({str(path)!r}, "laptop").request_fields() as words:
    print(words["fronts"])
"""
    presence = LivenessLock("k1")
    with another(code) as process:
        with NotebookIdentity(str(path), "laptop").request_fields():
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            assert presence.acquire()
        assert process.stdout.readline() == "('k1',)\n"
    presence.release()
