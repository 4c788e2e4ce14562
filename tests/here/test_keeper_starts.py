"""A keeper that ends before anybody reaches it is started again; why one cannot begin is said."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import RemoteLacks, Unreachable
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.login.keeper import endpoint
from remoter_kernel.local.login.keeper.endpoint import receive_message, send_message
from remoter_kernel.local.login.keeper.keeper_login import log_in_by_keeper
from remoter_kernel.local.login.keeper.keeper_server import FIRST_GRACE, GRACE, KeeperServer
from remoter_kernel.local.login.keeper.shared_login import SharedLogin
from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

REMOTE = Remote(name="box", host="box")
LIMIT = 30.0  # seconds, on a busy machine
FACTS = {
    "host": "box.example.org",
    "user": "ada",
    "cipher": "aes128-gcm@openssh.com",
    "host_key": "ssh-ed25519 SHA256:abc",
    "seconds": {"login": 0.1},
    "round_trip": 0.02,
    "transport": "paramiko",
    "why_transport": "",
    "since": 5.0,
    "is_new": False,
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No keeper but that of the test."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    yield
    endpoint.end_logins()


def python(code: str) -> subprocess.Popen[bytes]:
    """Start something in a keeper's place."""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def starts(monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[str]:
    """Start these in place of the first keepers, and then real ones; return those yet to come."""
    left, real = list(codes), endpoint._spawn_keeper
    monkeypatch.setattr(endpoint, "STARTS_WITHIN", 0.0)  # a machine so busy that time is up at once
    monkeypatch.setattr(endpoint, "_spawn_keeper", lambda: python(left.pop(0)) if left else real())
    return left


# --- starting ---


def test_a_keeper_that_ended_before_its_starter_came_is_started_again(monkeypatch):
    left = starts(monkeypatch, "", "")
    with endpoint.connect_to_keeper() as connection:
        assert not connection.closed
    assert left == []


def test_keepers_that_always_end_are_worth_another_try_later(monkeypatch):
    left = starts(monkeypatch, *[""] * 9)
    with pytest.raises(Unreachable, match="ends before anybody reaches it") as caught:
        endpoint.connect_to_keeper()
    assert caught.value.worth_retrying
    assert len(left) == 9 - endpoint.LEAST_STARTS


def test_one_that_says_why_it_cannot_begin_is_not_started_again(monkeypatch):
    left = starts(monkeypatch, "print('no room is left')", "")
    with pytest.raises(RemoteLacks, match="no room is left"):
        endpoint.connect_to_keeper()
    assert left == [""]


def test_the_last_words_of_one_that_breaks_are_told(monkeypatch):
    starts(monkeypatch, "import a_module_that_is_not_there", "")
    with pytest.raises(RemoteLacks, match="No module named 'a_module_that_is_not_there'"):
        endpoint.connect_to_keeper()


def test_what_one_complains_of_on_its_way_is_no_failure(monkeypatch):
    left = starts(monkeypatch, "import sys; sys.stderr.write('this is deprecated')", "")
    endpoint.connect_to_keeper().close()
    assert left == []


def test_a_machine_without_room_for_a_process_is_worth_another_try(monkeypatch):
    def fail() -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(endpoint, "_spawn_keeper", fail)
    with pytest.raises(Unreachable, match="Resource temporarily unavailable"):
        endpoint.connect_to_keeper()


def test_one_that_hangs_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(endpoint, "BEGINS_WITHIN", 0.2)
    process = python("import time; time.sleep(600)")
    monkeypatch.setattr(endpoint, "_spawn_keeper", lambda: process)
    try:
        with pytest.raises(Unreachable, match="has said nothing"):
            endpoint.connect_to_keeper()
    finally:
        process.kill()
        process.wait()


# --- how long one waits ---


class Clock:
    """One that goes on when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def serving(clock: Clock) -> Iterator[tuple[KeeperServer, threading.Thread]]:
    server = KeeperServer(clock)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server, thread
    server.end()
    thread.join(LIMIT)
    assert not thread.is_alive()


def pass_time(server: KeeperServer, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    with server._changed:
        server._changed.notify_all()


def visit(server: KeeperServer) -> None:
    mine, theirs = Pipe()
    thread = threading.Thread(target=server.serve_client, args=(theirs,))
    thread.start()
    mine.close()
    thread.join(LIMIT)


def test_a_new_keeper_waits_long_for_the_first_and_shortly_for_the_next():
    clock = Clock()
    with serving(clock) as (server, thread):
        pass_time(server, clock, FIRST_GRACE - 0.1)
        visit(server)
        assert thread.is_alive()
        pass_time(server, clock, GRACE + 0.1)
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_a_new_keeper_to_whom_nobody_comes_ends():
    clock = Clock()
    with serving(clock) as (server, thread):
        pass_time(server, clock, FIRST_GRACE + 0.1)
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_one_login_that_breaks_does_not_end_the_keeper_of_the_others(caplog):
    class Broken(SharedLogin):
        looked = 0

        @property
        def seconds_left(self) -> float:
            return 0.05

        def check_alive(self) -> None:
            self.looked += 1
            raise ZeroDivisionError

    with serving(Clock()) as (server, thread):
        broken = Broken()
        with server._changed:
            server._logins["way"] = broken
            server._changed.notify_all()
        wait_for(lambda: broken.looked > 1, what="it is looked at again")
        assert thread.is_alive()
    assert "ZeroDivisionError" in caplog.text


# --- reaching one ---


def keepers(monkeypatch: pytest.MonkeyPatch, *answer: Callable[[Connection], None]) -> list[Any]:
    """Be connected to one keeper after the other; return those that nobody has come to."""
    left = list(answer)

    def connect() -> Connection:
        mine, theirs = Pipe()
        threading.Thread(target=left.pop(0), args=(theirs,)).start()
        return mine

    monkeypatch.setattr(endpoint, "connect_to_keeper", connect)
    return left


def hangs_up(connection: Connection) -> None:
    connection.close()


def logs_in(connection: Connection) -> None:
    with connection:
        receive_message(connection)
        send_message(connection, FACTS)


def test_who_comes_to_keepers_that_are_just_ending_finds_the_next(monkeypatch):
    left = keepers(monkeypatch, hangs_up, hangs_up, hangs_up, logs_in)
    with contextlib.closing(log_in_by_keeper(REMOTE)) as login:
        assert login.user == "ada"
    assert left == []


def test_keepers_that_always_hang_up_end_in_a_sentence(monkeypatch):
    keepers(monkeypatch, *[hangs_up] * 20)
    with pytest.raises(Unreachable, match="is gone"):
        log_in_by_keeper(REMOTE)


def test_only_what_is_known_of_a_login_is_learnt_from_a_keeper(monkeypatch):
    def tells_more(connection: Connection) -> None:
        with connection:
            receive_message(connection)
            strange = {"close": 1, "_lock": 2, "has_asked": True, "mood": "good", "since": "late"}
            send_message(connection, {**FACTS, **strange})

    keepers(monkeypatch, tells_more)
    with contextlib.closing(log_in_by_keeper(REMOTE)) as login:
        assert {name: getattr(login, name) for name in FACTS} == {**FACTS, "since": 0.0}
        assert not login.has_prompted
        assert not hasattr(login, "mood")
        assert callable(login.close)
