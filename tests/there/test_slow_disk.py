"""A disk that hangs, or fails, under a session: its loop goes on, and nothing of it piles up."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from remoter_kernel.evaluator import kernel_process, registry
from remoter_kernel.evaluator import status_file as boards
from remoter_kernel.evaluator.kernel_process import PORT_TAKEN, PortConflicts
from remoter_kernel.evaluator.listener import Listener
from remoter_kernel.evaluator.registry import ServedSession, Session
from remoter_kernel.evaluator.status_file import CELLS, STATUS_FILE, StatusWriter
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    MessageType,
    decode_messages,
    encode_message,
    to_json,
)
from remoter_kernel.protocol.reactor import Reactor
from remoter_kernel.protocol.requests import Request, Requests, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WITHIN = 10.0  # seconds
LOOK_EVERY = 0.01  # seconds
HELLO = encode_message(FrameHeader(MessageType.HELLO), to_json({"front": "ab" * 8, "seen": None}))


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A loop, which runs while a test waits for a fact."""
    reactor = Reactor()
    yield reactor
    reactor.close()


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session's folder."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return Session.create({"kernel_id": "k", "created": time.time()})


class HungDisk:
    """What a person does to it waits until the disk is back."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.is_back = threading.Event()
        self.asked = 0

    def hang(self, do: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same, which waits for the disk."""

        def wait(*words: Any, **more: Any) -> Any:
            self.asked += 1
            self.is_asked.set()
            assert self.is_back.wait(WITHIN)
            return do(*words, **more)

        return wait


@pytest.fixture
def disk() -> Iterator[HungDisk]:
    """A disk that hangs until the test says otherwise, or ends."""
    disk = HungDisk()
    yield disk
    disk.is_back.set()


def until(reactor: Reactor, fact: Callable[[], bool]) -> None:
    """Let the loop run until something is true."""
    limit = time.monotonic() + WITHIN
    while not fact():
        assert time.monotonic() < limit
        reactor.run_until(lambda: False, time.monotonic() + LOOK_EVERY)


# --- what a session says of itself ---


def test_a_change_does_not_wait_for_a_disk_that_hangs(reactor, session, disk, monkeypatch):
    """It is known at once, and is written when the disk is back; the process waits for that."""
    served = ServedSession(session.folder, reactor.call_soon_threadsafe)
    monkeypatch.setattr(registry, "write_json", disk.hang(registry.write_json))
    monkeypatch.setattr(registry, "AMENDED_WITHIN", 0.01)
    begin = time.monotonic()
    served.update(keep=True)
    served.mark_ended("It was stopped.")
    assert time.monotonic() - begin < WITHIN / 2
    assert served.about["keep"] is True
    assert "keep" not in session.read("session.json")
    disk.is_back.set()
    served.close()
    about = session.read("session.json")
    assert (about["keep"], about["why"], about["kernel_id"]) == (True, "It was stopped.", "k")


def test_a_change_is_written_before_anybody_hears_of_it(reactor, session):
    """As long as the disk answers: whoever gave the order may ask a login at once."""
    served = ServedSession(session.folder, reactor.call_soon_threadsafe)
    served.update(finish=True)
    assert session.read("session.json")["finish"] is True
    served.close()


def test_a_change_that_the_disk_refuses_is_logged(reactor, session, monkeypatch, caplog):
    """And it ends nothing."""
    served = ServedSession(session.folder, reactor.call_soon_threadsafe)

    def refuse(*_words: Any) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(registry, "write_json", refuse)
    served.update(keep=True)
    served.close()
    assert "quota" in caplog.text


# --- state.json and cells.json ---


@pytest.fixture
def board(reactor: Reactor, session: Session) -> Iterator[StatusWriter]:
    """A board of a session without any proxy."""
    journal = SimpleNamespace(last=0)
    door: Any = SimpleNamespace(clients={}, journal=journal, reactor=reactor)
    board = StatusWriter(session, door, Requests())
    board.open()
    yield board
    board.close()


