"""Logging in to a real OpenSSH server, running commands there, and not wasting round trips."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from bench.proxy import Proxy
from remoter_kernel.errors import HostKeyProblem, LoginRefused, RemoteLacks, Unreachable
from remoter_kernel.local.login.login import CommandEnded, UnknownHostKey
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.prompts import HostKeyDecision, NotAnswered, Prompt
from remoter_kernel.local.login.ssh_config import resolve_destination
from tests import real_parts
from tests.real_sshd import RealSshd, make_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.ssh_login import SSHLogin

TEN_MB = 10_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSshd]:
    """One server that lets this user in."""
    real_parts.real_part("sshd")
    with RealSshd(tmp_path_factory.mktemp("sshd"), host_key_kinds=("ed25519", "rsa")) as sshd:
        yield sshd


@pytest.fixture
def there(server: RealSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Destination:
    """Where the server is, for a person with an empty home and no agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return resolve_destination("real", server.ssh_config(tmp_path / "ssh_config", "real"))


@pytest.fixture
def login(there: Destination) -> Iterator[SSHLogin]:
    """One login there."""
    login = log_in_by_paramiko(there)
    yield login
    login.close()


# ------------------------------------------------------------------ commands


def test_a_command_gives_its_output_its_complaints_and_its_status(login, server):
    ran = login.run("id -un; cat; echo oops >&2; exit 3", b"input")
    assert ran.stdout.decode() == f"{server.user}\ninput"
    assert (ran.stderr, ran.status) == (b"oops\n", 3)
    assert login.run("kill -9 $$").status == 128 + 9


def test_a_login_says_what_it_is(login, server):
    assert login.is_alive
    assert (login.host, login.user) == ("127.0.0.1", server.user)
    assert login.cipher == "aes128-gcm@openssh.com"
    kind, shown = login.host_key.split()
    listed = subprocess.run(
        ["ssh-keygen", "-lf", f"{server.host_key()}.pub"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert kind == "ssh-ed25519"
    assert shown in listed.stdout
    assert set(login.seconds) == {"connect", "host key", "login"}
    assert 0 < login.round_trip < 1
    assert str(server.client_key) not in repr(login)


def test_much_input_and_much_output_at_once(login):
    data = os.urandom(TEN_MB)
    assert login.run("cat", data, seconds=60).stdout == data
    assert len(login.run(f"head -c {TEN_MB} /dev/zero >&2").stderr) == TEN_MB


def test_a_command_that_ignores_its_input_is_no_error(login):
    assert login.run("exit 5", b"x" * TEN_MB).status == 5


def test_a_process_left_behind_does_not_hold_up_its_command(login):
    began = time.monotonic()
    assert login.run("sleep 8 & echo $!").stdout.strip().isdigit()
    assert time.monotonic() - began < 4


def test_a_line_is_given_while_the_command_goes_on(login, tmp_path):
    go, done = tmp_path / "go", tmp_path / "done"
    command = f"echo noise; cat; until [ -e {go} ]; do sleep 0.05; done; echo MARK 2; touch {done}"
    assert login.run_until_line(command, b"MARK 1\n", b"MARK", 10) == b"MARK 1"
    go.touch()
    deadline = time.monotonic() + 10
    while not done.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_command_that_ends_without_its_line_says_how(login):
    with pytest.raises(CommandEnded) as caught:
        login.run_until_line("echo noise; echo sorry >&2; printf MARK; exit 4", b"", b"MARK", 10)
    ended = caught.value
    assert (ended.stdout, ended.stderr, ended.status) == (b"noise\nMARK", b"sorry\n", 4)
    assert isinstance(ended, RemoteLacks)


def test_a_command_has_a_deadline(login):
    with pytest.raises(Unreachable, match=r"within 0\.2 s"):
        login.run("sleep 5", seconds=0.2)
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


def test_bytes_arrive_whole_while_keys_are_exchanged_anew(tmp_path):
    real_parts.real_part("sshd")
    with RealSshd(tmp_path, extra_config="RekeyLimit 1M") as sshd:
        login = log_in_by_paramiko(
            resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))
        )
        try:
            data = os.urandom(TEN_MB)
            assert login.run("cat", data, seconds=60).stdout == data
        finally:
            login.close()


