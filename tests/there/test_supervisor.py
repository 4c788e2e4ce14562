"""What becomes of a session whose kernel starts, dies and ends, with a kernel that is made up."""

from __future__ import annotations

import errno
import json
import signal
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator import kernel_process as children
from remoter_kernel.evaluator import status_file, timeouts
from remoter_kernel.evaluator import supervisor as supervisors
from remoter_kernel.evaluator.journal import Journal
from remoter_kernel.evaluator.kernel_process import KernelProcess, PortConflicts, merged_environment
from remoter_kernel.evaluator.listener import Listener
from remoter_kernel.evaluator.records import Record
from remoter_kernel.evaluator.recovery import RecoveredState
from remoter_kernel.evaluator.registry import Session
from remoter_kernel.evaluator.supervisor import KernelLifecycleState, Supervisor
from remoter_kernel.evaluator.timeouts import SlowStartNotice
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    pack_parts,
    to_json,
)
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    MessageSigner,
    header_of,
    read_message,
)
from remoter_kernel.protocol.reactor import Reactor
from remoter_kernel.protocol.requests import Request, Requests, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = b"client-1"
NO_PROCESS = 2**22 - 3


class MadeUpChild:
    """Is told things."""

    def __init__(self) -> None:
        self.pid = 0
        self.is_recovered = False
        self.is_encrypted = False
        self.got: list[str] = []
        self.signals: list[int] = []
        self.asked_again = 0
        self.on_ready: Callable[..., None] = lambda *_: None
        self.fails_with: Exception | None = None

    def start(self, **_: Any) -> None:
        if self.fails_with:
            raise self.fails_with

    def attach(self) -> None:
        self.pid, self.is_recovered = 7, True

    def resend_kernel_info(self) -> None:
        self.asked_again += 1

    def send(self, _channel: Channel, parts: list[Any]) -> None:
        self.got.append(header_of(parts[HEADER])["msg_id"])

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def nothing(self, *_: Any) -> None:
        """Take no notice."""

    request = interrupt = close = remove_exit_files = nothing

    def log_tail(self) -> str:
        return ""


class Life:
    """A supervisor whose time goes on where the test says so."""

    def __init__(self, folder: Any, past: RecoveredState | None = None, about: Any = None) -> None:
        (folder / "keys").mkdir(parents=True)
        session = Session(folder)
        session.write("session.json", {})
        if about:
            session.write("child.json", about)
        self.reactor = Reactor()
        self.bugs: list[Exception] = []
        self.reactor.on_bug = self.bugs.append
        self.journal = Journal(folder / "journal", self.reactor.call_soon_threadsafe)
        self.journal.open()
        self.door = Listener(self.reactor, session, self.journal)
        self.will = Supervisor(self.door, {}, umask=0o22, recovered=past)
        made_up: Any = SimpleNamespace(
            watch=lambda *_: None,
            check_ports=lambda _child, then: then(),
            reset=lambda: None,
            read_log_tail=lambda _child, then: then(""),
            should_retry=lambda _words: False,
        )
        self.will._port_conflicts = self.will._startup_watchdog = made_up
        self.will._new_kernel = self._new_kernel  # type: ignore[method-assign]
        self.will._request_handler.kernel_for = self.will._kernel_for
        self.will._request_handler.on_possible_duplicate = self.will._on_possible_duplicate
        self.children: list[MadeUpChild] = []
        self.fails_with: Exception | None = None
        self.guest = self.door._new_client(ME)

    def _new_kernel(self) -> Any:
        child = MadeUpChild()
        child.fails_with = self.fails_with
        self.children.append(child)
        return child

    @property
    def kernel(self) -> MadeUpChild:
        return self.children[-1]

    def be_ready(self) -> None:
        self.kernel.pid = 7
        self.kernel.on_ready({"session": "k", "username": "u"}, {"banner": "x"})

    def end(self, status: int = 0) -> None:
        self.will._on_kernel_exit({"status": status})

    def ask(self, name: str, number: int, **header: Any) -> None:
        words = {"msg_type": "execute_request", "msg_id": name, **header}
        body = pack_parts([b"", *(json.dumps(each).encode() for each in (words, {}, {}, {}))])
        self.will._request_handler.on_item(
            self.guest, FrameHeader(MessageType.ITEM, Channel.SHELL, number), body
        )

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
    life.will._start_kernel()
    life.be_ready()
    assert life.will.state is KernelLifecycleState.READY
    return life


