"""What ssh asks through its program comes to a person, and the answer back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Listener
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.local.login.login import UnknownHostKey
from remoter_kernel.local.login.openssh import askpass, askpass_server
from remoter_kernel.local.login.openssh.askpass_server import AskpassServer
from remoter_kernel.local.login.openssh.login_process import LoginProcess
from remoter_kernel.local.login.prompts import HostKeyDecision, NotAnswered, Prompt
from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

UNKNOWN = (
    "The authenticity of host 'box ([10.0.0.1]:22)' can't be established.\n"
    "ED25519 key fingerprint is SHA256:abc+/9.\n"
    "This key is not known by any other names.\n"
    "Are you sure you want to continue connecting (yes/no/[fingerprint])? "
)


class Person:
    """Says what the test wants, and remembers what was asked."""

    def __init__(self) -> None:
        self.says = "an answer"
        self.trust = HostKeyDecision.YES
        self.asked: list[tuple[str, str, bool]] = []

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        self.asked.append((host, f"{kind} {fingerprint}", True))
        return self.trust

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        self.asked += [(host, prompt.text, prompt.is_shown) for prompt in prompts]
        if not prompts:
            self.asked.append((host, instruction, True))
        if not self.says:
            raise NotAnswered("no answer.")
        return [self.says for _ in prompts]


@pytest.fixture
def person() -> Person:
    return Person()


@pytest.fixture
def desk(person: Person, tmp_path: Path) -> Iterator[AskpassServer]:
    desk = AskpassServer("the box", person, tmp_path)
    desk.process = LoginProcess([], {}, lambda _step: None)
    desk.start()
    yield desk
    desk.close()
    desk.close()


def hear(desk: AskpassServer, *lines: str) -> None:
    """Let ssh tell how far it is."""
    for line in lines:
        desk.process._on_line(line)


def start(
    desk: AskpassServer, text: str, hint: str = "", **changes: str
) -> subprocess.Popen[bytes]:
    """Run the program as ssh does."""
    environment = {**desk.environment(), askpass.HINT_VARIABLE: hint, **changes}
    return subprocess.Popen(
        [environment["SSH_ASKPASS"], text],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ask(desk: AskpassServer, text: str, hint: str = "", **changes: str) -> tuple[int, bytes]:
    said, complaint = (process := start(desk, text, hint, **changes)).communicate(timeout=20)
    assert complaint == b""
    return process.returncode, said


def test_a_question_is_asked_hidden_and_without_what_acts_on_a_terminal(desk, person):
    assert ask(desk, "Enter PIN\x1b[2J for 'x'; $(id): ") == (0, b"an answer\n")
    text = "remoter, on this machine: Enter PIN for 'x'; $(id) (it is not sent):"
    assert person.asked == [("", text, False)]


def test_an_answer_in_any_script_passes(desk, person):
    person.says = "пароль €"
    assert ask(desk, "Password:")[1].decode() == "пароль €\n"


@pytest.mark.parametrize(("says", "status"), [("yes", 0), ("Y", 0), ("no", 1), ("what", 1)])
def test_a_permission_is_the_exit_status(desk, person, says, status):
    person.says = says
    assert ask(desk, "Allow use of key?", "confirm")[0] == status
    asked = "remoter, on this machine: Allow use of key? (yes/no)"
    assert person.asked == [("", asked, True)]


def test_a_note_stands_until_the_login_is_over(desk, person):
    note = start(desk, "Confirm user presence for key x", "none")
    wait_for(lambda: person.asked, what="the note is shown")
    note_of_ssh = "remoter, on this machine: Confirm user presence for key x"
    assert person.asked == [("", note_of_ssh, True)]
    assert ask(desk, "PIN:")[0] == 0  # meanwhile a question is answered
    assert note.poll() is None
    desk.close()
    assert note.communicate(timeout=20) == (b"", b"")


@pytest.mark.parametrize("trust", [HostKeyDecision.YES, HostKeyDecision.ONCE])
def test_a_host_key_is_confirmed(desk, person, trust):
    person.trust = trust
    hear(desk, "debug1: Server host key: ssh-ed25519 SHA256:abc+/9")
    assert ask(desk, UNKNOWN) == (0, b"yes\n")
    assert person.asked == [("the box", "ssh-ed25519 SHA256:abc+/9", True)]
    assert desk.remembers_host_key is (trust is HostKeyDecision.YES)


def test_the_key_of_a_jump_host_is_its_own_and_cannot_be_accepted_once(desk, person):
    desk._passes_hops = True
    hear(desk, "debug1: Local version string SSH-2.0-OpenSSH_for_Windows_9.5")
    assert ask(desk, UNKNOWN) == (0, b"yes\n")
    assert person.asked == [("box ([10.0.0.1]:22)", "ED25519 SHA256:abc+/9", True)]
    assert not desk.remembers_host_key
    person.trust = HostKeyDecision.ONCE
    assert ask(desk, UNKNOWN)[0] == 1
    assert isinstance(desk.problem, UnknownHostKey)


def test_what_is_not_answered_ends_the_login_and_nothing_more_is_asked(desk, person):
    ended = []
    desk.on_problem = lambda: ended.append(True)
    person.says = ""
    assert ask(desk, "Password:")[0] == 1
    assert isinstance(desk.problem, NotAnswered)
    assert ended == [True]
    assert ask(desk, "Password:")[0] == 1
    assert len(person.asked) == 1


def test_who_closes_as_a_question_is_declined_waits_for_nobody(desk, person):
    desk.on_problem = lambda: time.sleep(0.5)  # the close begins meanwhile
    person.says = ""
    with start(desk, "Password:") as process:
        wait_for(lambda: desk.problem, what="it is declined")
        closing = threading.Thread(target=desk.close, daemon=True)
        closing.start()
        closing.join(5)
        assert not closing.is_alive()
        assert process.wait(5) == 1


def test_who_does_not_know_the_key_of_the_login_asks_nothing(desk, person):
    assert ask(desk, "Password:", **{askpass.KEY_VARIABLE: "00" * 32})[0] == 1
    assert ask(desk, "Password:", **{askpass.ADDRESS_VARIABLE: "/nowhere"})[0] == 1
    assert person.asked == []
    assert ask(desk, "Password:")[0] == 0


class Full:
    """A listener of a process that has no descriptor left, at first or for good."""

    def __init__(self, real: Listener, times: int) -> None:
        self.real, self.times, self.tried = real, times, 0
        self.address = real.address
        self.close = real.close

    def accept(self) -> Connection:
        self.tried += 1
        if self.tried <= self.times:
            raise OSError(errno.EMFILE, "too many open files")
        return self.real.accept()


def full(desk: AskpassServer, monkeypatch: pytest.MonkeyPatch, times: int) -> Full:
    """Let a desk that has not begun have such a listener."""
    made: list[Full] = []

    def listen(*words: object, **options: object) -> Full:
        made.append(Full(Listener(*words, **options), times))  # type: ignore[arg-type]
        return made[0]

    monkeypatch.setattr(askpass_server, "Listener", listen)
    desk.start()
    return made[0]


def test_without_a_descriptor_it_waits_a_little_and_does_not_spin(person, tmp_path, monkeypatch):
    desk = AskpassServer("the box", person, tmp_path)
    monkeypatch.setattr(askpass_server, "PAUSE", 60.0)
    listener = full(desk, monkeypatch, sys.maxsize)
    wait_for(lambda: listener.tried, what="it has tried")
    desk.close()
    assert listener.tried == 1


def test_once_there_is_a_descriptor_again_it_asks(person, tmp_path, monkeypatch):
    desk = AskpassServer("the box", person, tmp_path)
    monkeypatch.setattr(askpass_server, "PAUSE", 0.01)
    full(desk, monkeypatch, 3)
    assert ask(desk, "Password:") == (0, b"an answer\n")
    desk.close()


def test_a_fault_while_it_asks_ends_the_login_in_a_sentence(desk, person, monkeypatch):
    def break_down(*_words: object) -> None:
        raise ZeroDivisionError

    ended = []
    desk.on_problem = lambda: ended.append(True)
    monkeypatch.setattr(person, "ask", break_down)
    assert ask(desk, "Password:")[0] == 1
    assert "could not be passed on: ZeroDivisionError" in str(desk.problem)
    assert ended == [True]
    assert ask(desk, "Password:")[0] == 1


def test_after_the_login_there_is_no_program_any_more(desk, tmp_path):
    program = desk.environment()["SSH_ASKPASS"]
    assert os.stat(program).st_mode & 0o777 == 0o700  # noqa: PTH116
    desk.close()
    assert list(tmp_path.iterdir()) == []
