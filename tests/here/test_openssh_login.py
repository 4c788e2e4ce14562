"""A login by the system's ssh does what any login does, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import pytest

from remoter_kernel.errors import (
    BadConfiguration,
    ForwardingRefused,
    HostKeyProblem,
    LoginRefused,
    RemoteLacks,
    Unreachable,
)
from remoter_kernel.local import private_sockets
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.login import ssh_login as login_module
from remoter_kernel.local.login.log_in import log_in_to
from remoter_kernel.local.login.login import CommandEnded, UnknownHostKey
from remoter_kernel.local.login.openssh import openssh_login
from remoter_kernel.local.login.openssh.openssh_login import OpenSSHLogin, log_in_by_openssh
from remoter_kernel.local.login.openssh.stream_channel import LINGER
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.prompts import HostKeyDecision, NotAnswered, Prompt
from remoter_kernel.local.login.ssh_config import resolve_destination
from remoter_kernel.local.login.ssh_login import SSHLogin
from tests import real_parts
from tests.real_jupyter import wait_for
from tests.real_sshd import RealSshd, free_port, make_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MUCH = 20_000_000  # bytes
SOON = 5.0  # seconds
MASTER, EACH = "openssh", "openssh, each its own"
KINDS = ("paramiko", MASTER, EACH)
PHRASE = "a secret phrase"


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Real ends on both sides, and pytest's own folder where it always is."""
    tmp_path_factory.getbasetemp()
    real_parts.real_part("sshd")
    real_parts.real_part("ssh")


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary files of our own; after a test no file, process or thread is left of it."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="room-"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    threads, descriptors = set(threading.enumerate()), streams()
    yield folder
    wait_for(lambda: not list(folder.iterdir()), what="its folder goes", seconds=SOON)
    wait_for(lambda: not processes_about(folder), what="its processes end", seconds=SOON)
    wait_for(lambda: not set(threading.enumerate()) - threads, what="its threads end", seconds=SOON)
    wait_for(lambda: not streams() - descriptors, what="its streams close", seconds=SOON)
    folder.rmdir()


