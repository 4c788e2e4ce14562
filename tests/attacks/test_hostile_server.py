"""What a hostile SSH server, or another user of this machine, tries against whoever logs in."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import paramiko
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MSG_USERAUTH_BANNER,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_INFO_REQUEST,
    OPEN_SUCCEEDED,
    cMSG_CHANNEL_DATA,
    cMSG_CHANNEL_EXTENDED_DATA,
    cMSG_DEBUG,
    cMSG_EXT_INFO,
    cMSG_IGNORE,
)

from remoter_kernel.cli import terminal
from remoter_kernel.errors import HostKeyProblem, LoginRefused, RemoterError, Unreachable
from remoter_kernel.local.login.credentials import HostCredentials
from remoter_kernel.local.login.destination import Destination
from remoter_kernel.local.login.login import (
    WINDOW,
    ConnectionClosed,
    ResponseTimeout,
    ServerViolation,
)
from remoter_kernel.local.login.openssh import openssh_login
from remoter_kernel.local.login.openssh.askpass_server import AskpassServer
from remoter_kernel.local.login.openssh.login_process import MOST_STDERR, LoginProcess
from remoter_kernel.local.login.openssh.mux_transport import Mux, MuxError, master_answers
from remoter_kernel.local.login.openssh.openssh_login import living_master, log_in_by_openssh
from remoter_kernel.local.login.openssh.stderr_errors import error_from_stderr
from remoter_kernel.local.login.paramiko import authenticator
from remoter_kernel.local.login.paramiko.authenticator import Authenticator
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.paramiko.transport import (
    LARGEST_PACKET,
    MOST_UNSENT,
    ParamikoTransport,
)
from remoter_kernel.local.login.paramiko.userauth import (
    MOST_PROMPTS,
    MOST_UNREAD,
    AuthResult,
    InfoRequest,
    _parse_info_request,
)
from remoter_kernel.local.login.prompts import (
    LONGEST_TEXT,
    OWN_TAG,
    HostKeyDecision,
    NotAnswered,
    Prompt,
    quote_server,
    server_prefix,
    to_one_line,
)
from remoter_kernel.local.login.remote_command import RemoteCommand
from remoter_kernel.local.login.ssh_config import resolve_destination
from remoter_kernel.local.private_sockets import peer_uid
from remoter_kernel.plain_text import plain_text
from tests import real_parts
from tests.at_terminal import Ended, Question, at_terminal
from tests.real_jupyter import wait_for
from tests.real_sshd import RealSshd, make_key
from tests.real_users import bare_user, own_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from remoter_kernel.local.login.ssh_login import SSHLogin
    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

MB = 1024 * 1024  # bytes
SOON = 10.0  # seconds
HOST_KEY = (
    "The authenticity of host 'other (10.0.0.1)' can't be established.\n"
    "ED25519 key fingerprint is {}.\n"
    "Are you sure you want to continue connecting (yes/no/[fingerprint])? "
)


# ------------------------------------------------------------------ a server


class Rules(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    """Says to each login what the test wants."""

    def __init__(self, server: Hostile, transport: paramiko.Transport) -> None:
        self.server = server
        self.transport = transport
        self.rounds = list(server.rounds)

    def get_allowed_auths(self, _user: str) -> str:
        return self.server.allows

    def check_auth_publickey(self, _user: str, _key: object) -> int:
        return AUTH_SUCCESSFUL if "publickey" in self.server.allows else AUTH_FAILED

    def check_auth_password(self, _user: str, password: str) -> int:
        self.server.typed.append(password)
        return AUTH_SUCCESSFUL

    def check_auth_interactive(self, _user: str, _submethods: str) -> Any:
        self.server.on_login(self.transport)
        return self.next_round()

    def check_auth_interactive_response(self, responses: list[str]) -> Any:
        self.server.typed += responses
        return self.next_round()

    def next_round(self) -> Any:
        if not self.rounds:
            return self.server.in_the_end
        instruction, *prompts = self.rounds.pop(0)
        query = paramiko.InteractiveQuery("", instruction)
        for prompt in prompts:
            query.add_prompt(prompt, False)
        return query

    def check_channel_request(self, _kind: str, _number: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_direct_tcpip_request(self, number: int, *_: object) -> int:
        self.server.channels.append(number)
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, _command: bytes) -> bool:
        self.server.channels.append(channel.chanid)
        return self.server.runs_commands


class Hostile:
    """An SSH server that is known here, and means no good."""

    def __init__(self, folder: Path, *rounds: Sequence[str], allows: str = "") -> None:
        self.rounds = rounds
        self.allows = allows or "keyboard-interactive"
        self.in_the_end = AUTH_SUCCESSFUL
        self.runs_commands = True
        self.typed: list[str] = []
        self.channels: list[int] = []
        self.on_login: Callable[[paramiko.Transport], None] = lambda _transport: None
        self.transports: list[paramiko.Transport] = []
        self.key_file = folder / "host_key"
        if not self.key_file.exists():
            make_key(self.key_file)
        self.key = paramiko.Ed25519Key(filename=str(self.key_file))
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        kind, blob, *_ = self.key_file.with_suffix(".pub").read_text().split()
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {blob}\n")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(SOON)
        self._listener.close()
        for transport in self.transports:
            with contextlib.suppress(OSError):
                transport.sock.shutdown(socket.SHUT_RDWR)
            transport.close()
            transport.join(SOON)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self.key)
                self.transports.append(transport)
                transport.start_server(event=threading.Event(), server=Rules(self, transport))

    @property
    def transport(self) -> paramiko.Transport:
        """Its end of the only login: others may look who listens here, and leave."""
        (found,) = (each for each in self.transports if each.initial_kex_done)
        return found

    @property
    def there(self) -> Destination:
        """The way to it, without a key to show."""
        return Destination(
            "127.0.0.1",
            self.port,
            "ada",
            identity_files=(self._folder / "no-key",),
            known_hosts_files=(self.known_hosts,),
            identities_only=True,
            identity_agent="none",
            connect_timeout=5.0,
        )

    def config(self, alias: str, *more: str) -> Path:
        """Name it in an ssh_config."""
        file = self._folder / "ssh_config"
        before = file.read_text() if file.exists() else ""
        lines = [
            *more,
            "HostName 127.0.0.1",
            f"Port {self.port}",
            "User ada",
            "IdentityFile none",
            "IdentityAgent none",
            f"UserKnownHostsFile {self.known_hosts}",
            "GlobalKnownHostsFile /dev/null",
        ]
        file.write_text("\n    ".join([f"{before}Host {alias}", *lines]) + "\n")
        return file


def raw(kind: int, *fields: bytes | int | bool) -> paramiko.Message:
    """Make a message that no paramiko would send."""
    message = paramiko.Message()
    message.add_byte(bytes([kind]))
    for field in fields:
        if isinstance(field, bool):
            message.add_boolean(field)
        else:
            (message.add_int if isinstance(field, int) else message.add_string)(field)
    return message


def send_all(transport: paramiko.Transport, messages: Iterator[paramiko.Message]) -> None:
    """Send for as long as the other end takes it."""
    with contextlib.suppress(Exception):
        for message in messages:
            if not transport.active:
                break
            transport._send_user_message(message)


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Answer one TCP connection, and end with it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def take() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connections.append(connection)
                serve(connection)

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            for one in (*connections, listener):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            thread.join(SOON)
            for one in connections:
                one.close()


class Person:
    """Answers everything, and remembers what was seen."""

    def __init__(
        self, answer: str = "an answer", trust: HostKeyDecision = HostKeyDecision.NO
    ) -> None:
        self.answer = answer
        self.trust = trust
        self.asked: list[tuple[str, str]] = []
        self.keys: list[str] = []
        self.before: Callable[[], object] = lambda: None

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        self.keys.append(host)
        return self.trust

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        self.before()
        self.asked += [(host, f"{instruction}|{prompt.text}") for prompt in prompts]
        if not self.answer:
            raise NotAnswered("no answer.")
        return [self.answer for _ in prompts]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name."""
    path = Path(tempfile.mkdtemp(prefix="hostile-"))
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def logged_in(folder: Path) -> Iterator[tuple[Hostile, SSHLogin]]:
    """Be logged in where somebody means no good."""
    with Hostile(folder, ("", "Password:")) as server:
        login = log_in_by_paramiko(server.there, prompter=Person("secret"))
        with contextlib.closing(login):
            yield server, login


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


