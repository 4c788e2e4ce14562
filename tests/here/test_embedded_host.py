"""The embedded host is a host like any other, for its parent only, and only while that lives."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest

from remoter_kernel.errors import ForwardingRefused, HostKeyProblem, LoginRefused, RemoteLacks
from remoter_kernel.local.login import embedded_host as host_module
from remoter_kernel.local.login import embedded_server
from remoter_kernel.local.login.embedded_host import EmbeddedHost
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from tests.real_sshd import make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remoter_kernel.local.login.ssh_login import SSHLogin

SOON = 5.0  # seconds


@pytest.fixture
def host() -> Iterator[EmbeddedHost]:
    with EmbeddedHost() as host:
        yield host


@pytest.fixture
def login(host: EmbeddedHost) -> Iterator[SSHLogin]:
    login = log_in_by_paramiko(host.destination())
    yield login
    login.close()


def comes_true(fact: Callable[[], object]) -> bool:
    """Wait for a fact, for a while."""
    deadline = time.monotonic() + SOON
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_it_starts_fast():
    """0.4 s at the most, of which Python and paramiko's import are nearly all."""

    def start() -> float:
        began = time.perf_counter()
        with EmbeddedHost():
            return time.perf_counter() - began

    def only_import() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import paramiko"], check=True)
        return time.perf_counter() - began

    # On a busy machine both take longer.
    pairs = [(start(), only_import()) for _ in range(3)]
    assert min(host - max(0.0, bare - 0.25) for host, bare in pairs) < 0.4


def test_without_a_descriptor_left_it_goes_on_a_little_later(monkeypatch):
    monkeypatch.setattr(embedded_server, "PAUSE", 0.01)
    troubles = [errno.EMFILE, errno.ECONNABORTED, errno.EBADF]

    class Full:
        def accept(self) -> None:
            raise OSError(troubles.pop(0), "no")

    embedded_server._accept_connections(cast("Any", Full()), None, None)
    assert troubles == []


def test_a_command_runs_as_on_any_host(login):
    ran = login.run("pwd; cat; echo oops >&2; exit 3", b"input")
    assert ran.stdout.decode() == f"{Path.home()}\ninput"
    assert (ran.stderr, ran.status) == (b"oops\n", 3)
    assert login.run("kill -9 $$").status == 128 + 9
    data = os.urandom(5_000_000)
    assert login.run("cat", data).stdout == data
    assert login.run("true", data).status == 0


def test_a_command_meets_the_environment_of_a_fresh_login(monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setenv("KEPT", "yes")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with EmbeddedHost() as host:
            login = log_in_by_paramiko(host.destination())
            said = login.run("env; grep -i sig[ib] /proc/self/status; ps -o pid=,sid= -p $$").stdout
            login.close()
    finally:
        signal.signal(signal.SIGINT, before)
    lines = said.decode().splitlines()
    assert "KEPT=yes" in lines
    assert not any(line.startswith("JPY_PARENT_PID") for line in lines)
    masks = [int(line.split()[1], 16) for line in lines if line.startswith("Sig")]
    # Signals from 32 on are the C library's own.
    assert [mask & 0x7FFFFFFF for mask in masks] == [0, 0]
    pid, session = lines[-1].split()
    assert pid == session


def test_forwarding_leads_to_loopback_only(login):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("127.0.0.1", "localhost"):
            login.open_tunnel(name, server.getsockname()[1]).close()
    for name in ("192.0.2.1", "example.org", "0.0.0.0"):
        with pytest.raises(ForwardingRefused):
            login.open_tunnel(name, 22)


def test_only_its_own_key_is_let_in(host, tmp_path):
    with pytest.raises(LoginRefused):
        log_in_by_paramiko(
            replace(host.destination(), identity_files=(make_key(tmp_path / "other"),))
        )


def test_its_host_key_is_checked_too(host, tmp_path):
    with pytest.raises(HostKeyProblem):
        log_in_by_paramiko(replace(host.destination(), known_hosts_files=(tmp_path / "none",)))


def test_its_files_are_private_and_go_with_it():
    with EmbeddedHost() as host:
        key = host.destination().identity_files[0]
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert not key.parent.exists()


def test_what_daemonised_itself_survives_it(tmp_path):
    alive = tmp_path / "alive"
    with EmbeddedHost() as host:
        login = log_in_by_paramiko(host.destination())
        ran = login.run(
            f"nohup setsid sh -c 'sleep 60' >/dev/null 2>&1 </dev/null & echo $! >{alive}"
        )
        login.close()
    assert ran.status == 0
    process = psutil.Process(int(alive.read_text()))
    everything = [process, *process.children(recursive=True)]
    assert process.is_running()
    for one in everything:
        one.kill()


def test_it_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import time, sys\n"
        "from remoter_kernel.local.login.embedded_host import EmbeddedHost\n"
        "h = EmbeddedHost(); h.start()\n"
        "print(h._process.pid, h._folder, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=host_module.PACKAGE_ROOT
    )
    with parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().decode().split()
        child = psutil.Process(int(pid))
        parent.kill()
    assert comes_true(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert comes_true(lambda: not Path(folder).exists())


def test_it_does_not_import_what_lies_in_the_notebooks_folder(tmp_path, monkeypatch):
    (tmp_path / "paramiko.py").write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    with EmbeddedHost() as host:
        log_in_by_paramiko(host.destination()).close()


def test_a_host_that_does_not_start_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RemoteLacks, match="no such luck"):
        EmbeddedHost().start()


def test_where_it_cannot_run_it_says_so(monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(RemoteLacks, match="needs Linux or macOS"):
        EmbeddedHost().start()


def test_a_destination_of_a_host_that_is_not_running_is_an_error():
    with pytest.raises(RemoteLacks, match="not running"):
        EmbeddedHost().destination()
