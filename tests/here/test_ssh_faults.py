"""Whatever goes wrong on the way in is one sentence, in time, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.proxy import Proxy
from remoter_kernel.errors import LoginRefused, RemoteLacks, Unreachable
from remoter_kernel.local import private_sockets
from remoter_kernel.local.login import ssh_login as ssh
from remoter_kernel.local.login.paramiko import authenticator
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.ssh_config import resolve_destination
from tests import real_parts
from tests.failing_path import FailingPath
from tests.real_sshd import RealSshd, free_port, make_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.local.login.destination import Destination

SOON = 5.0  # seconds
BLACK_HOLE = "192.0.2.1"  # reserved for documentation: nobody answers there


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSshd]:
    """One server for all of these tests."""
    real_parts.real_part("sshd")
    with RealSshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture
def there(server: RealSshd, tmp_path: Path) -> Destination:
    """Where it is."""
    return resolve_destination("real", server.ssh_config(tmp_path / "ssh_config", "real"))


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No thread and no descriptor is there after a test that was not there before it."""
    # The first login imports and opens things that stay (a random source, an epoll).
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    deadline = time.monotonic() + SOON
    while (left := set(threading.enumerate()) - threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left
    while (more := _descriptors() - descriptors) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not more


def _descriptors() -> set[str]:
    found = set()
    folder = Path("/proc/self/fd")
    for descriptor in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith(("socket:", "pipe:"))}


def by(path: FailingPath, there: Destination, **changes: object) -> Destination:
    """Go to the same server by another path."""
    alias = f"[127.0.0.1]:{there.port}"
    return replace(there, port=path.port, host_key_alias=alias, **changes)  # type: ignore[arg-type]


# ------------------------------------------------------------ before SSH begins


def test_a_name_that_does_not_resolve_is_said(there):
    with pytest.raises(Unreachable, match=r"no-such-host\.invalid does not resolve"):
        log_in_by_paramiko(replace(there, host_name="no-such-host.invalid"))


def test_a_resolver_that_hangs_is_not_waited_for(there, monkeypatch):
    over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        over.wait(SOON)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(Unreachable, match=r"was not resolved within 0\.2 s"):
        log_in_by_paramiko(replace(there, host_name="slow.example.org", connect_timeout=0.2))
    over.set()


def test_a_refused_connection_is_said(there):
    port = free_port()
    with pytest.raises(Unreachable, match=f"refuses connections at port {port}"):
        log_in_by_paramiko(replace(there, port=port))


def test_a_black_hole_ends_at_the_deadline(there):
    # A listener whose queue is full drops what comes, as a firewall does.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(where)
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"did not answer within 0\.5 s"):
            log_in_by_paramiko(replace(there, port=where[1], connect_timeout=0.5))
        assert time.monotonic() - began < 2
        for filler in fillers:
            filler.close()


def test_a_dead_address_leaves_time_for_the_next(there, monkeypatch):
    found = socket.getaddrinfo("127.0.0.1", there.port, type=socket.SOCK_STREAM)
    dead = [(*one[:4], (BLACK_HOLE, 9)) for one in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: dead + found)
    log_in_by_paramiko(replace(there, connect_timeout=2.0)).close()


# ----------------------------------------------------------- SSH, and not to the end


@pytest.mark.parametrize(
    ("says", "closes", "sentence"),
    [
        (b"", True, "ended the connection during the step 'connect'"),
        (b"", False, "fell silent during the step 'connect'"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, 'and said: "HTTP/1.1 400 Bad Request"'),
        (b"Not allowed at this time\r\n", True, 'and said: "Not allowed at this time"'),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "fell silent|ended the connection"),
        (b"SSH-1.5-ancient\r\n", False, "ended the connection"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", True, "ended the connection"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", False, "fell silent"),
        (b"SSH-2.0-OpenSSH_9.9\r\n" + b"\xff" * 500, False, "ended the connection"),
        (b"\x00" * 100_000, False, "ended the connection|fell silent"),
    ],
)
def test_a_server_that_is_none_is_said(there, says, closes, sentence):
    with socket.create_server(("127.0.0.1", 0)) as fake:
        over = threading.Event()

        def serve() -> None:
            connection, _ = fake.accept()
            with connection:
                connection.sendall(says)
                if not closes:
                    over.wait(SOON)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with pytest.raises(Unreachable, match=sentence):
            log_in_by_paramiko(replace(there, port=fake.getsockname()[1], connect_timeout=0.7))
        assert time.monotonic() - began < 3
        over.set()
        thread.join()