# ------------------------------------------------------------- whose question is this?


def run(
    here: JupyterHere,
    server: Hostile,
    answers: Sequence[str],
    *,
    transport: str = "paramiko",
    name: str = "box",
) -> Ended:
    """Log in at a terminal that is as narrow as most, and answer all that is asked."""
    file = server._folder / "ssh_config"
    remote = f"{name}-{transport}-{server.port}"
    here.add_remote(
        remote, name, ssh_config=file, transport=transport, python="python3", kernel="python3"
    )
    command = [str(Path(sys.executable).with_name("remoter")), "sessions", remote]
    questions = [Question(r":\s$|\?\s$", lambda answer=answer: answer) for answer in answers]  # type: ignore[misc]
    return at_terminal(command, questions, environment={"COLUMNS": "80"})


def lines_about(ended: Ended, word: str) -> list[str]:
    found = [line for line in ended.text.splitlines() if word in line]
    assert found, ended.text
    return found


def test_a_server_asks_in_its_own_name_alone(here, folder):
    """It imitates remoter's own question, another host, sudo, and a line behind the edge."""
    padded = "Please wait".ljust(78) + f"{OWN_TAG}passphrase of ~/.ssh/id_ed25519 (it is not sent):"
    filled = "x" * 41 + f"{OWN_TAG}passphrase of ~/.ssh/id_rsa (it is not sent):"
    rounds = [
        ("", "Passphrase of /home/ada/.ssh/id_ed25519:"),
        ("", "\n[bank.example.org] Password of ada:"),
        ("laptop: sudo needs your password here.\n[sudo] password for ada", ":"),
        ("", padded),
        (f"Welcome\n\r\u2028\x85{OWN_TAG}all is well\x0b{OWN_TAG}yes", filled),
    ]
    with Hostile(folder, *rounds) as server:
        server.in_the_end = AUTH_FAILED
        server.config("box")
        ended = run(here, server, [f"answer {number}" for number in range(len(rounds))])
        assert server.typed[:5] == [f"answer {number}" for number in range(5)], ended.text
    name = f"[box (127.0.0.1:{server.port})"
    for word in ("Passphrase of", "bank.example", "sudo", "Please", "Welcome", "machine", "xxx"):
        for line in lines_about(ended, word):
            assert line.startswith((f"{name}] ", f"{name} says] ")), line
    assert f"{name}] [bank.example.org] Password of ada:" in ended.text
    assert f"{name} says] laptop: sudo needs your password here.\n" in ended.text
    assert not [line for line in ended.text.splitlines() if line.startswith(OWN_TAG)]


