"""What becomes of a session whose kernel starts, dies and ends, with a kernel that is made up."""

from __future__ import annotations

import json
import signal
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.daemon import supervisor as supervisors
from remoter_kernel.daemon.door import Door
from remoter_kernel.daemon.journal import Journal
from remoter_kernel.daemon.past import Past
from remoter_kernel.daemon.registry import Session
from remoter_kernel.daemon.supervisor import State, Supervisor
from remoter_kernel.wire.frames import Channel, Head, Kind, Lane, pack
from remoter_kernel.wire.messages import HEADER, header_of
from remoter_kernel.wire.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = b"client-1"


class MadeUpChild:
    """Is told things."""

    def __init__(self) -> None:
        self.pid = 0
        self.is_adopted = False
        self.is_encrypted = False
        self.got: list[str] = []
        self.signals: list[int] = []
        self.asked_again = 0
        self.on_ready: Callable[..., None] = lambda *_: None
        self.fails_with: Exception | None = None

    def start(self, **_: Any) -> None:
        if self.fails_with:
            raise self.fails_with

    def adopt(self) -> None:
        self.pid, self.is_adopted = 7, True

    def ask_again(self) -> None:
        self.asked_again += 1

    def say(self, _channel: Channel, parts: list[Any]) -> None:
        self.got.append(header_of(parts[HEADER])["msg_id"])

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def nothing(self, *_: Any) -> None:
        """Take no notice."""

    ask = interrupt = close = forget = nothing

    def last_words(self) -> str:
        return ""


class Life:
    """A supervisor whose time goes on where the test says so."""

    def __init__(self, folder: Any, past: Past | None = None, about: Any = None) -> None:
        (folder / "keys").mkdir(parents=True)
        session = Session(folder)
        session.write("session.json", {})
        if about:
            session.write("child.json", about)
        self.reactor = Reactor()
        self.bugs: list[Exception] = []
        self.reactor.on_bug = self.bugs.append
        self.journal = Journal(folder / "journal", self.reactor.call)
        self.journal.open()
        self.door = Door(self.reactor, session, self.journal)
        self.will = Supervisor(
            self.reactor, session, self.journal, self.door, wish={}, umask=0o22, past=past
        )
        made_up: Any = SimpleNamespace(
            watch=lambda *_: None,
            check=lambda _child, then: then(),
            begin_anew=lambda: None,
            is_to_try_again=lambda _words: False,
        )
        self.will._ports = self.will._slow_start = made_up
        self.will._new_child = self._new_child  # type: ignore[assignment, method-assign]
        self.will._desk.child_for = self.will._child_for
        self.will._desk.on_doubt = self.will._doubt
        self.children: list[MadeUpChild] = []
        self.fails_with: Exception | None = None
        self.guest = self.door._new_guest(ME)

    def _new_child(self) -> Any:
        child = MadeUpChild()
        child.fails_with = self.fails_with
        self.children.append(child)
        return child

    @property
    def child(self) -> MadeUpChild:
        return self.children[-1]

    def be_ready(self) -> None:
        self.child.pid = 7
        self.child.on_ready({"session": "k", "username": "u"}, {"banner": "x"})

    def end(self, status: int = 0) -> None:
        self.will._hear_of_end({"status": status})

    def ask(self, name: str, number: int, **header: Any) -> None:
        words = {"msg_type": "execute_request", "msg_id": name, **header}
        body = pack([b"", *(json.dumps(each).encode() for each in (words, {}, {}, {}))])
        self.will._desk.take(self.guest, Head(Kind.ITEM, Channel.SHELL, number), body)

    def wait_for(self, fact: Callable[[], bool]) -> None:
        self.reactor.run_until(fact, time.monotonic() + 10)
        assert fact()

    def pass_by(self, seconds: float) -> None:
        """Let time pass by in which something must not happen."""
        self.reactor.run_until(lambda: False, time.monotonic() + seconds)

    def close(self) -> None:
        self.pass_by(0)
        self.journal.close()
        self.will.session.close()
        self.door.close("")
        self.reactor.close()


@pytest.fixture
def begin(tmp_path, monkeypatch) -> Iterator[Callable[..., Life]]:
    """Begin a life, that is over with the test."""
    for name in ("RESTART_AFTER", "NAMED_WITHIN", "KILL_WITHIN", "DIE_WITHIN"):
        monkeypatch.setattr(supervisors, name, 0.01, raising=False)
    lives: list[Life] = []

    def begin(*words: Any) -> Life:
        lives.append(Life(tmp_path / "7f3a9c", *words))
        return lives[0]

    yield begin
    for life in lives:
        life.close()


@pytest.fixture
def life(begin) -> Life:
    """A session whose kernel is ready."""
    life: Life = begin()
    life.will._start()
    life.be_ready()
    assert life.will.state is State.READY
    return life


def test_a_restart_does_not_revive_a_session_that_stops(life):
    life.will.stop("It was stopped.")
    life.will._obey("restart")
    assert life.will.state is State.STOPPING
    life.end()
    assert len(life.children) == 1


def test_no_kernel_starts_in_a_session_that_was_stopped_between_two_kernels(life, monkeypatch):
    """Also where the last words take long to be written."""
    left = []
    monkeypatch.setattr(life.will, "_leave", lambda: left.append(1))
    life.end(-9)
    life.will.stop("It was stopped.")
    life.pass_by(0.05)
    assert (left, len(life.children), life.will.state) == ([1], 1, State.STOPPING)


def test_a_kernel_that_dies_starts_anew(life):
    life.end(-9)
    life.wait_for(lambda: len(life.children) == 2)
    assert life.will.state is State.STARTING


def test_a_kernel_whose_process_is_named_late_is_ended_all_the_same(begin):
    life = begin()
    life.will._start()
    life.will._obey("restart")
    life.pass_by(0.1)
    assert life.child.signals == []
    life.child.pid = 7
    life.wait_for(lambda: life.child.signals == [signal.SIGTERM, signal.SIGKILL])