def test_a_server_that_goes_after_its_greeting_leaves_no_timer(there):
    with socket.create_server(("127.0.0.1", 0)) as fake:

        def serve() -> None:
            connection, _ = fake.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
                connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Unreachable, match="ended the connection"):
            log_in_by_paramiko(replace(there, port=fake.getsockname()[1], connect_timeout=60.0))
        thread.join()


@pytest.mark.parametrize("silent", [False, True], ids=["cut", "silent"])
def test_a_path_that_fails_after_any_number_of_bytes(server, there, silent, monkeypatch):
    """From before the greeting until after the login: a sentence, in time, nothing left."""
    monkeypatch.setattr(authenticator, "AUTH_RESULT_WITHIN", 0.3)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    # A whole login takes about 2,000 bytes from the server.
    places = [0, 1, 21, 42, *sorted(chance.sample(range(43, 2200), 8 if silent else 24))]
    for after in places:
        with FailingPath(server.port, after, silent=silent) as path:
            began = time.monotonic()
            # Anything but our own errors would come through.
            with contextlib.suppress(Unreachable):
                login = log_in_by_paramiko(by(path, there, connect_timeout=0.3))
                with contextlib.closing(login):
                    login.run("echo", seconds=0.3)
            assert time.monotonic() - began < 3, f"seed {seed}, after {after} bytes"


def test_noise_before_the_greeting_is_read_over(server, there):
    noise = b"Welcome to this machine.\r\nAll that you do is watched.\r\n\r\n"
    with FailingPath(server.port, 1 << 40, noise=noise) as path:
        login = log_in_by_paramiko(by(path, there))
        assert login.run("echo hi").stdout == b"hi\n"
        login.close()


def test_a_banner_before_the_login_is_read_over(tmp_path):
    real_parts.real_part("sshd")
    (tmp_path / "banner").write_text("Unauthorised use is forbidden.\n" * 100)
    with RealSshd(tmp_path, extra_config=f"Banner {tmp_path}/banner") as sshd:
        login = log_in_by_paramiko(
            resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))
        )
        assert login.run("echo hi").stdout == b"hi\n"
        login.close()


def test_a_cut_in_the_middle_of_a_command_is_said_at_once(server, there):
    login = log_in_by_paramiko(there)
    threading.Timer(0.2, server.cut_all).start()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="is gone"):
        login.run("sleep 20", seconds=20)
    assert time.monotonic() - began < 3
    with pytest.raises(Unreachable, match="is gone"):
        login.run("true")
    with pytest.raises(Unreachable, match="is gone"):
        login.open_tunnel("127.0.0.1", server.port)
    login.close()


def test_our_own_cut_is_a_cut(server, there):
    login = log_in_by_paramiko(there)
    login.run("true")
    login.abort()
    with pytest.raises(Unreachable, match="is gone"):
        login.run("true")
    assert not login.is_alive
    login.close()
    deadline = time.monotonic() + SOON
    while server.logins() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server.logins()


def test_closing_twice_and_closing_what_never_began_is_fine(there):
    login = log_in_by_paramiko(there)
    login.close()
    login.close()
    login.abort()
    never = ssh.SSHLogin(there)
    assert not never.is_alive
    assert never.round_trip == 0
    never.close()
    never.abort()


# ----------------------------------------------------------- servers with rules


def test_a_forced_command_answers_instead(tmp_path):
    real_parts.real_part("sshd")
    with RealSshd(tmp_path, force_command="echo 'only backups here'") as sshd:
        login = log_in_by_paramiko(
            resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))
        )
        ran = login.run("echo hi")
        assert (ran.stdout, ran.status) == (b"only backups here\n", 0)
        with pytest.raises(RemoteLacks, match="only backups here"):
            login.run_until_line("echo REMOTER hi", b"", b"REMOTER ", 10)
        login.close()