def streams() -> set[str]:
    """Name the sockets and pipes of this process."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith(("socket:", "pipe:"))}


def processes_about(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSshd]:
    """One server for most of these tests."""
    with RealSshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture
def config(server: RealSshd, tmp_path: Path) -> Path:
    """An ssh_config that knows it."""
    return server.ssh_config(tmp_path / "ssh_config", "real")


def enter(kind: str, config: Path, monkeypatch: pytest.MonkeyPatch, **options) -> SSHLogin:
    """Log in by one of the ways there are."""
    if kind == "paramiko":
        return log_in_by_paramiko(resolve_destination("real", config), **options)
    monkeypatch.setattr(openssh_login, "HAS_CONTROL_MASTER", kind == MASTER)
    return log_in_by_openssh(resolve_destination("real", config), **options)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def login(kind: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SSHLogin]:
    login = enter(kind, config, monkeypatch)
    yield login
    login.close()
    login.close()


@pytest.fixture
def master(config: Path) -> Iterator[SSHLogin]:
    """A login by a master of ours."""
    login = log_in_by_openssh(resolve_destination("real", config))
    yield login
    login.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP server on the far side."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(SOON)
        yield one


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def take(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(30)
    return connection


def connect(tunnel) -> socket.socket:
    near = private_sockets.connect_to_listener(tunnel.address, 30)
    near.settimeout(30)
    return near


def ends(connection: socket.socket) -> bool:
    """Say whether a connection ends soon."""
    connection.settimeout(SOON)
    try:
        while connection.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def exchange(near: socket.socket, there: socket.socket, size: int = MUCH) -> None:
    """Send that many bytes both ways at once; they must arrive whole."""
    sent = {name: os.urandom(size) for name in ("up", "down")}
    found = {}

    def read(name: str, end: socket.socket) -> None:
        digest, left = hashlib.sha256(), size
        while left and (data := end.recv(min(left, 1 << 16))):
            digest.update(data)
            left -= len(data)
        found[name] = digest.digest()

    jobs = [
        threading.Thread(target=near.sendall, args=(sent["up"],)),
        threading.Thread(target=there.sendall, args=(sent["down"],)),
        threading.Thread(target=read, args=("down", near)),
        threading.Thread(target=read, args=("up", there)),
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert found == {name: hashlib.sha256(data).digest() for name, data in sent.items()}


# ------------------------------------------------------------------ what a login is for


def test_a_login_says_what_it_is(kind, login, server):
    assert login.is_alive
    assert (login.host, login.user) == ("127.0.0.1", server.user)
    assert (login.transport, login.why_transport) == (kind.partition(",")[0], "")
    assert login.cipher.partition("@")[0] in ("aes128-gcm", "chacha20-poly1305")
    listed = subprocess.run(
        ["ssh-keygen", "-lf", f"{server.host_key()}.pub"],
        capture_output=True,
        text=True,
        check=True,
    )
    name, shown = login.host_key.split()
    assert name == "ssh-ed25519"
    assert shown in listed.stdout
    assert set(login.seconds) == {"connect", "host key", "login"}
    assert 0 < login.round_trip < 1


def test_a_command_gives_its_output_its_complaints_and_its_status(login, server):
    ran = login.run("id -un; cat; echo oops >&2; exit 3", b"input")
    assert ran.stdout.decode() == f"{server.user}\ninput"
    assert (ran.stderr, ran.status) == (b"oops\n", 3)
    assert login.run("kill -9 $$").status != 0
    assert login.run("exit 255").status == 255


def test_much_input_and_much_output(login):
    data = os.urandom(MUCH)
    assert login.run("cat", data, seconds=60).stdout == data
    assert len(login.run(f"head -c {MUCH} /dev/zero >&2").stderr) == MUCH
    assert login.run("exit 5", data).status == 5


def test_a_process_left_behind_does_not_hold_up_its_command(config, monkeypatch):
    for kind in ("paramiko", MASTER):  # one ssh for each command waits as `ssh` does
        login = enter(kind, config, monkeypatch)
        began = time.monotonic()
        assert login.run("sleep 8 & echo $!").stdout.strip().isdigit()
        assert time.monotonic() - began < 4
        login.close()


def test_a_line_is_given_while_the_command_goes_on(login, tmp_path):
    go, done = tmp_path / "go", tmp_path / "done"
    command = f"echo noise; cat; until [ -e {go} ]; do sleep 0.05; done; echo MARK 2; touch {done}"
    assert login.run_until_line(command, b"MARK 1\n", b"MARK", 10) == b"MARK 1"
    go.touch()
    wait_for(done.exists, what="the command goes on", seconds=SOON)


def test_a_command_that_ends_without_its_line_says_how(login):
    with pytest.raises(CommandEnded) as caught:
        login.run_until_line("echo noise; echo sorry >&2; printf MARK; exit 4", b"", b"MARK", 10)
    ended = caught.value
    assert (ended.stdout, ended.stderr, ended.status) == (b"noise\nMARK", b"sorry\n", 4)


def test_a_command_has_a_deadline(login):
    with pytest.raises(Unreachable, match=r"within 0\.5 s"):
        login.run("sleep 5", seconds=0.5)
    assert login.run("echo still here").stdout == b"still here\n"


def test_many_commands_at_once_on_one_login(login):
    found: dict[int, bytes] = {}

    def one(number: int) -> None:
        found[number] = login.run(f"echo {number}; head -c 300000 /dev/zero").stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {n: b"%d\n" % n + bytes(300000) for n in range(8)}


def test_a_server_that_opens_no_sessions_is_said(tmp_path, monkeypatch):
    with RealSshd(tmp_path, extra_config="MaxSessions 0") as sshd:
        config = sshd.ssh_config(tmp_path / "config", "real")
        for kind in ("paramiko", MASTER):
            login = enter(kind, config, monkeypatch)
            with pytest.raises(RemoteLacks, match="opens no"):
                login.run("true")
            with pytest.raises(RemoteLacks, match="opens no"):
                login.open_pipe("echo HELLO", b"HELLO")
            login.close()


# ------------------------------------------------------------------ tunnels


def test_two_tunnels_carry_much_both_ways_at_once(login, listener):
    tunnels = [login.open_tunnel("127.0.0.1", port_of(listener)) for _ in range(2)]
    for tunnel in tunnels:  # both are open before anything passes
        with connect(tunnel) as near, take(listener) as there:
            exchange(near, there)
            assert (tunnel.sent, tunnel.received) == (MUCH, MUCH)
        tunnel.close()


def test_a_tunnel_takes_exactly_one_connection(login, listener):
    tunnel = login.open_tunnel("127.0.0.1", port_of(listener))
    with connect(tunnel) as near, take(listener) as there:
        there.sendall(b"greeting")
        assert near.recv(100) == b"greeting"
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            connect(tunnel)
    tunnel.close()


def test_what_one_side_closes_ends_on_the_other_after_its_last_word(login, listener):
    for closes_first in ("near", "there"):
        tunnel = login.open_tunnel("127.0.0.1", port_of(listener))
        near, there = connect(tunnel), take(listener)
        first, other = (near, there) if closes_first == "near" else (there, near)
        began = time.monotonic()
        first.sendall(b"last words")
        first.close()
        assert other.recv(100) == b"last words"
        assert ends(other)
        assert time.monotonic() - began < LINGER
        other.close()
        wait_for(lambda tunnel=tunnel: not tunnel.is_open, what="the tunnel ends", seconds=SOON)
        tunnel.close()


def test_closing_a_tunnel_ends_both_sides(login, listener):
    tunnel = login.open_tunnel("127.0.0.1", port_of(listener))
    with connect(tunnel) as near, take(listener) as there:
        tunnel.close()
        assert ends(near)
        assert ends(there)
    assert login.run("echo fine").stdout == b"fine\n"


def test_nothing_listening_there_is_said_when_the_tunnel_is_opened(login):
    port = free_port()
    with pytest.raises(RemoteLacks, match=f"nothing listens at 127.0.0.1:{port}") as caught:
        login.open_tunnel("127.0.0.1", port)
    assert not isinstance(caught.value, ForwardingRefused)
    assert login.run("echo fine").stdout == b"fine\n"


def test_where_forwarding_is_forbidden_a_pipe_passes(kind, tmp_path, monkeypatch):
    with RealSshd(tmp_path, extra_config="AllowTcpForwarding no") as sshd:
        login = enter(kind, sshd.ssh_config(tmp_path / "config", "real"), monkeypatch)
        try:
            with pytest.raises(ForwardingRefused, match="forbids TCP forwarding"):
                login.open_tunnel("127.0.0.1", sshd.port)
            pipe = login.open_pipe("echo HELLO; cat", b"HELLO")
            with connect(pipe) as near:
                near.sendall(b"and back")
                assert near.recv(100) == b"and back"
        finally:
            login.close()


@pytest.mark.parametrize("how", ["cut here", "closed here", "killed there"])
def test_when_the_login_ends_so_does_each_tunnel(kind, how, tmp_path, listener, monkeypatch):
    with RealSshd(tmp_path) as sshd:
        login = enter(kind, sshd.ssh_config(tmp_path / "config", "real"), monkeypatch)
        tunnel = login.open_tunnel("127.0.0.1", port_of(listener))
        pipe = login.open_pipe("echo HELLO; cat", b"HELLO")
        with connect(tunnel) as near, take(listener) as there, connect(pipe) as piped:
            near.sendall(b"x")
            assert there.recv(1) == b"x"
            how_to = {"cut here": login.abort, "closed here": login.close}
            how_to.get(how, sshd.cut_all)()
            for end in (near, there, piped):
                assert ends(end)
        if kind != EACH:
            wait_for(lambda: not login.is_alive, what="it is known", seconds=SOON)
            with pytest.raises(Unreachable, match="is gone"):
                login.run("true")
        login.close()


def test_a_cut_in_the_middle_of_a_command_is_said_at_once(tmp_path, monkeypatch):
    with RealSshd(tmp_path) as sshd:
        config = sshd.ssh_config(tmp_path / "config", "real")
        for kind in ("paramiko", MASTER):
            for cut in ("there", "here"):
                login = enter(kind, config, monkeypatch)
                alarm = threading.Timer(0.3, sshd.cut_all if cut == "there" else login.abort)
                alarm.start()
                began = time.monotonic()
                with pytest.raises(Unreachable, match="is gone"):
                    login.run("sleep 20", seconds=20)
                assert time.monotonic() - began < 3
                alarm.join()
                login.close()


# ------------------------------------------------------------------ pipes


def test_a_pipe_begins_after_its_greeting_whatever_was_said_before(login):
    noise = "printf 'Welcome\\r\\nHELLO you\\n no HELLO\\n'; head -c 200000 /dev/zero; echo"
    pipe = login.open_pipe(f"{noise}; echo aside >&2; printf 'HELLO\\nfirst'; cat", b"HELLO")
    with connect(pipe) as near:
        assert near.recv(5) == b"first"
        near.sendall(b" second")
        assert near.recv(7) == b" second"
    wait_for(lambda: not pipe.is_open, what="the pipe ends", seconds=SOON)


def test_a_pipe_waits_for_a_login_shell_as_long_as_any_command(login, monkeypatch):
    """A channel is there at once or never; what a shell's start files do takes its time."""
    monkeypatch.setattr(login_module, "CHANNEL_WITHIN", 0.5)
    pipe = login.open_pipe("sleep 1; echo HELLO; cat", b"HELLO")
    with connect(pipe) as near:
        near.sendall(b"there")
        assert near.recv(5) == b"there"