def test_state_json_follows_within_a_second_and_is_not_written_in_vain(life):
    status = life.will._status
    life.reactor.after_pass = life.will._after_poll
    about = lambda: life.will.session.read("state.json")  # noqa: E731
    life.wait_for(lambda: about().get("state") == "idle")
    life.ask("cell", 1)
    begun = time.monotonic()
    life.wait_for(lambda: about()["state"] == "busy")
    assert time.monotonic() - begun < 2 * status_file.EVERY  # a busy machine may be late
    assert [each["id"] for each in about()["requests"]] == ["cell"]
    life.pass_by(1.5 * status_file.EVERY)  # what the journal wrote meanwhile is no news
    written = about()["written"]
    life.pass_by(1.5 * status_file.EVERY)
    assert about()["written"] == written
    status.close()


def test_a_restart_does_not_revive_a_session_that_stops(life):
    life.will.stop("It was stopped.")
    life.will._on_command("restart")
    assert life.will.state is KernelLifecycleState.STOPPING
    life.end()
    assert len(life.children) == 1


def test_no_kernel_starts_in_a_session_that_was_stopped_between_two_kernels(life, monkeypatch):
    """Also where the last words take long to be written."""
    left = []
    monkeypatch.setattr(life.will, "_exit", lambda: left.append(1))
    life.end(-9)
    life.will.stop("It was stopped.")
    life.pass_by(0.05)
    assert (left, len(life.children), life.will.state) == ([1], 1, KernelLifecycleState.STOPPING)


def test_why_a_kernel_did_not_start_is_not_read_in_the_loop(begin, monkeypatch):
    """Its folder may hang: the session can be stopped meanwhile, or hears it later."""
    life = begin()
    ports = life.will._port_conflicts = PortConflicts(life.reactor)
    life.will._start_kernel()
    threads, is_back = [], threading.Event()

    def log_tail() -> str:
        threads.append(threading.current_thread().name)
        is_back.wait(10)
        return "No such module"

    monkeypatch.setattr(life.kernel, "log_tail", log_tail)
    life.end(1)
    assert not life.will.why
    life.wait_for(lambda: threads == ["kernel log"])
    is_back.set()
    life.wait_for(lambda: life.will.state is KernelLifecycleState.FAILED)
    assert "The kernel did not start: " in life.will.why
    assert life.will.why.endswith("\nNo such module")
    ports._disk.close()


def test_a_session_is_stopped_though_nobody_can_read_why_its_kernel_did_not_start(
    begin, monkeypatch
):
    life = begin()
    ports = life.will._port_conflicts = PortConflicts(life.reactor)
    monkeypatch.setattr(life.will, "_exit", lambda: None)
    life.will._start_kernel()
    is_back = threading.Event()
    monkeypatch.setattr(life.kernel, "log_tail", lambda: str(is_back.wait(10)))
    life.end(1)
    life.will.stop("It was stopped.")
    is_back.set()
    ports._disk.close()
    life.pass_by(0.05)
    assert life.will.state is KernelLifecycleState.STOPPING


def test_a_kernel_that_dies_starts_anew(life):
    life.end(-9)
    life.wait_for(lambda: len(life.children) == 2)
    assert life.will.state is KernelLifecycleState.STARTING


def test_a_kernel_whose_process_is_named_late_is_ended_all_the_same(begin):
    life = begin()
    life.will._start_kernel()
    life.will._on_command("restart")
    life.pass_by(0.1)
    assert life.kernel.signals == []
    life.kernel.pid = 7
    life.wait_for(lambda: life.kernel.signals == [signal.SIGTERM, signal.SIGKILL])


def test_a_kernel_that_cannot_be_started_for_any_reason_is_told_of(begin):
    life = begin()
    life.fails_with = TypeError("expected string or bytes-like object, got 'int'")
    life.will._start_kernel()
    assert life.will.state is KernelLifecycleState.FAILED
    assert "could not be started" in life.will.why
    assert "expected string" in life.will.why


def test_a_kernelspec_may_have_a_number_in_its_environment(monkeypatch):
    monkeypatch.setenv("CORES", "8")
    environment = merged_environment({"OMP_NUM_THREADS": 4, "ALL": "$CORES"})
    assert (environment["OMP_NUM_THREADS"], environment["ALL"]) == ("4", "8")


@pytest.mark.parametrize("odd", [{"session": "\ud800"}, {"header": {}}, {"header": "x"}])
def test_one_odd_request_keeps_no_other_from_its_answer_and_no_kernel_from_its_start(life, odd):
    life.ask("before", 1)
    life.ask("odd", 2, **odd)
    life.ask("after", 3)
    life.wait_for(lambda: life.kernel.got == ["before", "odd", "after"])
    life.end(-9)
    life.wait_for(lambda: len(life.children) == 2)
    assert (life.bugs, len(life.will._requests)) == ([], 0)