def test_while_a_disk_hangs_only_the_newest_waits(reactor, session, disk, monkeypatch, board):
    """A hundred cells in a minute's outage are one file, not a hundred."""
    monkeypatch.setattr(session, "write", disk.hang(session.write))
    for number in range(100):
        board.add_cell(f"cell {number}")
        board.update("busy")
    until(reactor, disk.is_asked.is_set)
    disk.is_back.set()
    until(reactor, lambda: len(session.read(CELLS).get("cells", ())) == 100)
    until(reactor, lambda: session.read(STATUS_FILE).get("state") == "busy")
    assert disk.asked <= 4


def test_what_a_disk_refuses_is_written_later(reactor, session, monkeypatch, board):
    """It is not lost, though nothing else changes."""
    monkeypatch.setattr(boards, "RETRY_AFTER", 0.01)
    write, refused = session.write, []

    def refuse(name: str, words: dict[str, Any]) -> None:
        if len(refused) < 3:
            refused.append(name)
            raise OSError(28, "No space left on device")
        write(name, words)

    monkeypatch.setattr(session, "write", refuse)
    board.add_cell("a")
    board.update("idle")
    until(reactor, lambda: session.read(CELLS).get("cells") == ["a"])
    until(reactor, lambda: session.read(STATUS_FILE).get("state") == "idle")


def test_how_far_a_request_has_come_is_told_though_the_kernel_says_nothing(reactor, session, board):
    """A kernel that hangs leaves nothing in the journal; that is when people ask."""
    header = {"msg_id": "a", "msg_type": "execute_request"}
    request = board._requests.add(Request(Channel.SHELL, [], header))

    def stages() -> list[str]:
        return [row["stage"] for row in session.read(STATUS_FILE).get("requests", ())]

    board.update("busy")
    until(reactor, lambda: stages() == ["received"])
    board._requests.move(request, Stage.SENT)
    board.update("busy")
    until(reactor, lambda: stages() == ["sent"])


# --- who is let in ---