def test_a_pipe_carries_much_both_ways_at_once(login):
    pipe = login.open_pipe("echo HELLO; exec cat", b"HELLO")
    with connect(pipe) as near:
        data, found = os.urandom(MUCH), bytearray()
        sending = threading.Thread(target=near.sendall, args=(data,))
        sending.start()
        while len(found) < MUCH and (more := near.recv(1 << 16)):
            found += more
        sending.join(30)
        assert bytes(found) == data
    pipe.close()
    assert (pipe.sent, pipe.received) == (MUCH, MUCH)


def test_when_the_command_of_a_pipe_ends_so_does_the_pipe(login):
    pipe = login.open_pipe("echo HELLO; read line; echo bye", b"HELLO")
    with connect(pipe) as near:
        near.sendall(b"go\n")
        assert near.recv(100) == b"bye\n"
        assert ends(near)


def test_a_pipe_without_its_greeting_says_how_its_command_ended(login):
    with pytest.raises(CommandEnded, match="status 3: no such thing"):
        login.open_pipe("echo noise; echo 'no such thing' >&2; exit 3", b"HELLO")
    assert login.run("echo fine").stdout == b"fine\n"


# ------------------------------------------------------------------ host keys and questions


class Person:
    """Somebody who answers."""

    def __init__(
        self, trust: HostKeyDecision = HostKeyDecision.YES, answers: Sequence[str] = ()
    ) -> None:
        self.trust = trust
        self.answers = list(answers)
        self.asked: list[str] = []

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        self.asked.append(f"{host}: {kind} {fingerprint}")
        return self.trust

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        self.asked += [f"{instruction}{prompt.text}" for prompt in prompts]
        if not self.answers:
            raise NotAnswered(f"{host} asked a question that was not answered.")
        return [self.answers.pop(0) for _ in prompts]


