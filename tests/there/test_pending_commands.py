"""One bad command harms nobody else: each is carried out by itself, and each is answered."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator import launch, pending_commands, registry
from remoter_kernel.evaluator.folders import sessions_folder
from remoter_kernel.evaluator.pending_commands import ALL_WITHIN, execute_commands
from remoter_kernel.evaluator.processes import boot_id, started_at
from remoter_kernel.evaluator.records import first_line
from remoter_kernel.evaluator.registry import Session
from tests.real_jupyter import MARK, THIS_RUN, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "0" * 40
STOP = {"order": "stop", "name": "bad"}
RESTART = {"order": "restart", "name": "bad"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv(MARK, THIS_RUN)
    return tmp_path


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another program, as a kernel or an evaluator would be one."""
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(words, start_new_session=True) as process:
        yield process
        process.kill()


def a_session(kernel_id: str, kernel: int = 0, **door: Any) -> Session:
    """Make a session without an evaluator, with this process for a kernel."""
    session = Session.create({"kernel_id": kernel_id, "created": time.time()})
    here = {"host": socket.gethostname(), "boot": boot_id(), "port": 1, "public_key": KEY}
    session.write("door.json", {**here, "pid": 2**22 + 1, "started": "1", **door})
    if kernel:
        session.write("child.json", {"pid": kernel, "started": started_at(kernel), "warden": 1})
    (session.folder / "journal").write_bytes(first_line(1))
    return session


def answered(*commands: Any, **wish: Any) -> dict[str, Any]:
    return launch.handle_request({"client_key": KEY, "orders": list(commands), **wish}, 0o022)


def with_a_newer_journal(kernel: int) -> Session:
    session = a_session("k", kernel)
    (session.folder / "journal").write_bytes(first_line(9))
    return session


def that_crashes(kernel: int) -> Session:
    session = a_session("k", kernel)
    session.write("crashes.json", {"time": time.time(), "why": "Oops: it", "count": 3})
    return session


def whose_door_has_no_process(kernel: int) -> Session:
    session = a_session("k", kernel)
    session.write("door.json", {"host": socket.gethostname(), "boot": boot_id()})
    (session.folder / "journal").write_bytes(first_line(9))
    return session


def whose_door_is_odd(kernel: int) -> Session:
    session = a_session("k", kernel, pid=["x"], started=None, port={})
    (session.folder / "journal").write_bytes(first_line(9))
    return session


KINDS = [with_a_newer_journal, that_crashes, whose_door_has_no_process, whose_door_is_odd]


@pytest.mark.parametrize("make", KINDS)
def test_what_cannot_be_restarted_is_told_and_the_next_is_done(make, process):
    """Neither the next command nor the start that was asked for suffers from it."""
    session = make(process.pid)
    next_one = {"order": "stop", "session": "abcdef", "name": "good"}
    answer = answered({**RESTART, "session": session.id}, next_one, session="abc123")
    bad, good = answer["commands"]
    assert (bad["name"], bad["became"]) == ("bad", "failed")
    assert bad["why"].endswith((".", "`"))
    assert (good["name"], good["became"]) == ("good", "done")
    assert answer["lacks"] == "session"  # what was wished for was looked for
    assert process.poll() is None


@pytest.mark.parametrize("make", KINDS)
def test_what_no_evaluator_can_take_over_is_stopped_all_the_same(make, process):
    """Its kernel ends, as `remoter stop` would end it."""
    session = make(process.pid)
    (told,) = answered({**STOP, "session": session.id}, session="abc123")["commands"]
    assert told == {"name": "bad", "became": "done", "why": ""}
    assert process.wait(10) == -signal.SIGKILL
    assert session.read("session.json")["why"] == "It was stopped."


@pytest.mark.parametrize(
    "command",
    [None, 7, [], {}, {"order": "stop"}, {"order": ["stop"], "session": "x"}, {"session": "x"}],
)
def test_a_command_of_any_shape_is_answered(command):
    """It fails with a sentence."""
    (told,) = answered(command, session="abc123")["commands"]
    assert (told["became"], bool(told["why"])) == ("failed", True)


def test_an_evaluator_that_dies_just_then_is_no_trouble_for_others(monkeypatch, process):
    """It lived when it was found, and not when it was told."""
    session = a_session("k", pid=process.pid, started=started_at(process.pid))
    monkeypatch.setattr(launch, "find_session", lambda *_: session)
    process.kill()
    process.wait()
    (told,) = answered({**RESTART, "session": session.id}, session="")["commands"]
    assert (told["became"], told["why"]) == ("failed", "Its evaluator died just then.")


@pytest.mark.parametrize("command", [STOP, RESTART])
def test_what_another_machine_has_to_do_is_left_to_it(command):
    """It has not been tried, and so it is not told as failed."""
    session = a_session("k", host="login1", boot="another")
    (told,) = answered({**command, "session": session.id}, session="abc123")["commands"]
    assert told["became"] == "elsewhere"
    assert not session.read("session.json").get("ended")


