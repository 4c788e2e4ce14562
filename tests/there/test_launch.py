"""Launches that meet: never two evaluators for one session, wherever and whenever they come."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from remoter_kernel.errors import RemoterError
from remoter_kernel.evaluator import launch, query, registry
from remoter_kernel.evaluator.named_lock import NamedLock
from remoter_kernel.evaluator.processes import boot_id, pid_namespace, started_at
from remoter_kernel.evaluator.records import JournalTooNewError, first_line
from remoter_kernel.evaluator.registry import Session, collect_garbage
from remoter_kernel.local.launch.launcher import pack_evaluator
from tests.real_jupyter import MARK, THIS_RUN, wait_for
from tests.real_parts import real_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real_users import FarSide

KEY = "0" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv(MARK, THIS_RUN)
    return tmp_path


def a_session(**door: Any) -> Session:
    """Make a session whose evaluator was this process, but for what is said otherwise."""
    session = Session.create({"kernel_id": "k", "created": time.time()})
    here = {"host": socket.gethostname(), "boot": boot_id(), "port": 1, "public_key": KEY}
    me = {"pid": os.getpid(), "started": started_at(os.getpid())}
    session.write("door.json", {**here, **me, **door})
    session.write("child.json", {"pid": os.getpid(), "started": "0", "warden": 1})
    (session.folder / "journal").write_bytes(b"")
    return session


def asked(**wish: Any) -> dict[str, Any]:
    """Ask for a session."""
    return launch.find_or_create({"client_key": KEY, **wish}, 0o022)


@pytest.mark.parametrize("which", ["session", "kernel"])
def test_a_session_of_another_host_is_left_alone(which):
    """From another login node of the same home one hears where the session lives."""
    session = a_session(host="login1", boot="another")
    wish = {"session": session.id} if which == "session" else {"kernel_id": "k"}
    assert asked(**wish) == {"lacks": "host", "what": session.id, "host": "login1"}
    assert not session.read("session.json").get("ended")
    collect_garbage()
    assert not session.read("session.json").get("ended")


def test_a_machine_that_has_got_another_name_is_the_same_machine():
    """It joins, judges and stops what began under the name before."""
    session = a_session(host="as-it-was", pids=pid_namespace())
    assert session.is_of_this_boot()
    with pytest.raises(RuntimeError, match="does not answer"):
        asked(session=session.id)  # its evaluator is looked for here
    session.write("door.json", {**session.read("door.json"), "started": "0"})
    assert query.describe(session)["state"] == "dead"
    assert query.describe(session)["host"] == socket.gethostname()
    assert asked(session=session.id)["why"] == "Its evaluator and its kernel were killed."


def test_a_session_whose_kernel_has_just_died_is_not_called_dead():
    """Its evaluator lives, and starts the next kernel."""
    with socket.create_server(("127.0.0.1", 0)) as answers:
        session = a_session(port=answers.getsockname()[1], pids=pid_namespace())
        session.write("state.json", {"state": "dead", "fronts": {"a": {"here": True}}})
        about = query.describe(session)
    assert (about["state"], about["pid"], about["fronts"]) == ("starting", os.getpid(), 1)


def test_which_requests_are_open_is_told_as_the_evaluator_wrote_it():
    """One of an older version writes nothing of them."""
    session = a_session()
    wish = {"verb": "requests", "session": session.id}
    assert query.QUERIES["requests"](wish) == ({"requests": None}, ())
    session.write("state.json", {"requests": [{"id": "m"}]})
    assert query.QUERIES["requests"](wish) == ({"requests": [{"id": "m"}]}, ())


def test_how_long_a_request_is_open_does_not_stand_still():
    """An evaluator writes nothing for as long as its kernel hangs."""
    session = a_session()
    an_hour_ago = {"written": time.time() - 3600, "requests": [{"id": "m", "seconds": 1.5}]}
    session.write("state.json", an_hour_ago)
    told, _ = query.QUERIES["requests"]({"verb": "requests", "session": session.id})
    assert told["requests"][0]["seconds"] == pytest.approx(3601.5, abs=5)


@pytest.mark.parametrize("pids", ["pid:[1]", None], ids=["another container", "an older version"])
def test_a_container_of_the_same_machine_is_another_host(pids):
    """Its boot is the same, but its process numbers mean nothing here."""
    session = a_session(host="container1", pids=pids)
    assert asked(session=session.id)["lacks"] == "host"
    collect_garbage()
    assert not session.read("session.json").get("ended")


def test_after_a_reboot_the_session_has_ended_and_one_hears_why():
    """Another boot of the same host: it is over, since the journal was written last."""
    session = a_session(boot="before")
    os.utime(session.folder / "journal", (1_000_000, 1_000_000))
    answer = asked(session=session.id)
    assert (answer["lacks"], answer["why"]) == ("session", "The machine was restarted.")
    assert answer["ended"] == 1_000_000
    assert session.read("session.json")["ended"] > 1_000_000
    assert (session.folder / "journal").exists()


def test_a_process_number_or_a_port_that_is_anothers_by_now_is_not_the_session():
    """What has the evaluator's number but began at another time is not the evaluator."""
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        session = a_session(started="0", port=somebody.getsockname()[1])
        assert not session.is_alive()
        answer = asked(session=session.id)
    assert answer["why"] == "Its evaluator and its kernel were killed."