@pytest.mark.parametrize("trust", list(HostKeyDecision))
def test_an_unknown_host_is_asked_about(kind, trust, server, config, monkeypatch):
    line = server.known_hosts.read_text()
    server.known_hosts.write_text("")
    try:
        with pytest.raises(UnknownHostKey, match="not known here: ssh-ed25519 SHA256:"):
            enter(kind, config, monkeypatch)
        person = Person(trust)
        with contextlib.suppress(UnknownHostKey):
            login = enter(kind, config, monkeypatch, prompter=person)
            assert login.run("echo in").stdout == b"in\n"
            login.close()
            assert trust is not HostKeyDecision.NO
        assert server.known_hosts.read_text() == (line if trust is HostKeyDecision.YES else "")
        (asked,) = person.asked
        label, key = asked.split(": ")
        assert label == f"real (127.0.0.1:{server.port})"
        assert key.startswith("ssh-ed25519 SHA256:")
    finally:
        server.known_hosts.write_text(line)


def test_a_changed_host_key_is_refused_and_nobody_is_asked(kind, server, config, monkeypatch):
    line = server.known_hosts.read_text()
    other = make_key(config.parent / "other").with_suffix(".pub").read_text()
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}")
    person = Person()
    try:
        with pytest.raises(HostKeyProblem, match=rf"{server.known_hosts}, line 1"):
            enter(kind, config, monkeypatch, prompter=person)
        server.known_hosts.write_text(f"@revoked {line}")
        with pytest.raises(HostKeyProblem, match="revoked"):
            enter(kind, config, monkeypatch, prompter=person)
    finally:
        server.known_hosts.write_text(line)
    assert not person.asked