class Client:
    """Somebody who connects with a key pair, and greets."""

    def __init__(self, port: int, server_key: bytes, keys: tuple[bytes, bytes]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.curve_publickey, self._socket.curve_secretkey = keys
        self._socket.curve_serverkey = server_key
        self._refusals = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._socket.send(HELLO)

    def is_in(self) -> bool:
        if not self._socket.poll(0):
            return False
        ((head, _body), *_) = decode_messages(self._socket.recv())
        return head.type is MessageType.WELCOME

    def is_refused(self) -> bool:
        return bool(self._refusals.poll(0))

    def close(self) -> None:
        self._socket.disable_monitor()
        self._refusals.close(linger=0)
        self._socket.close()
        self._context.term()


def test_who_was_let_in_before_needs_no_disk(reactor, session, disk, monkeypatch):
    """A key that was registered is known; a later one is looked up, and holds up nobody."""
    known, late, public = (zmq.curve_keypair() for _ in range(3))
    session.authorize_key(known[0].decode())
    journal: Any = SimpleNamespace(last=0, after=lambda _number: iter(()))
    door = Listener(reactor, session, journal)
    port = door.open(public[1], public[0])
    monkeypatch.setattr(session, "is_authorized", disk.hang(session.is_authorized))
    session.authorize_key(late[0].decode())
    second = Client(port, public[0], late)
    until(reactor, disk.is_asked.is_set)
    first = Client(port, public[0], known)
    until(reactor, first.is_in)
    assert not second.is_in()
    disk.is_back.set()
    until(reactor, second.is_in)
    for client in (first, second):
        client.close()
    door.close("The test is over.")


def test_who_was_never_registered_is_not_let_in(reactor, session):
    """Nor does anybody who asks the door's judge in another way stop it."""
    known, stranger, public = (zmq.curve_keypair() for _ in range(3))
    session.authorize_key(known[0].decode())
    journal: Any = SimpleNamespace(last=0, after=lambda _number: iter(()))
    door = Listener(reactor, session, journal)
    looked: list[bytes] = []
    admits = session.is_authorized

    def look(key: bytes) -> bool:
        looked.append(key)
        return admits(key)

    session.is_authorized = look
    port = door.open(public[1], public[0])
    second = Client(port, public[0], stranger)
    until(reactor, lambda: looked == [stranger[0]])
    first = Client(port, public[0], known)
    until(reactor, first.is_in)
    assert not second.is_in()
    for client in (first, second):
        client.close()
    door.close("The test is over.")


def test_a_disk_that_fails_once_keeps_nobody_waiting(reactor, session, monkeypatch):
    """Who cannot be looked up is refused at once, and may come again."""
    known, public = zmq.curve_keypair(), zmq.curve_keypair()
    journal: Any = SimpleNamespace(last=0, after=lambda _number: iter(()))
    door = Listener(reactor, session, journal)
    port = door.open(public[1], public[0])
    session.authorize_key(known[0].decode())
    admits, failures = session.is_authorized, [OSError(116, "Stale file handle")]

    def look(key: bytes) -> bool:
        if failures:
            raise failures.pop()
        return admits(key)

    monkeypatch.setattr(session, "is_authorized", look)
    first = Client(port, public[0], known)
    until(reactor, first.is_refused)
    second = Client(port, public[0], known)
    until(reactor, second.is_in)
    for client in (first, second):
        client.close()
    door.close("The test is over.")


# --- the kernel's log ---


class Kernel:
    """What is printed by a kernel that starts."""

    def __init__(self, said: str) -> None:
        self.said = said
        self.signals: list[int] = []

    def log_tail(self) -> str:
        return self.said

    def signal(self, number: int) -> None:
        self.signals.append(number)


def test_a_kernel_is_ready_when_its_log_was_read(reactor, disk, monkeypatch):
    """The loop goes on while the disk with the log hangs."""
    kernel: Any = Kernel("")
    monkeypatch.setattr(kernel, "log_tail", disk.hang(kernel.log_tail))
    ports, ready, passed = PortConflicts(reactor), [], []
    ports.check_ports(kernel, lambda: ready.append(1))
    reactor.call_later(0.0, lambda: passed.append(1))
    until(reactor, lambda: bool(passed))
    assert not ready
    disk.is_back.set()
    until(reactor, lambda: bool(ready))
    ports._disk.close()


def test_a_kernel_that_lost_a_port_is_ended_and_tried_again_twice(reactor, monkeypatch):
    """The third one that says so is what it is."""
    monkeypatch.setattr(kernel_process, "CHECK_PORTS_EVERY", 0.01)
    ports, ready = PortConflicts(reactor), []
    kernel: Any = Kernel(f"bind: {PORT_TAKEN}")
    ports.check_ports(kernel, lambda: ready.append(1))
    ports.watch(kernel, lambda: len(kernel.signals) < 2)
    until(reactor, lambda: len(kernel.signals) == 2)
    assert [ports.should_retry(kernel.said) for _ in range(3)] == [True, True, False]
    ports.check_ports(kernel, lambda: ready.append(1))
    until(reactor, lambda: bool(ready))
    ports.reset()
    assert not ports.should_retry("It crashed.")
    assert ports.should_retry(kernel.said)
    ports._disk.close()


# --- what is swept ---


def test_one_odd_folder_is_no_reason_to_leave_the_others(session, caplog):
    """What ended long ago goes, whatever else lies about."""
    odd = Session.create({"ended": "long ago"})
    old = Session.create({"ended": 1.0})
    registry.collect_garbage()
    assert not old.folder.exists()
    assert odd.folder.exists()
    assert odd.id in caplog.text
    assert os.path.isdir(session.folder)  # noqa: PTH112 - as anybody would look
