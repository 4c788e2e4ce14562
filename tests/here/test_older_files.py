"""What older versions have written on this side: it is known still.

`tests/data/state-*` is what a proxy and a command of that version left in the state folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.local.session.machine import live_kernel_ids, machine_id
from remoter_kernel.local.session.undelivered_commands import load_commands
from tests.real_jupyter import started_kernel

if TYPE_CHECKING:
    from tests.real_jupyter import JupyterHere

DATA = Path(__file__).parents[1] / "data"
VERSIONS = ("91edf56", "6f583aa")
# Each key that the first version knew, as its page on `remotes.toml` had it.
REMOTES = """\
default = "gpu-box"

[remotes.gpu-box]
host = "me@gpu-box.example.org:2222"
python = "~/venvs/torch/bin/python"
kernel = "python3"
init = ["module load cuda/12"]
env = { OMP_NUM_THREADS = "8" }
cwd = "notebook"
path_map = { "~/work" = "/scratch/me/work" }
on_shutdown = "keep"
idle_timeout = "7d"
journal_limit = "64MiB"
waiting_limit = "2MB"
transport = "paramiko"
ssh_config = "~/another/config"
login_lifetime = "8h"
local = "never"
remember = true
"""


@pytest.fixture(params=VERSIONS)
def state(request: pytest.FixtureRequest, here: JupyterHere) -> Path:
    """A state folder as that version has left it; the state of this module's tests."""
    folder = here.folder / "state"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DATA / f"state-{request.param}", folder)
    return folder


def one(state: Path, pattern: str) -> tuple[Path, Any]:
    """Return the one file that a pattern finds, and what it says."""
    (path,) = state.glob(pattern)
    return path, json.loads(path.read_text())


def test_every_key_of_the_first_version_is_read_as_what_it_was(
    here: JupyterHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "remotes.toml"))
    (tmp_path / "remotes.toml").write_text(REMOTES)
    ran = here.remoter("list", "--json")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    (remote,) = document["remotes"]
    expected = {
        "name": "gpu-box",
        "host": "me@gpu-box.example.org:2222",
        "python": "~/venvs/torch/bin/python",
        "kernel": "python3",
        "init": ["module load cuda/12"],
        "env": {"OMP_NUM_THREADS": "8"},
        "cwd": "notebook",
        "path_map": {"~/work": "/scratch/me/work"},
        "on_shutdown": "keep",
        "idle_timeout": 7 * 24 * 3600.0,
        "journal_limit": 64 * 2**20,
        "waiting_limit": 2 * 10**6,
        "transport": "paramiko",
        "login_lifetime": 8 * 3600.0,
        "local": "never",
        "remember": True,
    }
    assert remote == {**remote, **expected}


def test_sessions_that_were_seen_are_offered_to_whoever_completes_a_word(
    state: Path, here: JupyterHere
) -> None:
    _, sessions = one(state, "sessions/gpu-box.json")
    words = {"COMP_WORDS": "remoter log ", "COMP_CWORD": "2", "_REMOTER_COMPLETE": "bash_complete"}
    ran = here.remoter(env={**os.environ, **words})
    offered = {line.partition(",")[2] for line in ran.stdout.split()}
    assert offered >= {each["id"] for each in sessions}
    assert sessions


def test_what_a_kernel_has_said_last_is_said_before_any_login(
    state: Path, here: JupyterHere
) -> None:
    """Jupyter is answered at once, from this side: nobody reaches this host."""
    _, memory = one(state, "kernel_info/gpu-box.json")
    host, python, kernel = memory["of"]
    config = here.folder / "nowhere"
    config.write_text(f"Host {host}\n  HostName 127.0.0.1\n  Port 9\n")
    spec = here.add_remote("gpu-box", host=host, python=python, kernel=kernel, ssh_config=config)
    with started_kernel(spec) as started:
        reply = started.client.kernel_info(reply=True, timeout=30)
    assert reply["content"] == {**reply["content"], **memory["content"]}


def test_what_waits_for_a_login_is_brought_along(state: Path) -> None:
    path, words = one(state, "orders/gpu-box/*.json")
    (waiting,) = load_commands("gpu-box")
    assert waiting.path == path
    assert words["order"] == "restart"
    assert waiting.as_sent == {**words, "name": words["kernel_id"]}


def test_this_machine_keeps_its_id(state: Path) -> None:
    assert machine_id() == (state / "laptop").read_text()


def test_a_proxy_of_that_version_lives_while_it_holds_its_lock(state: Path) -> None:
    (state / "fronts").mkdir()
    names = [f"{letter * 24}-0123abcd" for letter in "ab"]
    for name in names:
        (state / "fronts" / name).touch()
    with (state / "fronts" / names[0]).open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert live_kernel_ids() == {"a" * 24}
    assert live_kernel_ids() == set()