def named_key(config: Path, key: Path) -> Path:
    """Show this key instead of the right one."""
    text = config.read_text().splitlines()
    config.write_text(
        "\n".join(f"    IdentityFile {key}" if "IdentityFile" in line else line for line in text)
    )
    return config


def test_a_wrong_key_is_a_sentence(kind, config, tmp_path, monkeypatch):
    named_key(config, make_key(tmp_path / "wrong"))
    with pytest.raises(LoginRefused) as caught:
        enter(kind, config, monkeypatch)
    assert "ssh-copy-id" in caught.value.advice
    assert "agent" in caught.value.advice


@pytest.fixture
def locked(server: RealSshd, config: Path, tmp_path: Path) -> Iterator[Path]:
    """The only key is one with a passphrase."""
    key = make_key(tmp_path / "locked", passphrase=PHRASE)
    server.allow(key.with_suffix(".pub").read_text())
    yield named_key(config, key)
    server.allow(server.client_key.with_suffix(".pub").read_text())


@pytest.mark.parametrize("kind", [MASTER, EACH])
def test_a_passphrase_is_asked_for_and_stays_in_memory(kind, locked, room, monkeypatch):
    seen: list[str] = []

    class Watching(Person):
        def ask(self, host, prompts, instruction=""):
            seen.extend(" ".join(one.cmdline()) for one in processes_about(room))
            return super().ask(host, prompts, instruction)

    person = Watching(answers=[PHRASE] * 3)
    login = enter(kind, locked, monkeypatch, prompter=person)
    assert login.run("echo in").stdout == b"in\n"
    where = locked.parent / "locked"
    asked = f"remoter, on this machine: Enter passphrase for key '{where}' (it is not sent):"
    assert person.asked[0] == asked
    assert isinstance(login, OpenSSHLogin)
    assert PHRASE not in " ".join([*seen, repr(login), login._process.stderr])
    files = [file for file in room.rglob("*") if file.is_file()]
    assert not [file for file in files if PHRASE in file.read_text()]
    login.close()


@pytest.mark.parametrize("kind", [MASTER, EACH])
def test_a_wrong_answer_is_said_and_asked_for_again(kind, locked, monkeypatch):
    person = Person(answers=["wrong", PHRASE])
    enter(kind, locked, monkeypatch, prompter=person).close()
    assert person.asked[1].startswith("That was not accepted.")