def test_one_answer_that_goes_wrong_holds_up_no_other(life, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("msg_id")

    life.ask("one", 1)
    life.ask("two", 2)
    life.wait_for(lambda: life.kernel.got == ["one", "two"])
    monkeypatch.setattr(life.will._writer, "answer_error", fail)
    life.end(-9)
    life.wait_for(lambda: len(life.children) == 2)
    assert (life.bugs, len(life.will._requests)) == ([], 0)


def adopted(begin: Callable[..., Life], past: RecoveredState) -> Life:
    """Begin a life with the kernel of an evaluator that died."""
    past.kernel = {"session": "k"}
    life = begin(past, {"pid": 7, "started": "", "warden": 1})
    life.will._recover(past)
    return life


def test_what_an_adopted_kernel_may_have_got_is_answered_once_that_kernel_is_gone(begin):
    """Another kernel is not asked about it."""
    past = RecoveredState()
    past.is_damaged = True
    life = adopted(begin, past)
    life.will._on_recovered()
    life.end(-9)
    life.wait_for(lambda: len(life.children) == 2)
    life.be_ready()
    life.guest.maybe_received = {Lane.BULK: 3, Lane.URGENT: 0}
    life.ask("cell", 2)
    life.wait_for(lambda: not len(life.will._requests))
    assert (life.kernel.asked_again, life.will._kernel_output.recovery) == (0, None)


@pytest.mark.parametrize(
    ("command", "kernels", "state"),
    [("restart", 2, KernelLifecycleState.STARTING), ("stop", 1, KernelLifecycleState.STOPPING)],
)
def test_what_an_evaluator_had_begun_with_when_it_died_is_done_by_the_next(
    begin, monkeypatch, command, kernels, state
):
    """The kernel was asked to end: that it does is no death."""
    past = RecoveredState()
    past.apply(
        Record(
            1,
            Channel.COMMAND,
            True,
            ME,
            pack_parts([to_json({"order": command})]),
            1.0,
            client_number=1,
        )
    )
    life = adopted(begin, past)
    monkeypatch.setattr(life.will, "_exit", lambda: None)
    life.end(0)
    assert (len(life.children), life.will.state) == (kernels, state)


def test_an_error_with_half_a_character_does_not_hold_up_an_adoption(begin):
    past = RecoveredState()
    header = {"msg_id": "cell", "msg_type": "execute_request"}
    parts: list[Any] = [b"", json.dumps(header).encode(), b"{}", b"{}", b"{}"]
    past.requests.add(Request(Channel.SHELL, parts, header, client=ME), Stage.SENT)
    life = adopted(begin, past)
    for kind, words in [
        ("status", {"execution_state": "busy"}),
        ("error", {"ename": "E", "evalue": "\ud800", "traceback": []}),
        ("status", {"execution_state": "idle"}),
    ]:
        said = MessageSigner(b"").compose(kind, {}, {"msg_id": "cell"})
        said[CONTENT] = json.dumps(words).encode()
        life.will._on_kernel_message(read_message(Channel.IOPUB, said))
    life.kernel.on_ready({"session": "k"}, {"banner": "x"})
    life.wait_for(lambda: life.will.state is KernelLifecycleState.READY)
    assert (life.bugs, len(life.will._requests)) == ([], 0)


def test_one_failed_look_after_an_adopted_kernel_is_not_the_last_one(tmp_path, monkeypatch):
    reactor = Reactor()
    child = KernelProcess(reactor, tmp_path, "python3", b"session")
    ended: list[dict[str, Any]] = []
    looks: list[int] = []
    child.on_exit = ended.append

    def is_running(pid: int, _started: str) -> bool:
        looks.append(pid)
        if len(looks) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return False

    monkeypatch.setattr(children, "is_running", is_running)
    child.pid = NO_PROCESS
    child._poll_process({"pid": NO_PROCESS, "started": "", "warden": NO_PROCESS})
    reactor.run_until(lambda: bool(ended), time.monotonic() + 10)
    child.close()
    reactor.close()
    assert ended
    assert len(looks) == 2


def test_what_a_kernel_printed_is_not_read_in_the_loop(monkeypatch):
    """Its folder may hang."""
    monkeypatch.setattr(timeouts, "SLOW_AFTER", 0.0)
    reactor = Reactor()
    threads: list[str] = []
    told: list[str] = []
    cell = Request(Channel.SHELL, [], {"msg_id": "cell", "msg_type": "execute_request"})
    requests = Requests()
    requests.add(cell)

    def log_tail(_lines: int) -> str:
        threads.append(threading.current_thread().name)
        return "Loading"

    child: Any = SimpleNamespace(log_tail=log_tail)
    speaker: Any = SimpleNamespace(write_stderr=lambda _cell, sentence: told.append(sentence))
    listener: Any = SimpleNamespace(reactor=reactor, session=SimpleNamespace(id="7f3a9c"))
    watch = SlowStartNotice(listener, requests, speaker)
    watch.watch(child, lambda: True)
    reactor.run_until(lambda: bool(told), time.monotonic() + 10)
    watch._disk.close()
    reactor.close()
    assert threads == ["slow start"]
    assert told[0].endswith("So far it has printed: Loading")