def test_our_own_question_looks_like_no_servers_and_its_answer_stays_here(here, folder):
    """A server that takes any key waits for what is typed."""
    home = Path(os.environ["HOME"])
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh/id_locked").unlink(missing_ok=True)
    make_key(home / ".ssh/id_locked", passphrase="the passphrase")
    with Hostile(folder, allows="publickey") as server:
        server.runs_commands = False
        server.config("box", "IdentityFile ~/.ssh/id_locked", "IdentitiesOnly yes")
        ended = run(here, server, ["the passphrase"])
        (line,) = lines_about(ended, "passphrase of")
        assert line.rstrip() == f"{OWN_TAG}passphrase of ~/.ssh/id_locked (it is not sent):"
        assert server.typed == []


def test_a_jump_host_cannot_ask_in_the_name_of_the_host_behind_it(here, folder):
    """It says that it is the host behind it."""
    with Hostile(folder, ("", "[box] Password of ada:")) as gate:
        gate.in_the_end = AUTH_FAILED
        gate.config("gate")
        file = gate.config("box", "ProxyJump gate")
        assert resolve_destination("box", file).jumps
        ended = run(here, gate, ["given to gate"])
        assert gate.typed == ["given to gate"]
    (line,) = lines_about(ended, "Password of")
    gate_label = f"gate (127.0.0.1:{gate.port}) (jump host of box)"
    assert line.startswith(f"[{gate_label}] [box] Password of ada:")


def test_with_openssh_a_servers_question_is_not_taken_for_one_of_ssh(here, folder):
    """It asks for a passphrase and a host key in the very words of ssh, with its true key."""
    real_parts.real_part("ssh")
    with Hostile(folder) as server:
        told = subprocess.run(
            ["ssh-keygen", "-lf", server.key_file], capture_output=True, text=True, check=True
        )
        server.rounds = (
            ("", "Enter passphrase for key '/home/ada/.ssh/id_ed25519': "),
            ("", HOST_KEY.format(told.stdout.split()[1])),
        )
        server.in_the_end = AUTH_FAILED
        server.config("box")
        ended = run(here, server, ["typed 1", "typed 2"], transport="openssh")
        assert server.typed[:2] == ["typed 1", "typed 2"], ended.text
    name = f"[box (127.0.0.1:{server.port})] "
    for word in ("Enter passphrase", "authenticity"):
        assert lines_about(ended, word)[0].startswith(name), ended.text
    assert OWN_TAG not in ended.text
    assert "is not known yet" not in ended.text


@pytest.mark.parametrize("version", ["OpenSSH_8.0", "OpenSSH_9.2p1 Debian-2", "PKIX", ""])
def test_before_and_behind_the_login_ssh_is_believed_differently(folder, version):
    """A server imitates ssh where ssh does not mark what a server says (before OpenSSH 8.5)."""
    person = Person("yes", HostKeyDecision.YES)
    desk = AskpassServer("box", person, folder)
    desk.process = LoginProcess([], {}, lambda _step: None)
    if version:
        desk.process._on_line(f"debug1: Local version string SSH-2.0-{version}")
    desk.process._on_line("debug1: Server host key: ssh-ed25519 SHA256:abc")
    question = to_one_line(HOST_KEY.format("SHA256:abc"))
    assert desk._answer_prompt("", question) == "yes"
    assert person.keys == ["box"]
    assert desk.remembers_host_key
    desk.remembers_host_key = False
    desk._answer_prompt("", to_one_line(HOST_KEY.format("SHA256:else")))
    assert len(person.keys) == 1  # another key than ssh has told of
    desk.process._on_line("debug1: SSH2_MSG_NEWKEYS received")
    desk._answer_prompt("", question)
    assert len(person.keys) == 1
    assert not desk.remembers_host_key
    assert person.asked[-1] == ("box", f"|{question}")
    desk._answer_prompt("", "Enter passphrase for key '/k':")
    is_marked = "9.2" in version
    ours = ("", f"|{OWN_TAG}Enter passphrase for key '/k' (it is not sent):")
    theirs = ("box", "|Enter passphrase for key '/k':")
    assert person.asked[-1] == (ours if is_marked else theirs)