@pytest.mark.parametrize("kind", [MASTER, EACH])
def test_a_question_that_is_not_answered_ends_the_login_at_once(kind, locked, monkeypatch):
    began = time.monotonic()
    with pytest.raises(NotAnswered):
        enter(kind, locked, monkeypatch, prompter=Person())
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("kind", [MASTER, EACH])
def test_where_nobody_can_be_asked_nothing_is(kind, locked, monkeypatch):
    with pytest.raises(LoginRefused) as caught:
        enter(kind, locked, monkeypatch)
    for way in ("key", "agent", "Control"):
        assert way in caught.value.advice


# ------------------------------------------------------------------ on the way there


def test_what_is_in_the_way_is_a_sentence(config, tmp_path, monkeypatch):
    text = config.read_text()
    port = free_port()
    hopeless = {
        f"Host real\n HostName 127.0.0.1\n Port {port}\n": f"refuses connections at port {port}",
        "Host real\n HostName no-such-host.invalid\n": "no-such-host.invalid does not resolve",
        "Host real\n ProxyCommand false\n": "ended the connection during the step 'connect'",
        "Host real\n ProxyCommand sh -c 'echo the token is too old >&2; exit 3'\n": (
            'the ProxyCommand of real gave no connection: "the token is too old"'
        ),
        "Host real\n HostName 127.0.0.1\n Port 1\n ProxyJump jump\n"
        + text.replace("Host real", "Host jump"): "cannot be reached from its jump host",
    }
    for number, (words, sentence) in enumerate(hopeless.items()):
        file = tmp_path / f"config{number}"
        file.write_text(words)
        with pytest.raises(Unreachable, match=sentence):
            enter(MASTER, file, monkeypatch)


def test_a_server_that_falls_silent_is_left_in_time(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = tmp_path / "config"
        where = f" HostName 127.0.0.1\n Port {port_of(silent)}\n ConnectTimeout 1\n"
        file.write_text(f"Host real\n{where}")
        began = time.monotonic()
        with pytest.raises(Unreachable, match="did not answer within 1 s"):
            enter(MASTER, file, monkeypatch)
        assert time.monotonic() - began < 4


def test_a_jump_host_is_passed_through(server, config, tmp_path, listener):
    (tmp_path / "one").mkdir()
    with RealSshd(tmp_path / "one") as one:
        one.ssh_config(config, "one")
        server.ssh_config(config, "far", extra="ProxyJump one")
        login = log_in_by_openssh(resolve_destination("far", config))
        assert login.run("echo $SSH_CONNECTION").stdout.split()[-1] == b"%d" % server.port
        tunnel = login.open_tunnel("127.0.0.1", port_of(listener))
        with connect(tunnel) as near, take(listener) as there:
            exchange(near, there, 1_000_000)
            assert one.logins()
            one.cut_all()
            assert ends(near)
        login.close()
        one.known_hosts.write_text("")
        with pytest.raises(UnknownHostKey, match=f"of one .*{one.port}"):
            log_in_by_openssh(resolve_destination("far", config))
    with pytest.raises(Unreachable, match=r"one .* refuses connections"):
        log_in_by_openssh(resolve_destination("far", config))


def test_a_jump_host_that_forbids_forwarding_says_so(server, config, tmp_path):
    with RealSshd(tmp_path, extra_config="AllowTcpForwarding no") as one:
        one.ssh_config(config, "one")
        server.ssh_config(config, "far", extra="ProxyJump one")
        with pytest.raises(ForwardingRefused, match="jump host before far"):
            log_in_by_openssh(resolve_destination("far", config))


def test_what_a_config_says_for_other_uses_does_not_come_between(server, tmp_path, monkeypatch):
    touched = tmp_path / "touched"
    extra = (
        "RemoteCommand echo not this\nRequestTTY force\nPermitLocalCommand yes\n"
        f"LocalCommand touch {touched}\nForkAfterAuthentication yes\nStdinNull yes\n"
        f"LocalForward {free_port()} 127.0.0.1:1\nForwardAgent yes\nLogLevel QUIET\n"
        "UpdateHostKeys yes\nStrictHostKeyChecking no"
    )
    config = server.ssh_config(tmp_path / "config", "real", extra=extra)
    for kind in (MASTER, EACH):
        login = enter(kind, config, monkeypatch)
        assert login.run("cat", b"this").stdout == b"this"
        login.close()
    assert not touched.exists()


def test_without_an_ssh_that_is_said(config, monkeypatch, tmp_path):
    where = resolve_destination("real", config)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadConfiguration, match="ssh cannot be run"):
        log_in_by_openssh(replace(where, environment=dict(os.environ)))


