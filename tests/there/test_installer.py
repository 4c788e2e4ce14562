"""The installer by itself: what it takes for complete, what it keeps, what it takes away."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from remoter_kernel.local.launch import remote_venv_script
from remoter_kernel.local.launch.remote_venv import installer_script, parse_installer_answer
from remoter_kernel.local.launch.remote_venv_script import ANSWER_MARK, EnvPaths, own_base
from remoter_kernel.local.login.login import CompletedCommand

MODULES = ["json", "zipfile"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(remote_venv_script, "ENDS_WITHIN", 0.0)
    return EnvPaths("box")


@pytest.fixture
def made(place):
    """An environment as it is when it is complete; its Python is ours."""
    place.python.parent.mkdir(parents=True)
    place.python.symlink_to(sys.executable)
    remote_venv_script.write_atomically(place.stamp, json.dumps({"base": own_base()}))
    return place


def ask(verb, **words):
    said = io.StringIO()
    before = os.umask(0o077)
    try:
        with redirect_stdout(said):
            remote_venv_script.answer_request(
                {"verb": verb, "name": "box", "modules": MODULES, **words}
            )
    finally:
        os.umask(before)
    return parse_installer_answer(CompletedCommand(said.getvalue().encode(), b"", 0))


def test_nothing_half_made_and_complete_are_told_apart(made):
    assert ask("look")["state"] == "complete"
    assert ask("look", modules=[*MODULES, "no_such_module"])["state"] == "half"
    made.stamp.write_text("{")
    assert ask("look")["state"] == "half"
    remote_venv_script.remove_path(made.environment)
    assert ask("look")["state"] == "none"


def test_one_that_stands_on_another_python_than_the_named_one_is_not_it(made):
    made.stamp.write_text(json.dumps({"base": "/elsewhere/python"}))
    assert ask("look")["state"] == "complete"
    assert ask("look", is_named=True)["state"] == "half"


def test_one_whose_python_is_gone_is_not_complete(made):
    made.python.unlink()
    made.python.symlink_to("/nowhere/python")
    assert ask("look")["state"] == "half"
    made.python.unlink()
    made.python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    made.python.chmod(0o755)
    assert ask("look")["state"] == "half"


def test_what_it_stands_on_is_described(place):
    facts = ask("look")["platform"]
    assert facts["python"] == list(sys.version_info[:3])
    assert (facts["implementation"], facts["bits"]) == ("cpython", 64)
    assert all(facts["libc"])


def test_files_that_are_whole_are_kept_and_others_go(place):
    place.wheels.mkdir(parents=True)
    for name in ("a.whl", "b.whl", "c.whl.1234.part", "old.whl"):
        (place.wheels / name).write_text(name)
    files = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.whl", "c.whl")}
    files["b.whl"] = files["a.whl"]
    assert ask("receive", files=files) == {"missing": ["b.whl", "c.whl"]}
    assert [path.name for path in place.wheels.iterdir()] == ["a.whl"]
    assert not place.lock.exists()


def test_nothing_is_brought_for_what_is_complete(made):
    assert ask("receive", files={"a.whl": ""}) == {"missing": []}
    assert ask("make") == {"python": str(made.python), "is_new": False}
    assert not made.wheels.exists()


def test_a_purge_takes_this_environment_and_nothing_else(made):
    other = EnvPaths("box-2")
    other.environment.mkdir()
    made.wheels.mkdir()
    assert ask("purge") == {"is_removed": True}
    assert [path.name for path in made.folder.iterdir()] == ["venv-box-2"]
    other.environment.rmdir()
    assert ask("purge") == {"is_removed": False}


def test_a_purge_leaves_no_empty_folder_and_makes_none(made):
    assert ask("purge") == {"is_removed": True}
    assert not made.folder.exists()
    assert ask("purge") == {"is_removed": False}
    assert not made.folder.exists()


def test_a_purge_of_a_link_leaves_what_it_leads_to(place, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    place.folder.mkdir()
    place.environment.symlink_to(precious)
    assert ask("purge") == {"is_removed": True}
    assert precious.exists()


@pytest.mark.parametrize("verb", ["purge", "make"])
def test_what_runs_in_it_is_left_alone(made, verb):
    made.stamp.unlink()
    command = [str(made.python), "-c", "print('up', flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"up\n"
        assert ask(verb) == {"running": [process.pid]}
        process.kill()
    assert made.environment.exists()


def test_what_misleads_pip_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example.org")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    online = remote_venv_script.clean_environment(is_offline=False)
    assert online["PIP_INDEX_URL"] == "https://mirror.example.org"
    assert not {"PIP_TARGET", "PYTHONPATH"} & set(online)
    offline = remote_venv_script.clean_environment(is_offline=True)
    assert [name for name in offline if name.startswith("PIP_")] == ["PIP_CONFIG_FILE"]
    assert offline["PIP_CONFIG_FILE"] == os.devnull


def test_it_runs_from_stdin_and_quotes_reach_it_whole(tmp_path):
    """Whatever a name or a path may hold."""
    wish = {"verb": "receive", "name": "box", "modules": [], "files": {"'\"\\ ö\n": "x"}}
    ran = subprocess.run(
        [sys.executable, "-I", "-B", "-"],
        input=installer_script(wish).encode(),
        env={"HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert ran.stdout.count(ANSWER_MARK.encode()) == 1
    assert parse_installer_answer(CompletedCommand(ran.stdout, b"", 0)) == {
        "missing": list(wish["files"])
    }