@pytest.mark.parametrize("most", [0, 1])
def test_a_server_that_opens_no_more_sessions_is_said(tmp_path, most):
    real_parts.real_part("sshd")
    with RealSshd(tmp_path, extra_config=f"MaxSessions {most}") as sshd:
        login = log_in_by_paramiko(
            resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))
        )
        if most:
            assert login.run_until_line("echo MARK; sleep 5", b"", b"MARK", 10) == b"MARK"
        with pytest.raises(RemoteLacks, match=r"no .*session"):
            login.run("echo hi", seconds=1)
        login.close()


def test_too_many_keys_end_in_a_sentence(tmp_path):
    real_parts.real_part("sshd")
    with RealSshd(tmp_path, extra_config="MaxAuthTries 2") as sshd:
        there = resolve_destination("real", sshd.ssh_config(tmp_path / "config", "real"))
        keys = tuple(make_key(tmp_path / f"key{number}") for number in range(4))
        with pytest.raises(LoginRefused, match="after 2 keys") as caught:
            log_in_by_paramiko(replace(there, identity_files=keys))
        assert "IdentityFile" in caught.value.advice


def test_a_user_who_does_not_exist_is_refused(there):
    with pytest.raises(LoginRefused, match="nobody-here"):
        log_in_by_paramiko(replace(there, user="nobody-here"))


# ------------------------------------------------------------------- discretion


def test_paramiko_writes_nothing_to_stderr(there):
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from remoter_kernel.local.login.destination import Destination\n"
        "from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko\n"
        "import logging; logging.basicConfig(level=0)\n"
        f"d = Destination('127.0.0.1', {there.port}, {there.user!r},"
        f" (Path({str(there.identity_files[0])!r}),),"
        f" (Path({str(there.known_hosts_files[0])!r}),), identities_only=True)\n"
        "login = log_in_by_paramiko(d); login.run('true'); login.abort(); login.close()\n"
        "try: log_in_by_paramiko(replace(d, identity_files=()))\n"
        "except Exception: print('done')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True)
    assert (ran.stdout, ran.stderr) == (b"done\n", b"")


def test_no_key_appears_in_a_log(there, caplog):
    caplog.set_level(0)
    paramikos = logging.getLogger("paramiko")
    paramikos.addHandler(caplog.handler)
    paramikos.setLevel(1)
    try:
        login = log_in_by_paramiko(there)
        login.run("true", b"a secret")
        login.close()
    finally:
        paramikos.removeHandler(caplog.handler)
        paramikos.setLevel(logging.NOTSET)
    secret = there.identity_files[0].read_text().splitlines()[1]
    assert secret not in caplog.text
    assert "a secret" not in caplog.text


# ------------------------------------------------------------- a stalled network


def test_a_stalled_network_is_noticed_at_the_deadline(server, there):
    with Proxy(server.port) as path:
        login = log_in_by_paramiko(
            replace(there, port=path.port, host_key_alias=f"[127.0.0.1]:{there.port}")
        )
        assert login.run("echo hi").stdout == b"hi\n"
        path.stall()
        for do in (
            lambda: login.run("echo", seconds=0.3),
            lambda: login.run_until_line("echo MARK", b"", b"MARK", 0.3),
        ):
            began = time.monotonic()
            with pytest.raises(Unreachable, match=r"within 0\.3 s"):
                do()
            assert time.monotonic() - began < 2
        login.close()


@pytest.mark.timing
def test_a_login_whose_pipes_are_all_full_still_closes_at_once(server, there):
    with Proxy(server.port) as path, socket.create_server(("127.0.0.1", 0)) as far:
        login = log_in_by_paramiko(
            replace(there, port=path.port, host_key_alias=f"[127.0.0.1]:{there.port}")
        )
        tunnel = login.open_tunnel("127.0.0.1", far.getsockname()[1])
        with private_sockets.connect_to_listener(tunnel.address, 30) as near, far.accept()[0]:
            path.stall()
            near.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while near.send(bytes(1 << 20)):
                    pass
            began = time.monotonic()
            login.close()
            assert time.monotonic() - began < 1.5