def test_an_evaluator_that_runs_and_does_not_answer_is_not_replaced():
    """Two for one session would be worse than none for a while."""
    session = a_session()  # at port 1 nobody answers
    with pytest.raises(RuntimeError, match="does not answer"):
        asked(session=session.id)


def test_an_evaluator_that_crashes_again_and_again_is_not_started_any_more():
    """Without the connection file nobody can take over: after the third crash one hears why."""
    session = a_session(started="0")
    mine = {"pid": os.getpid(), "started": started_at(os.getpid()), "warden": 1}
    session.write("child.json", mine)  # a kernel that lives
    for count in (1, 2, 3):
        assert asked(session=session.id)["session"] == session.id
        wait_for(lambda: session.read("crashes.json").get("count") == count)  # noqa: B023
        wait_for(lambda: not session.is_evaluator_running(), what="the evaluator is gone")
    with pytest.raises(RemoterError, match=r"connection.json.*remoter stop"):
        asked(session=session.id)
    crashes = session.read("crashes.json")
    session.write("crashes.json", {**crashes, "time": time.time() - 100})
    assert asked(session=session.id)["session"] == session.id  # it may be better by now
    wait_for(lambda: session.read("crashes.json").get("count") == 1)


def test_the_exit_of_the_kernel_is_told():
    """Where the warden has written how the kernel ended, that is the reason."""
    session = a_session(started="0")
    session.write("child.json", {"pid": os.getpid(), "started": "0", "warden": 1})
    session.write("exit.json", {"pid": os.getpid(), "status": -9, "peak_kib": 5 * 1024 * 1024})
    why = asked(session=session.id)["why"]
    assert "SIGKILL" in why
    assert "5.0 GiB" in why


def test_a_session_folder_of_another_user_is_refused():
    """It is neither listed nor joined nor judged."""
    real_part("root")
    session = a_session(boot="before")
    os.chown(session.folder, 65534, 65534)
    assert asked(session=session.id)["why"] == "Its folder belongs to another user."
    collect_garbage()
    assert not session.read("session.json").get("ended")


def test_a_session_whose_journal_is_newer_is_left_alone(monkeypatch):
    """No older evaluator takes it over, and one hears why."""
    session = a_session(started="0")
    began = started_at(os.getpid())
    session.write("child.json", {"pid": os.getpid(), "started": began, "warden": 1})
    (session.folder / "journal").write_bytes(first_line(9))
    with pytest.raises(JournalTooNewError, match="newer version"):
        asked(session=session.id)
    assert not session.read("session.json").get("ended")


def test_too_many_ended_sessions_go_the_oldest_first(monkeypatch):
    """What ended sessions leave has a bound, and living ones are not touched by it."""
    monkeypatch.setattr(registry, "KEEP_BYTES", 2500)
    sessions = [a_session() for _ in range(4)]
    for number, session in enumerate(sessions):
        (session.folder / "journal").write_bytes(b"x" * 1000)
        if number:
            session.mark_ended("")
        os.utime(session.folder, (number, number))
    collect_garbage()
    assert [session.folder.exists() for session in sessions] == [True, False, False, True]


def test_a_session_that_never_was():
    """A name that leads elsewhere is no session's name."""
    assert "none of that name" in asked(session="abcdef")["why"]
    assert "none of that name" in asked(session="../sessions")["why"]