# --------------------------------------------------------------- round trips


RTT = 0.15  # seconds
TRIES = 3  # the machine may be busy: the quickest counts


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Destination]:
    """A server whose every command ends at once, without a login shell that takes its time."""
    real_parts.real_part("sshd")
    with RealSshd(tmp_path, force_command="internal-sftp") as sshd:
        yield resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))


def seconds_of(there: Destination) -> list[float]:
    """Time a login, its first command and its second one."""
    times = [time.perf_counter()]
    login = log_in_by_paramiko(there)
    times.append(time.perf_counter())
    for _ in range(2):
        assert b"sftp" in login.run("anything").stdout
        times.append(time.perf_counter())
    login.close()
    return [after - before for before, after in itertools.pairwise(times)]


def round_trips(near: Destination) -> list[int]:
    """Count the round trips of each: what the distance adds, in whole trips."""
    with Proxy(near.port, rtt=RTT) as path:
        far = replace(near, port=path.port, host_key_alias=f"[127.0.0.1]:{near.port}")
        quickest = [
            [min(times) for times in zip(*(seconds_of(where) for _ in range(TRIES)), strict=True)]
            for where in (near, far)
        ]
    return [round((far - near) / RTT) for near, far in zip(*quickest, strict=True)]


def test_a_first_command_costs_five_round_trips(quick):
    """TCP, greetings, key exchange, login (with its channel): four; and one for the command."""
    assert round_trips(quick) == [4, 1, 2]


def test_a_refused_key_costs_one_more_and_the_channel(quick, tmp_path):
    keys = (make_key(tmp_path / "wrong"), *quick.identity_files)
    assert round_trips(replace(quick, identity_files=keys)) == [5, 2, 2]


def test_the_round_trip_is_known_after_a_login(quick):
    with Proxy(quick.port, rtt=RTT) as path:
        login = log_in_by_paramiko(
            replace(quick, port=path.port, host_key_alias=f"[127.0.0.1]:{quick.port}")
        )
        assert RTT <= login.round_trip < 2 * RTT
        login.close()


def test_a_channel_opened_together_with_the_login_is_there_every_time(there):
    for _ in range(20):
        login = log_in_by_paramiko(there)
        try:
            assert login.run("echo yes", seconds=5).stdout == b"yes\n"
        finally:
            login.close()


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_default_keys_are_found_in_the_home(server, there, tmp_path, kind):
    (tmp_path / ".ssh").mkdir(mode=0o700)
    public = make_key(tmp_path / ".ssh" / f"id_{kind}", kind).with_suffix(".pub")
    server.allow(public.read_text())
    try:
        log_in_by_paramiko(replace(there, identity_files=(), identities_only=False)).close()
    finally:
        server.allow(server.client_key.with_suffix(".pub").read_text())


def test_no_fitting_key_is_a_sentence(there, tmp_path):
    with pytest.raises(LoginRefused, match="did not accept the key") as caught:
        log_in_by_paramiko(replace(there, identity_files=(make_key(tmp_path / "wrong"),)))
    assert "ssh-copy-id" in caught.value.advice


def test_no_key_at_all_is_a_sentence(there):
    with pytest.raises(LoginRefused, match="no key to show"):
        log_in_by_paramiko(replace(there, identity_files=()))