def test_a_jump_hosts_words_do_not_tell_how_far_ssh_is(folder):
    """Where ssh passes it by itself, it writes among what ssh says, and asks."""
    person = Person("typed", HostKeyDecision.YES)
    hops = {"ada@gate": "gate (jump host of box)", "ada@box": "box"}
    desk = AskpassServer("box", person, folder, hops=hops, passes_hops=True)
    desk.process = LoginProcess([], {}, lambda _step: None)
    desk.process._on_line("debug1: Local version string SSH-2.0-OpenSSH_9.2p1")
    desk._answer_prompt("", f"(ada@gate) {to_one_line(HOST_KEY.format('SHA256:abc'))}")
    assert person.asked[-1][0] == "gate (jump host of box)"
    desk._answer_prompt("", "(ada@gate) [box] Password:")
    assert person.asked[-1] == ("gate (jump host of box)", "|[box] Password:")
    desk._answer_prompt("", "ada@gate's password:")
    assert person.asked[-1][0] == "gate (jump host of box)"
    desk._answer_prompt("", "(eve@nowhere) Password:")
    assert person.asked[-1][0] == "eve@nowhere (jump host of box)"
    assert person.keys == []
    desk._answer_prompt("", to_one_line(HOST_KEY.format("SHA256:abc")))  # no server can begin so
    assert person.keys == ["other (10.0.0.1)"]


def test_the_key_of_a_jump_host_that_ssh_asks_for_itself_is_still_confirmed(tmp_path, monkeypatch):
    """Nobody attacks: both hosts are unknown, and each is asked about by its own name."""
    real_parts.real_part("sshd")
    monkeypatch.setattr(openssh_login, "HAS_CONTROL_MASTER", False)
    (tmp_path / "gate").mkdir()
    with RealSshd(tmp_path) as server, RealSshd(tmp_path / "gate") as gate:
        config = gate.ssh_config(tmp_path / "config", "gate")
        server.ssh_config(config, "box", extra="ProxyJump gate")
        config.write_text(config.read_text().replace("Checking yes", "Checking ask"))
        server.known_hosts.write_text("")
        gate.known_hosts.write_text("")
        person = Person(trust=HostKeyDecision.YES)
        login = log_in_by_openssh(resolve_destination("box", config), prompter=person)
        login.close()
    assert person.keys == [
        f"[127.0.0.1]:{gate.port} ([127.0.0.1]:{gate.port})",
        f"box (127.0.0.1:{server.port})",
    ]
    assert person.asked == []


def test_what_ssh_is_said_to_say_is_not_pasted_into_a_shell(folder):
    """A server ends the connection with words that look like ssh's on a changed key."""
    evil = (
        "Received disconnect: WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\n"
        "Offending ED25519 key in x'; touch ${IFS}pwned; ':1\n"
    )
    there = Destination("10.0.0.1", 22, "ada", known_hosts_files=(folder / "known hosts",))
    for step in ("connect", "host key", "login"):
        told = error_from_stderr(there, evil, step, "ssh-ed25519 SHA256:abc", may_ask=True)
        assert "touch" not in told.advice
        assert isinstance(told, HostKeyProblem) is (step != "login")
    true = evil.replace("x'; touch ${IFS}pwned; '", str(folder / "known hosts"))
    told = error_from_stderr(there, true, "host key", "ssh-ed25519 SHA256:abc", may_ask=True)
    assert f"-f '{folder}/known hosts' -R 10.0.0.1" in told.advice


def test_names_of_methods_do_not_act_on_a_terminal(folder):
    """They stand in the sentence on why nobody was let in."""
    with Hostile(folder, allows="\x1b]0;owned\x07,gss\x1b[31mapi,hostbased") as server:
        with pytest.raises(LoginRefused) as caught:
            log_in_by_paramiko(server.there, prompter=Person())
        assert plain_text(caught.value) == str(caught.value)
        assert "hostbased" in str(caught.value)


# ------------------------------------------------------------- host keys, later on


def other_key(folder: Path) -> paramiko.Ed25519Key:
    return paramiko.Ed25519Key(filename=str(make_key(folder / "other_key")))


def exchange_again(transport: paramiko.Transport, key: paramiko.PKey) -> None:
    transport.server_key_dict = {key.get_name(): key}
    with contextlib.suppress(paramiko.SSHException, EOFError):
        transport.renegotiate_keys()


def test_another_host_key_before_the_login_ends_it(folder):
    """A second key exchange shows another key while the person reads the question."""
    with Hostile(folder, ("", "Password:")) as server:
        key = other_key(folder)
        person = Person("secret")
        person.before = lambda: exchange_again(server.transport, key)
        with pytest.raises(HostKeyProblem, match="showed another host key in a later key exchange"):
            log_in_by_paramiko(server.there, prompter=person)
        assert server.typed == []


def test_another_host_key_after_the_login_ends_it_and_the_same_key_does_not(folder):
    """A second key exchange shows another key in the middle of the work."""
    with logged_in(folder) as (server, login):
        exchange_again(server.transport, server.key)
        assert login.is_alive
        exchange_again(server.transport, other_key(folder))
        wait_for(lambda: not login.is_alive, what="the connection ends")
        with pytest.raises(Unreachable, match="is gone: the server showed another host key"):
            login.run("true")


# --------------------------------------------------------------- memory, and time