def test_a_lock_is_on_a_folder_of_our_own(home):
    """A folder that others may write in is not trusted: the lock is elsewhere."""
    (home / "run" / "remoter-kernel").mkdir(mode=0o777)
    (home / "run" / "remoter-kernel").chmod(0o777)
    lock = NamedLock("x")
    assert lock.acquire(0.0)
    about = lock._path.parent.stat()
    lock.release()
    assert (about.st_uid, about.st_mode & 0o777) == (os.getuid(), 0o700)
    assert list((home / "run" / "remoter-kernel").iterdir()) == []


def test_a_lock_is_held_once_and_leaves_nothing(home):
    """The second one waits in vain; after the first has let go there is no file."""
    first, second = NamedLock("x"), NamedLock("x")
    assert first.acquire(0.0)
    assert not second.acquire(0.1)
    first.release()
    assert second.acquire(0.0)
    second.release()
    assert list((home / "run").iterdir()) == []


def test_the_file_of_a_lock_whose_owner_was_killed_goes(home):
    """What nobody holds is removed, what somebody holds stays."""
    folder = home / "run" / "remoter-kernel"
    held = NamedLock("held")
    assert held.acquire(0.0)
    (folder / "left.lock").touch()
    collect_garbage()
    assert [path.name for path in folder.iterdir()] == ["held.lock"]
    held.release()
    collect_garbage()
    assert list((home / "run").iterdir()) == []


# Real ones -----------------------------------------------------------------------------


@pytest.fixture
def zipapp(home: Path) -> Path:
    """What travels, where it would be."""
    name, content = pack_evaluator()
    (home / name).write_bytes(content)
    return home / name


@contextlib.contextmanager
def launched(zipapp: Path, *wishes: dict[str, Any]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start launches at once."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(zipapp)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in wishes
        ]
        for process, wish in zip(started, wishes, strict=True):
            process.stdin.write(json.dumps({"client_key": KEY, **wish}) + "\n")
            process.stdin.flush()
        yield started


def answers(zipapp: Path, *wishes: dict[str, Any]) -> list[dict[str, Any]]:
    """Launch at once, and return what each says."""
    with launched(zipapp, *wishes) as started:
        lines = [process.communicate(timeout=60)[0] for process in started]
    return [json.loads(line.removeprefix("REMOTER ")) for line in lines]


def test_launches_at_once_share_one_evaluator(zipapp, home):
    """Four for one kernel start one session; after its evaluator's death they start one more."""
    folder = home / "data" / "remoter-kernel" / "sessions"
    told = answers(zipapp, *[{"kernel_id": "k"}] * 4)
    assert sorted(each["joined"] for each in told) == [False, True, True, True]
    (session,) = {each["session"] for each in told}
    assert len(list(folder.iterdir())) == 1
    door = folder / session / "door.json"
    child = folder / session / "child.json"
    kernel = wait_for(lambda: registry.read_json(child).get("pid"), what="the kernel is started")
    first = json.loads(door.read_text())
    if sys.platform == "linux":  # what an administrator sees with `ps` and `top`
        assert psutil.Process(first["pid"]).name() == f"remoter {session}"
        warden = registry.read_json(child)["warden"]
        assert Path(f"/proc/{warden}/comm").read_text() == f"remoterw {session}\n"
    os.kill(first["pid"], signal.SIGKILL)
    told = answers(zipapp, *[{"kernel_id": "k", "session": session}, {"kernel_id": "k"}] * 2)
    assert {each["port"] for each in told} != {first["port"]}
    assert len({each["port"] for each in told}) == 1
    second = json.loads(door.read_text())
    evaluators = [p for p in psutil.process_iter() if p.pid in (first["pid"], second["pid"])]
    assert [p.pid for p in evaluators if p.status() != psutil.STATUS_ZOMBIE] == [second["pid"]]
    assert psutil.pid_exists(kernel)
    # An order that was given while nobody could hear it finds its way to the new one, too.
    os.kill(second["pid"], signal.SIGKILL)
    (answer,) = answers(
        zipapp, {"session": session, "orders": [{"order": "stop", "session": session}]}
    )
    assert (answer["lacks"], answer["why"]) == ("session", "It was stopped.")
    wait_for(lambda: not psutil.pid_exists(kernel), what="the kernel is gone")
    assert wait_for(lambda: not list((home / "run").iterdir()), what="no lock is left") is True


