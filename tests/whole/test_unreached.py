"""A session that is started and cannot be reached: another way is tried, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.launch.launcher import pack_evaluator, query_remote
from remoter_kernel.local.login import embedded_host
from remoter_kernel.local.run.runner import Runner
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.dialer import THIS_MACHINE, SessionDialer
from tests.real_jupyter import MARK, THIS_RUN, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]
REMOTE = "here"  # this machine, as there is no other
ENDED = {"ended", "dead"}


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """A home of the test's own, whose host drops what DROPS names; what its sessions say."""
    (tmp_path / "run").mkdir(mode=0o700)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "run" if "RUNTIME" in name else tmp_path))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv(MARK, THIS_RUN)
    monkeypatch.setattr(embedded_host, "SERVER_MODULE", "tests.dropping_host")
    folder = tmp_path / "remoter-kernel/sessions"

    def look() -> list[dict[str, Any]]:
        found = folder.glob("*/session.json")
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    return look


def a_runner() -> Runner:
    return Runner(SessionDialer(lambda: None))


def has_ended(sessions: Callable[[], list[dict[str, Any]]]) -> Any:
    found = sessions()
    return len(found) == 1 and found[0].get("why")


def test_connections_that_are_taken_and_dropped_are_replaced_by_a_command(sessions, monkeypatch):
    """The session that was started first is the one that is reached."""
    monkeypatch.setenv("DROPS", "tunnel")
    runner = a_runner()
    try:
        runner.start()
        assert runner.dialer.tunnel.is_command
        shown: list[Any] = []
        runner.run("print(6 * 7)", lambda *words: shown.append(words))
        assert ("stream", {"name": "stdout", "text": "42\n"}) in shown
    finally:
        runner.stop()
    assert wait_for(lambda: has_ended(sessions)) == "It was stopped."


def test_where_no_way_leads_there_one_hears_so_and_the_session_is_ended(sessions, monkeypatch):
    """The error says what to do; neither a session nor its kernel stays."""
    monkeypatch.setenv("DROPS", "tunnel,bridge")
    runner = a_runner()
    try:
        with pytest.raises(RemoterError) as raised:
            runner.start()
    finally:
        runner.stop()
    assert "no such thing" in raised.value.what
    assert raised.value.advice
    assert wait_for(lambda: has_ended(sessions)) == "It was stopped."
    assert undelivered_commands.load_commands(REMOTE) == ()


def test_a_session_whose_start_was_cut_is_ended_at_the_next_login(sessions, monkeypatch):
    """Nobody has heard its name; its kernel's id is enough."""
    monkeypatch.setenv("DROPS", "answer")
    runner = a_runner()
    try:
        with contextlib.closing(runner.dialer.another_local_login()) as login:
            query_remote(
                login, THIS_MACHINE, {"verb": "sessions"}
            )  # the program is there from now on
        with pytest.raises(RemoterError):
            runner.start()
    finally:
        runner.stop()
    assert len(undelivered_commands.load_commands(REMOTE)) == 1
    monkeypatch.setenv("DROPS", "")
    second = a_runner()
    try:
        second.start()
    finally:
        second.stop()
    assert undelivered_commands.load_commands(REMOTE) == ()
    assert wait_for(lambda: [each.get("why") for each in sessions()] == ["It was stopped."] * 2)


def test_a_session_to_which_nobody_comes_ends_soon(sessions, tmp_path):
    """Whoever has asked for it is gone, and can not even say so."""
    name, content = pack_evaluator()
    (tmp_path / name).write_bytes(content)
    wish = {"client_key": "0" * 40, "greeted_within": 1.0}
    ran = subprocess.run(
        [sys.executable, str(tmp_path / name)],
        input=json.dumps(wish),
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert json.loads(ran.stdout.removeprefix("REMOTER "))["joined"] is False
    assert "Nobody has come to it" in wait_for(lambda: has_ended(sessions), seconds=30)