@pytest.mark.parametrize(
    ("number", "prompts", "sentence"),
    [
        (2**32 - 1, b"", "asks 4294967295 questions at once"),
        (MOST_PROMPTS + 1, b"\0\0\0\1x\0" * (MOST_PROMPTS + 1), "asks 33 questions at once"),
        (1, struct.pack(">I", 100_000) + b"x" * 100_001, "asks a question of 100000 characters"),
    ],
)
def test_more_questions_than_anybody_can_answer_are_a_refusal(folder, number, prompts, sentence):
    """A round names 2^32-1 prompts, or a prompt is a book."""
    with Hostile(folder) as server:
        message = raw(MSG_USERAUTH_INFO_REQUEST, b"", b"", b"", number)
        message.add_bytes(prompts)
        server.on_login = lambda transport: transport._send_message(message)
        server.in_the_end = AUTH_FAILED
        before, began = memory(), time.monotonic()
        person = Person()
        with pytest.raises(LoginRefused, match=sentence):
            log_in_by_paramiko(server.there, prompter=person)
        assert time.monotonic() - began < SOON
        assert memory() - before < 64 * MB
        assert person.asked == []


def test_answers_to_nothing_end_the_connection(folder):
    """While a person types, verdicts come without end."""
    with Hostile(folder, ("", "Password:")) as server:
        verdict = raw(MSG_USERAUTH_FAILURE, b"keyboard-interactive", False)
        person = Person("secret")
        person.before = lambda: send_all(
            server.transport, (verdict for _ in range(50 * MOST_UNREAD))
        )
        with pytest.raises(Unreachable, match="the server answers what it was not asked"):
            log_in_by_paramiko(server.there, prompter=person)


def test_after_the_login_nothing_is_kept_for_nobody(folder):
    """Questions, verdicts and banners go on for as long as the login lasts."""
    with logged_in(folder) as (server, login):
        door = login.live_transport.userauth
        for message in (
            raw(MSG_USERAUTH_BANNER, b"x" * 1000, b""),
            raw(MSG_USERAUTH_FAILURE, b"password", False),
            raw(MSG_USERAUTH_INFO_REQUEST, b"", b"", b"", 1, b"Password:", False),
            raw(52),
        ):
            send_all(server.transport, (message for _ in range(300)))
        assert login.responds_within(SOON)  # it has read all of that
        assert door._responses.qsize() == 0
        assert door.banner == ""


def test_banners_without_end_are_neither_kept_nor_waited_for(folder, monkeypatch):
    """The server goes on to greet, and never answers."""
    monkeypatch.setattr(authenticator, "AUTH_RESULT_WITHIN", 1.0)
    with Hostile(folder) as server:
        banner = raw(MSG_USERAUTH_BANNER, b"hello\x1b[2J\n" * 10_000, b"")

        def greet(transport: paramiko.Transport) -> None:
            send_all(transport, iter(lambda: banner, None))

        server.on_login = greet
        before, began = memory(), time.monotonic()
        with pytest.raises(Unreachable, match="during the step 'login'"):
            log_in_by_paramiko(server.there, prompter=Person())
        assert time.monotonic() - began < SOON
        assert memory() - before < 64 * MB


@pytest.mark.parametrize("kind", [cMSG_DEBUG, cMSG_IGNORE])
def test_idle_talk_without_end_is_not_waited_for(folder, monkeypatch, kind):
    """Messages that mean nothing come for ever."""
    monkeypatch.setattr(authenticator, "AUTH_RESULT_WITHIN", 1.0)
    with Hostile(folder) as server:
        talk = raw(kind[0], *((True,) if kind == cMSG_DEBUG else ()), b"x" * 30_000, b"")
        server.on_login = lambda transport: send_all(transport, iter(lambda: talk, None))
        before, began = memory(), time.monotonic()
        with pytest.raises(Unreachable, match="during the step 'login'"):
            log_in_by_paramiko(server.there, prompter=Person())
        assert time.monotonic() - began < SOON
        assert memory() - before < 64 * MB


