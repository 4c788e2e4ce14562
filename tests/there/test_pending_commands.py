"""One bad command harms nobody else: each is carried out by itself, and each is answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.daemon import launch
from remoter_kernel.daemon.pending_commands import ALL_WITHIN, carry_out_commands
from remoter_kernel.daemon.processes import boot_id, started_at
from remoter_kernel.daemon.records import first_line
from remoter_kernel.daemon.registry import Session
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
    return launch.answer_to({"client_key": KEY, "orders": list(commands), **wish}, 0o022)


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
    monkeypatch.setattr(launch, "find", lambda *_: session)
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


def test_there_is_only_so_much_time_for_all_of_them():
    """What was not tried has no answer: it comes again with the next launch."""
    times = iter([0.0, 1.0, ALL_WITHIN + 1])
    commands = [{"order": "stop", "session": "abcdef", "name": name} for name in "abc"]
    told = carry_out_commands(commands, lambda *_: None, clock=lambda: next(times))
    assert [each["name"] for each in told] == ["a"]
    assert carry_out_commands({"no": "list"}, lambda *_: None) == []


def test_a_bad_session_hides_no_other(home):
    """Whoever asks which sessions there are hears of all of them."""
    from remoter_kernel.daemon import inquire

    good = a_session("k")
    bad = a_session("k", pid=["x"])
    bad.write("state.json", {"fronts": [1], "since": {}})
    told = inquire.tell_sessions({})[0]["sessions"]
    assert {each["id"] for each in told} == {good.id, bad.id}


def test_what_became_of_them_is_told_by_a_real_launch(home):
    """Also where the start itself fails."""
    from remoter_kernel.front.bootstrap.evaluator import pack_evaluator

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