def test_a_master_of_ours_ends_when_we_are_killed(config, room):
    code = (
        "import os, sys, tempfile\n"
        "from pathlib import Path\n"
        "from remoter_kernel.local.login.openssh import openssh_argv\n"
        "from remoter_kernel.local.login.ssh_config import resolve_destination\n"
        "from remoter_kernel.local.login.openssh.openssh_login import log_in_by_openssh\n"
        "openssh_argv.MASTER_PERSISTS = 1\n"
        "tempfile.tempdir = sys.argv[2]\n"
        "login = log_in_by_openssh(resolve_destination('real', Path(sys.argv[1])))\n"
        "print(login._transport._process_id, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(config), str(room)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    wait_for(lambda: not psutil.pid_exists(int(ran.stdout)), what="the master ends", seconds=10)
    (left,) = room.iterdir()
    with socket.socket(socket.AF_UNIX) as dead:  # as a master leaves it that is killed, too
        dead.bind(str(left / "m"))
    living = log_in_by_openssh(resolve_destination("real", config))
    for folder in room.iterdir():
        os.utime(folder, (0, 0))
    log_in_by_openssh(resolve_destination("real", config)).close()  # sweeps
    assert list(room.iterdir()) == [living._folder]
    assert living.run("echo fine").stdout == b"fine\n"
    living.close()


# ------------------------------------------------------------------ which transport, and why


def remote(config: Path, transport: Literal["auto", "paramiko", "openssh"] = "auto") -> Remote:
    return Remote(name="box", host="real", ssh_config=config, transport=transport)


def test_a_control_master_is_used_and_survives(server, tmp_path, listener, room):
    place = room / "own"
    config = server.ssh_config(tmp_path / "config", "real", extra=f"ControlPath {place}")
    with contextlib.closing(log_in_to(remote(config))) as login:
        assert login.transport == "paramiko"  # nobody listens there yet
    subprocess.run(
        ["ssh", "-F", config, "-M", "-N", "-f", "real"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        before = len(server.logins())
        for end in (SSHLogin.close, SSHLogin.abort):
            login = log_in_to(remote(config))
            assert (login.transport, login.why_transport) == (
                "openssh",
                "your ControlMaster for it is logged in",
            )
            assert login.run("cat", b"x" * MUCH).stdout == b"x" * MUCH
            tunnel = login.open_tunnel("127.0.0.1", port_of(listener))
            with pytest.raises(RemoteLacks, match="nothing listens"):
                login.open_tunnel("127.0.0.1", free_port())
            assert len(server.logins()) <= before + 2  # what a session needs, and no login
            with connect(tunnel) as near, take(listener) as there:
                end(login)
                assert ends(near)
                assert ends(there)
            assert not login.is_alive
            login.close()
        check = subprocess.run(
            ["ssh", "-F", config, "-O", "check", "real"], check=False, capture_output=True
        )
        assert check.returncode == 0
    finally:
        subprocess.run(["ssh", "-F", config, "-O", "exit", "real"], check=True, capture_output=True)


def test_when_a_control_master_ends_the_login_is_over(server, tmp_path, room):
    config = server.ssh_config(tmp_path / "config", "real", extra=f"ControlPath {room / 'own'}")
    master = subprocess.Popen(["ssh", "-F", config, "-M", "-N", "real"], stdin=subprocess.DEVNULL)
    wait_for((room / "own").exists, what="the master listens", seconds=SOON)
    with contextlib.closing(log_in_to(remote(config, "openssh"))) as login:
        threading.Timer(0.3, master.terminate).start()
        with pytest.raises(Unreachable, match="is gone"):
            login.run("sleep 20", seconds=20)
    master.wait()


def test_a_host_with_algorithms_that_only_openssh_has_is_reached(tmp_path):
    only = "KexAlgorithms sntrup761x25519-sha512@openssh.com\nCiphers chacha20-poly1305@openssh.com"
    with RealSshd(tmp_path, extra_config=only) as sshd:
        config = sshd.ssh_config(tmp_path / "config", "real")
        steps: list[str] = []
        with contextlib.closing(log_in_to(remote(config), on_step=steps.append)) as login:
            assert login.transport == "openssh"
            assert login.why_transport == "paramiko has no algorithm in common with the host"
            assert login.cipher == "chacha20-poly1305@openssh.com"
        assert steps == ["connect", "connect", "host key", "login"]
        with pytest.raises(Unreachable, match="nothing in common") as caught:
            log_in_to(remote(config, "paramiko"))
        assert "openssh" in caught.value.advice


def test_a_host_that_a_certificate_authority_vouches_for_is_reached(tmp_path):
    authority = make_key(tmp_path / "authority")
    with RealSshd(tmp_path) as sshd:
        words = ["ssh-keygen", "-q", "-s", str(authority), "-I", "box", "-h", "-n", "127.0.0.1"]
        subprocess.run([*words, f"{sshd.host_key()}.pub"], check=True)
        sshd.stop_listening()
        sshd.extra_config = f"HostCertificate {sshd.host_key()}-cert.pub"
        sshd.start()
        public = authority.with_suffix(".pub").read_text()
        sshd.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{sshd.port} {public}")
        config = sshd.ssh_config(tmp_path / "config", "real")
        with contextlib.closing(log_in_to(remote(config))) as login:
            assert login.transport == "openssh"
            assert "certificate authority" in login.why_transport
            assert login.run("echo in").stdout == b"in\n"
        with pytest.raises(UnknownHostKey):
            log_in_to(remote(config, "paramiko"))


def test_keys_on_security_keys_alone_are_for_openssh(server, config, tmp_path, monkeypatch):
    from remoter_kernel.local.login import log_in as here

    key = tmp_path / "token"
    key.write_text("only a handle")
    named_key(config, key)
    public = key.with_suffix(".pub")
    for kind, is_so in (("sk-ssh-ed25519@openssh.com", True), ("ssh-ed25519", False)):
        public.write_text(f"{kind} AAAA test")
        assert (
            here.transport_facts(resolve_destination("real", config)).has_only_security_keys
            is is_so
        )


def test_a_kerberos_ticket_is_for_openssh(server, tmp_path, monkeypatch):
    from remoter_kernel.local.login import log_in as here

    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    config = server.ssh_config(tmp_path / "config", "real", extra="GSSAPIAuthentication yes")
    for status, has_one in ((0, True), (1, False)):
        (programs / "klist").write_text(f'#!/bin/sh\n[ "$1" = -s ] && exit {status}\n')
        (programs / "klist").chmod(0o755)
        where = resolve_destination("real", config)
        assert where.openssh.uses_kerberos
        assert here.transport_facts(where).has_ticket is has_one


# ------------------------------------------------------------------ with a kernel


def test_a_kernel_runs_over_the_systems_ssh(here, python_remote):
    here.add_remote("box", transport="openssh", **python_remote)
    ran = here.remoter("run", "box", "-c", "import getpass; print(getpass.getuser(), 6 * 7)")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == "42"
    ran = here.remoter("check", "box")
    assert ran.returncode == 0, ran.stderr
    assert "by openssh" in ran.stdout