class FrontDoors:
    """Finds whatever session lives by now, and notes whom a restart is sent to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.restarted: list[int] = []
        self.noted_before: list[bool] = []
        monkeypatch.setattr(os, "kill", self._kill)
        self.door = 1000

    def _kill(self, pid: int, _signal: int) -> None:
        self.restarted.append(pid)
        self.noted_before.append(pending_commands._nonces() != [])

    def find(self, kernel_id: str, _session_id: str) -> Session:
        return a_session(kernel_id, pid=self.door)


def test_a_restart_that_comes_with_two_logins_is_done_once(monkeypatch, home):
    """Two notebooks have read the same file; or the answer to the first login was lost."""
    doors = FrontDoors(monkeypatch)
    command = {**RESTART, "kernel_id": "k", "nonce": "ab12"}
    first = execute_commands([command], doors.find)
    doors.door = 2000  # a fresh session
    second = execute_commands([command], doors.find)
    assert first == second == [{"name": "bad", "became": "done", "why": ""}]
    assert doors.restarted == [1000]
    assert doors.noted_before == [True]
    (file,) = home.rglob(pending_commands.CARRIED_OUT)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_stop_that_comes_again_spares_the_fresh_session(process):
    """It was written down before the session had an id: the next one of the kernel is not meant."""
    command = {**STOP, "kernel_id": "k", "nonce": "ab12"}
    execute_commands([command], lambda *_: None)
    fresh = a_session("k", process.pid)
    (told,) = execute_commands([command], lambda *_: None)
    assert told["became"] == "done"
    assert process.poll() is None
    assert not fresh.read("session.json").get("ended")


def test_what_failed_or_is_for_another_machine_is_tried_again(monkeypatch, process):
    """It has had no effect yet."""
    session = a_session("k", host="login1", boot="another")
    command = {**STOP, "session": session.id, "nonce": "ab12"}
    (told,) = execute_commands([command], lambda *_: None)
    assert told["became"] == "elsewhere"
    session.write("door.json", {})
    failing = {"how": "stays"}
    monkeypatch.setattr("remoter_kernel.evaluator.query.stop_session", lambda _session: failing)
    for _ in range(2):
        (told,) = execute_commands([command], lambda *_: None)
        assert told["became"] == "failed"
    failing["how"] = "ended"
    (told,) = execute_commands([command], lambda *_: None)
    assert told["became"] == "done"


@pytest.mark.parametrize("nonce", [None, 7, "", "../x", "a" * 1000])
def test_what_has_no_nonce_is_done_each_time(monkeypatch, nonce):
    """An older version writes none."""
    doors = FrontDoors(monkeypatch)
    for _ in range(2):
        execute_commands([{**RESTART, "kernel_id": "k", "nonce": nonce}], doors.find)
    assert doors.restarted == [1000, 1000]


def test_only_the_last_nonces_are_kept_and_a_full_disk_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(pending_commands, "MOST_NONCES", 3)
    doors = FrontDoors(monkeypatch)
    commands = [{**RESTART, "kernel_id": "k", "nonce": f"n{number}"} for number in range(5)]
    execute_commands(commands, doors.find)
    assert pending_commands._nonces() == ["n2", "n3", "n4"]

    def fail(*_words: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(registry, "write_json", fail)
    monkeypatch.setattr(doors, "find", lambda *_: Session(min(sessions_folder().iterdir())))
    (told,) = execute_commands([{**RESTART, "kernel_id": "k", "nonce": "n9"}], doors.find)
    assert told["became"] == "done"
    assert len(doors.restarted) == 6


def test_there_is_only_so_much_time_for_all_of_them():
    """What was not tried has no answer: it comes again with the next launch."""
    times = iter([0.0, 1.0, ALL_WITHIN + 1])
    commands = [{"order": "stop", "session": "abcdef", "name": name} for name in "abc"]
    told = execute_commands(commands, lambda *_: None, clock=lambda: next(times))
    assert [each["name"] for each in told] == ["a"]
    assert execute_commands({"no": "list"}, lambda *_: None) == []


def test_a_bad_session_hides_no_other(home):
    """Whoever asks which sessions there are hears of all of them."""
    from remoter_kernel.evaluator import query

    good = a_session("k")
    bad = a_session("k", pid=["x"])
    bad.write("state.json", {"fronts": [1], "since": {}})
    told = query.list_sessions({})[0]["sessions"]
    assert {each["id"] for each in told} == {good.id, bad.id}


def test_what_became_of_them_is_told_by_a_real_launch(home):
    """Also where the start itself fails."""
    from remoter_kernel.local.launch.launcher import pack_evaluator

    name, content = pack_evaluator()
    (home / name).write_bytes(content)
    wish = {"client_key": KEY, "session": "abc123", "orders": [{**STOP, "session": "abcdef"}, 7]}
    ran = subprocess.run(
        [sys.executable, str(home / name)],
        input=json.dumps(wish),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
    )
    answer = json.loads(ran.stdout.removeprefix("REMOTER "))
    assert answer["lacks"] == "session"
    assert [each["became"] for each in answer["commands"]] == ["done", "failed"]
    wait_for(lambda: not list((home / "run").iterdir()), what="no lock is left")