def test_each_key_that_cannot_be_used_is_named(there, tmp_path):
    locked = make_key(tmp_path / "locked", passphrase="secret words")
    gcm = tmp_path / "gcm"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "x", "-Z", "aes256-gcm@openssh.com", "-f", gcm],
        check=True,
    )
    (tmp_path / "garbage").write_text("no key\n")
    (tmp_path / "folder").mkdir()
    names = ("missing", "garbage", "locked", "gcm", "folder")
    with pytest.raises(LoginRefused) as caught:
        log_in_by_paramiko(replace(there, identity_files=tuple(tmp_path / name for name in names)))
    advice = caught.value.advice
    assert f"{tmp_path}/missing does not exist" in advice
    assert f"{tmp_path}/garbage is not a private key" in advice
    assert f"{locked} has a passphrase and no agent holds it" in advice
    assert f"{gcm} has a passphrase" in advice
    assert f"{tmp_path}/folder cannot be read" in advice
    assert "secret" not in advice


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent of our own."""
    if not shutil.which("ssh-agent"):
        pytest.skip("no ssh-agent here")
    place = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 5
    while not place.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
    yield place
    process.terminate()
    process.wait()


def test_the_agent_signs_for_a_key_with_a_passphrase(server, there, tmp_path, agent, monkeypatch):
    locked = make_key(tmp_path / "locked", passphrase="x")
    monkeypatch.setenv("SSH_ASKPASS", str(tmp_path / "askpass"))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    (tmp_path / "askpass").write_text("#!/bin/sh\necho x\n")
    (tmp_path / "askpass").chmod(0o700)
    subprocess.run(["ssh-add", "-q", locked], check=True, capture_output=True)
    server.allow(locked.with_suffix(".pub").read_text())
    there = replace(there, environment=dict(os.environ))
    try:
        log_in_by_paramiko(replace(there, identity_files=(locked,), identities_only=True)).close()
        log_in_by_paramiko(replace(there, identity_files=(), identities_only=False)).close()
        with pytest.raises(LoginRefused):
            log_in_by_paramiko(replace(there, identity_files=(), identity_agent="none"))
    finally:
        server.allow(server.client_key.with_suffix(".pub").read_text())


def test_an_agent_that_does_not_answer_is_said(there, tmp_path):
    environment = {**os.environ, "SSH_AUTH_SOCK": str(tmp_path / "nobody")}
    with pytest.raises(LoginRefused) as caught:
        log_in_by_paramiko(
            replace(there, environment=environment, identity_files=(), identities_only=False)
        )
    assert "agent did not answer" in caught.value.advice
    log_in_by_paramiko(there).close()  # a named key needs no agent


def test_what_else_the_server_would_take_is_said(tmp_path):
    real_parts.real_part("sshd")
    with RealSshd(tmp_path, extra_config="PasswordAuthentication yes") as sshd:
        there = resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))
        with pytest.raises(LoginRefused, match=r".") as caught:
            log_in_by_paramiko(replace(there, identity_files=(make_key(tmp_path / "wrong"),)))
        assert "password" in str(caught.value)


def test_a_key_that_is_only_half_of_what_is_wanted_is_said(tmp_path):
    real_parts.real_part("sshd")
    extra = "PasswordAuthentication yes\nAuthenticationMethods publickey,password"
    with RealSshd(tmp_path, extra_config=extra) as sshd:
        there = resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))
        with pytest.raises(LoginRefused, match="took a key and asks for a password"):
            log_in_by_paramiko(there)


# ----------------------------------------------------------------- host keys


class Yes:
    """Somebody who accepts every key."""

    def __init__(self) -> None:
        self.asked = 0

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        self.asked += 1
        return HostKeyDecision.YES

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        raise NotAnswered(host)


def test_an_unknown_host_is_asked_about_once(there, tmp_path):
    known = tmp_path / ".ssh" / "known_hosts"
    stranger = replace(there, known_hosts_files=(known,))
    with pytest.raises(UnknownHostKey, match="SHA256:"):
        log_in_by_paramiko(stranger)
    yes = Yes()
    for _ in range(2):
        log_in_by_paramiko(stranger, prompter=yes).close()
    assert yes.asked == 1
    assert stat.S_IMODE(known.stat().st_mode) == 0o600


def test_a_changed_host_key_is_refused_before_any_key_of_ours_is_shown(server, there, tmp_path):
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {other}")
    yes = Yes()
    before = server.log.read_text()
    with pytest.raises(HostKeyProblem, match=rf"{tmp_path}/known, line 1"):
        log_in_by_paramiko(replace(there, known_hosts_files=(tmp_path / "known",)), prompter=yes)
    assert not yes.asked
    assert "ublickey" not in server.log.read_text()[len(before) :]


def test_a_host_known_by_its_rsa_key_is_met_with_it(server, there, tmp_path):
    public = server.host_key("rsa").with_suffix(".pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {public}")
    login = log_in_by_paramiko(replace(there, known_hosts_files=(tmp_path / "known",)))
    assert login.host_key.startswith("ssh-rsa SHA256:")
    login.close()


# ---------------------------------------------------------- jumps and proxies


def test_jump_hosts_are_passed_through_each_with_its_own_login(server, tmp_path):
    config = tmp_path / "config"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with RealSshd(tmp_path / "one") as one, RealSshd(tmp_path / "two") as two:
        one.ssh_config(config, "one")
        two.ssh_config(config, "two")
        server.ssh_config(config, "far", extra="ProxyJump one,two")
        login = log_in_by_paramiko(resolve_destination("far", config))
        try:
            assert login.run("echo $SSH_CONNECTION").stdout.split()[-1] == b"%d" % server.port
            data = os.urandom(TEN_MB)
            assert login.run("cat", data, seconds=60).stdout == data
            two.cut_all()
            with pytest.raises(Unreachable):
                login.run("sleep 10", seconds=10)
            assert not login.is_alive
        finally:
            login.close()
        two.known_hosts.write_text("")
        with pytest.raises(UnknownHostKey):
            log_in_by_paramiko(resolve_destination("far", config))


def test_a_jump_host_that_cannot_reach_the_host_says_so(server, tmp_path):
    config = server.ssh_config(tmp_path / "config", "jump")
    config.write_text(
        config.read_text() + "Host far\n HostName 127.0.0.1\n Port 1\n ProxyJump jump\n"
    )
    with pytest.raises(Unreachable, match="from its jump host"):
        log_in_by_paramiko(resolve_destination("far", config))


def test_a_proxy_command_carries_the_connection(server, tmp_path):
    carry = tmp_path / "carry.py"
    carry.write_text(
        "import socket, sys, threading, os\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "def out():\n"
        "    while d := s.recv(65536): os.write(1, d)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=out, daemon=True).start()\n"
        "while d := os.read(0, 65536): s.sendall(d)\n"
    )
    command = f"ProxyCommand {sys.executable} {carry} %p"
    config = server.ssh_config(tmp_path / "config", "far", extra=command)
    login = log_in_by_paramiko(resolve_destination("far", config))
    assert login.run("echo hi").stdout == b"hi\n"
    login.close()
    assert not [child for child in psutil.Process().children() if str(carry) in child.cmdline()]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("false", "failed with status 1 and said nothing"),
        (
            "sh -c 'echo the token is too old >&2; exit 3'",
            'failed with status 3: "the token is too old"',
        ),
        ("/nowhere/proxy", "failed with status 127: .*not found"),
        ("sh -c 'echo no route >&2; exec sleep 600'", 'gave no connection: "no route"'),
    ],
)
def test_a_proxy_command_that_fails_says_why_in_its_own_words(server, tmp_path, command, sentence):
    extra = f"ProxyCommand {command}\nConnectTimeout 1"
    config = server.ssh_config(tmp_path / "config", "far", extra=extra)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=f"the ProxyCommand of far .*{sentence}"):
        log_in_by_paramiko(resolve_destination("far", config))
    assert time.monotonic() - began < 8


def test_what_a_proxy_command_leaves_behind_holds_up_nobody(server, tmp_path):
    left = tmp_path / "left"
    command = f"sh -c 'sleep 600 & echo $! > {left}; echo no way >&2; exit 1'"
    config = server.ssh_config(tmp_path / "config", "far", extra=f"ProxyCommand {command}")
    before = set(threading.enumerate())
    try:
        with pytest.raises(Unreachable, match='failed with status 1: "no way"'):
            log_in_by_paramiko(resolve_destination("far", config))
        assert set(threading.enumerate()) <= before
    finally:
        os.kill(int(left.read_text()), signal.SIGKILL)


def test_a_proxy_command_that_complains_without_end_is_read(server, tmp_path):
    """Else it would stop at a full pipe, and its connection with it."""
    noise = tmp_path / "noise.py"
    noise.write_text(
        "import os, subprocess, sys\n"
        "os.write(2, b'warning' * 100000)\n"
        "os.execvp('bash', ['bash', '-c', 'exec 3<>/dev/tcp/127.0.0.1/$0; cat <&3 & cat >&3', "
        "sys.argv[1]])\n"
    )
    extra = f"ProxyCommand {sys.executable} {noise} %p"
    config = server.ssh_config(tmp_path / "config", "far", extra=extra)
    with contextlib.closing(log_in_by_paramiko(resolve_destination("far", config))) as login:
        assert login.run("echo hi").stdout == b"hi\n"