def test_what_was_on_its_way_goes_with_its_session() -> None:
    """A proxy that was cut off cannot remove it; the journal stays."""
    session = a_session()
    (session.folder / "carried-1").mkdir()
    (session.folder / "carried-1/object").write_bytes(b"private")
    session.remove_keys()
    assert not (session.folder / "carried-1").exists()
    assert (session.folder / "journal").exists()


# Where nothing can be locked -----------------------------------------------------------


@pytest.fixture
def far_run(another_user: FarSide) -> Iterator[Callable[..., dict[str, Any]]]:
    """Launch as another user on a machine whose /tmp and /var/tmp are as `mounts` makes them."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(another_user.folder())
        place.chmod(0o755)
        name, content = pack_evaluator()
        (place / name).write_bytes(content)
        (place / "home").mkdir()
        another_user.give(place / "home")

        def run(mounts: str, **environment: str) -> dict[str, Any]:
            uid = another_user.ids["user"]
            words = {"HOME": "/mnt/home", "PATH": os.defpath, MARK: THIS_RUN, **environment}
            as_user = ["setpriv", f"--reuid={uid}", f"--regid={another_user.ids['group']}"]
            command = [*as_user, "--clear-groups", "env", "-i"]
            command += [f"{key}={value}" for key, value in words.items()]
            command += [str(another_user.python), f"/mnt/{name}"]
            script = f"mount --bind {place} /mnt; {mounts}; cd /; exec {shlex.join(command)}"
            ran = subprocess.run(
                ["unshare", "-m", "sh", "-ec", script.replace("UID", str(uid))],
                input=json.dumps({"client_key": KEY, "session": "abc123", "kernel_id": "k"}),
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            return json.loads(ran.stdout.removeprefix("REMOTER "))

        yield run


READ_ONLY = "mount -t tmpfs -o ro,mode=1777 none /var/tmp; mount -t tmpfs -o ro,mode=1777 none /tmp"
# The folder for locks is there from better days, and takes nothing any more.
WAS_FINE = "mkdir -m 700 /tmp/remoter-UID; chown UID /tmp/remoter-UID"
NO_MORE = (
    "mount -t tmpfs -o ro,mode=1777 none /var/tmp; mount -t tmpfs -o mode=1777 none /tmp; "
    f"{WAS_FINE}; mount -o remount,ro /tmp"
)
NO_FILES = (
    "mount -t tmpfs -o ro,mode=1777 none /var/tmp; "
    f"mount -t tmpfs -o nr_inodes=2,mode=1777 none /tmp; {WAS_FINE}"
)


@pytest.mark.parametrize("mounts", [READ_ONLY, NO_MORE, NO_FILES], ids=["never", "not now", "full"])
def test_a_folder_for_temporary_files_that_takes_nothing_is_named(far_run, mounts):
    """The home is not to blame; TMPDIR helps."""
    told = far_run(mounts)
    assert told["lacks"] == "reader", told
    assert "/tmp: " in told["what"]
    assert "TMPDIR" in told["what"]
    other = "mkdir /mnt/t; mount -t tmpfs -o mode=1777 none /mnt/t"
    assert far_run(f"{other}; {mounts}", TMPDIR="/mnt/t")["lacks"] == "session"


def test_a_real_session_is_the_same_machines_after_its_host_name_has_changed(zipapp, home):
    """It is joined, listed as alive, and stopped."""
    real_part("root")

    def under(name: str, *words: str, **wish: Any) -> dict[str, Any]:
        command = f"hostname {name}; exec {shlex.join([sys.executable, str(zipapp), *words])}"
        ran = subprocess.run(
            ["unshare", "--uts", "sh", "-ec", command],
            input=json.dumps({"client_key": KEY, **wish}),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return json.loads(ran.stdout.removeprefix("REMOTER "))

    first = under("as-it-was", kernel_id="k")
    second = under("as-it-is", kernel_id="k")
    assert (first["joined"], second["joined"]) == (False, True)
    assert (first["host"], second["host"]) == ("as-it-was", "as-it-is")
    assert second["session"] == first["session"]
    (told,) = under("as-it-is", "ask", verb="sessions")["sessions"]
    assert told["state"] in {"starting", "idle"}
    assert told["host"] == "as-it-is"
    (stopped,) = under("as-it-is", "ask", verb="stop", sessions=[first["session"]])["stopped"]
    assert stopped["how"] == "stopped"
    wait_for(lambda: not list((home / "run").iterdir()), what="no lock is left")