@pytest.mark.parametrize("noise", [b"x" * 4096, b"a line\r\n" * 512], ids=["no line", "lines"])
def test_a_greeting_without_end_is_cut(folder, noise):
    """What should say SSH says anything else, as fast as it can."""
    sent = [0]

    def serve(connection: socket.socket) -> None:
        while True:
            sent[0] += connection.send(noise)

    with raw_server(serve) as port:
        there = Destination("127.0.0.1", port, "ada", connect_timeout=5.0)
        began = time.monotonic()
        with pytest.raises(Unreachable, match="ended the connection"):
            log_in_by_paramiko(there)
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("size", [2**32 - 4, 2**31 + 4, LARGEST_PACKET + 4100])
def test_a_packet_that_is_too_large_is_not_taken_in_before_any_key_is_looked_at(size):
    """A stranger names a packet of 4 GiB and sends it."""
    sent = [0]

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n" + struct.pack(">IB", size, 10) + bytes(3))
        while sent[0] < size:
            sent[0] += connection.send(bytes(65536))

    with raw_server(serve) as port:
        there = Destination("127.0.0.1", port, "ada", connect_timeout=5.0)
        before, began = memory(), time.monotonic()
        with pytest.raises(
            Unreachable, match=r"remoter ended the connection .* a packet of a size"
        ):
            log_in_by_paramiko(there)
        assert time.monotonic() - began < 4
        assert memory() - before < 32 * MB


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
@pytest.mark.parametrize("mac", ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"])
def test_a_packet_that_is_too_large_ends_a_login_with_any_cipher(folder, monkeypatch, cipher, mac):
    """The same, encrypted."""
    monkeypatch.setattr(ParamikoTransport, "_preferred_ciphers", (cipher,))
    monkeypatch.setattr(ParamikoTransport, "_preferred_macs", (mac,))
    with logged_in(folder) as (server, login):
        fine = raw(cMSG_IGNORE[0], bytes(LARGEST_PACKET - 1024))
        server.transport._send_user_message(fine)
        assert login.responds_within(SOON)
        server.transport._send_user_message(raw(cMSG_IGNORE[0], bytes(LARGEST_PACKET + 1024)))
        wait_for(lambda: not login.is_alive, what="the connection ends")
        with pytest.raises(Unreachable, match="a packet of a size that no packet has"):
            login.run("true")


def test_a_list_of_extensions_without_end_does_not_hold_a_thread(folder):
    """The server says that it names 2^32-1 extensions: reading nothing so often takes an hour."""
    with Hostile(folder, ("", "Password:")) as server:
        person = Person("secret")
        person.before = lambda: server.transport._send_user_message(
            raw(cMSG_EXT_INFO[0], 2**32 - 1)
        )
        with pytest.raises(Unreachable, match="the server names 4294967295 extensions"):
            log_in_by_paramiko(server.there, prompter=person)
        threads = [one for one in threading.enumerate() if one.name == "ssh-transport"]
        assert not threads


def flood(server: Hostile, kind: bytes, size: int) -> None:
    """Send to the channel that was opened last, whatever its window says."""
    wait_for(lambda: server.channels, what="a channel")
    numbers = {channel.chanid: channel for channel in server.transport._channels.values()}
    far = numbers[server.channels[-1]].remote_chanid
    fields = (1,) if kind == cMSG_CHANNEL_EXTENDED_DATA else ()
    message = raw(kind[0], far, *fields, bytes(32 * 1024))
    send_all(server.transport, (message for _ in range(size // (32 * 1024))))


def test_a_tunnel_whose_server_ignores_the_window_is_ended(folder):
    """Nobody reads from the tunnel, and the server sends on."""
    with logged_in(folder) as (server, login):
        tunnel = login.open_tunnel("127.0.0.1", 9)
        flood(server, cMSG_CHANNEL_DATA, 4 * WINDOW)
        wait_for(lambda: not tunnel.is_open, what="the tunnel ends")
        assert login.responds_within(SOON)  # it has read all of that
        assert tunnel.received <= WINDOW
        assert sum(map(len, tunnel._backlog)) <= WINDOW


def test_a_command_that_is_read_may_say_more_than_a_window(folder):
    """Nobody attacks: what is dealt with is given back, so more may come."""
    with logged_in(folder) as (server, login):
        running = RemoteCommand(login.live_transport)
        running.open()
        running.wait_open(SOON)
        running.start("anything", b"", time.monotonic() + SOON)
        wait_for(lambda: server.channels, what="the command")
        channels = server.transport._channels
        channel = next(each for each in channels.values() if each.chanid == server.channels[-1])
        channel.sendall(bytes(3 * WINDOW))
        channel.sendall_stderr(bytes(WINDOW))
        channel.send_exit_status(0)
        channel.close()
        ran = running.wait(time.monotonic() + SOON)
        assert (len(ran.stdout), len(ran.stderr), ran.status) == (3 * WINDOW, WINDOW, 0)


def test_a_line_that_is_looked_for_is_found_without_reading_all_again(folder):
    """A command there says much without the line, byte by byte: that must not cost minutes."""
    running = RemoteCommand(log_in_to_nothing())
    lines = b"noise\r" * 100_000 + b"MAR"
    began = time.monotonic()
    done: list[bytes] = []
    waiting = threading.Thread(
        target=lambda: done.append(running.wait_for_line(b"MARK", time.monotonic() + 60))
    )
    waiting.start()
    for place in range(0, len(lines), 200):
        running.data_received(lines[place : place + 200])
    running.data_received(b"K it\r\nmore")
    waiting.join(60)
    assert done == [b"MARK it"]
    assert time.monotonic() - began < 20


def log_in_to_nothing() -> Any:
    class Nothing:
        active = True

        def new_channel(self, _sink: object) -> Any:
            return type(
                "Silent", (), {"adjust_window": lambda *_: None, "close": lambda *_: None}
            )()

    return Nothing()


def test_answers_that_a_server_asks_for_and_does_not_read_do_not_pile_up(monkeypatch):
    """It asks again and again, and takes nothing in."""
    near, far = socket.socketpair()
    transport = ParamikoTransport(near)
    transport.active = True
    is_over = threading.Event()
    monkeypatch.setattr(transport, "_send_user_message", lambda _message: is_over.wait(SOON))
    for _ in range(3 * MOST_UNSENT):
        transport.send_nowait(paramiko.Message())
    assert transport._send_queue.qsize() <= MOST_UNSENT
    assert isinstance(transport.violation, ServerViolation)
    assert far.recv(1) == b""  # it is cut
    transport.active = False
    transport._send_queue = type(transport._send_queue)()
    is_over.set()
    transport._send_queue.put(None)
    far.close()
    transport.sock.close()


def test_what_ssh_passes_on_without_end_is_not_kept(tmp_path):
    """A server greets without a line's end, or with nothing but line ends."""
    program = (
        "import sys\n"
        "w = sys.stderr.write\n"
        "w('debug1: Server host key: ssh-ed25519 SHA256:abc\\n')\n"
        "w('debug1: SSH2_MSG_NEWKEYS received\\n')\n"
        "w('x' * (64 << 10) + 'debug1: kex: server->client cipher: evil')\n"
        "[w('x' * (1 << 20)) for _ in range(48)]\n"
        "w('\\n' * (1 << 20))\n"
        "w('debug1: Server host key: ssh-ed25519 SHA256:fake\\nPermission denied (x).\\n')\n"
    )
    entry = LoginProcess([sys.executable, "-c", program], {}, lambda _step: None)
    before = memory()
    entry.start()
    entry.wait(60, lambda: False, until_over=True)
    wait_for(lambda: entry.stderr.endswith("Permission denied (x).\n"), what="its last line")
    entry.close()
    assert memory() - before < 32 * MB
    assert len(entry.stderr) <= MOST_STDERR
    assert entry.host_key == "ssh-ed25519 SHA256:abc"
    assert entry.cipher == ""


# ------------------------------------------------------------ another user of this machine

EVES_MASTER = """
import contextlib, os, socket, struct, sys
def message(*words):
    return struct.pack(f">{1 + len(words)}I", 4 * len(words), *words)
place, said, how = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(place)
os.chmod(place, 0o777)
listener.listen()
heard = open(said, "wb", buffering=0)
print("ready", flush=True)
kept = []
while True:
    connection, _ = listener.accept()
    kept.append(connection)
    if how == "answers":
        with contextlib.suppress(OSError):
            connection.sendall(message(1, 4) + message(0x80000005, 1, 4711))
            while data := connection.recv(4096):
                heard.write(data)
"""


@pytest.fixture(scope="module")
def eve() -> Iterator[FarSide]:
    """Somebody else on this machine."""
    real_parts.real_part("root")
    with bare_user(own_name("eve")) as user:
        yield user


@contextlib.contextmanager
def master_of(user: FarSide, place: Path, how: str = "answers") -> Iterator[Path]:
    """Let a user listen at that socket; gives the file of what was heard."""
    heard = Path(f"{place}.heard")
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", EVES_MASTER, str(place), str(heard), how],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        **user.ids,
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield heard
        finally:
            process.kill()


def test_a_control_master_of_another_user_is_not_used(eve):
    """ControlPath leads into /tmp, and eve's own socket waits there for wishes."""
    with eve.folder("shared-") as shared:
        place = shared / "master"
        there = Destination("10.0.0.1", 22, "ada")
        there = replace(there, openssh=replace(there.openssh, control_path=str(place)))
        with master_of(eve, place) as heard:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(place))
                assert peer_uid(probe) == eve.ids["user"]
            assert not master_answers(place)
            assert living_master(there) is None
            with pytest.raises(ConnectionClosed):
                Mux(place, 2.0)
            assert heard.read_bytes() == b""


def test_our_own_end_is_ours():
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far:
        assert peer_uid(near) == os.geteuid()
    with socket.socket() as no_unix_socket:
        assert peer_uid(no_unix_socket) in (-1, 0xFFFFFFFF, os.geteuid())


def old(folder: Path) -> Path:
    os.utime(folder, (0, 0))
    return folder


@pytest.mark.timing
def test_old_folders_of_another_user_cost_a_login_nothing(eve, folder, monkeypatch):
    """Eve leaves twenty folders whose master says nothing, and one that is a link to ours."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    folder.chmod(0o1777)
    with contextlib.ExitStack() as stack:
        for number in range(20):
            one = folder / f"{openssh_login.PREFIX}{number}"
            one.mkdir()
            eve.give(one)
            stack.enter_context(master_of(eve, one / "m", "silent"))
            old(one)
        (folder / "mine").mkdir()
        (folder / "mine" / "file").touch()
        (folder / f"{openssh_login.PREFIX}link").symlink_to(old(folder / "mine"))
        (folder / f"{openssh_login.PREFIX}forsaken").mkdir()
        old(folder / f"{openssh_login.PREFIX}forsaken")
        (folder / f"{openssh_login.PREFIX}new").mkdir()
        began = time.monotonic()
        made = openssh_login._new_private_folder()
        assert time.monotonic() - began < 0.5
        assert made.stat().st_mode & 0o777 == 0o700
    left = {path.name.removeprefix(openssh_login.PREFIX) for path in folder.iterdir()}
    assert left == {
        *map(str, range(20)),
        "mine",
        "link",
        "new",
        made.name[len(openssh_login.PREFIX) :],
    }
    assert (folder / "mine" / "file").exists()


def test_old_folders_of_our_own_cost_a_login_little(folder, monkeypatch):
    """Twenty masters of ours are hung: they are not waited for one after the other."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with contextlib.ExitStack() as stack:
        for number in range(20):
            one = folder / f"{openssh_login.PREFIX}{number}"
            one.mkdir()
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.bind(str(one / "m"))
            silent.listen()
            old(one)
        began = time.monotonic()
        openssh_login._new_private_folder()
        assert time.monotonic() - began < openssh_login.CLEAN_FOR + 2 * openssh_login.STALE_WITHIN


# ------------------------------------------------------- anything at all, said by a server

ANYTHING = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = some.sampled_from(
    [
        "debug1: Server host key: ssh-ed25519 SHA256:abc",
        "debug1: SSH2_MSG_NEWKEYS received",
        "debug1: Local version string SSH-2.0-OpenSSH_9.2p1",
        "debug1: kex: server->client cipher: ",
        "debug1: expecting SSH2_MSG_KEX",
        "debug1: SSH2_MSG_KEX_ECDH_REPLY received",
        "Authenticated to ",
        "Permission denied (",
        "no matching ",
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "Offending ED25519 key in ",
        "could not resolve hostname ",
        "Host key verification failed",
        "[box] ",
        OWN_TAG,
    ]
)
SAID = some.lists(some.one_of(some.text(max_size=40), WORDS), max_size=12).map("".join)


@ANYTHING
@given(SAID, some.integers(min_value=30, max_value=200))
def test_no_words_of_a_server_begin_a_row(text, columns):
    """Of whatever it says, each row on the terminal begins with its name."""
    assert "\n" not in to_one_line(text)
    assert to_one_line(text).isprintable()
    for line in quote_server("box", text).splitlines():
        assert line.startswith(server_prefix("box"))
        for row in terminal._wrap(
            line.removeprefix(server_prefix("box")), server_prefix("box"), columns
        ):
            assert row.startswith("[box says] ")
            assert len(row) <= max(columns, len("[box says] ") + terminal.LEAST_TEXT_WIDTH)


@ANYTHING
@given(some.binary(max_size=200), some.integers(min_value=0, max_value=40))
def test_any_round_is_questions_or_an_offence(data, number):
    body = b"".join(struct.pack(">I", len(data)) + data for _ in range(3))
    for message in (data, body + struct.pack(">I", number) + data):
        heard = _parse_info_request(paramiko.Message(message))
        assert isinstance(heard, InfoRequest | ServerViolation)
        if isinstance(heard, InfoRequest):
            assert len(heard.prompts) <= MOST_PROMPTS
            assert all(len(prompt.text) <= LONGEST_TEXT for prompt in heard.prompts)
            assert all(plain_text(prompt.text) == prompt.text for prompt in heard.prompts)


@ANYTHING
@given(some.lists(SAID, max_size=20))
def test_whatever_ssh_says_is_learned_from_only_until_the_login(lines):
    entry = LoginProcess([], {}, lambda _step: None)
    for line in lines:
        was, key, cipher = entry.step, entry.host_key, entry.cipher
        entry._on_line(line)
        assert plain_text(entry.host_key) == entry.host_key
        assert plain_text(entry.cipher) == entry.cipher
        if was == "login":
            assert (entry.step, entry.host_key, entry.cipher) == ("login", key, cipher)


@ANYTHING
@given(SAID, some.sampled_from(["connect", "host key", "login"]), some.booleans())
def test_whatever_ssh_says_in_the_end_is_a_sentence(text, step, may_ask):
    there = Destination("10.0.0.1", 22, "ada")
    error = error_from_stderr(there, text, step, "", may_ask=may_ask)
    assert isinstance(error, RemoterError)
    assert plain_text(error) == str(error)


def test_a_sentence_is_found_soon_in_what_goes_on_and_on():
    """Patterns that look on from each place would take hours."""
    began = time.monotonic()
    for text in ("permission denied (", "no matching ", "Offending a key in :", "closed \n"):
        error_from_stderr(Destination("box", 22, "ada"), text * 20_000, "connect", "", may_ask=True)
    assert time.monotonic() - began < 5


@ANYTHING
@given(some.binary(max_size=60), some.booleans())
def test_whatever_a_master_answers_is_understood_or_the_end(data, is_framed):
    near, far = socket.socketpair()
    mux = Mux.__new__(Mux)
    mux._sock, mux._seconds = near, 1.0
    with near, far:
        far.sendall(struct.pack(">I", len(data)) + data if is_framed else data)
        far.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionClosed, MuxError, ResponseTimeout):
            assert mux.process_id() >= 0


class NeverSatisfied:
    """A server that takes each proof, and always wants another one; it asks nobody."""

    def __init__(self) -> None:
        self.attempts = 0

    def wait(self, _seconds: float) -> AuthResult:
        self.attempts += 1
        return AuthResult(is_success=False, methods_left=("keyboard-interactive",), is_partial=True)

    def do_nothing(self, *_: object) -> None: ...

    banner = ""
    request_service = send_none = send_keyboard_interactive = do_nothing


def test_a_server_that_always_wants_more_is_left(tmp_path: Path) -> None:
    """Its "partly right" would go on for ever, and hold up all who want to log in there."""
    door = NeverSatisfied()
    there = Destination("box", 22, "ada", identity_files=(tmp_path / "no key",))
    there = replace(there, identities_only=True, identity_agent="none")
    transport: Any = SimpleNamespace(userauth=door, software="OpenSSH_9.2")
    asked: Any = SimpleNamespace(ask=lambda *_: ["an answer"])
    with pytest.raises(LoginRefused, match="again and again"):
        Authenticator(there, transport, asked, HostCredentials()).run()
    assert door.attempts < 100
